"""Objectives: which terms to ask a model for, and which bound to make of them.

Losses are averaged over all rows of the batch, whatever they lack.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.loss import Loss
from mvkit.core.modality import PartLike, Sizes
from mvkit.errors import SpecError, suggest
from mvkit.parts.latent_model import LatentModel
from mvkit.registry.spec import one_of

draw_or_none = one_of(None, "stratified", "iid", "balanced")


ObjectiveLike = PartLike


class Objective(ABC):
    """Turns a batch into a loss.

    To implement one, decorate a subclass with `@spec`, give it a `kl_weight` that multiplies every KL-like part
    (ramps act on it), and write `forward`. Draw from `experts.generator`. `build` may refuse options that do not
    fit the model.
    """

    kl_weight: float

    # whether it trains each unimodal posterior, whatever a row observes
    trains_unimodal = False
    # whether it takes the density of the whole mixture, not of its components
    whole_density = False
    # whether it looks at unimodal experts, which not every aggregator has
    needs_experts = False

    @abstractmethod
    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        """The loss of a conformed batch whose experts are given."""

    def build(self, sizes: Sizes) -> Objective:
        """The live part: itself, after checks."""
        return self


def check_names(given: dict[str, float], sizes: Sizes, path: str) -> None:
    """Raises SpecError if a mapping by modality names one that the model lacks."""
    for name in given:
        if name not in sizes.names:
            raise SpecError(f"no modality {name!r}; {suggest(name, sizes.names)}", path)
