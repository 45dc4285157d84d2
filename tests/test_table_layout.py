"""A table of mixed columns as modalities by kind, and back with the same dtypes."""

import datetime

import numpy as np
import pandas
import pytest

import mvkit
from mvkit import DataError, Model, MultimodalDataset, RequestError
from mvkit.data.column_kinds import column_of
from mvkit.data.table_layout import layout_of


def clinic():
    """Columns of every kind, with a gap in each."""
    stages = pandas.CategoricalDtype(["low", "mid", "high"], ordered=True)
    columns = {
        "age": [31, 47, 64, 52],
        "children": [0, 2, np.nan, 3],
        "change": [1.5, -2.5, np.nan, 0.5],
        "crp": [0.5, np.nan, 12.25, 3.0],
        "smokes": [True, None, False, True],
        "treated": pandas.array([1, 0, None, 1], dtype="Int64"),
        "site": ["A", None, "B", "A"],
        "stage": pandas.Categorical(["low", "high", None, "mid"], dtype=stages),
        "seen": pandas.to_datetime(["2020-01-01", None, "2021-05-06", "2022-02-02"]),
        "born": ["1950-01-01", None, "1971-05-06", "1982-02-02"],
        "unit": [7.0, None, 7.0, 7.0],
        "nothing": [None] * 4,
    }
    return pandas.DataFrame(columns, index=["w", "x", "y", "z"])


def test_kinds_are_found_by_dtype_and_values():
    assert layout_of(clinic()).kinds == {
        "age": "count",
        "children": "count",
        "change": "number",
        "crp": "positive",
        "smokes": "bits",
        "treated": "bits",
        "site": "category",
        "stage": "ordered",
        "seen": "date",
        "born": "date",
        "unit": "constant",
        "nothing": "empty",
    }


def test_words_that_differ_in_nearly_every_row_are_text():
    notes = pandas.Series([f"note {i}" for i in range(40)], name="notes")
    assert column_of(notes).kind == "text"
    assert column_of(notes[:20]).kind == "category"
    assert column_of(pandas.Series([f"ward {i % 19}" for i in range(40)], name="ward")).levels


def test_modalities_are_by_kind():
    layout = layout_of(clinic())
    assert layout.groups == {
        "numbers": ("age", "children", "change", "crp", "seen", "born"),
        "bits": ("smokes", "treated"),
        "ordered": ("stage",),
        "site": ("site",),
    }
    likelihoods = {name: type(m.likelihood).__name__ for name, m in layout.modalities().items()}
    assert likelihoods == {
        "numbers": "Normal",
        "bits": "Bernoulli",
        "ordered": "Ordinal",
        "site": "Categorical",
    }


def test_a_model_takes_what_split_returns():
    layout = layout_of(clinic())
    tables = layout.split(clinic())
    data = MultimodalDataset.from_tables(tables, modalities=layout.modalities())
    model = Model(data.modalities, latent_dim=2, seed=0)
    filled = mvkit.impute(model, tables, n=4)
    assert not layout.join(clinic(), filled).drop(columns="nothing").isna().any().any()


def test_one_ordered_column_can_be_saved(tmp_path):
    model = Model({"a": mvkit.Modality((1,), {"name": "ordinal", "levels": 3})}, latent_dim=1)
    mvkit.save(model, tmp_path / "model.safetensors")
    assert mvkit.load(tmp_path / "model.safetensors").names == ("a",)


def test_split_counts_days_and_numbers_levels():
    tables = layout_of(clinic()).split(clinic())
    epoch = datetime.date(1970, 1, 1)
    assert tables["numbers"].loc["w", "seen"] == (datetime.date(2020, 1, 1) - epoch).days
    assert tables["numbers"].loc["y", "born"] == (datetime.date(1971, 5, 6) - epoch).days
    assert tables["ordered"]["stage"].tolist()[:2] == [0.0, 2.0]
    site = tables["site"]["site"]
    assert site.isna().tolist() == [False, True, False, False]
    assert site.dropna().tolist() == ["A", "B", "A"]


def filled_with(layout, table, number):
    """The modalities' tables, gaps filled with a number, or with the category B."""
    tables = layout.split(table)
    for name, frame in tables.items():
        tables[name] = frame.fillna("B" if name == "site" else number)
    return tables


