"""Sparse rows: equal to the same rows held dense, whatever holds them."""

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from matrices import GENES, PROTEINS, ROWS, STORAGES, counts, stored, written
from mvkit_omics import MatrixFile, SparseRows

import mvkit
from mvkit import Batch, DataError, Modality, Model, MultimodalDataset, Pipeline
from mvkit.data.holdout import hold_out


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint16", "float32", "float64", "bool"])
def test_rows_are_those_of_the_dense_matrix(tmp_path, storage, dtype):
    matrix = counts(dtype=dtype)
    rows = SparseRows({"rna": stored(tmp_path, matrix, storage)}, {"rna": "normal"})
    index = [5, 0, 52, 5, 7, 51, 5]
    batch = rows.__getitems__(index)
    expected = torch.float64 if dtype == "float64" else torch.float32
    assert batch.data["rna"].dtype == expected
    np.testing.assert_array_equal(batch.data["rna"].numpy(), matrix.toarray()[index])
    assert batch.mask.all()
    assert len(rows) == ROWS
    assert rows.matrices["rna"].on_disk == (storage != "memory")


@pytest.mark.parametrize("storage", STORAGES)
def test_batches_are_those_of_the_dense_rows(tmp_path, storage):
    matrix = counts(dtype="int32")
    ids = [f"c{i}" for i in range(ROWS)]
    rows = SparseRows({"rna": stored(tmp_path, matrix, storage)}, ids=ids, window=None)
    dense = MultimodalDataset.from_arrays({"rna": matrix.toarray()}, ids=ids)
    for epoch in range(2):
        pipelines = Pipeline(rows, batch_size=8, seed=3), Pipeline(dense, batch_size=8, seed=3)
        for pipeline in pipelines:
            pipeline.set_epoch(epoch)
        for own, other in zip(*pipelines, strict=True):
            assert own.extra["id"].tolist() == other.extra["id"].tolist()
            assert torch.equal(own.data["rna"], other.data["rna"].float())


@pytest.mark.parametrize("wide", [np.int32, np.int64])
@pytest.mark.parametrize("storage", ["memory", "in chunks", "compressed"])
def test_indices_of_either_width(tmp_path, storage, wide):
    matrix = counts()
    expected = matrix.toarray()
    matrix.indices = matrix.indices.astype(wide)
    matrix.indptr = matrix.indptr.astype(wide)
    rows = SparseRows({"rna": stored(tmp_path, matrix, storage)}, {"rna": "poisson"})
    batch = rows.__getitems__(list(range(ROWS)))
    np.testing.assert_array_equal(batch.data["rna"].numpy(), expected)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_matrix_without_values(tmp_path, storage):
    matrix = scipy.sparse.csr_matrix((5, 3), dtype="float32")
    rows = SparseRows({"rna": stored(tmp_path, matrix, storage)}, {"rna": "poisson"})
    assert torch.equal(rows.__getitems__([4, 0]).data["rna"], torch.zeros(2, 3))


@pytest.mark.parametrize("storage", STORAGES)
def test_columns_in_any_order_and_repeated_ones_are_summed(tmp_path, storage):
    indices = np.array([2, 0, 2, 1, 1, 1, 0])
    parts = (np.array([1.0, 2, 4, 8, 16, 32, 64], "float32"), indices, np.array([0, 3, 3, 7]))
    matrix = scipy.sparse.csr_matrix(parts, shape=(3, 3))
    rows = SparseRows({"rna": stored(tmp_path, matrix, storage)}, {"rna": "poisson"})
    expected = [[2.0, 0, 5], [0, 0, 0], [64, 56, 0]]
    assert matrix.toarray().tolist() == expected
    assert rows.__getitems__([0, 1, 2]).data["rna"].tolist() == expected


