"""What an aggregator is.

Axes: m modalities, b rows, d latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import attrs
from torch import nn

from mvkit.core.batch import Batch
from mvkit.core.bounds import Form
from mvkit.core.experts import Experts
from mvkit.core.mixture import raw_experts
from mvkit.core.posterior import Posterior
from mvkit.core.terms import Draw


@attrs.frozen
class Defaults:
    """What objectives and private latents do with an aggregator by default, and what it has.

    Args:
        draw: how `elbo` draws.
        weighted_draw: how `iwae` and `dreg` draw.
        bound: which importance-weighted bound, `loose` or `tight`.
        private_from: rule of private latents, `evidence` or `observed`.
        mixture: whether posteriors have several components.
        has_unimodal_experts: whether encoders emit experts of the family, which may be multiplied
            or used alone.
        has_joint_encoder: whether it encodes the data itself, so that the unimodal encoders can be
            trained after it.
        unimodal: what is trained then, as globs over parameter names.

    Example:
        >>> from mvkit.parts import Defaults
        >>> Defaults(mixture=True).draw, Defaults().bound
        ('stratified', 'tight')
    """

    draw: Draw = "stratified"
    weighted_draw: Draw = "stratified"
    bound: Form = "tight"
    private_from: Literal["evidence", "observed"] = "observed"
    mixture: bool = False
    has_unimodal_experts: bool = True
    has_joint_encoder: bool = False
    unimodal: tuple[str, ...] = ("encoders.*",)


class Aggregator(ABC):
    """Fuses unimodal experts into one posterior q(z|x_O), O the modalities that a row observes.

    To implement one, write a spec whose `build(sizes)` returns an object with `forward` (the spec
    itself if it has no parameters, else an `nn.Module`). Invariants: unobserved experts (see
    `batch.observed`) change nothing; rows are independent; log-weights of a row sum to one;
    nothing is NaN, also in rows where nothing is observed. The other methods have defaults. Set
    `alone_is_expert` where the posterior given one modality is its expert as it is.

    Example:
        >>> import mvkit
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, aggregator="gpoe", seed=0)
        >>> isinstance(model.aggregator, mvkit.Aggregator), model.aggregator.defaults.mixture
        (True, False)
    """

    defaults = Defaults()
    alone_is_expert = False

    def width(self, latent_dim: int) -> int:
        """Numbers that each encoder emits: by default locations and raw scales, 2 d."""
        return 2 * latent_dim

    def readers(self, name: str) -> list[nn.Module]:
        """Networks of its own that see a modality's values, such as joint encoders have."""
        return []

    @abstractmethod
    def forward(self, experts: Experts, batch: Batch) -> Posterior:
        """The posterior given what `batch` observes, in the rows that objectives count."""

    def posterior(self, experts: Experts, batch: Batch) -> Posterior:
        """The posterior in every row, with a density, for `posterior()` and likelihoods."""
        return self.forward(experts, batch)

    def unimodal(self, experts: Experts, batch: Batch) -> Mapping[str, Posterior]:
        """q_m(z|x_m): the posterior given each modality alone, active where it is observed."""
        if self.alone_is_expert:
            return raw_experts(experts, batch)
        posteriors = {}
        for i, name in enumerate(experts.modalities):
            alone = self.forward(experts, batch.hide([name]))
            posteriors[name] = attrs.evolve(alone, active=batch.observed[:, i])  # type: ignore[misc]
        return posteriors

    def inference(self, experts: Experts, batch: Batch) -> Posterior:
        """What `encode` and `translate` use: `posterior`, unless the paper says otherwise."""
        return self.posterior(experts, batch)
