"""Rows that others wrote: row groups of Parquet, chunks of arrays, parts of CSV."""

import threading

import numpy as np
import pandas
import pytest
import torch

import mvkit
from mvkit import Batch, DataError, Modality, MultimodalDataset, Pipeline, RequestError, ShapeError
from mvkit.core.batch import conform
from mvkit.data.chunked_rows import ChunkedRows, Chunks
from mvkit.data.csv_parts import CsvParts
from mvkit.data.one_pass import fit_in_passes
from mvkit.data.shards import Shards, save_shards
from mvkit.data.sources import Ordered, ReadsAhead, Source
from mvkit.data.stored_chunks import ArrayChunks, ParquetChunks

COLUMNS = {"a": ["x", "y"], "b": ["u"]}
STEPS = {"a": "standardise", "b": ["log1p", "standardise"]}


def table(b=97):
    values = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {"x": values.normal(size=b), "y": values.normal(size=b), "u": values.random(b)}
    )
    frame.loc[::5, "y"] = np.nan
    frame.loc[1::7, "u"] = np.nan
    frame["site"] = [["A", "B"][i % 2] for i in range(b)]
    frame["label"] = np.arange(b)
    frame["name"] = [f"r{i}" for i in range(b)]
    return frame


def dataset():
    frame = table().set_index("name")
    return MultimodalDataset.from_tables({name: frame[names] for name, names in COLUMNS.items()})


@pytest.fixture
def parquet(tmp_path):
    table().head(60).to_parquet(tmp_path / "1.parquet", row_group_size=13)
    table().tail(37).to_parquet(tmp_path / "2.parquet", row_group_size=13)
    files = [tmp_path / "1.parquet", tmp_path / "2.parquet"]
    return ParquetChunks(files, COLUMNS, extra=["site", "label"], id="name")


def same_rows(batch, index):
    schema = mvkit.Model(dataset().modalities).schema
    one, other = conform(batch, schema), conform(dataset().batch.take(index), schema)
    assert torch.equal(one.observed, other.observed)
    for name in COLUMNS:
        assert torch.equal(one.data[name], other.data[name])
    assert list(batch.extra["id"]) == [f"r{i}" for i in index]
    assert batch.extra["site"] == [["A", "B"][i % 2] for i in index]
    assert batch.extra["label"].tolist() == index


def test_rows_of_row_groups_are_those_of_the_table(parquet):
    rows = ChunkedRows(parquet)
    assert isinstance(parquet, Chunks)
    for kind in (Source, Ordered, ReadsAhead):
        assert isinstance(rows, kind)
    assert parquet.counts == [13, 13, 13, 13, 8, 13, 13, 11]
    assert len(rows) == 97
    assert rows.modalities["a"].features == ("x", "y")
    for index in ([96, 0, 45, 0, 12, 13], list(range(97)), [5]):
        same_rows(rows.__getitems__(index), index)
    assert len(rows.__getitems__([])) == 0


@pytest.mark.parametrize("window", [2, None])
@pytest.mark.parametrize("memory", [0, 2**20])
def test_passes_over_chunks_have_every_row_once_and_resume_exactly(parquet, window, memory):
    rows = ChunkedRows(parquet, window=window, memory=memory)
    whole = list(Pipeline(rows, batch_size=10, seed=3, workers=2))
    index = [batch.extra["label"].tolist() for batch in whole]
    assert sorted(sum(index, [])) == list(range(97))
    for batch, places in zip(whole, index, strict=True):
        same_rows(batch, places)
    later = Pipeline(rows, batch_size=10, seed=3)
    later.load_state_dict({"epoch": 0, "batch": 4})
    assert [batch.extra["label"].tolist() for batch in later] == index[4:]


def test_chunks_are_read_ahead_once(parquet, monkeypatch):
    read = []
    original = parquet.read
    threads = set()

    def counted(chunk):
        read.append(chunk)
        threads.add(threading.current_thread().name)
        return original(chunk)

    rows = ChunkedRows(parquet, window=2)
    monkeypatch.setattr(parquet, "read", counted)
    list(Pipeline(rows, batch_size=10, seed=3))
    assert sorted(set(read)) == list(range(8))
    assert len(read) <= 9  # the first tells how large they are
    assert len(threads) == 2


def test_models_train_on_row_groups(parquet):
    rows = ChunkedRows(parquet).fit_transforms(STEPS)
    model = mvkit.Model(rows.modalities, latent_dim=1, seed=0)
    history = mvkit.fit(model, Pipeline(rows, batch_size=10), epochs=2, progress=False)
    assert len(history.rows) == 2
    whole = dataset().fit_transforms(STEPS)
    assert torch.equal(model.encode(rows), model.encode(whole.batch))


def test_transforms_of_row_groups_and_csv_are_those_of_the_table(parquet, tmp_path):
    whole = dataset().fit_transforms(STEPS).modalities
    table().to_csv(tmp_path / "rows.csv", index=False)
    parts = CsvParts(tmp_path / "rows.csv", COLUMNS, extra=["site", "label"], id="name", rows=10)
    kinds = dataset().modalities
    for fitted in (
        ChunkedRows(parquet).fit_transforms(STEPS).modalities,
        fit_in_passes(parts, kinds, STEPS),
    ):
        for name, modality in whole.items():
            for x, y in zip(modality.transform, fitted[name].transform, strict=True):
                assert type(x) is type(y)
                if hasattr(x, "mean"):
                    assert np.allclose(x.mean, y.mean, rtol=1e-12, atol=1e-14)
                    assert np.allclose(x.scale, y.scale, rtol=1e-12)


