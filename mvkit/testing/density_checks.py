"""Checks of likelihoods, families and priors as laws: densities of integral 1, draws that follow.

Axes: r settings of a decoder, n nodes, rows or draws, d latent.
"""

from __future__ import annotations

from typing import Any, cast

import attrs
import torch
from einops import rearrange
from torch import Tensor, nn

from mvkit.core.decoder import Decoder
from mvkit.core.family import Family
from mvkit.core.likelihood import Context, Likelihood, mean_of, sample_of
from mvkit.core.mixture import Mixture
from mvkit.core.modality import Modality, Sizes
from mvkit.core.noise import global_seed, kept_global, seeded
from mvkit.core.posterior import Posterior
from mvkit.errors import SpecError
from mvkit.models.model import Model
from mvkit.models.part_checks import expect
from mvkit.parts.priors import as_prior
from mvkit.registry.spec import as_part
from mvkit.testing import model_parts, tiny_models
from mvkit.testing.model_parts import Checks
from mvkit.testing.quadrature import Nodes, ends_of, nodes_between

SETTINGS = 4  # of a decoder's outputs
DRAWS = 20_000
SPREAD = 0.4  # of those outputs; steep densities at an end are beyond what numbers resolve
LARGEST_COUNT = 4_000
TOLERANCE = 3e-3  # of integrals: flows have spikes that nodes step over; constants are far beyond
DEVIATIONS = 6.0  # standard errors; seeds are fixed
FARTHEST = 2.5  # times 1/√n, of the shares of n draws: one in 100,000 by chance
EXPOSURE = 2.5


