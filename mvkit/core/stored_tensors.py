"""How a safetensors file holds tensors. They are written from where they are and read as views of
the file's bytes: nothing is copied or allocated.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mvkit.errors import CheckpointError

Entry = dict[str, Any]
Entries = dict[str, Entry]  # by name of the tensor: "dtype", "shape", "data_offsets"

# in the order in which safetensors stores them: wide types first
DTYPES = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def place(item: tuple[str, Tensor]) -> tuple[int, str]:
    """Where a tensor is stored: wide types first, so that all are aligned, then by name."""
    name, value = item
    if value.dtype not in NAMES:
        raise CheckpointError(
            f"save: {name!r} is {value.dtype}; expected one of {', '.join(NAMES.values())}; "
            "convert it"
        )
    return list(NAMES).index(value.dtype), name


def outer_header(values: Sequence[tuple[str, Tensor]], key: str, text: str) -> bytearray:
    """The header of safetensors: its length, then JSON with a text and where tensors are."""
    outer: dict[str, object] = {"__metadata__": {key: text}}
    end = 0
    for name, value in values:
        start, end = end, end + value.nbytes
        entry = {"dtype": NAMES[value.dtype], "shape": list(value.shape)}
        outer[name] = {**entry, "data_offsets": [start, end]}
    blob = json.dumps(outer, ensure_ascii=False, separators=(",", ":")).encode()
    blob += b" " * (-len(blob) % 8)
    return bytearray(struct.pack("<Q", len(blob)) + blob)


def bytes_of(value: Tensor) -> memoryview:
    """The bytes of a tensor; a view where it is contiguous and on the CPU."""
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def tensors_of(blob: bytearray | mmap.mmap, start: int, entries: Entries) -> dict[str, Tensor]:
    """The tensors of the bytes of a file.

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


def _view(
    blob: bytearray | mmap.mmap, offset: int, dtype: torch.dtype, shape: list[int]
) -> Tensor:
    """A tensor whose memory is the file's."""
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(blob, dtype=dtype, count=count, offset=offset)
    return flat.reshape(shape)
