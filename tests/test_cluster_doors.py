"""Placed mixtures at every door: fits that follow, files, runs that resume, pruning, bad input."""

import copy
import json

import pytest
import torch
from helpers import model, rows
from test_resume import Stopped, stop_after
from test_samplers import stack

import mvkit
from mvkit import Model, RequestError, Stage, spec
from mvkit.registry import plugins
from mvkit.registry.component import Component
from mvkit.registry.spec import as_part, to_dict
from mvkit.training.stages import Schedule
from mvkit.training.verdict import verdict_of

QUIET = {"progress": False, "device": "cpu", "batch_size": 4}
PRIORS = {
    "diagonal": {"name": "mog", "components": 2},
    "tied": {"name": "mog", "components": 2, "covariance": "tied"},
    "full": {"name": "mog", "components": 2, "covariance": "full"},
}


def warming(prior="tied", **options):
    return model("moe", PRIORS[prior], schedule="warmup_then_mixture", **options)


def fit(made, folder=None, *, saves=None, epochs=2, **options):
    """A fit, stopped after some checkpoints if that is asked for."""
    options = {"epochs": epochs, **QUIET, **options}
    if folder is not None:
        options |= {"checkpoint": folder, "save_every": 0}
    if saves is None:
        return mvkit.fit(made, rows(14), **options)
    with pytest.raises(Stopped):
        mvkit.fit(made, rows(14), listeners=[stop_after(saves)], **options)
    return None


def assert_same_weights(first, second):
    other = second.state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(value, other[name]), name


# a placed prior stays placed


@pytest.mark.parametrize("prior", PRIORS)
def test_another_fit_trains_the_placed_mixture_on(prior):
    made = warming(prior)
    assert not made.placed
    assert [row["stage"] for row in fit(made).rows] == [0, 1]
    assert made.placed
    twin = copy.deepcopy(made)
    history = fit(made, seed=1)
    assert [row["stage"] for row in history.rows] == [0, 0]
    fit(twin, seed=1, stages="single")
    assert_same_weights(made, twin)


def test_stages_of_ones_own_place_anew():
    made = warming()
    fit(made)
    plan = [
        Stage(epochs=1, place="standard", trainable=["!prior.*"]),
        Stage(epochs=1, place="prior"),
    ]
    stopped = copy.deepcopy(made)
    fit(stopped, stages=plan[:1])
    assert not stopped.placed  # which is standard now
    assert not stopped.prior.loc.any()
    fit(made, stages=plan)
    assert made.placed
    fit(stopped, epochs=4)
    assert stopped.placed


def test_a_loaded_model_trains_on(tmp_path):
    made = warming()
    assert "placed" not in made.header()
    fit(made)
    assert made.header()["placed"] is True
    mvkit.save(made, tmp_path / "m")
    loaded = mvkit.load(tmp_path / "m")
    assert loaded.placed
    assert loaded.header() == made.header()
    assert [row["stage"] for row in fit(loaded).rows] == [0, 0]
    fit(made)
    assert_same_weights(made, loaded)


def test_a_stack_trains_its_placed_top_on(tmp_path):
    modalities = {name: {"shape": (2,), "private_dim": 2} for name in "ab"}
    top = Model(dict.fromkeys("ab", (2,)), latent_dim=2, prior=PRIORS["full"], aggregator="moe")
    both = mvkit.Stack([Model(modalities, latent_dim=0), top], schedule="warmup_then_mixture")
    data = {name: torch.randn(20, 2) for name in "ab"}
    mvkit.fit(both, data, epochs=2, **QUIET)
    mvkit.save(both, tmp_path / "m")
    for placed in (both, mvkit.load(tmp_path / "m")):
        history = mvkit.fit(placed, data, epochs=2, **QUIET)
        assert [row["stage"] for row in history.rows] == [0, 0]


@pytest.mark.parametrize("saves", [2, 5, 7])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh model", "same model"])
def test_a_run_resumes_with_the_stages_that_it_was_begun_with(saves, fresh, tmp_path):
    whole, parts = warming(), warming()
    expected = fit(whole, tmp_path / "whole")
    fit(parts, tmp_path / "parts", saves=saves)
    parts = warming() if fresh else parts
    history = fit(parts, tmp_path / "parts", resume="must")
    assert history.rows == expected.rows
    assert_same_weights(whole, parts)
    assert parts.placed
    again = fit(parts, tmp_path / "parts")  # nothing is left to do
    assert again.rows == expected.rows
    assert parts.placed
    kept = mvkit.load(tmp_path / "parts" / "model.safetensors")
    assert kept.placed
    longer = fit(parts, epochs=1)
    assert [row["stage"] for row in longer.rows] == [0]


