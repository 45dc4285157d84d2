"""Checks of refiners, on made-up outputs of a decoder, latents and data with gaps.

Axes: r draws, n rows, d shared and p private latent, c numbers of the covariates.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from mvkit.core.noise import global_seed, seeded
from mvkit.models.part_checks import expect
from mvkit.parts.refiners import Refiner, RefinerSizes
from mvkit.registry.loading import live_part
from mvkit.testing import tiny_models
from mvkit.testing.model_parts import Checks

N = 6
FILLER = 1e6


@attrs.frozen(eq=False)
class Rows:
    """What a refiner is trained on; see `mvkit.Refiner`."""

    out: Tensor
    x: Tensor
    z: Tensor
    context: Tensor | None
    observed: Tensor
    given: Tensor

    @classmethod
    def of(cls, sizes: RefinerSizes) -> Rows:
        """Rows with gaps, the last of which observes nothing."""
        generator = seeded(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        observed = torch.rand((N, *sizes.shape), generator=generator) < 0.7
        observed[0] = True
        observed[-1] = False
        x = torch.where(observed, normal(N, *sizes.shape), 0.0)
        context = normal(N, sizes.context) if sizes.context else None
        given = torch.arange(N) % 2 == 0
        out, z = normal(N, *sizes.shape), normal(N, sizes.latent)
        return cls(out, x, z, context, observed, given)

    def moved(self) -> Rows:
        """The same first row, and others elsewhere."""
        values = {}
        for field in ("out", "x", "z", "context"):
            value = getattr(self, field)
            if value is not None:
                values[field] = torch.cat([value[:1], value[1:] + 1.0])
        x = torch.where(self.observed, values["x"], 0.0)
        return attrs.evolve(self, **{**values, "x": x})


def refiner(kind: str, part: Any) -> None:
    """Draws and losses of rows that follow the generator alone, from state that files hold."""
    shape = tiny_models.surroundings().shape("a")
    for context in (0, 2):
        sizes = RefinerSizes("a", shape, latent=3, private=1, context=context)
        rows = Rows.of(sizes)
        live = _live(part, sizes)
        before = copy.deepcopy(rows)
        _check_draws(live, _twin(part, sizes, live), rows)
        _check_loss(live, rows)
        _check_gradient(live, rows)
        _check_that_it_knows(live, rows)
        for field, value in _tensors(before).items():
            expect(
                torch.equal(value, getattr(rows, field)),
                f"changed {field} in place; expected its inputs left alone",
            )


def _live(part: Any, sizes: RefinerSizes, seed: int = 0) -> Any:
    """The refiner in float64; its initial weights follow a seed."""
    with global_seed(seed):
        live = live_part(part, "refiner", (Refiner,), sizes)
    expect(
        isinstance(live, nn.Module),
        f"built a {type(live).__name__}, whose state no file would hold; expected an nn.Module",
    )
    return live.double().eval()


def _twin(part: Any, sizes: RefinerSizes, live: nn.Module) -> Any:
    """Another with the same state and other initial weights."""
    twin = _live(part, sizes, seed=1)
    twin.load_state_dict(live.state_dict())
    return twin


def _tensors(rows: Rows) -> Mapping[str, Tensor]:
    """The fields of rows that are there."""
    values = {field.name: getattr(rows, field.name) for field in attrs.fields(Rows)}
    return {name: value for name, value in values.items() if value is not None}


def _drawn(live: Any, rows: Rows, seed: int = 1) -> Tensor:
    """Draws of one seed."""
    options = {"given": rows.given} if live.knows_given else {}
    with torch.no_grad():
        draws: Tensor = live.refine(rows.out, rows.z, rows.context, seeded(seed), **options)
    return draws


def _lost(live: Any, rows: Rows) -> Tensor:
    """The losses of rows, by the noise of one seed."""
    out, z = rows.out, rows.z
    options = {}
    if live.knows_given:
        options["given"] = rows.given
        out, z = (_several(value, rows.given, live.latent_draws) for value in (out, z))
    loss: Tensor = live.loss(out, rows.x, z, rows.context, rows.observed, seeded(1), **options)
    return loss


def _several(value: Tensor, given: Tensor, r: int) -> Tensor:
    """What comes of r latents of each row, (n, ...) -> (r, n, ...): copies in rows that are given
    the modality.
    """
    others = torch.stack([value + 0.1 * i for i in range(r)])
    where = given.reshape(-1, *[1] * (value.ndim - 1))
    return torch.where(where, value, others)


def _check_draws(live: Refiner, twin: Refiner, rows: Rows) -> None:
    """Raises Fault unless draws are finite, of the right shape, and follow generator and state."""
    before = torch.get_rng_state()
    draws, again, of_twin = _drawn(live, rows), _drawn(live, rows), _drawn(twin, rows)
    right = draws.shape == rows.out.shape and draws.dtype == rows.out.dtype
    expect(
        right and bool(torch.isfinite(draws).all()),
        f"returned draws of shape {tuple(draws.shape)} and {draws.dtype}, or non-finite numbers; "
        f"expected finite ones, {tuple(rows.out.shape)} and {rows.out.dtype}",
    )
    expect(
        torch.equal(draws, again) and torch.equal(before, torch.get_rng_state()),
        "returned other draws for one generator, or used the global one; expected the one given",
    )
    expect(
        not torch.equal(draws, _drawn(live, rows, seed=2)),
        "returned the same for two generators; expected draws",
    )
    expect(
        torch.equal(draws, of_twin),
        "returned other draws from its saved state; expected what counts in buffers or parameters",
    )
    expect(
        torch.equal(draws[0], _drawn(live, rows.moved())[0]),
        "returned another draw of a row when other rows changed; expected rows to be independent",
    )


def _check_loss(live: Refiner, rows: Rows) -> None:
    """Raises Fault unless there is a finite loss of each row, of what it observes alone."""
    with torch.no_grad():
        loss, again = _lost(live, rows), _lost(live, rows)
        moved = _lost(live, rows.moved())
        x = torch.where(rows.observed, rows.x, FILLER)
        filled = _lost(live, attrs.evolve(rows, x=x))
    expect(
        tuple(loss.shape) == (N,) and bool(torch.isfinite(loss).all()),
        f"returned losses of shape {tuple(loss.shape)}, or non-finite numbers; expected a finite "
        f"one of each row, {(N,)}, also where nothing is observed",
    )
    expect(
        torch.equal(loss, again),
        "returned other losses for one generator; expected its noise from the one given",
    )
    expect(
        torch.equal(loss[0], moved[0]),
        "returned another loss of a row when other rows changed; expected rows to be independent",
    )
    expect(
        torch.equal(loss, filled),
        "returned other losses when unobserved values changed; expected them to change no number",
    )


def _check_gradient(live: Any, rows: Rows) -> None:
    """Raises Fault unless the loss trains it, by finite gradients."""
    parameters = [parameter for parameter in live.parameters() if parameter.requires_grad]
    expect(bool(parameters), "has no parameters; expected some to train")
    loss = _lost(live, rows).sum()
    expect(loss.requires_grad, "returned a loss without gradient; expected one to train by")
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    values = [gradient for gradient in gradients if gradient is not None]
    expect(
        all(bool(torch.isfinite(gradient).all()) for gradient in values)
        and any(bool(gradient.any()) for gradient in values),
        "has gradients that are not finite, or all 0; expected finite ones to train by",
    )


def _check_that_it_knows(live: Any, rows: Rows) -> None:
    """Raises Fault if it asks what was given, and draws the same for either answer."""
    if not live.knows_given:
        return
    other = attrs.evolve(rows, given=~rows.given)
    expect(
        not torch.equal(_drawn(live, rows), _drawn(live, other)),
        "has knows_given and drew the same whether its modality was given or not; expected it to "
        "look at given=, or knows_given left out",
    )


CHECKS: dict[str, Checks] = {"refiner": {"contract": refiner}}
