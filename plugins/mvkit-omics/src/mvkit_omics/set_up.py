"""How the cells of an AnnData or MuData are read, noted in its `uns` for the façade."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mvkit import MultimodalDataset, RequestError
from mvkit.errors import suggest
from mvkit_omics.reading import from_anndata, from_mudata
from mvkit_omics.roles import PEAKS, PROTEINS

NOTED = "mvkit_setup"  # in `uns`
Setup = Mapping[str, Any]
DOORS: dict[str, Any] = {"AnnData": from_anndata, "MuData": from_mudata}


def note(data: Any, batch: str | None, label: str | None, reading: Mapping[str, Any]) -> None:
    """Notes how cells are read: by columns of batches and labels, and options of the door.

    Raises:
        RequestError: options that JSON cannot hold.
    """
    setup = {"batch_key": batch, "labels_key": label, "reading": dict(reading)}
    try:
        data.uns[NOTED] = json.dumps(setup)
    except TypeError as error:
        raise RequestError(
            f"MVKIT: {error}; expected options that a file can hold: names, numbers and dicts of "
            "them; write a Modality as a dict of its options"
        ) from None


def setup_of(data: Any) -> Setup:
    """How an object's cells are read.

    Raises:
        RequestError: it was not set up.
    """
    kind = type(data).__name__
    if kind not in DOORS:
        raise RequestError(f"MVKIT: got {kind}; expected an AnnData or a MuData")
    if NOTED not in data.uns:
        raise RequestError(
            f"MVKIT: this {kind} was not set up; expected MVKIT.setup_{kind.lower()}(…, "
            "batch_key=…) before MVKIT(…) and train()"
        )
    setup: dict[str, Any] = json.loads(data.uns[NOTED])
    return setup


def read(data: Any, setup: Setup, **options: Any) -> MultimodalDataset:
    """The cells of an object; options as of its door, such as `like`."""
    kind = type(data).__name__
    if kind not in DOORS:
        raise RequestError(f"MVKIT: got {kind}; expected an AnnData or a MuData")
    batch = setup["batch_key"]
    options |= {**setup["reading"], "label": setup["labels_key"]}
    options["covariates"] = [] if batch is None else [batch]
    dataset: MultimodalDataset = DOORS[kind](data, **options)
    return dataset


def recipe_for(modalities: Iterable[str]) -> str:
    """The recipe of modalities by their names."""
    names = {name.lower() for name in modalities}
    if names & set(PROTEINS):
        return "totalvi"
    return "multivi" if names & set(PEAKS) else "scvi"


def obs_column(ids: Any, data: Any, name: str) -> Any:
    """A column of an object's `obs`, in the order of ids, (b,); None where there is no value.

    Raises:
        RequestError: no such column.
    """
    if name not in data.obs:
        remedy = suggest(name, map(str, data.obs.columns))
        raise RequestError(f"differential_expression: obs has no column {name!r}; {remedy}")
    column = data.obs[name].astype(object).reindex(ids)
    return column.where(column.notna(), None)
