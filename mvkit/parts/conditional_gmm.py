"""The conditional sampler `gmm`: one mixture of normals over latents and codes.

Axes: n draws, b rows, r of these draws or rows, m modalities, d latent, p private latent, c
components, f features, k known and t wanted ones of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from einops import einsum, rearrange, reduce
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.blocks import block_size, block_slices
from mvkit.core.noise import Generator
from mvkit.errors import DataError, RequestError
from mvkit.parts.conditional_samplers import (
    Condition,
    ConditionalSampler,
    FittingRows,
    LatentDraws,
    SamplerSizes,
    patterns_of,
)
from mvkit.parts.gaussian_mixture import (
    FLOAT64,
    MEMORY,
    Conditional,
    GapPattern,
    GaussianMixture,
    fit_with_gaps,
)

Pattern = Sequence[bool]  # which modalities are observed, (m,)


class MixtureOptions(Protocol):
    """The options that it reads."""

    @property
    def components(self) -> int:
        """Number of components."""
        ...

    @property
    def floor(self) -> float:
        """What is added to the variances."""
        ...

    @property
    def covariates(self) -> bool:
        """Whether covariates are features."""
        ...


class Features:
    """Where latents and codes stand among the features of the mixture.

    z first, then the private latents, then the codes: the means of z given one modality alone;
    then the covariates, if they count.

    Args:
        sizes: the model's.
        covariates: whether covariates are features.
    """

    def __init__(self, sizes: SamplerSizes, covariates: bool = False) -> None:
        self.sizes = sizes
        self.private: dict[str, slice] = {}
        self.codes: dict[str, slice] = {}
        start = sizes.latent
        for name, p in sizes.private.items():
            self.private[name] = slice(start, start + p)
            start += p
        self.latents = start  # how many of the features are latents
        for name in sizes.names:
            self.codes[name] = slice(start, start + sizes.latent)
            start += sizes.latent
        context = sizes.context if covariates else 0
        self.context = slice(start, start + context)
        self.number = start + context

    def of_rows(self, rows: FittingRows) -> Tensor:
        """Features of fitting rows, (b, f), without meaning where a row lacks the modality."""
        columns = [rows.z]
        columns += [rows.private[name] for name in self.private]
        columns += [rows.condition.codes[name].loc for name in self.codes]
        columns.append(self.covariates(rows.condition))
        return torch.cat(columns, 1)

    def covariates(self, condition: Condition) -> Tensor:
        """The covariates of rows that are features, (b, number of them)."""
        context = condition.context
        if context is None:
            like = next(iter(condition.codes.values())).loc
            return like.new_zeros(len(condition), 0)
        return context[:, : self.context.stop - self.context.start]

    def told_by(self, pattern: Pattern) -> list[int]:
        """Private latents and codes of the modalities that are observed, and covariates, as
        positions.
        """
        known: list[int] = []
        for places in (self.private, self.codes):
            for name, place in places.items():
                if pattern[self.sizes.names.index(name)]:
                    known += range(place.start, place.stop)
        return [*known, *range(self.context.start, self.context.stop)]

    def gaps(self, observed: Tensor) -> list[GapPattern]:
        """Patterns of what fitting rows have: z, and what their modalities (b, m) tell."""
        gaps = []
        for pattern, rows in patterns_of(observed):
            known = [*range(self.sizes.latent), *self.told_by(pattern)]
            missing = [i for i in range(self.number) if i not in known]
            gaps.append(GapPattern(rows, _positions(known), _positions(missing)))
        return gaps

    def values(self, pattern: Pattern, condition: Condition, w: Mapping[str, Tensor]) -> Tensor:
        """What modalities tell of rows, in the order of `told_by`, (n, b, k).

        Args:
            pattern: the modalities.
            condition: of the rows.
            w: private latents of the modalities, {name: (n, b, p)}; one draw, of none, if no
                modality has any.
        """
        observed = dict(zip(self.sizes.names, pattern, strict=True))
        n = len(next(iter(w.values()))) if w else 1
        own = [w[name] for name in self.private if observed[name]]
        codes = []
        for name in self.codes:
            code = condition.codes[name].loc
            shown = code if observed[name] else code[:, :0]
            codes.append(shown.expand(n, *shown.shape))
        context = self.covariates(condition)
        codes.append(context.expand(n, *context.shape))
        return _precise(torch.cat([*own, *codes], -1))


def _precise(x: Tensor) -> Tensor:
    """Numbers in float64, on the CPU if their device has none."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def _positions(positions: Sequence[int]) -> Tensor:
    return torch.tensor(positions, dtype=torch.long)


