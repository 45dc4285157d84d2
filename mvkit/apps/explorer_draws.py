"""What a model generates for the explorer: draws of all modalities, and latents that move.

Axes: n draws, b rows (one), d latent, p private latent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.apps.explorer_requests import Asked
from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.cells import cells_of, only_cells
from mvkit.core.given import conform_given
from mvkit.core.noise import Generator
from mvkit.core.row_picks import indices_of
from mvkit.errors import RequestError, suggest
from mvkit.models.asked_rows import stated_covariates
from mvkit.models.inference import ConditioningSets
from mvkit.models.multimodal import MultimodalModel
from mvkit.models.sampler_requests import fitted_sampler
from mvkit.models.stack import Stack
from mvkit.parts.conditional_samplers import ConditionalSampler

DRAWS = 199  # so that intervals of 50, 80, 90 and 95 % end at a draw
SHOWN = 2  # draws that are shown
Tensors = dict[str, Tensor]
Latent = tuple[Tensor, Tensors]  # z (d), and private latents {name: (p)}


@attrs.frozen(eq=False)
class Draws:
    """What was drawn of a row, in the model's units.

    Args:
        means: of the modalities at draws of the latents, {name: (n, 1, *shape)}.
        samples: draws of the modalities, likewise.
        shown: a few draws as they are shown, likewise.
    """

    means: Tensors
    samples: Tensors
    shown: Tensors


def without_features(row: Batch, hidden: Mapping[str, Iterable[int]]) -> Batch:
    """A conformed row of which some cells are not observed any more.

    Args:
        row: with its modalities.
        hidden: places of the cells of a row, by modality.
    """
    if not any(hidden.values()):
        return row
    cells = {name: cells_of(row, name).clone() for name in row.data}
    for name, places in hidden.items():
        for place in places:
            cells[name].view(-1)[place] = False
    kept = only_cells(row, cells)
    schema = row.schema
    assert schema is not None
    given = conform_given(schema, kept.data, kept.observed, row.extra)
    return attrs.evolve(kept, **given, **indices_of(kept.observed))


def draws_from_row(
    model: MultimodalModel, row: Batch, given: tuple[str, ...], asked: Asked
) -> Draws:
    """Draws given what a conformed row has, by the posterior or a sampler that knows it."""
    options: dict[str, Any] = {
        "given": given,
        "empty": "prior",
        "covariates": asked.covariates or None,
        "sampler": asked.sampler,
        "refine": refiners_of(model, asked),
        "units": "model",
        "generator": seeded(model, asked),
    }
    # as `mvkit.impute` does it
    latent: Literal["draw", "mean"] = "draw" if model.missingness is None else "mean"
    means = model.translate(row, n=DRAWS, latent=latent, **options)
    samples = model.translate(row, n=DRAWS, sample=True, **options)
    shown = model.translate(row, n=SHOWN, **options)
    return Draws(means, samples, shown)


def draws_of_new_rows(model: MultimodalModel, row: Batch, asked: Asked) -> Draws:
    """Draws of new rows with a row's covariates, from a cluster or by a sampler."""
    options: dict[str, Any] = {
        "cluster": asked.cluster,
        "covariates": covariates_of(row, asked),
        "sampler": asked.sampler,
        "refine": refiners_of(model, asked),
        "units": "model",
        "generator": seeded(model, asked),
    }
    means = _with_row(model.sample(DRAWS, **options))
    samples = _with_row(model.sample(DRAWS, sample=True, **options))
    shown = _with_row(model.sample(SHOWN, **options))
    return Draws(means, samples, shown)


def _with_row(values: Tensors) -> Tensors:
    """Values {name: (n, *shape)} as those of one row, {name: (n, 1, *shape)}."""
    return {name: rearrange(x, "n ... -> n 1 ...") for name, x in values.items()}


