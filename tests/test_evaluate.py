"""evaluate, Report and compare: what they promise whatever the metric."""

import json
import sys

import pytest
import torch
from helpers import NAMES, model, rows

import mvkit
from mvkit import Batch, DataError, Modality, Pipeline, RequestError, UnknownComponent
from mvkit.data.transforms import Standardise
from mvkit.evaluation.metric import Score
from mvkit.evaluation.report import Report

CHEAP = [
    {"name": "likelihood", "n": 8},
    "coherence",
    "probe",
    "clusters",
    "latents",
    "reconstruction",
    "imputation",
]
CHEAP += [{"name": "calibration", "n": 39}, "frechet", "precision_recall", "diversity"]
CHEAP += ["agreement"]


def labelled(b=600, **options):
    batch = rows(b, **options)
    return Batch(batch.data, batch.mask, extra={"label": torch.arange(b) % 3})


def classifiers():
    return {n: lambda x: (x.flatten(1).sum(1) > 1).long() for n in NAMES}


def features():
    return {n: lambda x: x.flatten(1) for n in NAMES}


def measured(made, data, metrics=tuple(CHEAP), **options):
    return mvkit.evaluate(
        made, data, metrics, classifiers=classifiers(), features=features(), **options
    )


@pytest.fixture(scope="module")
def trained():
    return model("mopoe", "mog", private=1).eval()


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "incomplete"])
def test_no_number_depends_on_the_order_or_the_batches(trained, missing):
    """600 rows are more than a block: blocks are filled in an order of the rows' contents."""
    batch = labelled(missing=missing)
    whole = measured(trained, batch)
    assert {score.metric for score in whole.scores} == set(mvkit.available("metric"))
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(5))
    mixed = batch.take(order)
    for data in (
        mixed,
        Pipeline(mixed, batch_size=7),
        [mixed.take(slice(i, i + 90)) for i in range(0, 600, 90)],
    ):
        assert repr(measured(trained, data).scores) == repr(
            whole.scores
        )  # NaN differs from itself


def test_transforms_change_no_number_and_judges_see_the_users_units():
    """Of a model of z, and of the same one of 4 z + 2 with the transform that undoes it."""
    generator = torch.Generator().manual_seed(0)
    z = {
        n: (64 * torch.randn(80, k, generator=generator)).round() / 64
        for n, k in {"a": 3, "b": 2}.items()
    }
    reports = []
    for scale, shift in ((1.0, 0.0), (4.0, 2.0)):
        steps = {
            n: Standardise(mean=(shift,) * k, scale=(scale,) * k, shape=(k,))
            for n, k in {"a": 3, "b": 2}.items()
        }
        made = mvkit.Model(
            {n: Modality(one.shape, transform=[one]) for n, one in steps.items()},
            latent_dim=2,
            seed=0,
        )
        undone = {n: lambda x, scale=scale, shift=shift: (x - shift) / scale for n in z}
        judges = {
            n: lambda x, undo=undo: (undo(x).sum(1) > 0).long() for n, undo in undone.items()
        }
        data = Batch(
            {n: scale * x + shift for n, x in z.items()}, extra={"label": torch.arange(80) % 2}
        )
        reports.append(mvkit.evaluate(made, data, CHEAP, classifiers=judges, features=undone))
    plain, moved = (report.frame()["value"].tolist() for report in reports)
    assert moved == pytest.approx(plain, rel=1e-4, abs=1e-5, nan_ok=True)
    assert {score.metric for score in reports[0].scores} >= {
        "imputation",
        "calibration",
        "coherence",
        "frechet",
    }


def test_elements_in_some_batches_only(trained):
    batch = labelled(40, missing=False)
    batch.data["a"][3, 1] = torch.nan
    whole = measured(trained, batch, ["reconstruction"])
    pieces = [batch.take(slice(20, 40)), batch.take(slice(0, 20))]
    assert repr(measured(trained, pieces, ["reconstruction"]).scores) == repr(whole.scores)


def test_another_seed_draws_other_noise(trained):
    batch = labelled(50)
    one, two = (
        measured(trained, batch, [CHEAP[0]], seed=seed)["likelihood/log p(all)"] for seed in (0, 1)
    )
    assert one != two
    assert one == pytest.approx(two, rel=0.1)


def test_fillers_change_nothing(trained):
    batch = labelled(60)
    spoilt = Batch({n: x.clone() for n, x in batch.data.items()}, batch.mask, extra=batch.extra)
    for i, name in enumerate(NAMES):
        spoilt.data[name][~batch.mask[:, i]] = torch.nan
    assert repr(measured(trained, spoilt).scores) == repr(measured(trained, batch).scores)


