"""What was taken without a word: odd scales, codes for gaps, transposed tables, ids that match in
part; and how rows were aligned.
"""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mvkit
from mvkit import DataError, Model, MultimodalDataset, ShapeError
from mvkit.apps import cli
from mvkit.apps.html_report import write_page
from mvkit.data.pipeline import as_pipeline
from mvkit.training.starts import look_at_first_rows

DATA = Path("/work/shared/data")


def fixed(name="normal", scale=1.0):
    return {"name": name, "scale": scale}


def normal_rows(n=200, k=3, mean=0.0, sd=1.0):
    return np.random.default_rng(0).normal(mean, sd, (n, k))


def sentences(arrays, likelihood=None, **options):
    """What `fit` would warn of."""
    data = MultimodalDataset.from_arrays(arrays, **options)
    return said_of(data, likelihood)


def said_of(data, likelihood=None):
    modalities = {}
    for name, modality in data.modalities.items():
        changed = {"shape": modality.shape, "features": modality.features}
        changed["transform"] = modality.transform
        modalities[name] = changed | {"likelihood": likelihood or modality.likelihood}
    model = Model(modalities, latent_dim=2, seed=0)
    return look_at_first_rows(model, as_pipeline(data, model.schema))


def trained_quietly(model, data, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mvkit.fit(model, data, epochs=1, progress=False, **options)


# scales


@pytest.mark.parametrize("name", ["normal", "laplace", "student_t"])
@pytest.mark.parametrize("sd", [1000.0, 0.001])
def test_data_far_from_a_fixed_scale_are_told(name, sd):
    x = normal_rows(sd=sd)
    x[:, 1] *= 2
    (said,) = sentences({"a": x}, fixed(name))
    assert said.startswith("data['a']: ")
    assert "column 1" in said
    assert f"{x[:, 1].std():.4g}" in said
    assert "fixed scale 1" in said
    assert "'standardise'" in said
    assert "scale='trained'" in said


def test_one_feature_far_from_zero_is_told_by_its_name():
    frame = pd.DataFrame({"dose": normal_rows()[:, 0], "year": 2020 + normal_rows()[:, 1]})
    (said,) = said_of(MultimodalDataset.from_tables({"a": frame}), fixed())
    assert "column 'year' has mean 2020" in said


@pytest.mark.parametrize("scale", [0.75, 0.1, 1.0, 3.0])
def test_standardised_data_are_in_order(scale):
    assert sentences({"a": normal_rows()}, fixed(scale=scale)) == []


def test_many_small_features_that_a_latent_pays_for_are_in_order():
    assert sentences({"a": normal_rows(k=400, sd=0.09)}, fixed()) == []


def test_a_trained_scale_expects_nothing():
    assert sentences({"a": normal_rows(sd=1e4)}) == []
    assert sentences({"a": normal_rows(sd=1e4)}, fixed(scale="trained")) == []


def test_a_standardised_modality_is_judged_as_its_model_sees_it():
    data = MultimodalDataset.from_arrays({"a": normal_rows(mean=500, sd=1000)})
    assert said_of(data, fixed())
    assert said_of(data.fit_transforms({"a": "standardise"}), fixed()) == []


def test_pixels_are_named_by_their_place():
    x = normal_rows(k=24).reshape(200, 1, 4, 6)
    x[:, 0, 2, 5] += 300
    (said,) = sentences({"a": x}, fixed())
    assert "element (0, 2, 5) has mean 300" in said


def test_unobserved_values_say_nothing_about_scales():
    x = normal_rows()
    x[::2] = 1e6
    seen = np.ones(200, dtype=bool)
    seen[::2] = False
    rows = {"a": x, "b": normal_rows()}
    mask = {"a": seen}
    assert sentences({**rows, "a": np.where(seen[:, None], x, np.nan)}, fixed()) == []
    assert sentences(rows, fixed(), missing=mask) == []


# codes


@pytest.mark.parametrize("code", [-999, -99, 999, 9999, -1, -888, -32768])
def test_a_code_for_missing_is_told(code):
    x = normal_rows(mean=40.0 if abs(code) > 50 else 400.0, sd=5)
    x[[3, 50, 120, 199], 2] = code
    (said,) = sentences({"a": x})
    assert said.startswith(f"data['a']: column 2 holds {code} in 4 of 200 rows")
    others = np.delete(x[:, 2], [3, 50, 120, 199])
    assert f"({others.min():.4g} to {others.max():.4g})" in said
    assert f"replace([{code}], numpy.nan)" in said
    assert "missing=" in said


def test_codes_are_named_by_column_and_counted():
    frame = pd.DataFrame(normal_rows(), columns=["age", "height", "weight"])
    frame.iloc[:6, 0] = -999
    frame.iloc[5:15, 2] = -888
    frame.iloc[20:30, 2] = -999
    (said,) = said_of(MultimodalDataset.from_tables({"a": frame}))
    assert "column 'age' holds -999 in 6 of 200 rows" in said
    assert "and 2 more like it" in said
    assert "replace([-999, -888], numpy.nan)" in said


def test_codes_are_seen_behind_a_transform():
    x = normal_rows()
    x[:5, 1] = -999
    data = MultimodalDataset.from_arrays({"a": x}).fit_transforms({"a": "standardise"})
    (said,) = said_of(data)
    assert "column 1 holds -999 in 5 of 200 rows" in said


def test_gaps_are_not_counted_as_rows():
    x = normal_rows()
    x[:100] = np.nan
    x[100:105, 1] = -999
    (said,) = sentences({"a": x, "b": normal_rows()})
    assert "column 1 holds -999 in 5 of 100 rows" in said


GENERATOR = np.random.default_rng(1)
HARMLESS = {
    "exponential": GENERATOR.exponential(5, (1000, 4)),
    "zero-inflated": np.where(
        GENERATOR.random((1000, 4)) < 0.3, 0.0, GENERATOR.normal(50, 1, (1000, 4))
    ),
    "heavy tails": GENERATOR.standard_t(2, (1000, 4)),
    "log-normal": np.exp(GENERATOR.normal(0, 2, (1000, 4))),
    "one-hot": np.eye(4)[GENERATOR.choice(4, 1000, p=[0.9, 0.06, 0.02, 0.02])],
    "counts": GENERATOR.poisson(40, (1000, 4)).astype(float),
    "ages": GENERATOR.integers(18, 100, (1000, 2)).astype(float),
    "answers": GENERATOR.integers(-1, 6, (1000, 3)).astype(float),
    "clipped": GENERATOR.normal(0, 5, (1000, 3)).clip(-9, 9),
    "a lone outlier": np.r_[GENERATOR.normal(size=(999, 2)), [[-999, 999]]],
    "pictures": np.where(
        GENERATOR.random((1000, 1, 4, 4)) < 0.7, -1, GENERATOR.uniform(0.8, 1, (1000, 1, 4, 4))
    ),
    "constant": np.full((1000, 2), -1.0),
    "codes only": np.where(GENERATOR.random((1000, 2)) < 0.5, -999.0, -99.0),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_no_false_alarm(kind):
    assert sentences({"a": HARMLESS[kind], "b": normal_rows(1000)}) == []


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_no_false_alarm_on_polydigits(missing):
    splits = mvkit.load_dataset("polydigits", missing=missing)
    assert said_of(splits.train) == []


@pytest.mark.parametrize("standardised", [False, True])
def test_no_false_alarm_on_mfeat(standardised):
    files = sorted((DATA / "mfeat").glob("mfeat-*.csv"))
    if not files:
        pytest.skip("the data are not on this machine")
    data = MultimodalDataset.from_tables({file.stem: pd.read_csv(file) for file in files})
    if standardised:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some features are constant
            data = data.fit_transforms(dict.fromkeys(data.modalities, "standardise"))
    assert said_of(data) == []


def test_no_false_alarm_on_rosmap():
    files = sorted((DATA / "rosmap").glob("[123]_tr.csv"))
    if not files:
        pytest.skip("the data are not on this machine")
    frames = {f"m{file.stem[0]}": pd.read_csv(file, header=None) for file in files}
    assert said_of(MultimodalDataset.from_tables(frames)) == []


# in fit and its history


def test_fit_warns_and_notes_it(tmp_path):
    x = normal_rows()
    x[:5, 1] = -999
    data = MultimodalDataset.from_arrays({"a": x})
    model = Model(data.modalities, latent_dim=2, seed=0)
    with pytest.warns(UserWarning, match=r"fit: data\['a'\]: column 1 holds -999") as caught:
        history = mvkit.fit(model, data, epochs=1, progress=False, checkpoint=tmp_path)
    assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]
    (note,) = history.notes
    assert note.startswith("data['a']: column 1 holds -999 in 5 of 200 rows")
    assert note in repr(history)
    again = trained_quietly(model, data, checkpoint=tmp_path)  # which finds the run finished
    assert again.notes == [note]


def test_fit_looks_at_shards_and_not_at_streams(tmp_path):
    x = normal_rows()
    x[:5, 1] = -999
    data = MultimodalDataset.from_arrays({"a": x})
    data.save(tmp_path / "shards")
    shards = MultimodalDataset.open(tmp_path / "shards")
    model = Model(data.modalities, latent_dim=2, seed=0)
    assert len(trained_quietly(model, shards).notes) == 1
    batches = iter([data.batch])
    assert trained_quietly(model, batches).notes == []


# tables on their sides, ids that match in part


def tables(n=6):
    ids = [f"p{i}" for i in range(n)]
    a = pd.DataFrame(normal_rows(n, 2), index=ids, columns=["x", "y"])
    b = pd.DataFrame(normal_rows(n, 3), index=ids, columns=["g1", "g2", "g3"])
    return a, b


def test_a_transposed_table_is_named():
    a, b = tables()
    message = (
        r"data\['b'\]: 6 of its 6 columns, such as 'p0', are ids of other modalities.*table\.T"
    )
    with pytest.raises(DataError, match=message):
        MultimodalDataset.from_tables({"a": a, "b": b.T})
    with pytest.warns(UserWarning, match=message):
        MultimodalDataset.from_tables({"a": a, "b": b.T}, disjoint=True)


def test_tables_without_ids_on_their_sides_are_named():
    a, b = (frame.reset_index(drop=True) for frame in tables())
    turned = pd.DataFrame(b.to_numpy().T)
    with pytest.raises(DataError, match="'b' has 6 columns, as many as 'a' has rows.*transposed"):
        MultimodalDataset.from_tables({"a": a, "b": turned})


def test_arrays_on_their_sides_are_named():
    a, b = normal_rows(6, 2), normal_rows(6, 3)
    with pytest.raises(ShapeError, match="'b' has 6 columns, as many as 'a' has rows.*transposed"):
        MultimodalDataset.from_arrays({"a": a, "b": b.T})
    ids = {"a": list("abcdef"), "b": list("abcdef")}
    with pytest.raises(ShapeError, match=r"ids\['b'\]: 6 for 3 rows.*looks transposed"):
        MultimodalDataset.from_arrays({"a": a, "b": b.T}, ids=ids)
    with pytest.raises(ShapeError) as error:
        MultimodalDataset.from_arrays({"a": a, "b": normal_rows(5, 3)})
    assert "transposed" not in str(error.value)


def test_a_matrix_of_similarities_is_not_transposed():
    a, _ = tables()
    square = pd.DataFrame(np.eye(6) + 0.5, index=a.index, columns=a.index)
    MultimodalDataset.from_tables({"a": a, "b": square})


def test_numbered_columns_are_no_ids():
    a, b = (frame.reset_index(drop=True) for frame in tables())
    b.columns = range(3)
    a.columns = range(2)
    MultimodalDataset.from_tables({"a": a, "b": b})


def test_ids_that_match_in_part_are_told():
    a, b = tables(20)
    b.index = [f"p{i}" for i in range(14, 34)]
    with pytest.warns(UserWarning, match="6 of its 20 ids") as caught:
        data = MultimodalDataset.from_tables({"a": a, "b": b})
    assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]
    said = str(caught[0].message)
    assert said == (
        "data['a']: 6 of its 20 ids are in 'b'; only 'a' has 'p0', 'p1', 'p2', only 'b' has "
        "'p20', 'p21', 'p22'; make the ids alike, or say disjoint=True if few rows have both"
    )
    assert len(data) == 34


