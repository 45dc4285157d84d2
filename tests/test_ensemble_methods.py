"""Every method of a model that an ensemble has, or says that it has not; and reports of one."""

import inspect
import math

import pytest
import torch
from helpers import model, rows

import mvkit
from mvkit import Batch, DataError, Ensemble, RequestError, ShapeError
from mvkit.testing import noise

# of a model, but not of a mixture of them
OF_ONE_MODEL = {
    *("add_level", "adopt", "adopted_objectives", "build_objective", "changes", "note_new"),
    *("experts", "joint_posterior", "terms", "likelihood_weights", "trained", "exported_means"),
    *("conditional_posteriors", "posterior_given", "prior_at", "prior_context", "prior_draws"),
    *("generate", "in_units", "row_context", "weight_blocks", "predictive_blocks"),
    *("conditional_sampler", "sampled_given", "sampler_header", "sampler_sizes", "rows_header"),
    *("responsibilities", "trains_modules_of", "current_modalities"),
}


def quiet(site, shape, dtype, device):
    return torch.full(shape, 0.5 if site.startswith("choice") else 0.0, dtype=dtype, device=device)


def given_rows(b=10, seed=0):
    batch = rows(b, seed=seed)
    covariates = {"age": (torch.arange(b) % 10).double(), "site": ["AB"[i % 2] for i in range(b)]}
    extra = {"label": torch.arange(b) % 2}
    return Batch(
        batch.data, batch.mask, extra=extra, covariates=covariates, row_weight=torch.arange(b) % 3
    )


def member(seed, prior="standard"):
    """A model with a mixture posterior, private latents and covariates, that saw its rows."""
    covariates = {"age": mvkit.Covariate(), "site": ("A", "B")}
    own = model("mopoe", prior, private=1, covariates=covariates, seed=seed)
    mvkit.fit(own, given_rows(), epochs=1, batch_size=5, seed=seed, device="cpu")
    return own


@pytest.fixture(scope="module")
def ensemble():
    return Ensemble([member(seed) for seed in range(3)])


@pytest.fixture(scope="module")
def copies():
    own = member(1)
    return own, Ensemble([own, own])


METRICS = ["reconstruction", "imputation", "likelihood", "calibration", "coherence"]


def test_every_public_method_of_a_model_is_served_or_listed():
    methods = set()
    for name, value in inspect.getmembers(mvkit.Model):
        inherited = hasattr(torch.nn.Module, name)
        if callable(value) and not name.startswith("_") and not inherited:
            methods.add(name)
    assert not {name for name in methods if not hasattr(Ensemble, name)} - OF_ONE_MODEL
    assert not {name for name in OF_ONE_MODEL if hasattr(Ensemble, name)}


def test_copies_of_one_model_say_what_the_model_says(copies):
    own, both = copies
    batch = given_rows()
    for codes in both.encode(batch):
        assert torch.equal(codes, own.encode(batch))
    with noise(quiet):
        log_px = both.log_likelihood(batch, n=4)
        torch.testing.assert_close(log_px, own.log_likelihood(batch, n=4), rtol=0, atol=1e-12)
        given = both.log_likelihood(batch, "a", "b", n=4, empty="prior")
        alone = own.log_likelihood(batch, "a", "b", n=4, empty="prior")
        torch.testing.assert_close(given, alone, rtol=0, atol=1e-12)
        log_w = both.log_weights(batch, 4)
        torch.testing.assert_close(
            log_w.logsumexp(0) - math.log(8),
            own.log_weights(batch, 4).logsumexp(0) - math.log(4),
            rtol=0,
            atol=1e-12,
        )
        drawn = both.translate(batch, latent="mean")
        expected = own.translate(batch, latent="mean")
    for name, x in drawn.items():
        assert x.shape[0] == 2
        torch.testing.assert_close(x.mean(0, keepdim=True), expected[name], rtol=0, atol=1e-12)
    for name, w in both.private(batch).items():
        assert torch.equal(w[0], own.private(batch)[name])
        assert torch.equal(w[1], own.private(batch)[name])


