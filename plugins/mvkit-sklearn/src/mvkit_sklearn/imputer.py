"""MVImputer: gaps of a table filled from what each row has.

Axes: b rows, k columns.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import OneToOneFeatureMixin, TransformerMixin
from sklearn.impute import MissingIndicator
from sklearn.utils.validation import check_is_fitted

from mvkit_sklearn.building import ModelLike
from mvkit_sklearn.columns import ModalitiesLike
from mvkit_sklearn.estimator import MultimodalEstimator
from mvkit_sklearn.stored import TrainedLike


class MVImputer(OneToOneFeatureMixin, TransformerMixin, MultimodalEstimator):  # type: ignore[misc]
    """Fills the gaps (NaN) of a table from what each row has, across modalities.

    Observed values keep their bits. A gap gets what the decoder expects at the latents' mean;
    columns that training never observed are filled too, and so are rows that observe nothing.
    Numbers of likelihoods that take whole numbers alone (counts, bits) are rounded.

    Args:
        add_indicator: append a column of flags for each column that had gaps in training, as
            `sklearn.impute.SimpleImputer` does.
        modalities, model, likelihoods, latent_dim, hidden, epochs, batch_size, learning_rate,
            trained, warm_start, device, random_state, verbose: see `MultimodalEstimator`.

    Attributes:
        indicator_: the `sklearn.impute.MissingIndicator`; None without `add_indicator`.

    Example:
        >>> import numpy as np
        >>> X = np.array([[1.0, 2.0], [np.nan, 4.0], [5.0, 6.0]])
        >>> filled = MVImputer(random_state=0).fit_transform(X)
        >>> bool(np.isnan(filled).any()), float(filled[0, 1])
        (False, 2.0)
    """

    def __init__(
        self,
        modalities: ModalitiesLike = None,
        *,
        add_indicator: bool = False,
        model: ModelLike = None,
        likelihoods: Any = None,
        latent_dim: int = 10,
        hidden: tuple[int, ...] = (64,),
        epochs: int | None = None,
        batch_size: int = 128,
        learning_rate: float = 1e-2,
        trained: TrainedLike = None,
        warm_start: bool = False,
        device: str = "cpu",
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            modalities,
            model=model,
            likelihoods=likelihoods,
            latent_dim=latent_dim,
            hidden=hidden,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            trained=trained,
            warm_start=warm_start,
            device=device,
            random_state=random_state,
            verbose=verbose,
        )
        self.add_indicator = add_indicator

    def fit(self, X: Any, y: Any = None) -> Self:
        """Trains a model of the table.

        Args:
            X: (b, k), NaN where missing.
            y: ignored.
        """
        values = self._validated(X, reset=True)
        self._train(values)
        self.indicator_ = None
        if self.add_indicator:
            self.indicator_ = MissingIndicator(error_on_new=False).fit(values)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The table (b, k) without gaps, and with flags behind it if they were asked for."""
        check_is_fitted(self, "model_")
        values = self._validated(X, reset=False)
        gaps = np.isnan(values)
        filled = values.copy()
        if gaps.any():
            self._fill(filled, gaps)
        if self.indicator_ is None:
            return filled
        flags = self.indicator_.transform(values)
        return np.hstack([filled, flags.astype(filled.dtype)])

    def _fill(self, values: np.ndarray, gaps: np.ndarray) -> None:
        """Puts what the model expects into the gaps of the values (b, k)."""
        rows = gaps.any(1)
        answers = self._predicted(self._arrays(values[rows]), list(self.columns_))
        expected = np.empty((int(rows.sum()), values.shape[1]))
        for name, positions in self.columns_.items():
            x = answers[name]
            likelihood = self.model_.schema.likelihoods[name]
            if likelihood.integers and not likelihood.class_axis:  # categories are as they came
                x = x.round()
            expected[:, positions] = x
        values[gaps] = expected[gaps[rows]]

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns of `transform`."""
        names: np.ndarray = super().get_feature_names_out(input_features)
        if self.indicator_ is None:
            return names
        return np.concatenate([names, self.indicator_.get_feature_names_out(names)])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
