"""Draws of what rows lack, weighted by all that is known of them, that it is missing included.

The posterior that encoders lead to, q(z|x_O), does not know which values are missing, and why. In
a model that explains what is missing, its draws are proposals, with importance weights that do.

Axes: n draws, b rows, d latent, p private latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import attrs
import torch
from einops import einsum, rearrange
from torch import Tensor

from mvkit.core import bounds, noise
from mvkit.core.completion import completion, explained
from mvkit.core.noise import Generator
from mvkit.core.raw_values import widened
from mvkit.core.terms import Terms
from mvkit.errors import RequestError
from mvkit.models import generation
from mvkit.models.generation import GenerationOptions
from mvkit.models.importance_sampling import block_sizes
from mvkit.models.inference import ConditionalLatents, ConditionalPosterior
from mvkit.parts.latent_model import LatentModel

PROPOSALS = 10  # for each draw that is asked for
FEWEST = 100

Values = dict[str, Tensor]


@attrs.frozen(eq=False)
class WeightedDraws:
    """Draws of latents and of complete rows, with their weights.

    Args:
        z: shared latents, (n, b, d).
        w: private latents of the modalities that are not hidden, {name: (n, b, p)}.
        x: complete rows of the modalities whose gaps are explained, {name: (n, b, *shape)}.
        log_w: log importance weights, (n, b).
    """

    z: Tensor
    w: Values
    x: Values
    log_w: Tensor

    def pick(self, index: Tensor) -> WeightedDraws:
        """The draws at `index` (n', b) of each row."""
        rows = torch.arange(index.shape[1], device=index.device)
        w = {name: value[index, rows] for name, value in self.w.items()}
        x = {name: value[index, rows] for name, value in self.x.items()}
        return WeightedDraws(self.z[index, rows], w, x, self.log_w[index, rows])

    def replace(self, where: Tensor, other: WeightedDraws) -> WeightedDraws:
        """Those of `other` where a flag (n, b) says so."""

        def chosen(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(widened(where, old.shape), new, old)

        w = {name: chosen(other.w[name], value) for name, value in self.w.items()}
        x = {name: chosen(other.x[name], value) for name, value in self.x.items()}
        log_w = chosen(other.log_w, self.log_w)
        return WeightedDraws(chosen(other.z, self.z), w, x, log_w)


def generate(
    model: LatentModel, options: GenerationOptions, condition: ConditionalLatents
) -> Values:
    """Modalities {name: (n, b, *shape)} of the rows of a conditional posterior or sampler.

    Where a model explains gaps, those that no question hides are draws of p(x_mis|x_O, s), by
    sampling importance resampling; with `latent="mean"` their mean, by self-normalised weights.

    Raises:
        RequestError: a sampler or a refiner, and gaps that the model explains.
    """
    if not explained(model.missingness, condition.batch):
        return generation.generate(model, options, condition)
    if not isinstance(condition, ConditionalPosterior):
        raise RequestError(
            f"{options.where}: a sampler knows nothing of why values are missing, which the model "
            "explains; expected no sampler; leave sampler= out"
        )

    def values(draws: WeightedDraws) -> Values:
        return _values(model, options, condition, draws)

    if options.refiners:
        raise RequestError(
            f"{options.where}: a refiner knows nothing of why values are missing, which the model "
            "explains; expected no refiner; leave refine= out"
        )

    proposals = max(PROPOSALS * options.n, FEWEST)
    blocks = weighted_blocks(model, condition, proposals, options.generator)
    if options.draws_latents or options.sample:
        return values(resampled(blocks, options.n, options.generator))
    means = averaged(blocks, values)
    return {name: x.expand(options.n, *x.shape) for name, x in means.items()}


def weighted_blocks(
    model: LatentModel, condition: ConditionalPosterior, n: int, generator: Generator
) -> Iterator[WeightedDraws]:
    """N draws of a conditional posterior in blocks, each with its weight in p(z, w, x|x_O, s).

    Args:
        model: the model.
        condition: the posterior, and the batch with what is given.
        n: draws in all.
        generator: source of randomness.
    """
    batch, experts, posterior = condition.batch, condition.experts, condition.posterior
    decoding = model.decoding
    prior = model.prior_at(experts, posterior)
    for size in block_sizes(model, n, len(batch), None):
        noise.next_draws(generator, size)
        draws = posterior.draw(size, "iid", generator)
        private = decoding.draw_private(
            experts, draws, batch.observed, "observed", stop_density=False
        )
        complete = completion(model, batch, draws.z, private.w, generator)
        log_px = decoding.log_px(
            batch, draws.z, private.w, batch.observed, decoded=complete.outputs
        )
        terms = Terms(
            log_px,
            draws.log_pi,
            posterior.log_weight,
            log_pz=prior.log_prob(draws.z),
            log_qz=posterior.log_prob(draws.z),
            private_log_ratio=private.log_ratio,
            log_ps=complete.log_ps,
        )
        log_w = rearrange(bounds.importance_log_weights(terms), "n 1 b -> n b")
        w = {name: value.squeeze(1) for name, value in private.w.items()}
        x = {name: value.squeeze(1) for name, value in complete.x.items()}
        yield WeightedDraws(draws.z.squeeze(1), w, x, log_w)


def resampled(blocks: Iterable[WeightedDraws], n: int, generator: Generator) -> WeightedDraws:
    """N draws of each row, picked by their weights, with replacement, one block at a time.

    Each of them is replaced by one of the next block with the probability that is the share of
    this block in the weight so far.
    """
    kept: WeightedDraws | None = None
    total: Tensor | None = None
    for draws in blocks:
        log_w = draws.log_w
        shape = (n, log_w.shape[1])
        uniform = noise.draw("choice/pick", shape, log_w, generator=generator)
        cumulative = rearrange(torch.softmax(log_w, 0).cumsum(0), "n b -> b n").contiguous()
        index = torch.searchsorted(cumulative, rearrange(uniform, "n b -> b n").contiguous())
        index = rearrange(index.clamp(max=len(log_w) - 1), "b n -> n b")
        picked = draws.pick(index)
        weight = torch.logsumexp(log_w, 0)
        if kept is None or total is None:
            kept, total = picked, weight
            continue
        total = torch.logaddexp(total, weight)
        uniform = noise.draw("choice/replace", shape, log_w, generator=generator)
        kept = kept.replace(uniform < (weight - total).exp(), picked)
    if kept is None:
        raise ValueError("no draws; expected one block at least")
    return kept


def averaged(blocks: Iterable[WeightedDraws], values: Callable[[WeightedDraws], Values]) -> Values:
    """Means of values {name: (n, b, ...)} over all draws by their weights, {name: (b, ...)}."""
    means: Values = {}
    total: Tensor | None = None
    for draws in blocks:
        weight = torch.logsumexp(draws.log_w, 0)
        before = total
        total = weight if before is None else torch.logaddexp(before, weight)
        share = (draws.log_w - total).exp()
        for name, x in values(draws).items():
            mean = einsum(share, x, "n b, n b ... -> b ...")
            if before is not None:
                mean = mean + means[name] * widened((before - total).exp(), mean.shape)
            means[name] = mean
    return means


def _values(
    model: LatentModel,
    options: GenerationOptions,
    condition: ConditionalPosterior,
    draws: WeightedDraws,
) -> Values:
    """What is generated at some draws, {name: (n, b, *shape)}.

    Gaps that are explained are what was drawn in them, unless the rows are generated as if they
    had other covariates or exposures, or no background.
    """
    rows = options.row_context(condition.batch)
    as_they_are = options.background and not options.covariates and not options.exposure
    values = {}
    for name in options.to:
        w = _private_latent(model, name, condition, draws, options)
        x = model.decoding.decode(
            name, draws.z, w, sample=options.sample, rows=rows, generator=options.generator
        )
        if name in draws.x and as_they_are:
            x = torch.where(condition.batch.present(name), x, draws.x[name])
        values[name] = x
    return values


def _private_latent(
    model: LatentModel,
    name: str,
    condition: ConditionalPosterior,
    draws: WeightedDraws,
    options: GenerationOptions,
) -> Tensor | None:
    """Private latents (n, b, p) beside some draws: their own where the modality was given."""
    p = model.modalities[name].private_dim
    if not p:
        return None
    shape = (*draws.z.shape[:-1], p)
    draw = model.decoding.private_noise
    if options.private_source == "cross":
        draw = model.decoding.auxiliary_prior
    other = draw(name, shape, draws.z, options.generator)
    if name not in draws.w:
        return other
    given = rearrange(condition.batch.observed[:, model.names.index(name)], "b -> b 1")
    return torch.where(given, draws.w[name], other)
