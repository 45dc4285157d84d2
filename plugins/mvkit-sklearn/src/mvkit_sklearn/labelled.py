"""What classifiers and regressors have in common: a label that is a modality."""

from __future__ import annotations

from typing import Any

from mvkit_sklearn.building import ModelLike
from mvkit_sklearn.columns import ModalitiesLike
from mvkit_sklearn.estimator import MultimodalEstimator
from mvkit_sklearn.stored import TrainedLike


class LabelledEstimator(MultimodalEstimator):
    """An estimator whose label, known of some rows, is one more modality of its model.

    Args:
        unlabelled: what stands in y where a label is not known; None: all are known.
        label_weight: factor of the label's log-likelihood; None: the number of columns.
        modalities, model, likelihoods, latent_dim, hidden, epochs, batch_size, learning_rate,
            trained, warm_start, device, random_state, verbose: see `MultimodalEstimator`.
    """

    def __init__(
        self,
        modalities: ModalitiesLike = None,
        *,
        unlabelled: Any = None,
        label_weight: float | None = None,
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
        self.unlabelled = unlabelled
        self.label_weight = label_weight
