"""Datasets from arrays, tables and files: rows by id, names, labels, inferred modalities."""

import numpy as np
import pytest
import torch

import mvkit
from mvkit import Batch, DataError, Modality, Model, MultimodalDataset, ShapeError
from mvkit.data.dataset import as_batch

pandas = pytest.importorskip("pandas")
polars = pytest.importorskip("polars")
A = pandas.DataFrame({"x": [1.0, 2.0, 3.0], "y": [4.0, np.nan, 6.0]}, index=["p", "q", "r"])
B = pandas.DataFrame({"u": [7, 8, 9]}, index=["r", "s", "p"])


def joined(*frames):
    """An oracle: pandas' own outer join, rows in order of first appearance."""
    order = list(dict.fromkeys(one for frame in frames for one in frame.index))
    return pandas.concat(frames, axis=1).loc[order]


def test_tables_are_aligned_by_index():
    data = MultimodalDataset.from_tables({"a": A, "b": B})
    assert data.ids.tolist() == ["p", "q", "r", "s"]
    assert data.batch.mask.tolist() == [[True, True], [True, False], [True, True], [False, True]]
    both = torch.cat([data.batch.data["a"], data.batch.data["b"].double()], 1)
    np.testing.assert_array_equal(both.numpy(), joined(A, B).to_numpy(float))
    assert data.modalities["a"].features == ("x", "y")
    assert {name: m.shape for name, m in data.modalities.items()} == {"a": (2,), "b": (1,)}


@pytest.mark.parametrize("seed", range(5))
def test_any_order_and_any_part_of_the_rows(seed):
    random = np.random.default_rng(seed)
    frames = {
        name: pandas.DataFrame(random.normal(size=(8, 2)), columns=[f"{name}0", f"{name}1"]).iloc[
            random.permutation(8)[: random.integers(5, 9)]
        ]
        for name in ("a", "b", "c")
    }
    frames = {name: frame.set_axis(frame.index + 100) for name, frame in frames.items()}
    data = MultimodalDataset.from_tables(frames)
    oracle = joined(*frames.values())
    assert data.ids.tolist() == oracle.index.tolist()
    np.testing.assert_array_equal(
        torch.cat(list(data.batch.data.values()), 1).numpy(), oracle.to_numpy()
    )


def test_polars_by_a_column_of_ids_is_as_pandas():
    columns = [polars.from_pandas(t.rename_axis("id").reset_index()) for t in (A, B)]
    made = MultimodalDataset.from_tables(dict(zip("ab", columns, strict=True)), id="id")
    other = MultimodalDataset.from_tables({"a": A, "b": B})
    assert made.ids.tolist() == other.ids.tolist()
    for name in "ab":
        torch.testing.assert_close(made.batch.data[name], other.batch.data[name], equal_nan=True)
    with pytest.raises(
        DataError, match=r"tables\['a'\]: a polars table has no index.*give id='column'"
    ):
        MultimodalDataset.from_tables({"a": columns[0]})
    with pytest.raises(DataError, match="no column 'Id' of ids; did you mean 'id'"):
        MultimodalDataset.from_tables({"a": columns[0]}, id="Id")


def test_files(tmp_path):
    A.rename_axis("id").to_csv(tmp_path / "a.csv")
    B.rename_axis("id").to_csv(tmp_path / "b.tsv", sep="\t")
    A.rename_axis("id").reset_index().to_parquet(tmp_path / "c.parquet")
    files = {"a": tmp_path / "a.csv", "b": tmp_path / "b.tsv", "c": tmp_path / "c.parquet"}
    data = MultimodalDataset.from_files(files, id="id")
    assert data.ids.tolist() == ["p", "q", "r", "s"]
    torch.testing.assert_close(data.batch.data["a"], data.batch.data["c"], equal_nan=True)
    assert torch.equal(data.batch.data["b"][:, 0].nan_to_num(0), torch.tensor([9.0, 0, 7, 8]))
    with pytest.raises(DataError, match=r"files\['a'\]: several files, and no ids.*give id="):
        MultimodalDataset.from_files({"a": files["a"], "b": files["b"]})
    with pytest.raises(DataError, match="expected a file ending in .csv, .tsv, .parquet"):
        MultimodalDataset.from_files({"a": tmp_path / "a.xlsx"}, id="id")


def test_ids_of_text_files_are_text(tmp_path):
    (tmp_path / "a.csv").write_text("id,x\n007,1.5\n010,2.5\n")
    assert MultimodalDataset.from_files({"a": tmp_path / "a.csv"}, id="id").ids.tolist() == [
        "007",
        "010",
    ]


