"""Checks of the options of `from_anndata` and `from_mudata`, before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pandas import DataFrame

from mvkit.errors import DataError
from mvkit.models.multimodal import check_model

# options that are mappings, with an example of one
MAPPINGS = {
    "obsm": "{'protein': 'protein_expression'}",
    "features": "{'protein': 'protein_names'}",
    "feature_types": "{'rna': 'Gene Expression', 'protein': 'Antibody Capture'}",
    "observed": "{'protein': 'has_protein'}",
    "modalities": "{'rna': 'poisson'}",
}


def check_options(door: str, **options: Any) -> None:
    """Checks options that were given; None: it was not.

    Args:
        door: the function that was called.
        options: by name.

    Raises:
        DataError: values instead of names of columns, or something else than a mapping.
        RequestError: `like` is no model.
    """
    for name, value in options.items():
        if value is None:
            continue
        if name in MAPPINGS and not isinstance(value, Mapping):
            raise DataError(
                f"{door}: {name}: got {value!r}; expected a mapping from modality; give "
                f"{MAPPINGS[name]}"
            )
        if name == "layers" and not isinstance(value, str | Mapping):
            raise DataError(
                f"{door}: layers: got {value!r}; expected a layer, or a mapping from modality to "
                "layer; give {'rna': 'counts'}"
            )
        if name in ("label", "row_weight") and not isinstance(value, str):
            raise _no_column(door, name, value)
        if name == "covariates" and isinstance(value, Mapping | DataFrame):
            raise _no_column(door, name, value)
        if name == "like":
            check_model(value, f"{door}: like")


def _no_column(door: str, name: str, value: object) -> DataError:
    """The error of values that are given where a name of a column is expected."""
    return DataError(
        f"{door}: {name}: got a {type(value).__name__}; expected names of columns of obs, which "
        "are matched by cell; write the values there first: obs['name'] = values"
    )
