"""Rows of a batch that several processes share: what is gathered, and what passes its checks."""

import attrs
import pytest
import torch
from helpers import model, rows

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


def test_a_stage_couples_the_rows_of_each_batch_by_itself():
    """Two batches of a step are coupled each by itself: their losses are those of each alone."""
    tiny = model(objective=CONTRAST).eval()
    data = rows(8, missing=False)
    halves = [data.take([0, 1, 2, 3]), data.take([4, 5, 6, 7])]
    expected = sum(float(tiny.loss(half).loss.detach()) for half in halves) / 2
    stage = mvkit.Stage(None, 1, ["objectives.*"], accumulate=2)
    history = mvkit.fit(tiny, [attrs.evolve(half) for half in halves], stages=stage)
    assert history.rows[0]["loss"] == pytest.approx(expected, rel=1e-9)
