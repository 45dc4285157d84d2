"""Datasets larger than memory: a folder of safetensors shards, read memory-mapped.

`index.safetensors` is sealed (`mvkit.core.safe_file`): its header tells the modalities and the shards with their SHA-256; masks
and `extra` are its tensors and stay in memory. A shard holds `data/<modality>` and `elements/<modality>` of its rows.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import mmap
import os
import secrets
import shutil
import struct
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from mvkit._version import __version__
from mvkit.core import safe_file
from mvkit.core.batch import Batch
from mvkit.core.modality import Modality, as_modalities
from mvkit.data.batch_order import order, windowed
from mvkit.data.sources import observed
from mvkit.errors import DataError, ShapeError
from mvkit.registry.spec import to_dict

INDEX = "index.safetensors"


_SHARD = 2**24  # bytes of a shard unless told otherwise


_AROUND = 2**16  # bytes that the kernel maps around one that is read


_MAPS = 512  # shards mapped at a time: each keeps a file open


def save_shards(
    batches: Batch | Iterable[Batch],
    folder: str | os.PathLike[str],
    modalities: Mapping[str, Any],
    *,
    rows_per_shard: int | None = None,
) -> None:
    """Writes rows as a folder of shards, which appears complete or not at all.

    Args:
        batches: all rows, or any iterable of batches, of which one is held in memory at a time.
        folder: a new or empty folder.
        modalities: what the modalities are, in the order of the masks.
        rows_per_shard: the last shard of each batch may have fewer; None: about 16 MB a shard.

    Raises:
        FileExistsError: the folder holds something.
        DataError: no rows; modalities whose networks are modules.
        ShapeError: batches that differ in shape, dtype or keys.
    """
    folder, modalities = Path(folder), as_modalities(modalities)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder}: there is something in it; expected a new or empty folder; choose another"
        )
    nets = [(name, net) for name, m in modalities.items() for net in (m.encoder, m.decoder)]
    module = next((name for name, net in nets if isinstance(net, nn.Module)), None)
    if module is not None:
        raise DataError(
            f"save: modality {module!r} holds a module, which no file can; give it to the model instead"
        )
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        writer = _Writer(temporary, modalities)
        for batch in [batches] if isinstance(batches, Batch) else batches:
            row = sum(value[0].nbytes for value in batch.data.values()) if len(batch) else 0
            size = rows_per_shard or max(1, _SHARD // max(1, row))
            for start in range(0, len(batch), size):
                writer.add(batch.take(slice(start, start + size)))
        writer.finish()
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@attrs.define(eq=False)
class _Writer:
    """A folder of shards on its way."""

    folder: Path
    modalities: dict[str, Modality]
    shards: list[dict[str, Any]] = attrs.field(factory=list)
    kinds: dict[str, tuple[str, tuple[int, ...]]] = attrs.field(factory=dict)
    masks: list[Tensor] = attrs.field(factory=list)
    extra: list[dict[str, Any]] = attrs.field(factory=list)

    def add(self, batch: Batch) -> None:
        """Writes a shard."""
        tensors = {f"data/{name}": value for name, value in batch.data.items()}
        tensors |= {f"elements/{name}": value for name, value in (batch.elements or {}).items()}
        for key, value in tensors.items():
            kind = (str(value.dtype).removeprefix("torch."), tuple(value.shape[1:]))
            if self.kinds.setdefault(key, kind) != kind:
                raise ShapeError(
                    f"save: {key} is {kind[0]} {kind[1]} in shard {len(self.shards)}, after {self.kinds[key][0]} "
                    f"{self.kinds[key][1]}; expected one dtype and shape in all batches"
                )
        if self.extra and set(batch.extra) != set(self.extra[0]):
            raise ShapeError(
                f"save: extra has {sorted(batch.extra)} in shard {len(self.shards)}, after {sorted(self.extra[0])}; "
                "expected the same keys in all batches"
            )
        self.masks.append(observed(batch, tuple(self.modalities)))
        self.extra.append(batch.extra)
        blob = safetensors.torch.save(
            {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        )
        file = f"shard-{len(self.shards):05d}.safetensors"
        safe_file.write_whole(self.folder / file, blob)
        digest = hashlib.sha256(blob).hexdigest()
        self.shards.append(
            {"file": file, "rows": len(batch), "bytes": len(blob), "digest": digest}
        )

    def finish(self) -> None:
        """Writes the index."""
        if not self.shards:
            raise DataError("save: the data have no rows; expected one at least")
        tensors = {"mask": torch.cat(self.masks)}
        for key in self.extra[0]:
            parts = [extra[key] for extra in self.extra]
            if all(isinstance(part, Tensor) for part in parts):
                tensors[f"extra/{key}"] = torch.cat(parts)
            else:
                lists = [
                    part.tolist() if isinstance(part, np.ndarray | Tensor) else part
                    for part in parts
                ]
                values = list(itertools.chain.from_iterable(lists))
                tensors[f"json/{key}"] = torch.frombuffer(
                    bytearray(json.dumps(values).encode()), dtype=torch.uint8
                )
        header = {
            "mvkit": __version__,
            "order": list(self.modalities),
            "modalities": {name: to_dict(modality) for name, modality in self.modalities.items()},
            "kinds": self.kinds,
            "shards": self.shards,
        }
        safe_file.write(self.folder / INDEX, header, tensors)


class Shards:
    """Rows in a folder of shards, gathered by index: a `Source`, for data larger than memory.

    Pages that were read are given back to the system once they come to `memory` bytes, so that private memory stays
    bounded whatever the order.

    Args:
        folder: written by `save_shards` or `MultimodalDataset.save`.
        window: how `shuffle` works: shards in random order, rows shuffled within each window of so many shards, a few
            files at a time; None: rows in fully random order, for fast disks.
        memory: bytes of mapped pages to hold; two windows should fit, since a batch may lie across them.
        verify: read all shards now and compare their SHA-256.

    Raises:
        DataError: no such folder of shards; a shard that is absent or altered.
        CheckpointError: an index that was altered.

    Example:
        >>> import tempfile, torch
        >>> from mvkit import Batch, Pipeline
        >>> from mvkit.data.shards import Shards, save_shards
        >>> rows = Batch({"a": torch.rand(10, 2)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_shards(rows, f"{folder}/a", {"a": (2,)}, rows_per_shard=3)
        ...     [len(batch) for batch in Pipeline(Shards(f"{folder}/a"), batch_size=4)]
        [4, 4, 2]
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        window: int | None = 4,
        memory: int = 132_000_000,
        verify: bool = False,
    ) -> None:
        self.folder, self.window, self.memory = Path(folder), window, memory
        if not (self.folder / INDEX).is_file():
            raise DataError(
                f"{folder}: no folder of shards: {INDEX} is not there; expected one that save wrote"
            )
        header, tensors = safe_file.read(self.folder / INDEX)
        self.modalities = as_modalities(
            {name: header["modalities"][name] for name in header["order"]}
        )
        self.shards: list[dict[str, Any]] = header["shards"]
        self.kinds = {
            key: (getattr(torch, kind), tuple(shape))
            for key, (kind, shape) in header["kinds"].items()
        }
        extra: dict[str, Any] = {}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            if kind != "mask":
                extra[name] = value if kind == "extra" else json.loads(value.numpy().tobytes())
        self.table = Batch({}, tensors["mask"], extra=extra)
        self.counts = [shard["rows"] for shard in self.shards]
        self._ends = np.cumsum(self.counts)
        self._maps: dict[int, _Map] = {}
        self._lock = threading.Lock()
        for shard in self.shards:
            self._check(shard, verify)

    def _check(self, shard: dict[str, Any], verify: bool) -> None:
        path = self.folder / shard["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != shard["bytes"]:
            found = "is not there" if size is None else f"has {size} bytes of {shard['bytes']}"
            raise DataError(f"{path}: {found}; expected it as it was saved; take another copy")
        if verify:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard["digest"]:
                    raise DataError(
                        f"{path}: altered since it was saved: its SHA-256 does not fit; take another copy"
                    )

    def __len__(self) -> int:
        return len(self.table)

    @property
    def mask(self) -> Tensor | None:
        """What each row observes, (b, m)."""
        return self.table.mask

    @property
    def extra(self) -> dict[str, Any]:
        """What else is known of each row."""
        return self.table.extra

    @property
    def labels(self) -> Any:
        """`extra["label"]`, if there is one."""
        return self.extra.get("label")

    def epoch_order(self, *, seed: int, epoch: int) -> Tensor:
        """Indices of the rows in an epoch, (b,): window-shuffled, or fully random."""
        if self.window is None:
            return order(len(self), shuffle=True, seed=seed, epoch=epoch)
        return windowed(self.counts, window=self.window, seed=seed, epoch=epoch)

    def __getitems__(self, indices: Sequence[int], /) -> Batch:
        index = np.asarray(indices, dtype=np.int64)
        turn = np.argsort(index, kind="stable")  # each shard from front to back
        back = torch.from_numpy(np.argsort(turn, kind="stable"))
        shard = np.searchsorted(self._ends, index[turn], side="right")
        local = index[turn] - (self._ends - self.counts)[shard]
        cuts = [0, *(np.flatnonzero(np.diff(shard)) + 1).tolist(), len(index)]
        made = {
            key: torch.empty(len(index), *shape, dtype=dtype)
            for key, (dtype, shape) in self.kinds.items()
        }
        raw = {
            k: x.reshape(len(index), math.prod(x.shape[1:])).view(torch.uint8).numpy()
            for k, x in made.items()
        }
        for start, stop in itertools.pairwise(cuts):
            if start < stop:
                mapped = self._map(int(shard[start]))
                mapped.copy(
                    local[start:stop], {key: rows[start:stop] for key, rows in raw.items()}
                )
        with self._lock:
            self._give_back(0)
        found = {key: value.index_select(0, back) for key, value in made.items()}
        elements = {key[9:]: value for key, value in found.items() if key.startswith("elements/")}
        data = {key[5:]: value for key, value in found.items() if key.startswith("data/")}
        return attrs.evolve(
            self.table.take(torch.from_numpy(index)), data=data, elements=elements or None
        )

    def _map(self, i: int) -> _Map:
        with self._lock:
            if i not in self._maps:
                shard, whole = (
                    self.shards[i],
                    self.window is not None,
                )  # all rows of a window are wanted soon
                self._give_back(shard["bytes"] if whole else 0)
                if len(self._maps) >= _MAPS:
                    self._maps.pop(next(iter(self._maps)))
                self._maps[i] = _Map.open(self.folder / shard["file"], shard["rows"], whole=whole)
            mapped = self._maps[i] = self._maps.pop(i)  # the last used comes last
            return mapped

    def _give_back(self, more: int) -> None:
        """Makes room for so many bytes more; pages stay in the system's cache."""
        held = more + sum(
            min(mapped.touched, len(mapped.memory)) for mapped in self._maps.values()
        )
        for i, mapped in list(self._maps.items()) if held > self.memory else ():
            if self.window is None:
                mapped.memory.madvise(mmap.MADV_DONTNEED)
                mapped.touched = 0
            elif held > self.memory:
                held -= len(mapped.memory)
                del self._maps[i]  # unmapped with its last array


@attrs.define(eq=False)
class _Map:
    """A mapped shard: its tensors as bytes (rows, bytes a row), and how many bytes of it may have been read."""

    memory: mmap.mmap
    tensors: dict[str, Any]
    touched: int = 0

    @classmethod
    def open(cls, path: Path, rows: int, *, whole: bool) -> _Map:
        """Maps a file for reading; `whole` reads it now, in one go instead of page by page."""
        flags = mmap.MAP_SHARED | (
            getattr(mmap, "MAP_POPULATE", 0) if whole else 0
        )  # only Linux has it
        with path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ)
        size = 8 + struct.unpack("<Q", memory[:8])[0]
        if not whole:
            memory.madvise(mmap.MADV_RANDOM)
        tensors = {}
        for key, one in json.loads(memory[8:size]).items():
            if key != "__metadata__":
                start, stop = one["data_offsets"]
                flat = np.frombuffer(memory, np.uint8, stop - start, size + start)
                tensors[key] = flat.reshape(rows, (stop - start) // rows)
        return cls(memory, tensors, len(memory) if whole else 0)

    def copy(self, rows: Any, into: Mapping[str, Any]) -> None:
        """Rows (n,) of each tensor, as bytes (n, bytes a row); of one it lacks, zeros for data, ones for elements."""
        for key, out in into.items():
            stored = self.tensors.get(key)
            if stored is None:
                out[:] = key.startswith("elements/")
            else:
                np.take(stored, rows, axis=0, out=out, mode="clip")  # "raise" would copy once more
        self.touched += 2 * len(rows) * len(into) * _AROUND  # a row may lie across two of those
