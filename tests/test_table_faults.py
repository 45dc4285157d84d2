"""Tables as people have them: dtypes, ids, labels and objects come back as they went in."""

import datetime
import decimal
import warnings

import numpy as np
import pytest
import torch

import mvkit
from mvkit import DataError, MultimodalDataset, ShapeError
from mvkit.core import noise

pandas = pytest.importorskip("pandas")
polars = pytest.importorskip("polars")
IDS = list("abcdefgh")
NUMBERS = pandas.DataFrame({"x": np.arange(8.0)}, index=IDS)
from_tables = MultimodalDataset.from_tables


def trained(tables, epochs=1, **options):
    data = from_tables(tables, **options)
    model = mvkit.Model(data.modalities, latent_dim=1, seed=0)
    mvkit.fit(model, data, epochs=epochs)
    return model


def answer(model, tables):
    return mvkit.impute(model, tables, generator=torch.Generator().manual_seed(0))


def table(**columns):
    return pandas.DataFrame(columns, index=IDS)


def gappy(values):
    """The values with a gap in the fourth place."""
    return [*values[:3], None, *values[4:]]


# categories of any type

CATEGORIES = {
    "whole numbers": [8, 9, 8, 10, 9, 8, 9, 10],
    "bits": [True, False, True, False, True, False, True, False],
    "doses": [0.5, 1.0, 0.5, 2.0, 1.0, 0.5, 2.0, 2.0],
    "days": list(pandas.to_datetime(["2020-01-01", "2021-05-06"] * 4)),
    "words": ["u", "v", "u", "w", "w", "v", "u", "v"],
}


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("values", CATEGORIES.values(), ids=CATEGORIES)
def test_categories_of_any_type_come_back_in_their_dtype(values, ordered):
    kind = pandas.CategoricalDtype(sorted(set(values)), ordered)
    full = table(g=pandas.Categorical(values, dtype=kind))
    gaps = table(g=pandas.Categorical(gappy(values), dtype=kind))
    for train in (full, gaps):
        model = trained({"n": NUMBERS, "g": train})
        assert mvkit.impute(model, {"n": NUMBERS, "g": full})["g"].equals(full)
        column = mvkit.impute(model, {"n": NUMBERS, "g": gaps})["g"]["g"]
        assert column.dtype == kind
        assert column["d"] in set(values)
        assert type(column.tolist()[3]) is type(full["g"].tolist()[3])
        observed = [id for id in IDS if id != "d"]
        assert column[observed].tolist() == full["g"][observed].tolist()


def test_complete_and_gappy_tables_are_the_same_categories():
    for values in CATEGORIES.values():
        words = []
        for column in (values, gappy(values)):
            data = from_tables({"g": table(g=pandas.Categorical(column))})
            words.append(data.modalities["g"].transform[0].words)
        assert words[0] == words[1] == tuple(sorted(map(str, set(values))))


def test_each_column_of_categories_keeps_its_own():
    first = pandas.Categorical(gappy(CATEGORIES["whole numbers"]))
    second = pandas.Categorical(CATEGORIES["words"], ordered=True)
    tables = {"n": NUMBERS, "g": table(f=first, s=second)}
    filled = mvkit.impute(trained(tables, epochs=200), tables)["g"]
    assert filled.dtypes.tolist() == [first.dtype, second.dtype]
    assert filled["s"].tolist() == list(second)


def test_a_category_of_training_that_a_table_lacks_is_added_in_its_type():
    tables = {"n": NUMBERS, "g": table(g=pandas.Categorical([7] * 8))}
    model = trained(tables)
    asked = tables | {"g": table(g=pandas.Categorical([None] * 8, categories=[9]))}
    column = mvkit.impute(model, asked)["g"]["g"]
    assert column.tolist() == [7] * 8
    assert column.dtype == pandas.CategoricalDtype([9, 7])


# objects