def asks_for_new_rows(model: MultimodalModel, asked: Asked) -> bool:
    """Whether what the row has does not count: a cluster, or a sampler that knows nothing of it.

    Raises:
        RequestError: a sampler that was not fitted.
    """
    if asked.cluster is not None:
        return True
    if asked.sampler is None:
        return False
    sampler = fitted_sampler(model, asked.sampler, "explore")
    return not isinstance(sampler, ConditionalSampler)


def centre_of_row(
    model: MultimodalModel, row: Batch, given: tuple[str, ...], asked: Asked
) -> Latent:
    """The mean of the latents given what a conformed row has."""
    if asked.sampler is None:
        z = model.encode(row, given, empty="prior")[0]
    else:
        sampler = model.conditional_sampler(asked.sampler, "explore")
        sets = ConditioningSets([given], "prior", inference=True, generator=seeded(model, asked))

        def mean(rows: Batch) -> Tensor:
            return model.sampled_given(rows, sets, sampler).mean(sets.generator)[0]

        z = model.in_blocks(mean, row)[0]
    if isinstance(model, Stack):
        return z, {}  # what is private there follows from z
    private = model.private(row.hide(given))
    return z, {name: w[0] for name, w in private.items() if model.modalities[name].private_dim}


def centre_of_new_rows(model: MultimodalModel, row: Batch, asked: Asked) -> Latent:
    """The mean of the latents of new rows, from a cluster or by a sampler."""
    drawn = model.sample(
        DRAWS,
        cluster=asked.cluster,
        covariates=covariates_of(row, asked),
        sampler=asked.sampler,
        latents=True,
        generator=seeded(model, asked),
    )
    return drawn[1].z.mean(0), {}


def moved(
    model: MultimodalModel, row: Batch, given: tuple[str, ...], latent: Latent, asked: Asked
) -> Tensors:
    """Means of all modalities at a latent, and after one of its dimensions has moved, in the
    model's units, {name: (2, *shape)}.

    Raises:
        RequestError: a dimension that there is not.
    """
    z, private = latent
    if asked.dim is None or asked.dim >= model.latent_dim:
        last = model.latent_dim - 1
        expected = f"one of 0 to {last}" if model.latent_dim else "none, since there are none"
        raise RequestError(f"explore: no latent dimension {asked.dim}; expected {expected}")
    there = z.clone()
    there[asked.dim] += asked.shift
    both = {name: torch.stack([w, w]) for name, w in private.items()}
    return model.decode(
        torch.stack([z, there]),
        both,
        covariates=covariates_of(row, asked),
        exposure=_exposures(row, given),
        units="model",
    )


def _exposures(row: Batch, given: tuple[str, ...]) -> dict[str, object]:
    """The exposures of what is given of a row, where they are known."""
    exposures: dict[str, object] = {}
    for name, exposure in row.hide(given).exposure.items():
        if bool(exposure.isfinite().all()):
            exposures[name] = float(exposure[0])
    return exposures


def covariates_of(row: Batch, asked: Asked) -> dict[str, object]:
    """The covariates that rows are generated with: stated ones, else those of the row."""
    return {**stated_covariates(row), **asked.covariates}


def refiners_of(model: MultimodalModel, asked: Asked) -> tuple[str, ...]:
    """The modalities that refiners draw, if they are asked for.

    Raises:
        RequestError: there are none.
    """
    if asked.refine and not model.refiners:
        raise RequestError(
            "explore: no refiner was trained; expected refine: false; train one with "
            "mvkit.fit_refiner"
        )
    return tuple(model.refiners) if asked.refine else ()


def seeded(model: MultimodalModel, asked: Asked) -> Generator:
    """The source of randomness of a request."""
    return noise.seeded(asked.seed, model.like.device)


def check_names(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises RequestError for a name that is not known."""
    known = list(known)
    for name in names:
        if name not in known:
            raise RequestError(f"explore: no {what} {name!r}; {suggest(name, known)}")
