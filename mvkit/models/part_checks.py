"""Checks of live parts on three made-up rows, before a model trusts them.

A model checks every part that a package brought when it is built, so that a wrong shape, a NaN or
a modified input is reported at construction, with the name of the part; training steps pay
nothing for it. `mvkit.testing.check_component` starts with the same checks.

Axes: k components, b rows, m modalities, d latent, r repeats.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, cast

import attrs
import torch
from torch import Tensor, nn

from mvkit.core.batch import Batch
from mvkit.core.covariates import Side
from mvkit.core.decoder import Decoder
from mvkit.core.experts import Experts, on_rows
from mvkit.core.family import Family
from mvkit.core.likelihood import Context, Likelihood, mean_of, sample_of
from mvkit.core.missingness import Missingness
from mvkit.core.mixture import Mixture
from mvkit.core.modality import Modality, Sizes
from mvkit.core.noise import global_seed, kept_global, seeded
from mvkit.core.posterior import Posterior
from mvkit.core.row_picks import indices_of
from mvkit.core.validation import Schema
from mvkit.errors import MvkitError, SpecError, within
from mvkit.models.build import ModelSpec, Parts, assemble
from mvkit.models.inference import evaluation
from mvkit.models.module_checks import check_module
from mvkit.models.trial_values import dtype_of, even_steps, supported_values
from mvkit.parts.aggregators.aggregator import Aggregator
from mvkit.parts.networks import Network
from mvkit.parts.priors import Prior, as_prior
from mvkit.registry import plugins

ROWS = 3
Arguments = ParamSpec("Arguments")


class Fault(MvkitError):
    """A failed check of a part.

    Args:
        reason: what the part did, and what was expected.
        check: `shapes`, `finite` or `inputs`; empty: the check that is running.
    """

    def __init__(self, reason: str, check: str = "") -> None:
        super().__init__(reason)
        self.check = check


def expect(holds: bool | Tensor, reason: str, check: str = "") -> None:
    """Raises Fault unless a condition holds."""
    if not holds:
        raise Fault(reason, check)


def assembled(seed: int | None, **options: Any) -> Parts:
    """The checked parts of a model, with weights drawn from `seed`.

    Raises:
        SpecError: with the path of what cannot be built.
    """
    try:
        spec = ModelSpec(**options)
        with global_seed(seed):
            parts = assemble(spec)
            check_parts(parts)
    except SpecError as error:
        raise error.within("model") from None
    return parts


def check_parts(parts: Parts) -> None:
    """Checks the parts of a model that packages brought.

    Raises:
        SpecError: for the first fault, with the part, its package and its version.
    """
    if torch.get_default_device().type != "cpu":
        return  # such as meta: there are no values to look at
    spec = parts.spec
    sizes = Sizes(spec.latent_dim, parts.family, spec.modalities, spec.prior)
    _check("family", spec.family, family, parts.family)
    _check("aggregator", spec.aggregator, aggregator, parts.aggregator, sizes)
    _check("prior", spec.prior, prior, parts.prior, sizes)
    if parts.missingness is not None:
        _check("missingness", spec.missingness, missingness, parts.missingness, sizes)
    for name, modality in spec.modalities.items():
        path = f"modalities.{name}"
        live = cast(Decoder, parts.decoders[name]).likelihood
        _check(f"{path}.likelihood", modality.likelihood, likelihood, live, modality.shape)
        for side in ("encoder", "decoder"):
            networks = getattr(modality, side)
            if not isinstance(networks, nn.Module):
                _check(f"{path}.{side}", networks, network, networks, modality)
        _check_modules(parts, name, modality)


def _check_modules(parts: Parts, name: str, modality: Modality) -> None:
    """Tries the modules that a user gave as encoder and decoder."""
    latent = parts.spec.latent_dim
    width, private = parts.aggregator.width(latent), 2 * modality.private_dim
    if isinstance(modality.encoder, nn.Module):
        meaning = f": {width} numbers for the aggregator and {private} for the private latent"
        emitted = (width + private,)
        path = f"encoders.{name}"
        context = _context(parts, "encoders")
        check_module(path, modality.encoder, modality.input_shape, emitted, meaning, context)
    if isinstance(modality.decoder, nn.Module):
        decoder = cast(Decoder, parts.decoders[name])
        latents = (latent + modality.private_dim,)
        context = _context(parts, "decoders")
        path = f"decoders.{name}"
        check_module(path, modality.decoder, latents, decoder.shape, context=context)


def _context(parts: Parts, side: Side) -> int:
    """Numbers of the covariates that a side sees."""
    return 0 if parts.conditions is None else parts.conditions.width(side)


def _check(
    path: str,
    spec: object,
    check: Callable[Arguments, None],
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> None:
    """Runs a check of a live part if a package brought its spec."""
    entry = plugins.find_entry(type(spec))
    if entry is None or entry.package == "mvkit":
        return
    trial = "in a trial on three rows"
    try:
        with within(path), plugins.error_context(type(spec), trial):
            check(*args, **kwargs)
    except SpecError:
        raise
    except MvkitError as error:
        reason = f"{entry}, {trial}: {error}; update that package, or mend the part"
        raise SpecError(reason, path) from None


class _StandIn(nn.Module):
    """Stands in for an encoder: bounded numbers that depend on the row, without parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Rows (n, *shape) to (n, width)."""
        steps = torch.arange(1, self.width + 1, dtype=x.dtype)
        return torch.sin(x.flatten(1).sum(1, keepdim=True) * 0.37 + steps)


def _experts(part: Aggregator, sizes: Sizes) -> Experts:
    """Experts of three rows: one observes everything, one a single modality, one nothing."""
    dtype = dtype_of(part)
    width = part.width(sizes.latent)
    mask = torch.zeros(ROWS, len(sizes.modalities), dtype=torch.bool)
    mask[0] = True
    mask[1, 0] = True
    shapes = {}
    data = {}
    encoders = {}
    for i, (name, modality) in enumerate(sizes.modalities.items()):
        data[name] = _rows_of(name, modality, sizes, dtype)
        data[name][~mask[:, i]] = 0.0
        encoders[name] = _StandIn(width + 2 * modality.private_dim)
        shapes[name] = modality.shape
    return Experts(
        encoders,
        sizes.modalities,
        Batch(data, mask, schema=Schema(shapes, {}, dtype), **indices_of(mask)),
        family=sizes.family,
        width=width,
        training=False,
        generator=seeded(0),
    )


def _rows_of(name: str, modality: Modality, sizes: Sizes, dtype: torch.dtype) -> Tensor:
    """Three rows of values that the modality's likelihood allows."""
    shape = (ROWS, *modality.shape)
    with kept_global():
        live = modality.likelihood.build(attrs.evolve(sizes, name=name))
    values = even_steps(shape, dtype)
    if not live.out_of_support(values).any():
        return values
    allowed = supported_values(live, shape, dtype)
    return values if allowed is None else allowed