def test_reports_of_copies_are_those_of_the_model(copies):
    own, both = copies
    with noise(quiet):
        report = mvkit.evaluate(both, given_rows(40), METRICS)
        alone = mvkit.evaluate(own, given_rows(40), METRICS)
    assert [score.name for score in report.scores] == [score.name for score in alone.scores]
    assert len(report.scores) > 20
    for score, expected in zip(report.scores, alone.scores):
        assert score.value == pytest.approx(expected.value, rel=1e-9, abs=1e-12, nan_ok=True), (
            score
        )
        assert score.rows == expected.rows
    assert report.notes == alone.notes


def test_imputations_are_measured_by_the_mean_over_models(ensemble):
    batch = rows(30, missing=False)
    covariates = {
        "age": (torch.arange(30) % 10).double(),
        "site": ["AB"[i % 2] for i in range(30)],
    }
    batch = Batch(batch.data, covariates=covariates)
    with noise(quiet):
        report = mvkit.evaluate(ensemble, batch, ["imputation"])
        total = 0.0
        for own in ensemble.members:
            total = (
                total + own.translate(batch, "a", ["b", "c"], latent="mean", units="model")["a"]
            )
    error = (total[0] / 3 - batch.data["a"]).square().mean()
    assert report["imputation/a, MSE"] == pytest.approx(float(error), rel=1e-9)


@pytest.mark.parametrize("prior", ["standard", "mog"])
def test_likelihoods_are_measured_of_the_mean_density(prior):
    both = Ensemble([member(seed, prior) for seed in (0, 1)])
    batch = given_rows(20)
    metric = {"name": "likelihood", "n": 5}
    with noise(quiet):
        report = mvkit.evaluate(both, batch, [metric])
        every = [own.log_likelihood(batch, n=5) for own in both.members]
    total = 0.0
    for first, second in zip(*every):
        total += math.log((math.exp(first) + math.exp(second)) / 2)
    key = "likelihood/log p(all) given the covariates"
    assert report[key] == pytest.approx(total / len(batch), rel=1e-9)
    complete = batch.take(batch.observed[:, 0] & batch.observed[:, 1:].any(1))
    key = "likelihood/log p(a | b, c) given the covariates"
    with noise(quiet):
        scored = [own.log_likelihood(complete, "a", ["b", "c"], n=5) for own in both.members]
    densities = torch.stack(scored).exp().mean(0)
    assert report[key] == pytest.approx(float(densities.log().mean()), rel=1e-9)


