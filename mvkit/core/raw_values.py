"""The values of one modality as they come from outside: arrays, columns of tables, ids of rows.

Axes: b rows, k columns of a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Protocol

import attrs
import numpy as np
import torch
from torch import Tensor

from mvkit.errors import DataError, NothingObserved, ShapeError

Shape = tuple[int, ...]
Names = tuple[str, ...]


def full_precision(x: Tensor) -> Tensor:
    """Values in float32 where they are in half precision, which numpy lacks and sums lose."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def widened(seen: Tensor, shape: Sequence[int]) -> Tensor:
    """Flags (b, ...) as `shape`, repeated over the axes that they lack at the end."""
    return seen.reshape(*seen.shape, *[1] * (len(shape) - seen.ndim)).expand(shape)


def as_tensor(value: object, where: str) -> Tensor:
    """A tensor from a tensor or an array; `where` begins the messages.

    Raises:
        ShapeError: sparse values, tables, and what is no array of real numbers.
        DataError: AnnData and MuData.
    """
    if isinstance(value, Tensor):
        _check_kind(value, where)
        if value.is_complex():
            raise ShapeError(
                f"{where}: got values of type {value.dtype}; expected real numbers; give their "
                "parts apart"
            )
        return value
    _check_container(value, where)
    if isinstance(value, np.ma.MaskedArray):
        value = np.where(np.ma.getmaskarray(value), np.nan, np.ma.getdata(value))
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{where}: {error}; expected an array of numbers") from None
    if array.dtype.kind not in "biuf":
        raise ShapeError(
            f"{where}: got values of type {array.dtype}; expected numbers; convert them first"
        )
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    # torch can neither hold a read-only array nor a byte order that is not the machine's
    array = np.require(array, array.dtype.newbyteorder("="), "W")
    return torch.from_numpy(np.ascontiguousarray(array))


def values_in(value: object, where: str) -> int:
    """How many values there are, in an order.

    Raises:
        ShapeError: a single value, or what has no order; beginning with `where`.
    """
    try:
        if isinstance(value, str | bytes | Mapping | Set):
            raise TypeError
        return len(value)  # type: ignore[arg-type]  # what has no length is refused
    except TypeError:
        raise ShapeError(
            f"{where}: got a {type(value).__name__}; expected one value for each row, in order; "
            "give a list, an array or a tensor (b,)"
        ) from None


def is_plain(x: Tensor) -> bool:
    """Whether a tensor holds one number in each place, which can be read."""
    special = x.is_nested or x.is_meta or x.is_quantized
    return x.layout is torch.strided and not special


def _check_kind(x: Tensor, where: str) -> None:
    """Raises ShapeError, with the remedy, for a tensor that is not plain."""
    if is_plain(x):
        return
    kind, remedy = "sparse", "give .to_dense()"
    if x.is_nested:
        kind, remedy = "nested", "give .to_padded_tensor(nan), or one modality for each shape"
    elif x.is_meta:
        kind, remedy = "meta", "give values; a tensor on the device 'meta' has none"
    elif x.is_quantized:
        kind, remedy = "quantized", "give .dequantize()"
    raise ShapeError(f"{where}: got a {kind} tensor; expected a dense one; {remedy}")


def _check_container(value: object, where: str) -> None:
    """Raises for containers that hold more than an array, or that are sparse."""
    kind = type(value).__name__
    library = type(value).__module__.partition(".")[0]
    if library in ("pandas", "polars"):
        raise ShapeError(
            f"{where}: got a {kind}, whose rows nobody aligned; use "
            "MultimodalDataset.from_tables, or align and give .to_numpy()"
        )
    if library in ("anndata", "mudata"):
        raise DataError(f"{where}: got {kind}; expected an array; {annotated(value)}")
    if library == "scipy":
        raise ShapeError(f"{where}: got a sparse {kind}; expected a dense array; give .toarray()")


def annotated(value: object) -> str:
    """What to do with an AnnData or a MuData."""
    tables = "{name: adata.to_df()}"
    door = "from_anndata(adata)"
    if type(value).__name__ == "MuData":
        tables = "{name: adata.to_df() for name, adata in mdata.mod.items()}"
        door = "from_mudata(mdata)"
    return (
        f"give mvkit_omics.{door}, which knows counts, layers and covariates (pip install "
        f"mvkit-omics), or give MultimodalDataset.from_tables({tables})"
    )


# of unsigned integers of more than 8 bits, torch can do little
SIGNED = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}


def signed(x: Tensor) -> Tensor:
    """Unsigned integers of more than 8 bits as signed ones, or as floats where those end."""
    if x.dtype not in SIGNED:
        return x
    integers = x.to(SIGNED[x.dtype])
    return x.double() if (integers < 0).any() else integers


class Step(Protocol):
    """A fitted transform, as seen from here (see `mvkit.data.transforms.Transform`)."""

    @property
    def support(self) -> str: ...

    @property
    def words(self) -> Names: ...

    def before(self, shape: Shape) -> Shape: ...

    def forward(self, x: Tensor) -> Tensor: ...

    def out_of_support(self, x: Tensor) -> Tensor: ...