def test_what_does_not_fit_is_said_and_the_rest_goes_on():
    made = model("poe", names=("a",))
    report = mvkit.evaluate(made, {"a": torch.randn(30, 3).double()})
    notes = "\n".join(report.notes)
    for note in (
        "coherence: one modality",
        "probe: no labels",
        "clusters: no labels",
        "imputation: one modality",
    ):
        assert note in notes
    assert "frechet: no network" in notes
    fitting = {"likelihood", "latents", "reconstruction", "diversity"}
    assert {score.metric for score in report.scores} == fitting


def test_no_mixture_prior_leaves_kmeans(trained):
    report = measured(model("poe"), labelled(40), ["clusters"])
    assert [score.name for score in report.scores][0] == "k-means, accuracy"
    assert "clusters: the prior is no mixture to assign rows to; k-means only" in report.notes


def test_a_prior_of_rows_has_no_likelihood_and_no_samples():
    made = mvkit.recipes.mmvm({"a": (3,), "b": (2,)}, latent_dim=2, seed=0)
    batch = Batch(
        {"a": torch.randn(30, 3), "b": torch.randn(30, 2)}, extra={"label": torch.arange(30) % 2}
    )
    report = mvkit.evaluate(made, batch, ["likelihood", "coherence"])
    assert (
        "likelihood: the prior depends on the row, so that there is no likelihood" in report.notes
    )
    assert any("no samples: " in note and "fit_sampler" in note for note in report.notes)
    assert report["coherence/given 1"] >= 0


def test_rows_are_chosen_by_their_contents_and_the_report_says_so(trained):
    batch = labelled(60, missing=False)
    report = measured(trained, batch, [{"name": "likelihood", "n": 2, "limit": 10}])
    assert report.scores[0].rows == 10
    assert "likelihood: 10 of 60 rows, chosen by their contents" in report.notes


def test_rows_that_observe_nothing_are_left_out(trained):
    batch = labelled(30)
    batch.mask[4:6] = False
    report = measured(trained, batch, ["latents"])
    assert report.about["rows"] == 28
    assert "2 rows observe nothing and are left out" in report.notes


def test_rows_without_a_label_are_not_scored(trained):
    batch = labelled(60, missing=False)
    batch.extra["label"] = batch.extra["label"].double()
    batch.extra["label"][:20] = torch.nan
    report = measured(trained, batch, ["coherence"])
    assert {score.rows for score in report.scores if score.name == "given 1"} == {40}


def test_train_rows_fit_what_is_fitted(trained):
    report = measured(
        trained, labelled(60, missing=False), ["probe"], train=labelled(90, missing=False, seed=1)
    )
    assert report.scores[0].rows == 60
    assert not report.notes


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (rows(8).take(slice(0, 0)), {}, DataError, "evaluate: data has no rows"),
        ([], {}, DataError, "evaluate: data has no rows"),
        (rows(8), {"train": rows(8).take(slice(0, 0))}, DataError, "evaluate: train has no rows"),
        (
            Batch(rows(8).data, torch.zeros(8, 3, dtype=torch.bool)),
            {},
            DataError,
            "observes nothing in any row",
        ),
        (rows(8), {"metrics": ["coherense"]}, UnknownComponent, "did you mean 'coherence'"),
        (rows(8), {"classifiers": {"z": len}}, RequestError, "unknown modality 'z'"),
        (
            rows(8),
            {"classifiers": "svc"},
            RequestError,
            "classifiers='svc'; expected a dict such as {'a': function}",
        ),
        (
            rows(8),
            {"features": {"a": 3}},
            RequestError,
            "features={'a': 3}; expected a dict such as {'a': function}",
        ),
        (
            rows(8),
            {"metrics": "probe"},
            RequestError,
            r"metrics='probe'; expected a list .* such as \['probe'\]",
        ),
    ],
)
def test_bad_input(trained, data, options, error, message):
    with pytest.raises(error, match=message):
        mvkit.evaluate(trained, data, **{"metrics": ["latents"], **options})


def test_labels_that_are_no_classes(trained):
    batch = rows(8)
    with pytest.raises(mvkit.ShapeError, match=r"extra\['label'\] has shape"):
        mvkit.evaluate(
            trained, Batch(batch.data, batch.mask, extra={"label": torch.rand(8)}), ["probe"]
        )


def test_a_model_that_is_not_finite_is_an_error_that_names_the_row():
    made = model("poe")
    batch = labelled(20, missing=False)
    with torch.no_grad():
        next(made.encoders["b"].parameters())[0, 0] = torch.nan
    with pytest.raises(DataError, match="evaluate: the posterior mean is not finite in row 0"):
        measured(made, batch.take(slice(0, 1)), ["latents"])
    for metric in CHEAP:
        with pytest.raises(DataError, match="is not finite in row"):
            measured(made, batch, [metric])


