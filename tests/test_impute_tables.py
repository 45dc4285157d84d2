"""`mvkit.impute(tables)` without a model: types, training, report, the same tables back."""

import numpy as np
import pandas
import pytest

import mvkit
from mvkit import DataError, Imputation, RequestError
from mvkit.data.column_kinds import Column
from mvkit.tables.choices import choose
from mvkit.tables.recovery import recovered

QUICK = {"epochs": 2, "width": 16, "blocks": 1, "latent_dim": 4}


def patients(rows=60, seed=0):
    """Columns of six kinds that one number decides, and the same with gaps."""
    generator = np.random.default_rng(seed)
    z = generator.normal(size=rows)
    stages = pandas.CategoricalDtype(["low", "mid", "high"], ordered=True)
    columns = {
        "age": pandas.array((50 + 10 * z).round(), dtype="Int64"),
        "crp": np.exp(z + 0.1 * generator.normal(size=rows)),
        "smokes": pandas.array(z > 0.3, dtype="boolean"),
        "site": np.where(z > 0, "A", "B"),
        "stage": pandas.Categorical.from_codes(np.digitize(z, [-0.5, 0.5]), dtype=stages),
        "seen": pandas.Timestamp("2020-01-01") + pandas.to_timedelta((100 * z).round(), unit="D"),
    }
    table = pandas.DataFrame(columns, index=[f"p{i}" for i in range(rows)])
    hidden = generator.random(table.shape) < 0.2
    hidden[0] = True  # nothing is known of the first patient
    return table, table.mask(hidden)


def same_but_for_gaps(filled, table):
    """Whether index, columns, dtypes and observed cells are as before, and no gap is left."""
    assert filled.index.equals(table.index)
    assert filled.columns.equals(table.columns)
    assert (filled.dtypes == table.dtypes).all()
    assert not filled.isna().any().any()
    for name in table:
        known = table[name].notna()
        assert filled[name][known].tolist() == table[name][known].tolist()


def test_one_table_comes_back_filled():
    _, table = patients()
    imputation = mvkit.impute(table, choices=QUICK, draws=2)
    assert isinstance(imputation, Imputation)
    same_but_for_gaps(imputation.table, table)
    assert imputation.tables == {"table": imputation.table}
    assert len(imputation.draws) == 2
    for draw in imputation.draws:
        same_but_for_gaps(draw, table)
    assert not imputation.draws[0].equals(imputation.draws[1])
    assert imputation.choices["kinds"]["stage"] == "ordered"
    assert imputation.choices["epochs"] == 2
    assert {row.column for row in imputation.report.columns} <= set(table.columns)
    again = mvkit.impute(table, choices=QUICK, draws=2)
    assert again.table.equals(imputation.table)
    assert again.draws[1].equals(imputation.draws[1])


@pytest.mark.slow
def test_hidden_cells_are_recovered():
    complete, table = patients(rows=400)
    imputation = mvkit.impute(table, choices={"epochs": 60})
    hidden = table["crp"].isna() & (table.index != "p0")
    imputed, truth = np.log(imputation.table["crp"]), np.log(complete["crp"])  # few are large
    assert (imputed - truth)[hidden].std() < 0.35 * truth[hidden].std()
    assert not imputation.report.weak


def test_the_model_goes_on_without_the_call(tmp_path):
    _, table = patients()
    imputation = mvkit.impute(table, choices=QUICK)
    mvkit.save(imputation.model, tmp_path / "model.safetensors")
    model = mvkit.load(tmp_path / "model.safetensors")
    layout = imputation.layouts["table"]
    parts = layout.split(table.iloc[1:])
    filled = layout.join(table.iloc[1:], mvkit.impute(model, parts))
    same_but_for_gaps(filled, table.iloc[1:])
    assert mvkit.embed(model, parts).shape == (59, 4)


