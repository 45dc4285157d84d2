"""Covariates at every door that takes data: each gives the codes of a batch built by hand."""

import datetime
import math
import warnings

import attrs
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import mvkit
from mvkit import Batch, Covariate, DataError, Modality, Model, MultimodalDataset, ShapeError
from mvkit.core.batch import conform
from mvkit.data.shards import Shards, save_shards

SITES = ("A", "B", "C")
COVARIATES = {"site": Covariate(SITES), "age": Covariate()}
IDS = [f"p{i}" for i in range(12)]


def world(seed=0):
    """Values of two modalities, sites, ages and weights of twelve rows."""
    generator = np.random.default_rng(seed)
    return {
        "a": generator.normal(size=(12, 3)),
        "b": generator.normal(size=(12, 2)),
        "site": [SITES[i] for i in generator.integers(3, size=12)],
        "age": generator.normal(50, 10, size=12).round(3),
        "w": generator.uniform(0.5, 2, size=12).round(3),
    }


def frames(shuffled=False):
    """The same as tables with site and weight in one, age in the other."""
    values = world()
    a = pd.DataFrame(values["a"], index=IDS, columns=list("xyz"))
    b = pd.DataFrame(values["b"], index=IDS, columns=list("uv"))
    a["site"] = values["site"]
    a["w"] = values["w"]
    b["age"] = values["age"]
    if shuffled:
        b = b.sample(frac=1, random_state=0)
    return {"a": a, "b": b}


def by_hand():
    values = world()
    given = {"site": values["site"], "age": values["age"]}
    data = {"a": values["a"], "b": values["b"]}
    return Batch(data, covariates=given, row_weight=values["w"])


def model_of(modalities, covariates=COVARIATES):
    return Model(modalities, latent_dim=2, covariates=covariates, seed=0)


def check_same(data, by_id=True):
    """Asserts that the codes and the loss of each row are those of the batch built by hand."""
    plain = {"a": Modality((3,)), "b": Modality((2,))}
    model = model_of(plain)
    rows = by_hand()
    batch = data.batch
    order = [IDS.index(id) for id in batch.extra["id"]] if by_id else range(12)
    expected = model.encode(rows)[list(order)]
    stripped = Batch({name: batch.data[name] for name in plain}, extra=batch.extra)
    torch.testing.assert_close(model.encode(stripped), expected)
    weights = torch.as_tensor(rows.extra["row_weight"])[list(order)]
    torch.testing.assert_close(model.conform(stripped).row_weight, weights.float())
    assert set(data.modalities) == {"a", "b"}
    assert data.covariates == COVARIATES
    trained = model_of(data.modalities, data.covariates)
    torch.testing.assert_close(trained.encode(data.batch), model.encode(stripped))


def as_polars(tables):
    return {name: pl.from_pandas(frame.reset_index(names="id")) for name, frame in tables.items()}


def written(tables, folder, ending):
    paths = {}
    for name, frame in tables.items():
        paths[name] = folder / f"{name}.{ending}"
        flat = frame.reset_index(names="id")
        if ending == "csv":
            flat.to_csv(paths[name], index=False)
        else:
            flat.to_parquet(paths[name])
    return paths


NAMED = {"covariates": ["site", "age"], "row_weight": "w"}


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("kind", ["pandas", "polars", "csv", "parquet"])
def test_columns_of_tables_are_covariates(kind, shuffled, tmp_path):
    tables = frames(shuffled)
    if kind == "pandas":
        data = MultimodalDataset.from_tables(tables, **NAMED)
    elif kind == "polars":
        data = MultimodalDataset.from_tables(as_polars(tables), id="id", **NAMED)
    else:
        data = MultimodalDataset.from_files(written(tables, tmp_path, kind), id="id", **NAMED)
    check_same(data)


@pytest.mark.parametrize("kind", [tuple, np.array, pd.Index, iter, dict.fromkeys])
def test_names_come_in_any_order(kind):
    names = kind(["site", "age"])
    names = names.keys() if isinstance(names, dict) else names
    check_same(MultimodalDataset.from_tables(frames(), covariates=names, row_weight="w"))


