"""The report page: verdicts in words, tables by names of features, figures for every kind of data."""

import html
import re

import numpy as np
import pytest
import torch
from screens import browser, set_width

import mvkit
from mvkit import Batch, Modality, MultimodalDataset
from mvkit.apps.html_report import look, render
from mvkit.apps.pages import Picture, page_template, style_sheet
from mvkit.apps.report_figures import fullest_row, pictures
from mvkit.apps.report_tables import SHOWN, Cell, PageTable, number, signed
from mvkit.apps.report_verdicts import staying
from mvkit.data.datasets.catalogue import Splits
from mvkit.evaluation.metric import Score
from mvkit.evaluation.report import Report
from mvkit.training.history import History

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
QUESTIONS = ["learn", "latents", "intervals", "clusters", "modality"]
LINEAR = {"encoder": "linear", "decoder": "linear"}
MODALITIES = {
    "scan": Modality((1, 4, 4), {"name": "normal", "scale": 0.1}, **LINEAR),
    "blood": Modality((3,), features=("crp", "<b>iron</b>", "noise"), **LINEAR),
    "counts": Modality((2,), "poisson", features=("visits", "falls"), **LINEAR),
    "answers": Modality((2,), "bernoulli", features=("smokes", "drinks"), **LINEAR),
    "site": Modality((1, 3), "categorical", **LINEAR),
}


def data(b=120, gaps=True, seed=0):
    """Rows in which all but `noise` follow one number."""
    random = np.random.default_rng(seed)
    t = random.normal(size=b)
    blood = np.stack([t, -t, random.normal(size=b)], 1) + 0.1 * random.normal(size=(b, 3))
    values = {
        "scan": np.clip(0.5 + 0.2 * t[:, None] + 0.02 * random.normal(size=(b, 16)), 0, 1).reshape(
            b, 1, 4, 4
        ),
        "blood": blood,
        "counts": random.poisson(np.exp(1 + t[:, None] * [0.8, 0.1])),
        "answers": random.uniform(size=(b, 2)) < 1 / (1 + np.exp(-3 * t[:, None])),
        "site": np.eye(3)[np.digitize(t, [-0.5, 0.5])][:, None],
    }
    tensors = {name: torch.as_tensor(x, dtype=torch.float64) for name, x in values.items()}
    mask = torch.ones(b, 5, dtype=torch.bool)
    if gaps:
        mask = torch.as_tensor(random.uniform(size=(b, 5)) > 0.3)
        mask[0] = torch.tensor([False, False, True, False, False])
        mask[1:7, 4] = False
        mask[~mask.any(1), 2] = True
        mask[7] = True
        tensors["blood"][10:20, 0] = torch.nan
    label = torch.as_tensor(np.digitize(t, [0.0]))
    return MultimodalDataset(Batch(tensors, mask, extra={"label": label}), MODALITIES)


@pytest.fixture(scope="module")
def trained():
    """A model of pictures, numbers, counts, bits and categories, and how it was trained."""
    prior = {"name": "mog", "components": 3, "covariance": "tied"}
    options = {"prior": prior, "schedule": "warmup_then_mixture"}
    model = mvkit.Model(MODALITIES, latent_dim=2, **options, seed=0)
    rows = data(400, gaps=False, seed=1)
    history = mvkit.fit(model, rows, epochs=30, batch_size=64, lr=0.02, seed=0)
    return model.double().eval(), history


def looked(model, rows, history=None, report=None):
    return look(model, rows, history or History(), report or Report(()), 0)


@pytest.fixture(scope="module")
def seen(trained):
    model, history = trained
    return looked(model, data(), history)


