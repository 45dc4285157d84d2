"""Checks of what parts make of covariates, exposures and weights of rows.

Axes: b rows.
"""

from __future__ import annotations

from typing import Any, cast

import attrs
import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.covariates import Covariate
from mvkit.core.decoder import Decoder
from mvkit.core.likelihood import TOTAL, Context, mean_of
from mvkit.core.modality import Modality
from mvkit.errors import RequestError, SpecError
from mvkit.models.model import Model
from mvkit.models.part_checks import expect
from mvkit.testing import model_parts
from mvkit.testing.tiny_models import loss_and_gradients

SITES = ("A", "B")
INTO_PRIOR = Covariate(SITES, into=("decoders", "encoders", "prior"))
WEIGHTS = (0.5, 2.0, 0.0, 1.0, 3.0, 0.25, 1.0, 0.25)
ORDER = [3, 1, 7, 0, 5, 2, 6, 4]


def covariates(kind: str, part: object) -> None:
    """Networks look at covariates, of the row alone; so does a prior that takes them."""
    try:
        model = _conditional(kind, part)
    except SpecError:
        return  # refused with a reason
    batch = model_parts.rows(model)
    codes = []
    for site in SITES:
        given = attrs.evolve(batch, extra={"site": [site] * len(batch)})
        codes.append(model.encode(given))
    if kind == "network":
        decoded = [
            model.decode(torch.zeros(1, model.latent_dim), covariates={"site": site})["a"]
            for site in SITES
        ]
        expect(
            not torch.equal(codes[0], codes[1]) and not torch.equal(decoded[0], decoded[1]),
            "returned the same for two levels of a covariate; expected modules that use the "
            "context that they are given",
        )
    mixed = attrs.evolve(batch, extra={"site": [SITES[i % 2] for i in range(len(batch))]})
    bound = loss_and_gradients(model, mixed)[0].bound
    permuted = loss_and_gradients(model, mixed.take(ORDER), ids=ORDER)[0].bound
    expect(
        torch.allclose(permuted, bound[ORDER], rtol=1e-9, atol=1e-12, equal_nan=True),
        "returned other bounds when rows and their covariates were permuted; expected those of "
        "each row",
    )


def _conditional(kind: str, part: object) -> Model:
    """A tiny model with the part and a covariate, in the prior too if that is the part."""
    covariate = INTO_PRIOR if kind == "prior" else Covariate(SITES)
    setting = {"covariates": {"site": covariate}}
    model = model_parts.tiny_model(kind, part, setting)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "shift" in name:  # of priors, which begin at 0
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def exposures(kind: str, part: Any) -> None:
    """A likelihood that takes an exposure expects twice as much of twice the exposure.

    If it shares out a total, outputs that are all larger by as much are the same shares.
    """
    for exposure in ("years", TOTAL):
        options = {**model_parts.first_options(kind, part), "exposure": exposure}
        try:
            modality = Modality(**{"shape": (3,), **options})
            model = Model({"a": modality}, latent_dim=2, seed=0).double()
        except SpecError:
            continue  # it takes none, or not of this kind
        decoder = cast(Decoder, model.decoders["a"])
        out = torch.randn(4, *decoder.shape, generator=torch.Generator().manual_seed(0)).double()
        once = torch.tensor([1.0, 3.0, 20.0, 400.0], dtype=torch.float64)
        means = [_means(decoder, out, exposure) for exposure in (once, 2 * once)]
        expect(
            torch.allclose(means[1], 2 * means[0], rtol=1e-6),
            f"expected {means[1].sum():.4g} of twice the exposure and {means[0].sum():.4g} of "
            "it; expected twice as much; use context.exposure",
        )
        if exposure != TOTAL:
            continue
        first = torch.zeros(decoder.likelihood.params).double()
        first[0] = 1.0
        larger = out + (first if decoder.likelihood.params > 1 else 1.0)
        expect(
            torch.allclose(_means(decoder, larger, once), means[0], rtol=1e-6),
            "expected other counts of a total when all outputs were larger by 1; expected shares "
            "of the total, a softmax over the elements; leave takes_total out if these are rates",
        )


def _means(decoder: Decoder, out: Tensor, exposure: Tensor) -> Tensor:
    return mean_of(decoder.likelihood, out, Context(exposure=exposure))


def weights(kind: str, part: object) -> None:
    """The loss of rows with weights is Σ w_i ℓ_i / b, ℓ_i the loss of row i alone.

    Where rows are coupled, ℓ_i is not known: the loss is then linear in the weights.
    """
    for setting, model in model_parts.models(kind, part):
        if setting:
            continue  # components that are drawn depend on the rows beside
        batch = model_parts.rows(model)
        weighted = attrs.evolve(batch, extra={"row_weight": list(WEIGHTS[: len(batch)])})
        try:
            loss = loss_and_gradients(model, weighted)[0].loss
        except RequestError:
            return  # it says that it does not look at weights
        if model.objective.couples_rows:
            _check_linear(model, batch)
            continue
        total = torch.zeros_like(loss)
        for i, weight in enumerate(WEIGHTS[: len(batch)]):
            total = total + weight * _alone(model, batch, i) / len(batch)
        expect(
            torch.allclose(loss, total, rtol=1e-8, atol=1e-10),
            f"returned the loss {float(loss.detach()):.6g} of rows with weights; expected "
            f"{float(total):.6g}, the weighted sum of the rows' losses by the number of rows; "
            "hand batch.row_weight to mvkit.core.loss.finish",
        )


def _check_linear(model: Model, batch: Batch) -> None:
    """Raises Fault unless the loss of coupled rows is linear in their weights, and rows of weight
    0 are as if absent.
    """
    b = len(batch)
    first = [max(weight, 0.25) for weight in WEIGHTS[:b]]
    ones = _weighted_total(model, batch, [1.0] * b)
    unweighted = float(loss_and_gradients(model, batch)[0].loss.detach()) * b
    both = _weighted_total(model, batch, [1.0 + weight for weight in first])
    separate = ones + _weighted_total(model, batch, first)
    kept = [i for i in range(b) if WEIGHTS[i] > 0]
    zeros = _weighted_total(model, batch, list(WEIGHTS[:b]))
    absent = _weighted_total(model, batch, [WEIGHTS[i] for i in kept], kept)
    for total, expected, what in (
        (ones, unweighted, "weights of 1, which change nothing"),
        (both, separate, "the sum of two sets of weights"),
        (zeros, absent, "rows of weight 0, which are as if absent"),
    ):
        expect(
            abs(total - expected) <= 1e-8 * abs(expected) + 1e-10,
            f"returned the total {total:.6g} for {what}; expected {expected:.6g}; multiply each "
            "row's own term by its weight",
        )


def _weighted_total(
    model: Model, batch: Batch, weights: list[float], rows: list[int] | None = None
) -> float:
    """The loss of rows with weights, times their number; None: of all rows."""
    ids = list(range(len(batch))) if rows is None else rows
    weighted = attrs.evolve(batch.take(ids), extra={"row_weight": weights})
    return float(loss_and_gradients(model, weighted, ids=ids)[0].loss.detach()) * len(ids)


def _alone(model: Model, batch: Batch, i: int) -> Tensor:
    return loss_and_gradients(model, batch.take([i]), ids=[i])[0].loss.detach()


CHECKS: dict[str, model_parts.Checks] = {
    "network": {"covariates": covariates},
    "prior": {"covariates": covariates},
    "likelihood": {"exposures": exposures},
    "objective": {"weights": weights},
}
