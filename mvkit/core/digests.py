"""Digests of values, by which data and weights are known again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sized

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**24  # bytes of a tensor that are hashed at a time


def digest(value: object) -> str:
    """A digest of tensors, arrays, plain values, and lists and mappings of them."""
    checksum = hashlib.sha256()
    _add(checksum, value)
    return f"sha256 {checksum.hexdigest()[:16]}"


def _add(checksum: hashlib._Hash, value: object) -> None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        value = torch.as_tensor(value)
    if isinstance(value, Tensor):
        _add_tensor(checksum, value)
    elif isinstance(value, Mapping):
        _add(checksum, [[key, value[key]] for key in sorted(value, key=str)])
    elif isinstance(value, list | tuple | np.ndarray) and not _plain(value):
        checksum.update(f"{len(value)} values".encode())
        for item in value:
            _add(checksum, item)
    elif isinstance(value, list | tuple):
        checksum.update(repr(list(value)).encode())
    elif type(value).__repr__ is object.__repr__:  # it would say where in memory it is
        checksum.update(type(value).__qualname__.encode())
    else:
        checksum.update(repr(value).encode())


def _plain(values: Sized) -> bool:
    """Whether a list holds nothing but plain values, whose text says all."""
    plain = {str, int, float, bool, bytes, type(None)}
    return isinstance(values, list | tuple) and plain.issuperset(map(type, values))


def _add_tensor(checksum: hashlib._Hash, value: Tensor) -> None:
    checksum.update(f"{value.dtype} {tuple(value.shape)}".encode())
    if not value.numel():
        return
    rows = value.detach().cpu().reshape(len(value) if value.ndim else 1, -1)
    row_bytes = max(1, rows[:1].nbytes)
    for block in rows.split(max(1, BLOCK // row_bytes)):
        checksum.update(block.contiguous().view(torch.uint8).numpy())
