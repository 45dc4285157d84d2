"""Trials of live parts on three made-up rows: what they give, before a model trusts them.

A model tries every part that a package brought when it is built, so that a wrong shape, a number that is none or a
changed input is told at once, with the name of the part; the steps of training pay nothing for it.
`mvkit.testing.check_component` starts with the same trials.

Axes: k components, b rows, m modalities, d latent, r repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mvkit.core.batch import Batch, indices_of
from mvkit.core.experts import Experts, on_rows
from mvkit.core.family import Family
from mvkit.core.likelihood import Context, Likelihood
from mvkit.core.mixture import Mixture
from mvkit.core.modality import Sizes
from mvkit.core.posterior import Posterior
from mvkit.core.validation import Schema
from mvkit.errors import MvkitError, SpecError
from mvkit.models.inference import evaluation
from mvkit.parts.aggregators.aggregator import Aggregator
from mvkit.parts.networks import Network
from mvkit.parts.priors import Prior
from mvkit.registry import plugins

if TYPE_CHECKING:
    from mvkit.models.build import Parts


ROWS = 3


class Fault(Exception):
    """What a trial found.

    Args:
        check: `shapes`, `finite` or `inputs`.
        reason: what was given, and what was expected.
    """

    def __init__(self, check: str, reason: str) -> None:
        super().__init__(reason)
        self.check = check


def check_parts(parts: Parts) -> None:
    """Tries the parts of a model that packages brought.

    Raises:
        SpecError: for the first fault, with the part, its package and its version.
    """
    spec, sizes = (
        parts.spec,
        Sizes(parts.spec.latent_dim, parts.family, parts.spec.modalities, parts.spec.prior),
    )
    trials: list[tuple[str, Any, Callable[[], None]]] = [
        ("family", spec.family, lambda: family(parts.family)),
        ("aggregator", spec.aggregator, lambda: aggregator(parts.aggregator, sizes)),
        ("prior", spec.prior, lambda: prior(parts.prior, sizes)),
    ]
    for name, modality in spec.modalities.items():
        where, live = f"modalities.{name}", parts.decoders[name].likelihood
        trials.append(
            (
                f"{where}.likelihood",
                modality.likelihood,
                lambda m=modality, o=live: likelihood(o, m.shape),
            )
        )  # type: ignore[misc]
        for side in ("encoder", "decoder"):
            made = getattr(modality, side)
            if not isinstance(made, nn.Module):
                trials.append(
                    (
                        f"{where}.{side}",
                        made,
                        lambda m=made, s=modality: network(m, s.input_shape, s.shape),
                    )
                )  # type: ignore[misc]
    if torch.get_default_device().type != "cpu":
        return  # such as meta: there are no numbers to look at
    for path, part, trial in trials:
        entry = plugins.find_entry(type(part))
        if entry is None or entry.package == "mvkit":
            continue
        try:
            with plugins.error_context(type(part), "in a trial on three rows"):
                trial()
        except Fault as fault:
            raise SpecError(
                f"{entry} {fault}; update that package, or mend the part", path
            ) from None
        except MvkitError as error:
            raise (
                error.within(path)
                if isinstance(error, SpecError)
                else SpecError(f"{entry}: {error}", path)
            ) from None


class _Stub(nn.Module):
    """Stands in for an encoder: bounded numbers that depend on the row, without parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Rows (n, *shape) to (n, width)."""
        steps = torch.arange(1, self.width + 1, dtype=x.dtype)
        return torch.sin(x.flatten(1).sum(1, keepdim=True) * 0.37 + steps)


def _evidence(part: Any, sizes: Sizes) -> tuple[Experts, Batch]:
    """Experts of three rows: one observes everything, one a single modality, one nothing."""
    shapes = {name: modality.shape for name, modality in sizes.modalities.items()}
    dtype = next((p.dtype for p in _module(part).parameters()), torch.get_default_dtype())
    data = {name: torch.linspace(0, 1, ROWS, dtype=dtype).reshape(-1, *[1] * len(s)).expand(-1, *s).clone()
            for name, s in shapes.items()}  # fmt: skip
    mask = torch.zeros(ROWS, len(shapes), dtype=torch.bool)
    mask[0], mask[1, 0] = True, True
    for i, name in enumerate(shapes):
        data[name][~mask[:, i]] = 0.0
    likelihoods = {name: modality.likelihood for name, modality in sizes.modalities.items()}
    batch = Batch(data, mask, schema=Schema(shapes, likelihoods, dtype), **indices_of(mask))
    stubs = {
        n: _Stub(part.width(sizes.latent) + 2 * m.private_dim) for n, m in sizes.modalities.items()
    }
    generator = torch.Generator().manual_seed(0)
    experts = Experts(stubs, sizes.modalities, batch, family=sizes.family, width=part.width(sizes.latent),
                      training=False, generator=generator)  # fmt: skip
    return experts, batch


def _module(part: Any) -> nn.Module:
    return part if isinstance(part, nn.Module) else nn.Module()


class _Watched:
    """Tensors that a call must leave as they are."""

    def __init__(self, **tensors: Tensor) -> None:
        self.now, self.before = tensors, {name: tensor.clone() for name, tensor in tensors.items()}

    def check(self, call: str) -> None:
        """Raises Fault if one of them was changed."""
        for name, tensor in self.now.items():
            if not torch.equal(tensor, self.before[name]):
                raise Fault(
                    "inputs",
                    f"changed its input in {call}: {name}; expected it untouched; work on a copy",
                )


def _shaped(value: object, shape: tuple[int, ...], what: str) -> Tensor:
    """The value, which must be a tensor of that shape."""
    if isinstance(value, Tensor) and tuple(value.shape) == shape:
        return value
    given = (
        f"of shape {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else f"that is a {type(value).__name__}"
    )
    raise Fault("shapes", f"gave {what} {given}; expected a tensor of shape {shape}")


def _finite(value: object, shape: tuple[int, ...], what: str) -> Tensor:
    value = _shaped(value, shape, what)
    if not bool(torch.isfinite(value).all()):
        raise Fault(
            "finite",
            f"gave {what} that is not finite: {value.flatten().tolist()[:6]}; expected numbers",
        )
    return value


@torch.no_grad()
def aggregator(part: Aggregator, sizes: Sizes) -> None:
    """Raises Fault unless `forward`, `unimodal` and `inference` give proper posteriors."""
    with evaluation(_module(part)):
        experts, batch = _evidence(part, sizes)
        watched = _Watched(**{f"experts of {n!r}": out for n, out in experts.outputs.items()}, mask=batch.observed,
                           **{f"batch.data[{n!r}]": x for n, x in batch.data.items()}, stats=experts.stats)  # fmt: skip
        found = {"forward": part.forward(experts, batch)}
        mixture(found["forward"], ROWS, sizes, "forward")
        found["inference"] = part.inference(experts, batch)
        each = part.unimodal(experts, batch)
        watched.check("forward, unimodal or inference")
    if list(each) != list(sizes.names):
        raise Fault(
            "shapes", f"gave unimodal posteriors of {list(each)}; expected {list(sizes.names)}"
        )
    found |= {f"unimodal of {name!r}": posterior for name, posterior in each.items()}
    for what, posterior in found.items():
        mixture(posterior, ROWS, sizes, what)


def mixture(found: Any, rows: int, sizes: Sizes, what: str) -> None:
    """Raises Fault unless a posterior has the right shapes, finite parameters and weights that sum to one."""
    if not isinstance(found, Posterior):
        raise Fault("shapes", f"gave {type(found).__name__} in {what}; expected a mvkit.Mixture")
    d, m = sizes.latent, len(sizes.names)
    if isinstance(found, Mixture):
        k = found.loc.shape[0] if found.loc.ndim else 0
        _finite(found.loc, (k, rows, d), f"loc in {what}")
        if bool((_finite(found.scale, (k, rows, d), f"scale in {what}") <= 0).any()):
            raise Fault(
                "finite", f"gave a scale of 0 or less in {what}; expected positive numbers"
            )
    else:  # one without closed forms, whose draws and densities may take long
        k = len(found.log_weight)
    _shaped(found.evidence, (k, rows, m), f"evidence in {what}")
    total = _shaped(found.log_weight, (k, rows), f"log_weight in {what}").logsumexp(0)
    if not bool((total.abs() < 1e-4).all()):
        raise Fault(
            "finite",
            f"gave log-weights in {what} whose weights sum to {total.exp().tolist()}; expected 1 a row",
        )


@torch.no_grad()
def prior(part: Any, sizes: Sizes) -> None:
    """Raises Fault unless `forward` gives a density (..., b, d) -> (..., b) and, if it needs no rows, draws (n, d)."""
    d, like = sizes.latent, next((p for p in _module(part).parameters()), torch.zeros(()))
    depends = isinstance(part, Prior) and (part.conditional or part.pseudo_inputs is not None)
    rows = ROWS if isinstance(part, Prior) and part.conditional else 1
    loc = torch.sin(torch.arange(2 * rows * d, dtype=like.dtype)).reshape(2, rows, d)
    flat = loc.new_full((2, rows), 0.5).log()
    given = Mixture(sizes.family, loc, torch.ones_like(loc), flat) if depends else None
    z = torch.linspace(-1, 1, 2 * ROWS * d, dtype=like.dtype).reshape(2, ROWS, d)
    watched = _Watched(
        z=z,
        **({"loc of the posterior": loc, "log_weight of the posterior": flat} if given else {}),
    )
    with evaluation(_module(part)), torch.random.fork_rng(devices=[]):
        found = part.forward(given)
        _finite(found.log_prob(z), (2, ROWS), "log_prob of z (2, 3, d)")
        if rows == 1:
            drawn = found.sample(ROWS)[0] if isinstance(found, Mixture) else found.sample((ROWS,))
            _finite(drawn, (ROWS, d), "sample of 3")
    watched.check("forward or log_prob")


@torch.no_grad()
def likelihood(part: Likelihood, shape: tuple[int, ...]) -> None:
    """Raises Fault unless densities are elementwise and finite, and means and draws have the shape of x."""
    full = (*shape, part.params) if part.params > 1 else shape
    dtype = next((p.dtype for p in _module(part).parameters()), torch.get_default_dtype())
    out = (
        torch.linspace(-1, 1, 2, dtype=dtype)
        .reshape(2, *[1] * (1 + len(full)))
        .expand(2, ROWS, *full)
        .clone()
    )
    x = next(support(part, (ROWS, *shape), dtype, torch.Generator().manual_seed(0)), None)
    valid = x is not None
    x = out.new_zeros(ROWS, *shape) if x is None else x
    watched = _Watched(out=out, x=x)
    with evaluation(_module(part)):
        log_prob = part.log_prob(out, x, Context())
        each = (2, ROWS, *(shape[:-1] if part.class_axis else shape))
        (_finite if valid else _shaped)(log_prob, each, "log_prob")
        _finite(part.mean(out), (2, ROWS, *shape), "mean")
        _finite(part.sample(out, torch.Generator().manual_seed(0)), (2, ROWS, *shape), "sample")
    watched.check("log_prob, mean or sample")


def support(
    part: Likelihood, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Iterator[Tensor]:
    """Normal, uniform, count and one-hot values of that shape, those that a likelihood takes."""
    normal, uniform = (
        make(shape, dtype=dtype, generator=generator) for make in (torch.randn, torch.rand)
    )
    classes = torch.randint(shape[-1], shape[:-1], generator=generator)
    counts = torch.randint(5, shape, generator=generator).to(dtype)
    for x in (normal, uniform, counts, functional.one_hot(classes, shape[-1]).to(dtype)):
        if not bool(part.out_of_support(x).any()):
            yield x


@torch.no_grad()
def network(part: Network, seen: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Raises Fault unless encoder (from rows of shape `seen`) and decoder (to `shape`) give the right shape."""
    for what, before, after in (("encoder", seen, (5,)), ("decoder", (5,), shape)):
        with torch.random.fork_rng(devices=[]):
            made = part.encoder(seen, 5) if what == "encoder" else part.decoder(5, shape)
        rows = (
            torch.linspace(-1, 1, ROWS).reshape(-1, *[1] * len(before)).expand(-1, *before).clone()
        )
        watched = _Watched(rows=rows)
        with evaluation(made):
            _finite(on_rows(made, rows), (ROWS, *after), f"rows of its {what}")
        watched.check(what)


@torch.no_grad()
def family(part: Family) -> None:
    """Raises Fault unless scales are positive, and noise and densities have the shape that was asked for."""
    raw = torch.linspace(-3, 3, 6).reshape(ROWS, 2)
    watched = _Watched(raw=raw)
    if bool((_finite(part.scale(raw), (ROWS, 2), "scale of raw (3, 2)") <= 0).any()):
        raise Fault("finite", "gave a scale of 0 or less; expected positive numbers")
    generator = torch.Generator().manual_seed(0)
    eps = part.noise((ROWS, 2), dtype=raw.dtype, device=raw.device, generator=generator)
    _finite(
        part.log_density(_finite(eps, (ROWS, 2), "noise")), (ROWS, 2), "log_density of eps (3, 2)"
    )
    watched.check("scale")
