"""Checks of parts of models, inside tiny float64 models with every pattern of gaps.

Axes: b rows, m modalities, d latent.
"""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.loss import Loss
from mvkit.core.modality import Modality, Sizes
from mvkit.errors import ShapeError, SpecError
from mvkit.models import part_checks
from mvkit.models.checkpoint import load, save
from mvkit.models.model import Model
from mvkit.models.part_checks import Fault
from mvkit.parts.families import Normal
from mvkit.testing.injected_noise import bound_noise, noise

KINDS = ("aggregator", "prior", "objective", "family", "likelihood", "network")


NAMES = ("a", "b", "c")


PERMUTED = ("c", "a", "b")


PATTERNS = [p for p in itertools.product([True, False], repeat=len(NAMES)) if any(p)]


ROWS = 8


SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"aggregator": "moe", "prior": "mog", "objective": {"name": "iwae", "samples": 2}},
    {"aggregator": "mopoe", "prior": "learnable"},
)


SHAPES = ((3,), (8,), (1, 8, 8))


def modalities(kind: str, part: Any) -> dict[str, Modality]:
    """Three modalities; the first has the likelihood or networks under test, in the first shape that they take."""
    tiny = {"name": "mlp", "hidden": [5]}
    nets: dict[str, Any] = {"encoder": tiny, "decoder": tiny, "private_dim": 1}
    if kind == "network":
        nets |= {"encoder": part, "decoder": part}
    made: dict[str, Modality] = {}
    for shape in SHAPES:
        made["a"] = Modality(shape, part if kind == "likelihood" else "normal", **nets)
        if kind != "network" or _takes(part, shape):
            break
    plain = nets | {"encoder": tiny, "decoder": tiny}
    return made | {
        "b": Modality((2, 2), "bernoulli", **plain),
        "c": Modality((4,), "categorical", **plain),
    }


def _takes(part: Any, shape: tuple[int, ...]) -> bool:
    try:
        with torch.random.fork_rng(devices=[]):
            part.encoder(shape, 5), part.decoder(5, shape)
    except SpecError:
        return False
    return True


def model(kind: str, part: Any, setting: dict[str, Any], names: tuple[str, ...] = NAMES) -> Model:
    """A tiny model in float64 with the part in its place."""
    every = modalities(kind, part)
    own = {kind: part} if kind in ("aggregator", "prior", "objective", "family") else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*unimodal encoders")
        return Model(
            {n: every[n] for n in names}, latent_dim=2, seed=0, **{**setting, **own}
        ).double()


def models(kind: str, part: Any) -> Iterator[tuple[dict[str, Any], Model]]:
    """The part beside built-in ones, those that it refuses left out; one must be left."""
    refusal, found = None, 0
    for setting in SETTINGS:
        try:
            made = model(kind, part, setting)
        except SpecError as error:
            refusal = error
            continue
        found += 1
        yield setting, made
    if not found:
        raise Fault(
            "shapes", f"goes with no built-in parts: {refusal}; expected at least one combination"
        )


def rows(made: Model, b: int = ROWS, pattern: tuple[bool, ...] | None = None) -> Batch:
    """A batch whose rows show every pattern of observed modalities in turn, or one pattern only."""
    generator = torch.Generator().manual_seed(0)
    data = {}
    for name, modality in made.modalities.items():
        part: Any = made.decoders[name].likelihood
        x = next(part_checks.support(part, (b, *modality.shape), torch.float64, generator), None)
        if x is None:
            raise Fault(
                "shapes",
                "takes none of normal, uniform, count and one-hot values; expected one of them",
            )
        data[name] = x
    shown = [pattern or PATTERNS[i % len(PATTERNS)] for i in range(b)]
    mask = torch.tensor([[row[NAMES.index(name)] for name in made.names] for row in shown])
    return Batch(data, mask)


def fillers(batch: Batch, value: float) -> Batch:
    """The batch with every unobserved place set to a value."""
    data = {}
    for i, (name, x) in enumerate(batch.data.items()):
        data[name] = x.clone()
        data[name][~batch.observed[:, i]] = value
    return Batch(data, batch.mask)


def loss(
    made: Model, batch: Batch, ids: list[int] | None = None
) -> tuple[Loss, dict[str, Tensor | None]]:
    """Loss and gradients by parameter name, with noise bound to row ids and modality names."""
    made.zero_grad(set_to_none=True)
    with noise(bound_noise(ids or list(range(len(batch))), made.names)):
        found = made.loss(batch)
    if found.loss.requires_grad:
        found.loss.backward()
    return found, {
        n: None if p.grad is None else p.grad.clone() for n, p in made.named_parameters()
    }