def test_the_questions_are_answered_in_words(seen):
    words, _ = seen
    assert len(words) == len(QUESTIONS)
    for verdict, question in zip(words, QUESTIONS, strict=True):
        assert question in verdict.question.lower()
        assert verdict.answer
    learnt, latents, intervals, clusters, modality = words
    assert learnt.answer.startswith(("Yes", "In part"))
    assert "explain of the variance" in " ".join(learnt.sentences)
    assert " of 2" in latents.answer
    assert intervals.answer == "Not measured"
    assert " of 3 have rows" in clusters.answer
    assert any(text.startswith("Of blood, ") for text in modality.sentences)


def test_explained_shares_are_those_of_a_loop(trained):
    from mvkit.evaluation.by_feature import explained

    model, rows = trained[0], trained[0].conform(data())
    shares = explained(model, rows)
    both = rows.observed[:, 1] & rows.observed[:, 0]
    part = rows.take(both.nonzero()[:, 0])
    said = model.translate(part, "blood", "scan", latent="mean")["blood"][0].detach().numpy()
    x, known = part.data["blood"].numpy(), part.present("blood").numpy()
    error = spread = 0.0
    for k in range(3):
        column = x[known[:, k], k]
        error += np.square(column - said[known[:, k], k]).sum()
        spread += np.square(column - column.mean()).sum()
    assert shares["scan"]["blood"] == pytest.approx(1 - error / spread, rel=1e-9)
    assert set(shares) == {*MODALITIES, "all others"}


def test_errors_of_features_are_those_of_a_loop(trained):
    from mvkit.evaluation.by_feature import feature_errors

    model, rows = trained[0], trained[0].conform(data())
    others = [name for name in MODALITIES if name != "blood"]
    kept = rows.observed[:, 1] & rows.observed[:, [0, 2, 3, 4]].any(1)
    part = rows.take(kept.nonzero()[:, 0])
    said = model.translate(part, "blood", others, latent="mean")["blood"][0].detach().numpy()
    errors = {error.feature: error for error in feature_errors(model, rows, "blood")}
    for k, feature in enumerate(MODALITIES["blood"].features):
        known = part.present("blood")[:, k].numpy()
        x = part.data["blood"][:, k].numpy()[known]
        assert errors[feature].cells == known.sum()
        assert errors[feature].error == pytest.approx(
            np.sqrt(np.mean((x - said[known, k]) ** 2)), rel=1e-9
        )
        assert errors[feature].guess == pytest.approx(x.std(), rel=1e-9)
    assert list(errors)[0] == "noise"  # nothing is known of it: the largest error
    (site,) = feature_errors(model, rows, "site")
    assert site.measure == "share wrong"
    assert 0 <= site.error <= site.guess + 0.1


def test_tables_have_names_and_the_largest_errors_first(seen):
    _, tables = seen
    errors = tables["Errors by feature"]
    gains = [float(line[1].text.split()[0].replace("−", "-")) for line in errors.lines]
    assert gains == sorted(gains)
    features = {line[0].text for line in errors.lines}
    assert features == {
        "crp",
        "<b>iron</b>",
        "noise",
        "visits",
        "falls",
        "smokes",
        "drinks",
        "site",
    }
    example = {line[0].text: line for line in tables["One test row, imputed"].lines}
    assert set(example) == features
    row = data().batch.data
    assert example["crp"][1].text == number(float(row["blood"][7, 0]))  # the row that observes all
    assert example["visits"][1].text == number(float(row["counts"][7, 0]))
    real = "012"[int(row["site"][7, 0].argmax())]
    assert example["site"][1].text == real


def test_heat_maps_show_what_latents_and_clusters_change(trained, seen):
    model, _ = trained
    _, tables = seen
    effects = tables["What latents move"]
    largest = [
        max(abs(float(cell.text.replace("−", "-"))) for cell in line[1:]) for line in effects.lines
    ]
    assert largest == sorted(largest, reverse=True)
    assert largest[0] > 1
    profiles = tables["What clusters are like"]
    rows = model.conform(data())
    clusters = model.clusters(rows)
    counts = torch.bincount(clusters, minlength=3)
    first = int(counts.argmax())
    assert profiles.titles[1] == f"{first} ({int(counts[first])} rows)"
    known = rows.observed[:, 1]
    x = rows.data["blood"][:, 1]
    difference = (x[known & (clusters == first)].mean() - x[known].mean()) / x[known].std(
        correction=0
    )
    (line,) = (line for line in profiles.lines if line[0].text == "<b>iron</b>")
    assert line[1].text == signed(float(difference)).text


