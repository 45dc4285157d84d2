"""The tensors of a safetensors file, as views of its bytes: nothing is copied or allocated."""

from __future__ import annotations

import math
import mmap
from typing import Any

import torch
from torch import Tensor

Entry = dict[str, Any]
Entries = dict[str, Entry]  # by name of the tensor: "dtype", "shape", "data_offsets"

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


def tensors_of(blob: mmap.mmap, start: int, entries: Entries) -> dict[str, Tensor]:
    """The tensors of a mapped file.

    Args:
        blob: the whole file; the tensors keep it alive.
        start: where the bytes of the tensors start.
        entries: what the header says of each tensor.

    Raises:
        ValueError: what the header says does not fit the bytes.
    """
    position = 0
    tensors = {}
    for name, entry in sorted(entries.items(), key=_offset):
        dtype, shape = _dtype_and_shape(name, entry)
        begin, end = entry["data_offsets"]
        size = math.prod(shape) * dtype.itemsize
        if begin != position or end != begin + size or start + end > len(blob):
            raise ValueError(
                f"tensor {name!r}: {entry['dtype']} of shape {shape} at bytes {begin} to {end}; "
                f"expected {size} bytes from {position} on"
            )
        tensors[name] = _view(blob, start + begin, dtype, shape)
        position = end
    return tensors


def _offset(item: tuple[str, Entry]) -> tuple[int, int]:
    """Where a tensor begins and ends, to sort by."""
    name, entry = item
    match entry:
        case {"data_offsets": [int(begin), int(end)]}:
            return begin, end
    raise ValueError(f"tensor {name!r}: its place in the file is not said")


def _dtype_and_shape(name: str, entry: Any) -> tuple[torch.dtype, list[int]]:
    """What the header says of a tensor, once it is known to be possible."""
    dtype = DTYPES.get(str(entry.get("dtype")))
    shape = entry.get("shape")
    whole = isinstance(shape, list) and all(type(n) is int and 0 <= n < 2**63 for n in shape)
    if dtype is None or not whole:
        raise ValueError(f"tensor {name!r}: dtype {entry.get('dtype')!r} of shape {shape!r}")
    return dtype, shape


def _view(blob: mmap.mmap, offset: int, dtype: torch.dtype, shape: list[int]) -> Tensor:
    """A tensor whose memory is the file's."""
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(blob, dtype=dtype, count=count, offset=offset)
    return flat.reshape(shape)