def separated():
    """Tables of features alone, and one of covariates with rows that nobody else has."""
    tables = frames()
    known = tables["a"][["site"]].assign(age=tables["b"]["age"])
    more = pd.DataFrame({"site": ["A"], "age": [1.0]}, index=["unknown"])
    known = pd.concat([known.iloc[::-1], more])
    a = tables["a"].drop(columns=["site"])
    return {"a": a, "b": tables["b"].drop(columns="age")}, known


@pytest.mark.parametrize("kind", ["pandas", "polars", "csv", "parquet", "series"])
def test_a_table_of_their_own(kind, tmp_path):
    tables, known = separated()
    if kind == "pandas":
        data = MultimodalDataset.from_tables(tables, covariates=known, row_weight="w")
    elif kind == "series":
        columns = {"site": known["site"], "age": known["age"].to_dict()}
        data = MultimodalDataset.from_tables(tables, covariates=columns, row_weight="w")
    elif kind == "polars":
        every = as_polars({**tables, "known": known})
        own = every.pop("known")
        data = MultimodalDataset.from_tables(every, id="id", covariates=own, row_weight="w")
    else:
        paths = written({**tables, "known": known}, tmp_path, kind)
        own = paths.pop("known")
        data = MultimodalDataset.from_files(paths, id="id", covariates=own, row_weight="w")
    check_same(data)


def test_a_table_of_nothing_else_is_no_modality():
    tables, known = separated()
    weights = tables["a"].pop("w")
    data = MultimodalDataset.from_tables({**tables, "clinic": known.assign(w=weights)}, **NAMED)
    check_same(data)


@pytest.mark.parametrize("kind", ["plain", "tensors", "pandas", "ids", "table", "npz", "shuffled"])
def test_covariates_of_arrays(kind, tmp_path):
    values = world()
    arrays = {"a": values["a"], "b": values["b"]}
    given = {"site": values["site"], "age": values["age"]}
    by_id = True
    if kind == "plain":
        data = MultimodalDataset.from_arrays(arrays, covariates=given, row_weight=values["w"])
        by_id = False
    elif kind == "tensors":
        given["age"] = torch.as_tensor(given["age"])
        given["site"] = np.array(given["site"])
        weight = torch.as_tensor(values["w"])
        data = MultimodalDataset.from_arrays(arrays, covariates=given, row_weight=weight)
        by_id = False
    elif kind == "pandas":
        given = {"site": pd.Categorical(given["site"]), "age": pd.Index(given["age"])}
        data = MultimodalDataset.from_arrays(
            arrays, covariates=given, row_weight=pd.array(values["w"])
        )
        by_id = False
    elif kind == "ids":
        mappings = {name: dict(zip(IDS, column, strict=True)) for name, column in given.items()}
        weight = pd.Series(values["w"], IDS)
        data = MultimodalDataset.from_arrays(
            arrays, ids=IDS, covariates=mappings, row_weight=weight
        )
    elif kind == "table":
        table = pd.DataFrame(given, index=IDS).iloc[::-1]
        data = MultimodalDataset.from_arrays(
            arrays, ids=IDS, covariates=table, row_weight=values["w"]
        )
    elif kind == "shuffled":
        order = np.random.default_rng(1).permutation(12)
        arrays["b"] = arrays["b"][order]
        ids = {"a": IDS, "b": [IDS[i] for i in order]}
        data = MultimodalDataset.from_arrays(
            arrays, ids=ids, covariates=given, row_weight=values["w"]
        )
    else:
        np.savez(tmp_path / "x.npz", **{"id": IDS, **values})
        data = MultimodalDataset.from_npz(tmp_path / "x.npz", **NAMED)
    check_same(data, by_id)


def test_rows_that_lack_a_covariate_have_none():
    tables = frames()
    tables["a"] = tables["a"].drop(["p3", "p8"])
    tables["b"].loc["p5", "age"] = np.nan
    data = MultimodalDataset.from_tables(tables, covariates=["site", "age"])
    rows = dict(zip(data.batch.extra["id"], range(12), strict=True))
    assert [data.batch.extra["site"][rows[id]] for id in ("p3", "p8")] == [None, None]
    assert math.isnan(data.batch.extra["age"][rows["p5"]])
    assert data.covariates == COVARIATES
    with pytest.raises(DataError, match="'age': row \\d+ has none.*missing='average'"):
        model_of(data.modalities, data.covariates).encode(data.batch)
    average = {"site": Covariate(SITES, missing="average"), "age": Covariate(missing="average")}
    model = model_of(data.modalities, average)
    conformed = model.conform(data.batch).covariates
    assert (conformed["site"] < 0).sum() == 2
    assert conformed["age"].isnan().nonzero().tolist() == [[rows["p5"]]]
    rest = data[[id for id in IDS if id not in ("p3", "p8", "p5")]]
    assert torch.isfinite(model_of(data.modalities, data.covariates).encode(rest.batch)).all()