@attrs.frozen
class Columns:
    """What the columns of a table are called, and the words that its numbers stand for.

    Args:
        names: names of the columns, in order.
        words: the words that values number, if the table held text.

    Example:
        >>> import torch
        >>> from mvkit.core import Columns
        >>> columns = Columns(("age", "crp"))
        >>> columns.arrange(torch.tensor([[61.0, 2.5]]), ("crp", "age"), "table").tolist()
        [[2.5, 61.0]]
    """

    names: Names
    words: Names | None = None

    def arrange(self, x: Tensor, wanted: Names, where: str) -> Tensor:
        """The columns of x (b, k, ...) in the order of training.

        Raises:
            ShapeError: names that are missing, or that training did not have.
        """
        if not wanted or self.names == wanted:
            return x
        faults = []
        for fault, columns, others in (("lack", wanted, self.names), ("add", self.names, wanted)):
            difference = sorted(set(columns) - set(others))
            if difference:
                faults.append(f"{fault} {_few(difference)}")
        if faults:
            raise ShapeError(
                f"{where}: its columns {' and '.join(faults)}; expected the {len(wanted)} columns "
                "of training, in any order; rename, add or drop columns"
            )
        place = {name: i for i, name in enumerate(self.names)}
        return x.index_select(1, torch.tensor([place[name] for name in wanted], device=x.device))

    def re_encoded(
        self, x: Tensor, steps: tuple[Step, ...], seen: Tensor, names: Names, source: Source
    ) -> Tensor:
        """Words, in columns called `names`, numbered as in training; NaN where not `seen`.

        Where all words of training are numbers, as of a category dtype of whole numbers, so may
        be the values: 8 is the word 8, not word number 8.

        Raises:
            DataError: text where numbers are expected, or a word that training did not have.
        """
        known = steps[0].words if steps else ()
        words: Sequence[str | float] = self.words or ()
        if not words:
            if not seen.any() or not known or None in map(_value, known):
                return x
            values, x = torch.unique(x, return_inverse=True)
            words = values.tolist()
        x = torch.where(seen, x, 0)
        codes = torch.tensor(_places(words, known), device=x.device)[x.long()]
        unknown = seen & (codes < 0)
        if unknown.any():
            row, column, *_ = unknown.nonzero()[0].tolist()
            word = words[int(x[row, column])]
            expected = "numbers; convert it"
            if known:
                expected = f"one of the categories of training, {_few(known)}; relabel it"
            raise DataError(
                f"{source.where}: {source.row(unknown)}, column {names[column]!r}: {word!r} is "
                f"{'text' if self.words else 'none of them'}; expected {expected}"
            )
        return torch.where(seen, codes.double(), torch.nan)


def _value(word: str | float) -> float | None:
    """The number that a word spells as Python does, so not 007; None if it spells none."""
    if word in ("True", "False"):
        return float(word == "True")
    try:
        number = float(word)
        spelt = word in (number, str(number), str(int(number)))
    except (ValueError, OverflowError):
        return None
    return number if spelt else None


def _places(words: Sequence[str | float], known: Names) -> list[int]:
    """The number of each word among the known ones, -1 if it is none.

    Words that spell the same number are the same: models of old called the category 8 "8.0".
    """
    places: dict[str | float, int] = {}
    for i, word in enumerate(known):
        value = _value(word)
        if value is not None:
            places[value] = i
    places.update({word: i for i, word in enumerate(known)})
    numbers = []
    for own in words:
        place = places.get(own)
        value = _value(own)
        if place is None and value is not None:
            place = places.get(value)
        numbers.append(-1 if place is None else place)
    return numbers


def _few(names: Sequence[str]) -> str:
    """The first names of a list that may be long."""
    shown = ", ".join(map(repr, names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def row_called(number: int, ids: Sequence[object] | None) -> str:
    """How messages call a row: by its number, and by its id if it has one."""
    return f"row {number}{id_called(number, ids)}"


def id_called(number: int, ids: Sequence[object] | None) -> str:
    """How messages add the id of a row; empty if it has none."""
    if ids is None:
        return ""
    own = ids[number]
    if isinstance(own, Tensor | np.generic):
        own = own.item()
    return f" (id {own!r})"


def nothing_observed(
    flags: Tensor, ids: Sequence[object] | None, given: Sequence[str] = ()
) -> NothingObserved:
    """The error of the first row where `flags` (b,) hold.

    Args:
        flags: rows that have none of what was asked for.
        ids: of the rows, if they have some.
        given: the modalities that were asked for; empty: any.
    """
    row = int(flags.nonzero()[0])
    return NothingObserved(row, ", ".join(given), id_called(row, ids))


@attrs.frozen(eq=False)
class Source:
    """What a batch says of one modality (see `mvkit.core.batch.Batch`).

    Args:
        name: the modality.
        x: its values, (b, ...); None: it is absent.
        observed: its column of the mask, (b,) bool; None: NaN says what is missing.
        elements: which single values are observed.
        columns: what the columns of its table are called, if it came from one.
        ids: what messages call the rows; None: their numbers.
        done: the transforms that its values went through already.
    """

    name: str
    x: Tensor | None
    observed: Tensor | None
    elements: Tensor | None
    columns: Columns | None
    ids: Sequence[object] | None = None
    done: tuple[Step, ...] = ()

    def row(self, flags: Tensor) -> str:
        """How messages call the first row where `flags` (b, ...) hold."""
        return row_called(int(flags.nonzero()[0, 0]), self.ids)

    @property
    def where(self) -> str:
        """How messages call it."""
        return f"batch.data[{self.name!r}]"


def is_missing(value: object) -> bool:
    """Whether a value is None, NaN, NaT or pandas' NA."""
    if value is None or type(value).__name__ == "NAType":
        return True
    return bool(value != value)  # noqa: PLR0124 - of all values, only NaN and NaT