def test_importance_weights_are_those_of_the_models_in_turn(ensemble):
    batch = given_rows()
    log_w = ensemble.log_weights(batch, 4, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    for i, own in enumerate(ensemble.members):
        assert torch.equal(log_w[i::3], own.log_weights(batch, 4, generator=generator))


def test_few_draws_come_from_all_models(ensemble):
    from mvkit.evaluation.metric import EvaluationContext

    context = EvaluationContext(ensemble, ensemble.conform(given_rows(6)))
    for n in (1, 2, 4):
        with noise(quiet):
            values = context.translate(context.rows, ["a"], ["a", "b", "c"], n=n)["a"]
            drawn = ensemble.translate(context.rows, "a", n=2, units="model")["a"]
        assert values.shape == (n, 6, 3)
        for i in range(6):
            for k in range(n):
                assert torch.equal(values[k, i], drawn[(i + k) % 3, i])


def test_latents_are_decoded_by_their_own_model(ensemble):
    batch = given_rows()
    stated = {"age": torch.arange(10).double(), "site": ["AB"[i % 2] for i in range(10)]}
    z, w = ensemble.encode(batch), ensemble.private(batch)
    decoded = ensemble.decode(z, w, covariates=stated)
    for i, own in enumerate(ensemble.members):
        latents = {name: value[i] for name, value in w.items()}
        expected = own.decode(z[i], latents, covariates=stated)
        for name, x in expected.items():
            assert torch.equal(decoded[name][i], x)
    with pytest.raises(ShapeError, match=r"decode: z has shape \(2, 10, 2\); expected \(3, …\)"):
        ensemble.decode(z[:2])


def test_latents_are_those_of_each_model(ensemble):
    batch = given_rows()
    subsets = ensemble.encode_subsets(batch, iter(["a", ("b", "c")]), empty="prior")
    assert list(subsets) == [("a",), ("b", "c")]
    posteriors = ensemble.posterior(batch)
    for i, own in enumerate(ensemble.members):
        alone = own.encode_subsets(batch, ["a"], empty="prior")
        assert torch.equal(subsets["a",][i], alone["a",])
        assert torch.equal(posteriors[i].mean, own.posterior(batch).mean)
    none = ensemble.encode(batch, (), empty="prior")
    assert none.shape == (3, 10, 2)


def test_relevance_is_that_of_each_model():
    shapes = {"a": mvkit.Modality((3,), decoder="ard"), "b": mvkit.Modality((2,), decoder="ard")}
    both = Ensemble([mvkit.Model(shapes, latent_dim=2, seed=seed) for seed in (0, 1)])
    assert torch.equal(both.relevance()[1], both.members[1].relevance())
    bottom = {name: mvkit.Modality(m.shape, private_dim=2) for name, m in shapes.items()}
    levels = [
        mvkit.Model(bottom, latent_dim=0, seed=0),
        mvkit.Model(dict.fromkeys(shapes, (2,)), latent_dim=2, seed=0),
    ]
    with pytest.raises(RequestError, match="relevance: a Stack has no decoder that tells"):
        Ensemble([mvkit.Stack(levels)]).relevance()


def test_an_ensemble_is_not_trained_as_a_whole(ensemble):
    with pytest.raises(RequestError, match="loss: an ensemble is not trained as a whole"):
        ensemble.loss(given_rows())
    with pytest.raises(RequestError, match="loss: an ensemble is not trained as a whole"):
        ensemble(given_rows())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("embed", (given_rows(),)), ("fit", (given_rows(),)), ("fit_sampler", (given_rows(), "gmm"))],
)
def test_functions_of_one_model_ask_for_a_member(ensemble, name, arguments):
    message = rf"{name}: got Ensemble as its model, which is 3 of them.*take one of its \.members"
    with pytest.raises(RequestError, match=message):
        getattr(mvkit, name)(ensemble, *arguments)


def test_metrics_of_latents_ask_for_a_member(ensemble):
    metrics = ["probe", "clusters", "latents", "reconstruction"]
    report = mvkit.evaluate(ensemble, given_rows(40), metrics)
    assert {score.metric for score in report.scores} == {"reconstruction"}
    for metric in metrics[:3]:
        note = f"{metric}: latents of an ensemble are those of each of its 3 models"
        assert any(line.startswith(note) for line in report.notes), report.notes


def test_widths_of_latents_are_asked_of_a_member(ensemble):
    for name in ("latent_dim", "n_clusters"):
        with pytest.raises(
            RequestError, match="latents of an ensemble are those of each of its 3"
        ):
            getattr(ensemble, name)


