"""Precision and recall, diversity, agreement and features of classifiers, each by loops."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import NAMES, model, rows

import mvkit
from mvkit import Batch, RequestError, SpecError
from mvkit.evaluation.diversity import draw_distances, mean_distance
from mvkit.evaluation.frechet import frechet_distance
from mvkit.evaluation.neighbours import within_neighbours
from mvkit.evaluation.perceptron import fit_perceptron
from mvkit.parts.samplers import GMM

OTHER_LABELS = {n: lambda x: (x.flatten(1).sum(1) > 1).long() for n in NAMES}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labelled(b=90, **options):
    batch = rows(b, **options)
    return Batch(batch.data, batch.mask, extra={"label": torch.arange(b) % 3})


def by_loops(points, others, k):
    """Which points lie in a ball of one of the others, with the paper's words, point by point."""
    widths = []
    for i, centre in enumerate(others.tolist()):
        far = [math.dist(centre, x) for j, x in enumerate(others.tolist()) if j != i]
        widths.append(sorted(far)[k - 1])
    inside = []
    for point in points.tolist():
        near = [math.dist(point, x) <= w for x, w in zip(others.tolist(), widths, strict=True)]
        inside.append(any(near))
    return inside


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("shift", [0.0, 1.0, 20.0])
def test_neighbours_of_clusters_by_loops(k, shift):
    """Rows of two clusters, of which the generated ones have shifted."""
    real = normal(60, 3) + torch.arange(60).remainder(2).unsqueeze(1) * 6
    generated = normal(300, 3, seed=1) * 0.7 + shift  # more than a block of rows
    expected = by_loops(generated, real, k)
    assert within_neighbours(generated, real, k).tolist() == expected
    assert within_neighbours(real, generated, k).tolist() == by_loops(real, generated, k)
    if shift == 20.0:
        assert not any(expected)


def test_precision_and_recall_tell_lost_kinds_from_false_ones():
    """One of two clusters is precise and lacks the other; a third one is false and lacks none."""
    kinds = [normal(100, 2, seed=i) + torch.tensor([20.0 * i, 0.0]) for i in range(3)]
    real = torch.cat(kinds[:2])
    own = normal(100, 2, seed=7)
    assert within_neighbours(own, real).double().mean() > 0.9
    assert within_neighbours(real, own)[:100].double().mean() > 0.9
    assert not within_neighbours(real, own)[100:].any()
    more = torch.cat(kinds)
    assert within_neighbours(real, more).all()
    assert within_neighbours(more, real).tolist() == [True] * 200 + [False] * 100


def test_equal_rows_lie_among_each_other():
    x = normal(50, 4)
    assert within_neighbours(x, x, 1).all()
    same = torch.ones(9, 4, dtype=torch.float64)
    assert within_neighbours(same, same).all()
    assert not within_neighbours(same + 1e-9, same).any()


def test_neighbours_do_not_depend_on_order_or_unit():
    a, b = normal(70, 3), normal(600, 3, seed=1)
    inside = within_neighbours(a, b)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(2))
    assert torch.equal(within_neighbours(a, b[order]), inside)
    assert torch.equal(within_neighbours(a.flip(0), b).flip(0), inside)
    turn = torch.linalg.qr(normal(3, 3, seed=3)).Q
    assert torch.equal(within_neighbours(8 * a @ turn, 8 * b @ turn), inside)


def test_too_few_rows_have_no_neighbours():
    with pytest.raises(RequestError, match="3 rows are too few to have 3 neighbours each; give"):
        within_neighbours(normal(5, 2), normal(3, 2))
    report = mvkit.evaluate(
        model("poe").eval(),
        labelled(3, missing=False),
        ["precision_recall"],
        features={"a": lambda x: x.flatten(1)},
    )
    assert not report.scores
    assert any(note.startswith("precision_recall: 3 rows are too few") for note in report.notes)


def test_mean_distance_by_loops():
    x = normal(300, 5)
    pairs = [math.dist(a, b) for a, b in itertools.combinations(x.tolist(), 2)]
    assert mean_distance(x) == pytest.approx(np.mean(pairs), rel=1e-9)
    assert mean_distance(3 * x.flip(0) + 2) == pytest.approx(3 * np.mean(pairs), rel=1e-9)
    assert mean_distance(torch.ones(20, 5)) == 0
    assert math.isnan(mean_distance(x[:1]))
    draws = normal(4, 6, 2, 3)
    expected = []
    for b in range(6):
        own = draws[:, b].flatten(1).tolist()
        expected.append(np.mean([math.dist(x, y) for x, y in itertools.combinations(own, 2)]))
    assert draw_distances(draws).tolist() == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_two_normals_in_closed_form():
    """Samples of moments that are known exactly, of covariances that commute: (σ - τ)² each."""
    x = normal(5000, 4)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    turn = torch.linalg.qr(normal(4, 4, seed=1)).Q
    sigma, tau, shift = torch.tensor(
        [[1.0, 2.0, 0.5, 3.0], [2.0, 0.1, 0.5, 1.0], [1.0, -2.0, 0.0, 0.5]], dtype=torch.float64
    )
    expected = float((sigma - tau).square().sum() + shift.square().sum())
    first, second = x * sigma @ turn, x * tau @ turn + shift
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(second.flip(0), first) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_features_of_a_fitted_classifier_are_its_hidden_layer():
    x = normal(80, 6).float()
    labels = (x[:, 0] > 0).long()
    perceptron = fit_perceptron(x, labels, hidden=16)
    hidden = perceptron.hidden(x)
    assert hidden.shape == (80, 16)
    weight, bias = perceptron.network.coefs_[1], perceptron.network.intercepts_[1]
    assert np.array_equal((hidden @ weight + bias)[:, 0] > 0, perceptron(x) == 1)