def test_npz(tmp_path):
    np.savez(
        tmp_path / "d.npz",
        a=np.ones((3, 2)),
        id=np.array(["p", "q", "r"]),
        label=np.array([2, 0, 1]),
    )
    data = MultimodalDataset.from_npz(tmp_path / "d.npz")
    assert list(data.modalities) == ["a"]
    assert data.ids.tolist() == ["p", "q", "r"]
    assert data.labels.tolist() == [2, 0, 1]


def test_a_mosaic_of_arrays_by_id():
    arrays = {
        "a": torch.tensor([[1.0], [2.0]]),
        "b": np.array([1, 0, 2]),
        "c": np.array([[True], [False]]),
    }
    ids = {"a": ["p", "q"], "b": ["q", "r", "p"], "c": ["r", "q"]}
    data = MultimodalDataset.from_arrays(arrays, ids=ids, label={"p": "x", "r": "y"})
    assert data.ids.tolist() == ["p", "q", "r"]
    assert data.batch.mask.tolist() == [
        [True, True, False],
        [True, True, True],
        [False, True, True],
    ]
    made = Model(data.modalities, latent_dim=2).conform(data)
    assert made.data["b"].argmax(-1).tolist() == [2, 1, 0]
    assert made.data["c"].tolist() == [[0], [0], [1]]
    assert data.labels.tolist() == ["x", None, "y"]


def test_modalities_are_inferred_and_overridden():
    arrays = {
        "bits": np.array([[0, 1], [1, 1], [0, 0]]),
        "grey": np.random.rand(3, 1, 8, 8).astype(np.float32),
        "class": np.array([0, 2, 1]),
        "age": np.array([30, 41, 30]),
        "real": [0.5, 1.5, -2.0],
    }
    data = MultimodalDataset.from_arrays(
        arrays, modalities={"real": "laplace", "grey": {"encoder": "conv"}}
    )
    kinds = {name: type(m.likelihood).__name__ for name, m in data.modalities.items()}
    assert kinds == {
        "bits": "Bernoulli",
        "grey": "Normal",
        "class": "Categorical",
        "age": "Normal",
        "real": "Laplace",
    }
    assert data.modalities["class"].shape == (3,)
    assert data.modalities["age"].shape == (1,)
    assert type(data.modalities["grey"].encoder).__name__ == "Conv"
    assert torch.isfinite(Model(data.modalities, latent_dim=2).loss(data.batch).loss)
    own = Modality((1,), {"name": "student_t"})
    assert MultimodalDataset.from_arrays(arrays, modalities={"age": own}).modalities["age"] is own
    with pytest.raises(DataError, match="modalities: no data for 'reel'; did you mean 'real'"):
        MultimodalDataset.from_arrays(arrays, modalities={"reel": "normal"})


@pytest.mark.parametrize(
    "values", [["f", "m", None, "f"], [1.5, 3.0, np.nan, 1.5]], ids=["words", "numbers"]
)
def test_categories_of_a_table(values):
    table = pandas.DataFrame({"sex": values}, index=list("pqrs"))
    data = MultimodalDataset.from_tables({"c": table, "a": A}, modalities={"c": "categorical"})
    assert data.modalities["c"].shape == (1, 2)
    batch = Model(data.modalities, latent_dim=2).conform(data)
    assert batch.data["c"][:, 0].tolist() == [[1, 0], [0, 1], [0, 0], [1, 0]]
    assert batch.mask[:, 0].tolist() == [True, True, False, True]


def test_words_of_another_table_are_numbered_as_in_training():
    train = pandas.DataFrame({"sex": ["m", "f", "n"]})
    made = Model(
        MultimodalDataset.from_tables({"c": train}, modalities={"c": "categorical"}).modalities,
        latent_dim=2,
    )
    assert made.conform({"c": pandas.DataFrame({"sex": ["n", "m"]})}).data["c"].argmax(
        -1
    ).tolist() == [[2], [1]]


@pytest.mark.parametrize(
    "label", ["kind", pandas.Series({"q": 3, "p": 1}), {"q": 3, "p": 1}], ids=str
)
def test_labels_follow_the_ids(label):
    table = A.assign(kind=[1.0, 3.0, np.nan]) if isinstance(label, str) else A
    data = MultimodalDataset.from_tables({"a": table, "b": B}, label=label)
    assert data.modalities["a"].features == ("x", "y")
    np.testing.assert_array_equal(data.labels.numpy(), [1.0, 3.0, np.nan, np.nan])


