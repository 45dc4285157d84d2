"""The index of a folder of shards, read and checked: a folder may come from anywhere.

Axes: b rows of all shards, m modalities.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from mvkit.core import safe_file
from mvkit.core.covariates import Level
from mvkit.core.modality import Modality, as_modalities
from mvkit.data.row_values import from_json
from mvkit.errors import CheckpointError, DataError, MvkitError

Json = dict[str, Any]  # a JSON object
Kind = tuple[torch.dtype, list[int]]  # of the rows of a tensor: their type and shape
FAULTS = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError)
FIELDS = {"file": str, "rows": int, "bytes": int, "digest": str}


@attrs.frozen(eq=False)
class ShardIndex:
    """What an index says.

    Args:
        modalities: in the order of the mask.
        kinds: of each tensor of a shard, `data/<modality>` or `elements/<modality>`.
        shards: for each its `file`, `rows`, `bytes` and `digest`.
        mask: what each row observes, (b, m) bool.
        extra: what else is known of each row, (b, ...).
        levels: what the covariates among them can be; of numbers, none.
        plain: of modalities whose values were looked at when they were saved, whether no single
            value of an observed row is missing; None: nobody looked, or something is wrong.
    """

    modalities: dict[str, Modality]
    kinds: dict[str, Kind]
    shards: list[Json]
    mask: Tensor
    extra: Json
    levels: dict[str, tuple[Level, ...]]
    plain: dict[str, bool] | None = None


def read_index(path: Path) -> ShardIndex:
    """The index in a file.

    Raises:
        CheckpointError: truncated, altered, or not what `save_shards` writes.
    """
    header, tensors = safe_file.read(path)
    try:
        specs = {name: header["modalities"][name] for name in header["order"]}
        modalities = as_modalities(specs)
        kinds = _kinds(header["kinds"], modalities)
        shards = _shards(header["shards"])
        rows = sum(shard["rows"] for shard in shards)
        mask = tensors.pop("mask")
        expected = (rows, len(modalities))
        _need(mask.dtype == torch.bool and mask.shape == expected, f"a mask of shape {expected}")
        extra = _extra(tensors, rows)
        levels = _levels(header.get("levels", {}), extra)
        plain = _plain(header.get("plain"), modalities)
    except MvkitError:
        raise
    except FAULTS as error:
        raise CheckpointError(
            f"{path}: it is no index of shards: {_reason(error)}; take another copy, or save the "
            "rows again"
        ) from None
    return ShardIndex(modalities, kinds, shards, mask, extra, levels, plain)


def _need(condition: bool, expected: str) -> None:
    if not condition:
        raise ValueError(f"expected {expected}")


def _reason(error: Exception) -> str:
    return f"{error} is lacking" if isinstance(error, KeyError) else str(error)


def _kinds(given: Json, modalities: Mapping[str, Modality]) -> dict[str, Kind]:
    kinds = {}
    for key, (name, shape) in given.items():
        role, _, modality = key.partition("/")
        _need(role in ("data", "elements") and modality in modalities, "tensors of modalities")
        dtype = getattr(torch, name)
        _need(isinstance(dtype, torch.dtype), "a dtype of torch")
        fits = all(type(size) is int and size >= 0 for size in shape)
        _need(isinstance(shape, list) and fits, f"the shape of {key!r} as whole numbers")
        kinds[key] = (dtype, shape)
    return kinds


def _shards(given: list[Json]) -> list[Json]:
    _need(isinstance(given, list) and len(given) > 0, "a list of shards")
    for shard in given:
        for field, kind in FIELDS.items():
            _need(type(shard[field]) is kind, f"the {field} of a shard as {kind.__name__}")
        _need(shard["rows"] > 0, "shards of one row at least")
        file = shard["file"]
        plain = Path(file).name == file and file not in ("", "..")
        odd = "\0" in file or "\\" in file
        _need(plain and not odd, f"names of files in the folder, not {file!r}")
        _need(shard["bytes"] > 8, "shards of more than 8 bytes")
    return given


def _extra(tensors: Mapping[str, Tensor], rows: int) -> Json:
    extra: Json = {}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        _need(kind in ("extra", "json"), f"tensors of extra, not {key!r}")
        extra[name] = value
        if kind == "json":
            extra[name] = from_json(json.loads(value.numpy().tobytes()))
            _need(isinstance(extra[name], list), f"a list as {key!r}")
        _need(value.ndim > 0 and len(extra[name]) == rows, f"{rows} values in {key!r}")
    return extra


def _plain(given: Json | None, modalities: Mapping[str, Modality]) -> dict[str, bool] | None:
    if given is None:
        return None
    flags = all(type(flag) is bool for flag in given.values())
    _need(set(given) == set(modalities) and flags, "a flag for each modality")
    return given


def _levels(given: Json, extra: Json) -> dict[str, tuple[Level, ...]]:
    levels = {}
    for name, known in given.items():
        _need(name in extra, f"values of the covariate {name!r}")
        kinds = {type(level) for level in known}
        fine = isinstance(known, list) and (not known or kinds in ({str}, {int}))
        _need(fine, f"the levels of {name!r} as words or whole numbers")
        levels[name] = tuple(known)
    return levels


def inside(folder: Path, file: str) -> Path:
    """The path of a shard, which no link may lead out of its folder.

    Raises:
        DataError: it leads elsewhere.
    """
    path = folder / file
    if path.is_symlink() and path.resolve().parent != folder.resolve():
        raise DataError(
            f"{path}: it is a link that leads out of the folder; expected the shard itself; copy "
            "it here"
        )
    return path


def tensors_at(
    blob: Any, path: Path, rows: int, kinds: Mapping[str, Kind], length: int | None = None
) -> dict[str, tuple[int, int]]:
    """Where the tensors of a shard are: their first byte, and how many a row has.

    Args:
        blob: its bytes, or those of its header alone.
        path: its file.
        rows: number of its rows.
        kinds: the tensors that it may have.
        length: how many bytes it has; None: those of `blob`.

    Raises:
        DataError: a file that is no shard, or not the one of the index.
    """
    places = {}
    whole = len(blob) if length is None else length
    try:
        size = 8 + struct.unpack("<Q", blob[:8])[0]
        header = json.loads(blob[8:size])
        header.pop("__metadata__", None)
        for key, stored in header.items():
            dtype, shape = kinds[key]
            start, stop = stored["data_offsets"]
            row = dtype.itemsize * math.prod(shape)
            fits = stop - start == rows * row and 0 <= start <= stop <= whole - size
            _need(fits and stored["shape"] == [rows, *shape], f"{key!r} as the index has it")
            places[key] = (size + start, row)
    except (*FAULTS, struct.error) as error:
        raise DataError(
            f"{path}: it is not the shard of the index: {_reason(error)}; take another copy"
        ) from None
    return places
