"""Stack: a model on top of the private latents of another, with the same methods as a `Model`.

Axes: n samples, s samples, b rows, m modalities, d top latent, p bottom latent of a modality.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from mvkit.core import bounds, noise
from mvkit.core.batch import Batch
from mvkit.core.covariates import Conditions, Level
from mvkit.core.decoding import Decoding
from mvkit.core.experts import Experts
from mvkit.core.modality import PartLike, ScheduleLike
from mvkit.core.noise import Generator
from mvkit.core.posterior import Posterior
from mvkit.core.row_context import NOTHING_GIVEN, RowContext
from mvkit.core.row_picks import indices_of
from mvkit.core.validation import Schema
from mvkit.errors import RequestError, SpecError
from mvkit.models.build import ModelSpec
from mvkit.models.description import sampler_lines
from mvkit.models.generation import GenerationOptions
from mvkit.models.importance_sampling import Sampling, block_sizes, check_proper
from mvkit.models.inference import ConditionalLatents, ConditionalPosterior, ConditioningSets
from mvkit.models.levels import Levels
from mvkit.models.model import Model
from mvkit.models.multimodal import MultimodalModel
from mvkit.models.objective_modules import seeded_again
from mvkit.models.swapped_modules import architecture, digest_of_weights
from mvkit.parts.conditional_samplers import SamplerSizes
from mvkit.parts.objectives.objective import Objective
from mvkit.registry.fields import switch
from mvkit.registry.spec import as_part, field, part, spec, to_dict


@spec
class StackSpec:
    """Everything that says what a stack is."""

    levels: tuple[ModelSpec, ...] = field()
    objective: Any = part("objective", default="levels")
    schedule: Any = part("schedule", default="single")
    through_top: bool = switch(False)


@attrs.frozen(eq=False)
class StackDecoding:
    """p(x_m|z) through both levels; see `mvkit.core.decoding.Decodes`."""

    bottom: Decoding
    top: Decoding

    @property
    def conditions(self) -> Conditions | None:
        """The covariates, which the bottom sees."""
        return self.bottom.conditions

    def decode(
        self,
        name: str,
        z: Tensor,
        w: Tensor | None,
        *,
        sample: bool = False,
        rows: RowContext = NOTHING_GIVEN,
        generator: Generator = None,
    ) -> Tensor:
        """Down from the top's z, or from the modality's own latent w if it is given, (...,
        *shape).
        """
        if w is None:
            w = self.top.decode(name, z, None)
        nothing = z.new_zeros(*w.shape[:-1], 0)
        return self.bottom.decode(name, nothing, w, sample=sample, rows=rows, generator=generator)

    def from_latents(
        self, z: Tensor, *, sample: bool, rows: RowContext = NOTHING_GIVEN, generator: Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Rows {name: (n, *shape)} at z (n, d), and the z_m in between."""
        private, _ = self.top.from_latents(z, sample=False, generator=generator)
        data = {}
        for name, w in private.items():
            data[name] = self.decode(name, z, w, sample=sample, rows=rows, generator=generator)
        return data, private


