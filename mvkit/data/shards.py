"""Datasets larger than memory: a folder of safetensors shards, read memory-mapped.

`index.safetensors` is sealed (`mvkit.core.safe_file`): its header lists the modalities and the
shards with their SHA-256; masks and `extra` are its tensors and stay in memory. A shard holds
`data/<modality>` and `elements/<modality>` of its rows.

Shards are mapped here and not by `safetensors.safe_open`: its mappings are private and writable,
which limits of memory count in full, and cannot return single pages, so that random order is four
times slower in the same memory.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import mmap
import os
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mvkit.core.batch import Batch, conform
from mvkit.core.covariates import Covariate
from mvkit.core.modality import ModalityLike, as_modalities
from mvkit.core.validation import Schema
from mvkit.data.align import alignment
from mvkit.data.batch_order import order, windowed
from mvkit.data.checked_rows import CheckedRows
from mvkit.data.mapped_shard import MappedShard, check_uncut
from mvkit.data.one_pass import fit_in_passes
from mvkit.data.read_ahead import Plan
from mvkit.data.row_columns import Levels, declared
from mvkit.data.shard_files import INDEX, parts_of, write_folder
from mvkit.data.shard_index import inside, read_index
from mvkit.data.shard_pass import ShardPass, room_for
from mvkit.data.sources import Source
from mvkit.data.transforms import Steps
from mvkit.errors import DataError

MAPS = 512  # shards mapped at a time: each keeps a file open
Indices = NDArray[np.int64]
Folder = str | os.PathLike[str]


def save_shards(
    batches: Batch | Iterable[Batch],
    folder: Folder,
    modalities: Mapping[str, ModalityLike],
    *,
    rows_per_shard: int | None = None,
    levels: Levels | None = None,
) -> None:
    """Writes rows as a folder of shards, which appears complete or not at all.

    Args:
        batches: all rows, or any iterable of batches, of which one is held in memory at a time.
        folder: a new or empty folder.
        modalities: what the modalities are, in the order of the masks.
        rows_per_shard: the last shard of each batch may have fewer; None: about 16 MB per shard.
        levels: what the covariates among `extra` can be, as `MultimodalDataset.levels`.

    Raises:
        FileExistsError: the folder is not empty.
        DataError: no rows; modalities whose networks are modules; ids or other values that no
            file can hold.
        ShapeError: batches that differ in shape, dtype or keys, or modalities in length.
        RequestError: a number of rows that cannot be.
    """
    target = Path(folder)
    checked = as_modalities(modalities)
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(
            f"{target}: there is something in it; expected a new or empty folder; choose another"
        )
    for name, modality in checked.items():
        if isinstance(modality.encoder, nn.Module) or isinstance(modality.decoder, nn.Module):
            raise DataError(
                f"save: modality {name!r} holds a module, which no file can; give it to the model "
                "instead"
            )
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        write_folder(parts_of(batches, rows_per_shard), temporary, checked, levels or {})
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


class Shards:
    """Rows in a folder of shards, gathered by index: a `Source`, for data larger than memory.

    Pages that were read are returned to the system once they come to `memory` bytes, so that
    private memory stays bounded whatever the order.

    Args:
        folder: written by `save_shards` or `MultimodalDataset.save`.
        window: how `shuffle` works: shards in random order, rows shuffled within each window of so
            many shards, a few files at a time; None: rows in fully random order, for fast disks.
        memory: bytes of shards to hold; two windows and a shard should fit, since a batch may lie
            across them, and the next shards are read meanwhile.
        verify: read all shards now and compare their SHA-256.

    Its `mask` is what each row observes, (b, m), and `extra` what else is known of each row.

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
        folder: Folder,
        *,
        window: int | None = 4,
        memory: int = 200_000_000,
        verify: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.window = window
        self.memory = memory
        if not (self.folder / INDEX).is_file():
            raise DataError(
                f"{folder}: no folder of shards: {INDEX} is not there; expected one that save "
                "wrote"
            )
        index = read_index(self.folder / INDEX)
        self.modalities = index.modalities
        self.kinds = index.kinds
        self.mask: Tensor | None = index.mask
        self.extra = index.extra
        self.levels = index.levels
        self.shards = index.shards
        self.checked: CheckedRows | None = None
        if index.plain is not None:
            self.checked = CheckedRows(index.modalities, index.plain, index.kinds)
        self._known: Schema | None = None  # a model's whose rows need no further look
        self.counts = [shard["rows"] for shard in self.shards]
        self._ends = np.cumsum(self.counts)
        self._buffers: dict[str, Tensor] | None = None  # of a pass that is over
        self._maps: dict[int, MappedShard] = {}
        self._lock = threading.Lock()
        for shard in self.shards:
            self._check(shard, verify)

    def _check(self, shard: dict[str, Any], verify: bool) -> None:
        path = inside(self.folder, shard["file"])
        size = path.stat().st_size if path.is_file() else None
        fault = None
        if size is None:
            fault = "is not there; expected it as it was saved"
        elif size != shard["bytes"]:
            fault = f"has {size} bytes of {shard['bytes']}; expected it as it was saved"
        elif verify:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != shard["digest"]:
                fault = "altered since it was saved: its SHA-256 does not fit"
        if fault is not None:
            raise DataError(f"{path}: {fault}; take another copy")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __repr__(self) -> str:
        return f"Shards({str(self.folder)!r}; {self.alignment})"

    @property
    def alignment(self) -> str:
        """How many rows have all modalities, and how many each, by the masks in the index."""
        if self.mask is None:
            return f"{len(self):,} rows"
        return alignment(self.mask, tuple(self.modalities))

    @property
    def labels(self) -> Any:
        """`extra["label"]`, if there is one."""
        return self.extra.get("label")

    @property
    def covariates(self) -> dict[str, Covariate]:
        """What a model may be conditioned on, as `MultimodalDataset.covariates`."""
        return declared(self.levels, self.modalities)

    def epoch_order(self, *, seed: int, epoch: int) -> Tensor:
        """Indices of the rows in an epoch, (b,): window-shuffled, or fully random."""
        if self.window is None:
            return order(len(self), shuffle=True, seed=seed, epoch=epoch)
        return windowed(self.counts, window=self.window, seed=seed, epoch=epoch)

    def __getitems__(self, indices: Sequence[int], /) -> Batch:
        index = np.asarray(indices, dtype=np.int64)
        shard = np.searchsorted(self._ends, index, side="right")
        local = index - (self._ends - self.counts)[shard]
        tensors = {}
        raw = {}
        for key, (dtype, shape) in self.kinds.items():
            tensors[key] = torch.empty(len(index), *shape, dtype=dtype)
            flat = tensors[key].reshape(len(index), math.prod(shape))
            raw[key] = flat.view(torch.uint8).numpy()
        turns = np.argsort(index, kind="stable")  # each shard from front to back
        for places in np.split(turns, np.flatnonzero(np.diff(shard[turns])) + 1):
            if len(places):
                self._map(int(shard[places[0]])).copy(local[places], raw, places)
        with self._lock:
            self._give_back(0)
        return self._batch(index, tensors)

    def _batch(self, index: Indices, tensors: Mapping[str, Tensor]) -> Batch:
        """The rows at `index`, (b,), with the tensors of their shards."""
        data: dict[str, Tensor] = {}
        elements: dict[str, Tensor] = {}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            (data if kind == "data" else elements)[name] = value
        rows = Batch({}, self.mask, extra=self.extra).take(torch.from_numpy(index))
        return attrs.evolve(rows, data=data, elements=elements or None)

    @contextlib.contextmanager
    def read_ahead(self, batches: Sequence[Tensor]) -> Iterator[Source]:
        """These rows for one pass over known batches, the shards of which are read beforehand.

        Where `memory` cannot hold the shards that are needed at a time, as in fully random order,
        they are mapped as ever.

        Args:
            batches: the rows of each batch, (b,) each; every one is asked for once.
        """
        plan = Plan.of(self.counts, batches)
        slots = room_for(plan, self.shards, self.kinds, self.memory)
        if slots is None:
            yield self
            return
        spare = self._buffers
        self._buffers = None  # another pass at the same time has its own
        reader = ShardPass(plan, self.shards, self.kinds, self._file, slots, spare)
        try:
            yield _RowsOfPass(self, reader)
        finally:
            self._buffers = reader.close()

    def conform(self, batch: Batch, schema: Schema) -> Batch:
        """Rows of these shards as a model takes them.

        What was seen of their values when they were saved is not looked for again.
        """
        checked = self.checked
        if checked is not None and batch.schema is None and self._known is schema:
            return checked.conform(batch, schema)
        conformed = conform(batch, schema, compact=True)  # the first rows tell what is odd
        if checked is not None and checked.covers(schema):
            self._known = schema
        return conformed

    def fit_transforms(self, transforms: Mapping[str, Steps]) -> Self:
        """These rows with transforms fitted to all of them, a block at a time, in `modalities`.

        They are those of `MultimodalDataset.fit_transforms`, but for rounding; see
        `mvkit.data.one_pass.fit_in_passes`.
        """
        shards = copy.copy(self)
        shards.modalities = fit_in_passes(self, self.modalities, transforms)
        shards._maps = {}
        shards._buffers = None
        shards._known = None
        shards._lock = threading.Lock()
        if self.checked is not None:  # what transforms cannot take was refused
            shards.checked = attrs.evolve(self.checked, modalities=shards.modalities)
        return shards

    def _file(self, i: int) -> Path:
        """The file of shard i, which may have changed since the folder was opened."""
        shard = self.shards[i]
        path = inside(self.folder, shard["file"])
        if path.is_file():
            check_uncut(path, path.stat().st_size, shard["bytes"])
        self._check(shard, verify=False)
        return path

    def _map(self, i: int) -> MappedShard:
        """The mapped shard i, which becomes the one used last."""
        with self._lock:
            mapped = self._maps.pop(i, None)
            if mapped is None:
                shard = self.shards[i]
                self._check(shard, verify=False)  # it may have changed since the folder was opened
                whole = self.window is not None  # all rows of a window are wanted soon
                self._give_back(shard["bytes"] if whole else 0)
                if len(self._maps) >= MAPS:
                    self._maps.pop(next(iter(self._maps)))
                path = inside(self.folder, shard["file"])
                mapped = MappedShard(path, shard["rows"], whole, self.kinds)
            self._maps[i] = mapped
            return mapped

    def _give_back(self, more: int) -> None:
        """Makes room for so many bytes more; pages stay in the system's cache."""
        held = more + sum(mapped.touched for mapped in self._maps.values())
        if held <= self.memory:
            return
        for i, mapped in list(self._maps.items()):
            if self.window is None:
                mapped.memory.madvise(mmap.MADV_DONTNEED)
                mapped.touched = 0
            elif held > self.memory:
                held -= len(mapped.memory)
                del self._maps[i]  # unmapped with its last array


@attrs.frozen(eq=False)
class _RowsOfPass:
    """The rows of shards during a pass that reads them ahead."""

    shards: Shards
    reader: ShardPass

    def __len__(self) -> int:
        return len(self.shards)

    def __getitems__(self, indices: Sequence[int], /) -> Batch:
        index = np.asarray(indices, dtype=np.int64)
        return self.shards._batch(index, self.reader.gather(index))

    def conform(self, batch: Batch, schema: Schema) -> Batch:
        """See `Shards.conform`."""
        return self.shards.conform(batch, schema)
