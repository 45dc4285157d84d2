"""What all estimators share: their columns, their model, its training, and their pickles.

Axes: b rows, k columns, d latent.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

import mvkit
from mvkit import DataError, Modality, SpecError
from mvkit_sklearn import building, stored
from mvkit_sklearn.building import Arrays, ModelLike
from mvkit_sklearn.columns import Columns, ModalitiesLike, read_columns
from mvkit_sklearn.reuse import check_same_columns, columns_of
from mvkit_sklearn.stored import AnyModel, TrainedLike, trained_model

LABEL = "label"  # the modality of what classifiers and regressors predict
SEEDS = 2**31 - 1
KINDS = (np.float64, np.float32)


class MultimodalEstimator(BaseEstimator):  # type: ignore[misc]  # sklearn has no types
    """An estimator around a model of mvkit.

    To implement one, call `_train` in `fit`, and `_rows` in what answers questions.

    Args:
        modalities: the columns of each modality: a list of names or positions, flags, a slice, a
            prefix of names, or a function of all names (of positions, where columns have none)
            that returns names, positions or flags. None: all columns are one modality, `x`, or
            with `trained`, those that its features name.
        model: a recipe's name; or a dict of options of `mvkit.Model`, or of the recipe that it
            names as `recipe`; None: a product of experts of one modality, a mixture of products
            of several.
        likelihoods: a likelihood of all modalities, or a mapping from modality to likelihood.
            None: normal, of standardised columns.
        latent_dim: width of the latent that modalities share.
        hidden: widths of the hidden layers of encoders and decoders.
        epochs: how long to train; None: 40 steps, and one more for every two rows, up to 4,000.
        batch_size: rows per step.
        learning_rate: of Adam.
        trained: a model that was trained before, or the path of its file. `fit` then trains
            nothing, unless `warm_start` is set, which trains a copy on.
        warm_start: let a second `fit` train the model of the first on.
        device: where to train, as of `mvkit.fit`; the model is then moved to the CPU.
        random_state: seed of weights and noise, a `numpy.random.RandomState`, or None.
        verbose: show a bar, and what mvkit warns of.

    Attributes:
        model_: the trained model, in float64; `mvkit.save` writes it to a file.
        columns_: positions of the columns of each modality.
        loss_curve_: the loss of each epoch; empty if nothing was trained.
        verdict_: sentences on what the training came to.
        n_features_in_, feature_names_in_: as of every estimator.
    """

    label_weight: float | None = None  # of estimators that predict a label
    model_: AnyModel
    columns_: Columns
    loss_curve_: list[float]
    verdict_: list[str]

    def __init__(
        self,
        modalities: ModalitiesLike = None,
        *,
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
        self.modalities = modalities
        self.model = model
        self.likelihoods = likelihoods
        self.latent_dim = latent_dim
        self.hidden = hidden
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.trained = trained
        self.warm_start = warm_start
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _own_parts(self) -> dict[str, Any]:
        """Options of the model that the estimator asks for."""
        return {}

    def _validated(self, X: Any, *, reset: bool) -> np.ndarray:
        """The table as floats (b, k), NaN where missing."""
        values: np.ndarray = validate_data(
            self, X, dtype=KINDS, ensure_all_finite="allow-nan", reset=reset
        )
        return values

    @property
    def _names(self) -> tuple[str, ...] | None:
        """Names of the columns of training; None: they have none."""
        names = getattr(self, "feature_names_in_", None)
        return None if names is None else tuple(names.tolist())

    def _arrays(self, values: np.ndarray) -> Arrays:
        """The values (b, k) by modality."""
        arrays = {}
        for name, positions in self.columns_.items():
            arrays[name] = values[:, positions].astype(np.float64)
        return arrays

    def _rows(self, X: Any) -> Arrays:
        """A table that the estimator was not fitted to, by modality.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: other columns than those of training.
        """
        check_is_fitted(self, "model_")
        return self._arrays(self._validated(X, reset=False))

    def _train(
        self, values: np.ndarray, label: np.ndarray | None = None, kind: Any = None
    ) -> None:
        """Sets `model_` and what belongs to it.

        Args:
            values: the table, (b, k).
            label: what is predicted, (b, classes) or (b, 1), NaN where unknown.
            kind: its likelihood.
        """
        seed = self._seed()
        start = self._start()
        if np.isnan(values).all():
            raise DataError("X: every value is NaN; expected some numbers; check how it was read")
        self.columns_ = self._read_columns(values.shape[1], start)
        arrays = self._arrays(values)
        if label is not None:
            if LABEL in arrays:
                raise SpecError(
                    f"a modality is called {LABEL!r}, as what is predicted is; rename it",
                    "modalities",
                )
            arrays[LABEL] = label
        arrays = with_values(arrays)
        self.loss_curve_ = []
        self.verdict_ = []
        with warnings.catch_warnings():
            if not self.verbose:  # what they say of small samples would be said of every fold
                warnings.filterwarnings("ignore", category=UserWarning)
            if start is None:
                start = self._built(arrays, kind, seed)
            else:
                check_same_columns(start, arrays, self._features())
            if self.trained is None or self.warm_start:
                self._fit_model(start, arrays, seed)
        self.model_ = start.to("cpu").eval()

    def _seed(self) -> int:
        """A seed of weights and noise."""
        return int(check_random_state(self.random_state).randint(SEEDS))

    def _start(self) -> AnyModel | None:
        """The model that is used or trained on; None: a fresh one is trained."""
        earlier = getattr(self, "model_", None) if self.warm_start else None
        given = self.trained if earlier is None else earlier
        return None if given is None else trained_model(given)

    def _read_columns(self, count: int, start: AnyModel | None) -> Columns:
        """The columns of each modality; None as `modalities`: those of a trained model."""
        if self.modalities is None and start is not None:
            return columns_of(start, self._names, count, LABEL)
        return read_columns(self.modalities, self._names, count)

    def _features(self) -> dict[str, tuple[str, ...]]:
        """Names of the columns of each modality, if they have some."""
        names = self._names
        if names is None:
            return {}
        return {key: tuple(names[i] for i in own) for key, own in self.columns_.items()}

    def _built(self, arrays: Arrays, kind: Any, seed: int) -> AnyModel:
        """A fresh model of the arrays."""
        named = [name for name in arrays if name != LABEL]
        likelihoods = building.likelihoods_of(self.likelihoods, named)
        network = {"name": "mlp", "hidden": list(self.hidden)}
        tables = {name: arrays[name] for name in named}
        modalities = building.modalities_of(tables, self._features(), likelihoods, network)
        if LABEL in arrays:
            modalities[LABEL] = self._label_modality(arrays[LABEL], kind, network)
        options = self._own_parts()
        fresh: AnyModel = building.build(modalities, self.model, self.latent_dim, options, seed)
        return fresh

    def _label_modality(
        self, label: np.ndarray, kind: Any, network: Mapping[str, Any]
    ) -> Modality:
        """The modality of what is predicted, by default as heavy as all columns together."""
        weight = self.label_weight
        if weight is None:
            weight = float(self.n_features_in_)
        options = {"encoder": network, "decoder": network, "weight": weight, "likelihood": kind}
        if kind == "categorical":
            return Modality((label.shape[1],), **options)
        dataset = mvkit.MultimodalDataset.from_arrays({LABEL: label}, modalities={LABEL: options})
        return dataset.fit_transforms({LABEL: "standardise"}).modalities[LABEL]

    def _fit_model(self, model: AnyModel, arrays: Arrays, seed: int) -> None:
        """Trains a model on the arrays."""
        rows = {name: torch.from_numpy(x) for name, x in arrays.items()}
        self._fit_rows(model, rows, len(next(iter(arrays.values()))), seed)

    def _fit_rows(self, model: AnyModel, rows: Any, count: int, seed: int) -> None:
        """Trains a model on so many rows, in any form that `mvkit.fit` takes."""
        epochs = self.epochs
        if epochs is None:
            epochs = building.epochs_for(count, self.batch_size)
        history = mvkit.fit(
            model,
            rows,
            epochs=epochs,
            batch_size=self.batch_size,
            lr=self.learning_rate,
            seed=seed,
            device=self.device,
            progress=bool(self.verbose),
        )
        self.loss_curve_ = [float(row["loss"]) for row in history.rows]
        self.verdict_ = list(history.verdict)

    def _predicted(self, arrays: Arrays, to: list[str]) -> dict[str, np.ndarray]:
        """What the model expects of modalities, {name: (b, *shape)}, at the latents' means.

        Nothing is drawn, so that a row's answer depends on no other row.
        """
        answers = self.model_.translate(
            arrays, to=to, given=list(arrays), latent="mean", empty="prior"
        )
        return {name: x[0].numpy() for name, x in answers.items()}

    def __getstate__(self) -> dict[str, Any]:
        return stored.without_code(super().__getstate__())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(stored.with_models(state))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")


def with_values(arrays: Arrays) -> Arrays:
    """The rows of the arrays (b, k) that have a value in any of them."""
    some = ~np.isnan(np.hstack(list(arrays.values()))).all(1)
    return {name: x[some] for name, x in arrays.items()}
