"""What is asked of conditional samplers, of every kind of model."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import model, rows
from test_samplers import stack

import mvkit
from mvkit import Batch, Covariate, DataError, Model, RequestError, ShapeError, recipes
from mvkit.core import noise
from mvkit.parts import GMM

FILES = Path(__file__).parent / "files" / "before_layers"
SPEC = GMM(components=2, floor=0.1, conditional=True)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def fitted(made, b=80):
    mvkit.fit_sampler(made, rows(b, names=made.names), SPEC)
    return made


def mmvm():
    shapes = {"a": (3,), "b": (2, 2), "c": (4,)}
    likelihoods = {"b": "bernoulli", "c": "categorical"}
    modalities = {
        name: {"shape": shape, "likelihood": likelihoods.get(name, "normal")}
        for name, shape in shapes.items()
    }
    return recipes.mmvm(modalities, latent_dim=2, seed=0).double()


MODELS = {
    "poe": lambda: model("poe"),
    "moe, private": lambda: model("moe", private=1),
    "mopoe, private": lambda: model("mopoe", "mog", private=2),
    "joint": lambda: model("joint"),
    "mean_message": lambda: model("mean_message"),
    "laplace": lambda: model("moe", "standard", "elbo", "laplace_softmax", private=1),
    "vamp": lambda: model("poe", "vamp"),
    "posterior_mixture": mmvm,
    "stack": stack,
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_any_model_generates_from_any_subset(make, tmp_path):
    """Incomplete rows, rows that observe nothing, nothing given; in files too."""
    made = fitted(make().eval())
    batch = rows(16, names=made.names, seed=1)
    batch.mask[3] = False
    mvkit.save(made, tmp_path / "m")
    again = mvkit.load(tmp_path / "m")
    options = {"n": 3, "sampler": "gmm", "empty": "prior"}
    for given in (None, ("a",), ("a", "b"), ()):
        for latent in ("draw", "mean"):
            first, second = (
                m.translate(batch, None, given, latent=latent, generator=seeded(), **options)
                for m in (made, again)
            )
            for name, x in first.items():
                assert x.shape[:2] == (3, 16)
                assert torch.isfinite(x).all()
                assert torch.equal(x, second[name])
    with pytest.raises(DataError, match="row 3 observes none of the given modalities"):
        made.translate(batch, sampler="gmm")
    assert made.sample(5, sampler="gmm", generator=seeded())["a"].shape == (5, 3)


def test_what_was_given_decides():
    made = fitted(model("poe").eval())
    batch = rows(4, missing=False)
    by_a, by_b = (
        made.translate(batch, "c", given, sampler="gmm", generator=seeded())["c"]
        for given in ("a", "b")
    )
    assert not torch.equal(by_a, by_b)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_private_latent_that_is_observed_is_that_of_its_posterior(name):
    made = fitted(model("mopoe", private=1).eval())
    batch = made.conform(rows(4, missing=False))
    sampler = made.conditional_sampler("gmm", "test")
    asked = mvkit.models.inference.ConditioningSets([(name,)], "error", True, seeded())
    latents = made.sampled_given(batch, asked, sampler)
    _, private = latents.draw(4000, seeded())
    loc, scale = latents.experts.private[name]
    error = scale / 4000**0.5
    assert set(private) == {"a", "b", "c"}
    assert ((private[name].mean(0) - loc).abs() < 4 * error).all()
    assert ((private[name].std(0) / scale - 1).abs() < 4 / 8000**0.5).all()


def test_unconditional_samples_have_the_private_latents_of_the_mixture():
    made = fitted(model("mopoe", private=1).eval(), b=400)
    _, latents = made.sample(4000, sampler="gmm", latents=True, generator=seeded())
    batch = rows(400, missing=False)
    with torch.no_grad():
        loc, scale = made.experts(made.conform(batch)).private["a"]
    spread = float((loc.var(0) + scale.square().mean(0) + SPEC.floor).sqrt())
    assert float(latents.private["a"].std()) == pytest.approx(spread, rel=0.1)


def test_rows_in_blocks_are_a_function_of_the_seed():
    made = fitted(model("poe", names=("a", "b")).eval())
    batch = rows(1500, names=("a", "b"))
    first, second = (
        made.translate(batch, sampler="gmm", generator=seeded())["a"] for _ in range(2)
    )
    assert first.shape[1] == 1500
    assert torch.equal(first, second)


def test_single_precision():
    made = fitted(model("poe", private=1).float().eval())
    x = made.translate(rows(8), sampler="gmm", generator=seeded())["a"]
    assert x.dtype == torch.float32
    assert torch.isfinite(x).all()


def test_covariates_reach_samplers_as_decoders_see_them():
    covariates = {"site": Covariate(levels=("A", "B"))}
    made = Model({"a": (3,), "b": (2,)}, latent_dim=2, covariates=covariates, seed=0)
    data = {"a": torch.randn(40, 3), "b": torch.randn(40, 2)}
    batch = Batch(data, covariates={"site": ["A", "B"] * 20})
    mvkit.fit_sampler(made, batch, SPEC)
    sampler = made.samplers["gmm"]
    assert sampler.sizes.context == 2
    seen = []
    sample = sampler.sample

    def watched(condition, n, generator):
        seen.append(condition.context)
        return sample(condition, n, generator)

    sampler.sample = watched
    made.translate(batch, "b", "a", sampler="gmm", covariates={"site": "B"})
    made.translate(batch, "b", (), sampler="gmm", covariates={"site": "B"})
    made.sample(40, sampler="gmm", covariates={"site": "A"})
    own, asked, stated = seen
    assert own.argmax(1).tolist() == [0, 1] * 20
    assert asked.argmax(1).tolist() == [1] * 40
    assert stated.argmax(1).tolist() == [0] * 40


def test_imputation_and_reports_by_a_sampler():
    made = fitted(model("poe").eval())
    batch = rows(60, seed=2)
    filled = mvkit.impute(made, batch, n=5, sampler="gmm", generator=seeded())
    by_row = noise.by_row(seeded(), torch.device("cpu"))  # blocks are translated by its children
    noise.next_rows(by_row, 60)
    expected = made.translate(batch, n=5, sampler="gmm", generator=by_row)["a"].mean(0)
    gaps = ~batch.mask[:, 0]
    torch.testing.assert_close(filled.data["a"][gaps], expected[gaps])

    report = mvkit.evaluate(made, batch, ["imputation"], sampler="gmm", progress=False)
    plain = mvkit.evaluate(made, batch, ["imputation"], progress=False)
    assert report["imputation/a, MSE"] != plain["imputation/a, MSE"]
    assert report.about["sampler"] == "gmm"
    assert "sampler" not in plain.about
    assert any("latents of sampler 'gmm'" in note for note in report.notes)


def test_every_metric_that_generates_takes_the_sampler():
    made = fitted(model("poe").eval())
    batch = rows(40, missing=False)
    labelled = Batch(batch.data, batch.mask, extra={"label": torch.arange(40) % 2})
    judge = {n: lambda x: (x.flatten(1).sum(1) > 1).long() for n in made.names}
    metrics = ["coherence", "reconstruction", {"name": "calibration", "n": 39}]
    report, plain = (
        mvkit.evaluate(made, labelled, metrics, classifiers=judge, sampler=sampler, progress=False)
        for sampler in ("gmm", None)
    )
    differ = {s.metric for s, t in zip(report.scores, plain.scores, strict=True) if s != t}
    assert differ >= {"coherence", "reconstruction", "calibration"}


def test_a_sampler_of_latents_alone_is_refused_for_conditions():
    made = model("poe").eval()
    with pytest.raises(RequestError, match="translate: sampler 'gmm' is not fitted yet; call"):
        made.translate(rows(2), sampler="gmm")
    mvkit.fit_sampler(made, rows(40), GMM(components=2))
    refusal = r"fitted to latents alone.*fit it again: .*'conditional': True, 'name': 'gmm'|fit it again: .*'name': 'gmm'"
    for ask in (
        lambda: made.translate(rows(2), sampler="gmm"),
        lambda: mvkit.impute(made, rows(2), sampler="gmm"),
        lambda: mvkit.evaluate(made, rows(8), ["imputation"], sampler="gmm"),
    ):
        with pytest.raises(RequestError, match=refusal):
            ask()
    with pytest.raises(RequestError, match="sampler 'prior' was fitted to latents alone"):
        made.translate(rows(2), sampler="prior")


def test_a_sampler_of_an_older_file_samples_and_asks_to_be_fitted_again():
    made = mvkit.load(FILES / "clusters.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert made.sample(3, sampler="gmm")["a"].shape == (3, 3)
    with pytest.raises(RequestError, match="fit it again"):
        made.translate({"a": torch.zeros(2, 3)}, sampler="gmm")


def test_a_modality_that_no_fitting_row_had_is_refused():
    made = model("poe").eval()
    batch = rows(40)
    batch.mask[:, 1] = False
    batch.mask[:, 0] = True
    mvkit.fit_sampler(made, batch, SPEC)
    with pytest.raises(RequestError, match="no row that it was fitted to had 'b'"):
        made.translate(rows(8, missing=False), sampler="gmm")
    assert made.translate(rows(8, missing=False), "b", ("a", "c"), sampler="gmm")["b"].shape


def test_row_weights_count():
    batch = rows(40)
    weighted = Batch(batch.data, batch.mask, row_weight=np.linspace(0, 2, 40))
    draws = []
    for data in (batch, weighted):
        made = model("poe").eval()
        mvkit.fit_sampler(made, data, SPEC)
        draws.append(made.sample(5, sampler="gmm", generator=seeded())["a"])
    assert not torch.equal(*draws)


def test_a_stale_sampler_warns_once_for_each_state(tmp_path):
    made = fitted(model("poe").eval())
    batch = rows(4, missing=False)

    def ask(m):
        m.sample(2, sampler="gmm")
        m.translate(batch, sampler="gmm")

    ask(made)
    mvkit.save(made, tmp_path / "fresh")
    ask(mvkit.load(tmp_path / "fresh"))
    ask(made.float().double())  # the same weights, but for rounding: in single precision
    with torch.no_grad():
        next(made.parameters()).add_(0.1)
    with pytest.warns(UserWarning, match="weights have changed since it was fitted"):
        made.sample(2, sampler="gmm")
    ask(made)
    mvkit.save(made, tmp_path / "stale")
    again = mvkit.load(tmp_path / "stale")
    with pytest.warns(UserWarning, match=r"fit it again: mvkit.fit_sampler\(model, data, 'gmm'\)"):
        again.translate(batch, sampler="gmm")
    ask(again)
    fitted(made)
    ask(made)
    with torch.no_grad():
        next(made.parameters()).add_(0.1)
    with pytest.warns(UserWarning, match="weights have changed"):
        made.translate(batch, sampler="gmm")


def test_training_makes_a_sampler_stale():
    made = fitted(model("poe").eval())
    mvkit.fit(made, rows(16), epochs=1, progress=False)
    with pytest.warns(UserWarning, match="weights have changed"):
        made.sample(2, sampler="gmm")


def test_what_files_say_of_samplers():
    made = fitted(model("poe").eval())
    header = made.header()
    assert header["samplers"] == [
        {"name": "gmm", "components": 2, "floor": 0.1, "conditional": True}
    ]
    assert list(header["samplers_fitted_to"]) == ["gmm"]
    assert "samplers_fitted_to" not in model("poe").header()


@pytest.mark.parametrize("make", [lambda: model("poe"), stack], ids=["model", "stack"])
def test_a_model_shows_its_samplers(make):
    made = make()
    plain = repr(made).replace(",", "")
    assert "sampler" not in plain
    mvkit.fit_sampler(made.eval(), rows(16, names=made.names), SPEC)
    assert repr(made).splitlines()[-1] == f"  sampler    {SPEC!r}"


def test_private_latents_that_a_sampler_leaves_out_are_as_without_it():
    made = fitted(model("mopoe", private=1).eval(), b=16)
    batch = rows(4, missing=False)
    z = torch.randn(4, 2, generator=seeded(), dtype=torch.float64)
    made.samplers["gmm"].mean = lambda condition, generator: (z, {})
    values = made.translate(batch, None, "a", latent="mean", sampler="gmm")
    own = made.private(batch)
    expected = made.decode(z, {"a": own["a"]})  # others at the mean of their priors
    for name in made.names:
        assert torch.equal(values[name][0], expected[name])


def test_what_a_sampler_returns_is_checked():
    made = fitted(model("mopoe", private=1).eval(), b=16)
    sampler = made.samplers["gmm"]
    batch = rows(4, missing=False)
    z = torch.zeros(1, 4, 3, dtype=torch.float64)
    sampler.sample = lambda condition, n, generator: (z, {})
    for ask in (
        lambda: made.translate(batch, sampler="gmm"),
        lambda: made.sample(4, sampler="gmm"),
    ):
        with pytest.raises(
            ShapeError, match=r"returned z of shape \(1, 4, 3\); expected \(1, 4, 2\)"
        ):
            ask()
    sampler.sample = lambda condition, n, generator: (z[..., :2], {"a": z})
    with pytest.raises(ShapeError, match="the private latent of 'a' of shape"):
        made.translate(batch, sampler="gmm")
