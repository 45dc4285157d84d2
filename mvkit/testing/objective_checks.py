"""Checks of objectives: means over rows, the weight of the KL, and bounds that are bounds.

Axes: b rows, f elements of all modalities.
"""

from __future__ import annotations

import warnings
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from mvkit.core.batch import Batch
from mvkit.core.modality import Modality
from mvkit.core.noise import seeded
from mvkit.errors import SpecError
from mvkit.models.model import Model
from mvkit.models.part_checks import Fault, expect
from mvkit.parts.likelihoods import Normal
from mvkit.testing import model_parts, tiny_models
from mvkit.testing.model_parts import Checks
from mvkit.testing.tiny_models import NAMES, loss_and_gradients

WIDTHS = {"a": 3, "b": 2, "c": 4}
SCALE = 0.8  # of the noise of linear-Gaussian rows
COPIES = 1000  # of each row, whose draws are averaged
DEVIATIONS = 5.0  # standard errors; seeds are fixed


def averaged(kind: str, part: Any) -> None:
    """The loss of a batch is the mean of the losses of its rows."""
    if part.couples_rows:
        return
    for setting, model in model_parts.models(kind, part):
        if setting:
            continue  # components that are drawn depend on the rows beside
        batch = model_parts.rows(model)
        loss = loss_and_gradients(model, batch)[0].loss.detach()
        losses = []
        for i in range(len(batch)):
            losses.append(loss_and_gradients(model, batch.take([i]), ids=[i])[0].loss.detach())
        mean = torch.stack(losses).mean()
        expect(
            torch.allclose(loss, mean, rtol=1e-8, atol=1e-10),
            f"returned the loss {float(loss):.6g} of {len(batch)} rows, of which each alone has "
            f"{float(mean):.6g} on average; expected that mean; end with mvkit.core.finish",
        )


def kl_weight(kind: str, part: Any) -> None:
    """Another `kl_weight`, which ramps change, changes the loss."""
    names = {attribute.name for attribute in attrs.fields(type(part))}
    expect(
        "kl_weight" in names,
        "has no option kl_weight; expected one that multiplies every KL, for ramps to act on",
    )
    heavier = attrs.evolve(part, kl_weight=part.kl_weight + 1.0)
    same = []
    for _, model in model_parts.models(kind, part):
        batch = model_parts.rows(model)
        loss = loss_and_gradients(model, batch)[0].loss.detach()
        other = loss_and_gradients(model, batch, objective=heavier)[0].loss.detach()
        if not torch.allclose(loss, other, rtol=1e-9, atol=0.0):
            return  # beside some parts there may be nothing that is weighed
        same.append(f"{float(loss):.6g}")
    raise Fault(
        f"returned the same losses, {', '.join(same)}, whatever its kl_weight is; expected KLs "
        "times self.kl_weight (ramps change a copy of the objective, not the model's own)"
    )


@torch.no_grad()
def bound(kind: str, part: Any) -> None:
    """What is reported as `bound` is none above log p(x_O), which linear-Gaussian rows tell."""
    for aggregator in ("poe", "moe"):
        model = _linear_gaussian(part, aggregator)
        if model is None:
            continue
        rows, log_px = _rows()
        if "bound" not in model.loss(rows.take([0]), generator=seeded(1)).metrics:
            continue  # which many rows would take long to tell, where they are coupled
        loss = model.loss(rows, generator=seeded(1))
        by_row = loss.bound.reshape(COPIES, -1)
        counted = ~by_row.isnan().any(0)
        mean = by_row.mean(0)
        error = by_row.std(0) / COPIES**0.5
        above = counted & (mean > log_px + DEVIATIONS * error + 1e-6)
        if above.any():
            raise Fault(
                f"reports a bound of {float(mean[above][0]):.6g} on linear-Gaussian rows whose "
                f"log p(x) is {float(log_px[above][0]):.6g}; expected none above it; report it as "
                "'surrogate_bound' if it bounds something else"
            )


@attrs.frozen(eq=False)
class Decoding:
    """What a linear-Gaussian modality is: x = weight z + bias and noise.

    Args:
        weight: (f, 1).
        bias: (f,).
    """

    weight: Tensor
    bias: Tensor

    @property
    def posterior(self) -> tuple[Tensor, Tensor]:
        """Weights (2, f) and biases (2,) that encode x as means and log-variances of z.

        They are those given x alone and a flat prior: products with the prior are exact.
        """
        precision = self.weight.square().sum() / SCALE**2
        reader = self.weight.T / (SCALE**2 * precision)
        log_variance = -precision.log().reshape(1)
        weight = torch.cat([reader, torch.zeros_like(reader)])
        return weight, torch.cat([-reader @ self.bias, log_variance])


def _decodings() -> dict[str, Decoding]:
    generator = seeded(0)
    decodings = {}
    for name, width in WIDTHS.items():
        weight = torch.randn(width, 1, generator=generator, dtype=torch.float64)
        bias = torch.randn(width, generator=generator, dtype=torch.float64)
        decodings[name] = Decoding(weight, bias)
    return decodings


def _linear_gaussian(part: Any, aggregator: str) -> Model | None:
    """A linear-Gaussian model whose experts are exact; None if the objective is refused."""
    modalities = {}
    for name, decoding in _decodings().items():
        width = WIDTHS[name]
        encoder = _linear(*decoding.posterior)
        decoder = _linear(decoding.weight, decoding.bias)
        likelihood = Normal(scale=SCALE)
        modalities[name] = Modality((width,), likelihood, encoder=encoder, decoder=decoder)
    options = {"aggregator": aggregator, "objective": part}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*unimodal encoders")
            return Model(modalities, latent_dim=1, **options, seed=0).double()
    except SpecError:
        return None


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
    return linear


def _rows() -> tuple[Batch, Tensor]:
    """Copies of a row for each pattern of gaps, and their log p(x_O), (patterns,)."""
    masks = torch.tensor(tiny_models.patterns(len(NAMES)))
    generator = seeded(2)
    data = {}
    for name, width in WIDTHS.items():
        data[name] = torch.randn(len(masks), width, generator=generator)
    log_px = []
    for i, pattern in enumerate(masks.tolist()):
        row = {}
        for name, shown in zip(NAMES, pattern, strict=True):
            if shown:
                row[name] = data[name][i].double()
        log_px.append(_log_density(row))
    copies = {name: x.repeat(COPIES, 1).double() for name, x in data.items()}
    return Batch(copies, masks.repeat(COPIES, 1)), torch.stack(log_px)


def _log_density(row: dict[str, Tensor]) -> Tensor:
    """Log p(x_O) of the modalities of a row, (f,) each."""
    decodings = _decodings()
    weight = torch.cat([decodings[name].weight[:, 0] for name in row])
    bias = torch.cat([decodings[name].bias for name in row])
    covariance = torch.outer(weight, weight) + SCALE**2 * torch.eye(len(weight))
    law = torch.distributions.MultivariateNormal(bias, covariance)
    log_px: Tensor = law.log_prob(torch.cat(list(row.values())))
    return log_px


CHECKS: dict[str, Checks] = {
    "objective": {"averaged": averaged, "kl_weight": kl_weight, "bound": bound}
}