@pytest.mark.parametrize("format", ["csc", "coo", "lil", "dok", "bsr"])
def test_other_formats_in_memory_are_converted(format):
    matrix = counts()
    rows = SparseRows({"rna": matrix.asformat(format)}, {"rna": "poisson"})
    np.testing.assert_array_equal(rows.dense().batch.data["rna"].numpy(), matrix.toarray())
    arrays = SparseRows({"rna": scipy.sparse.csr_array(matrix)}, {"rna": "poisson"})
    assert torch.equal(arrays.dense().batch.data["rna"], rows.dense().batch.data["rna"])


def test_either_byte_order(tmp_path):
    matrix = counts()
    path = written(tmp_path / "cells.h5ad", matrix)
    matrix.data = matrix.data.astype(">f4")
    swapped = written(tmp_path / "swapped.h5ad", matrix)
    batches = [SparseRows({"rna": MatrixFile(p)}).dense().batch for p in (path, swapped)]
    assert torch.equal(batches[0].data["rna"], batches[1].data["rna"])


def test_dense_matrices_in_memory_and_on_disk(tmp_path):
    import h5py

    proteins = np.random.default_rng(0).normal(size=(ROWS, PROTEINS))
    with h5py.File(tmp_path / "cells.h5ad", "w") as file:
        file["obsm/one"] = proteins
        file.create_dataset("obsm/chunked", data=proteins, chunks=(8, 2), compression="gzip")
    index = [7, 0, 52, 7, -1]
    places = {"one": MatrixFile(tmp_path / "cells.h5ad", "obsm/one")}
    places |= {"chunked": MatrixFile(tmp_path / "cells.h5ad", "obsm/chunked"), "array": proteins}
    rows = SparseRows(places, dict.fromkeys(places, "normal"), rows=dict.fromkeys(places, index))
    batch = rows.__getitems__([0, 1, 2, 3, 4])
    for name in places:
        np.testing.assert_array_equal(batch.data[name][:4].numpy(), proteins[index[:4]])
        assert not batch.data[name][4].any()
    assert batch.mask.tolist() == [[True] * 3] * 4 + [[False] * 3]


def test_files_of_anndata_and_mudata(tmp_path):
    anndata = pytest.importorskip("anndata")
    mudata = pytest.importorskip("mudata")
    matrix = counts()
    cells = anndata.AnnData(matrix, layers={"counts": matrix * 2})
    cells.write_h5ad(tmp_path / "cells.h5ad")
    cells.write_h5ad(tmp_path / "packed.h5ad", compression="gzip")
    for version in (2, 3):
        with warnings.catch_warnings(), anndata.settings.override(zarr_write_format=version):
            warnings.simplefilter("ignore")
            cells.write_zarr(tmp_path / f"cells{version}.zarr")
    with mudata.set_options(pull_on_update=False):
        mudata.MuData({"rna": cells}).write(tmp_path / "cells.h5mu")
    expected = torch.from_numpy(matrix.toarray())
    for file in ("cells.h5ad", "packed.h5ad", "cells2.zarr", "cells3.zarr"):
        for group, factor in (("X", 1), ("layers/counts", 2)):
            rows = SparseRows({"rna": MatrixFile(tmp_path / file, group)}, {"rna": "poisson"})
            assert torch.equal(rows.dense().batch.data["rna"], factor * expected)
    rows = SparseRows({"rna": MatrixFile(tmp_path / "cells.h5mu", "mod/rna/X")})
    assert torch.equal(rows.dense().batch.data["rna"], expected)