def test_rows_that_are_shown_observe_most():
    rows = mvkit.Model(MODALITIES, latent_dim=1, seed=0).conform(data())
    assert fullest_row(rows) == 7


def test_staying_in_a_cluster_is_counted(trained):
    model, rows = trained[0], trained[0].conform(data())
    clusters = model.clusters(rows)
    kept = rows.observed[:, 0] & (rows.observed.sum(1) > 1)
    same = [
        int(model.clusters(rows.take([i]).hide(list(MODALITIES)[1:]))[0] == clusters[i])
        for i in kept.nonzero()[:, 0].tolist()
    ]
    assert staying(model, rows, clusters)["scan"] == pytest.approx(np.mean(same))


def held(level, shares):
    names = [f"{name}, {level}% intervals hold" for name in shares]
    return Report(
        tuple(Score("calibration", n, s) for n, s in zip(names, shares.values(), strict=True))
    )


@pytest.mark.parametrize(
    ("shares", "answer", "mark"),
    [
        ({"blood": 0.81, "scan": 0.78}, "Yes", "good"),
        ({"blood": 0.81, "scan": 0.7}, "Too narrow: scan", "fair"),
        ({"blood": 0.3, "scan": 0.9}, "Too narrow: blood", "poor"),
        ({"blood": 0.99, "scan": 0.8}, "Too wide: blood", "fair"),
    ],
)
def test_intervals_are_judged(trained, shares, answer, mark):
    words, _ = looked(trained[0], data(), report=held(80, shares))
    assert (words[2].answer, words[2].mark) == (answer, mark)


def test_a_model_that_learnt_nothing_is_said_to_have_learnt_nothing():
    model = mvkit.Model(MODALITIES, latent_dim=2, seed=0).double().eval()
    with torch.no_grad():
        for encoder in model.encoders.values():
            for parameter in encoder.parameters():
                parameter.zero_()
    words, tables = looked(model, data())
    assert words[0].mark == "poor"
    assert (words[1].answer, words[1].mark) == ("None", "poor")
    assert tables["What latents move"] == "no latent varies over rows"
    assert words[3].answer == "The prior has no clusters"
    assert "What clusters are like" not in tables


def test_one_modality_and_one_cluster_have_answers():
    one = mvkit.Model(
        {"a": (3,)}, latent_dim=1, prior={"name": "mog", "components": 2}, seed=0
    ).eval()
    rows = MultimodalDataset.from_arrays({"a": torch.randn(30, 3)})
    words, tables = looked(one, rows)
    assert words[4].answer == "There is only a"
    assert "What each modality tells of the others" not in tables
    assert "Reconstructed" in tables["Errors by feature"].about


@pytest.mark.parametrize("b", [1, 2])
def test_few_rows_are_no_error(trained, b):
    words, _ = looked(trained[0], data(b, gaps=False))
    assert len(words) == len(QUESTIONS)


def test_a_stack_has_a_page():
    from mvkit import recipes

    stack = recipes.nexus({"a": (4,), "b": (1, 4, 4)}, latent_dim=2, seed=0).eval()
    values = {"a": torch.randn(20, 4), "b": torch.rand(20, 1, 4, 4)}
    words, tables = looked(stack, MultimodalDataset.from_arrays(values))
    assert len(words) == len(QUESTIONS)
    assert isinstance(tables["Errors by feature"], PageTable)