def test_tables_may_share_a_covariate_unless_they_disagree():
    tables = frames()
    tables["b"]["site"] = tables["a"]["site"]
    tables["a"].loc["p2", "site"] = None
    check_same(MultimodalDataset.from_tables(tables, **NAMED))
    known = tables["a"].loc["p4", "site"]
    tables["b"].loc["p4", "site"] = "X"
    message = rf"tables\['b'\]: column 'site', row 'p4': 'X', but it is '{known}' elsewhere"
    with pytest.raises(DataError, match=message):
        MultimodalDataset.from_tables(tables, **NAMED)


DAYS = [datetime.datetime(2020, 1, 1) + datetime.timedelta(hours=12 * i) for i in range(12)]
DAY_NUMBERS = [18262 + i / 2 for i in range(12)]
FLAGS = [True, False, True] * 4
WORDS = ["True", "False", "True"] * 4
COUNTS = [3, 1, 2] * 4
KINDS = {
    "strings": (pd.Series(["q", "p"] * 6, dtype="string"), ("p", "q"), ["q", "p"] * 6),
    "objects": (pd.Series(["q", "p"] * 6, dtype=object), ("p", "q"), ["q", "p"] * 6),
    "category": (pd.Categorical(["q", "p"] * 6, ["q", "r", "p"]), ("q", "r", "p"), ["q", "p"] * 6),
    "whole category": (pd.Categorical(COUNTS, [3, 2, 1]), (3, 2, 1), COUNTS),
    "category of flags": (pd.Categorical(FLAGS), ("False", "True"), WORDS),
    "category of floats": (pd.Categorical([0.5, 1.5] * 6), ("0.5", "1.5"), ["0.5", "1.5"] * 6),
    "flags": (FLAGS, ("False", "True"), WORDS),
    "boolean": (pd.array(FLAGS, dtype="boolean"), ("False", "True"), WORDS),
    "whole": (COUNTS, (), COUNTS),
    "Int64": (pd.array(COUNTS, dtype="Int64"), (), COUNTS),
    "float32": (np.array(COUNTS, np.float32), (), COUNTS),
    "days": (pd.Series(DAYS), (), DAY_NUMBERS),
    "days elsewhere": (pd.Series(DAYS).dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo"), (), DAY_NUMBERS),
    "dates": (pd.Series([day.date() for day in DAYS], dtype=object), (), [math.floor(x) for x in DAY_NUMBERS]),
    "spans": (pd.to_timedelta(np.arange(12), "h"), (), [i / 24 for i in range(12)]),
}  # fmt: skip


@pytest.mark.parametrize("gap", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_columns_become(kind, gap, tmp_path):
    column, levels, values = KINDS[kind]
    table = pd.DataFrame({"x": np.arange(12.0), "c": column})
    table.index = IDS
    if gap:
        table = pd.concat([table, pd.DataFrame({"x": [12.0]}, index=["q"])])
        if kind not in ("flags", "whole"):  # which become objects and floats
            table["c"] = table["c"].astype(pd.DataFrame({"c": column})["c"].dtype)
    data = MultimodalDataset.from_tables({"a": table}, covariates=["c"])
    assert data.covariates == {"c": Covariate(levels)}
    column = data.batch.extra["c"]
    assert list(column[:12]) == values if levels else column[:12].tolist() == values
    if gap:
        assert column[12] is None if levels else math.isnan(column[12])
    data.save(tmp_path / "shards", rows_per_shard=5)
    shards = MultimodalDataset.open(tmp_path / "shards")
    assert shards.covariates == data.covariates
    average = {"c": Covariate(levels, missing="average")}
    model = model_of(data.modalities, average)
    pipeline = mvkit.Pipeline(shards, batch_size=4, shuffle=False, schema=model.schema)
    codes = torch.cat([model.encode(batch) for batch in pipeline])
    torch.testing.assert_close(codes, model.encode(data.batch))


@pytest.mark.parametrize("unit", ["ns", "us", "s", "h"])
@pytest.mark.parametrize("packed", [True, False])
def test_days_of_arrays_are_counted_from_1970(unit, packed):
    days = np.array([*DAYS[:11], "NaT"], dtype=f"datetime64[{unit}]")
    spans = days - np.datetime64("2020-01-01")
    given = {"day": days, "span": spans}
    if not packed:
        given = {name: list(values) for name, values in given.items()}
    data = MultimodalDataset.from_arrays({"a": np.zeros((12, 2))}, covariates=given)
    assert data.batch.extra["day"][:11].tolist() == DAY_NUMBERS[:11]
    assert data.batch.extra["span"][:11].tolist() == [i / 2 for i in range(11)]
    assert all(math.isnan(data.batch.extra[name][11]) for name in given)


def test_parts_of_data_keep_all_levels(tmp_path):
    data = MultimodalDataset.from_tables(frames(), **NAMED)
    only = data.take([site == "A" for site in data.batch.extra["site"]])
    for part in (only, *data.split(0.5, 0.5), data.with_missing(0.2), data.fit_transforms({})):
        assert part.covariates == COVARIATES
    data.save(tmp_path / "one")
    batches = [data.batch.take(slice(i, i + 4)) for i in (0, 4, 8)]
    save_shards(batches, tmp_path / "two", data.modalities, levels=data.levels)
    save_shards(batches, tmp_path / "three", data.modalities)
    assert Shards(tmp_path / "one").covariates == COVARIATES
    assert Shards(tmp_path / "two").covariates == COVARIATES
    assert Shards(tmp_path / "three").covariates == {}


def test_named_exposures_are_columns_in_the_same_list():
    table = pd.DataFrame({"x": [1.0, 5.0, 2.0], "y": [4.0, 0.0, 1.0], "depth": [9, 8, 7]})
    data = MultimodalDataset.from_tables(
        {"rna": table},
        modalities={"rna": {"likelihood": "normal", "exposure": "depth"}},
        covariates=["depth"],
    )
    assert data.covariates == {}
    assert data.modalities["rna"].shape == (2,)
    schema = Model({"rna": (2,)}, latent_dim=2).schema
    schema = attrs.evolve(schema, exposures={"rna": "depth"})
    assert conform(attrs.evolve(data.batch, columns={}), schema).exposure["rna"].tolist() == [
        9,
        8,
        7,
    ]


def both(**changes):
    tables = frames()
    for name, values in changes.items():
        tables["a"][name] = values
    return tables


WRONG = {
    "unknown column": (both(), ["sit"], DataError, "no table has a column 'sit'; did you mean 'site'"),
    "no list": (both(), "site", DataError, r"got 'site'; expected names.*give a list, such as \['site'\]"),
    "no names": (both(), [1], DataError, "got 1 as a name; expected text"),
    "something else": (both(), 5, DataError, "got 5; expected names of columns"),
    "called like a table": (both(b=1.0), ["b", "site"], DataError, "'b' is a modality too"),
    "ids": (both(id=1.0), ["id"], DataError, "'id' is what ids of rows are kept as"),
    "weights": (both(row_weight=1.0), ["row_weight"], DataError, "'row_weight' is what weights"),
    "mixed": (both(age=["?", *[1.5] * 11]), ["age"], DataError, r"row 'p0' has '\?' among values such as 1.5"),
    "lists": (both(age=[[1]] * 12), ["age"], DataError, r"row 'p0' has \[1\]; expected words"),
    "complex": (both(age=[1j] * 12), ["age"], DataError, "row 'p0' has 1j"),
    "too large": (both(age=[10**400] * 12), ["age"], DataError, "row 'p0' has 1000"),
    "kinds": (both(age="old"), ["age"], DataError, r"it holds numbers, but tables\['a'\].* words"),
    "other ids": (both(site=1.0), pd.DataFrame({"s": [1.0]}, index=["r"]), DataError, "none of its ids is an id.*'r'.*'p0'"),
    "two values": (both(), pd.DataFrame({"s": [1.0, 2]}, index=["p0", "p0"]), DataError, "row 'p0': 2.0, but it is 1.0"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_columns_are_refused(kind):
    tables, covariates, error, message = WRONG[kind]
    with pytest.raises(error, match=message):
        MultimodalDataset.from_tables(tables, covariates=covariates)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"covariates": {"site": ["A", "B"]}}, ShapeError, r"\['site'\]: 2 values for 12 rows"),
        ({"covariates": ["site"]}, DataError, "got a list; expected a mapping from name"),
        ({"covariates": {"a": [1.0] * 12}}, DataError, "'a' is a modality too"),
        ({"covariates": {"label": [1.0] * 12}, "label": [1] * 12}, DataError, "'label' is what"),
        ({"covariates": {"s": {"p0": 1.0}}}, DataError, "none of its ids.*'p0'.*the rows' 0"),
        ({"covariates": {"s": np.zeros((12, 2))}}, DataError, "row 0 has"),
        ({"row_weight": [1.0, 2.0]}, ShapeError, "row_weight: 2 values for 12 rows"),
        ({"row_weight": ["a"] * 12}, DataError, "row_weight: it holds words, such as 'a'"),
    ],
)
def test_wrong_values_for_arrays_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        MultimodalDataset.from_arrays({"a": np.zeros((12, 2))}, **options)