def test_a_few_rows_for_many_features_are_said_to_be():
    made = model("poe").eval()
    report = mvkit.evaluate(
        made, labelled(40, missing=False), ["frechet", "precision_recall"], features="classifier"
    )
    note = "frechet: 20 rows are too few for 256 features: the covariances lack rank"
    assert any(text.startswith(note) for text in report.notes)
    for name in NAMES:
        assert report[f"frechet/{name}, samples"] > 0
        assert 0 <= report[f"precision_recall/{name}, reconstructed, recall"] <= 1
    plain = mvkit.evaluate(made, labelled(40), ["frechet"], features={"a": lambda x: x[:, :1]})
    assert not any("too few" in text for text in plain.notes)


def test_features_of_classifiers_need_labels():
    made = model("poe").eval()
    report = mvkit.evaluate(made, rows(20), ["precision_recall"], features="classifier")
    assert not report.scores
    assert "precision_recall: no labels: extra['label'] is not in the data" in report.notes
    with pytest.raises(RequestError, match="features='judge'; expected a dict"):
        mvkit.evaluate(made, rows(20), ["frechet"], features="judge")


def test_a_row_of_the_report_by_hand():
    """Precision and recall of reconstructions, and the diversity of the rows, one by one."""
    made = model("mopoe", private=1).eval()
    batch = labelled(80, missing=True)
    report = mvkit.evaluate(
        made, batch, ["precision_recall", "diversity"], features={"a": lambda x: x.flatten(1)}
    )
    has = batch.mask[:, 0]
    own = batch.take(has)
    real = own.data["a"].flatten(1)
    shared = made.translate(own, ["a"], latent="mean")["a"][0].flatten(1)
    assert report["diversity/a, real"] == pytest.approx(mean_distance(real), rel=1e-9)
    scores = {score.name: score for score in report.scores}
    assert scores["a, real"].rows == int(has.sum())
    assert scores["a, reconstructed"].value == pytest.approx(mean_distance(shared), rel=0.3)
    assert scores["a, reconstructed, recall"].rows == int(has.sum())
    assert {score.given for score in report.scores if "spread" in score.name} == {1}


@pytest.mark.parametrize("recipe", ["Stack", "private", "mixture", "categorical"])
def test_every_kind_of_model_is_measured_and_fillers_change_nothing(recipe):
    if recipe == "categorical":
        modalities = {"a": (3,), "k": mvkit.Modality((4,), "categorical"), "b": (2,)}
        made = mvkit.Model(modalities, latent_dim=2, seed=0)
        data = {"a": normal(60, 3).float(), "k": torch.arange(60) % 4, "b": normal(60, 2).float()}
        mask = torch.rand(60, 3, generator=torch.Generator().manual_seed(0)) > 0.3
        batch = Batch(
            data, mask | ~mask.any(1, keepdim=True), extra={"label": torch.arange(60) % 3}
        )
    elif recipe == "Stack":
        nets = {
            "encoder": {"name": "mlp", "hidden": [8]},
            "decoder": {"name": "mlp", "hidden": [8]},
        }
        modalities = {name: mvkit.Modality((2,), **nets) for name in "abc"}
        made = mvkit.recipes.nexus(modalities, latent_dim=2, bottom_dim=2, seed=0)
        data = {name: normal(60, 2, seed=i).float() for i, name in enumerate("abc")}
        batch = Batch(data, extra={"label": torch.arange(60) % 3})
    else:
        private = 1 if recipe == "private" else 0
        made, batch = model("mopoe", "mog", private=private), labelled(60, missing=True)
    made.eval()
    metrics = ["precision_recall", "diversity", "agreement", "frechet"]
    report = mvkit.evaluate(made, batch, metrics, features="classifier")
    assert {score.metric for score in report.scores} == set(metrics)
    assert all(math.isfinite(score.value) for score in report.scores if not score.detail)
    if batch.mask is not None:
        spoilt = Batch(
            {n: x.clone() for n, x in batch.data.items()}, batch.mask, extra=batch.extra
        )
        for i, x in enumerate(spoilt.data.values()):
            if x.is_floating_point():
                x[~batch.mask[:, i]] = torch.nan
        assert repr(mvkit.evaluate(made, spoilt, metrics, features="classifier").scores) == repr(
            report.scores
        )


