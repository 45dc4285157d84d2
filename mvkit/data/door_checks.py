"""What every door for data asks of its arguments."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from mvkit.core.raw_values import annotated
from mvkit.data.align import library
from mvkit.data.sources import Source
from mvkit.errors import DataError, suggest


def check_mapping(value: object, door: str, what: str) -> None:
    """Raises DataError for anything but a mapping, and says what to do with a MuData."""
    if not isinstance(value, Mapping):
        remedy = f"give {{name: {what}}}"
        if library(value) in ("anndata", "mudata"):
            remedy = annotated(value)
        raise DataError(
            f"{door}: got {type(value).__name__}; expected a mapping from modality to {what}; "
            f"{remedy}"
        )


def check_names(fault: str, names: Iterable[object], known: Collection[str]) -> None:
    """Raises DataError, which begins with the fault, at a name that is not known."""
    for name in names:
        if name not in known:
            raise DataError(f"{fault} {name!r}; {suggest(str(name), known)}")


def no_rows_in_memory(data: object) -> DataError:
    """The error of what a batch of all rows cannot be made of."""
    kind = type(data).__name__
    if isinstance(data, Source):
        return DataError(
            f"got {kind}, whose rows are gathered a batch at a time; expected rows in memory "
            "here; give some of them, such as next(iter(mvkit.Pipeline(data, batch_size=1000)))"
        )
    splits = hasattr(data, "train") and hasattr(data, "test")
    remedy = "; take one of its splits, such as .test" if splits else ""
    if library(data) in ("anndata", "mudata"):
        remedy = f"; {annotated(data)}"
    return DataError(
        f"got {kind}; expected a Batch, a MultimodalDataset or a mapping from modality to "
        f"array{remedy}"
    )
