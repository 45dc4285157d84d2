"""Metrics of single cells against loops and scikit-learn."""

import importlib.util
import math

import numpy as np
import pytest
import torch
from mvkit_omics.metrics import SCIB, ProteinImputation, compared
from question_models import PROTEINS, cells, model_of

import mvkit
from mvkit import Batch, Modality, Model
from mvkit.testing import check_component

NONE = importlib.util.find_spec("scib_metrics") is None
needs_scib = pytest.mark.skipif(NONE, reason="scib-metrics is not installed")


def pearson(x, y):
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return top / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def ranks(x):
    """Mean ranks, ties shared."""
    return [sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x]


@torch.no_grad()
@pytest.mark.parametrize("log1p", [True, False])
def test_imputed_proteins_are_scored_feature_by_feature(log1p):
    model = model_of(aggregator="mopoe")
    rows = cells(30)
    rows.data["protein"][4, 1] = torch.nan  # one count is missing
    report = mvkit.evaluate(
        model, rows, [ProteinImputation(modality="protein", log1p=log1p)], progress=False
    )
    values = {score.name: score.value for score in report.scores}
    both = [i for i in range(30) if rows.mask[i].all()]
    predicted = model.translate(rows.take(both), "protein", "rna", latent="mean")["protein"][
        0
    ].tolist()
    means = {"Pearson": [], "Spearman": [], "RMSE": []}
    for f, name in enumerate(PROTEINS):
        kept = [k for k, i in enumerate(both) if not (i == 4 and f == 1)]
        x = [predicted[k][f] for k in kept]
        y = [float(rows.data["protein"][both[k], f]) for k in kept]
        means["Spearman"].append(pearson(ranks(x), ranks(y)))
        if log1p:
            x, y = [math.log1p(v) for v in x], [math.log1p(v) for v in y]
        means["Pearson"].append(pearson(x, y))
        means["RMSE"].append(
            math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / len(x))
        )
        for key, column in means.items():
            assert values[f"protein, {key} of {name}"] == pytest.approx(column[-1], abs=1e-9)
    for key, column in means.items():
        assert values[f"protein, {key}"] == pytest.approx(sum(column) / 3, abs=1e-9)
    assert {score.rows for score in report.scores} == {len(both)}


def test_features_that_do_not_vary_have_no_correlation():
    scores = compared(
        np.ones((3, 2)), np.array([[1.0, 2.0], [2.0, 2.0], [np.nan, 2.0]]), log1p=False
    )
    assert np.isnan(scores["Pearson"]).all()
    assert scores["RMSE"].tolist() == [math.sqrt(0.5), 1.0]


def test_every_modality_is_imputed_from_the_others():
    report = mvkit.evaluate(
        model_of(), cells(), ["mvkit-omics/protein_imputation"], progress=False
    )
    titles = [score.name for score in report.scores if not score.detail]
    assert titles == [
        f"{name}, {key}" for name in ("rna", "protein") for key in ("Pearson", "Spearman", "RMSE")
    ]


@pytest.mark.parametrize(
    ("metric", "note"),
    [
        (
            ProteinImputation(modality="protien"),
            "mvkit-omics/protein_imputation: unknown modality 'protien'; did you mean 'protein'?",
        ),
        (
            ProteinImputation(modality="rna", given=("rna",)),
            "mvkit-omics/protein_imputation: 'rna' is imputed, and given",
        ),
    ],
)
def test_what_cannot_be_scored_is_noted(metric, note):
    report = mvkit.evaluate(model_of(), cells(), [metric], progress=False)
    assert note in report.notes
    assert not report.scores


def test_one_modality_is_imputed_from_nothing():
    model = Model({"rna": Modality((3,), "poisson")}, latent_dim=1, seed=0)
    report = mvkit.evaluate(
        model, {"rna": torch.ones(4, 3)}, ["mvkit-omics/protein_imputation"], progress=False
    )
    note = "mvkit-omics/protein_imputation: one modality: there is no other to impute it from"
    assert list(report.notes) == [note]