BITS = pandas.DataFrame({"t": [True, False, True, False, True]}, index=IDS[:5]).reindex(IDS)
REALS = np.random.default_rng(0).normal(size=(8, 2))
OBJECTS = {
    "bits with gaps": (BITS, BITS.astype(float)),
    "bits with None": (BITS.astype(object).where(BITS.notna(), None), BITS.astype(float)),
    "bits with NA": (BITS.astype(object).where(BITS.notna(), pandas.NA), BITS.astype(float)),
    "floats": (table(x=REALS[:, 0]).astype(object), table(x=REALS[:, 0])),
    "a transposed table": (
        pandas.DataFrame(REALS.T.astype(object), ["x", "y"], IDS).T,
        pandas.DataFrame(REALS, IDS, ["x", "y"]),
    ),
    "decimals": (table(x=[decimal.Decimal(i) / 4 for i in range(8)]), table(x=np.arange(8) / 4)),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_are_numbers_at_every_door(kind):
    objects, floats = OBJECTS[kind]
    assert set(objects.dtypes) == {np.dtype(object)}
    tables = {"n": NUMBERS, "o": objects}
    same = {"n": NUMBERS, "o": floats}
    model = trained(tables)
    assert torch.equal(model.encode(tables), model.encode(same))
    pandas.testing.assert_frame_equal(mvkit.embed(model, tables), mvkit.embed(model, same))
    answers = [answer(model, rows)["o"].astype(float) for rows in (tables, same)]
    pandas.testing.assert_frame_equal(*answers)
    mvkit.fit(model, tables, epochs=1)
    data = [from_tables(rows).batch.data["o"] for rows in (tables, same)]
    torch.testing.assert_close(*data, equal_nan=True)


@pytest.mark.parametrize(
    ("column", "floats"),
    [
        ([True, None, False, True], [1.0, np.nan, 0.0, 1.0]),
        ([decimal.Decimal("1.5"), None, decimal.Decimal("2.5"), decimal.Decimal("0.5")], None),
    ],
    ids=["bits", "decimals"],
)
def test_objects_that_polars_makes(column, floats):
    asked = polars.DataFrame({"id": list("pqrs"), "o": column})
    floats = [1.5, np.nan, 2.5, 0.5] if floats is None else floats
    same = polars.DataFrame({"id": list("pqrs"), "o": floats})
    other = polars.DataFrame({"id": list("pqrs"), "x": [1.0, 2.0, 3.0, 4.0]})
    model = trained({"o": asked, "x": other}, id="id")
    latents = []
    for rows in (asked, same):
        latents.append(mvkit.embed(model, {"o": rows, "x": other}, id="id"))
    assert latents[0].equals(latents[1])


def test_objects_that_are_words_stay_words():
    words = table(g=["u", "v", "u", None, "w", "v", "u", "v"], n=[1, 2, 1, 2, None, 1, 1, 2])
    words = words.astype(object)
    model = trained({"n": NUMBERS, "g": words}, modalities={"g": "categorical"})
    assert model.modalities["g"].transform[0].words == ("1.0", "2.0", "u", "v", "w")
    filled = mvkit.impute(model, {"n": NUMBERS, "g": words})["g"]
    assert filled["g"].drop("d").tolist() == ["u", "v", "u", "w", "v", "u", "v"]
    with pytest.raises(DataError, match="'bad' is text; expected numbers"):
        trained({"n": NUMBERS}).encode({"n": table(x=["bad"] * 8)})


# whole numbers and bits


@pytest.mark.parametrize(
    "kind", ["Int64", "Int8", "UInt8", "UInt16", "int64[pyarrow]", "uint8[pyarrow]"]
)
def test_whole_numbers_with_gaps_come_back_in_their_dtype(kind):
    if "pyarrow" in kind:
        pytest.importorskip("pyarrow")
    column = pandas.array([1, 2, None, 4, 5, 3, 2, 1], dtype=kind)
    tables = {"n": NUMBERS, "t": table(c=column)}
    model = trained(tables, epochs=5)
    filled = answer(model, tables)["t"]["c"]
    assert filled.dtype == column.dtype
    floats = {"n": NUMBERS, "t": tables["t"].astype(float)}
    mean = answer(model, floats)["t"]["c"]
    assert filled.tolist() == [round(max(x, 0)) for x in mean]
    assert mean["c"] != round(mean["c"])


@pytest.mark.parametrize("kind", ["boolean", "bool[pyarrow]"])
def test_bits_with_gaps_come_back_in_their_dtype(kind):
    if "pyarrow" in kind:
        pytest.importorskip("pyarrow")
    column = pandas.array([True, None, False, True, True, False, None, True], dtype=kind)
    tables = {"n": NUMBERS, "s": table(s=column)}
    model = trained(tables)
    filled = answer(model, tables)["s"]["s"]
    floats = {"n": NUMBERS, "s": tables["s"].astype(float)}
    mean = answer(model, floats)["s"]["s"]
    assert filled.dtype == column.dtype
    assert filled.tolist() == [x > 0.5 for x in mean]


def test_numbers_that_no_float_holds_stay():
    large = 2**53 + 1
    ints = table(c=pandas.array([large, 2, None, 4, 5, 3, 2, 1], dtype="Int64"), d=range(8))
    tables = {"n": NUMBERS, "t": ints.astype({"d": "int32"})}
    model = mvkit.Model(from_tables(tables).modalities, latent_dim=1, seed=0)
    filled = mvkit.impute(model, tables)["t"]
    assert filled["c"]["a"] == large
    assert filled.dtypes.astype(str).tolist() == ["Int64", "int32"]
    short = {"n": NUMBERS, "t": tables["t"].iloc[:5].assign(c=[large, 2, 3, 4, 5])}
    whole = mvkit.impute(model, short, rows="all")["t"]
    assert whole.dtypes.astype(str).tolist() == ["int64", "int32"]
    assert whole["c"]["a"] == large
    assert whole.index.tolist() == IDS


def test_all_of_whole_numbers_and_bits():
    kinds = {"i": "int64", "u": "uint8", "b": "bool", "f": "float32", "N": "Int32", "B": "boolean"}
    tables = {"n": NUMBERS, "t": table(**{name: [1, 0] * 4 for name in kinds}).astype(kinds)}
    model = trained(tables)
    for options in ({"all": True}, {"rows": "all"}):
        asked = {"n": NUMBERS, "t": tables["t"].iloc[2:]}
        filled = mvkit.impute(model, asked, **options)["t"]
        assert filled.dtypes.equals(tables["t"].dtypes), options


def test_quantiles_of_whole_numbers_are_not_rounded():
    tables = {"n": NUMBERS, "t": table(i=pandas.array(gappy(list(range(8))), dtype="Int64"))}
    model = trained(tables)
    imputation = mvkit.impute(model, tables, quantiles=(0.1,), draws=True, n=3)
    assert str(imputation.draws[0]["t"]["i"].dtype) == "Int64"
    quantile = imputation.quantiles[0.1]["t"]["i"]
    assert quantile.dtype == np.float64
    assert quantile["d"] != round(quantile["d"])
    assert imputation.sd["t"]["i"]["d"] > 0


def test_whole_numbers_of_arrays_stay_within_their_type():
    model = mvkit.Model({"a": mvkit.Modality((2,), transform=({"name": "log1p"},))}, latent_dim=1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(-3.0)
    for kind in (np.uint8, np.uint16):
        counts = np.array([[200, 3]], dtype=kind)
        filled = mvkit.impute(model, {"a": counts}, all=True)["a"]
        assert filled.dtype == kind
        assert (filled == 0).all()


def test_polars_keeps_whole_numbers_and_bits():
    numbers = polars.DataFrame({"id": IDS, "x": np.arange(8.0)})
    schema = {"id": polars.String, "c": polars.Int32, "u": polars.UInt8, "b": polars.Boolean}
    ints = polars.DataFrame(
        {
            "id": IDS,
            "c": [1, 2, None, 4, 5, 3, 2, 1],
            "u": [1, 2, 3, 4, None, 3, 2, 1],
            "b": [True, None, False, True, True, False, None, True],
        },
        schema=schema,
    )
    tables = {"n": numbers, "t": ints}
    filled = mvkit.impute(trained(tables, id="id"), tables, id="id")["t"]
    assert filled.schema == ints.schema
    assert filled.null_count().sum_horizontal().item() == 0
    assert filled["c"].to_list()[:2] == [1, 2]


# ids

MULTI = pandas.MultiIndex.from_tuples(
    [("s1", 1), ("s1", 2), ("s2", 1)], names=["subject", "visit"]
)


def test_rows_of_a_multiindex():
    rna = pandas.DataFrame({"x": [1.0, 2.0, np.nan], "y": 1.0}, index=MULTI)
    tables = {"rna": rna, "protein": rna.iloc[:2].add_prefix("p")}
    data = from_tables(tables)
    assert list(data.ids) == [("s1", 1), ("s1", 2), ("s2", 1)]
    assert data.batch.mask.tolist() == [[True, True], [True, True], [True, False]]
    model = trained(tables)
    for rows, expected in (("own", MULTI[:2]), ("all", MULTI)):
        filled = mvkit.impute(model, tables, rows=rows)
        assert filled["rna"].index.equals(MULTI)
        assert filled["protein"].index.equals(expected)
        assert filled["protein"].index.names == MULTI.names
    assert mvkit.embed(model, tables).index.equals(MULTI)
    assert mvkit.embed(model, tables).index.names == MULTI.names
    added = mvkit.impute(model, {"rna": rna}, to=["rna", "protein"])["protein"]
    assert added.index.equals(MULTI)


def test_ids_that_are_tuples_stay_tuples():
    index = pandas.Index(list(MULTI), tupleize_cols=False)
    tables = {"rna": pandas.DataFrame({"x": [1.0, 2.0, 3.0]}, index=index)}
    model = trained(tables)
    assert mvkit.embed(model, tables).index.tolist() == list(MULTI)
    assert mvkit.impute(model, tables, rows="all")["rna"].index.equals(index)


MISSING = [None, np.nan, float("nan"), pandas.NaT, pandas.NA, np.datetime64("NaT")]
MISSING += [decimal.Decimal("NaN"), ("s1", None), ("s1", np.nan)]


@pytest.mark.parametrize("missing", MISSING, ids=repr)
def test_ids_that_are_missing_are_never_joined(missing):
    ids = {"a": ["p", missing], "b": [missing, "p"]}
    arrays = {"a": np.ones((2, 1)), "b": np.ones((2, 1))}
    with pytest.raises(DataError, match=r"data\['a'\]: row 1 has no id; expected one for each"):
        MultimodalDataset.from_arrays(arrays, ids=ids)
    index = pandas.Index(["p", missing], dtype=object, tupleize_cols=False)
    with pytest.raises(DataError, match=r"tables\['a'\]: row 1 has no id; expected one for each"):
        from_tables({"a": pandas.DataFrame({"x": [1.0, 2.0]}, index=index)})
    column = pandas.DataFrame({"id": index, "x": [1.0, 2.0]})
    with pytest.raises(DataError, match=r"tables\['a'\]: row 1 has no id; expected one for each"):
        from_tables({"a": column}, id="id")


def test_a_level_that_is_missing_is_a_missing_id():
    index = pandas.MultiIndex.from_tuples([("s1", 1), ("s1", None)])
    with pytest.raises(DataError, match=r"tables\['a'\]: row 1 has no id"):
        from_tables({"a": pandas.DataFrame({"x": [1.0, 2.0]}, index=index)})


@pytest.mark.parametrize("ids", [np.ones((2, 2)), [["p"], ["q"]], [{"p"}, {"q"}]])
def test_ids_that_are_no_single_values(ids):
    with pytest.raises(DataError, match=r"data\['a'\]: row 0 has the (list|set) .* as its id"):
        MultimodalDataset.from_arrays({"a": np.ones((2, 1))}, ids=ids)


# labels


def test_a_sheet_of_only_labels_is_no_modality():
    rna = NUMBERS.rename(columns={"x": "gene"})
    samples = pandas.DataFrame({"group": ["u", "v", "u"]}, index=list("cab"))
    data = from_tables({"rna": rna, "samples": samples}, label="group")
    assert list(data.modalities) == ["rna"]
    assert data.labels.tolist() == ["v", "u", "u", *[None] * 5]
    sheet = polars.DataFrame({"id": IDS, "group": range(8)})
    counted = polars.DataFrame({"id": IDS, "gene": np.arange(8.0)})
    data = from_tables({"samples": sheet, "rna": counted}, id="id", label="group")
    assert list(data.modalities) == ["rna"]
    assert data.labels.tolist() == list(range(8))
    with pytest.raises(DataError, match="nothing but the label 'group'; expected columns of data"):
        from_tables({"samples": samples}, label="group")


def test_tables_and_arrays_without_columns():
    with pytest.raises(DataError, match=r"tables\['b'\]: it has no columns beside ids"):
        from_tables({"a": NUMBERS, "b": NUMBERS[[]]})
    with pytest.raises(DataError, match=r"data\['b'\]: it is empty; .*rows of shape \(0,\)"):
        MultimodalDataset.from_arrays({"a": np.ones((2, 1)), "b": np.ones((2, 0))})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pandas.array([1, None, 3], dtype="Int64"), [1.0, np.nan, 3.0]),
        (pandas.array([True, None, False], dtype="boolean"), [1.0, np.nan, 0.0]),
        (pandas.array(["u", None, "v"], dtype="string"), ["u", None, "v"]),
        (pandas.Categorical(["u", None, "v"]), ["u", None, "v"]),
        (pandas.Categorical([7, 8, None]), [7.0, 8.0, np.nan]),
        ([decimal.Decimal("1.5"), None, decimal.Decimal(2)], [1.5, np.nan, 2.0]),
        ([1, "u", None], [1, "u", None]),
    ],
    ids=["Int64", "boolean", "string", "category", "numbers", "decimals", "objects"],
)
def test_labels_in_every_dtype(values, expected):
    rows = pandas.DataFrame({"x": [1.0, 2.0, 3.0]}, index=list("pqr"))
    label = pandas.Series(values, index=list("pqr"))
    for data in (
        from_tables({"a": rows}, label=label),
        from_tables({"a": rows.assign(g=label)}, label="g"),
    ):
        assert str(data.labels.tolist()) == str(expected)