def test_csv_becomes_shards_a_part_at_a_time(tmp_path):
    table().to_csv(tmp_path / "rows.csv.gz", index=False)
    parts = CsvParts(
        tmp_path / "rows.csv.gz", COLUMNS, extra=["site", "label"], id="name", rows=10
    )
    assert [len(batch) for batch in parts] == [10] * 9 + [7]
    same_rows(list(parts)[3], list(range(30, 40)))
    save_shards(parts, tmp_path / "shards", dataset().modalities)
    same_rows(Shards(tmp_path / "shards").__getitems__([96, 3]), [96, 3])


def test_faults_of_csv_name_row_and_column(tmp_path):
    (tmp_path / "rows.csv").write_text("x,y\n1,2\n3,oops\n")
    with pytest.raises(
        DataError, match="column 'y', row 1: 'oops' is no number; expected numbers"
    ):
        list(CsvParts(tmp_path / "rows.csv", {"a": ["x", "y"]}, rows=1))
    with pytest.raises(DataError, match="no column 'z'"):
        list(CsvParts(tmp_path / "rows.csv", {"a": ["z"]}))
    with pytest.raises(RequestError, match="expected a file ending in .csv or .tsv"):
        list(CsvParts(tmp_path / "rows.parquet", {"a": ["z"]}))
    with pytest.raises(FileNotFoundError):
        list(CsvParts(tmp_path / "other.csv", {"a": ["z"]}))


def test_faults_of_parquet_name_file_and_column(parquet, tmp_path):
    with pytest.raises(DataError, match="1.parquet: no column 'z'"):
        ParquetChunks(tmp_path / "1.parquet", {"a": ["z"]})
    with pytest.raises(DataError, match="site.*expected numbers; give words as extra="):
        ParquetChunks(tmp_path / "1.parquet", {"a": ["site"]}).read(0)
    (tmp_path / "3.parquet").write_text("no table")
    with pytest.raises(DataError, match="3.parquet: cannot be read"):
        ParquetChunks(tmp_path / "3.parquet", {"a": ["x"]})
    table().head(0).to_parquet(tmp_path / "4.parquet")
    with pytest.raises(DataError, match="no rows"):
        ChunkedRows(ParquetChunks(tmp_path / "4.parquet", COLUMNS))
    rows = ChunkedRows(parquet)
    parquet.counts[2] = 14
    with pytest.raises(DataError, match="chunk 2 has 13 rows; expected 14"):
        rows.read(2)


def test_columns_of_lists(tmp_path):
    frame = pandas.DataFrame(
        {"z": [[1.0, 2.0], None, [3.0, 4.0]], "odd": [[1.0], [1.0, 2.0], None]}
    )
    frame.to_parquet(tmp_path / "rows.parquet")
    batch = ParquetChunks(tmp_path / "rows.parquet", {"a": "z"}).read(0)
    assert batch.data["a"].nan_to_num(9).tolist() == [[1, 2], [9, 9], [3, 4]]
    with pytest.raises(ShapeError, match=r"lists of \[1, 2\] numbers; expected one length"):
        ParquetChunks(tmp_path / "rows.parquet", {"a": "odd"}).read(0)


class Chunked:
    """An array in chunks, as zarr has them, that says what was read of it."""

    def __init__(self, values, rows):
        self.values, self.shape = values, values.shape
        self.chunks = (rows, *values.shape[1:])
        self.read = []

    def __getitem__(self, part):
        self.read.append(part.start)
        return self.values[part]


def test_rows_of_chunked_arrays():
    values = np.random.default_rng(0).random((50, 2, 2)).astype(np.float32)
    codes = Chunked(values, 8)
    arrays = {"a": codes, "b": values[:, 0]}
    chunks = ArrayChunks(
        arrays, {"b": Modality((2,), "laplace")}, extra={"label": torch.arange(50)}
    )
    rows = ChunkedRows(chunks, window=2)
    assert rows.chunks.counts == [8] * 6 + [2]
    assert rows.modalities["a"].shape == (2, 2)
    assert rows.modalities["b"] == Modality((2,), "laplace")
    codes.read.clear()
    for batch in Pipeline(rows, batch_size=7, seed=0):
        index = batch.extra["label"]
        assert (batch.data["a"].numpy() == values[index]).all()
        assert (batch.data["b"].numpy() == values[index, 0]).all()
    assert sorted(set(codes.read)) == list(range(0, 50, 8))
    assert len(codes.read) <= 8
    with pytest.raises(ShapeError, match="as many rows in all"):
        ArrayChunks({"a": values, "b": values[:3]})


def test_rows_of_zarr(tmp_path):
    zarr = pytest.importorskip("zarr")
    values = np.random.default_rng(0).random((50, 3))
    array = zarr.open(
        str(tmp_path / "a.zarr"), mode="w", shape=values.shape, chunks=(8, 3), dtype="f8"
    )
    array[:] = values
    rows = ChunkedRows(ArrayChunks({"a": zarr.open(str(tmp_path / "a.zarr"), mode="r")}))
    assert rows.chunks.counts == [8] * 6 + [2]
    assert (rows.__getitems__([49, 0]).data["a"].numpy() == values[[49, 0]]).all()


def test_batches_that_differ_are_not_joined():
    from mvkit.data.joined_batches import joined_batches

    one = Batch({"a": torch.zeros(2, 1)})
    with pytest.raises(ShapeError, match="expected the same in all"):
        joined_batches([one, Batch({"b": torch.zeros(2, 1)})])