def test_a_run_of_a_placed_model_resumes_in_its_one_stage(tmp_path):
    made = warming()
    fit(made)
    mvkit.save(made, tmp_path / "m")
    whole, parts = (mvkit.load(tmp_path / "m") for _ in range(2))
    expected = fit(whole, tmp_path / "whole")
    assert [row["stage"] for row in expected.rows] == [0, 0]
    fit(parts, tmp_path / "parts", saves=5)
    again = mvkit.load(tmp_path / "m")
    assert fit(again, tmp_path / "parts", resume="must").rows == expected.rows
    assert_same_weights(whole, again)


def test_single_precision_and_plain_data():
    made = warming("full").float()
    fit(made)
    assert made.prior.loc.dtype == torch.float32
    shares = made.clusters(rows(6), soft=True)
    torch.testing.assert_close(shares.sum(-1), torch.ones(6))
    part = as_part("schedule", {"name": "warmup_then_mixture", "share": 0.3})
    assert as_part("schedule", json.loads(json.dumps(to_dict(part)))) == part
    assert set(to_dict(part)) == {"name", "share"}


# pruning


@spec
class PlacedAtOnce(Schedule):
    """A schedule of another package that places the prior."""

    places_prior = True

    def stages(self, model, epochs):
        return [Stage(None, epochs, place="prior")]


@spec
class TwoHalves(Schedule):
    """One that does not."""

    def stages(self, model, epochs):
        return [Stage(None, 1), Stage(None, epochs - 1)]


@pytest.mark.parametrize("rule", ["joint", "votes"])
def test_pruned_models_keep_schedules_that_do_not_place(rule):
    kinds = {"placed_at_once": "PlacedAtOnce", "two_halves": "TwoHalves"}
    for name, cls in kinds.items():
        plugins.declare(Component("schedule", name, f"{__name__}:{cls}"))
    kept = {}
    for name in (*kinds, "warmup_then_mixture", "single"):
        made = model("moe", {"name": "mog", "components": 3}, schedule=name)
        pruned = mvkit.prune_clusters(made, rows(40), rule=rule).model
        kept[name] = type(pruned.spec.schedule).__name__
    assert kept == {
        "placed_at_once": "Single",
        "two_halves": "TwoHalves",
        "warmup_then_mixture": "Single",
        "single": "Single",
    }


@pytest.mark.parametrize("beta", [float("nan"), float("inf"), -1.0, "much", True])
def test_factors_that_are_none(beta):
    made = model("moe", "mog")
    with pytest.raises(RequestError, match="prune_clusters: beta=.*finite number of at least 0"):
        mvkit.prune_clusters(made, rows(8), beta=beta)


def test_a_factor_of_votes_is_none_of_fits():
    made = model("moe", PRIORS["tied"])
    for rule in (None, "joint"):
        with pytest.raises(RequestError, match="beta=0.5 weighs the entropy of votes"):
            mvkit.prune_clusters(made, rows(8), beta=0.5, rule=rule)
    assert mvkit.prune_clusters(made, rows(8), beta=0.5, rule="votes").model.n_clusters == 2


@pytest.mark.parametrize("made", ["a", stack], ids=["text", "stack"])
def test_what_is_pruned_is_a_model(made):
    given = made() if callable(made) else made
    with pytest.raises(RequestError, match="as its model; expected a Model with a mixture prior"):
        mvkit.prune_clusters(given, rows(8))


# what is said of them


def test_advice_for_clusters_that_collapsed():
    made = warming("diagonal").eval()
    made.prior.become_standard()
    with torch.no_grad():
        made.prior.logits[0] = 9.0
    batch = made.conform(rows(14))
    said = [s for s in verdict_of(made, batch, []) if "collapsed" in s]
    assert said == [
        "rows fall into 1 of 2 clusters: they have collapsed; train longer, or place them by "
        "schedule='warmup_then_mixture'"
    ]
    made.placed = True
    (said,) = [s for s in verdict_of(made, batch, []) if "collapsed" in s]
    assert said.endswith("train longer, or give 'mog' covariance='tied'")


@pytest.mark.parametrize("prior", PRIORS)
def test_the_explorer_shows_their_responsibilities(prior):
    from mvkit.apps.explorer_answers import Explorer

    made = warming(prior)
    fit(made)
    data = mvkit.MultimodalDataset(rows(3, missing=False), made.modalities)
    answer = Explorer(made.eval(), data).answer({"number": 1, "given": ["a", "b"]})
    row = made.conform(data).take([1])
    shares = made.clusters(row.hide(["a", "b"]), soft=True)[0]
    torch.testing.assert_close(torch.tensor(answer["clusters"]), shares, check_dtype=False)
    assert f"covariance='{prior}'" in repr(made)
