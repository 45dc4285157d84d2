"""Sealed files: safetensors with a JSON header, under one SHA-256, written whole or not at all.

The header is one JSON text under one key. The checksum covers the whole file, header and tensors,
with its own 64 digits read as zeros, so that no flipped bit goes unseen.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import mmap
import os
import re
import secrets
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from mvkit._version import __version__
from mvkit.core.stored_tensors import Entries, bytes_of, outer_header, place, tensors_of
from mvkit.errors import CheckpointError, RequestError

Header = dict[str, Any]
FilePath = str | os.PathLike[str]
Part = bytes | bytearray | memoryview
Blob = bytearray | mmap.mmap


@runtime_checkable
class Writable(Protocol):
    """A binary file object that is written."""

    def write(self, part: Any, /) -> object:
        """Writes bytes."""
        ...


@runtime_checkable
class Readable(Protocol):
    """A binary file object that is read."""

    def read(self) -> bytes:
        """All bytes that are left."""
        ...


Target = FilePath | Writable
Stored = FilePath | Part | Readable

FORMAT = 1
KEY = "mvkit"
LONGEST = 200  # bytes of a file's name that the name of its temporary file repeats

# names of files that are being written
TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.tmp", re.DOTALL)

_ZEROS = "0" * 64
_DIGEST = re.compile(rb'\\"sha256\\": \\"([0-9a-f]{64})\\"')


def write(path: Target, header: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
    """Writes a header (plain JSON data) and tensors, into a file or a binary file object.

    Raises:
        RequestError: neither a path nor a binary file object.
        OSError: when the folder cannot be written; nothing is left behind.
    """
    sealed = {**header, "format": FORMAT, "sha256": _ZEROS}
    text = json.dumps(sealed, sort_keys=True, allow_nan=False)
    values = sorted(tensors.items(), key=place)
    blob = outer_header(values, KEY, text)
    start, stop = _digest_at(blob, "save")
    # tensors are written from where they are: a copy of all would cost as much memory again
    parts = [bytes_of(value) for _, value in values]
    digest = hashlib.sha256(blob)
    for part in parts:
        digest.update(part)
    blob[start:stop] = digest.hexdigest().encode()
    if isinstance(path, str | os.PathLike):
        write_whole(Path(path), blob, parts)
    else:
        _write_into(path, [blob, *parts])


def _write_into(file: Writable, parts: Sequence[Part]) -> None:
    """Writes into a binary file object; where that fails, it is cut to what it held, if it can be.

    Raises:
        RequestError: no binary file object.
    """
    if isinstance(file, io.TextIOBase) or not isinstance(file, Writable):
        raise RequestError(
            f"save: got {type(file).__name__}; expected a path, or a file object that takes "
            "bytes, such as io.BytesIO() or open(path, 'wb')"
        )
    start = file.tell() if isinstance(file, io.IOBase) and file.seekable() else None
    try:
        for part in parts:
            file.write(part)
    except BaseException:
        if isinstance(file, io.IOBase) and start is not None:
            with contextlib.suppress(OSError):
                file.seek(start)
                file.truncate()
        raise


def write_whole(path: Path, blob: bytes | bytearray, more: Sequence[memoryview] = ()) -> None:
    """Writes a file, `blob` and then `more`, that appears complete or not at all.

    Raises:
        OSError: as of `replacing`.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        for part in (blob, *more):
            file.write(part)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside a path, which is synced and takes its place at the end.

    Where something is raised inside, nothing of it is left. A file that is there already keeps its
    permissions; a symbolic link stays, and the file that it leads to is replaced.

    Raises:
        OSError: when the folder cannot be written, or the path is a pipe or a device; nothing is
            left behind.
    """
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")
    permissions = _permissions(path)
    temporary = path.with_name(_temporary_name(path.name))
    try:
        # an ordinary new file: what the umask leaves of 0666
        mode = 0o666 if permissions is None else 0o600
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield temporary
        _sync(temporary)
        if permissions is not None:
            os.chmod(temporary, permissions)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)
        raise
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Waits until a file or a folder is on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def append(path: Path, blob: bytes) -> None:
    """Appends to a file in one step, and waits for the disk."""
    with open(path, "ab", buffering=0) as file:
        file.write(blob)
        os.fsync(file.fileno())


def _permissions(path: Path) -> int | None:
    """The permissions of the file that will be replaced; None if there is none yet."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # of a folder the system says it itself
        raise FileExistsError(
            f"{path}: a pipe or a device, which cannot be replaced; choose another name"
        )
    return mode & 0o777


def _temporary_name(name: str) -> str:
    """A hidden name beside a file, short enough for file systems that take 255 bytes."""
    beginning = os.fsdecode(os.fsencode(name)[:LONGEST])
    return f".{beginning}.{secrets.token_hex(4)}.tmp"


