"""Answers about rows on disk: bit for bit those about the same rows in memory, written as they come."""

import sys

import attrs
import numpy as np
import pandas
import pytest
import torch

import mvkit
from mvkit import Batch, DataError, Modality, MultimodalDataset, RequestError
from mvkit.data.shards import Shards, save_shards

B = 2100  # rows: three blocks


def rows(b=B):
    generator = torch.Generator().manual_seed(0)
    data = {name: torch.randn(b, 3, generator=generator) for name in "ab"}
    data["a"][::7, 1] = torch.nan
    mask = torch.rand(b, 2, generator=generator) > 0.3
    mask[:, 0] |= ~mask.any(1)
    mask[0] = True
    extra = {"id": [f"r{i}" for i in range(b)], "label": torch.arange(b) % 3}
    return Batch(data, mask, extra=extra)


def modalities():
    return {"a": Modality((3,), features=("x", "y", "z")), "b": Modality((3,))}


@pytest.fixture(scope="module")
def model():
    return mvkit.Model(modalities(), latent_dim=2, seed=0, prior="mog", aggregator="mopoe").eval()


@pytest.fixture
def shards(tmp_path):
    save_shards(rows(), tmp_path / "rows", modalities(), rows_per_shard=500)
    return Shards(tmp_path / "rows")


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_embeddings_are_written_as_they_come(model, shards, tmp_path, ending, monkeypatch):
    monkeypatch.setattr("mvkit.data.table_files.ROWS", 1500)  # several row groups
    path = mvkit.embed(model, shards, into=tmp_path / f"z.{ending}")
    table = getattr(pandas, f"read_{ending}")(path)
    assert table.columns.tolist() == ["id", "z0", "z1"]
    assert table["id"].tolist() == [f"r{i}" for i in range(B)]
    expected = model.encode(rows()).numpy()
    assert (table[["z0", "z1"]].to_numpy().astype(np.float32) == expected).all()
    assert left(tmp_path) == ["rows", f"z.{ending}"]
    again = mvkit.embed(model, rows(), into=str(tmp_path / f"again.{ending}"))
    assert again.read_bytes() == path.read_bytes()


def test_answers_that_are_interrupted_leave_nothing(model, shards, tmp_path):
    with open(tmp_path / "z.csv", "w") as file:
        file.write("before")
    broken = rows()
    broken.data["a"][2000, 0] = torch.inf
    broken.mask[2000, 0] = True
    for data in (broken, MultimodalDataset(broken, modalities())):
        for call in (mvkit.embed, mvkit.impute):
            for name in ("z.csv", "z.parquet", "z.h5ad"):
                with pytest.raises(DataError, match="2000"):
                    call(model, data, into=tmp_path / name)
    with pytest.raises(DataError):
        mvkit.impute(model, broken, into=tmp_path / "filled")
    assert left(tmp_path) == ["rows", "z.csv"]
    assert (tmp_path / "z.csv").read_text() == "before"


def test_a_block_that_cannot_be_read_leaves_nothing(model, shards, tmp_path):
    path = shards.folder / "shard-00004.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    for call in (mvkit.embed, mvkit.impute):
        for name in ("z.csv", "z.parquet", "z.h5ad"):
            with pytest.raises(DataError, match="shard-00004"):
                call(model, shards, into=tmp_path / name)
    with pytest.raises(DataError, match="shard-00004"):
        mvkit.impute(model, shards, into=tmp_path / "filled")
    assert left(tmp_path) == ["rows"]


def test_files_that_end_otherwise_are_refused(model, shards, tmp_path):
    with pytest.raises(RequestError, match=r"embed: into='z.xlsx'; expected a file that ends in"):
        mvkit.embed(model, shards, into="z.xlsx")
    with pytest.raises(RequestError, match="impute: into="):
        mvkit.impute(model, shards, into=tmp_path / "z.xlsx")
    with pytest.raises(FileNotFoundError, match="make it first"):
        mvkit.embed(model, shards, into=tmp_path / "no" / "z.csv")


def seeded():
    return torch.Generator().manual_seed(1)


def test_rows_are_filled_as_in_memory(model, shards, tmp_path):
    expected = mvkit.impute(model, rows(), n=5, generator=seeded())
    batch = mvkit.impute(model, shards, n=5, generator=seeded())
    path = mvkit.impute(model, shards, n=5, generator=seeded(), into=tmp_path / "filled")
    saved = Shards(path)
    assert saved.modalities == modalities()
    for filled in (batch, saved.__getitems__(list(range(B)))):
        for name in "ab":
            assert torch.equal(filled.data[name], expected.data[name])
        assert filled.mask.all()
        assert list(filled.extra["id"]) == rows().extra["id"]
    assert (
        mvkit.impute(model, rows(), n=5, generator=seeded(), into=tmp_path / "two")
        == tmp_path / "two"
    )
    assert torch.equal(
        Shards(tmp_path / "two").__getitems__([B - 1]).data["b"], expected.data["b"][-1:]
    )