def test_join_keeps_dtypes_and_observed_cells():
    table = clinic()
    layout = layout_of(table)
    joined = layout.join(table, filled_with(layout, table, 2.4))
    assert joined.index.equals(table.index)
    assert joined.dtypes.equals(table.dtypes)
    known = table.notna()
    assert (joined.astype(object)[known] == table.astype(object)[known])[known].all().all()
    assert joined.drop(columns="nothing").notna().all().all()
    assert joined["unit"].tolist() == [7.0] * 4


@pytest.mark.parametrize(
    ("number", "children", "crp", "treated", "stage", "born"),
    [
        (-5.0, 0.0, 0.5, 0, "low", "1969-12-27"),
        (1.4, 1.0, 1.4, 1, "mid", "1970-01-02"),
        (1e6, 3.0, 12.25, 1, "high", "1982-02-02"),
    ],
)
def test_bounds_and_units_are_kept(number, children, crp, treated, stage, born):
    table = clinic()
    layout = layout_of(table)
    joined = layout.join(table, filled_with(layout, table, number))
    assert joined.loc["y", "children"] == children
    assert joined.loc["x", "crp"] == crp
    assert joined.loc["y", "treated"] == treated
    assert joined.loc["y", "stage"] == stage
    assert joined.loc["x", "born"] == born
    assert joined.loc["x", "smokes"] is (number > 0.5)


def test_dates_keep_zone_and_type():
    zoned = pandas.to_datetime(["2020-01-01 12:00", None, "2020-01-03 12:00"]).tz_localize(
        "Europe/Berlin"
    )
    days = [datetime.date(2020, 1, 1), None, datetime.date(2020, 1, 5)]
    table = pandas.DataFrame({"zoned": zoned, "days": pandas.Series(days, dtype=object)})
    layout = layout_of(table)
    filled = layout.split(table)
    filled["numbers"] = filled["numbers"].fillna(filled["numbers"].mean())
    joined = layout.join(table, filled)
    assert joined["zoned"].dtype == table["zoned"].dtype
    assert joined.loc[1, "zoned"] == pandas.Timestamp("2020-01-02 12:00", tz="Europe/Berlin")
    assert joined.loc[1, "days"] == datetime.date(2020, 1, 3)


def test_kinds_can_be_given():
    table = pandas.DataFrame({"ward": [3, 1, 2, None], "score": [0, 1, 2, 3]})
    layout = layout_of(table, kinds={"ward": "category", "score": "ordered"})
    assert layout.column("ward").levels == ("1.0", "2.0", "3.0")
    filled = layout.split(table)
    filled["ward"].loc[3, "ward"] = "2.0"
    joined = layout.join(table, filled)
    assert joined["ward"].tolist() == [3.0, 1.0, 2.0, 2.0]
    assert joined["ward"].dtype == table["ward"].dtype


def test_names_of_modalities_are_free_and_without_dots():
    table = pandas.DataFrame(
        {"numbers": ["a", "b"], "x.y": ["a", "b"], "keys": ["a", "b"], "n": 1}
    )
    table["n"] = [1.5, 2.5]
    layout = layout_of(table)
    assert layout.groups == {
        "numbers": ("n",),
        "numbers_2": ("numbers",),
        "x_y": ("x.y",),
        "keys_2": ("keys",),
    }
    assert list(layout_of(table, name="labs").groups)[:2] == ["labs_numbers", "labs_numbers_2"]


def test_new_categories_are_refused():
    layout = layout_of(clinic())
    table = clinic()
    table.loc["x", "site"] = "C"
    with pytest.raises(
        DataError, match=r"column 'site', row 'x': 'C' was not among the categories"
    ):
        layout.split(table)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"change": "count"}, r"table: column 'change': it holds -2.5, which is not of the kind"),
        ({"change": "bits"}, "expected 0 and 1"),
        ({"site": "number"}, r"column 'site', row 'w': 'A' is no number"),
        ({"site": "date"}, "something that is no day"),
        ({"sight": "number"}, "kinds: table has no column 'sight'; did you mean 'site'"),
    ],
)
def test_kinds_that_values_are_not_of_are_refused(kinds, message):
    with pytest.raises(DataError, match=message):
        layout_of(clinic(), kinds=kinds)


def test_unknown_kinds_and_infinite_numbers_are_refused():
    with pytest.raises(RequestError, match="kind='real'; expected 'number' or"):
        layout_of(clinic(), kinds={"age": "real"})
    with pytest.raises(DataError, match="column 'crp': it holds infinite numbers"):
        layout_of(clinic().assign(crp=[1.0, np.inf, 2.0, 3.0]))
