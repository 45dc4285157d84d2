"""Rows of a batch that several processes share: what is gathered, and what passes its checks."""

import attrs
import pytest
import torch
from helpers import model, rows
from test_resume import assert_same, interrupted, uninterrupted

import mvkit
from mvkit.core.all_rows import all_rows, connected, shared_rows
from mvkit.testing import check_component

CONTRAST = {"name": "align", "estimate": "contrast"}


class Twice:
    """Stands in for two processes: the other one's rows are the same, with their signs changed."""

    def gather(self, values):
        return torch.cat([-values, values]), len(values)

    def connect(self, loss):
        return 2 * loss


def test_rows_are_ones_own_outside():
    values = torch.ones(3, 2)
    gathered, first = all_rows(values)
    assert gathered is values
    assert first == 0
    assert connected(values) is values
    with shared_rows(Twice()):
        gathered, first = all_rows(values)
        assert torch.equal(gathered, torch.cat([-values, values]))
        assert first == 3
        assert torch.equal(connected(values), 2 * values)
    assert all_rows(values)[0] is values


def test_flags_pass_from_terms_to_what_is_made_of_them():
    assert model(objective=CONTRAST).objective.couples_rows
    assert model(objective="mmd").objective.couples_rows
    assert not model(objective="align").objective.couples_rows
    assert model(objective={"name": "sum", "terms": ["elbo", CONTRAST]}).objective.couples_rows
    assert not model(objective={"name": "sum", "terms": ["elbo", "align"]}).objective.couples_rows
    levels = [{"name": "sum", "terms": ["elbo", "mmd"]}, "elbo"]
    assert mvkit.parts.Levels(levels=levels).couples_rows
    assert not mvkit.parts.Levels(levels=levels[1:] * 2).couples_rows


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("align", {"estimate": "contrast"}),
        ("sum", {"terms": ["elbo", CONTRAST, "mmd"], "weights": [1.0, 0.5, 2.0]}),
        ("mmd", {"kernel": "rbf", "scales": [1.0]}),
    ],
)
def test_what_couples_rows_passes_its_checks(name, options):
    check_component("objective", name, **options)


@pytest.mark.parametrize("saves", [1, 3])
def test_a_run_resumes_with_the_same_bits(saves, tmp_path):
    objective = {"name": "sum", "terms": ["elbo", CONTRAST, "mmd"]}
    ramps = {"kl_weight": {"name": "linear", "start": 0.5}}
    stages = [mvkit.Stage(objective, 2, ramps=ramps, accumulate=2, ema=0.5)]
    options = {"data": rows(7), "validation": rows(4, seed=1), "stages": stages}

    def make():
        return model("moe", "mog", private=1)

    whole = uninterrupted(make, tmp_path / "whole", **options)
    assert_same(whole, interrupted(make, saves, tmp_path / "again", **options))
    assert whole[1][0]["1/temperature"] != whole[1][1]["1/temperature"]


def test_the_top_of_a_stack_contrasts_the_latents_that_it_models():
    """With levels, the loss of the top is that of its objective on the means that it sees."""
    shapes = {"a": (3,), "b": (2, 2), "c": (4,)}
    two = mvkit.recipes.nexus(shapes, latent_dim=2, seed=0).double().eval()
    objective = {"name": "levels", "levels": ["elbo", CONTRAST]}
    two.adopt(objective, seed=0)
    with mvkit.testing.noise(lambda site, shape, dtype, device: torch.zeros(shape, dtype=dtype)):
        loss = two.loss(rows(), objective=objective)
        batch = two.conform(rows())
        upper = two.up(batch, two.bottom.experts(batch), drawn=False)
        expected = two.top.loss(upper, objective=CONTRAST).loss
    assert float(loss.metrics["levels.1/align"]) == pytest.approx(float(expected.detach()))
    loss.loss.backward()
    assert two.top.objectives["align"].log_scale.grad != 0
    assert not len(two.bottom.objectives)


def test_a_stage_couples_the_rows_of_each_batch_by_itself():
    """Two batches of a step are coupled each by itself: their losses are those of each alone."""
    tiny = model(objective=CONTRAST).eval()
    data = rows(8, missing=False)
    halves = [data.take([0, 1, 2, 3]), data.take([4, 5, 6, 7])]
    expected = sum(float(tiny.loss(half).loss.detach()) for half in halves) / 2
    stage = mvkit.Stage(None, 1, ["objectives.*"], accumulate=2)
    history = mvkit.fit(tiny, [attrs.evolve(half) for half in halves], stages=stage)
    assert history.rows[0]["loss"] == pytest.approx(expected, rel=1e-9)
