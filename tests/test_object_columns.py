"""Tables whose numbers are objects or decimals come back from `impute` as what they were."""

from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

import numpy as np
import pytest

import mvkit
from mvkit.core import noise
from mvkit.data.object_columns import with_objects

pandas = pytest.importorskip("pandas")
arrow = pytest.importorskip("pyarrow")
IDS = list("abcdefgh")
NUMBERS = pandas.DataFrame({"x": np.arange(8.0)}, index=IDS)
DECIMALS = [Decimal(x) for x in ("1.10", "2.25")] + [None]
DECIMALS += [Decimal(x) for x in ("4.00", "5.50", "3.20", "2.00", "1.75")]
WHOLE = [1, 2, None, 4, 5, 3, 2, 1]


def column(values, dtype=object):
    return pandas.DataFrame({"v": pandas.Series(values, index=IDS, dtype=dtype)})


def decimal_type(kind, digits, places):
    return pandas.ArrowDtype(kind(digits, places))


def to_cents(value):
    return Decimal(value).quantize(Decimal("0.01"), ROUND_HALF_EVEN)


COLUMNS = {
    "decimals of arrow": (column(DECIMALS, decimal_type(arrow.decimal128, 10, 2)), to_cents),
    "wide decimals": (column(DECIMALS, decimal_type(arrow.decimal256, 40, 2)), to_cents),
    "Decimal": (column(DECIMALS), to_cents),
    "Decimal and int": (column([1 if x == Decimal("4.00") else x for x in DECIMALS]), to_cents),
    "int": (column(WHOLE), round),
    "numpy's int": (column([None if x is None else np.int8(x) for x in WHOLE]), round),
    "int and float": (column([2.5 if x == 4 else x for x in WHOLE]), float),
    "Fraction": (column([None if x is None else Fraction(x, 3) for x in WHOLE]), float),
}


def filled(table, **options):
    """The column, filled, and as floats of the same table as a table of floats."""
    answers = []
    numbers = [np.nan if pandas.isna(x) else float(x) for x in table["v"]]
    for frame in (table, column(numbers, float)):
        data = mvkit.MultimodalDataset.from_tables({"t": frame, "n": NUMBERS})
        model = mvkit.Model(data.modalities, latent_dim=1, seed=0)
        mvkit.fit(model, data, epochs=1, progress=False)
        tables = {"t": frame, "n": NUMBERS}
        answer = mvkit.impute(model, tables, generator=noise.seeded(0), **options)
        answers.append(answer["t"]["v"])
    return answers


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_gap_is_filled_with_a_value_of_its_column(kind):
    table, own = COLUMNS[kind]
    answer, floats = filled(table)
    assert answer.dtype == table["v"].dtype
    expected = own(floats["c"])
    assert type(answer["c"]) is type(expected)
    assert answer["c"] == expected
    kept = [id for id in IDS if id != "c"]
    assert [(x, type(x)) for x in answer[kept]] == [(x, type(x)) for x in table["v"][kept]]


@pytest.mark.parametrize("kind", COLUMNS)
def test_replaced_values_are_of_the_column_too(kind):
    table, own = COLUMNS[kind]
    answer, floats = filled(table, all=True)
    assert answer.tolist() == [own(value) for value in floats]
    assert answer.dtype == table["v"].dtype


def test_a_decimal_that_its_column_cannot_hold_makes_floats():
    narrow = pandas.Series([Decimal("1.1"), None], dtype=decimal_type(arrow.decimal128, 2, 1))
    flags = np.array([False, True])
    column = with_objects(narrow, np.array([0.0, 123.0]), flags)
    assert column.dtype == np.float64
    assert column.tolist() == [1.1, 123.0]
    large = with_objects(pandas.Series([Decimal("1.1"), None]), np.array([0.0, 1e30]), flags)
    assert large.tolist() == [Decimal("1.1"), Decimal(1e30)]


@pytest.mark.parametrize("known", [None, True, False])
def test_a_column_of_bits_or_of_nothing_becomes_floats(known):
    bits = pandas.Series([known, None], dtype=object)
    column = with_objects(bits, np.array([0.5, 0.25]), np.array([known is None, True]))
    assert column.dtype == np.float64
    assert column.tolist() == [0.5 if known is None else float(known), 0.25]


def test_deviations_and_quantiles_of_decimals_are_floats():
    table, _ = COLUMNS["Decimal"]
    data = mvkit.MultimodalDataset.from_tables({"t": table, "n": NUMBERS})
    model = mvkit.Model(data.modalities, latent_dim=1, seed=0)
    answer = mvkit.impute(model, {"t": table, "n": NUMBERS}, quantiles=[0.1])
    assert answer.quantiles[0.1]["t"]["v"].dtype == np.float64
    assert answer.sd["t"]["v"].dtype.kind == "f"
