"""Data from outside: masks, elements, dtypes, and what users really feed in."""

import re

import numpy as np
import pytest
import torch
from helpers import model, rows

import mvkit
from mvkit import Batch, Modality, Model
from mvkit.core.batch import conform
from mvkit.parts.likelihoods import Categorical

SHAPES = {"a": (3,), "b": (2, 2)}


def conformed(batch, shapes=None):
    return Model(shapes or SHAPES).conform(batch)


def test_nan_says_what_is_missing():
    a = torch.tensor([[1.0, 2, 3], [torch.nan] * 3, [1, torch.nan, 3]])
    b = torch.full((3, 2, 2), torch.nan)
    b[1] = 1.0
    batch = conformed(Batch({"b": b, "a": a}))
    assert batch.mask.tolist() == [[True, False], [False, True], [True, False]]
    assert batch.elements["a"].tolist() == [[True] * 3, [True] * 3, [True, False, True]]
    assert "b" not in batch.elements
    assert batch.data["a"].tolist() == [[1, 2, 3], [0, 0, 0], [1, 0, 3]]
    assert [r.tolist() for r in batch.observed_rows] == [[0, 2], [1]]
    assert batch.complete_rows.tolist() == []


def test_an_absent_key_is_unobserved():
    batch = conformed(Batch({"b": torch.ones(2, 2, 2)}))
    assert batch.mask.tolist() == [[False, True]] * 2


def test_a_mask_goes_before_nan():
    batch = conformed(
        Batch(
            {"a": torch.ones(2, 3), "b": torch.ones(2, 2, 2)},
            torch.tensor([[True, False], [True, True]]),
        )
    )
    assert batch.mask.tolist() == [[True, False], [True, True]]
    assert batch.data["b"][0].abs().sum() == 0


def test_zero_never_means_missing():
    assert conformed(Batch({"a": torch.zeros(2, 3), "b": torch.zeros(2, 2, 2)})).complete


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_of_any_width(dtype):
    batch = conformed(Batch({"a": torch.ones(2, 3, dtype=dtype)}))
    assert batch.data["a"].dtype == torch.float32


def test_numpy_of_all_kinds():
    plain = np.arange(6.0).reshape(2, 3)
    frozen = plain.copy()
    frozen.setflags(write=False)
    for array in (
        plain,
        frozen,
        np.asfortranarray(plain),
        plain[:, ::-1],
        plain.astype(">f8"),
        plain.tolist(),
    ):
        assert conformed(Batch({"a": array})).data["a"].shape == (2, 3)
    assert Model(SHAPES).encode({"a": plain.astype(np.float32)}).shape == (2, 10)


def test_values_without_gaps_are_as_those_that_are_looked_at_one_by_one():
    """What is finite in sum is taken at once; the largest floats, whose sum is not, are taken all
    the same.
    """
    a, b = torch.randn(6, 3), torch.rand(6, 2, 2)
    mask = torch.tensor([[True, False], [True, True], [False, True]] * 2)
    every = {k: torch.ones(x.shape, dtype=torch.bool) for k, x in (("a", a), ("b", b))}
    for seen in (None, mask):
        plain, slow = (
            conformed(Batch({"a": a, "b": b}, seen)),
            conformed(Batch({"a": a, "b": b}, seen, every)),
        )
        for name in ("a", "b"):
            assert torch.equal(plain.data[name], slow.data[name])
        assert torch.equal(plain.mask, slow.mask)
        assert plain.elements is None
    largest = torch.full((2, 3), torch.finfo(torch.float32).max)
    assert torch.equal(conformed(Batch({"a": largest})).data["a"], largest)
    for bad in (torch.inf, -torch.inf):
        both = torch.tensor([[torch.inf, bad, 0.0]])
        with pytest.raises(mvkit.DataError, match=r"element \(0,\): inf cannot be taken"):
            conformed(Batch({"a": both}))


def test_integers_for_bits_and_classes():
    shapes = {"bits": Modality((3,), "bernoulli"), "class": Modality((4,), "categorical")}
    batch = conformed(
        Batch({"bits": torch.tensor([[0, 1, 1]]), "class": torch.tensor([2])}), shapes
    )
    assert batch.data["bits"].tolist() == [[0, 1, 1]]
    assert batch.data["class"].tolist() == [[0, 0, 1, 0]]
    garbage = Batch(
        {"class": torch.tensor([2, -7])}, torch.tensor([[False, True], [False, False]])
    )
    assert conformed(garbage, shapes).data["class"].tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]


def test_classes_with_places_and_gaps():
    shapes = {"word": Modality((5, 4), "categorical")}
    hot = torch.eye(4)[torch.randint(4, (3, 5))]
    hot[0, 2] = torch.nan
    batch = conformed(Batch({"word": hot}), shapes)
    assert batch.elements["word"].shape == (3, 5)
    assert not batch.elements["word"][0, 2]
    vae = Model(shapes, seed=0)
    vae.loss(batch).loss.backward()
    indices = conformed(Batch({"word": torch.randint(4, (3, 5))}), shapes)
    assert indices.data["word"].shape == (3, 5, 4)