def test_weights_that_cannot_be_are_refused_by_name_and_row():
    tables = both(w=[-1.0, *[1.0] * 11], word="x", site=1.0)
    with pytest.raises(DataError, match="column 'word': it holds words, such as 'x'"):
        MultimodalDataset.from_tables(tables, row_weight="word")
    with pytest.raises(DataError, match="row_weight: no table has a column 'nope'"):
        MultimodalDataset.from_tables(tables, row_weight="nope")
    data = MultimodalDataset.from_tables(tables, row_weight="w", covariates=["word", "age"])
    model = Model(data.modalities, latent_dim=2)
    with pytest.raises(DataError, match=r"row_weight: row 0 \(id 'p0'\) is -1.0"):
        model.loss(data.batch)


def test_one_level_is_taken_and_not_declared():
    data = MultimodalDataset.from_tables(both(site="A"), covariates=["site", "age"])
    model = model_of(data.modalities)
    assert torch.isfinite(model.encode(data.batch)).all()
    with pytest.raises(DataError, match="'site': all rows that have it are 'A'; expected two"):
        _ = data.covariates


def test_files_say_what_they_lack(tmp_path):
    paths = written(frames(), tmp_path, "csv")
    np.savez(tmp_path / "x.npz", **world())
    with pytest.raises(DataError, match="the file has no array 'sit'; did you mean 'site'"):
        MultimodalDataset.from_npz(tmp_path / "x.npz", covariates=["sit"])
    with pytest.raises(DataError, match="covariates: no table has a column 'sit'"):
        MultimodalDataset.from_files(paths, id="id", covariates=["sit"])
    with pytest.raises(FileNotFoundError):
        MultimodalDataset.from_files(paths, id="id", covariates=tmp_path / "no.csv")
    with pytest.raises(DataError, match="a modality is called 'covariates'"):
        MultimodalDataset.from_files({"covariates": paths["a"]}, covariates=str(paths["b"]))


def test_a_column_may_be_label_and_covariate():
    tables, known = separated()
    tables = {**tables, "known": known.iloc[:-1]}
    data = MultimodalDataset.from_tables(tables, label="site", **NAMED)
    check_same(data)
    assert list(data.labels) == list(data.batch.extra["site"])


def test_days_as_text_are_told_since_they_are_words():
    days = pd.date_range("2020-01-01", periods=50).strftime("%Y-%m-%d")
    table = pd.DataFrame({"x": np.arange(50.0), "day": days, "site": ["A", "B"] * 25})
    with pytest.warns(UserWarning, match="50 different words in 50 rows, such as '2020-01-01'"):
        MultimodalDataset.from_tables({"a": table}, covariates=["day", "site"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table["day"] = pd.to_datetime(table["day"])
        data = MultimodalDataset.from_tables({"a": table}, covariates=["day", "site"])
    assert data.covariates == {"day": Covariate(), "site": Covariate(("A", "B"))}
