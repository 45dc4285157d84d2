"""The files of a folder of shards, as they are written.

Axes: b rows, m modalities.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mvkit._version import __version__
from mvkit.core import safe_file
from mvkit.core.batch import Batch
from mvkit.core.blocks import block_size, block_slices
from mvkit.core.modality import Modality
from mvkit.core.raw_values import values_in
from mvkit.data.align import as_list
from mvkit.data.checked_rows import Plain, look_at
from mvkit.data.row_columns import Levels
from mvkit.data.row_values import to_json
from mvkit.data.sources import observed
from mvkit.errors import DataError, ShapeError, check_whole_number, suggest
from mvkit.registry.spec import to_dict

Kinds = dict[str, tuple[str, tuple[int, ...]]]  # dtype and shape of a row, by key

INDEX = "index.safetensors"
SHARD = 2**24  # bytes of a shard, if no number of rows is asked for


def parts_of(batches: Batch | Iterable[Batch], rows_per_shard: int | None) -> Iterator[Batch]:
    """The rows of each shard."""
    if rows_per_shard is not None:
        check_whole_number("save: rows_per_shard", rows_per_shard, 1)
    for batch in [batches] if isinstance(batches, Batch) else batches:
        _check_lengths(batch)
        row = sum(value[:1].nbytes for value in batch.data.values())
        size = rows_per_shard or block_size(row, SHARD, item_size=1)
        yield from map(batch.take, block_slices(len(batch), size))


def _check_lengths(batch: object) -> None:
    """Raises for anything but a batch, and for one whose modalities differ in length."""
    if not isinstance(batch, Batch):
        raise DataError(
            f"save: got a {type(batch).__name__}; expected a Batch, or an iterable of them; wrap "
            "values in mvkit.Batch"
        )
    known = {f"extra {name!r}": value for name, value in batch.extra.items()}
    if batch.mask is not None:
        known["mask"] = batch.mask
    for name, value in {**batch.data, **known}.items():
        length = values_in(value, f"save: {name}")
        if length != len(batch):
            raise ShapeError(
                f"save: {name}: {length} values for {len(batch)} rows; expected one for each; "
                "give NaN rows or a mask for rows that it lacks"
            )


def _note_kinds(kinds: Kinds, tensors: Mapping[str, Tensor], number: int) -> None:
    """Notes dtypes and shapes of a shard; raises ShapeError if they were others before."""
    for key, value in tensors.items():
        kind = (str(value.dtype).removeprefix("torch."), tuple(value.shape[1:]))
        dtype, shape = kinds.setdefault(key, kind)
        if (dtype, shape) != kind:
            raise ShapeError(
                f"save: {key} is {kind[0]} {kind[1]} in shard {number}, after {dtype} {shape}; "
                "expected one dtype and shape in all batches"
            )


def write_folder(
    parts: Iterable[Batch], folder: Path, modalities: dict[str, Modality], levels: Levels
) -> None:
    """Writes a shard for each part, and the index."""
    shards: list[dict[str, object]] = []
    masks = []
    extra = []
    looks: list[Plain | None] = []
    kinds: Kinds = {}
    for number, batch in enumerate(parts):
        tensors = _tensors(batch)
        _note_kinds(kinds, tensors, number)
        masks.append(observed(batch, tuple(modalities)))
        _check_modalities(batch, modalities)
        looks.append(look_at(batch, modalities, masks[-1]))
        extra.append(batch.extra)
        if set(batch.extra) != set(extra[0]):
            raise ShapeError(
                f"save: extra has {sorted(batch.extra)} in shard {number}, after "
                f"{sorted(extra[0])}; expected the same keys in all batches"
            )
        blob = safetensors.torch.save(tensors)
        file = f"shard-{number:05d}.safetensors"
        safe_file.write_whole(folder / file, blob)
        digest = hashlib.sha256(blob).hexdigest()
        shards.append({"file": file, "rows": len(batch), "bytes": len(blob), "digest": digest})
    if not shards:
        raise DataError("save: the data have no rows; expected one at least")
    header: dict[str, object] = {
        "mvkit": __version__,
        "order": list(modalities),
        "modalities": {name: to_dict(modality) for name, modality in modalities.items()},
        "kinds": kinds,
        "shards": shards,
    }
    if levels:
        header["levels"] = dict(levels)
    if all(look is not None for look in looks):
        header["plain"] = _plain(looks, modalities)
    safe_file.write(folder / INDEX, header, {"mask": torch.cat(masks), **_joined(extra)})


def _plain(looks: Sequence[Plain | None], modalities: Iterable[str]) -> Plain:
    """Which modalities have no gaps but whole rows in any shard."""
    return {name: all(look is None or look[name] for look in looks) for name in modalities}


def _check_modalities(batch: Batch, modalities: Mapping[str, Modality]) -> None:
    """Raises ShapeError for values that are none of the modalities, which no mask tells of."""
    for name in batch.data:
        if name not in modalities:
            remedy = suggest(name, modalities)
            raise ShapeError(f"save: data[{name!r}] is none of the modalities; {remedy}")


def _tensors(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a shard."""
    tensors = {f"data/{name}": value for name, value in batch.data.items()}
    for name, value in (batch.elements or {}).items():
        tensors[f"elements/{name}"] = value
    return {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}


def _joined(extra: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """What else is known of the rows of all shards: tensors, or JSON in bytes."""
    tensors = {}
    for key in extra[0]:
        parts = [values[key] for values in extra]
        if all(isinstance(part, Tensor) for part in parts):
            tensors[f"extra/{key}"] = torch.cat(parts)
        else:
            values = list(itertools.chain.from_iterable(map(as_list, parts)))
            text = bytearray(json.dumps(to_json(values, key)).encode())
            tensors[f"json/{key}"] = torch.frombuffer(text, dtype=torch.uint8)
    return tensors