def read_header(path: Stored) -> Header:
    """The header of a file whose checksum fits; the file is mapped, not held in memory.

    Raises:
        CheckpointError: truncated, altered, of an unknown format, or no checkpoint of mvkit.
        OSError: when it cannot be read.
    """
    return _checked_header(_blob(path), name_of(path))


def read(path: Stored) -> tuple[Header, dict[str, Tensor]]:
    """Header and tensors of a file whose checksum fits; errors as in `read_header`.

    The file is opened once: the tensors are views of the bytes whose checksum was taken, also
    where another file takes its place meanwhile. Bytes, and what a binary file object has left,
    are copied.
    """
    blob = _blob(path)
    where = name_of(path)
    header, entries = _parsed(blob, where)
    _check_digest(blob, where)
    try:
        return header, tensors_of(blob, _header_end(blob), entries)
    except (ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"{where}: its tensors cannot be read: {error}; take another copy"
        ) from None


def name_of(path: Stored) -> str:
    """What messages call a file, bytes or a file object."""
    return str(path) if isinstance(path, str | os.PathLike) else type(path).__name__


def _blob(path: Stored) -> Blob:
    """The bytes of a file, of bytes, or that a binary file object has left.

    Raises:
        RequestError: something else.
    """
    if isinstance(path, str | os.PathLike):
        return _mapped(path)
    if isinstance(path, bytes | bytearray | memoryview):
        return bytearray(path)
    if isinstance(path, io.TextIOBase) or not isinstance(path, Readable):
        raise RequestError(
            f"load: got {name_of(path)}; expected a path, bytes, or a file object that returns "
            "bytes, such as open(path, 'rb')"
        )
    return bytearray(path.read())


def _mapped(path: FilePath) -> mmap.mmap:
    """The bytes of a regular file; what is written into them does not reach the file."""
    with open(path, "rb", opener=_open_at_once) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise CheckpointError(
                f"{path}: a pipe or a device; expected a file; write its content to one first"
            )
        if not about.st_size:
            raise CheckpointError(
                f"{path}: truncated, or no checkpoint; 0 bytes; take another copy"
            )
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file; a pipe that nobody writes into does not keep it waiting."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _header_end(blob: Blob) -> int:
    """Where the header of safetensors ends; 8 in files without one."""
    return 8 + struct.unpack("<Q", blob[:8])[0] if len(blob) >= 8 else 8


def _digest_at(blob: Blob, where: str) -> tuple[int, int]:
    """Where the digits of the checksum are stored, which must be one place in the header."""
    digits = list(_DIGEST.finditer(blob[: _header_end(blob)]))
    if len(digits) != 1:
        raise CheckpointError(
            f"{where}: no checksum where it should be; the file was altered; take another copy"
        )
    return digits[0].span(1)


def _checked_header(blob: Blob, where: str) -> Header:
    """The header of a file, once its checksum fits."""
    header, _ = _parsed(blob, where)
    _check_digest(blob, where)
    return header


def _parsed(blob: Blob, where: str) -> tuple[Header, Entries]:
    """The header of a file, and what it says of each tensor; the checksum is not looked at yet."""
    start = _header_end(blob)  # of the tensors
    if start == 8 or len(blob) < start:
        raise CheckpointError(
            f"{where}: truncated, or no checkpoint; {len(blob)} bytes; take another copy"
        )
    try:
        entries = json.loads(blob[8:start], object_pairs_hook=_without_repeats)
        text = entries.pop("__metadata__")[KEY]
        header: Header = json.loads(text, object_pairs_hook=_without_repeats)
        end = start + max((tensor["data_offsets"][1] for tensor in entries.values()), default=0)
        written = header["format"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise CheckpointError(
            f"{where}: no checkpoint of mvkit, or its header was altered; take another copy"
        ) from None
    if type(written) is not int or written != FORMAT:
        raise CheckpointError(
            f"{where}: format {written!r}, this mvkit reads {FORMAT}; upgrade mvkit, or take "
            f"another copy{other_version(header)}"
        )
    if len(blob) != end:
        raise CheckpointError(f"{where}: truncated: {len(blob)} bytes of {end}; take another copy")
    return header, entries


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; raises ValueError if a key is there twice."""
    items = dict(pairs)
    if len(items) < len(pairs):
        raise ValueError("a key that is there twice")
    return items


def other_version(header: Header) -> str:
    """The end of a message about a file that another version of mvkit wrote; else nothing."""
    written = header.get("mvkit", __version__)
    if written == __version__:
        return ""
    return f" (written by mvkit {written!r}; this is mvkit {__version__!r})"


def _check_digest(blob: Blob, where: str) -> None:
    """Raises CheckpointError unless the checksum fits."""
    start, stop = _digest_at(blob, where)
    digest = hashlib.sha256(blob[:start])
    digest.update(_ZEROS.encode())
    with memoryview(blob) as whole, whole[stop:] as rest:
        digest.update(rest)
    if digest.hexdigest().encode() != blob[start:stop]:
        raise CheckpointError(
            f"{where}: altered since it was saved: its checksum does not fit; take another copy"
        )
