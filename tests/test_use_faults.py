"""Faults that people met in use: rows picked, seeds, devices, networks of their own."""

import numpy as np
import pandas as pd
import pytest
import torch

from mvkit import Batch, MultimodalDataset, RequestError, ShapeError

IDS = list("abcdefghi")


def nine():
    return MultimodalDataset.from_arrays({"a": np.arange(9.0)[:, None]}, ids=IDS)


# rows picked the ways people pick rows


@pytest.mark.parametrize(
    "pick",
    [
        [-1],
        [],
        [0, -9, 8],
        np.array([1], dtype="uint8"),
        np.array([2, 3], dtype="uint64"),
        np.arange(9)[::-1],
        torch.tensor([-2, 1]),
        torch.tensor([3], dtype=torch.uint8),
        pd.Series([4, 5]),
        range(2, 6),
        np.array([], dtype=int),
        slice(2, 4),
        slice(None, None, -1),
        slice(-3, None),
        [True, False] * 4 + [True],
        np.arange(9) > 4,
        pd.Series(np.arange(9) > 4),
        torch.arange(9) > 4,
    ],
    ids=str,
)
def test_rows_are_picked_as_numpy_picks_them(pick):
    index = pick.numpy() if isinstance(pick, torch.Tensor) else pick
    index = index if isinstance(index, slice) else np.asarray(index)
    index = index.astype(int) if not isinstance(index, slice) and index.size == 0 else index
    expected = np.arange(9.0)[index].tolist()
    data = nine()
    assert data.take(pick).batch.data["a"][:, 0].tolist() == expected
    assert data[pick].batch.data["a"][:, 0].tolist() == expected
    assert data.batch.take(pick).data["a"][:, 0].tolist() == expected
    assert data.take(pick).ids.tolist() == np.array(IDS)[index].tolist()


@pytest.mark.parametrize("pick", [["b", "a"], np.array(["b", "a"]), pd.Index(["b", "a"])])
def test_rows_are_picked_by_id(pick):
    assert nine().take(pick).batch.data["a"][:, 0].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("pick", "error", "message"),
    [
        (np.array([1.0]), RequestError, "got numbers of torch.float64"),
        (torch.tensor([1.0]), RequestError, "got numbers of torch.float32"),
        ([9], RequestError, r"got position 9; expected -9 to 8, of 9 rows"),
        (torch.tensor([12]), RequestError, "got position 12"),
        ([-10], RequestError, "got position -10"),
        (np.ones(8, bool), ShapeError, "got 8 flags for 9 rows"),
        (["b", "zz"], RequestError, "no row has the id 'zz'"),
        ([[1, 2]], ShapeError, r"an index of shape \(1, 2\)"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), RequestError, "datetime64"),
    ],
)
def test_picks_that_mean_no_row_are_refused(pick, error, message):
    with pytest.raises(error, match=message):
        nine().take(pick)
    with pytest.raises(error, match=message):
        nine()[pick]


def test_rows_without_ids_are_not_picked_by_them():
    with pytest.raises(RequestError, match="these rows have no ids"):
        Batch({"a": torch.zeros(3, 1)}).take(["x"])


def test_rows_of_unequal_lengths_say_so_when_they_are_picked():
    batch = Batch({"a": torch.zeros(8, 1), "p": torch.zeros(5, 1)})
    with pytest.raises(ShapeError, match=r"batch.data\['p'\]: 5 rows, but 'a' has 8"):
        batch.take(torch.tensor([6]))
