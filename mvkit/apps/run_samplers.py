"""Samplers of a run file: `samplers` in [train], fitted after training and kept with the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mvkit.data.dataset import Rows
from mvkit.errors import SpecError
from mvkit.models.checkpoint import save
from mvkit.models.multimodal import MultimodalModel
from mvkit.models.samplers import fit_sampler
from mvkit.registry.spec import as_part
from mvkit.training.distributed import ProcessGroup

WHERE = "train.samplers"


def take_samplers(train: dict[str, Any]) -> list[Any]:
    """Takes the samplers out of a table [train]; returns their specs, in order.

    Raises:
        SpecError: no list of samplers, one that is not known or has wrong options, or a run of
            several models.
    """
    given = train.pop("samplers", [])
    if not isinstance(given, list):
        raise SpecError(
            f"got {given!r}; expected a list of samplers, by name or as tables, such as "
            "samplers = ['gmm']",
            WHERE,
        )
    if given and "seeds" in train:
        raise SpecError(
            "samplers are fitted to one model, and seeds= trains several; leave one of them out",
            WHERE,
        )
    specs = []
    for i, sampler in enumerate(given):
        try:
            specs.append(as_part("sampler", sampler))
        except SpecError as error:
            raise error.within(f"{WHERE}.{i}") from None
    return specs


def fit_samplers(
    model: MultimodalModel, data: Rows, specs: list[Any], seed: int, folder: Path
) -> None:
    """Fits samplers to the training rows, and writes the model with them into the run's folder.

    Every process fits them alike; the first one writes.
    """
    for spec in specs:
        fit_sampler(model, data, spec, seed=seed)
    if specs and ProcessGroup.current().first:
        save(model, folder / "model.safetensors")
