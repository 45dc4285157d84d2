"""Stack: a model on top of the private latents of another, with the same methods as a `Model`.

Axes: n samples, s samples, b rows, m modalities, d top latent, p bottom latent of a modality.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from mvkit import bounds, estimates, noise
from mvkit.assembly import ModelSpec
from mvkit.batch import Batch, indices_of
from mvkit.errors import RequestError, SpecError
from mvkit.estimates import Asked, Condition
from mvkit.experts import Experts
from mvkit.generation import Translation
from mvkit.generative import Generative
from mvkit.losses import Loss
from mvkit.model import Model
from mvkit.objectives import Objective
from mvkit.posterior import Posterior
from mvkit.spec import as_part, field, flag, number, part, parts, spec, to_dict
from mvkit.terms import log_likelihoods
from mvkit.values import Layout


@spec
class Levels(Objective):
    """Sum of an objective a level; the gradient of the top stops at the latents that it models.

    The reported bound is that of both levels together: E Σ_m [log p(x_m|z_m) - log q(z_m|x_m)] and the top's bound on
    log p(z_1, …, z_M), in which the bottom's N(0, I) plays no part.

    Args:
        levels: objectives of the bottom and of the top; empty: the levels' own.
        kl_weight: multiplies the `kl_weight` of both.

    Reference: Vasco et al., Leveraging Hierarchy in Multimodal Generative Models for Effective Cross-Modality
    Inference (Nexus), 2022, https://doi.org/10.1016/j.neunet.2021.11.019.
    """

    levels: tuple[Any, ...] = parts("objective", default=())
    kl_weight: float = field(default=1.0, check=number(0.0))

    def forward(self, model: Any, batch: Batch, experts: Experts) -> Loss:
        bottom, top = model.levels
        objectives = [attrs.evolve(one, kl_weight=one.kl_weight * self.kl_weight) for one in self.levels]
        low = objectives[0].forward(bottom, batch, experts)
        upper = model.up(batch, experts, drawn=True)
        above = top.experts(upper, training=experts.training, generator=experts.generator)
        high = objectives[1].forward(top, upper, above)
        bound = low.bound + high.bound + _prior_cross_entropy(bottom, batch, experts)
        loss = low.loss + high.loss
        metrics = {f"levels.{i}/{key}": v for i, level in enumerate((low, high)) for key, v in level.metrics.items()}
        shown = {key: v for key, v in low.metrics.items() if key.startswith("log_px/")}
        counts = {f"levels.{i}/{key}": v for i, level in enumerate((low, high)) for key, v in level.counts.items()}
        counts |= {key: v for key, v in low.counts.items() if key.startswith("log_px/")}
        return Loss(loss, bound, metrics | shown | {"loss": loss.detach(), "bound": bound.mean()}, counts)


@torch.no_grad()
def _prior_cross_entropy(bottom: Model, batch: Batch, experts: Experts) -> Tensor:
    """Σ_{m∈O} -E_q log p(z_m) under the bottom's own prior, (b,): what the top level takes the place of."""
    total = experts.batch.observed.new_zeros(len(batch), dtype=bottom.like.dtype)
    for i, (loc, scale) in enumerate(experts.private.values()):
        entropy = (scale.log() + 0.5 * math.log(2 * math.pi) + 0.5).sum(-1)
        kl = bottom.family.kl(loc, scale, torch.zeros_like(loc), torch.ones_like(scale))
        if kl is None:
            raise RequestError("a stack's bound needs a family with closed-form KLs")
        total = total + torch.where(batch.observed[:, i], kl + entropy, 0.0)
    return total


@spec
class StackSpec:
    """Everything that says what a stack is."""

    levels: tuple[ModelSpec, ...] = field()
    objective: Any = part("objective", default="levels")
    schedule: Any = part("schedule", default="single")
    through_top: bool = field(default=False, check=flag)


