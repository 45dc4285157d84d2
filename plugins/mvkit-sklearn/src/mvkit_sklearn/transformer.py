"""MVTransformer: rows as the latents that modalities share.

Axes: b rows, k columns, d latent.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from mvkit_sklearn.estimator import MultimodalEstimator


class MVTransformer(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]
    TransformerMixin,  # type: ignore[misc]
    MultimodalEstimator,
):
    """Rows as the posterior means of the latents that modalities share, (b, d).

    Rows with gaps (NaN) are encoded from what they have; rows with nothing get the prior's mean.

    Args:
        modalities, model, likelihoods, latent_dim, hidden, epochs, batch_size, learning_rate,
            trained, warm_start, device, random_state, verbose: see `MultimodalEstimator`.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(20, 3))
        >>> MVTransformer(latent_dim=2, random_state=0).fit_transform(X).shape
        (20, 2)
    """

    def fit(self, X: Any, y: Any = None) -> Self:
        """Trains a model of the table.

        Args:
            X: (b, k), NaN where missing.
            y: ignored.
        """
        self._train(self._validated(X, reset=True))
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The latents of the rows, (b, d)."""
        rows = self._rows(X)
        z: np.ndarray = self.model_.encode(rows, list(rows), empty="prior").numpy()
        return z

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Rows (b, k) that the model expects at latents (b, d)."""
        check_is_fitted(self, "model_")
        z = check_array(X, dtype=np.float64)
        means = self.model_.decode(torch.from_numpy(z))
        values = np.empty((len(z), self.n_features_in_))
        for name, positions in self.columns_.items():
            values[:, positions] = means[name].numpy()
        return values

    @property
    def _n_features_out(self) -> int:
        return self.model_.latent_dim