@pytest.mark.filterwarnings("ignore")  # of torch.export itself
def test_codes_of_all_models_are_exported():
    shapes = {"a": (3,), "b": (2,)}
    both = Ensemble([mvkit.Model(shapes, latent_dim=2, seed=seed) for seed in (0, 1)]).eval()

    class Encode(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.models = both

        def forward(self, a, b):
            return self.models.encode({"a": a, "b": b})

    values = torch.randn(4, 3), torch.randn(4, 2)
    program = torch.export.export(Encode(), values, strict=False).module()
    torch.testing.assert_close(program(*values), both.encode(dict(zip("ab", values))))


def test_samplers_are_looked_for_in_every_model():
    models = [model(seed=seed) for seed in (0, 1)]
    both = Ensemble(models)
    complete = rows(40, missing=False)
    mvkit.fit_sampler(models[0], complete, "gmm")
    assert both.samplers == ()
    with pytest.raises(RequestError, match="evaluate: sampler 'gmm' is not fitted yet|was fitted"):
        mvkit.evaluate(both, complete, ["reconstruction"], sampler="gmm")
    mvkit.fit_sampler(models[1], complete, "gmm")
    assert both.samplers == ("gmm",)


def test_two_levels_and_single_precision():
    shapes = {"a": (3,), "b": (2,)}

    def stack(seed):
        private = {name: mvkit.Modality(shape, private_dim=2) for name, shape in shapes.items()}
        bottom = mvkit.Model(private, latent_dim=0, seed=seed)
        top = mvkit.Model(dict.fromkeys(shapes, (2,)), latent_dim=2, seed=seed)
        return mvkit.Stack([bottom, top])

    both = Ensemble([stack(0), stack(1)])
    batch = {"a": torch.randn(30, 3), "b": torch.randn(30, 2)}
    batch["a"][0] = torch.nan
    report = mvkit.evaluate(both, batch, ["reconstruction", "likelihood"])
    assert report["likelihood/log p(all)"] < 0
    assert both.log_weights(batch, 2).shape == (4, 30)
    assert both.private(batch)["a"].shape == (2, 30, 2)


def run_folder(path, seeds=2):
    (path / "run.toml").write_text('[data]\nname = "linear_gaussian"\n')
    splits = mvkit.load_dataset("linear_gaussian")
    shapes = splits.train.modalities
    both = Ensemble([mvkit.Model(shapes, latent_dim=2, seed=seed) for seed in range(seeds)])
    mvkit.save(both, path / "model.safetensors")
    return both


def test_a_report_page_takes_an_ensemble(tmp_path):
    pytest.importorskip("jinja2")
    from mvkit.apps.html_report import write_page

    run_folder(tmp_path)
    report = write_page(tmp_path, tmp_path / "report.html", metrics=["reconstruction"])
    assert "pictures and verdict: of the first of 2 models" in report.notes
    page = (tmp_path / "report.html").read_text()
    assert "pictures and verdict: of the first of 2 models" in page
    assert "&#34;name&#34;: &#34;ensemble&#34;" in page


def test_a_report_of_the_ensemble_of_a_run_from_several_seeds(tmp_path, capsys, monkeypatch):
    pytest.importorskip("jinja2")
    from mvkit.apps.cli import main

    run_folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "ensemble.safetensors")
    monkeypatch.setattr(
        mvkit.plugins,
        "available",
        lambda kind, pattern="*": ["reconstruction"] if kind == "metric" else [],
    )
    monkeypatch.setattr("mvkit.apps.html_report.pictures", lambda *arguments, **options: {})
    assert main(["report", str(tmp_path / "ensemble.safetensors")]) == 0
    assert "of the first of 2 models" in (tmp_path / "report.html").read_text()
    assert f"page: {tmp_path / 'report.html'}" in capsys.readouterr().out
    assert main(["explore", str(tmp_path / "ensemble.safetensors"), "--no-browser"]) == 1
    said = capsys.readouterr().err
    assert "an ensemble of 2 models; expected one model" in said or "not installed" in said


def test_commands_of_one_model_say_what_to_do(tmp_path, capsys):
    from mvkit.apps.cli import main

    run_folder(tmp_path)
    (tmp_path / "x.csv").write_text("id,x\n1,2\n")
    assert main(["embed", str(tmp_path), str(tmp_path / "x.csv")]) == 1
    said = capsys.readouterr().err
    assert "an ensemble of 2 models; expected one model; save one of its members" in said
    assert said.count("\n") == 1


def test_rows_that_observe_nothing_are_refused(ensemble):
    empty = {name: torch.full_like(x, torch.nan) for name, x in rows(4).data.items()}
    covariates = {"age": torch.zeros(4), "site": list("ABAB")}
    with pytest.raises(DataError, match="observes nothing in any row"):
        mvkit.evaluate(ensemble, Batch(empty, covariates=covariates), ["imputation"])
