"""Checks of samplers that know a condition, on made-up latents and codes.

Axes: n draws, b rows, m modalities, d latent, p private latent.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core.noise import global_seed, seeded
from mvkit.models.part_checks import expect
from mvkit.models.samplers import built
from mvkit.parts.conditional_samplers import (
    Code,
    Condition,
    ConditionalSampler,
    FittingRows,
    LatentDraws,
)
from mvkit.parts.families import Normal
from mvkit.testing import tiny_models

SPREAD = 0.3  # of codes around the latent
FILLER = 1e6
N = 3  # draws


def is_conditional(part: Any) -> bool:
    """Whether a spec of a sampler builds one that knows a condition."""
    return isinstance(_live(part), ConditionalSampler)


def _live(part: Any) -> Any:
    """The sampler of a tiny model, not fitted; its initial weights follow a seed."""
    with global_seed(0):
        return built(tiny_models.model(private=1), part).double()


def conditions(part: Any) -> None:
    """Draws given any subset follow it, the row's own alone, from state that files hold."""
    sampler, twin = _live(part), _live(part)
    rows = _rows(200)
    sampler.fit(rows, 0)
    twin.load_state_dict(sampler.state_dict())
    asked = _rows(8, nothing=True).condition
    before = torch.get_rng_state()
    draws, again, of_twin = (_drawn(live, asked) for live in (sampler, sampler, twin))
    _check_shapes(draws, asked)
    expect(
        torch.equal(draws[0], again[0]) and torch.equal(before, torch.get_rng_state()),
        "returned other draws for one generator, or used the global one; expected the one given",
    )
    expect(
        torch.equal(draws[0], of_twin[0]),
        "returned other draws from its saved state; expected what counts in buffers or parameters",
    )
    filled = _drawn(sampler, _filled(asked))
    expect(
        torch.equal(draws[0], filled[0]),
        "returned other draws when codes of unobserved modalities changed; expected them to "
        "change no number",
    )
    _check_fillers_in_fit(part, rows, sampler)
    _check_rows(sampler, asked, draws)
    _check_that_it_follows(sampler, asked)


def _drawn(sampler: ConditionalSampler, condition: Condition) -> LatentDraws:
    """Draws of one seed."""
    return sampler.sample(condition, N, seeded(1))


def _rows(b: int, *, nothing: bool = False) -> FittingRows:
    """Latents of rows with every pattern of gaps, whose codes are the latents and noise.

    Args:
        b: rows.
        nothing: whether the pattern in which nothing is observed is among them.
    """
    sizes = tiny_models.model(private=1).sampler_sizes()
    generator = seeded(0)
    z = _normal((b, sizes.latent), generator)
    patterns = list(itertools.product([True, False], repeat=len(sizes.names)))
    patterns = patterns if nothing else patterns[:-1]
    observed = torch.tensor([patterns[i % len(patterns)] for i in range(b)])
    codes = {}
    for name in sizes.names:
        codes[name] = Code(z + SPREAD * _normal(z.shape, generator), torch.full_like(z, SPREAD))
    private = {}
    drawn = {}
    for name, p in sizes.private.items():
        loc = _normal((b, p), generator)
        private[name] = Code(loc, torch.full_like(loc, SPREAD))
        drawn[name] = loc + SPREAD * _normal((b, p), generator)
    every = Condition(sizes, torch.ones_like(observed), codes, private, Normal())
    return FittingRows(z, drawn, every.keep(observed))


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _filled(condition: Condition) -> Condition:
    """The condition with another number in every unobserved place."""

    def with_fillers(codes: Mapping[str, Code]) -> dict[str, Code]:
        filled = {}
        for name, code in codes.items():
            known = rearrange(condition.observes(name), "b -> b 1")
            loc = torch.where(known, code.loc, FILLER)
            filled[name] = Code(loc, torch.where(known, code.scale, FILLER))
        return filled

    codes, private = with_fillers(condition.codes), with_fillers(condition.private)
    return attrs.evolve(condition, codes=codes, private=private)


def _check_shapes(draws: LatentDraws, condition: Condition) -> None:
    """Raises Fault unless draws of latents are finite and have their shapes."""
    z, private = draws
    sizes = condition.sizes
    latents = {"z": (z, sizes.latent)}
    for name, w in private.items():
        expect(
            name in sizes.private,
            f"returned a private latent of {name!r}, which has none; expected those of "
            f"{', '.join(sizes.private)} at most",
        )
        latents[f"the private latent of {name!r}"] = (w, sizes.private[name])
    for what, (latent, width) in latents.items():
        shape = (N, len(condition), width)
        expect(
            tuple(latent.shape) == shape and bool(torch.isfinite(latent).all()),
            f"returned {what} of shape {tuple(latent.shape)}, or non-finite numbers; expected "
            f"finite draws {shape}",
        )


def _check_fillers_in_fit(part: Any, rows: FittingRows, fitted: ConditionalSampler) -> None:
    """Raises Fault if a fit looks at what rows do not have."""
    condition = rows.condition
    drawn = {}
    for name, w in rows.private.items():
        known = rearrange(condition.observes(name), "b -> b 1")
        drawn[name] = torch.where(known, w, FILLER)
    other = _live(part)
    other.fit(FittingRows(rows.z, drawn, _filled(condition)), 0)
    asked = _rows(8, nothing=True).condition
    expect(
        torch.equal(_drawn(fitted, asked)[0], _drawn(other, asked)[0]),
        "was fitted to other parameters when codes of unobserved modalities changed; expected "
        "them to change no number",
    )


def _check_rows(sampler: ConditionalSampler, asked: Condition, draws: LatentDraws) -> None:
    """Raises Fault if draws of a row depend on what others have."""
    moved = dict(asked.codes)
    for name, code in moved.items():
        first = rearrange(torch.arange(len(asked)) == 0, "b -> b 1")
        loc = torch.where(first, code.loc, code.loc + 1.0)
        moved[name] = Code(loc, code.scale)
    others = _drawn(sampler, attrs.evolve(asked, codes=moved).keep(asked.observed))
    expect(
        torch.equal(draws[0][:, 0], others[0][:, 0]),
        "returned other draws of a row when the codes of other rows changed; expected each row's "
        "own condition to decide",
    )


def _check_that_it_follows(sampler: ConditionalSampler, asked: Condition) -> None:
    """Raises Fault unless z follows codes: it is what they are, but for noise."""
    means = []
    for at in (-1.5, 1.5):
        codes = {}
        for name, code in asked.codes.items():
            codes[name] = Code(torch.full_like(code.loc, at), torch.full_like(code.loc, SPREAD))
        condition = attrs.evolve(asked, codes=codes).keep(asked.observed)
        z, _ = sampler.sample(condition, 100, seeded(2))
        means.append(z.mean(0))
    low, high = means
    follows = (high - low).mean(1) > 0.5
    known = asked.observed.any(1)
    expect(
        bool(follows[known].all()),
        "returned latents near one another for codes of -1.5 and 1.5, which rows of the fit had "
        "beside latents of the same; expected latents that follow the condition, for every subset",
    )