def test_ids_of_arrays_that_match_in_part_are_told():
    ids = {"a": np.arange(10), "b": np.arange(8, 18)}
    arrays = {"a": normal_rows(10), "b": normal_rows(10)}
    with pytest.warns(UserWarning, match="2 of its 10 ids are in 'b'; only 'a' has 0, 1, 2, only"):
        MultimodalDataset.from_arrays(arrays, ids=ids)
    MultimodalDataset.from_arrays(arrays, ids=ids, disjoint=True)


def test_a_small_table_within_a_large_one_is_in_order():
    a, b = tables(40)
    MultimodalDataset.from_tables({"a": a, "b": b.iloc[3:7]})


def test_a_mosaic_that_a_third_table_joins_is_in_order():
    a, b = tables(20)
    c = pd.DataFrame({"u": np.arange(20.0)}, index=a.index)
    MultimodalDataset.from_tables({"a": a.iloc[:10], "b": b.iloc[10:], "c": c})


@pytest.mark.parametrize("mark", ["P_", "p-", "P."])
def test_ids_that_differ_by_case_or_marks_are_told(mark):
    a, b = tables(20)
    a.index = [f"p_{i}" for i in range(20)]
    strange = [f"{mark}{i}" for i in range(15, 20)]
    b.index = [*a.index[:15], *strange]
    with pytest.warns(UserWarning, match="5 ids differ from those of others by case or punct"):
        data = MultimodalDataset.from_tables({"a": a, "b": b})
    assert len(data) == 25
    b.index = [*strange, *(f"z{i}" for i in range(15))]
    with pytest.raises(DataError, match="none of its ids.*5 ids differ.*case or punctuation"):
        MultimodalDataset.from_tables({"a": a, "b": b})