@contextlib.contextmanager
def _trial(part: object, calls: str, inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Evaluation mode without gradients inside; after it, inputs must be what they were."""
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    module = part if isinstance(part, nn.Module) else nn.Module()
    with evaluation(module), torch.no_grad(), kept_global():
        yield
    for name, tensor in inputs.items():
        expect(
            torch.equal(tensor, before[name]),
            f"changed its input in {calls}: {name}; expected it untouched; work on a copy",
            "inputs",
        )


def _check_tensor(
    value: object, shape: tuple[int, ...], what: str, *, finite: bool = True
) -> Tensor:
    """The value, which must be a tensor of that shape, with finite numbers."""
    expected = f"expected a tensor of shape {shape}"
    if not isinstance(value, Tensor):
        raise Fault(f"returned {what} that is a {type(value).__name__}; {expected}", "shapes")
    actual = tuple(value.shape)
    expect(actual == shape, f"returned {what} of shape {actual}; {expected}", "shapes")
    if finite:
        first = value.flatten()[:6].tolist()
        reason = f"returned {what} that is not finite: {first}; expected finite numbers"
        expect(torch.isfinite(value).all(), reason, "finite")
    return value


def _check_positive(scale: Tensor, where: str = "") -> None:
    reason = f"returned a scale of 0 or less{where}; expected positive numbers"
    expect((scale > 0).all(), reason, "finite")


def aggregator(part: Aggregator, sizes: Sizes) -> None:
    """Raises Fault unless `forward`, `unimodal` and `inference` return proper posteriors."""
    experts = _experts(part, sizes)
    batch = experts.batch
    inputs = {"mask": batch.observed, "stats": experts.stats}
    for name, output in experts.outputs.items():
        inputs[f"experts of {name!r}"] = output
        inputs[f"batch.data[{name!r}]"] = batch.data[name]
    with _trial(part, "forward, unimodal or inference", inputs):
        _check_posterior(part.forward(experts, batch), sizes, "forward")
        _check_posterior(part.inference(experts, batch), sizes, "inference")
        unimodal = part.unimodal(experts, batch)
        names = list(unimodal)
        expected = list(sizes.names)
        reason = f"returned unimodal posteriors of {names}; expected {expected}"
        expect(names == expected, reason, "shapes")
        for name, posterior in unimodal.items():
            _check_posterior(posterior, sizes, f"unimodal of {name!r}")


def _check_posterior(posterior: object, sizes: Sizes, where: str) -> None:
    """Right shapes, finite parameters, and weights that sum to one."""
    if not isinstance(posterior, Posterior):
        kind = type(posterior).__name__
        raise Fault(f"returned {kind} in {where}; expected a mvkit.Mixture", "shapes")
    k = posterior.log_weight.shape[:1]
    if isinstance(posterior, Mixture):  # others may take long to tell draws and densities
        k = posterior.loc.shape[:1]
        shape = (*k, ROWS, sizes.latent)
        _check_tensor(posterior.loc, shape, f"loc in {where}")
        scale = _check_tensor(posterior.scale, shape, f"scale in {where}")
        _check_positive(scale, f" in {where}")
    _check_tensor(posterior.evidence, (*k, ROWS, len(sizes.names)), f"evidence in {where}")
    weights = (*k, ROWS)
    _check_tensor(posterior.log_weight, weights, f"log_weight in {where}", finite=False)
    total = posterior.log_weight.logsumexp(0)
    reason = (
        f"returned log-weights in {where} whose weights sum to {total.exp().tolist()}; "
        "expected 1 per row"
    )
    expect((total.abs() < 1e-4).all(), reason, "finite")


def prior(part: Prior | nn.Module, sizes: Sizes) -> None:
    """Raises Fault unless `forward` returns a density (..., b, d) -> (..., b).

    It must have draws (n, d) too if it does not depend on the rows.
    """
    d = sizes.latent
    dtype = dtype_of(part)
    live = as_prior(part)
    b = ROWS if live.conditional else 1
    loc = even_steps((2, b, d), dtype)
    log_weight = loc.new_full((2, b), 0.5).log()
    posterior = Mixture(sizes.family, loc, torch.ones_like(loc), log_weight)
    depends = live.conditional or live.pseudo_inputs is not None
    z = even_steps((2, ROWS, d), dtype)
    inputs = {"z": z, "loc of the posterior": loc, "log_weight of the posterior": log_weight}
    with _trial(part, "forward or log_prob", inputs):
        density = live.density(posterior if depends else None)
        _check_tensor(density.log_prob(z), (2, ROWS), "log_prob of z (2, 3, d)")
        if not live.conditional:
            _check_tensor(density.sample(ROWS)[0], (ROWS, d), "sample of 3")


def missingness(part: Missingness, sizes: Sizes) -> None:
    """Raises Fault unless log-probabilities of patterns are (s, j, b), finite and at most 0."""
    dtype = dtype_of(part)
    x = {}
    observed = {}
    for name in part.modalities:
        shape = sizes.modalities[name].shape
        if part.looks_at_values:
            x[name] = even_steps((2, 1, ROWS, *shape), dtype)
        observed[name] = even_steps((ROWS, *shape), dtype) > 0
    inputs = {f"x[{name!r}]": values for name, values in x.items()}
    inputs |= {f"observed[{name!r}]": flags for name, flags in observed.items()}
    with _trial(part, "log_prob", inputs):
        log_ps = part.log_prob(x, observed, even_steps((2, 1, ROWS, sizes.latent), dtype))
    log_ps = _check_tensor(log_ps, (2, 1, ROWS), "log_prob of z (2, 1, 3, d)")
    reason = f"returned a probability above 1: its logarithm is {float(log_ps.max())}"
    expect((log_ps <= 1e-6).all(), f"{reason}; expected 0 at most", "finite")


def likelihood(part: Likelihood, shape: tuple[int, ...]) -> None:
    """Raises Fault unless densities are elementwise and finite, and means and draws like x."""
    dtype = dtype_of(part)
    numbers = (part.params,) if part.params > 1 else ()
    out = even_steps((2, ROWS, *shape, *numbers), dtype)
    x = supported_values(part, (ROWS, *shape), dtype)
    finite = x is not None  # a density of values outside the support need not be
    if x is None:
        x = out.new_zeros(ROWS, *shape)
    elements = shape[:-1] if part.class_axis else shape
    with _trial(part, "log_prob, mean or sample", {"out": out, "x": x}):
        log_prob = part.log_prob(out, x, Context())
        _check_tensor(log_prob, (2, ROWS, *elements), "log_prob", finite=finite)
        _check_tensor(mean_of(part, out, Context()), (2, ROWS, *shape), "mean")
        draws = sample_of(part, out, Context(generator=seeded(0)))
        _check_tensor(draws, (2, ROWS, *shape), "sample")


def network(part: Network, modality: Modality) -> None:
    """Raises Fault unless encoder and decoder of a modality emit the right shapes."""
    with kept_global():
        encoder = part.encoder(modality.input_shape, 5)
        decoder = part.decoder(5, modality.shape)
    for side, module, shape, emitted in (
        ("encoder", encoder, modality.input_shape, (5,)),
        ("decoder", decoder, (5,), modality.shape),
    ):
        rows = even_steps((ROWS, *shape), torch.get_default_dtype())
        with _trial(module, side, {"rows": rows}):
            _check_tensor(on_rows(module, rows), (ROWS, *emitted), f"rows of its {side}")


def family(part: Family) -> None:
    """Raises Fault unless scales are positive, and noise and densities of the shape asked for."""
    shape = (ROWS, 2)
    raw = torch.linspace(-3, 3, 6).reshape(shape)
    with _trial(part, "scale", {"raw": raw}):
        _check_positive(_check_tensor(part.scale(raw), shape, "scale of raw (3, 2)"))
        eps = part.noise(shape, dtype=raw.dtype, device=raw.device, generator=seeded(0))
        _check_tensor(eps, shape, "noise")
        _check_tensor(part.log_density(eps), shape, "log_density of eps (3, 2)")
