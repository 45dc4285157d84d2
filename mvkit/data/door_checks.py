"""What every door for data asks of its arguments."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from mvkit.core.raw_values import annotated
from mvkit.data.align import library
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
