"""Checks of recipes: functions from modalities to a model.

Axes: b rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import attrs
import torch

from mvkit.core.batch import Batch
from mvkit.core.noise import global_seed
from mvkit.models.multimodal import MultimodalModel
from mvkit.models.part_checks import Fault, expect
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
            torch.equal(weights, model.state_dict()[name]),
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


def _made(recipe: Recipe) -> MultimodalModel:
    modalities = tiny_models.modalities()
    d = tiny_models.surroundings().latent_dim
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*unimodal encoders")
        model = recipe(modalities, latent_dim=d, seed=0)
    if not isinstance(model, MultimodalModel):
        raise Fault(f"returned a {type(model).__name__}; expected a Model or a Stack")
    names = tuple(model.names)
    expect(
        names == tuple(modalities) and model.latent_dim == d,
        f"returned a model of {names} with latent_dim={model.latent_dim}; expected those that it "
        f"was given, {tuple(modalities)} and latent_dim={d}",
    )
    return model


def _rows(model: MultimodalModel) -> Batch:
    """Incomplete rows, with values of the covariates that the model has."""
    batch = tiny_models.rows(ROWS)
    conditions = model.decoding.conditions
    if conditions is None:
        return batch
    given = {}
    for name, covariate in conditions.covariates.items():
        values = covariate.levels or (-1.0, 1.0)
        given[name] = [values[i % len(values)] for i in range(ROWS)]
    return attrs.evolve(batch, extra=given)


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