class Stack(MultimodalModel):
    """Two levels: p(z_top) ∏_m p(z_m|z_top) p(x_m|z_m). Parameters are named `levels.<i>.…`.

    Args:
        levels: the bottom, a model with `latent_dim=0` and a private latent z_m for each modality;
            and the top, a model whose modalities are the z_m.
        objective: `levels`, or a spec of it; None: each level's own objective.
        schedule: the stages that `fit` goes through.
        through_top: reconstruct given modalities through the top level too, instead of from their
            own z_m.

    Reference: Vasco et al., Leveraging Hierarchy in Multimodal Generative Models for Effective
    Cross-Modality Inference (Nexus), 2022, https://doi.org/10.1016/j.neunet.2021.11.019.
    """

    decoding: StackDecoding

    def __init__(
        self,
        levels: Sequence[Model],
        *,
        objective: PartLike | None = None,
        schedule: ScheduleLike | None = None,
        through_top: bool = False,
    ) -> None:
        super().__init__()
        bottom, top = levels
        _check_levels(bottom, top)
        self.levels = nn.ModuleList([bottom, top])
        self.names = bottom.names
        self.modalities = bottom.modalities
        self.latent_dim = top.latent_dim
        self.n_clusters = top.n_clusters
        self.prior_name = top.prior_name
        self.family = top.family
        self.prior = top.prior
        self.aggregator = top.aggregator
        self.decoding = StackDecoding(bottom.decoding, top.decoding)
        self.objective = self.build_objective("levels" if objective is None else objective)
        self.spec = StackSpec(
            levels=(bottom.spec, top.spec),
            objective=self.objective,
            schedule="single" if schedule is None else schedule,
            through_top=through_top,
        )
        self.built_as = architecture(self, self.spec)
        if all(level.seeded_weights == digest_of_weights(level) for level in levels):
            self.seeded_weights = digest_of_weights(self)
        seeded = all(level.seeded_weights is not None for level in levels)
        self.adopt(self.objective, seed=0 if seeded else None)

    def check_savable(self) -> None:
        super().check_savable()
        self.bottom.check_savable()
        self.top.check_savable()

    @property
    def bottom(self) -> Model:
        """The level that sees the data."""
        return self.levels[0]  # type: ignore[return-value]

    @property
    def top(self) -> Model:
        """The level that sees the latents of the bottom."""
        return self.levels[1]  # type: ignore[return-value]

    @property
    def schema(self) -> Schema:
        return self.bottom.schema

    def adopt(self, objective: PartLike, *, seed: int | None = None) -> None:
        """Makes the trained modules of an objective's levels a part of these levels."""
        built = self.build_objective(objective)
        with seeded_again(self):
            for level, own in zip((self.bottom, self.top), built.inner, strict=True):
                level.adopt(own, seed=seed)

    def adopted_objectives(self) -> list[Objective]:
        return [*self.bottom.adopted, *self.top.adopted]

    def build_objective(self, objective: PartLike) -> Objective:
        levels = as_part("objective", objective)
        if not isinstance(levels, Levels):
            raise SpecError(
                f"a stack takes objective 'levels' with one for each level; got {levels!r}",
                "objective",
            )
        low, high = levels.levels or (self.bottom.spec.objective, self.top.spec.objective)
        built = (self.bottom.build_objective(low), self.top.build_objective(high))
        return Levels(levels=built, kl_weight=levels.kl_weight)

    def experts(
        self, batch: Batch, *, training: bool = False, generator: Generator = None
    ) -> Experts:
        return self.bottom.experts(batch, training=training, generator=generator)

    def up(self, batch: Batch, experts: Experts, *, drawn: bool) -> Batch:
        """The bottom's latents as a batch of the top: draws, or means; their gradient is
        stopped.
        """
        data = {}
        for name, (loc, scale) in experts.private.items():
            z = loc.detach()
            if drawn:
                shape = (1, 1, *loc.shape)
                eps = self.bottom.decoding.private_noise(name, shape, loc, experts.generator)
                z = torch.addcmul(z, scale.detach(), rearrange(eps, "1 1 b p -> b p"))
            data[name] = z
        return attrs.evolve(batch, data=data, elements=None, schema=self.top.schema)

    def conditional_posteriors(
        self, rows: Batch, asked: ConditioningSets
    ) -> Iterator[ConditionalPosterior]:
        """The top's posteriors, reached by the means of the bottom's."""
        rows = asked.restrict(rows)
        experts = self.bottom.experts(rows, generator=asked.generator)
        upper = self.up(rows, experts, drawn=False)
        above = self.top.conditional_posteriors(upper, asked)
        for names, condition in zip(asked.sets, above, strict=True):
            hidden = rows.hide(names)
            yield ConditionalPosterior(hidden, experts.given(hidden), condition.posterior)

    def generate(
        self, options: GenerationOptions, condition: ConditionalLatents
    ) -> dict[str, Tensor]:
        """Down to every modality; what was given comes from its own latent unless
        `through_top`.
        """
        z = options.latents(condition)
        rows = options.row_context(condition.batch)
        generator = options.generator
        data = {}
        for name in options.to:
            w = self.top.decoding.decode(name, z, None)
            if not self.spec.through_top:
                loc, scale = condition.experts.private[name]
                eps = self.bottom.decoding.private_noise(name, tuple(w.shape), loc, generator)
                own = loc + scale * eps if options.draws_latents else loc
                observed = condition.batch.observed[:, self.names.index(name)]
                w = torch.where(rearrange(observed, "b -> b 1"), own, w)
            data[name] = self.decoding.decode(
                name, z, w, sample=options.sample, rows=rows, generator=generator
            )
        return data

    def sampler_sizes(self) -> SamplerSizes:
        """Of the top's latents; the bottom's are generated from them."""
        return SamplerSizes(self.latent_dim, self.names, {}, self.context_width)

    def prior_draws(
        self,
        n: int,
        cluster: int | None,
        generator: Generator,
        covariates: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        return self.top.prior_draws(n, cluster, generator)

    def weight_blocks(self, batch: Batch, sampling: Sampling) -> Iterator[Tensor]:
        """Importance weights through both levels: Σ log p(x_m|z_m) - log q(z_m|x_m), and the top's
        of the z_m.
        """
        if sampling.proposal != "mixture":
            raise RequestError(
                f"proposal={sampling.proposal!r}: a stack draws from its own posteriors; take "
                "proposal='mixture'"
            )
        bottom, top, generator = self.bottom, self.top, sampling.generator
        check_proper(top)
        experts = bottom.experts(batch, generator=generator)
        known = batch.observed.any(1)
        for size in block_sizes(bottom, sampling.n, len(batch), sampling.memory):
            noise.next_draws(generator, size)
            w, log_q = self._draws(experts, size, batch.observed)
            nothing = log_q.new_zeros(*log_q.shape, 0)
            log_px = bottom.decoding.log_px(batch, nothing, w, batch.observed).sum(-1)
            mask = repeat(batch.observed, "b m -> (s b) m", s=size)
            flat = {name: rearrange(z, "s 1 b p -> (s b) p") for name, z in w.items()}
            upper = Batch(flat, mask, schema=top.schema, **indices_of(mask))
            above = top.experts(upper, generator=generator)
            terms = top.terms(upper, experts=above, want="mixture")
            log_w = rearrange(bounds.importance_log_weights(terms), "1 1 (s b) -> s b", s=size)
            log_w = rearrange(log_px - log_q, "s 1 b -> s b") + log_w
            yield torch.where(known, log_w, 0.0)

    def predictive_blocks(
        self, batch: Batch, posterior: Posterior, sampling: Sampling
    ) -> Iterator[Tensor]:
        """See `MultimodalModel.predictive_blocks`; the bottom's latents are drawn from
        p(z_m|z).
        """
        generator = sampling.generator
        for size in block_sizes(self.bottom, sampling.n, len(batch), sampling.memory):
            noise.next_draws(generator, size)
            z = posterior.rsample(size, generator)
            w = {}
            for name in self.names:
                if name not in batch.hidden:
                    drawn = self.top.decoding.decode(
                        name, z, None, sample=True, generator=generator
                    )
                    w[name] = rearrange(drawn, "n b p -> n 1 b p")
            nothing = z.new_zeros(size, 1, len(batch), 0)
            log_px = self.bottom.decoding.log_px(batch, nothing, w, batch.observed)
            yield rearrange(log_px.sum(-1), "n 1 b -> n b")

    def _draws(
        self, experts: Experts, n: int, observed: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Draws of the bottom's latents {name: (n, 1, b, p)}, and Σ_{m∈O} log q(z_m|x_m), (n, 1,
        b).
        """
        decoding = self.bottom.decoding
        draws = {}
        log_q = observed.new_zeros(n, 1, len(observed), dtype=self.like.dtype)
        for i, (name, (loc, scale)) in enumerate(experts.private.items()):
            eps = decoding.private_noise(name, (n, 1, *loc.shape), loc, experts.generator)
            draws[name] = torch.addcmul(loc, scale, eps)
            own = decoding.family.log_prob_of_noise(eps, scale)
            log_q = log_q + torch.where(observed[:, i], own, 0.0)
        return draws, log_q

    def responsibilities(self, rows: Batch) -> Tensor:
        """The top's, of the bottom's means."""
        upper = self.up(rows, self.bottom.experts(rows), drawn=False)
        return self.top.responsibilities(upper)

    def add_level(self, covariate: str, level: Level, *, like: Level = "average") -> None:
        """As of the bottom, whose covariates they are; see `Model.add_level`."""
        self.bottom.add_level(covariate, level, like=like)
        levels = (self.bottom.spec, self.top.spec)
        self.spec = attrs.evolve(self.spec, levels=levels)
        self.built_as = architecture(self, self.spec)

    def header(self) -> dict[str, Any]:
        keys = ("objective", "schedule", "through_top")
        rest = {key: to_dict(getattr(self.spec, key)) for key in keys}
        levels = [self.bottom.header(), self.top.header()]
        quiet = {**self.sampler_header(), **self.rows_header()}
        return {"name": "stack", "levels": levels, **rest, **quiet}

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.parameters())
        lines = [f"Stack({count:,} parameters)"]
        for i, level in enumerate(self.levels):
            lines.append(f"  {i}: " + repr(level).replace("\n", "\n  "))
        return "\n".join(lines + sampler_lines(self.samplers))


def _check_levels(bottom: Model, top: Model) -> None:
    """Raises SpecError if the top does not model the latents of the bottom, or if a level explains
    what is missing.
    """
    for i, level in enumerate((bottom, top)):
        if level.missingness is not None:
            raise SpecError(
                "it explains what is missing, at latents that a stack draws twice, once for each "
                "level; expected missingness=None; take a Model with private latents",
                f"stack.levels.{i}.missingness",
            )
    wanted = {name: (modality.private_dim,) for name, modality in bottom.modalities.items()}
    shapes = {name: modality.shape for name, modality in top.modalities.items()}
    if bottom.latent_dim or (0,) in wanted.values():
        raise SpecError(
            "the bottom needs latent_dim=0 and a private_dim for each modality", "stack.levels.0"
        )
    if shapes != wanted or tuple(shapes) != tuple(wanted):
        raise SpecError(
            f"its modalities are {shapes}; expected the bottom's latents, {wanted}, in order",
            "stack.levels.1",
        )
    if top.spec.covariates:
        raise SpecError(
            "its covariates: the data of the top are latents; give the bottom the covariates",
            "stack.levels.1",
        )
    if any(modality.private_dim for modality in top.modalities.values()):
        raise SpecError(
            "its modalities have private latents of their own, which two levels do not need",
            "stack.levels.1",
        )
    for name in top.names:
        _check_takes_latents(top, name)


def _check_takes_latents(top: Model, name: str) -> None:
    """Raises SpecError unless a modality of the top takes any numbers, as latents are."""
    modality = top.modalities[name]
    where = f"stack.levels.1.modalities.{name}"
    likelihood = top.schema.likelihoods[name]
    latents = torch.full((1, *modality.shape), -0.5)
    if likelihood.out_of_support(latents).any():
        raise SpecError(
            "it refuses -0.5, and the data of the top are latents, any numbers; take "
            "likelihood='normal'",
            f"{where}.likelihood",
        )
    if modality.input != "values":
        raise SpecError(
            f"got {modality.input!r}, and the data of the top are latents, which may be negative; "
            "take input='values'",
            f"{where}.input",
        )
