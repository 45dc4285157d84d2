"""What an objective is: which terms it asks a model for, and which bound it makes of them.

Losses are averaged over all rows of the batch, whatever modalities they lack. Axes: b rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.loss import Loss
from mvkit.core.modality import PartLike, Sizes
from mvkit.core.posterior import Posterior
from mvkit.errors import SpecError, suggest
from mvkit.parts.latent_model import LatentModel

ObjectiveLike = PartLike
DRAWS = ("stratified", "iid", "balanced")


class Objective(ABC):
    """Turns a batch into a loss.

    To implement one, decorate a subclass with `@spec`, give it a `kl_weight` that multiplies every
    KL-like part (ramps act on it), and write `forward`. Draw from `experts.generator`. `build` may
    refuse options that do not fit the model.
    """

    kl_weight: float
    trains_unimodal = False  # whether it trains each unimodal posterior, whatever a row observes
    whole_density = False  # whether it takes the density of the mixture, not of its components
    needs_experts = False  # whether it looks at unimodal experts, which not every aggregator has

    @abstractmethod
    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        """The loss of a conformed batch whose experts are given."""

    def build(self, sizes: Sizes) -> Objective:
        """The objective itself, after checks."""
        return self


def check_names(names: Iterable[object], known: Collection[str], path: str) -> None:
    """Raises SpecError if one of `names` is no modality of the model."""
    for name in names:
        if name not in known:
            raise SpecError(f"no modality {name!r}; {suggest(str(name), known)}", path)


def active_rows(posterior: Posterior, batch: Batch) -> Tensor:
    """Rows that objectives count, (b,) bool."""
    if posterior.active is not None:
        return posterior.active
    return torch.ones_like(batch.observed[:, 0])