@pytest.mark.parametrize("name", ["protein_imputation", "scib"])
def test_metrics_keep_the_rules_of_their_kind(name):
    check_component("metric", f"mvkit-omics/{name}")


@pytest.mark.skipif(not NONE, reason="scib-metrics is installed")
def test_without_scib_metrics_it_is_said_what_to_install():
    report = mvkit.evaluate(model_of(), cells(), [SCIB()], progress=False)
    assert (
        "mvkit-omics/scib: needs scib-metrics, which is not installed: pip install 'mvkit-omics[metrics]'"
        in report.notes
    )


def separated(n=120, *, mixed=True):
    """A model whose latent is x; three kinds far apart, in batches that mix or do not."""
    model = Model(
        {"x": Modality((2,), encoder="linear", decoder="linear")},
        latent_dim=2,
        aggregator="moe",
        seed=0,
        covariates={"batch": mvkit.Covariate(("p", "q"), into=("decoders",))},
    )
    with torch.no_grad():
        encoder = next(m for m in model.encoders["x"].modules() if isinstance(m, torch.nn.Linear))
        encoder.weight.zero_()
        encoder.weight[:2] = torch.eye(2)
        encoder.bias.zero_()
    generator = torch.Generator().manual_seed(0)
    kind = torch.arange(n) % 3
    batch = (torch.arange(n) // 3) % 2
    x = (
        torch.randn(n, 2, generator=generator)
        + 30.0 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[kind]
    )
    if not mixed:
        x[:, 0] += 8.0 * batch
    words = ["pq"[int(i)] for i in batch]
    return model, Batch({"x": x}, extra={"label": kind}, covariates={"batch": words})


@needs_scib
def test_scib_tells_mixed_batches_from_separate_ones():
    reports = {}
    for mixed in (True, False):
        model, rows = separated(mixed=mixed)
        report = mvkit.evaluate(model, rows, [SCIB(neighbours=15)], progress=False)
        reports[mixed] = {score.name: score.value for score in report.scores}
    titles = [
        "NMI, k-means",
        "ARI, k-means",
        "silhouette of labels",
        "cLISI",
        "iLISI",
        "silhouette of batches",
        "kBET",
    ]
    assert list(reports[True]) == titles
    assert reports[True]["NMI, k-means"] == pytest.approx(1.0)
    assert reports[True]["ARI, k-means"] == pytest.approx(1.0)
    assert reports[True]["cLISI"] == pytest.approx(1.0, abs=1e-3)
    assert reports[True]["iLISI"] > 0.6 > 0.1 > reports[False]["iLISI"]
    assert reports[True]["silhouette of batches"] > 0.9 > reports[False]["silhouette of batches"]
    assert reports[True]["kBET"] > 0.7 > 0.3 > reports[False]["kBET"]
    from sklearn.metrics import silhouette_score

    model, rows = separated()
    expected = (silhouette_score(model.encode(rows).numpy(), rows.extra["label"].numpy()) + 1) / 2
    assert reports[True]["silhouette of labels"] == pytest.approx(expected, abs=1e-5)


@needs_scib
def test_scib_without_labels_says_how_batches_mix():
    model, rows = separated()
    del rows.extra["label"]
    report = mvkit.evaluate(model, rows, [SCIB(neighbours=15)], progress=False)
    assert [score.name for score in report.scores] == ["iLISI"]


@needs_scib
def test_scib_without_batches_says_how_kinds_are_kept():
    model, rows = separated()
    report = mvkit.evaluate(model, rows, [SCIB(neighbours=15, batch="donor")], progress=False)
    assert [score.name for score in report.scores] == [
        "NMI, k-means",
        "ARI, k-means",
        "silhouette of labels",
        "cLISI",
    ]
    assert "scib: no batches: 'donor' is neither a covariate nor in extra" in report.notes