def test_labels_that_are_days():
    days = pandas.to_datetime(["2020-01-01", None, "2021-01-01"])
    rows = pandas.DataFrame({"x": [1.0, 2.0, 3.0], "g": days}, index=list("pqr"))
    assert from_tables({"a": rows}, label="g").labels.tolist() == [days[0], None, days[2]]


def test_labels_that_stand_twice():
    rows = {"a": NUMBERS.iloc[:2]}
    twice = pandas.Series(["u", "v", "u"], index=list("aba"))
    assert from_tables(rows, label=twice).labels.tolist() == ["u", "v"]
    gaps = pandas.Series([None, "v", "u"], index=list("aba"))
    assert from_tables(rows, label=gaps).labels.tolist() == ["u", "v"]
    with pytest.raises(DataError, match="label: id 'a' has two, 'u' and 'v'; expected one per id"):
        from_tables(rows, label=pandas.Series(["u", "v", "v"], index=list("aba")))


# near-constant features


def test_features_that_are_constant_but_for_rounding():
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    random = np.random.default_rng(0)
    around = random.normal(size=60)
    columns = {
        "noise": around,
        "0.3 and 0.1 + 0.2": np.where(np.arange(60) % 2, 0.3, 0.1 + 0.2),
        "1e8 but for rounding": 1e8 + 1e-8 * around,
        "constant": np.full(60, 0.1),
        "zero": np.zeros(60),
        "1e-12 around 0": 1e-12 * around,
        "1e-6 around 1": 1 + 1e-6 * around,
        "1e-12 around 1": 1 + 1e-12 * around,
        "large": 1e300 * around,
    }
    x = np.stack(list(columns.values()), 1)[:, :-1]
    data = MultimodalDataset.from_arrays({"a": x}, modalities={"a": "normal"})
    with pytest.warns(UserWarning, match=r"4 features are constant or never observed, .*number 1"):
        data = data.fit_transforms({"a": "standardise"})
    step = data.modalities["a"].transform[0]
    expected = preprocessing.StandardScaler().fit(x)
    np.testing.assert_allclose(step.scale, expected.scale_, rtol=1e-9)
    model = mvkit.Model(data.modalities, latent_dim=1, seed=0)
    new = expected.mean_ + 0.01
    seen = model.conform({"a": new[None]}).data["a"][0]
    assert float(seen[1]) == pytest.approx(0.01, rel=1e-3)


