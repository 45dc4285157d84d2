"""MVClassifier: labels as a modality, known of some rows.

Axes: b rows, k columns, c classes.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets

from mvkit import DataError
from mvkit_sklearn.estimator import LABEL
from mvkit_sklearn.labelled import LabelledEstimator
from mvkit_sklearn.labels import known_rows, read_labels


class MVClassifier(ClassifierMixin, LabelledEstimator):  # type: ignore[misc]
    """A classifier whose label is one more modality of a generative model.

    Rows whose label is not known train the rest of the model, and so the classifier. Rows with
    gaps (NaN) are classified by what they have.

    Args:
        unlabelled: what stands in y where a label is not known, such as -1, "" or NaN; None: all
            are known.
        label_weight: factor of the label's log-likelihood; None: the number of columns.
        modalities, model, likelihoods, latent_dim, hidden, epochs, batch_size, learning_rate,
            trained, warm_start, device, random_state, verbose: see `MultimodalEstimator`.

    Attributes:
        classes_: the labels, sorted, (c,).

    Example:
        >>> import numpy as np
        >>> X = np.repeat([[0.0, 0.0], [9.0, 9.0]], 20, axis=0)
        >>> y = np.repeat(["low", "high"], 20)
        >>> y[::2] = "?"
        >>> model = MVClassifier(unlabelled="?", random_state=0).fit(X, y)
        >>> model.predict([[1.0, np.nan]]).tolist()
        ['low']
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Trains a model of the table and its labels.

        Args:
            X: (b, k), NaN where missing.
            y: labels, (b,), some of which may be `unlabelled`.
        """
        values = self._validated(X, reset=True)
        labels, known = read_labels(y, self.unlabelled, len(values))
        check_classification_targets(labels[known])
        self.classes_, codes = np.unique(labels[known], return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(
                f"y: one class only, {self.classes_[0]!r} (1 class); expected two at least"
            )
        one_hot = np.full((len(values), len(self.classes_)), np.nan)
        one_hot[known] = np.eye(len(self.classes_))[codes]
        self._train(values, one_hot, "categorical")
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, (b, c), in the order of `classes_`."""
        return self._predicted(self._rows(X), [LABEL])[LABEL]

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Their logarithms, (b, c)."""
        log_p: np.ndarray = np.log(self.predict_proba(X))
        return log_p

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class of each row, (b,)."""
        likeliest = self.predict_proba(X).argmax(1)
        labels: np.ndarray = self.classes_[likeliest]
        return labels

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy over the rows whose label is known."""
        X, y, sample_weight = known_rows(X, y, sample_weight, self.unlabelled)
        return float(super().score(X, y, sample_weight))