def test_ids_that_differ_otherwise_stay_other_rows():
    a, b = tables(20)
    a.index = [f"{i}-11" for i in range(20)]
    b.index = [*a.index[:15], *(f"{i}1-1" for i in range(15, 20))]
    MultimodalDataset.from_tables({"a": a, "b": b})


# how rows were aligned


def mosaic():
    a, b = tables(20)
    c = pd.DataFrame({"u": np.arange(12.0)}, index=a.index[:12])
    return {"a": a, "b": b.iloc[5:], "c": c}


ALIGNED = "7 of 20 rows in all three: a 20, b 15, c 12"


def test_alignment_of_tables_is_told():
    data = MultimodalDataset.from_tables(mosaic())
    complete = set.intersection(*(set(frame.index) for frame in mosaic().values()))
    assert len(complete) == 7
    assert data.alignment == ALIGNED
    assert repr(data) == f"MultimodalDataset(a (2,), b (3,), c (1,); {ALIGNED})"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_alignment_of_files_is_told(tmp_path, suffix):
    files = {}
    for name, frame in mosaic().items():
        files[name] = tmp_path / f"{name}.{suffix}"
        table = frame.rename_axis("id").reset_index()
        if suffix == "csv":
            table.to_csv(files[name], index=False)
        else:
            table.to_parquet(files[name])
    assert MultimodalDataset.from_files(files, id="id").alignment == ALIGNED


