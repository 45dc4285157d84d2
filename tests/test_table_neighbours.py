"""Predictions of tables that are moved by the model's errors in rows that are alike."""

import math

import numpy as np
import pandas
import pytest
import torch

import mvkit
from mvkit.core.noise import seeded
from mvkit.tables import neighbours
from mvkit.tables.neighbours import Neighbours, nearest_mean

ROWS = 240


def pairs(random):
    """Rows that come twice: `y` tells nothing of the other columns but by the twin row."""
    half = ROWS // 2
    table = {"a": random.normal(size=half), "b": random.normal(size=half)}
    table["c"] = random.normal(size=half)
    table["y"] = random.normal(size=half)
    frame = pandas.DataFrame(table)
    return pandas.concat([frame, frame], ignore_index=True)


def hidden(frame, random):
    """Every eighth cell of y, never of both twins."""
    shown = frame.copy()
    rows = random.choice(ROWS // 2, ROWS // 8, replace=False)
    shown.loc[rows, "y"] = np.nan
    return shown, rows


def error(imputation, frame, rows):
    return float((imputation.table["y"] - frame["y"]).loc[rows].pow(2).mean() ** 0.5)


def test_the_mean_of_the_nearest_is_that_of_a_loop():
    generator = seeded(0)
    rows, donors = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (7, 40))
    values = torch.randn(40, generator=generator, dtype=torch.float64)
    expected = []
    for row in rows:
        squares = [float(((row - donor) ** 2).sum()) for donor in donors]
        nearest = sorted(range(40), key=squares.__getitem__)[:5]
        reach = squares[nearest[-1]]
        shares = []
        for i in nearest:
            shares.append(1 / (squares[i] + 0.01 * reach + torch.finfo(torch.float64).eps) ** 2)
        total = sum(share * float(values[i]) for share, i in zip(shares, nearest, strict=True))
        expected.append(total / sum(shares))
    computed = nearest_mean(rows, donors, values, 5)
    assert torch.allclose(computed, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


def test_a_row_is_not_its_own_neighbour():
    donors = torch.tensor([[0.0], [1.0], [1.1], [5.0]])
    values = torch.tensor([100.0, 1.0, 2.0, 3.0])
    assert nearest_mean(donors[:1], donors, values, 1, themselves=True).item() == 1.0
    assert nearest_mean(donors[:1], donors, values, 1).item() == 100.0


def test_blocks_of_rows_change_nothing(monkeypatch):
    generator = seeded(1)
    donors = torch.randn(30, 2, generator=generator)
    values = torch.randn(30, generator=generator)
    whole = nearest_mean(donors, donors, values, 4, themselves=True)
    monkeypatch.setattr(neighbours, "AT_ONCE", 7)
    assert torch.allclose(nearest_mean(donors, donors, values, 4, themselves=True), whole)


def test_twin_rows_give_back_what_the_network_cannot_know():
    random = np.random.default_rng(0)
    frame = pairs(random)
    shown, rows = hidden(frame, random)
    # a network that has had no time to learn rows by heart
    choices = {"epochs": 5, "neighbours": 0}
    alone = mvkit.impute(shown, choices=choices, seed=0)
    moved = mvkit.impute(shown, choices={**choices, "neighbours": 5}, seed=0)
    assert error(alone, frame, rows) > 0.8
    assert error(moved, frame, rows) < 0.5
    known = shown["y"].notna()
    assert moved.table.loc[known, "y"].equals(shown.loc[known, "y"])


def test_rows_that_say_nothing_move_nothing():
    random = np.random.default_rng(1)
    frame = pandas.DataFrame(random.normal(size=(ROWS, 4)), columns=list("abcd"))
    frame.iloc[:30, 0] = np.nan
    choices = {"epochs": 5, "neighbours": 0}
    alone = mvkit.impute(frame, choices=choices, seed=0)
    moved = mvkit.impute(frame, choices={**choices, "neighbours": 20}, seed=0)
    change = (moved.table - alone.table).iloc[:30, 0].abs().max()
    assert change < 0.05


def test_draws_move_as_the_table_does():
    random = np.random.default_rng(2)
    shown, rows = hidden(pairs(random), random)
    options = {"draws": 40, "seed": 0}
    alone = mvkit.impute(shown, choices={"epochs": 5, "neighbours": 0}, **options)
    moved = mvkit.impute(shown, choices={"epochs": 5, "neighbours": 5}, **options)
    by_table = (moved.table - alone.table)["y"].loc[rows]
    for before, after in zip(alone.draws, moved.draws, strict=True):
        # values are kept within those of the column
        inside = before["y"].loc[rows].between(shown["y"].min() + 1e-9, shown["y"].max() - 1e-9)
        inside &= after["y"].loc[rows].between(shown["y"].min() + 1e-9, shown["y"].max() - 1e-9)
        assert inside.sum() > 20
        change = (after - before)["y"].loc[rows]
        assert np.allclose(change[inside], by_table[inside], atol=1e-5)


def test_what_stands_in_gaps_of_a_batch_does_not_matter():
    generator = seeded(3)
    x = torch.randn(50, 3, generator=generator)
    gaps = torch.rand(50, 3, generator=generator) < 0.2
    gaps[:, 0] = False
    model = mvkit.recipes.masked({"numbers": mvkit.Modality((3,), "normal")}, 4, width=8)
    moves = []
    for filler in (0.0, 1e6):
        data = {"numbers": torch.where(gaps, filler, x)}
        batch = mvkit.Batch(data, elements={"numbers": ~gaps})
        moves.append(Neighbours(model, batch, ["numbers"], 5, 0).moves(batch)["numbers"])
    assert np.array_equal(moves[0], moves[1])
    assert not moves[0][~gaps.numpy()].any()


@pytest.mark.parametrize("frame", [
    pandas.DataFrame({"a": list("xyxyxyxxyy") * 3, "b": [True, False, None] * 10}),
    pandas.DataFrame({"a": [1.5, None, 2.5] * 3, "b": [1.0, 2.5, None] * 3}),
])  # fmt: skip
def test_tables_without_numbers_and_with_too_few_rows_come_back_whole(frame):
    filled = mvkit.impute(frame, choices={"epochs": 1}, seed=0).table
    assert not filled.isna().to_numpy().any()


def test_wide_tables_are_not_moved(monkeypatch):
    monkeypatch.setattr(neighbours, "MOST_COLUMNS", 3)
    random = np.random.default_rng(0)
    shown, _ = hidden(pairs(random), random)
    choices = {"epochs": 1}
    moved = mvkit.impute(shown, choices=choices, seed=0)
    alone = mvkit.impute(shown, choices={**choices, "neighbours": 0}, seed=0)
    pandas.testing.assert_frame_equal(moved.table, alone.table)


def test_values_missing_by_what_they_are_have_no_neighbours():
    random = np.random.default_rng(0)
    shown, _ = hidden(pairs(random), random)
    imputation = mvkit.impute(shown, choices={"epochs": 1}, missingness="self", seed=0)
    assert imputation.choices["neighbours"] == 0


def test_the_number_of_neighbours_is_checked():
    frame = pandas.DataFrame({"a": [1.0, None, 2.5], "b": [1.0, 2.5, None]})
    with pytest.raises(mvkit.errors.RequestError, match="neighbours"):
        mvkit.impute(frame, choices={"neighbours": -1})
    assert math.isfinite(mvkit.impute(frame, choices={"epochs": 1}).table["a"].sum())


def test_intervals_move_as_the_table_does():
    random = np.random.default_rng(4)
    frame = pairs(random)
    shown, rows = hidden(frame, random)
    options = {"intervals": 0.8, "weights": "equal", "seed": 0}
    alone = mvkit.impute(shown, choices={"epochs": 5, "neighbours": 0}, **options)
    moved = mvkit.impute(shown, choices={"epochs": 5, "neighbours": 5}, **options)
    widths = []
    for imputation in (alone, moved):
        low, high = imputation.low["y"].loc[rows], imputation.high["y"].loc[rows]
        truth = frame["y"].loc[rows]
        assert truth.between(low, high).mean() > 0.6
        widths.append((high - low).mean())
    assert widths[1] < 0.9 * widths[0]


@pytest.mark.parametrize("kind", ["numbers", "ordered"])
def test_what_is_filled_in_lies_in_its_interval(kind):
    random = np.random.default_rng(4)
    shown, rows = hidden(pairs(random), random)
    if kind == "ordered":
        shown["y"] = pandas.cut(shown["y"], 6, labels=list("abcdef"))
    imputation = mvkit.impute(shown, choices={"epochs": 5, "neighbours": 5}, intervals=0.8, seed=0)
    columns = [
        frame["y"].loc[rows] for frame in (imputation.low, imputation.table, imputation.high)
    ]
    if kind == "ordered":
        columns = [column.cat.codes for column in columns]
    low, value, high = columns
    assert (low <= value).all()
    assert (value <= high).all()