def shapes(kind: str, part: Any) -> None:
    """The trials that a model makes of parts from packages."""
    every = modalities(kind, part)
    family = part if kind == "family" else Normal()
    sizes = Sizes(2, family, every, None)
    if kind == "family":
        part_checks.family(part)
    elif kind == "network":
        part_checks.network(part, every["a"].shape, every["a"].shape)
    elif kind == "likelihood":
        part_checks.likelihood(part.build(sizes), every["a"].shape)
    elif kind in ("aggregator", "prior"):
        getattr(part_checks, kind)(part.build(sizes), sizes)
    for _, made in models(kind, part):
        try:
            made.loss(rows(made))
        except ShapeError as error:
            raise Fault("shapes", f"is misshapen: {error}") from None


def masks(kind: str, part: Any) -> None:
    """Finite answers whatever is observed; no evidence, and no weight, from what is not."""
    for setting, made in models(kind, part):
        for pattern in [None] if setting else [None, *PATTERNS]:
            batch = rows(made, pattern=pattern)
            seen = (
                ", ".join(n for n, flag in zip(NAMES, pattern, strict=True) if flag)
                if pattern
                else "mixed patterns"
            )
            found = made.loss(batch)
            answers = {"loss": found.loss, "encode": made.encode(batch), **made.translate(batch)}
            for name, value in answers.items():
                if not bool(torch.isfinite(value).all()):
                    raise Fault(
                        "masks",
                        f"gave {name} that is not finite where rows observe {seen}; expected numbers",
                    )
            posterior = made.posterior(batch)
            if posterior.evidence is not None:
                used = posterior.evidence & (posterior.log_weight.detach() > -torch.inf)[..., None]
                if bool((used & ~batch.observed).any()):
                    raise Fault(
                        "masks",
                        f"used modalities that rows lack where they observe {seen}; expected weight 0",
                    )


def same_bits(kind: str, part: Any) -> None:
    """Whatever stands in unobserved places changes no bit of loss, gradients or codes."""
    for _, made in models(kind, part):
        batch = rows(made)
        plain, gradients = loss(made, batch)
        codes = made.encode(batch)
        for value in (torch.nan, torch.inf, 1e6):
            other, others = loss(made, fillers(batch, value))
            pairs = {
                "loss": (plain.loss, other.loss),
                "codes": (codes, made.encode(fillers(batch, value))),
            }
            pairs |= {f"gradient of {n}": (g, others[n]) for n, g in gradients.items()}  # type: ignore[misc]
            for name, (one, two) in pairs.items():
                if (one is None) != (two is None) or (
                    one is not None and not torch.equal(one, two)
                ):
                    raise Fault(
                        "fillers",
                        f"changed {name} where fillers are {value}; expected the same bits",
                    )


def own(kind: str, name: str) -> bool:
    """Whether a parameter of a model belongs to the part under test."""
    places = {
        "network": ("encoders.a.", "decoders.a.network."),
        "likelihood": ("decoders.a.likelihood.",),
    }
    return name.startswith(places.get(kind, (f"{kind}.",)))


def gradients(kind: str, part: Any) -> None:
    """Every parameter of the part has a gradient, and no gradient of the model is anything but numbers."""
    for _, made in models(kind, part):
        _, found = loss(made, rows(made))
        for name, gradient in found.items():
            if gradient is None and own(kind, name):
                raise Fault(
                    "gradients",
                    f"has a parameter {name} that no gradient reaches; expected one for each",
                )
            if gradient is not None and not bool(torch.isfinite(gradient).all()):
                raise Fault(
                    "gradients", f"made the gradient of {name} not finite; expected numbers"
                )
        if not any(gradient is not None and bool(gradient.any()) for gradient in found.values()):
            raise Fault(
                "gradients", "gave a loss without gradient; expected one that trains something"
            )


def saved(kind: str, part: Any) -> None:
    """A model with it comes back from a file: the same specs, weights and codes."""
    for _, made in models(kind, part):
        with tempfile.TemporaryDirectory() as folder:
            save(made, Path(folder) / "model.safetensors")
            again = load(Path(folder) / "model.safetensors")
        if again.header() != made.header():
            raise Fault("save", f"was loaded as {again.header()}; expected {made.header()}")
        batch = rows(made)
        if not torch.equal(made.encode(batch), again.encode(batch)):
            raise Fault(
                "save",
                "gave other codes after save and load; expected the same bits; register tensors as buffers",
            )


