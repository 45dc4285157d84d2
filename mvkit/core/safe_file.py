"""Sealed files: safetensors with one JSON header, all of it under one SHA-256, written whole or not at all.

The header is one JSON text under one key. The checksum covers the whole file, header and tensors, with its own 64
digits read as zeros, so that no flipped bit goes unseen.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import re
import secrets
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from mvkit.errors import CheckpointError

FORMAT = 1


KEY = "mvkit"


_ZEROS = "0" * 64


_DIGEST = re.compile(rb'\\"sha256\\": \\"([0-9a-f]{64})\\"')


def write(
    path: str | os.PathLike[str], header: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Writes a header (plain JSON data) and tensors.

    Raises:
        OSError: when the folder cannot be written; nothing is left behind.
    """
    # a copy each: parameters that two modules share are stored twice, which safetensors asks for
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    text = json.dumps(
        {**header, "format": FORMAT, "sha256": _ZEROS}, sort_keys=True, allow_nan=False
    )
    blob = bytearray(safetensors.torch.save(copies, metadata={KEY: text}))
    start, stop = _digest_at(blob, "save")
    blob[start:stop] = hashlib.sha256(blob).hexdigest().encode()
    write_whole(Path(path), blob)


def write_whole(path: Path, blob: bytes | bytearray) -> None:
    """Writes a file that appears complete or not at all: a temporary file beside it is written, synced and renamed."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        # ordinary permissions: what the umask leaves of 0666
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The header of a file whose checksum fits; the file is mapped, not held in memory.

    Raises:
        CheckpointError: truncated, altered, of an unknown format, or no checkpoint of mvkit at all.
        OSError: when it cannot be read.
    """
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise CheckpointError(
                f"{path}: truncated, or no checkpoint; 0 bytes; take another copy"
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as blob:
            return _checked_header(blob, str(path))


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file whose checksum fits; errors as in `read_header`."""
    header = read_header(path)
    try:
        return header, safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{path}: its tensors cannot be read: {error}; take another copy"
        ) from None


def _digest_at(blob: bytearray | mmap.mmap, where: str) -> tuple[int, int]:
    """Where the digits of the checksum stand, which must be one place in the header."""
    size = struct.unpack("<Q", blob[:8])[0]
    found = list(_DIGEST.finditer(bytes(blob[: 8 + size])))
    if len(found) != 1:
        raise CheckpointError(
            f"{where}: no checksum where it should be; the file was altered; take another copy"
        )
    return found[0].span(1)


def _checked_header(blob: mmap.mmap, where: str) -> dict[str, Any]:
    size = struct.unpack("<Q", blob[:8])[0] if len(blob) >= 8 else 0
    if len(blob) < 8 + size or not size:
        raise CheckpointError(
            f"{where}: truncated, or no checkpoint; {len(blob)} bytes; take another copy"
        )
    try:
        outer = json.loads(blob[8 : 8 + size])
        text = outer.pop("__metadata__")[KEY]
        header = json.loads(text)
        end = 8 + size + max((one["data_offsets"][1] for one in outer.values()), default=0)
        found = header["format"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise CheckpointError(
            f"{where}: no checkpoint of mvkit, or its header was altered; take another copy"
        ) from None
    if found != FORMAT:
        raise CheckpointError(
            f"{where}: format {found!r}, this mvkit reads {FORMAT}; upgrade mvkit, or take another copy"
        )
    if len(blob) != end:
        raise CheckpointError(f"{where}: truncated: {len(blob)} bytes of {end}; take another copy")
    start, stop = _digest_at(blob, where)
    digest = hashlib.sha256(blob[:start])
    digest.update(_ZEROS.encode())
    with memoryview(blob) as whole, whole[stop:] as rest:
        digest.update(rest)
    if digest.hexdigest().encode() != blob[start:stop]:
        raise CheckpointError(
            f"{where}: altered since it was saved: its checksum does not fit; take another copy"
        )
    return header  # type: ignore[no-any-return]