def test_covariates_are_those_of_the_rows():
    random = np.random.default_rng(0)
    site = random.integers(0, 2, 60)
    x = (5.0 * site)[:, None] + 0.1 * random.normal(size=(60, 2))
    batch = Batch(
        {"a": torch.as_tensor(x), "b": torch.as_tensor(x[:, :1])},
        covariates={"site": [f"s{i}" for i in site]},
    )
    model = mvkit.Model(
        {"a": (2,), "b": (1,)}, latent_dim=1, covariates={"site": ["s0", "s1"]}, seed=0
    )
    rows = MultimodalDataset(batch, model.modalities)
    words, tables = looked(model.double().eval(), rows)
    assert isinstance(tables["What latents move"], PageTable | str)
    assert len(words) == len(QUESTIONS)


def page(trained, rows):
    model, history = trained
    splits = Splits(MODALITIES, rows, rows, rows)
    report = held(80, {"blood": 0.81})
    figures = pictures(model, splits, history.rows, report, 0)
    words, tables = looked(model, rows, history, report)
    return render("<run>", report, figures, tables, words)


@pytest.fixture(scope="module")
def text(trained):
    return page(trained, data())


def test_a_page_of_all_kinds_of_data(text):
    assert len(text) < 3e6
    assert not re.findall(r"""(?:src|href|srcset)=["'](?!data:)""", text)
    assert "url(" not in text
    assert "<script" not in text
    assert "<b>iron</b>" not in text
    assert "&lt;b&gt;iron&lt;/b&gt;" in text
    verdicts_at, figures_at = text.index("Did it learn?"), text.index("<picture>")
    assert verdicts_at < text.index("Which modality carries what?") < figures_at
    assert text.count("<picture>") == text.count('media="(prefers-color-scheme: dark)"')
    for section in ("Modalities", "Latents", "Clusters", "Training"):
        assert f"<h2>{section}</h2>" in text


def test_no_figure_draws_features_as_a_line(trained):
    """Flat modalities are in tables; figures are of the pictures alone."""
    rows = data()
    figures = pictures(trained[0], Splits(MODALITIES, rows, rows, rows), [], Report(()), 0)
    drawn = [title for title, figure in figures.items() if isinstance(figure, Picture)]
    assert not [title for title in drawn if "blood" in title or "site" in title]
    assert "Pictures imputed from all others, with 80% intervals" in drawn
    assert figures["Loss and bound by epoch"] == "losses: the history is empty; train first"


def test_a_long_table_is_folded():
    lines = tuple((Cell(f"feature {i}"), Cell(str(i))) for i in range(40))
    table = PageTable(("feature", "error"), lines, "errors")
    text = render("run", Report(()), {}, {"Errors": table})
    assert f"<summary>{40 - SHOWN} more</summary>" in text
    assert 'class="number"' in text


def test_one_style_sheet_for_all_pages():
    style = style_sheet()
    assert "prefers-color-scheme: dark" in style
    assert style.count("{") == style.count("}")
    for name in ("report.html.jinja", "impute.html.jinja"):
        template = page_template(name)
        assert template.name == name
    assert html.unescape(style) == style


def screen(page, width, script):
    """What a script says in a browser of a width."""
    driver = browser()
    try:
        set_width(driver, width)
        driver.get(page.as_uri())
        return driver.execute_script(script)
    finally:
        driver.quit()


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_never_scrolls_sideways(text, tmp_path, width):
    file = tmp_path / "page.html"
    file.write_text(text)
    script = """
    const root = document.documentElement;
    const small = [...document.querySelectorAll('td, th, p, li, figcaption')]
      .filter(e => e.offsetParent && parseFloat(getComputedStyle(e).fontSize) < 13).length;
    const images = [...document.images].map(i => i.clientWidth);
    return [root.scrollWidth - root.clientWidth, small, Math.min(...images), window.innerWidth];
    """
    over, small, narrowest, inner = screen(file, width, script)
    assert over <= 0
    assert small == 0
    assert narrowest >= 350
    assert inner == width