def determinism(kind: str, part: Any) -> None:
    """Initial weights follow the seed, draws the generator, and the global generator is left alone."""
    for setting, made in models(kind, part):
        before = torch.get_rng_state()
        twin = model(kind, part, setting)
        for (name, one), two in zip(
            made.state_dict().items(), twin.state_dict().values(), strict=True
        ):
            if not torch.equal(one, two):
                raise Fault(
                    "determinism",
                    f"drew {name} anew for the same seed; expected the same initial weights",
                )
        batch = rows(made)
        one, two = (
            made.loss(batch, generator=torch.Generator().manual_seed(1)).loss for _ in range(2)
        )
        if not torch.equal(one, two):
            raise Fault(
                "determinism",
                "gave two losses for one generator; expected all draws from `experts.generator`",
            )
        if not torch.equal(before, torch.get_rng_state()):
            raise Fault(
                "determinism",
                "drew from torch's global generator; expected the generator that it is given",
            )


def _close(one: Tensor, two: Tensor) -> bool:
    return torch.allclose(one, two, rtol=1e-9, atol=1e-12, equal_nan=True)


def permuted_rows(kind: str, part: Any) -> None:
    """Rows know nothing of each other: permuting the batch permutes the bounds, a row alone has its own code."""
    order = torch.tensor([3, 1, 7, 0, 5, 2, 6, 4])
    for _, made in models(kind, part):
        batch = rows(made)
        found, _ = loss(made, batch)
        other, _ = loss(made, batch.take(order), order.tolist())
        if not _close(found.bound[order], other.bound):
            raise Fault(
                "rows", "gave other bounds when the batch was permuted; expected those of each row"
            )
        codes = made.encode(batch)
        alone = torch.cat([made.encode(batch.take([i])) for i in range(3)])
        if not _close(codes[:3], alone):
            raise Fault(
                "rows",
                "gave a row another code alone than in a batch; expected rows to be independent",
            )


def permuted_modalities(kind: str, part: Any) -> None:
    """Declaring the modalities in another order, with the same weights, changes no number."""
    for setting, made in models(kind, part):
        other = model(kind, part, setting, PERMUTED)
        other.load_state_dict(made.state_dict())
        batch = rows(made)
        index = [made.names.index(name) for name in other.names]
        found, _ = loss(made, batch)
        again, _ = loss(other, Batch(batch.data, batch.observed[:, index]))
        if not _close(found.bound, again.bound):
            raise Fault(
                "modalities",
                "gave other bounds for modalities declared in another order; expected the same",
            )


def precision(kind: str, part: Any) -> None:
    """Results in the model's dtype; in float64 the gradient is that of finite differences (of the elbo)."""
    for setting, made in models(kind, part):
        batch = rows(made)
        if kind != "objective" and not setting:
            _differentiated(made, batch)
        for dtype in (torch.float64, torch.float32):
            made.to(dtype)
            answers = {
                "loss": made.loss(batch).loss,
                "encode": made.encode(batch),
                **made.translate(batch),
            }
            for name, value in answers.items():
                if value.dtype != dtype:
                    raise Fault(
                        "precision",
                        f"gave {name} in {value.dtype} in a model of {dtype}; expected {dtype}",
                    )


def _differentiated(made: Model, batch: Batch, step: float = 1e-6) -> None:
    """Compares the gradient along one direction with a central difference: numbers rounded to float32 miss it."""
    _, found = loss(made, batch)
    generator = torch.Generator().manual_seed(2)
    towards = {
        n: torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for n, p in made.named_parameters()
    }
    slope = sum(float((g * towards[n]).sum()) for n, g in found.items() if g is not None)
    start = {n: p.detach().clone() for n, p in made.named_parameters()}
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for n, p in made.named_parameters():
                p.copy_(start[n] + sign * step * towards[n])
        ends.append(loss(made, batch)[0].loss.item())
    with torch.no_grad():
        for n, p in made.named_parameters():
            p.copy_(start[n])
    measured = (ends[0] - ends[1]) / (2 * step)
    if abs(measured - slope) > 1e-4 * max(1.0, abs(slope)):
        raise Fault(
            "precision",
            f"has a slope of {slope:.8g} by its gradient and {measured:.8g} by differences in float64; expected "
            "the same; keep the dtype of what comes in, and check custom gradients",
        )


_EVERY = {
    "shapes": shapes,
    "masks": masks,
    "determinism": determinism,
    "gradients": gradients,
    "fillers": same_bits,
    "save": saved,
    "rows": permuted_rows,
    "modalities": permuted_modalities,
    "precision": precision,
}


CHECKS = dict.fromkeys(KINDS, _EVERY)
