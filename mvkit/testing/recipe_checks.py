"""Checks of recipes: functions from modalities to a model.

Axes: b rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import attrs
import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.decoder import Decoder
from mvkit.core.noise import global_seed
from mvkit.models.model import Model
from mvkit.models.multimodal import MultimodalModel
from mvkit.models.part_checks import Fault, expect
from mvkit.models.stack import Stack
from mvkit.models.trial_values import supported_values
from mvkit.testing import tiny_models
from mvkit.testing.model_parts import Checks

ROWS = 14  # twice every pattern of gaps

Recipe = Callable[..., Any]


def contract(kind: str, recipe: Recipe) -> None:
    """It makes a model that trains on incomplete rows, and that loads without it."""
    before = torch.get_rng_state()
    model = _made(recipe)
    expect(
        torch.equal(before, torch.get_rng_state()),
        "drew from torch's global generator; expected weights from the `seed` that it is given",
    )
    with global_seed(1):
        twin = _made(recipe)
    for name, weights in twin.state_dict().items():
        expect(
            _same(weights, model.state_dict()[name]),
            f"drew {name} anew for the same seed; expected to hand `seed` to the model",
        )
    rows = _rows(model)
    loss = model.loss(rows).loss
    expect(
        bool(torch.isfinite(loss)) and loss.requires_grad,
        f"returned a model whose loss on incomplete rows is {float(loss.detach())}, or has no "
        "gradient; expected a finite loss that trains something",
    )
    _check_saved(model, rows)


def _same(weights: Tensor, others: Tensor) -> bool:
    """Whether tensors are equal, bit for bit; what training has yet to tell is NaN in both."""
    return bool(((weights == others) | (weights.isnan() & others.isnan())).all())


def _made(recipe: Recipe) -> MultimodalModel:
    modalities = tiny_models.modalities()
    d = tiny_models.surroundings().latent_dim
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*unimodal encoders")
        model = recipe(modalities, latent_dim=d, seed=0)
    if not isinstance(model, MultimodalModel):
        raise Fault(f"returned a {type(model).__name__}; expected a Model or a Stack")
    names = tuple(model.names)
    widths = {model.latent_dim}
    if not model.latent_dim:  # each modality has a latent of its own
        widths = {modality.private_dim for modality in model.modalities.values()}
    expect(
        names == tuple(modalities) and widths == {d},
        f"returned a model of {names} with latent_dim={model.latent_dim}; expected those that it "
        f"was given, {tuple(modalities)} and latent_dim={d}",
    )
    return model


def _rows(model: MultimodalModel) -> Batch:
    """Incomplete rows of values that the model's likelihoods take, with its covariates."""
    batch = tiny_models.rows(ROWS)
    batch = attrs.evolve(
        batch, data={name: _values(model, name, x) for name, x in batch.data.items()}
    )
    conditions = model.decoding.conditions
    if conditions is None:
        return batch
    given = {}
    for name, covariate in conditions.covariates.items():
        values = covariate.levels or (-1.0, 1.0)
        given[name] = [values[i % len(values)] for i in range(ROWS)]
    return attrs.evolve(batch, extra=given)


def _values(model: MultimodalModel, name: str, x: Tensor) -> Tensor:
    """The values of a modality (b, *shape), or others, where its likelihood refuses these."""
    bottom = model.bottom if isinstance(model, Stack) else cast(Model, model)
    likelihood = cast(Decoder, bottom.decoders[name]).likelihood
    if not likelihood.out_of_support(x).any():
        return x
    values = supported_values(likelihood, tuple(x.shape), x.dtype)
    if values is None:
        raise Fault(
            f"gave {name!r} a likelihood that takes none of normal, uniform, count and one-hot "
            "values; expected one that does"
        )
    return values


def _check_saved(model: MultimodalModel, rows: Batch) -> None:
    """A file of the model needs its parts, and nothing of the recipe."""
    again = tiny_models.reloaded(model)
    expect(
        again.header() == model.header(),
        f"made a model that was loaded as {again.header()}; expected {model.header()}",
    )
    expect(
        torch.equal(model.eval().encode(rows), again.encode(rows)),
        "made a model that returned other codes after save and load; expected the same bits",
    )


CHECKS: dict[str, Checks] = {"recipe": {"contract": contract}}