@attrs.frozen(eq=False)
class Law:
    """A live likelihood in a model, and outputs that it is tried at.

    Args:
        live: in evaluation mode, its parameters moved from where they start.
        out: (r, 1, *shape), with one more axis where it takes several numbers.
        exposure: of each row, or None.
    """

    live: Likelihood
    out: Tensor
    exposure: float | None

    def context(self, rows: int) -> Context:
        """What it is told of so many rows."""
        if self.exposure is None:
            return Context(generator=seeded(1))
        exposure = self.out.new_full((rows,), self.exposure)
        return Context(exposure=exposure, generator=seeded(1))

    def outs(self, rows: int) -> Tensor:
        """The outputs for so many rows, (r, n, …)."""
        return self.out.expand(len(self.out), rows, *self.out.shape[2:])

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-densities of rows x (n, *shape), (r, n, *shape)."""
        return self.live.log_prob(self.outs(len(x)), x, self.context(len(x)))

    def draws(self, n: int) -> Tensor:
        """Draws, (r, n, *shape)."""
        return sample_of(self.live, self.outs(n), self.context(n))

    def mean(self) -> Tensor:
        """Means, (r, *shape)."""
        return mean_of(self.live, self.out, self.context(1))[:, 0]


def _laws(part: Any) -> list[Law]:
    """The likelihood in a modality without an exposure, and with one if it takes one."""
    options = model_parts.first_options("likelihood", part)
    laws = []
    for exposure in (None, "years"):
        modality = Modality(**{"shape": (3,), **options, "exposure": exposure})
        try:
            model = Model({"a": modality}, latent_dim=2, seed=0).double().eval()
        except SpecError:
            continue  # it takes none
        decoder = cast(Decoder, model.decoders["a"])
        if isinstance(decoder.likelihood, nn.Module):
            _move(decoder.likelihood)
        out = SPREAD * _normal((SETTINGS, 1, *decoder.shape))
        laws.append(Law(decoder.likelihood, out, None if exposure is None else EXPOSURE))
    return laws


def _normal(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=seeded(0), dtype=torch.float64)


@torch.no_grad()
def _move(module: nn.Module) -> None:
    """Moves parameters a little from where they start, where factors of 1 hide mistakes."""
    generator = seeded(2)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.add_(0.3 * noise.to(parameter))


@torch.no_grad()
def normalised_likelihood(kind: str, part: Any) -> None:
    """Probabilities of all that a row can be sum to one; densities integrate to one."""
    for law in _laws(part):
        shape = tuple(law.mean().shape[1:])
        outcomes = law.live.outcomes(shape)
        if outcomes is not None:
            log_p = law.log_prob(outcomes.to(law.out)).flatten(2).sum(-1)
            _check_total(log_p.exp().sum(-1), "probabilities of its outcomes")
        elif law.live.class_axis:
            _check_classes(law, shape)
        else:
            draws = law.draws(100)
            if bool((draws == draws.round()).all()):
                _check_counts(law, shape)
            else:
                _check_line(law, draws)


def _check_classes(law: Law, shape: tuple[int, ...]) -> None:
    classes = torch.eye(shape[-1], dtype=law.out.dtype)
    places = [1] * (len(shape) - 1)
    x = classes.reshape(shape[-1], *places, shape[-1]).expand(shape[-1], *shape)
    _check_total(law.log_prob(x).exp().sum(1), "probabilities of its classes")


def _check_counts(law: Law, shape: tuple[int, ...]) -> None:
    numbers = torch.arange(-LARGEST_COUNT, LARGEST_COUNT + 1, dtype=law.out.dtype)
    x = numbers.reshape(-1, *[1] * len(shape)).expand(-1, *shape)
    x = x[~law.live.out_of_support(x).flatten(1).any(1)]
    _check_total(law.log_prob(x).exp().sum(1), "probabilities of its whole numbers")


def _check_line(law: Law, draws: Tensor) -> None:
    """Elements are integrated one by one, each around its own draws."""
    shape = draws.shape[2:]

    def allowed(number: float) -> bool:
        x = law.out.new_full((1, *shape), number)
        return not bool(law.live.out_of_support(x).any())

    low, high = ends_of(allowed, float(draws.flatten()[0]))
    for setting, values in enumerate(draws.flatten(2).unbind(0)):
        for element, column in enumerate(values.unbind(1)):
            nodes = nodes_between(low, high, float(column.median()), _width(column, low))
            x = nodes.point.reshape(-1, *[1] * len(shape)).expand(-1, *shape)
            inside = ~law.live.out_of_support(x).flatten(1).any(1)  # ends may be rounded out
            nodes = Nodes(nodes.point[inside], nodes.weight[inside])
            log_p = law.log_prob(x[inside])[setting].flatten(1)[:, element]
            _check_total(nodes.total(log_p), "integral of its density")


def _width(draws: Tensor, low: float) -> float:
    """Where most of the draws lie: around their median, or above the lower end."""
    if low > -torch.inf:
        return float((draws - low).median().clamp(min=1e-6))
    quartiles = draws.quantile(torch.tensor([0.25, 0.75], dtype=draws.dtype))
    return float((quartiles[1] - quartiles[0]).clamp(min=1e-6))


def _check_total(total: Tensor, what: str) -> None:
    worst = total.flatten()[(total.flatten() - 1).abs().argmax()]
    expect(
        bool(torch.isfinite(total).all()) and bool((total - 1).abs().max() < TOLERANCE),
        f"has {float(worst):.6g} as the {what}; expected 1; keep all constants of the density",
    )


def sums_of_rows(kind: str, part: Any) -> None:
    """`log_prob_sum` is the sum of `log_prob` over the elements observed, with its gradient."""
    for law in _laws(part):
        x = law.draws(SETTINGS)[0]
        out = law.outs(len(x)).detach().clone().requires_grad_()
        known = law.context(len(x))
        axes = x.ndim - law.live.class_axis
        elements = torch.ones(x.shape[:axes], dtype=torch.bool)
        elements.flatten()[::3] = False
        for observed in (None, elements):
            context = attrs.evolve(known, elements=observed)
            terms = law.live.log_prob(out, x, context)
            if observed is not None:
                terms = torch.where(observed, terms, 0.0)
            expected = terms.reshape(len(out), len(x), -1).sum(-1)
            sums = law.live.log_prob_sum(out, x, context)
            _check_equal(sums, expected, "log_prob_sum")
            slopes = torch.autograd.grad(sums.sum(), out, retain_graph=True)[0]
            (wanted,) = torch.autograd.grad(expected.sum(), out)
            _check_equal(slopes, wanted, "the slope of log_prob_sum")


def _check_equal(values: Tensor, expected: Tensor, what: str) -> None:
    expect(
        values.shape == expected.shape,
        f"has {what} of shape {tuple(values.shape)}; expected {tuple(expected.shape)}",
    )
    values, expected = values.detach(), expected.detach()
    off = ~torch.isclose(values, expected, 1e-9, 1e-9)
    expect(
        not bool(off.any()),
        f"has {_first(values, off)} as {what}; expected {_first(expected, off)}, that of the sum "
        "of log_prob over the observed elements",
    )


@torch.no_grad()
def mean_of_draws(kind: str, part: Any) -> None:
    """The mean is that of the draws."""
    for law in _laws(part):
        draws = law.draws(DRAWS)
        mean = law.mean()
        error = draws.std(1) / DRAWS**0.5
        average = draws.mean(1)
        off = (average - mean).abs() > DEVIATIONS * error + TOLERANCE * mean.abs()
        expect(
            not bool(off.any()),
            f"has the mean {_first(mean, off)}, and draws whose mean is {_first(average, off)}; "
            "expected one and the same",
        )


def _first(values: Tensor, where: Tensor) -> str:
    picked = values[where]
    return f"{float(picked.flatten()[0]):.4g}" if picked.numel() else "none"


@torch.no_grad()
def normalised_family(kind: str, part: Family) -> None:
    """The standard density, and that of a draw, integrate to one; noise follows the former."""
    nodes = nodes_between(-torch.inf, torch.inf)
    standard = part.log_density(nodes.point)
    _check_total(nodes.total(standard), "integral of its log_density")
    z = rearrange(nodes.point, "n -> n 1")
    loc = z.new_full((1,), 0.5)
    scale = z.new_full((1,), 1.7)
    _check_total(nodes.total(part.log_prob(z, loc, scale)), "integral of its log_prob")


@torch.no_grad()
def draws_of_family(kind: str, part: Family) -> None:
    """Noise follows the standard density."""
    nodes = nodes_between(-torch.inf, torch.inf)
    like = nodes.point
    generator = seeded(3)
    eps = part.noise((DRAWS,), dtype=like.dtype, device=like.device, generator=generator)
    _check_draws(nodes, eps, part.log_density(nodes.point), "noise")


def _check_draws(nodes: Nodes, draws: Tensor, log_density: Tensor, what: str) -> None:
    distance = nodes.distance(draws, log_density)
    limit = FARTHEST / len(draws) ** 0.5
    expect(
        distance < limit,
        f"draws {what} elsewhere than its density says: their shares below a point differ by "
        f"{distance:.3f}; expected at most {limit:.3f}",
    )


@attrs.frozen(eq=False)
class Line:
    """A prior in one dimension.

    Args:
        density: what it returns.
        nodes: around its draws, or the posterior's where it has none.
        conditional: whether it depends on rows.
    """

    density: Posterior
    nodes: Nodes
    conditional: bool

    def log_prob(self) -> Tensor:
        """At the nodes, (n,)."""
        return self.density.log_prob(rearrange(self.nodes.point, "n -> n 1 1"))[:, 0]


def _line(part: Any) -> Line | None:
    """A prior of one latent dimension; None of those that need more."""
    around = attrs.evolve(tiny_models.surroundings(), latent_dim=1)
    specs = {"family": "normal", **around.of_model}
    sizes = Sizes(1, as_part("family", specs["family"]), tiny_models.modalities(1), part)
    try:
        with global_seed(0):
            live = part.build(sizes)
    except SpecError:
        return None
    if isinstance(live, nn.Module):
        live = live.double().eval()
        _move(live)
    prior = as_prior(live)
    loc = torch.tensor([[[0.7]], [[-1.2]]], dtype=torch.float64)
    posterior = Mixture(sizes.family, loc, 0.5 + loc.abs(), loc.new_full((2, 1), 0.5).log())
    depends = prior.conditional or prior.pseudo_inputs is not None
    density = prior.density(posterior if depends else None)
    centre, width = 0.0, 2.0
    if not prior.conditional:
        with kept_global():
            draws = density.sample(1000, generator=seeded(4))[0].flatten().double()
        centre, width = float(draws.median()), max(_width(draws, -torch.inf), 1e-3)
    nodes = nodes_between(-torch.inf, torch.inf, centre, width)
    return Line(density, nodes, prior.conditional)


@torch.no_grad()
def normalised_prior(kind: str, part: Any) -> None:
    """The density of one latent dimension integrates to one."""
    line = _line(part)
    if line is not None:
        _check_total(line.nodes.total(line.log_prob()), "integral of its density")


@torch.no_grad()
def draws_of_prior(kind: str, part: Any) -> None:
    """Draws of one latent dimension follow the density."""
    line = _line(part)
    if line is None or line.conditional:
        return
    with kept_global():
        draws = line.density.sample(DRAWS, generator=seeded(5))[0].flatten().double()
    _check_draws(line.nodes, draws, line.log_prob(), "latents")


CHECKS: dict[str, Checks] = {
    "likelihood": {
        "normalised": normalised_likelihood,
        "sums": sums_of_rows,
        "mean": mean_of_draws,
    },
    "family": {"normalised": normalised_family, "draws": draws_of_family},
    "prior": {"normalised": normalised_prior, "draws": draws_of_prior},
}
