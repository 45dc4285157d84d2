"""Questions about rows of a source: answered a block at a time, as of the same rows in memory."""

import numpy as np
import pytest
import torch

import mvkit
from mvkit import Batch, Covariate, DataError, Model, Pipeline
from mvkit.data.shards import Shards, save_shards
from mvkit.errors import NothingObserved
from mvkit.parts.likelihoods.counts import is_no_count

B = 2100  # rows: three blocks


class Gathered:
    """Rows of a batch, gathered by index."""

    def __init__(self, batch):
        self.batch = batch
        self.sizes = []

    def __len__(self):
        return len(self.batch)

    def __getitems__(self, indices):
        self.sizes.append(len(indices))
        return self.batch.take(indices)


def rows(b=B):
    generator = torch.Generator().manual_seed(0)
    data = {"a": torch.rand(b, 3, generator=generator), "b": torch.rand(b, 2, generator=generator)}
    mask = torch.rand(b, 2, generator=generator) > 0.3
    mask[:, 0] |= ~mask.any(1)
    return Batch(data, mask, covariates={"age": torch.rand(b, generator=generator).tolist()})


@pytest.fixture(scope="module")
def model():
    shapes = {"a": (3,), "b": (2,)}
    options = {"covariates": {"age": Covariate()}, "aggregator": "mopoe", "prior": "mog"}
    return Model(shapes, latent_dim=2, seed=0, **options).eval()


def generator():
    return torch.Generator().manual_seed(1)


QUESTIONS = {
    "encode": lambda model, data: model.encode(data),
    "encode given": lambda model, data: model.encode(data, ["a"], empty="prior"),
    "translate": lambda model, data: model.translate(data, generator=generator())["b"],
    "clusters": lambda model, data: model.clusters(data),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_answers_are_those_of_rows_in_memory(model, question):
    source = Gathered(rows())
    answer = QUESTIONS[question](model, source)
    assert torch.equal(answer, QUESTIONS[question](model, rows()))
    assert max(source.sizes) <= 1024
    assert sum(source.sizes) == B


def test_likelihoods_are_those_of_rows_in_memory():
    bare = Model({"a": (3,), "b": (2,)}, latent_dim=2, seed=0).eval()
    answers = []
    for data in (Gathered(rows()), rows()):
        answers.append(bare.log_likelihood(data, n=2, generator=generator()))
    assert torch.equal(*answers)


def test_answers_of_shards(model, tmp_path):
    save_shards(rows(), tmp_path / "shards", model.modalities, rows_per_shard=500)
    shards = Shards(tmp_path / "shards")
    assert torch.equal(model.encode(shards), model.encode(rows()))


def test_a_row_with_nothing_is_named_by_its_place_in_all_rows(model):
    batch = rows()
    batch.mask[2050] = False
    with pytest.raises(NothingObserved, match="row 2050 observes none"):
        model.encode(Gathered(batch))


def test_what_is_wrong_is_said_with_the_rows_that_it_is_in(model):
    batch = rows()
    batch.data["a"][1500, 1] = torch.inf
    batch.mask[1500] = True
    with pytest.raises(DataError, match="row 476") as caught:
        model.encode(Gathered(batch))
    assert caught.value.__notes__ == ["in rows 1024 to 2047 of the data"]


def test_no_rows(model):
    with pytest.raises(DataError, match="Gathered: it has no rows; expected one at least"):
        model.encode(Gathered(rows().take(slice(0, 0))))


def test_what_needs_all_rows_says_so(model):
    with pytest.raises(DataError, match="got Gathered, whose rows are gathered a batch at a time"):
        model.conform(Gathered(rows(5)))
    with pytest.raises(DataError, match="expected rows in memory here"):
        model.log_likelihood(Gathered(rows(5)))  # its covariates are checked beforehand


def test_covariates_of_described_sources_are_learnt_of_all_rows(tmp_path):
    """Not of the first 10,000 alone, of a part of shards that `validation` leaves either."""
    b = 12_000
    age = np.where(np.arange(b) < 10_000, 1.0, 5.0) + np.arange(b) % 2
    batch = Batch({"a": torch.rand(b, 2)}, covariates={"age": age.tolist()})
    save_shards(batch, tmp_path / "shards", {"a": mvkit.Modality((2,))})
    model = Model({"a": (2,)}, latent_dim=1, seed=0, covariates={"age": Covariate()})
    options = {"epochs": 1, "batch_size": 4096, "progress": False, "validation": 0.1}
    mvkit.fit(model, Pipeline(Shards(tmp_path / "shards")), **options)
    assert model.conditions.centre.item() == pytest.approx(age.mean(), abs=0.1)


VALUES = [0.0, -0.0, 1.0, 3.0, 1e30, 0.5, -1.0, -0.25, np.inf, -np.inf, np.nan, 2.0**24 + 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_counts_are_told_apart_value_by_value_and_all_together(dtype):
    x = torch.tensor(VALUES).to(dtype)
    expected = [not (np.isfinite(v) and v >= 0 and v == int(v)) for v in x.tolist()]
    assert is_no_count(x).tolist() == expected
    for value, flag in zip(x, expected, strict=True):
        assert is_no_count(torch.stack([x[2], value])).tolist() == [False, flag]


def test_counts_in_other_types():
    assert is_no_count(torch.tensor([0, 2, -1])).tolist() == [False, False, True]
    assert is_no_count(torch.zeros(0, 3)).shape == (0, 3)