def mosaic(tmp_path=None):
    """Cells with genes, proteins or both; and the same held dense."""
    rna, protein = counts(), counts(40, PROTEINS, seed=1)
    random = np.random.default_rng(2)
    index = {"rna": np.where(random.random(70) < 0.3, -1, random.integers(0, ROWS, 70))}
    index["protein"] = np.where(random.random(70) < 0.3, -1, random.integers(0, 40, 70))
    index["rna"] = np.where((index["rna"] < 0) & (index["protein"] < 0), 0, index["rna"])
    matrices = {"rna": rna, "protein": protein}
    arrays = {}
    for name, matrix in matrices.items():
        arrays[name] = matrix.toarray()[index[name]]
        arrays[name][index[name] < 0] = np.nan
        if tmp_path is not None:
            matrices[name] = MatrixFile(written(tmp_path / f"{name}.h5ad", matrix, chunks=(32,)))
    known = {"ids": [f"c{i}" for i in range(70)], "label": random.integers(0, 3, 70)}
    known |= {"covariates": {"batch": ["x", "y"] * 35}, "row_weight": random.random(70)}
    modalities = {"rna": {"likelihood": "negative_binomial", "exposure": "total"}}
    modalities |= {"protein": "poisson"}
    dense = MultimodalDataset.from_arrays(arrays, modalities=modalities, **known)
    return SparseRows(matrices, modalities, rows=index, **known), dense


def test_rows_with_gaps_and_all_that_is_known_of_them():
    rows, dense = mosaic()
    assert rows.modalities == dense.modalities
    assert rows.covariates == dense.covariates
    assert rows.alignment == dense.alignment
    assert rows.labels.tolist() == dense.labels.tolist()
    index = [69, 3, 3, 0, 41]
    batches = [data.__getitems__(index) for data in (rows, dense)]
    model = Model(rows.modalities, latent_dim=2, seed=0, covariates=rows.covariates)
    own, other = (model.conform(batch) for batch in batches)
    assert torch.equal(own.mask, other.mask)
    for name in rows.modalities:
        assert torch.equal(own.data[name], other.data[name])
    assert torch.equal(own.covariates["batch"], other.covariates["batch"])
    assert torch.equal(own.row_weight, other.row_weight)
    assert own.extra["id"].tolist() == other.extra["id"].tolist()


def trained(rows, tmp_path=None, **options):
    model = Model(rows.modalities, latent_dim=2, seed=0, covariates=rows.covariates, prior="mog")
    options = {"epochs": 2, "batch_size": 16, "progress": False, **options}
    if tmp_path is not None:
        options["checkpoint"] = tmp_path
    mvkit.fit(model, rows, **options)
    return model


def weights(model):
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("options", [{}, {"workers": 2}])
def test_training_is_that_of_the_dense_rows(options):
    rows, dense = mosaic()
    expected = trained(dense, **{**options, "workers": 0})
    model = trained(rows, **options)
    assert torch.equal(weights(model), weights(expected))
    assert torch.equal(model.encode(rows), expected.encode(dense))


def test_rows_are_held_out_by_id_as_dense_ones(tmp_path):
    rows, dense = mosaic(tmp_path)
    model = Model(rows.modalities, latent_dim=2, seed=0, covariates=rows.covariates)
    held = []
    for data in (rows, dense):
        parts = hold_out(Pipeline(data, schema=model.schema, batch_size=16), 0.2, 0)
        for part in parts:
            held.append(sorted(id for batch in part for id in batch.extra["id"]))
    assert held[:2] == held[2:]
    assert len(held[1]) == 14
    history = mvkit.fit(model, rows, epochs=1, validation=0.2, progress=False)
    assert np.isfinite(history.rows[0]["valid/loss"])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_after_a_pause_in_an_epoch(tmp_path, workers):
    rows, _ = mosaic(tmp_path)
    rows.block, rows.window = 4, 3
    options = {"batch_size": 8, "seed": 5, "workers": workers}
    whole = [batch.data["rna"] for batch in Pipeline(rows, **options)]
    first = Pipeline(rows, **options)
    batches = iter(first)
    for _ in range(3):
        next(batches)
    second = Pipeline(rows, **options)
    second.load_state_dict(first.state_dict())
    rest = [batch.data["rna"] for batch in second]
    assert len(rest) == len(whole) - 3
    for own, other in zip(rest, whole[3:], strict=True):
        assert torch.equal(own, other)