def test_real_signals_keep_their_scale():
    around = np.random.default_rng(0).normal(size=(60, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x in (1e-12 * around, 1 + 1e-6 * around, 1e-150 * around):
            data = MultimodalDataset.from_arrays({"a": x})
            data = data.fit_transforms({"a": {"name": "standardise", "over": "all"}})
            scale = data.modalities["a"].transform[0].scale[0]
            assert scale == pytest.approx(x.std(), rel=1e-9)


# unsigned integers


@pytest.mark.parametrize("kind", ["uint16", "uint32", "uint64"])
def test_unsigned_integers_are_as_those_of_8_bits(kind):
    classes = np.array([0, 1, 2, 0, 1, 2])
    bits = np.array([[0, 1], [1, 1], [0, 0]])
    ids = {"a": [1, 2, 3], "b": [3, 2, 4]}
    model = mvkit.Model({"c": mvkit.Modality((3,), "categorical")}, latent_dim=1, seed=0)
    answers = []
    for dtype in ("uint8", kind):
        c = classes.astype(dtype)
        data = MultimodalDataset.from_arrays({"c": c})
        arrays = {"a": bits.astype(dtype), "b": np.ones((3, 1))}
        aligned = MultimodalDataset.from_arrays(arrays, ids=ids)
        given = MultimodalDataset.from_arrays({"c": c}, modalities={"c": model.modalities["c"]})
        values = [model.encode({"c": c}), model.encode({"c": torch.from_numpy(c)})]
        values += [
            model.encode(data.take([4, 1])),
            model.encode(given),
            model.encode(aligned_c(c)),
        ]
        values += [aligned.batch.data["a"].long(), aligned.batch.mask]
        values += [mvkit.Batch({"c": c}).take([2, 1]).data["c"].long()]
        answers.append(values)
    for one_byte, more in zip(*answers, strict=True):
        assert torch.equal(one_byte, more)
    with pytest.raises(DataError, match="expected indices from 0 to 2"):
        model.encode({"c": np.array([7], dtype=kind)})


def aligned_c(c):
    arrays = {"c": c, "d": c[:4]}
    ids = {"c": range(6), "d": range(4)}
    data = MultimodalDataset.from_arrays(arrays, ids=ids)
    return mvkit.Batch({"c": data.batch.data["c"]})


def test_longdouble_and_the_largest_unsigned():
    x = np.array([[1.5], [2.5]], dtype=np.longdouble)
    assert MultimodalDataset.from_arrays({"a": x}).batch.data["a"].tolist() == [[1.5], [2.5]]
    largest = np.array([[2**64 - 1], [5]], dtype=np.uint64)
    data = MultimodalDataset.from_arrays({"a": largest})
    assert data.batch.data["a"].tolist() == [[2.0**64], [5.0]]


# AnnData and MuData, of which only the names are looked at


class AnnData:
    __module__ = "anndata._core.anndata"


class MuData:
    __module__ = "mudata._core.mudata"


@pytest.mark.parametrize(
    "ask",
    [
        lambda: MultimodalDataset.from_arrays({"rna": AnnData()}),
        lambda: from_tables({"rna": AnnData()}),
        lambda: from_tables(AnnData()),
        lambda: mvkit.Batch({"rna": AnnData()}),
        lambda: trained({"n": NUMBERS}).encode({"n": AnnData()}),
        lambda: trained({"n": NUMBERS}).encode(AnnData()),
    ],
)
def test_anndata_says_what_works(ask):
    line = r"give MultimodalDataset\.from_tables\(\{name: adata\.to_df\(\)\}\)"
    with pytest.raises(DataError, match=rf"got AnnData; .*{line}"):
        ask()


@pytest.mark.parametrize(
    "ask",
    [
        lambda: MultimodalDataset.from_arrays(MuData()),
        lambda: from_tables(MuData()),
        lambda: trained({"n": NUMBERS}).encode(MuData()),
        lambda: mvkit.fit(trained({"n": NUMBERS}), MuData(), epochs=1),
    ],
)
def test_mudata_says_what_works(ask):
    line = r"from_tables\(\{name: adata\.to_df\(\) for name, adata in mdata\.mod\.items\(\)\}\)"
    with pytest.raises(DataError, match=rf"got MuData; .*{line}"):
        ask()


def test_other_things_that_are_no_mapping():
    for door in (from_tables, MultimodalDataset.from_arrays):
        with pytest.raises(DataError, match=r"got list; expected a mapping from modality"):
            door([NUMBERS])
    with pytest.raises(ShapeError, match="use MultimodalDataset.from_tables"):
        MultimodalDataset.from_arrays({"a": NUMBERS})


def test_ids_of_days():
    days = [datetime.date(2020, 1, i + 1) for i in range(8)]
    data = from_tables({"a": NUMBERS.set_axis(days), "b": NUMBERS.set_axis(days[::-1])})
    assert data.batch.data["b"][:, 0].tolist() == [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]


# the way back to the user's units


def test_what_fills_a_gap_is_as_precise_as_the_table():
    seconds = 1.6e9 + np.random.default_rng(0).normal(size=8)  # float32 knows them to 128
    tables = {"n": NUMBERS, "t": table(s=seconds)}
    data = from_tables(tables).fit_transforms({"t": "standardise"})
    model = mvkit.Model(data.modalities, latent_dim=1, seed=0)
    step = data.modalities["t"].transform[0]
    asked = {"n": NUMBERS, "t": table(s=gappy(list(seconds)))}
    generator = torch.Generator().manual_seed(0)
    imputation = mvkit.impute(model, asked, quantiles=(0.5,), draws=True, generator=generator)
    by_row = noise.by_row(generator.manual_seed(0), torch.device("cpu"))
    noise.next_rows(by_row, 8)
    z = model.translate(asked, ["t"], units="model", n=100, generator=by_row)["t"]
    expected = z.double().mean(0)[3, 0].item() * step.scale[0] + step.mean[0]
    assert imputation.filled["t"]["s"]["d"] == pytest.approx(expected, abs=1e-6)
    assert len({draw["t"]["s"]["d"] for draw in imputation.draws}) == 100
    assert 0.5 < imputation.sd["t"]["s"]["d"] < 2
    added = mvkit.impute(model, {"n": NUMBERS}, to=["t"])["t"]["s"]
    assert added.dtype == np.float64
    assert len(set(added)) == 8
    arrays = mvkit.impute(model, {"n": NUMBERS.to_numpy(np.float32)}, to=["t"])
    assert arrays["t"].dtype == np.float32


def test_bits_are_never_mixed_with_grey_levels():
    grey = np.random.default_rng(0).uniform(0, 255, size=(8, 2))
    data = MultimodalDataset.from_arrays({"n": np.arange(8.0)[:, None], "g": grey})
    data = data.fit_transforms({"g": {"name": "binarise", "threshold": 128.0}})
    model = mvkit.Model(data.modalities, latent_dim=1, seed=0)
    holes = grey.copy()
    holes[3] = np.nan
    rows = {"n": np.arange(8.0)[:, None], "g": holes}
    with pytest.raises(mvkit.RequestError, match="impute: 'g' went through .*cannot be undone"):
        mvkit.impute(model, rows)
    single = grey.copy()
    single[3, 1] = np.nan
    with pytest.raises(mvkit.RequestError, match=r"leave it out of\s+to=, or give the data as"):
        mvkit.impute(model, rows | {"g": single}, quantiles=(0.5,))
    filled = mvkit.impute(model, rows, to=["n"])
    np.testing.assert_array_equal(filled["g"], holes)
    chain = data.fit_transforms({"g": ["standardise", {"name": "binarise", "threshold": -1.0}]})
    with pytest.raises(mvkit.RequestError, match="cannot be undone"):
        mvkit.impute(mvkit.Model(chain.modalities, latent_dim=1), rows)
    complete = mvkit.impute(model, rows | {"g": grey})
    np.testing.assert_array_equal(complete["g"], grey)
    bits = np.where(np.isnan(holes), np.nan, holes > 128)
    data = MultimodalDataset.from_arrays({"g": bits}, modalities={"g": "bernoulli"})
    model = mvkit.Model(data.fit_transforms({"g": "binarise"}).modalities, latent_dim=1, seed=0)
    answer = mvkit.impute(model, {"g": bits}, empty="prior")["g"]
    assert ((answer[3] > 0) & (answer[3] < 1)).all()


# ids that are not seen as such


@pytest.mark.parametrize("name", ["id", "patient", "sample_id", "patientID", "Subject", "barcode"])
def test_ids_left_in_a_column_are_refused(name):
    rna = pandas.DataFrame({name: [3, 1, 2], "x": [1.0, 2.0, 3.0]})
    protein = pandas.DataFrame({name: [1, 2, 3], "p": [4.0, 5.0, 6.0]})
    with pytest.raises(DataError, match=rf"no ids, and a column '{name}'.*give id='{name}'"):
        from_tables({"rna": rna, "protein": protein})
    data = from_tables({"rna": rna, "protein": protein}, id=name)
    assert data.batch.data["protein"][:, 0].tolist() == [6.0, 4.0, 5.0]


def test_columns_that_are_no_ids_are_features():
    for name, values in {"width": [3, 1, 2], "id": [1, 1, 2], "valid": [3, 1, 2]}.items():
        frame = pandas.DataFrame({name: values, "x": [1.0, 2.0, 3.0]})
        assert from_tables({"a": frame, "b": frame}).modalities["b"].features == (name, "x")
    single = pandas.DataFrame({"id": [3, 1, 2]})
    assert from_tables({"a": single}).modalities["a"].features == ("id",)


@pytest.mark.parametrize(
    ("first", "second"), [("s1", "s1 "), ("\ts1", "s1"), ("caf\u00e9", "cafe\u0301")]
)
def test_ids_that_only_look_alike_are_refused(first, second):
    ids = {"a": ["p", first], "b": ["p", second]}
    arrays = {"a": np.ones((2, 1)), "b": np.ones((2, 1))}
    with pytest.raises(DataError, match=r"data\['b'\]: id .* looks like .* of 'a'.*str\.strip"):
        MultimodalDataset.from_arrays(arrays, ids=ids)
    data = MultimodalDataset.from_arrays(arrays, ids=ids, disjoint=True)
    assert data.ids.tolist() == ["p", first, second]


def test_numbers_that_the_model_cannot_hold_are_called_by_their_value():
    model = mvkit.Model({"a": (2,)}, latent_dim=1, seed=0)
    large = np.array([[1.0, 2.0], [3.0, -1e39]])
    with pytest.raises(DataError, match=r"row 1, element \(1,\): -1e\+39 is more than float32"):
        model.encode({"a": large})
    tables = pandas.DataFrame(large, ["p", "q"], ["u", "v"])
    with pytest.raises(DataError, match=r"\(id 'q'\), column 'v': -1e\+39 is more than float32"):
        model.encode({"a": tables})
    with pytest.raises(DataError, match="inf"):
        model.encode({"a": np.array([[1.0, np.inf]])})
    mask = torch.tensor([[True], [False]])
    hidden = mvkit.Batch({"a": large}, mask)
    assert torch.isfinite(model.encode(hidden, empty="prior")).all()
    assert torch.isfinite(model.double().encode({"a": large})).all()


# categories that are numbers, and numbers that are categories


@pytest.mark.parametrize("kind", ["int64", "Int64", "float64", "object", "Int8"])
def test_numbers_are_the_categories_that_they_spell(kind):
    values = [1, 2, 3, 10, 1, 2, 3, 10]  # in the order of words, 10 comes second
    model = trained({"n": NUMBERS, "g": table(g=pandas.Categorical(values))})
    assert model.modalities["g"].transform[0].words == ("1", "10", "2", "3")
    full = {"n": NUMBERS, "g": table(g=values).astype(kind)}
    same = {"n": NUMBERS, "g": table(g=pandas.Categorical(values))}
    assert torch.equal(model.encode(full), model.encode(same))
    filled = mvkit.impute(model, full, rows="all")["g"]
    assert filled["g"].tolist() == values
    assert filled["g"].dtype == full["g"]["g"].dtype
    if kind != "int64":
        holes = {"n": NUMBERS, "g": table(g=gappy(values)).astype(kind)}
        gaps = {"n": NUMBERS, "g": table(g=pandas.Categorical(gappy(values)))}
        answers = [answer(model, rows)["g"]["g"] for rows in (holes, gaps)]
        assert answers[0].tolist() == answers[1].tolist()
        assert answers[0].dtype == holes["g"]["g"].dtype
    with pytest.raises(
        DataError, match=r"7(\.0)? is none of them; expected one of the categories"
    ):
        model.encode({"n": NUMBERS, "g": table(g=[1, 2, 3, 7, 1, 2, 3, 10]).astype(kind)})


def test_bits_are_the_categories_that_they_spell():
    values = [True, False] * 4
    model = trained({"n": NUMBERS, "g": table(g=pandas.Categorical(values))})
    for kind in ("bool", "boolean", "object"):
        rows = {"n": NUMBERS, "g": table(g=values).astype(kind)}
        same = {"n": NUMBERS, "g": table(g=pandas.Categorical(values))}
        assert torch.equal(model.encode(rows), model.encode(same))
        filled = mvkit.impute(model, rows, all=True)["g"]["g"]
        assert filled.dtype == rows["g"]["g"].dtype
        assert {bool(value) for value in filled} <= {True, False}


def test_models_of_old_called_gappy_categories_by_their_floats():
    kind = {"name": "one_hot", "categories": ("10.0", "8.0", "9.0")}
    old = mvkit.Modality((1, 3), "categorical", transform=(kind,), features=("g",))
    model = mvkit.Model(
        {"n": mvkit.Modality((1,), features=("x",)), "g": old}, latent_dim=1, seed=0
    )
    column = pandas.Categorical([8, 9, 8, 10, 9, 8, None, 10])
    seen = model.conform({"n": NUMBERS, "g": table(g=column)}).data["g"]
    assert seen.sum(-1)[:, 0].tolist() == [1, 1, 1, 1, 1, 1, 0, 1]
    assert seen.argmax(-1)[:4, 0].tolist() == [1, 2, 1, 0]
    filled = mvkit.impute(model, {"n": NUMBERS, "g": table(g=column)})["g"]["g"]
    assert filled.dtype == column.dtype
    assert filled["g"] in {8, 9, 10}


def test_words_that_only_look_like_numbers_stay_words():
    words = pandas.Categorical(["007", "7", "7.0", "a"] * 2)
    model = trained({"n": NUMBERS, "g": table(g=words)})
    codes = model.conform({"n": NUMBERS, "g": table(g=words)}).data["g"].argmax(-1)[:4, 0]
    assert codes.tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match="'07' is text; expected one of the categories"):
        model.encode({"n": NUMBERS, "g": table(g=pandas.Categorical(["07"] * 8))})


# other columns that people have


@pytest.mark.parametrize(
    "values",
    [
        list(pandas.to_datetime(["2020-01-01", "2021-01-01"] * 4)),
        list(pandas.to_datetime(["2020-01-01", "2021-01-01"] * 4, utc=True)),
        [datetime.date(2020, 1, 1), datetime.date(2021, 1, 1)] * 4,
        [b"u", b"v"] * 4,
        ["u", 1] * 4,
    ],
    ids=["days", "days of a zone", "dates", "bytes", "mixed"],
)
def test_words_become_the_values_that_they_stand_for(values):
    full = table(g=values)
    gaps = full.copy()
    gaps.loc["d", "g"] = None
    model = trained({"n": NUMBERS, "g": gaps}, modalities={"g": "categorical"})
    for rows, options in ((gaps, {}), (full, {"all": True})):
        filled = mvkit.impute(model, {"n": NUMBERS, "g": rows}, **options)["g"]["g"]
        assert filled.dtype == full["g"].dtype
        assert set(filled) <= set(values)


def test_what_polars_alone_knows_comes_back():
    numbers = polars.DataFrame({"id": IDS, "x": np.arange(8.0)})
    day = datetime.date(2020, 1, 1)
    for column in (
        polars.Series(gappy(["u", "v"] * 4), dtype=polars.Enum(["u", "v"])),
        polars.Series(gappy(["u", "v"] * 4), dtype=polars.Categorical),
        polars.Series(gappy([day, day + datetime.timedelta(days=1)] * 4)),
    ):
        rows = {"n": numbers, "g": polars.DataFrame({"id": IDS, "g": column})}
        model = trained(rows, id="id", modalities={"g": "categorical"})
        filled = mvkit.impute(model, rows, id="id")["g"]
        assert filled.schema == rows["g"].schema
        assert filled["g"].null_count() == 0


def test_sparse_columns_of_whole_numbers():
    column = pandas.arrays.SparseArray([0, 0, 1, 2, 0, 0, 5, 0])
    tables = {"n": NUMBERS, "t": table(c=column)}
    filled = mvkit.impute(trained(tables), tables, all=True)["t"]
    assert filled["c"].dtype == column.dtype


def test_kinds_of_data_frames_and_things_that_are_none():
    class Frame(pandas.DataFrame):
        pass

    assert from_tables({"a": Frame(NUMBERS)}).ids.tolist() == IDS
    with pytest.raises(DataError, match="got LazyFrame; .*; give .collect()"):
        from_tables({"a": polars.LazyFrame({"id": IDS})}, id="id")
    with pytest.raises(DataError, match="got Index; expected a pandas or polars DataFrame"):
        from_tables({"a": pandas.Index(IDS)})
    with pytest.raises(DataError, match="two columns are called '1'; expected names that differ"):
        from_tables({"a": pandas.DataFrame({1: [1.0], "1": [2.0]}, index=["p"])})
    with pytest.raises(DataError, match="more than 308 digits; expected what float64 holds"):
        from_tables({"a": table(x=[10**400, *range(7)])})
    kind = getattr(polars, "Int128", None) or pytest.skip("polars without Int128")
    wide = polars.Series("g", [1, None, 3], dtype=kind)
    with pytest.raises(DataError, match=r"tables\['a'\]: pandas cannot hold it.*cast the column"):
        from_tables({"a": polars.DataFrame({"id": list("pqr")}).with_columns(wide)}, id="id")
