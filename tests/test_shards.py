"""Folders of shards: what is saved comes back, in orders that a few files at a time can serve."""

import attrs
import numpy as np
import pytest
import torch
from helpers import modalities, model, rows

import mvkit
from mvkit import (
    Batch,
    CheckpointError,
    DataError,
    Modality,
    MultimodalDataset,
    Pipeline,
    ShapeError,
)
from mvkit.data.batch_order import windowed
from mvkit.data.shards import INDEX, Shards, save_shards
from mvkit.data.sources import Described, Ordered, Source

MODALITIES = modalities()
SCHEMA = model().schema


def gappy(b=23):
    batch = rows(b)
    batch.data["a"][::2, 1] = torch.nan
    elements = {"b": torch.rand(b, 2, 2, generator=torch.Generator().manual_seed(1)) < 0.5}
    elements["b"][..., 0, 0] = True
    extra = {
        "label": torch.arange(b),
        "name": [f"row {i}" for i in range(b)],
        "time": np.arange(b) / 2,
    }
    return attrs.evolve(batch, elements=elements, extra=extra)


@pytest.fixture
def folder(tmp_path):
    MultimodalDataset(gappy(), MODALITIES).save(tmp_path / "rows", rows_per_shard=5)
    return tmp_path / "rows"


def same(one, other):
    for x, y in ((one.data, other.data), (one.elements, other.elements)):
        assert set(x) == set(y)
        assert all(
            torch.equal(x[n].nan_to_num(99), y[n].nan_to_num(99)) and x[n].dtype == y[n].dtype
            for n in x
        )
    assert torch.equal(one.mask, other.mask)
    assert one.extra["label"].tolist() == other.extra["label"].tolist()
    assert list(one.extra["name"]) == list(other.extra["name"])
    assert list(one.extra["time"]) == list(other.extra["time"])


def test_rows_come_back_in_any_order(folder):
    batch, shards = gappy(), MultimodalDataset.open(folder, verify=True)
    assert len(shards) == 23
    assert shards.counts == [5, 5, 5, 5, 3]
    assert shards.modalities == MODALITIES
    assert list(shards.modalities) == list(MODALITIES)
    assert torch.equal(shards.labels, torch.arange(23))
    assert isinstance(shards, Source)
    assert isinstance(shards, Ordered)
    assert isinstance(shards, Described)
    for index in (
        torch.randperm(23),
        torch.tensor([7]),
        torch.tensor([22, 0, 22, 3]),
        torch.arange(0),
    ):
        same(shards.__getitems__(index.tolist()), batch.take(index))


@pytest.mark.parametrize("window", [1, 2, 9, None])
@pytest.mark.parametrize("memory", [0, 2**28])
def test_batches_are_those_of_the_rows_in_memory(folder, window, memory):
    pipeline = Pipeline(
        Shards(folder, window=window, memory=memory),
        batch_size=4,
        seed=1,
        schema=SCHEMA,
        workers=2,
    )
    whole = mvkit.core.batch.conform(gappy(), SCHEMA)
    pipeline.set_epoch(3)
    found = list(pipeline)
    index = torch.cat([x.extra["label"] for x in found])
    assert sorted(index.tolist()) == list(range(23))
    for x, part in zip(found, index.split(4), strict=True):
        expected = whole.take(part)
        assert torch.equal(x.observed, expected.observed)
        assert all(torch.equal(x.data[n], expected.data[n]) for n in x.data)
        assert all(
            torch.equal(value, expected.elements[n]) for n, value in (x.elements or {}).items()
        )
    pipeline.load_state_dict({"epoch": 3, "batch": 2})
    assert torch.equal(torch.cat([x.extra["label"] for x in pipeline]), index[8:])


def test_a_window_shuffles_the_rows_of_a_few_shards():
    counts = [5, 5, 5, 5, 3]
    found = windowed(counts, window=2, seed=0, epoch=4)
    assert sorted(found.tolist()) == list(range(23))
    assert torch.equal(found, windowed(counts, window=2, seed=0, epoch=4))
    assert not torch.equal(found, windowed(counts, window=2, seed=0, epoch=5))
    shard = torch.arange(5).repeat_interleave(torch.tensor(counts))[found]
    start, seen = 0, []
    for size in (2, 2, 1):  # each window holds all rows of so many shards, and no other
        window = list(dict.fromkeys(shard[start:].tolist()))[:size]
        stop = start + sum(counts[i] for i in window)
        assert set(shard[start:stop].tolist()) == set(window)
        assert found[start:stop].tolist() != sorted(found[start:stop].tolist())
        start, seen = stop, seen + window
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_every_row_may_come_first_and_windows_mix_shards():
    first = {int(windowed([2, 2, 2], window=2, seed=0, epoch=e)[0]) for e in range(200)}
    assert first == set(range(6))
    pairs = {tuple(windowed([1, 1, 1], window=3, seed=0, epoch=e).tolist()) for e in range(200)}
    assert len(pairs) == 6