def test_alignment_of_masked_arrays_is_told():
    arrays = {"a": normal_rows(3), "b": normal_rows(3, 2)}
    mask = np.array([[1, 1], [1, 0], [0, 1]], dtype=bool)
    data = MultimodalDataset.from_arrays(arrays, missing=mask)
    assert data.alignment == "1 of 3 rows in both: a 2, b 2"
    assert data.take([1]).alignment == "0 of 1 rows in both: a 1, b 0"
    alone = MultimodalDataset.from_arrays({"a": [[1.0, 2.0], [np.nan, np.nan]]})
    assert alone.alignment == "1 of 2 rows have a"


def test_alignment_follows_rows_that_a_model_conformed():
    data = MultimodalDataset.from_tables(mosaic())
    model = Model({name: data.modalities[name] for name in ("c", "a", "b")}, latent_dim=2)
    conformed = MultimodalDataset(model.conform(data), data.modalities)
    assert conformed.alignment == "7 of 20 rows in all three: c 12, a 20, b 15"


def test_alignment_of_shards_is_told(tmp_path):
    data = MultimodalDataset.from_tables(mosaic())
    data.save(tmp_path / "shards")
    shards = MultimodalDataset.open(tmp_path / "shards")
    assert shards.alignment == data.alignment
    assert ALIGNED in repr(shards)


def test_alignment_of_many_modalities_is_short():
    arrays = {f"m{i}": normal_rows(4, 1) for i in range(30)}
    data = MultimodalDataset.from_arrays(arrays)
    assert data.alignment.startswith("4 of 4 rows in all 30: m0 4, ")
    assert data.alignment.endswith("m11 4, 18 more")
    assert len(repr(data)) < 500


def test_the_page_of_a_run_tells_notes_and_alignment(tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_text(
        '[data]\nname = "linear_gaussian"\nrows = 60\nmissing = 0.3\nsigma = 0.0001\n'
        "[model]\nlatent_dim = 2\n[train]\nepochs = 1\n"
    )
    folder = tmp_path / "run"
    with pytest.warns(UserWarning, match="far from what a likelihood with the fixed scale"):
        assert cli.main(["train", str(file), "--folder", str(folder)]) == 0
    assert "fixed scale 0.0001" in capsys.readouterr().out
    report = write_page(folder, folder / "report.html", metrics=["reconstruction"])
    splits = mvkit.load_dataset("linear_gaussian", rows=60, missing=0.3, sigma=0.0001)
    complete = int(splits.train.batch.mask.all(1).sum())
    assert f"training rows: {complete} of 60 rows in all three: m0 " in str(report)
    assert f"test rows: {splits.test.alignment}" in report.notes
    assert any("training: data['m0']" in note for note in report.notes)
    page = (folder / "report.html").read_text("utf-8")
    assert f"{complete} of 60 rows in all three" in page
    assert "fixed scale 0.0001" in page