def columns_of_h5ad(path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(path) as file:
        ids = file["obs/_index"].asstr()[:].tolist()
        return ids, file["var/_index"].asstr()[:].tolist(), file["X"][:]


def test_answers_of_anndata_are_written_as_they_come(model, shards, tmp_path, monkeypatch):
    pytest.importorskip("h5py", reason="h5py is not installed")
    monkeypatch.setattr("mvkit.data.table_files.CELLS", 1500 * 3)  # several blocks of 1,500 rows
    path = mvkit.embed(model, shards, into=tmp_path / "z.h5ad")
    ids, names, values = columns_of_h5ad(path)
    assert ids == rows().extra["id"]
    assert names == ["z0", "z1"]
    assert (values == model.encode(rows()).numpy()).all()
    expected = mvkit.impute(model, rows(), n=5, generator=seeded())
    path = mvkit.impute(model, shards, n=5, generator=seeded(), into=tmp_path / "filled.h5ad")
    ids, names, values = columns_of_h5ad(path)
    assert names == ["a.x", "a.y", "a.z", "b.0", "b.1", "b.2"]
    assert (values == torch.cat([expected.data["a"], expected.data["b"]], 1).numpy()).all()
    assert left(tmp_path) == ["filled.h5ad", "rows", "z.h5ad"]


def test_anndata_without_h5py_is_refused(model, shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(RequestError, match=r"need h5py.*pip install h5py, or write .parquet"):
        mvkit.embed(model, shards, into=tmp_path / "z.h5ad")
    assert left(tmp_path) == ["rows"]


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_rows_are_filled_into_tables(model, shards, tmp_path, ending):
    expected = mvkit.impute(model, rows(), n=5, generator=seeded())
    path = mvkit.impute(model, shards, n=5, generator=seeded(), into=tmp_path / f"filled.{ending}")
    table = getattr(pandas, f"read_{ending}")(path)
    names = ["a.x", "a.y", "a.z", "b.0", "b.1", "b.2"]
    assert table.columns.tolist() == ["id", *names]
    values = torch.cat([expected.data["a"], expected.data["b"]], 1).numpy()
    assert (table[names].to_numpy().astype(np.float32) == values).all()


def test_what_is_not_answered_block_by_block_is_refused(model, shards):
    with pytest.raises(RequestError, match="filled values alone"):
        mvkit.impute(model, shards, quantiles=(0.1,))
    with pytest.raises(RequestError, match="which has its own"):
        mvkit.impute(model, shards, id="id")
    with pytest.raises(RequestError, match="unknown modality 'z'"):
        mvkit.impute(model, shards, to=["z"])


def test_pictures_go_into_shards_and_no_table(tmp_path):
    model = mvkit.Model({"a": (2, 2), "b": (1,)}, latent_dim=1, seed=0)
    batch = Batch(
        {"a": torch.rand(4, 2, 2), "b": torch.tensor([[1.0], [2.0], [torch.nan], [1.0]])}
    )
    with pytest.raises(
        RequestError, match="which no table holds; expected vectors; give into= a folder"
    ):
        mvkit.impute(model, batch, into=tmp_path / "z.csv")
    path = mvkit.impute(model, batch, into=tmp_path / "filled")
    assert torch.equal(Shards(path).__getitems__([0, 1]).data["a"], batch.data["a"][:2])


def test_words_come_back_as_words(tmp_path):
    table = pandas.DataFrame({"x": ["u", "v", None, "u"]}, index=list("abcd"))
    numbers = pandas.DataFrame({"y": [1.0, 2, 3, 4.5]}, index=list("abcd"))
    frames = {"w": table, "n": numbers}
    data = MultimodalDataset.from_tables(frames, modalities={"w": "categorical"})
    model = mvkit.Model(data.modalities, latent_dim=1, seed=0)
    filled = pandas.read_csv(mvkit.impute(model, data, into=tmp_path / "filled.csv"))
    assert filled["id"].tolist() == list("abcd")
    assert filled["w.x"].tolist()[:2] == ["u", "v"]
    assert set(filled["w.x"]) <= {"u", "v"}


METRICS = [
    "reconstruction",
    "log_likelihood",
    "imputation",
    "probe",
    "latents",
    "coherence",
    "diversity",
]


def test_reports_are_those_of_rows_in_memory(model, shards):
    known = [name for name in METRICS if name in mvkit.available("metric")]
    assert len(known) > 4
    reports = [mvkit.evaluate(model, data, known, progress=False) for data in (rows(), shards)]
    scores = [[attrs.astuple(score) for score in report.scores] for report in reports]
    assert len(scores[0]) > 10
    assert repr(scores[0]) == repr(scores[1])
    assert reports[0].notes == reports[1].notes


def test_reports_of_all_metrics_and_other_rows_to_fit_on(model, tmp_path):
    small = rows(200)
    small.mask[3] = False
    save_shards(small, tmp_path / "small", modalities(), rows_per_shard=30)
    disk = Shards(tmp_path / "small")
    reports = []
    for data in (small, disk):
        reports.append(mvkit.evaluate(model, data, train=data, progress=False, seed=3))
    assert repr(reports[0].scores) == repr(reports[1].scores)
    assert reports[0].notes == reports[1].notes
    assert any("observe nothing" in note for note in reports[1].notes)


def test_metrics_hold_one_block_at_a_time(model, shards, monkeypatch):
    from mvkit.evaluation.source_rows import SourceRows

    sizes = []
    batch = SourceRows.batch
    monkeypatch.setattr(SourceRows, "batch", lambda rows: sizes.append(len(rows)) or batch(rows))
    mvkit.evaluate(model, shards, ["reconstruction"], progress=False)
    assert max(sizes) <= 1024