def test_labels_may_be_arrays_lists_or_batches_of_them(trained):
    batch = labelled(30)
    whole = repr(measured(trained, batch, ["probe"]).scores)
    label = batch.extra["label"]
    for value in (label.numpy(), label.tolist()):
        same = Batch(batch.data, batch.mask, extra={"label": value})
        pieces = [same.take(slice(0, 9)), same.take(slice(9, 30))]
        assert repr(measured(trained, pieces, ["probe"]).scores) == whole


def test_a_package_that_is_not_there_is_named(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    report = measured(trained, labelled(30), ["clusters", "latents"])
    assert (
        "clusters: needs sklearn.cluster, which is not installed: pip install 'mvkit[evaluate]'"
        in report.notes
    )
    assert report.scores


def test_the_model_is_left_as_it_was(trained):
    made = model("poe")
    made.train()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    state = torch.get_rng_state()
    measured(made, labelled(30))
    assert made.training
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_progress_bar_is_silent_unless_asked(trained, capsys):
    measured(trained, labelled(20), ["latents"])
    assert not capsys.readouterr().err
    measured(trained, labelled(20), ["latents"], progress=True)
    assert "latents" in capsys.readouterr().err


REPORT = Report(
    (
        Score("likelihood", "log p(a | b)", -3.25, 0.5, 100, 1),
        Score("probe", "R² & more", float("nan")),
        Score("coherence", "given a", 0.5, 0.1, 10, 1, True),
    ),
    ("clusters: no labels",),
    {"seed": 3, "model": {"name": "model"}, "versions": {"mvkit": "0"}},
)


def test_a_report_in_all_its_forms():
    assert REPORT["likelihood/log p(a | b)"] == -3.25
    with pytest.raises(
        RequestError, match="nothing called 'likelihood/log p'; did you mean 'likelihood/log p"
    ):
        REPORT["likelihood/log p"]
    shown = str(REPORT)
    assert "-3.25" in shown
    assert "note: clusters: no labels" in shown
    assert "1 more in report.frame()" in shown
    assert "given a" not in shown
    frame = REPORT.frame()
    assert list(frame.columns) == ["metric", "name", "value", "error", "rows", "given", "detail"]
    assert len(frame) == 3
    assert "| likelihood | log p(a \\| b) | -3.25 | 0.5 | 100 |" in REPORT.to_markdown()
    latex = REPORT.to_latex()
    assert r"log p(a $\mid$ b) & -3.25 & 0.5 & 100 \\" in latex
    assert r"R$^2$ \& more & -- & -- & 0" in latex
    json.loads(REPORT.to_json(), parse_constant=pytest.fail)
    again = Report.from_json(REPORT.to_json())
    assert repr(again.scores) == repr(REPORT.scores)
    assert (again.notes, again.about) == (REPORT.notes, REPORT.about)
    with pytest.raises(DataError, match=r"expected what Report.to_json writes"):
        Report.from_json("{}")


def test_a_report_keeps_config_seed_and_versions(trained):
    about = measured(trained, labelled(20), ["latents"], seed=4).about
    assert about["model"] == trained.header()
    assert about["seed"] == 4
    assert about["versions"]["torch"] == torch.__version__


def test_compare_shows_mean_and_deviation_over_seeds():
    each = [
        Report((Score("probe", "accuracy", value), Score("probe", "fine", 0.0, detail=True)))
        for value in (1.0, 2.0, 6.0)
    ]
    found = mvkit.compare({"moe": each, "poe": each[0], "none": Report(())})
    assert str(found).splitlines()[1].split() == ["probe", "accuracy", "3", "±", "2.6", "1", "–"]
    assert "fine" not in str(found)
    frame = found.frame()
    row = frame.iloc[0]
    assert (row["mean"], row["runs"]) == (3.0, 3)
    assert row["sd"] == pytest.approx(7**0.5)
    assert r"3 $\pm$ 2.6" in found.to_latex()
    assert "| probe | accuracy | 3 ± 2.6 | 1 | – |" in found.to_markdown()


def test_compare_refuses_what_is_no_report():
    with pytest.raises(RequestError, match="compare: 'poe': got 3; expected a Report"):
        mvkit.compare({"poe": 3})
    with pytest.raises(
        RequestError, match="compare: got list; expected a dict of reports by name, such as"
    ):
        mvkit.compare([Report(())])
    with pytest.raises(RequestError, match="compare: got {}; expected a dict"):
        mvkit.compare({})