def judged(**options):
    """Agreement of a model whose classes are the signs of sums."""
    made = model("poe").eval()
    metric = {"name": "agreement", **options}
    return made, mvkit.evaluate(made, labelled(50), [metric], classifiers=OTHER_LABELS)


def test_agreement_by_loops():
    """Classes of the very draws that the metric looks at, counted one by one."""
    made = model("poe").eval()
    batch = rows(40, missing=False)
    seen = {name: [] for name in NAMES}

    def judge(name):
        def classes(x):
            shown = (x.flatten(1).sum(1) * 7).floor().long().remainder(3)
            seen[name].append(shown)
            return shown

        return classes

    classifiers = {name: judge(name) for name in NAMES}
    metric = {"name": "agreement", "given": [["a"]], "n": 3}
    report = mvkit.evaluate(made, batch, [metric], classifiers=classifiers)
    targets = [torch.cat(seen[name]).reshape(3, 40) for name in NAMES if name != "a"]
    agree = alike = 0
    for b in range(40):
        for n in range(3):
            agree += len({int(x[n, b]) for x in targets}) == 1
        for x in targets:
            alike += sum(x[i, b] == x[j, b] for i, j in ((0, 1), (0, 2), (1, 2)))
    chance = 0.0
    for c in range(3):
        chance += math.prod(float((x == c).double().mean()) for x in targets)
    assert report["agreement/given a"] == pytest.approx(agree / 120, abs=1e-12)
    assert report["agreement/given a, two draws alike"] == pytest.approx(
        float(alike) / (40 * 3 * len(targets)), abs=1e-12
    )
    assert report["agreement/given a, by chance"] == pytest.approx(chance, abs=1e-12)


def test_agreement_of_classifiers_that_say_one_thing():
    constant = {name: lambda x: torch.zeros(len(x), dtype=torch.long) for name in NAMES}
    made = model("poe").eval()
    report = mvkit.evaluate(made, rows(20), ["agreement"], classifiers=constant)
    for score in report.scores:
        assert score.value == 1.0
    assert {score.name for score in report.scores} >= {"given a", "given b, by chance"}


def test_agreement_of_what_is_asked_for():
    _, report = judged(given=[["a"]], n=1)
    assert {score.name for score in report.scores} == {"given a", "given a, by chance"}
    _, report = judged(to=["a"])
    assert report.notes == (
        "agreement: needs two modalities at least that are generated from others",
    )
    with pytest.raises(SpecError, match="to: unknown modality 'z'"):
        judged(to=["z"])
    with pytest.raises(SpecError, match="given: unknown modality 'z'"):
        judged(given=[["z"]])
    for options in ({"given": ["a"]}, {"given": "a"}, {"given": 3}, {"to": "a"}, {"to": [1]}):
        with pytest.raises(SpecError, match=r"expected a list of"):
            judged(**options)
    _, report = judged(given=[[]])
    assert report["agreement/given nothing"] >= 0
    assert {score.given for score in report.scores} == {0}
    report = mvkit.evaluate(model("poe").eval(), rows(20), ["agreement"])
    assert report.notes == ("agreement: no labels: extra['label'] is not in the data",)


def test_spread_is_beside_that_of_the_posterior():
    made = model("poe").eval()
    batch = labelled(60, missing=False)
    mvkit.fit_sampler(made, batch, GMM(components=2, conditional=True))
    report = mvkit.evaluate(made, batch, ["diversity"], sampler="gmm", progress=False)
    own, plain = (
        report["diversity/spread, given 1"],
        report["diversity/spread of the posterior, given 1"],
    )
    assert report["diversity/spread, of the posterior's"] == pytest.approx(own / plain)
    assert own > 0
    without = mvkit.evaluate(made, batch, ["diversity"], progress=False)
    assert not any("posterior" in score.name for score in without.scores)
    # many draws of rows that are given: the spread that translate has
    draws = made.translate(batch, ["b", "c"], ["a"], n=200, generator=torch.Generator())
    frame = without.frame().set_index("name")["value"]
    for name in ("b", "c"):
        expected = float(draw_distances(draws[name][:40]).mean())
        assert frame[f"spread of {name}, given a"] == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    "options", [{"name": "diversity", "n": 1}, {"name": "diversity", "limit": 0}]
)
def test_options_that_cannot_be(options):
    with pytest.raises(SpecError, match="expected"):
        mvkit.evaluate(model("poe").eval(), rows(8), [options])


def test_rows_that_are_left_out_are_said_to_be():
    metric = {"name": "diversity", "limit": 10}
    report = mvkit.evaluate(model("poe").eval(), rows(30, missing=False), [metric])
    assert report.scores[0].rows == 10
    assert "diversity: 10 of 30 rows, chosen by their contents" in report.notes