class Stopped(Exception):
    pass


def test_training_resumed_in_the_middle_has_the_same_bits(tmp_path):
    def stop(event):
        if isinstance(event, mvkit.training.events.EpochFinished):
            raise mvkit.training.events.StopTraining

    rows, _ = mosaic(tmp_path)
    expected = trained(rows, epochs=3)
    trained(rows, tmp_path / "run", epochs=3, listeners=[stop])
    resumed = trained(rows, tmp_path / "run", epochs=3, workers=2)
    assert torch.equal(weights(resumed), weights(expected))


def test_the_order_is_shuffled_in_windows_of_blocks():
    rows = SparseRows({"rna": counts(103)}, {"rna": "poisson"}, block=10, window=3)
    order = rows.epoch_order(seed=1, epoch=0)
    assert order.sort().values.tolist() == list(range(103))
    assert torch.equal(order, rows.epoch_order(seed=1, epoch=0))
    assert not torch.equal(order, rows.epoch_order(seed=1, epoch=1))
    assert not torch.equal(order, rows.epoch_order(seed=2, epoch=0))
    start = 0
    while start < 103:  # a window holds three whole blocks; the last block has three rows
        blocks = set()
        size = 0
        for row in order[start:].tolist():
            if row // 10 not in blocks and len(blocks) == 3:
                break
            blocks.add(row // 10)
            size += 1
        assert size == sum(3 if block == 10 else 10 for block in blocks)
        start += size


def test_windows_of_matrices_in_memory_and_on_disk(tmp_path):
    rows = SparseRows({"rna": counts()}, {"rna": "poisson"})
    assert rows.window is None
    file = MatrixFile(written(tmp_path / "cells.h5ad", counts()))
    assert SparseRows({"rna": file}, {"rna": "poisson"}).window == 256
    assert SparseRows({"rna": file}, {"rna": "poisson"}, block=2**20).window == 1


def test_balanced_batches_repeat_rows(tmp_path):
    label = [0] * 50 + [1] * 3
    file = MatrixFile(written(tmp_path / "cells.h5ad", counts(), chunks=(16,)))
    rows = SparseRows({"rna": file}, {"rna": "poisson"}, label=label, ids=range(ROWS))
    dense = torch.from_numpy(counts().toarray())
    for batch in Pipeline(rows, batch_size=10, group="balanced"):
        assert torch.equal(batch.data["rna"], dense[batch.extra["id"].astype(int)])


def test_parts_of_the_rows_stay_sparse():
    rows, dense = mosaic()
    for index in (slice(3, 60, 7), [5, 5, 1], ["c9", "c2"], torch.arange(70) % 2 == 0):
        part = rows.take(index)
        assert part.ids.tolist() == dense.take(index).ids.tolist()
        batch = part.__getitems__(range(len(part)))
        other = dense.take(index).batch
        assert torch.equal(batch.data["rna"], other.data["rna"].nan_to_num(0))
    assert len(rows) == 70
    with pytest.raises(DataError, match="no rows were taken"):
        rows.take([])


def test_transforms_are_fitted_as_to_dense_rows():
    rows, dense = mosaic()
    steps = {"protein": ["log1p", {"name": "standardise", "over": "all"}]}
    fitted = rows.fit_transforms(steps)
    assert fitted.modalities == dense.fit_transforms(steps).modalities
    assert rows.modalities["protein"].transform == ()
    fewer = rows.fit_transforms(steps, rows=35)
    half = dense.take(slice(0, 70, 2)).fit_transforms(steps)
    assert fewer.modalities == half.modalities


def test_answers_are_those_of_the_dense_rows(tmp_path):
    rows, dense = mosaic()
    model = trained(rows, epochs=1)
    reports = [mvkit.evaluate(model, data, ["reconstruction"]) for data in (rows, dense)]
    values = [{score.name: score.value for score in report.scores} for report in reports]
    assert values[0]
    assert values[0] == pytest.approx(values[1], rel=1e-6, nan_ok=True)
    assert torch.equal(mvkit.embed(model, rows), model.encode(dense))
    filled = [
        mvkit.impute(model, data, n=3, generator=torch.Generator().manual_seed(0))
        for data in (rows, dense)
    ]
    for name, x in filled[1].batch.data.items():
        assert torch.equal(filled[0].data[name], x)
    some = rows.dense(slice(0, 40))
    assert len(some) == 40
    assert some.modalities == rows.modalities


def test_columns_are_matched_by_name():
    matrix = counts()
    names = [f"g{i}" for i in range(GENES)]
    rows = SparseRows({"rna": matrix}, {"rna": "poisson"}, features={"rna": names})
    assert rows.modalities["rna"].features == tuple(names)
    model = Model(rows.modalities, latent_dim=2, seed=0)
    turned = SparseRows(
        {"rna": matrix[:, ::-1]}, {"rna": "poisson"}, features={"rna": names[::-1]}
    )
    assert torch.equal(model.encode(rows), model.encode(turned))


def test_what_is_said_of_rows(tmp_path):
    rows, _ = mosaic(tmp_path)
    assert repr(rows).startswith("SparseRows(rna (17, on disk), protein (4, on disk); ")
    assert "of 70 rows in both: rna " in repr(rows)


def test_values_are_inferred_by_the_first_rows():
    bits = counts() > 0
    rows = SparseRows({"rna": bits, "atac": counts()}, {"atac": Modality((GENES,), "poisson")})
    names = [modality.likelihood.__class__.__name__ for modality in rows.modalities.values()]
    assert names == ["Bernoulli", "Poisson"]
    assert isinstance(rows.__getitems__([0]), Batch)


def test_pages_and_blocks_beyond_the_limit_are_given_back(tmp_path):
    matrix = counts()
    index = list(range(ROWS))[::-1]
    for file, options in (("a.h5ad", {"chunks": (7,)}), ("b.h5ad", {"compression": "gzip"})):
        path = written(tmp_path / file, matrix, **options)
        rows = SparseRows({"rna": MatrixFile(path, memory=1)}, {"rna": "poisson"})
        for _ in range(3):
            batch = rows.__getitems__(index)
            np.testing.assert_array_equal(batch.data["rna"].numpy(), matrix.toarray()[index])


def test_answers_are_those_of_dense_rows_and_are_written_as_they_come(tmp_path):
    rows = SparseRows({"rna": counts()}, {"rna": "poisson"}, ids=[f"c{i}" for i in range(ROWS)])
    model = Model(rows.modalities, latent_dim=2, seed=0).eval()
    dense = rows.dense()
    assert torch.equal(mvkit.embed(model, rows), mvkit.embed(model, dense))
    path = mvkit.embed(model, rows, into=tmp_path / "z.csv")
    assert len(path.read_text().splitlines()) == ROWS + 1
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    filled = mvkit.impute(model, rows, n=2, generator=generators[0])
    expected = mvkit.impute(model, dense, n=2, generator=generators[1])
    assert torch.equal(filled.data["rna"], expected.batch.data["rna"])
    reports = [mvkit.evaluate(model, data, ["reconstruction"]) for data in (rows, dense)]
    assert repr(reports[0].scores) == repr(reports[1].scores)


def test_transforms_are_fitted_to_all_rows_on_request():
    rows = SparseRows({"rna": counts()}, {"rna": "poisson"})
    steps = {"rna": ["log1p", "standardise"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant features
        some, every = rows.fit_transforms(steps), rows.fit_transforms(steps, rows=None)
    for field in ("mean", "scale"):
        one, other = (
            getattr(fitted.modalities["rna"].transform[1], field) for fitted in (some, every)
        )
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
