"""Likelihoods of rows that lack a covariate are approximate, and given only where a call says so."""

import math

import pytest
import torch

import mvkit
from mvkit import Batch, Covariate, Model, RequestError

SITES = ("A", "B")
AVERAGE = {"site": Covariate(SITES, missing="average"), "age": Covariate(missing="average")}


def trained(**options):
    model = Model({"a": (3,), "b": (2,)}, latent_dim=2, covariates=AVERAGE, seed=0, **options)
    mvkit.fit(model, rows(40), epochs=1, progress=False)
    return model


def rows(n, lacking=()):
    generator = torch.Generator().manual_seed(1)
    data = {
        "a": torch.randn(n, 3, generator=generator),
        "b": torch.randn(n, 2, generator=generator),
    }
    site = ["AB"[i % 2] for i in range(n)]
    age = [40.0 + i for i in range(n)]
    for name, row in lacking:
        if name == "site":
            site[row] = None
        else:
            age[row] = math.nan
    return Batch(data, covariates={"site": site, "age": age})


@pytest.mark.parametrize("name", ["site", "age"])
@pytest.mark.parametrize(
    "ask",
    [
        lambda model, batch, **options: model.log_likelihood(batch, n=5, **options),
        lambda model, batch, **options: model.log_likelihood(batch, "a", "b", n=5, **options),
        lambda model, batch, **options: model.log_weights(batch, 5, **options),
    ],
)
def test_a_row_that_lacks_one_is_refused_unless_the_call_repeats_it(name, ask):
    model = trained()
    batch = rows(6, [(name, 4)])
    with pytest.raises(
        RequestError, match=f"row 4 lacks the covariate '{name}'.*missing='average'"
    ):
        ask(model, batch)
    assert torch.isfinite(ask(model, batch, missing="average")).all()
    assert torch.isfinite(ask(model, rows(6))).all()


def test_the_approximation_is_the_likelihood_at_the_average_and_others_keep_their_bits():
    model = trained()
    whole, lacking = rows(6), rows(6, [("age", 4)])
    at_mean = rows(6)
    at_mean.extra["age"] = list(whole.extra["age"])
    at_mean.extra["age"][4] = sum(40.0 + i for i in range(40)) / 40
    answers = []
    for batch, options in ((lacking, {"missing": "average"}), (at_mean, {}), (whole, {})):
        generator = torch.Generator().manual_seed(0)
        answers.append(model.log_likelihood(batch, n=20, generator=generator, **options))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-5, atol=1e-5)
    others = [0, 1, 2, 3, 5]
    assert torch.equal(answers[0][others], answers[2][others])
    assert answers[0][4] != answers[2][4]


def test_a_stack_refuses_too():
    model = mvkit.recipes.nexus({"a": (3,), "b": (2,)}, 2, covariates=AVERAGE, seed=0)
    with pytest.raises(RequestError, match="row 1 lacks the covariate 'site'"):
        model.log_likelihood(rows(4, [("site", 1)]), n=3)


def test_an_evaluation_leaves_such_rows_out_and_says_so_or_scores_them():
    model = trained()
    lacking = rows(30, [("age", 4), ("site", 4), ("site", 9)])
    metric = {"name": "likelihood", "n": 10}
    report = mvkit.evaluate(model, lacking, [metric])
    assert any("2 rows lack a covariate and are left out" in note for note in report.notes)
    repeated = mvkit.evaluate(model, lacking, [{**metric, "missing": "average"}])
    assert not any("lack a covariate" in note for note in repeated.notes)
    kept = [i for i in range(30) if i not in (4, 9)]
    whole = mvkit.evaluate(model, lacking.take(kept), [metric])
    title = "log p(all) given the covariates"
    scores = {}
    for key, answer in (("left out", report), ("alone", whole), ("average", repeated)):
        scores[key] = next(s.value for s in answer.scores if s.name == title)
    assert abs(scores["left out"] - scores["alone"]) < 1.0
    assert scores["average"] != scores["left out"]


def test_other_words_are_refused():
    with pytest.raises(RequestError, match="missing='mean'; expected 'error' or 'average'"):
        trained().log_likelihood(rows(3), n=2, missing="mean")