class Stack(Generative):
    """Two levels: p(z_top) ∏_m p(z_m|z_top) p(x_m|z_m). Parameters are named `levels.<i>.…`.

    Args:
        levels: the bottom, a model with `latent_dim=0` and a private latent z_m for each modality; and the top, a model
            whose modalities are the z_m.
        objective: `levels`, or a spec of it; None: each level's own objective.
        schedule: the stages that `fit` goes through.
        through_top: reconstruct given modalities through the top level too, instead of from their own z_m.

    Reference: Vasco et al., Leveraging Hierarchy in Multimodal Generative Models for Effective Cross-Modality
    Inference (Nexus), 2022, https://doi.org/10.1016/j.neunet.2021.11.019.
    """

    def __init__(
        self, levels: Sequence[Model], *, objective: Any = None, schedule: Any = None, through_top: bool = False
    ) -> None:
        super().__init__()
        bottom, top = levels
        _check_levels(bottom, top)
        self.levels = nn.ModuleList([bottom, top])
        self.names, self.modalities, self.latent_dim = bottom.names, bottom.modalities, top.latent_dim
        self.prior, self.n_clusters, self.family, self.aggregator = (
            top.prior,
            top.n_clusters,
            top.family,
            top.aggregator,
        )
        self.objective = self.build_objective("levels" if objective is None else objective)
        self.spec = StackSpec(
            levels=(bottom.spec, top.spec),
            objective=self.objective,
            schedule="single" if schedule is None else schedule,
            through_top=through_top,
        )

    @property
    def bottom(self) -> Model:
        """The level that sees the data."""
        return self.levels[0]  # type: ignore[return-value]

    @property
    def top(self) -> Model:
        """The level that sees the latents of the bottom."""
        return self.levels[1]  # type: ignore[return-value]

    @property
    def layout(self) -> Layout:
        """See `Mechanism.layout`."""
        return self.bottom.layout

    def build_objective(self, objective: Any) -> Objective:
        """See `Mechanism.build_objective`."""
        made = as_part("objective", objective)
        if not isinstance(made, Levels):
            raise SpecError(f"a stack takes objective 'levels' with one for each level; got {made!r}", "objective")
        own = made.levels or (self.bottom.spec.objective, self.top.spec.objective)
        built = tuple(level.build_objective(one) for level, one in zip((self.bottom, self.top), own, strict=True))
        return Levels(levels=built, kl_weight=made.kl_weight)

    def experts(self, batch: Batch, *, training: bool = False, generator: torch.Generator | None = None) -> Experts:
        """See `Mechanism.experts`."""
        return self.bottom.experts(batch, training=training, generator=generator)

    def up(self, batch: Batch, experts: Experts, *, drawn: bool) -> Batch:
        """The bottom's latents as a batch of the top: draws, or means; their gradient is stopped."""
        data = {}
        for name, (loc, scale) in experts.private.items():
            z = loc.detach()
            if drawn:
                shape = (1, 1, *loc.shape)
                eps = noise.draw(f"w/{name}", shape, loc, generator=experts.generator, sampler=self.bottom.family.noise)
                z = torch.addcmul(z, scale.detach(), rearrange(eps, "1 1 b p -> b p"))
            data[name] = z
        return attrs.evolve(batch, data=data, elements=None, layout=self.top.layout)

    def conditions(self, rows: Batch, asked: Asked) -> Iterator[Condition]:
        """The top's posteriors, reached by the means of the bottom's; see `Mechanism.conditions`."""
        rows = asked.within(rows)
        experts = self.bottom.experts(rows, generator=asked.generator)
        above = self.top.conditions(self.up(rows, experts, drawn=False), asked)
        for names, found in zip(asked.sets, above, strict=True):
            hidden = rows.hide(names)
            yield Condition(hidden, experts.given(hidden), found.posterior)

    def decode_one(
        self, name: str, z: Tensor, w: Tensor | None, *, sample: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """Down from the top's z, or from the modality's own latent w if it is given."""
        w = self.top.decode_one(name, z, None) if w is None else w
        nothing = z.new_zeros(*w.shape[:-1], 0)
        return self.bottom.decode_one(name, nothing, w, sample=sample, generator=generator)

    def generate(self, plan: Translation, found: Condition) -> dict[str, Tensor]:
        """Down to every modality; what was given comes from its own latent unless `through_top`."""
        z = plan.latents(found)
        made = {}
        for name in plan.to:
            w = self.top.decode_one(name, z, None)
            if not self.spec.through_top:
                loc, scale = found.experts.private[name]
                own = loc + scale * noise.draw(
                    f"w/{name}", tuple(w.shape), loc, generator=plan.generator, sampler=self.bottom.family.noise
                )
                given = rearrange(found.batch.observed[:, self.names.index(name)], "b -> b 1")
                w = torch.where(given, own if plan.drawn else loc, w)
            made[name] = self.decode_one(name, z, w, sample=plan.sample, generator=plan.generator)
        return made

    def prior_draws(
        self, n: int, cluster: int | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        """See `Mechanism.prior_draws`."""
        return self.top.prior_draws(n, cluster, generator)

    def from_latents(
        self, z: Tensor, *, sample: bool, generator: torch.Generator | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See `Mechanism.from_latents`; the private latents are the z_m."""
        private, _ = self.top.from_latents(z, sample=False, generator=generator)
        data = {k: self.decode_one(k, z, w, sample=sample, generator=generator) for k, w in private.items()}
        return data, private

    def weight_blocks(
        self, batch: Batch, n: int, proposal: str, generator: torch.Generator | None, memory: int | None
    ) -> Iterator[Tensor]:
        """Importance weights through both levels: Σ log p(x_m|z_m) - log q(z_m|x_m), and the top's of the z_m."""
        if proposal != "mixture":
            raise RequestError("proposal: a stack draws from its own posteriors; take proposal='mixture'")
        experts = self.bottom.experts(batch, generator=generator)
        known = batch.observed.any(1)
        for size in estimates.block_sizes(self.bottom, n, len(batch), memory):
            w, log_q = self._draws(experts, size, batch.observed)
            nothing = batch.observed.new_zeros(size, 1, len(batch), 0, dtype=self.like.dtype)
            log_px = log_likelihoods(self.bottom, batch, nothing, w, batch.observed).sum(-1)
            mask = repeat(batch.observed, "b m -> (s b) m", s=size)
            flat = {name: rearrange(z, "s 1 b p -> (s b) p") for name, z in w.items()}
            upper = Batch(flat, mask, layout=self.top.layout, **indices_of(mask))
            terms = self.top.terms(upper, experts=self.top.experts(upper, generator=generator), want="mixture")
            above = rearrange(bounds.log_weights(terms), "1 1 (s b) -> s b", s=size)
            yield torch.where(known, rearrange(log_px - log_q, "s 1 b -> s b") + above, 0.0)

    def predictive_blocks(
        self, batch: Batch, posterior: Posterior, n: int, generator: torch.Generator | None, memory: int | None
    ) -> Iterator[Tensor]:
        """See `Mechanism.predictive_blocks`; the bottom's latents are drawn from p(z_m|z)."""
        names = [name for name in self.names if name not in batch.hidden]
        for size in estimates.block_sizes(self.bottom, n, len(batch), memory):
            z = posterior.rsample(size, generator)
            drawn = {name: self.top.decode_one(name, z, None, sample=True, generator=generator) for name in names}
            w = {name: rearrange(each, "n b p -> n 1 b p") for name, each in drawn.items()}
            nothing = z.new_zeros(size, 1, len(batch), 0)
            log_px = log_likelihoods(self.bottom, batch, nothing, w, batch.observed)
            yield rearrange(log_px.sum(-1), "n 1 b -> n b")

    def _draws(self, experts: Experts, n: int, observed: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Draws of the bottom's latents {name: (n, 1, b, p)}, and Σ_{m∈O} log q(z_m|x_m), (n, 1, b)."""
        family, drawn = self.bottom.family, {}
        log_q = observed.new_zeros(n, 1, len(observed), dtype=self.like.dtype)
        for i, (name, (loc, scale)) in enumerate(experts.private.items()):
            shape = (n, 1, *loc.shape)
            eps = noise.draw(f"w/{name}", shape, loc, generator=experts.generator, sampler=family.noise)
            drawn[name] = torch.addcmul(loc, scale, eps)
            own = family.log_density(eps).sum(-1) - scale.log().sum(-1)
            log_q = log_q + torch.where(observed[:, i], own, 0.0)
        return drawn, log_q

    def assign(self, rows: Batch, *, soft: bool, by_modality: bool) -> Any:
        """The top's clusters of the bottom's means."""
        upper = self.up(rows, self.bottom.experts(rows), drawn=False)
        return self.top.assign(upper, soft=soft, by_modality=by_modality)

    def header(self) -> dict[str, Any]:
        """The stack as plain JSON data, all defaults written out."""
        rest = {key: to_dict(getattr(self.spec, key)) for key in ("objective", "schedule", "through_top")}
        levels = [self.bottom.header(), self.top.header()]
        return {"name": "stack", "levels": levels, **rest, **self.sampler_header()}

    def __repr__(self) -> str:
        inner = "\n".join(f"  {i}: " + repr(level).replace("\n", "\n  ") for i, level in enumerate(self.levels))
        return f"Stack({sum(p.numel() for p in self.parameters()):,} parameters)\n{inner}"


def _check_levels(bottom: Model, top: Model) -> None:
    wanted = {name: (m.private_dim,) for name, m in bottom.modalities.items()}
    shapes = {name: m.shape for name, m in top.modalities.items()}
    if bottom.latent_dim or not all(p for (p,) in wanted.values()):
        raise SpecError("the bottom needs latent_dim=0 and a private_dim for each modality", "stack.levels.0")
    if shapes != wanted or tuple(shapes) != tuple(wanted):
        raise SpecError(
            f"its modalities are {shapes}; expected the bottom's latents, {wanted}, in order", "stack.levels.1"
        )
    if any(m.private_dim for m in top.modalities.values()):
        raise SpecError(
            "its modalities have private latents of their own, which two levels do not need", "stack.levels.1"
        )