def test_labels_that_cannot_be():
    with pytest.raises(DataError, match="another table says 1; expected one label per row"):
        MultimodalDataset.from_tables(
            {"a": A.assign(kind=[1, 1, 1]), "b": B.assign(kind=2)}, label="kind"
        )
    with pytest.raises(
        DataError, match="label: no table has a column 'kin'; known: 'u', 'x', 'y'"
    ):
        MultimodalDataset.from_tables({"a": A, "b": B}, label="kin")
    with pytest.raises(DataError, match="label: got a list without ids"):
        MultimodalDataset.from_tables({"a": A}, label=[1, 2, 3])
    with pytest.raises(ShapeError, match="label: 2 for 3 rows"):
        MultimodalDataset.from_arrays({"a": np.ones((3, 1))}, label=[1, 2])
    with pytest.raises(DataError, match="label: none of its ids is an id of a row"):
        MultimodalDataset.from_tables({"a": A}, label={1: 2})


def test_disjoint_ids_when_asked_for():
    data = MultimodalDataset.from_tables({"a": A, "b": B.set_axis(["i", "j", "k"])}, disjoint=True)
    assert len(data) == 6


def test_missing_says_what_is_observed():
    arrays = {"a": np.array([[1.0, 2.0], [3.0, 4.0]]), "b": np.array([[1, 0], [0, 1]])}
    seen = np.array([[True, False], [True, True]])
    data = MultimodalDataset.from_arrays(arrays, missing=seen)
    assert torch.equal(data.batch.mask, torch.from_numpy(seen))
    data = MultimodalDataset.from_arrays(
        arrays, missing={"a": seen, "b": np.array([[False, True], [False, False]])}
    )
    batch = Model(data.modalities, latent_dim=2).conform(data)
    assert batch.elements["a"].tolist() == seen.tolist()
    assert batch.elements["b"][0].tolist() == [False, True]
    assert batch.mask.tolist() == [[True, True], [True, False]]
    with pytest.raises(
        ShapeError, match=r"missing: shape \(2, 3\); expected \(2, 2\), a column for each modality"
    ):
        MultimodalDataset.from_arrays(arrays, missing=np.ones((2, 3), dtype=bool))
    with pytest.raises(
        ShapeError, match=r"missing\['a'\]: torch.float64 of shape \(2, 2\); expected torch.bool"
    ):
        MultimodalDataset.from_arrays(arrays, missing={"a": np.ones((2, 2))})
    with pytest.raises(
        DataError, match="missing: got 'zero'; expected 'nan', 'none' or what is observed"
    ):
        MultimodalDataset.from_arrays(arrays, missing="zero")
    with pytest.raises(DataError, match="missing: no data for 'c'"):
        MultimodalDataset.from_arrays(arrays, missing={"c": seen})


def test_a_dataset_goes_to_a_model_whose_modalities_stand_in_another_order():
    data = MultimodalDataset.from_tables({"a": A, "b": B})
    turned = Model({name: data.modalities[name] for name in "ba"}, latent_dim=2)
    assert turned.conform(data).mask.tolist() == data.batch.mask.flip(1).tolist()
    rows = Batch({"a": torch.ones(1, 2), "b": torch.ones(1, 1)}, torch.tensor([[True, False]]))
    plain = MultimodalDataset(rows, data.modalities)
    assert turned.conform(plain).mask.tolist() == [[False, True]]


def test_parts_of_a_dataset():
    data = MultimodalDataset.from_arrays({"a": np.arange(10.0)[:, None]}, ids=range(10))
    train, test = data.split(0.7, 0.3, seed=1)
    assert sorted([*train.ids, *test.ids]) == list(range(10))
    assert len(train) == 7
    assert train.batch.data["a"][:, 0].tolist() == train.ids.tolist()
    assert data.split(0.7, 0.3, seed=1)[0].ids.tolist() == train.ids.tolist()
    with pytest.raises(DataError, match="expected positive shares that add up to 1 at most"):
        data.split(0.8, 0.8)


def test_names_of_features_are_saved_and_fit_their_shape(tmp_path):
    data = MultimodalDataset.from_tables({"a": A})
    mvkit.save(Model(data.modalities, latent_dim=2), tmp_path / "m")
    assert mvkit.load(tmp_path / "m").modalities["a"].features == ("x", "y")
    with pytest.raises(mvkit.SpecError, match="features: 1 names for values of shape"):
        Modality((2,), features=("x",))
    with pytest.raises(mvkit.SpecError, match="features: got .*; expected names that differ"):
        Modality((2,), features=("x", "x"))


def test_tables_and_arrays_do_not_mix():
    with pytest.raises(ShapeError, match=r"data\['a'\]: a table among arrays"):
        as_batch({"a": A, "b": np.ones((3, 1))})
    with pytest.raises(
        DataError, match=r"tables\['b'\]: got ndarray; expected a pandas or polars DataFrame"
    ):
        MultimodalDataset.from_tables({"a": A, "b": np.ones((3, 1))})