class ConditionalGMMSampler(nn.Module, ConditionalSampler):
    """Weights (c,), means (c, f) and lower factors of the covariances (c, f, f) of the joint
    mixture of z, private latents and codes; and how many fitting rows had each modality, (m,).
    """

    weighs_rows = True
    weight: Tensor
    loc: Tensor
    factor: Tensor
    rows: Tensor

    def __init__(self, spec: MixtureOptions, sizes: SamplerSizes) -> None:
        super().__init__()
        self.spec = spec
        self.sizes = sizes
        self.knows_covariates = spec.covariates
        self.features = Features(sizes, spec.covariates)
        c = spec.components
        f = self.features.number
        self.register_buffer("weight", torch.full((c,), 1 / c))
        self.register_buffer("loc", torch.zeros(c, f))
        self.register_buffer("factor", torch.eye(f).repeat(c, 1, 1))
        self.register_buffer("rows", torch.zeros(len(sizes.names), dtype=torch.long))

    def fit(self, rows: FittingRows, seed: int) -> None:
        options: MixtureOptions = self.spec  # type: ignore[assignment]
        c = options.components
        if len(rows) < c:
            raise DataError(f"sampler 'gmm': needs {c} rows at least; got {len(rows)}")
        z = rows.z.cpu().double()
        values = self.features.of_rows(rows).cpu().double()
        observed = rows.condition.observed.cpu()
        weight = None if rows.weight is None else rows.weight.cpu().double()
        groups = _groups(z, c, seed, weight)
        gaps = self.features.gaps(observed)
        fitted = fit_with_gaps(values, gaps, groups, options.floor, weight)
        self.weight.copy_(fitted.weight)
        self.loc.copy_(fitted.loc)
        self.factor.copy_(fitted.factor)
        self.rows.copy_(observed.sum(0))

    def sample(self, condition: Condition, n: int, generator: Generator) -> LatentDraws:
        self._check(condition)
        like = self.loc
        b = len(condition)
        w = condition.private_draws(n, generator)
        uniform = noise.draw("choice/component", (n, b), like, generator=generator)
        shape = (n, b, self.features.latents)
        eps = noise.draw("prior", shape, like, generator=generator, sampler=torch.randn)
        draws = torch.empty_like(eps)
        for pattern, rows in patterns_of(condition.observed):
            own = condition.take(rows)
            known = self.features.values(pattern, own, {key: x[:, rows] for key, x in w.items()})
            wanted, conditional = self._given(pattern)
            x = rearrange(known.expand(n, -1, -1), "n r k -> (n r) k")
            u = rearrange(uniform[:, rows], "n r -> (n r)")
            e = rearrange(eps[:, rows][..., wanted.to(eps.device)], "n r t -> (n r) t")
            drawn = _draws(conditional, x, u.to(x), e.to(x)).to(like)
            # private latents that the condition tells stay what was drawn of them
            every = self._latents(pattern, wanted, drawn, x.to(like))
            draws[:, rows] = rearrange(every, "(n r) t -> n r t", n=n)
        return self._parts(draws)

    def mean(self, condition: Condition, generator: Generator) -> LatentDraws:
        """Means given the codes and the means of the private latents that the condition tells."""
        self._check(condition)
        like = self.loc
        means = like.new_empty(len(condition), self.features.latents)
        for pattern, rows in patterns_of(condition.observed):
            own = condition.take(rows)
            w = {name: rearrange(code.loc, "b p -> 1 b p") for name, code in own.private.items()}
            wanted, conditional = self._given(pattern)
            x = self.features.values(pattern, own, w)[0]
            log_joint, loc = conditional.at(x)
            share = torch.softmax(log_joint, 1)
            mean = einsum(share, loc, "r c, c r t -> r t").to(like)
            means[rows] = self._latents(pattern, wanted, mean, x.to(like))
        return self._parts(means)

    def _check(self, condition: Condition) -> None:
        """Raises RequestError if it was made for another model, or a row has a modality that no
        fitting row had.
        """
        if not self.sizes.same_latents(condition.sizes):
            raise RequestError(
                "sampler 'gmm': it was fitted to a model of other modalities or latents, "
                f"{', '.join(self.sizes.names)}; expected {', '.join(condition.sizes.names)}, in "
                "this order, with latents as wide; fit it to this model: "
                "mvkit.fit_sampler(model, data, {'name': 'gmm', 'conditional': True})"
            )
        lacking = condition.observed.any(0) & (self.rows == 0)
        if lacking.any():
            name = self.sizes.names[int(lacking.nonzero()[0])]
            raise RequestError(
                f"sampler 'gmm': no row that it was fitted to had {name!r}, so that it knows "
                "nothing of what that tells; leave it out of given=, or fit the sampler to rows "
                "that have it"
            )

    def _given(self, pattern: Pattern) -> tuple[Tensor, Conditional]:
        """The latents that a pattern leaves open, as positions (t,), and their distribution."""
        known = self.features.told_by(pattern)
        wanted = [i for i in range(self.features.latents) if i not in known]
        mixture = GaussianMixture(*map(_precise, (self.weight, self.loc, self.factor)))
        device = mixture.loc.device
        positions = _positions(wanted).to(device)
        return positions, mixture.given(_positions(known).to(device), positions)

    def _latents(self, pattern: Pattern, wanted: Tensor, values: Tensor, known: Tensor) -> Tensor:
        """All latents, (r, d + Σ p), of those that were wanted (r, t) and what is known (r, k)."""
        latents = values.new_empty(len(values), self.features.latents)
        latents[:, wanted.to(values.device)] = values
        drawn = [i for i in self.features.told_by(pattern) if i < self.features.latents]
        latents[:, drawn] = known[:, : len(drawn)]
        return latents

    def _parts(self, latents: Tensor) -> LatentDraws:
        """Z (..., d) and private latents {name: (..., p)}."""
        private = {name: latents[..., place] for name, place in self.features.private.items()}
        return latents[..., : self.sizes.latent], private


