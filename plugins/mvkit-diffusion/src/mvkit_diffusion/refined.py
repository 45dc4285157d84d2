"""The schedule `then_refine`: refiners are trained after everything else."""

from __future__ import annotations

import glob
from typing import Any

from mvkit import RequestError, SpecError, Stage, spec
from mvkit.models.multimodal import MultimodalModel
from mvkit.models.refiners import sizes_for
from mvkit.parts import Refine, Schedule
from mvkit.registry import field, names, number, part


@spec
class ThenRefine(Schedule):  # type: ignore[misc]
    """The stages of another schedule, then one that trains refiners of modalities.

    `mvkit.fit` then trains all that a model with refiners is made of, and `refine=True` can be
    asked for. The learning rate of the last stage falls to 0 like a cosine. A single epoch trains
    the model alone.

    Args:
        first: the other schedule.
        refiner: of every modality that is refined, by name or spec.
        modalities: which are refined; empty: all that have continuous values.
        share: share of the epochs that the last stage gets.

    Reference: Pandey, Mukherjee, Rai and Kumar, DiffuseVAE, 2022,
    https://arxiv.org/abs/2201.00308 (two stages).
    """

    first: Any = part("schedule", default="single")
    refiner: Any = part("refiner", default="mvkit-diffusion/diffusion")
    modalities: tuple[str, ...] = field(default=(), check=names)
    share: float = field(default=0.5, check=number(high=1.0, above=0.0))

    @property
    def places_prior(self) -> bool:
        """Whether the other schedule places the prior."""
        return bool(self.first.places_prior)

    def stages(self, model: MultimodalModel, epochs: int) -> list[Stage]:
        refiners = dict.fromkeys(self.modalities or _refinable(model), self.refiner)
        if epochs < 2:
            return list(self.first.stages(model, epochs))
        last = max(1, min(epochs - 1, round(epochs * self.share)))
        trained = [f"refiners.{glob.escape(name)}.*" for name in refiners]
        falling = {"name": "CosineAnnealingLR", "T_max": last}
        refine = Stage(Refine(refiners=refiners), last, trained, lr_schedule=falling)
        return [*self.first.stages(model, epochs - last), refine]


def _refinable(model: MultimodalModel) -> list[str]:
    """The modalities with continuous values.

    Raises:
        SpecError: there is none.
    """
    names_of_them = []
    for name in model.names:
        try:
            sizes_for(model, name)
        except RequestError:
            continue
        names_of_them.append(name)
    if not names_of_them:
        raise SpecError(
            "schedule 'then_refine': no modality has continuous values, which refiners draw; "
            "expected one at least; take another schedule",
            "schedule",
        )
    return names_of_them
