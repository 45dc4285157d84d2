"""Folders of shards that are damaged or crafted, ids of any kind, and rows that cannot be saved."""

import datetime
import decimal
import fractions
import json
import os
import uuid

import numpy as np
import pytest
import safetensors.torch
import torch

from mvkit import Batch, CheckpointError, DataError, MultimodalDataset, ShapeError
from mvkit.core import safe_file
from mvkit.data.shards import INDEX, Shards, save_shards
from mvkit.errors import MvkitError, RequestError

SHARD = "shard-00000.safetensors"


@pytest.fixture
def folder(tmp_path):
    arrays = {"a": np.arange(12.0).reshape(6, 2), "b": np.array([0, 1, 2, 0, 1, 2])}
    data = MultimodalDataset.from_arrays(arrays, ids=list("pqrstu"), label=range(6))
    data.save(tmp_path / "rows", rows_per_shard=4)
    return tmp_path / "rows"


def resealed(folder, change):
    """The index with another header and other tensors, under a checksum that fits."""
    header, tensors = safe_file.read(folder / INDEX)
    change(header, tensors)
    for key in ("format", "sha256"):
        header.pop(key, None)
    safe_file.write(folder / INDEX, header, tensors)


def put(*path, value):
    """A change of the header at a path of keys."""

    def change(header, tensors):
        place = header
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def drop(*path):
    def change(header, tensors):
        place = header
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


def tensor(key, value):
    def change(header, tensors):
        tensors[key] = value

    return change


def text(value):
    return torch.frombuffer(bytearray(value), dtype=torch.uint8)


OUTSIDE = ["../x.safetensors", "/etc/passwd", "a/b", "..", "", ".", "a\\b", "a\0b"]
CRAFTED = {f"file {name!r}": put("shards", 0, "file", value=name) for name in OUTSIDE}
CRAFTED |= {
    "no shards": put("shards", value=[]),
    "shards that are no list": put("shards", value={"0": {}}),
    "a shard that is no mapping": put("shards", 0, value="x"),
    "no rows": drop("shards", 0, "rows"),
    "rows as text": put("shards", 0, "rows", value="4"),
    "negative rows": put("shards", 0, "rows", value=-4),
    "zero rows": put("shards", 0, "rows", value=0),
    "too many rows": put("shards", 0, "rows", value=2**70),
    "one row more": put("shards", 0, "rows", value=5),
    "rows as a bool": put("shards", 0, "rows", value=True),
    "bytes as a float": put("shards", 0, "bytes", value=1.5),
    "no bytes": put("shards", 0, "bytes", value=0),
    "no digest": drop("shards", 0, "digest"),
    "no kinds": drop("kinds"),
    "kinds that are a list": put("kinds", value=[1]),
    "a kind without a shape": put("kinds", "data/a", value=["float64"]),
    "a dtype that is none": put("kinds", "data/a", value=["nn", [2]]),
    "a dtype that is code": put("kinds", "data/a", value=["load", [2]]),
    "a negative shape": put("kinds", "data/a", value=["float64", [-2]]),
    "a shape of text": put("kinds", "data/a", value=["float64", ["2"]]),
    "a kind of no modality": put("kinds", "data/z", value=["float64", [2]]),
    "a kind of another role": put("kinds", "code/a", value=["float64", [2]]),
    "no order": drop("order"),
    "an order of others": put("order", value=["a", "z"]),
    "an order of numbers": put("order", value=5),
    "no modalities": put("modalities", value=[]),
    "a modality of nothing": put("modalities", "a", value=7),
    "an unknown part": put("modalities", "a", value={"shape": [2], "likelihood": "os:system"}),
    "no mask": lambda header, tensors: tensors.pop("mask"),
    "a mask of floats": tensor("mask", torch.ones(6, 2)),
    "a short mask": tensor("mask", torch.ones(5, 2, dtype=torch.bool)),
    "a narrow mask": tensor("mask", torch.ones(6, 1, dtype=torch.bool)),
    "few labels": tensor("extra/label", torch.ones(5)),
    "one label": tensor("extra/label", torch.tensor(1.0)),
    "other tensors": tensor("weights", torch.ones(6)),
    "ids that are no JSON": tensor("json/id", text(b"[1, 2")),
    "ids that are no text": tensor("json/id", text(b"\xff\xfe")),
    "ids that are no list": tensor("json/id", text(b'{"a": 1}')),
    "few ids": tensor("json/id", text(b'["p"]')),
    "ids of no type": tensor("json/id", text(b'[{"mvkit:os": "x"}, 1, 2, 3, 4, 5]')),
    "ids that are no days": tensor("json/id", text(b'[{"mvkit:date": 7}, 1, 2, 3, 4, 5]')),
    "deep ids": tensor("json/id", text(b"[" * 100_000)),
}  # fmt: skip


