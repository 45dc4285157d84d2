"""MVImputer: gaps of a table filled from what each row has.

Axes: b rows, k columns.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import OneToOneFeatureMixin, TransformerMixin
from sklearn.impute import MissingIndicator
from sklearn.utils.validation import check_is_fitted, validate_data

from mvkit import SpecError
from mvkit.data.table_layout import TableLayout
from mvkit_sklearn import building, mixed
from mvkit_sklearn.building import ModelLike
from mvkit_sklearn.columns import ModalitiesLike
from mvkit_sklearn.estimator import MultimodalEstimator
from mvkit_sklearn.mixed import KindsLike
from mvkit_sklearn.stored import TrainedLike

if TYPE_CHECKING:
    from pandas import DataFrame


class MVImputer(OneToOneFeatureMixin, TransformerMixin, MultimodalEstimator):  # type: ignore[misc]
    """Fills the gaps (NaN) of a table from what each row has, across modalities.

    Observed values keep their bits. A gap gets what the decoder expects at the latents' mean;
    columns that training never observed are filled too, and so are rows that observe nothing.
    Numbers of likelihoods that take whole numbers alone (counts, bits) are rounded.

    With `kinds`, columns may hold anything: words, categories, whole numbers, yes and no, days, as
    of `mvkit.impute(tables)`. They are told apart by their types and values, each sort is a
    modality, and the same kind of table comes back: whole numbers stay whole, and no number leaves
    the range of those that were observed. Gaps of free text, and of columns without a value, stay.

    Args:
        kinds: None: all columns are numbers. "auto": they are of the kinds that they look like
            (`mvkit.data.column_kinds.column_of`); {column: kind} states those of some columns.
        add_indicator: append a column of flags for each column that had gaps in training, as
            `sklearn.impute.SimpleImputer` does.
        modalities, model, likelihoods, latent_dim, hidden, epochs, batch_size, learning_rate,
            trained, warm_start, device, random_state, verbose: see `MultimodalEstimator`.

    Attributes:
        indicator_: the `sklearn.impute.MissingIndicator`; None without `add_indicator`.
        layout_: with `kinds`, how columns are shared out among modalities; None without.

    Example:
        >>> import numpy as np
        >>> X = np.array([[1.0, 2.0], [np.nan, 4.0], [5.0, 6.0]])
        >>> filled = MVImputer(random_state=0).fit_transform(X)
        >>> bool(np.isnan(filled).any()), float(filled[0, 1])
        (False, 2.0)
        >>> import pandas as pd
        >>> columns = {"age": [41, 67, None, 58] * 5, "site": ["A", "B", "A", None] * 5}
        >>> table = pd.DataFrame(columns)
        >>> MVImputer(kinds="auto", random_state=0).fit_transform(table).isna().sum().sum().item()
        0
    """

    layout_: TableLayout | None

    def __init__(
        self,
        modalities: ModalitiesLike = None,
        *,
        kinds: KindsLike = None,
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
        self.kinds = kinds
        self.add_indicator = add_indicator

    def fit(self, X: Any, y: Any = None) -> Self:
        """Trains a model of the table.

        Args:
            X: (b, k), NaN where missing.
            y: ignored.
        """
        if self.kinds is None:
            values = self._validated(X, reset=True)
            self._train(values)
            self.layout_ = None
            gaps = np.isnan(values)
        else:
            gaps = self._fit_mixed(X)
        self.indicator_ = None
        if self.add_indicator:
            self.indicator_ = MissingIndicator(error_on_new=False).fit(as_numbers(gaps))
        return self

    def transform(self, X: Any) -> Any:
        """The table (b, k) without gaps, and with flags behind it if they were asked for.

        With `kinds` it is of the kind that came in, a table or an array.
        """
        check_is_fitted(self, "model_")
        if self.layout_ is not None:
            return self._filled_mixed(X, self.layout_)
        values = self._validated(X, reset=False)
        gaps = np.isnan(values)
        filled = values.copy()
        if gaps.any():
            self._fill(filled, gaps)
        if self.indicator_ is None:
            return filled
        flags = self.indicator_.transform(values)
        return np.hstack([filled, flags.astype(filled.dtype)])

    def _fit_mixed(self, X: Any) -> np.ndarray:
        """Trains a model of columns of every kind; returns where gaps are, (b, k) bool.

        Raises:
            SpecError: options that say what columns are in another way.
        """
        for name in ("modalities", "likelihoods"):
            if getattr(self, name) is not None:
                raise SpecError(
                    "beside kinds=, which shares the columns out by what they hold; expected one "
                    "of the two; leave one out",
                    name,
                )
        frame = self._frame(X, reset=True)
        layout = mixed.layout_from(frame, self.kinds)
        seed = self._seed()
        start = self._start()
        self.loss_curve_ = []
        self.verdict_ = []
        network = {"name": "mlp", "hidden": list(self.hidden)}
        with warnings.catch_warnings():
            if not self.verbose:
                warnings.filterwarnings("ignore", category=UserWarning)
            if start is None:
                rows = mixed.training_rows(frame, layout, network)
                start = building.build(rows.modalities, self.model, self.latent_dim, {}, seed)
            else:
                mixed.check_layout(start, layout)
                rows = mixed.observed_rows(frame, layout, start.modalities)
            if self.trained is None or self.warm_start:
                self._fit_rows(start, rows, len(rows), seed)
        self.model_ = start.to("cpu").eval()
        self.layout_ = layout
        names = list(frame.columns.astype(str))
        self.columns_ = {}
        for group, own in layout.groups.items():
            self.columns_[group] = [names.index(name) for name in own]
        gaps: np.ndarray = frame.isna().to_numpy()
        return gaps

    def _frame(self, X: Any, *, reset: bool) -> DataFrame:
        """The table as one of pandas, its columns being those of training."""
        frame = mixed.frame_from(X)
        validate_data(self, X, skip_check_array=True, reset=reset)
        return frame

    def _filled_mixed(self, X: Any, layout: TableLayout) -> Any:
        """A table of columns of every kind without gaps, and flags behind it."""
        frame = self._frame(X, reset=False)
        rows = mixed.rows_of(frame, layout, self.model_.modalities)
        answers = self.model_.translate(rows, list(layout.groups), latent="mean", empty="prior")
        values = {name: x[0].numpy() for name, x in answers.items()}
        filled = mixed.filled_frame(frame, layout, values)
        if self.indicator_ is not None:
            flags = self.indicator_.transform(as_numbers(frame.isna().to_numpy()))
            names = self.get_feature_names_out()[frame.shape[1] :]
            filled = filled.assign(**dict(zip(names, flags.T, strict=True)))
        return mixed.like_before(filled, X)

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
        tags.input_tags.categorical = tags.input_tags.string = self.kinds is not None
        return tags


def as_numbers(gaps: np.ndarray) -> np.ndarray:
    """Flags (b, k) as numbers that are NaN where they are set."""
    return np.where(gaps, np.nan, 0.0)