def test_several_tables_are_aligned_by_id():
    _, table = patients()
    tables = {
        "clinic": table[["age", "smokes"]],
        "labs": table[["crp", "site"]].iloc[::-1].iloc[:40],
    }
    kinds = {"clinic": {"age": "number"}}
    imputation = mvkit.impute(tables, choices=QUICK, kinds=kinds)
    for name, own in tables.items():
        same_but_for_gaps(imputation.tables[name], own)
    assert imputation.choices["kinds"]["clinic"] == {"age": "number", "smokes": "bits"}
    assert set(imputation.model.names) == {
        "clinic_numbers",
        "clinic_bits",
        "labs_numbers",
        "labs_site",
    }
    with pytest.raises(RequestError, match="there are 2, 'clinic', 'labs'; take one of .tables"):
        imputation.table


def test_paths_and_polars_come_back_as_tables(tmp_path):
    polars = pytest.importorskip("polars")
    _, table = patients()
    table = table[["age", "crp", "site"]].rename_axis("patient").reset_index()
    table.to_csv(tmp_path / "a.csv", index=False)
    filled = mvkit.impute(str(tmp_path / "a.csv"), id="patient", choices=QUICK).table
    assert filled["patient"].tolist() == table["patient"].tolist()
    assert not filled.isna().any().any()
    frame = polars.from_pandas(table)
    for id in ("patient", None):
        own = frame if id else frame.drop("patient")
        filled = mvkit.impute(own, id=id, choices=QUICK).table
        assert isinstance(filled, polars.DataFrame)
        assert filled.schema == own.schema
        assert filled.null_count().sum_horizontal().item() == 0


def test_columns_that_no_model_sees():
    _, table = patients()
    table["unit"] = pandas.Series([7.0, None] * 30, table.index)
    table["note"] = [f"note {i}" for i in range(59)] + [None]
    table["nothing"] = np.nan
    filled = mvkit.impute(table, choices=QUICK).table
    assert (filled["unit"] == 7.0).all()
    assert filled["note"].isna().sum() == 1
    assert filled["nothing"].isna().all()


def test_every_choice_can_be_given():
    choices = choose(6497)
    assert choices["batch_size"] == 256
    assert choices["epochs"] * np.ceil(6497 / 256) == pytest.approx(3600, rel=0.02)
    for name, value in choices.items():
        assert choose(100, {name: value})[name] == value
    with pytest.raises(RequestError, match="impute: no choice 'widht'; did you mean 'width'"):
        choose(100, {"widht": 3})
    with pytest.raises(RequestError, match="expected a whole number of at least 1"):
        choose(100, {"epochs": 0})


def test_recovery_is_measured_against_a_guess():
    number = Column("x", "number", low=-10.0, high=10.0)
    row = recovered("", number, np.array([1.0, 3.0]), np.array([2.0, 99.0]), np.array([0.0, 4.0]))
    assert row.error == pytest.approx(np.sqrt((1 + 49) / 2))  # 99 is beyond what was observed
    assert row.guess == pytest.approx(1.0)
    category = Column("x", "category", levels=("a", "b", "c"))
    known = np.array([0.0, 0.0, 1.0])
    row = recovered("", category, np.array([0.0, 2.0]), np.array([0.0, 2.0]), known)
    assert (row.error, row.guess, row.gain) == (0.0, 0.5, 1.0)
    ordered = Column("x", "ordered", levels=("a", "b", "c"))
    row = recovered("", ordered, np.array([0.0, 2.0]), np.array([1.0, 1.0]), known)
    assert (row.error, row.guess) == (1.0, 1.0)
    assert recovered("", number, np.array([]), np.array([]), known) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda table: mvkit.impute({}), "impute: no tables; expected one at least"),
        (lambda table: mvkit.impute(3), "impute: got int; expected a model and data, or without"),
        (lambda table: mvkit.impute({"a": table, "b": "b.csv"}), "paths among tables"),
        (
            lambda table: mvkit.impute(pandas.DataFrame({"a": [1, 1], "b": [None, None]})),
            "no column can be learnt from",
        ),
        (lambda table: mvkit.impute(table, kinds={"agee": "count"}), "no column 'agee'"),
    ],
)
def test_what_is_no_table_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call(patients()[1])


def test_a_model_needs_data():
    model = mvkit.Model({"a": (1,)}, latent_dim=1, seed=0)
    with pytest.raises(RequestError, match="a model without data; expected impute"):
        mvkit.impute(model)
    with pytest.raises(RequestError, match="kinds of 'x', which is no table"):
        mvkit.impute({"a": patients()[1]}, kinds={"x": {}})