def test_grouped_batches_of_shards(folder):
    shards = Shards(folder)
    for x in Pipeline(shards, batch_size=4, group="pattern"):
        assert len(x.mask.unique(dim=0)) == 1
    save_shards(
        attrs.evolve(rows(12), extra={"label": torch.arange(12) % 2}),
        folder.parent / "even",
        MODALITIES,
    )
    for x in Pipeline(Shards(folder.parent / "even"), batch_size=4, group="balanced"):
        assert x.extra["label"].sum() == 2


def test_batches_one_at_a_time_with_what_each_of_them_lacks(tmp_path):
    def batches():
        yield Batch({"a": torch.rand(3, 2), "b": torch.rand(3, 1)})
        yield Batch({"b": torch.rand(2, 1)}, elements={"b": torch.tensor([[True], [False]])})

    save_shards(batches(), tmp_path / "s", {"a": (2,), "b": (1,), "c": (4,)}, rows_per_shard=2)
    shards = Shards(tmp_path / "s")
    assert shards.counts == [2, 1, 2]
    found = shards.__getitems__([4, 0, 3])
    assert found.mask.tolist() == [
        [False, False, False],
        [True, True, False],
        [False, True, False],
    ]
    assert found.data["a"][[0, 2]].tolist() == [[0, 0], [0, 0]]
    assert found.elements["b"].tolist() == [[False], [True], [True]]


def test_fit_on_shards(folder):
    made = model()
    history = mvkit.fit(
        made, Shards(folder), validation=Shards(folder, window=None), epochs=2, batch_size=8
    )
    assert len(history) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8, torch.bool, torch.int64])
def test_any_dtype(tmp_path, dtype):
    x = torch.randint(0, 2, (7, 3)).to(dtype)
    save_shards(
        Batch({"a": x, "b": x[:, 0]}), tmp_path / "s", {"a": (3,), "b": (1,)}, rows_per_shard=2
    )
    found = Shards(tmp_path / "s").__getitems__([6, 2])
    assert torch.equal(found.data["a"], x[[6, 2]])
    assert torch.equal(found.data["b"], x[[6, 2], 0])


def test_what_is_altered_is_refused(folder):
    path = folder / "shard-00001.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    Shards(folder)
    with pytest.raises(
        DataError, match=r"shard-00001.safetensors: altered since it was saved: its SHA-256"
    ):
        Shards(folder, verify=True)
    path.write_bytes(good[:-1])
    with pytest.raises(
        DataError, match=rf"00001.safetensors: has {len(good) - 1} bytes of {len(good)}; expected"
    ):
        Shards(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"00001.safetensors: is not there"):
        Shards(folder)
    index = folder / INDEX
    blob = bytearray(index.read_bytes())
    blob[-1] ^= 1
    index.write_bytes(blob)
    with pytest.raises(CheckpointError, match="altered since it was saved"):
        Shards(folder)
    with pytest.raises(DataError, match=r"no folder of shards: index.safetensors is not there"):
        Shards(folder.parent)


def test_what_cannot_be_saved(folder, tmp_path):
    with pytest.raises(FileExistsError, match="expected a new or empty folder"):
        save_shards(rows(3), folder, MODALITIES)
    new = tmp_path / "new"
    with pytest.raises(DataError, match="the data have no rows"):
        save_shards([], new, MODALITIES)
    with pytest.raises(
        ShapeError,
        match=r"data/a is float32 \(3,\) in shard 1, after float32 \(2,\); expected one",
    ):
        save_shards(
            [Batch({"a": torch.rand(1, 2)}), Batch({"a": torch.rand(1, 3)})], new, {"a": (2,)}
        )
    with pytest.raises(
        ShapeError, match=r"extra has \[\] in shard 1, after \['y'\]; expected the same keys"
    ):
        save_shards(
            [Batch({"a": torch.rand(1, 2)}, extra={"y": [1]}), Batch({"a": torch.rand(1, 2)})],
            new,
            {"a": (2,)},
        )
    with pytest.raises(DataError, match="modality 'a' holds a module"):
        save_shards(rows(3), new, {"a": Modality((3,), encoder=torch.nn.Linear(3, 4))})
    with pytest.raises(
        ShapeError, match=r"batch.mask: shape \(3, 3\); expected \(3, 1\), columns a"
    ):
        save_shards(rows(3), new, {"a": (3,)})
    assert {path.name for path in tmp_path.iterdir()} == {"rows"}  # nothing is left behind