@pytest.mark.parametrize("kind", CRAFTED)
def test_a_crafted_index_is_refused(folder, kind):
    resealed(folder, CRAFTED[kind])
    with pytest.raises(MvkitError) as error:
        Shards(folder)
    if not kind.startswith(("a modality", "an unknown", "no modalities")):
        assert isinstance(error.value, CheckpointError)
        assert f"{INDEX}: it is no index of shards" in str(error.value)
        assert "take another copy" in str(error.value)


@pytest.mark.parametrize("key", ["data/a", "data/b"])
@pytest.mark.parametrize("kind", [["float32", [2]], ["float64", [3]], ["int8", []]])
def test_an_index_that_does_not_fit_its_shards(folder, key, kind):
    resealed(folder, put("kinds", key, value=kind))
    for window in (4, None):
        shards = Shards(folder, window=window)
        with pytest.raises(DataError, match=rf"{SHARD}: it is not the shard of the index.*{key}"):
            shards.__getitems__([0])


def test_links_that_lead_out_of_the_folder(folder, tmp_path):
    outside = tmp_path / "outside.safetensors"
    os.replace(folder / SHARD, outside)
    (folder / SHARD).symlink_to(outside)
    with pytest.raises(DataError, match=rf"{SHARD}: it is a link that leads out of the folder"):
        Shards(folder)
    os.replace(outside, folder / "other")
    (folder / SHARD).unlink()
    (folder / SHARD).symlink_to(folder / "other")
    (tmp_path / "link").symlink_to(folder)
    assert Shards(tmp_path / "link").__getitems__([0]).data["a"].tolist() == [[0.0, 1.0]]


def shard_with(header, size=200):
    blob = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return (len(blob).to_bytes(8, "little") + blob).ljust(size, b"\0")


@pytest.mark.parametrize(
    "blob",
    [
        b"\xff" * 200,
        shard_with(b"{"),
        shard_with([1]),
        shard_with({"data/a": 5}),
        shard_with({"data/a": {"shape": [4, 2]}}),
        shard_with({"data/a": {"shape": [4, 2], "data_offsets": [0, 64]}}, 100),
        shard_with({"data/a": {"shape": [4, 2], "data_offsets": [-64, 0]}}),
        shard_with({"data/a": {"shape": [4, 2], "data_offsets": ["0", "64"]}}),
        shard_with({"data/a": {"shape": [2, 4], "data_offsets": [0, 64]}}),
        shard_with({"data/z": {"shape": [4, 2], "data_offsets": [0, 64]}}),
    ],
)
def test_a_file_that_is_no_shard(folder, blob):
    (folder / SHARD).write_bytes(blob)
    resealed(folder, put("shards", 0, "bytes", value=len(blob)))
    shards = Shards(folder)
    with pytest.raises(DataError, match=SHARD):
        shards.__getitems__([0])


