"""Missingness: what is simulated, and what reaches a model."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import mvkit
from mvkit import Batch, DataError, Modality, Model, MultimodalDataset, RequestError
from mvkit.data.missing import at_random

B = 4000


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    arrays = {
        "a": torch.randn(B, 3, generator=generator),
        "b": torch.randn(B, 2, 2, generator=generator),
        "c": torch.randint(4, (B,), generator=generator),
    }
    return MultimodalDataset.from_arrays(arrays, label=torch.arange(B) % 3)


def seen(dataset):
    """Mask and elements as a model sees them."""
    return Model(dataset.modalities, latent_dim=1).conform(dataset)


def test_modalities_at_random(data):
    less = data.with_missing(0.3, seed=5)
    assert torch.equal(less.batch.mask, torch.from_numpy(at_random(B, 3, 0.3, 5)))
    assert torch.equal(seen(less).mask, less.batch.mask)
    share = less.batch.mask.float().mean(0)
    assert ((share - 0.7).abs() < 0.04).all()
    assert data.batch.mask.all()


def test_single_elements_at_random(data):
    batch = seen(data.with_missing(0.6, of="elements"))
    for name in "ab":
        share = batch.elements[name][batch.mask[:, "abc".index(name)]]
        assert 0.4 <= share.float().mean() < 0.55  # of rows that keep one
    # a row lacks a modality where all its elements are gone: 0.6³ of them, but for the floor
    assert abs((~batch.mask[:, 0]).float().mean() - 0.6**3) < 0.03
    assert batch.mask.any(1).all()


@pytest.mark.parametrize(
    ("of", "by"), list(itertools.product(["modalities", "elements"], [None, "label", "value"]))
)
def test_one_modality_is_kept_and_what_was_missing_stays_so(data, of, by):
    less = data.with_missing(0.5, seed=1).with_missing(1.0, of=of, by=by)
    assert (less.batch.mask.sum(1) == 1).all()
    assert not (less.batch.mask & ~data.with_missing(0.5, seed=1).batch.mask).any()
    seen(less)


@pytest.mark.parametrize("of", ["modalities", "elements"])
def test_a_function_of_seed_and_row(data, of):
    one, two = (
        data.with_missing(0.4, of=of, seed=2),
        data.take(slice(0, 50)).with_missing(0.4, of=of, seed=2),
    )
    assert torch.equal(one.batch.mask[:50], two.batch.mask)
    assert not torch.equal(one.batch.mask, data.with_missing(0.4, of=of, seed=3).batch.mask)
    if of == "elements":
        assert torch.equal(one.batch.elements["b"][:50], two.batch.elements["b"])


def test_by_label(data):
    rates = {0: 0.0, 1: 0.2, 2: 0.6}
    less = data.with_missing(rates, by="label")
    for label, rate in rates.items():
        # the floor gives back a third of rate³
        assert (
            abs((~less.batch.mask[data.labels == label]).float().mean() - (rate - rate**3 / 3))
            < 0.03
        )
    grown = data.with_missing(0.3, by="label").batch.mask.float().mean(1)
    assert torch.stack([grown[data.labels == k].mean() for k in range(3)]).diff().lt(-0.1).all()
    words = MultimodalDataset.from_arrays(
        {"a": np.ones((2, 1)), "b": np.ones((2, 1))}, label=["x", "y"]
    )
    assert words.with_missing({"x": 1.0, "y": 0.0}, by="label").batch.mask.sum(1).tolist() == [
        1,
        2,
    ]


@pytest.mark.parametrize("rate", [0.3, 0.7])
def test_by_value_larger_ones_are_missing(data, rate):
    less = data.with_missing(rate, of="elements", by="value")
    x, there = data.batch.data["a"][:, 0], less.batch.elements["a"][:, 0]
    assert abs((~there).float().mean() - rate) < 0.05
    assert x[~there].mean() > x[there].mean() + 0.5
    whole = data.with_missing(rate, by="value")
    mean = data.batch.data["b"].flatten(1).mean(1)
    assert mean[~whole.batch.mask[:, 1]].mean() > mean[whole.batch.mask[:, 1]].mean() + 0.2


def test_by_block(data):
    mask = data.with_missing(0.5, block=7).batch.mask[: B - B % 7]
    blocks = mask.reshape(-1, 7, 3)
    assert (blocks == blocks[:, :1]).all()
    assert 0.3 < mask.float().mean() < 0.7


def test_a_rate_for_each_modality(data):
    mask = data.with_missing({"b": 0.5}).batch.mask
    assert mask[:, [0, 2]].all()
    assert abs(mask[:, 1].float().mean() - 0.5) < 0.03


def test_what_cannot_be_simulated(data):
    plain = MultimodalDataset(data.batch.take(slice(0, 2)), data.modalities)
    unlabelled = MultimodalDataset(Batch(plain.batch.data), data.modalities)
    for make, text in (
        (lambda: data.with_missing(1.5), r"rate 1.5; expected a number in \[0, 1\]"),
        (lambda: data.with_missing({"x": 0.5}), "no modality 'x'; known: 'a', 'b', 'c'"),
        (
            lambda: data.with_missing(0.5, of="rows"),
            "of='rows'; expected 'modalities' or 'elements'",
        ),
        (
            lambda: data.with_missing(0.5, by="size"),
            "by='size'; expected None or 'label' or 'value'",
        ),
        (
            lambda: data.with_missing(0.5, block=0),
            "block=0; expected a whole number of at least 1",
        ),
        (
            lambda: unlabelled.with_missing(0.5, by="label"),
            "by='label', but there are no labels; give label=",
        ),
        (lambda: data.with_missing({0: 0.5}, by="label"), "no rate for label 1; .*give one"),
    ):
        with pytest.raises((DataError, RequestError), match=text):
            make()


def test_gaps_that_are_there_already_are_respected():
    x = torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan]])
    data = MultimodalDataset(
        Batch({"a": x, "b": torch.ones(2, 1)}), {"a": Modality((2,)), "b": Modality((1,))}
    )
    for of in ("modalities", "elements"):
        batch = seen(data.with_missing(0.0, of=of))
        assert batch.mask.tolist() == [[True, True], [False, True]]
        assert batch.elements["a"][0].tolist() == [True, False]


class Seen(nn.Module):
    """An encoder that shows what it was given."""

    def __init__(self):
        super().__init__()
        self.rows = None
        self.layer = nn.Linear(1, 2)

    def forward(self, x):
        self.rows = x
        return self.layer(x.flatten(1)[:, :1])


GAPS = {
    "normal": (torch.tensor([[2.0, torch.nan], [0.0, 1.0]]), [[[2, 0, 1, 0], [0, 1, 1, 1]]]),
    "picture": (
        torch.tensor([[[[2.0, torch.nan]]], [[[0.0, 1.0]]]]),
        [[[[[2, 0]], [[1, 0]]], [[[0, 1]], [[1, 1]]]]],
    ),
    "categorical": (
        torch.tensor([[[1.0, 0.0], [torch.nan, torch.nan]]]),
        [[[[1, 0], [0, 0], [1, 1], [0, 0]]]],
    ),
}


@pytest.mark.parametrize("kind", GAPS)
def test_the_encoder_sees_zeros_and_the_indicator(kind):
    x, [wanted] = GAPS[kind]
    likelihood = "categorical" if kind == "categorical" else "normal"
    encoder = Seen()
    made = Model(
        {"a": Modality(tuple(x.shape[1:]), likelihood, encoder=encoder, indicator=True)},
        latent_dim=1,
    )
    made.encode({"a": x})
    assert encoder.rows.tolist() == wanted
    plain = Seen()
    Model({"a": Modality(tuple(x.shape[1:]), likelihood, encoder=plain)}, latent_dim=1).encode(
        {"a": x}
    )
    assert torch.equal(plain.rows, encoder.rows.chunk(2, 1)[0])


@pytest.mark.parametrize("aggregator", ["poe", "mopoe", "joint"])
def test_the_indicator_trains_and_is_saved(data, aggregator, tmp_path):
    options = {"encoder": {"name": "mlp", "hidden": [4]}, "indicator": True}
    modalities = {
        "a": Modality((3,), **options),
        "b": Modality((2, 2), **options),
        "c": Modality((4,), "categorical"),
    }
    made = Model(modalities, latent_dim=2, aggregator=aggregator, objective="jmvae", seed=0)
    rows = (
        MultimodalDataset(data.batch, modalities)
        .with_missing(0.3, of="elements")
        .take(slice(0, 64))
    )
    mvkit.fit(made, rows, epochs=1)
    mvkit.save(made, tmp_path / "m")
    again = mvkit.load(tmp_path / "m")
    assert torch.equal(again.encode(rows), made.encode(rows))
    # the indicator is looked at: a gap is not a zero
    zeros = {"a": torch.zeros(1, 3)}
    gaps = {"a": torch.tensor([[0.0, torch.nan, 0.0]])}
    assert not torch.equal(made.encode(zeros), made.encode(gaps))
