"""MVClusterer: clusters of rows under a mixture prior.

Axes: b rows, k columns, c clusters.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import ClusterMixin

from mvkit_sklearn.building import ModelLike, clustering_parts
from mvkit_sklearn.columns import ModalitiesLike
from mvkit_sklearn.estimator import MultimodalEstimator
from mvkit_sklearn.stored import TrainedLike


class MVClusterer(ClusterMixin, MultimodalEstimator):  # type: ignore[misc]
    """Clusters of rows across modalities: the components of a mixture prior of the latents.

    Rows with gaps (NaN) are assigned by what they have. Clusters that no row of training has come
    last in the numbering.

    Args:
        n_clusters: components of the mixture, where `model` names no other prior.
        modalities, model, likelihoods, latent_dim, hidden, epochs, batch_size, learning_rate,
            trained, warm_start, device, random_state, verbose: see `MultimodalEstimator`.

    Attributes:
        labels_: clusters of the rows of training, (b,).

    Example:
        >>> import numpy as np
        >>> X = np.repeat([[0.0, 0.0], [9.0, 9.0]], 20, axis=0)
        >>> X = X + np.random.default_rng(0).normal(size=X.shape)
        >>> labels = MVClusterer(2, latent_dim=2, random_state=0).fit_predict(X)
        >>> len(set(labels[:20])), len(set(labels[20:]))
        (1, 1)
    """

    def __init__(
        self,
        n_clusters: int = 8,
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
        self.n_clusters = n_clusters

    def _own_parts(self) -> dict[str, Any]:
        return clustering_parts(self.model, self.n_clusters)

    def fit(self, X: Any, y: Any = None) -> Self:
        """Trains a model of the table, and assigns its rows.

        Args:
            X: (b, k), NaN where missing.
            y: ignored.
        """
        values = self._validated(X, reset=True)
        self._train(values)
        shares = self._shares(self._arrays(values))
        components = shares.argmax(1)
        used = np.unique(components)
        others = np.setdiff1d(np.arange(shares.shape[1]), used)
        self._components = np.concatenate([used, others])
        self.labels_ = self._numbers(components)
        return self

    def _shares(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """Probabilities (b, c) of the components of the prior, in its own order."""
        shares: np.ndarray = self.model_.clusters(arrays, soft=True).numpy()
        return shares

    def _numbers(self, components: np.ndarray) -> np.ndarray:
        """The numbers of clusters, from those of components, (b,)."""
        numbers: np.ndarray = np.argsort(self._components)[components]
        return numbers

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest cluster of each row, (b,)."""
        return self._numbers(self._shares(self._rows(X)).argmax(1))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the clusters, (b, c)."""
        return self._shares(self._rows(X))[:, self._components]