def fit_to_complete(z: Tensor, c: int, floor: float, weight: Tensor, seed: int) -> GaussianMixture:
    """A mixture of c normals fitted to latents (b, d) of rows with weights (b,)."""
    everything = _positions(range(z.shape[1]))
    pattern = GapPattern(torch.arange(len(z)), everything, everything[:0])
    return fit_with_gaps(z, [pattern], _groups(z, c, seed, weight), floor, weight)


def _groups(z: Tensor, c: int, seed: int, weight: Tensor | None = None) -> Tensor:
    """Which of c groups each latent (b, d) is in, by k-means, (b, c) ones and zeros."""
    from sklearn.cluster import KMeans

    counts = None if weight is None else weight.numpy()
    means = KMeans(c, n_init=1, random_state=seed % 2**32).fit(z.numpy(), sample_weight=counts)
    groups: Tensor = torch.nn.functional.one_hot(torch.from_numpy(means.labels_).long(), c)
    return groups.double()


def _draws(conditional: Conditional, x: Tensor, uniform: Tensor, eps: Tensor) -> Tensor:
    """Draws of the wanted features, (r, t).

    Args:
        conditional: their distribution.
        x: the known features, (r, k).
        uniform: picks the components, (r,).
        eps: standard normal noise, (r, t).
    """
    c, t = conditional.loc.shape
    draws = torch.empty_like(eps)
    numbers = c * (t + x.shape[1]) + t * t
    for block in block_slices(len(x), block_size(numbers, MEMORY, FLOAT64)):
        log_joint, loc = conditional.at(x[block])
        cdf = torch.softmax(log_joint, 1).cumsum(1)
        point = rearrange(uniform[block], "r -> r 1") * cdf[:, -1:]
        picked = reduce(cdf <= point, "r c -> r", "sum").clamp(max=c - 1)
        chosen = loc[picked, torch.arange(len(picked), device=picked.device)]
        draws[block] = chosen + einsum(conditional.factor[picked], eps[block], "r i e, r e -> r i")
    return draws