@pytest.mark.parametrize("support", [Categorical.support, "any numbers"])
def test_class_indices_out_of_range(support, monkeypatch):
    """Whatever the likelihood says of its support, and even if it takes every number."""
    monkeypatch.setattr(Categorical, "support", support)
    if support == "any numbers":
        monkeypatch.setattr(Categorical, "out_of_support", lambda self, x: torch.isnan(x))
    shapes = {"word": Modality((5, 4), "categorical")}
    indices = torch.randint(4, (3, 5), generator=torch.Generator().manual_seed(0))
    indices[1, 2] = 4
    message = re.escape(
        "batch.data['word']: row 1, element (2, 0): a class index out of range cannot be taken; "
        "expected indices from 0 to 3"
    )
    with pytest.raises(mvkit.DataError, match=f"^{message}$"):
        conformed(Batch({"word": indices}), shapes)
    seen = torch.ones(3, 5, dtype=torch.bool)
    seen[1, 2] = False
    batch = conformed(Batch({"word": indices}, elements={"word": seen}), shapes)
    assert batch.data["word"][1, 2].tolist() == [0, 0, 0, 0]
    assert batch.data["word"].sum() == 14


def test_flat_numbers_for_a_shape_of_one():
    assert conformed(Batch({"x": torch.arange(3.0)}), {"x": (1,)}).data["x"].shape == (3, 1)


def test_elements_count_nothing():
    """A missing element is as if its dimension were not there."""
    nets = {"encoder": "linear", "decoder": "linear"}
    vae = Model({"a": Modality((3,), **nets)}, latent_dim=2, objective="iwae", seed=0).double()
    less = Model({"a": Modality((2,), **nets)}, latent_dim=2, objective="iwae", seed=0).double()
    state = {k: v.clone() for k, v in vae.state_dict().items()}
    for key in ("encoders.a.0.weight",):
        state[key] = state[key][:, [0, 2]]
    for key in ("decoders.a.network.0.weight", "decoders.a.network.0.bias"):
        state[key] = state[key][[0, 2]]
    less.load_state_dict(state)
    x = torch.randn(5, 3).double()
    gaps = x.clone()
    gaps[:, 1] = torch.nan
    first = vae.loss(Batch({"a": gaps}), generator=torch.Generator().manual_seed(0))
    second = less.loss(Batch({"a": x[:, [0, 2]]}), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(first.bound, second.bound)
    for value in (torch.inf, 1e6):
        filled = x.clone()
        filled[:, 1] = value
        elements = {"a": torch.tensor([[True, False, True]]).expand(5, 3)}
        third = vae.loss(
            Batch({"a": filled}, elements=elements), generator=torch.Generator().manual_seed(0)
        )
        assert torch.equal(first.bound, third.bound)


def test_conforming_twice_looks_once():
    vae = model()
    batch = vae.conform(rows())
    assert vae.conform(batch) is batch
    assert conform(batch, vae.schema) is batch
    assert model().conform(batch) is batch  # alike parts, alike checks


def test_take_keeps_everything_in_step():
    vae = model()
    batch = mvkit.Batch(
        rows().data,
        rows().mask,
        extra={"label": torch.arange(8), "id": list("abcdefgh"), "n": np.arange(8)},
    )
    part = vae.conform(batch).take(torch.tensor([5, 1]))
    assert part.extra["label"].tolist() == [5, 1]
    assert part.extra["id"] == ["f", "b"]
    assert part.extra["n"].tolist() == [5, 1]
    assert torch.equal(part.mask, batch.mask[[5, 1]])
    direct = vae.conform(batch.take(torch.tensor([5, 1])))
    for first, other in zip(part.observed_rows, direct.observed_rows, strict=True):
        assert (first is None and other is None) or torch.equal(first, other)
    assert len(vae.conform(batch).take(slice(2, 4))) == 2


def test_hide():
    vae = model()
    hidden = vae.conform(rows()).hide(["b"])
    assert hidden.mask[:, [0, 2]].sum() == 0
    assert hidden.hidden == {"a", "c"}


def test_a_batch_that_is_one_row_and_a_modality_nobody_has():
    vae = model(objective="telbo")
    vae.loss(rows(1)).loss.backward()
    vae.loss(Batch({"a": torch.randn(3, 3)})).loss.backward()


def test_log_variances_of_50_through_poe():
    vae = model()
    with torch.no_grad():
        vae.encoders["a"][-1].bias[2:] = 50
        vae.encoders["b"][-1].bias[2:] = -50
    vae = vae.float()
    losses = vae.loss(rows(missing=False))
    losses.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters() if p.grad is not None)
