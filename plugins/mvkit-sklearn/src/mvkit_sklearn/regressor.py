"""MVRegressor: a number as a modality, known of some rows.

Axes: b rows, k columns.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import check_array

from mvkit_sklearn.building import TARGET
from mvkit_sklearn.estimator import LABEL
from mvkit_sklearn.labelled import LabelledEstimator
from mvkit_sklearn.labels import known_rows, read_labels


class MVRegressor(RegressorMixin, LabelledEstimator):  # type: ignore[misc]
    """A regressor whose target is one more modality of a generative model.

    Rows whose target is not known train the rest of the model, and so the regressor. Rows with
    gaps (NaN) are answered by what they have.

    Args:
        unlabelled: what stands in y where the target is not known, such as NaN; None: all are
            known.
        label_weight: factor of the target's log-likelihood; None: the number of columns.
        modalities, model, likelihoods, latent_dim, hidden, epochs, batch_size, learning_rate,
            trained, warm_start, device, random_state, verbose: see `MultimodalEstimator`.

    Example:
        >>> import numpy as np
        >>> X = np.linspace(-1, 1, 40).reshape(-1, 1)
        >>> y = 3 * X[:, 0]
        >>> y[::2] = np.nan
        >>> model = MVRegressor(unlabelled=np.nan, random_state=0).fit(X, y)
        >>> bool(model.score(X, y) > 0.8)
        True
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Trains a model of the table and its target.

        Args:
            X: (b, k), NaN where missing.
            y: numbers, (b,), some of which may be `unlabelled`.
        """
        values = self._validated(X, reset=True)
        labels, known = read_labels(y, self.unlabelled, len(values))
        numbers = check_array(labels[known], dtype=np.float64, ensure_2d=False, input_name="y")
        target = np.full((len(values), 1), np.nan)
        target[known, 0] = numbers
        self._train(values, target, TARGET)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The expected target of each row, (b,)."""
        return self._predicted(self._rows(X), [LABEL])[LABEL][:, 0]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R² over the rows whose target is known."""
        X, y, sample_weight = known_rows(X, y, sample_weight, self.unlabelled)
        return float(super().score(X, y, sample_weight))