def test_an_index_that_is_no_file(tmp_path):
    (tmp_path / INDEX).mkdir()
    with pytest.raises(DataError, match="no folder of shards"):
        Shards(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    for blob in (b"", b"x" * 99, safetensors.torch.save({"mask": torch.ones(2)})):
        (other / INDEX).write_bytes(blob)
        with pytest.raises(CheckpointError, match=INDEX):
            Shards(other)


IDS = [
    ("s1", 1),
    ("s1", (2, None)),
    b"\x00\xff",
    datetime.date(2020, 2, 29),
    datetime.datetime(2020, 2, 29, 12, 30, 1, 5, datetime.timezone.utc),  # noqa: UP017
    datetime.time(12, 30),
    datetime.timedelta(days=-1, microseconds=3),
    decimal.Decimal("0.10"),
    fractions.Fraction(1, 3),
    uuid.UUID(int=7),
    1 + 2j,
    frozenset({"u", "v"}),
    np.datetime64("2020-02-29T01:02:03.000000004"),
    np.timedelta64(5, "m"),
    np.int64(7),
    np.str_("word"),
    0.5,
    True,
    "text",
]


def test_ids_of_any_kind_survive_shards(tmp_path):
    rows = Batch({"a": torch.ones(len(IDS), 1)}, extra={"id": IDS})
    save_shards(rows, tmp_path / "rows", {"a": (1,)}, rows_per_shard=5)
    ids = Shards(tmp_path / "rows").extra["id"]
    assert ids == IDS
    assert list(map(hash, ids)) == list(map(hash, IDS))
    plain = {np.int64: int, np.str_: str}
    assert [type(id) for id in ids] == [plain.get(type(id), type(id)) for id in IDS]


def test_ids_of_pandas_survive_shards(tmp_path):
    pandas = pytest.importorskip("pandas")
    index = pandas.Index(
        [
            pandas.Timestamp("2020-02-29 01:02:03.000000004"),
            pandas.Timestamp("2020-02-29", tz="Europe/Berlin"),
            pandas.Timedelta(5, "ns"),
            pandas.Period("2020-02", "M"),
            pandas.Interval(0.5, 1.5, closed="left"),
            ("s1", pandas.Timestamp("2020-02-29")),
        ],
        dtype=object,
        tupleize_cols=False,
    )
    table = pandas.DataFrame({"x": np.arange(6.0)}, index=index)
    data = MultimodalDataset.from_tables({"a": table})
    data.save(tmp_path / "rows")
    ids = MultimodalDataset.open(tmp_path / "rows").extra["id"]
    assert ids == index.tolist()
    assert list(map(hash, ids)) == list(map(hash, index))
    levels = pandas.MultiIndex.from_product([["s1", "s2"], [1, 2, 3]])
    MultimodalDataset.from_tables({"a": table.set_axis(levels)}).save(tmp_path / "levels")
    assert MultimodalDataset.open(tmp_path / "levels").extra["id"] == levels.tolist()


def test_ids_that_no_file_holds(tmp_path):
    class Own:
        def __repr__(self):
            return "Own()"

    rows = Batch({"a": torch.ones(2, 1)}, extra={"id": ["p", ("q", Own())]})
    with pytest.raises(DataError, match=r"save: extra\['id'\], row 1: .* is a tuple; expected"):
        save_shards(rows, tmp_path / "rows", {"a": (1,)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rows", [2.5, -1, 0, True, "3"])
def test_numbers_of_rows_that_cannot_be(tmp_path, rows):
    batch = Batch({"a": torch.ones(4, 1)})
    with pytest.raises(RequestError, match="save: rows_per_shard=.*expected a whole number of"):
        save_shards(batch, tmp_path / "rows", {"a": (1,)}, rows_per_shard=rows)
    assert not list(tmp_path.iterdir())


def test_batches_that_cannot_be_saved(tmp_path):
    shapes = {"a": (1,), "b": (1,)}
    unequal = Batch({"a": torch.ones(4, 1), "b": torch.ones(3, 1)})
    with pytest.raises(ShapeError, match="save: b: 3 values for 4 rows; expected one for each"):
        save_shards(unequal, tmp_path / "rows", shapes)
    short = Batch({"a": torch.ones(4, 1)}, extra={"label": [1, 2]})
    with pytest.raises(ShapeError, match="save: extra 'label': 2 values for 4 rows"):
        save_shards(short, tmp_path / "rows", shapes)
    with pytest.raises(DataError, match="save: got a dict; expected a Batch"):
        save_shards([{"a": torch.ones(4, 1)}], tmp_path / "rows", shapes)
    assert not list(tmp_path.iterdir())
