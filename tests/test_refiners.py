"""Refiners: their score, what they learn, where they are used, and how files keep them."""

import math
import warnings

import numpy as np
import pytest
import torch
from helpers import model, rows
from test_resume import assert_same, interrupted, uninterrupted

import mvkit
from mvkit import Covariate, Modality, Model, RequestError, SpecError, Stage
from mvkit.core.batch import Batch
from mvkit.models.refiners import sizes_for
from mvkit.parts import Energy, Refine, RefinerSizes, energy_score
from mvkit.parts.objectives.refining import random_part
from mvkit.registry.spec import as_part, to_dict
from mvkit.training.refining import note_refined

FACTOR = 0.7 * torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [-0.5, 0.6, 0.5]])
SLOPES = torch.tensor([[1.0, 0.5, -1.0]])
QUIET = {"progress": False, "device": "cpu"}
SMALL = {"name": "energy", "hidden": 8}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def skewed(n, generator):
    """Correlated noise of centred exponentials, (n, 3), of covariance FACTOR FACTORᵀ."""
    exponential = -torch.rand(n, 3, generator=generator).log() - 1
    return exponential @ FACTOR.T


def score_by_loop(draws, x, observed):
    """The energy score as the paper has it, over the numbers that count."""
    r, n, _ = draws.shape
    scores = []
    for i in range(n):
        kept = observed[i].tolist()

        def norm(difference, kept=kept):
            values = [v for v, count in zip(difference.tolist(), kept, strict=True) if count]
            return math.sqrt(sum(v * v for v in values))

        first = sum(norm(draws[j, i] - x[i]) for j in range(r)) / r
        pairs = [norm(draws[j, i] - draws[k, i]) for j in range(r) for k in range(r) if j != k]
        scores.append(first - sum(pairs) / (2 * r * (r - 1)))
    return torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize("r", [2, 5])
def test_the_energy_score_is_that_of_a_loop(r):
    draws = torch.randn(r, 7, 4, generator=seeded(), dtype=torch.float64)
    x = torch.randn(7, 4, generator=seeded(1), dtype=torch.float64)
    observed = torch.rand(7, 4, generator=seeded(2)) < 0.6
    observed[0], observed[1] = True, False
    expected = score_by_loop(draws, x, observed)
    assert (energy_score(draws, x, observed) - expected).abs().max() < 1e-9
    every = score_by_loop(draws, x, torch.ones_like(observed))
    assert (energy_score(draws, x) - every).abs().max() < 1e-9


def test_the_gradient_of_the_score_is_finite_where_draws_coincide():
    draws = torch.zeros(3, 2, 4, requires_grad=True)
    energy_score(draws, torch.zeros(2, 4)).sum().backward()
    assert bool((draws.grad == 0).all())


def test_energy_learns_noise_that_is_correlated_and_skewed():
    """Given the mean and the latent: covariance and quantiles of what a normal decoder misses."""
    torch.manual_seed(0)
    refiner = Energy(hidden=64, draws=4).build(RefinerSizes("a", (3,), latent=1))
    optimizer = torch.optim.Adam(refiner.parameters(), 3e-3)
    steps = 700
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = seeded()
    for _ in range(steps):
        z = torch.randn(256, 1, generator=generator)
        out = z @ SLOPES
        x = out + skewed(256, generator)
        observed = torch.ones_like(x, dtype=torch.bool)
        loss = refiner.loss(out, x, z, None, observed, generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    z = torch.randn(20_000, 1, generator=generator)
    with torch.no_grad():
        noise = refiner.refine(z @ SLOPES, z, None, generator) - z @ SLOPES
    truth = skewed(20_000, generator)
    assert (torch.cov(noise.T) - FACTOR @ FACTOR.T).abs().max() < 0.08
    shares = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    difference = torch.quantile(noise, shares, 0) - torch.quantile(truth, shares, 0)
    assert difference.abs().max() < 0.15
    assert torch.quantile(noise[:, 0], 0.05) > -0.9  # a normal one of this spread: -1.15


def two_views(n, seed):
    generator = seeded(seed)
    z = torch.randn(n, 1, generator=generator)
    a = z @ SLOPES + skewed(n, generator)
    return {"a": a, "b": torch.cat([z, -z], 1) + 0.2 * torch.randn(n, 2, generator=generator)}


def energy_distance(x, y):
    x, y = x.double(), y.double()
    within = torch.cdist(x, x).mean() + torch.cdist(y, y).mean()
    return float(2 * torch.cdist(x, y).mean() - within)


def linear(shape):
    likelihood = {"name": "normal", "scale": "trained", "by": "feature"}
    return Modality(shape, likelihood, encoder="linear", decoder="linear")


@pytest.fixture(scope="module")
def refined():
    train = two_views(4000, 0)
    modalities = {"a": linear((3,)), "b": linear((2,))}
    trained = Model(modalities, latent_dim=1, aggregator="mopoe", seed=0)
    mvkit.fit(trained, train, epochs=30, batch_size=256, lr=1e-2, **QUIET)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    likelihood = trained.log_likelihood(train, n=2, generator=seeded())
    options = {"epochs": 40, "batch_size": 256, "lr": 3e-3, **QUIET}
    spec = {"name": "energy", "hidden": 64}
    history = mvkit.fit_refiner(trained, train, spec, modalities="a", **options)
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    return trained, before, likelihood, train


def test_refined_draws_are_much_nearer_to_held_out_data(refined):
    trained, *_ = refined
    held_out = two_views(4000, 1)
    sharp = trained.sample(4000, refine="a", generator=seeded())["a"]
    own = trained.sample(4000, sample=True, generator=seeded())["a"]
    nearer = energy_distance(sharp, held_out["a"])
    assert nearer < 0.25 * energy_distance(own, held_out["a"])
    given = {"b": held_out["b"]}
    sharp = trained.translate(given, to="a", refine=True, generator=seeded())["a"][0]
    own = trained.translate(given, to="a", sample=True, generator=seeded())["a"][0]
    joint = torch.cat([held_out["a"], held_out["b"]], 1)
    nearer = energy_distance(torch.cat([sharp, held_out["b"]], 1), joint)
    assert nearer < 0.4 * energy_distance(torch.cat([own, held_out["b"]], 1), joint)


def test_nothing_else_of_the_model_changes(refined):
    trained, before, likelihood, train = refined
    after = trained.state_dict()
    assert {name for name in after if name not in before} == {
        f"refiners.a.{name}" for name in trained.refiners["a"].state_dict()
    }
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    assert torch.equal(trained.log_likelihood(train, n=2, generator=seeded()), likelihood)


@pytest.fixture
def tiny():
    """A tiny model with refiners of what can be refined."""
    made_of = model("mopoe", private=1)
    mvkit.fit_refiner(made_of, rows(14), SMALL, epochs=1, **QUIET)
    return made_of


def test_a_model_without_refiners_is_as_before():
    plain = model("mopoe", private=1)
    assert not any(name.startswith("refiners") for name in plain.state_dict())
    assert not {"refiners", "refined_to"} & set(plain.header())


def test_all_that_can_be_refined_is(tiny):
    assert list(tiny.refiners) == ["a", "b"]  # c has classes
    assert tiny.refiners["a"].spec == Energy(hidden=8)
    assert "refiner    a: Energy(hidden=8" in repr(tiny)
    assert "energy" in mvkit.available("refiner")


def test_files_keep_them(tiny, tmp_path):
    mvkit.save(tiny, tmp_path / "m")
    loaded = mvkit.load(tmp_path / "m")
    assert loaded.header() == tiny.header()
    options = {"to": ["a", "b"], "refine": True, "n": 3}
    first = tiny.translate(rows(), generator=seeded(), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = loaded.translate(rows(), generator=seeded(), **options)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_draws_follow_the_generator_and_stay_in_the_support(tiny):
    options = {"to": ["a", "b"], "refine": True, "n": 50}
    first = tiny.translate(rows(), generator=seeded(), **options)
    again = tiny.translate(rows(), generator=seeded(), **options)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["a"].dtype == torch.float64
    assert first["b"].min() == 0.0  # of a bernoulli
    assert first["b"].max() <= 1.0
    other = tiny.translate(rows(), generator=seeded(1), **options)
    assert not torch.equal(first["a"], other["a"])


def test_only_what_is_named_is_refined(tiny):
    everything = tiny.translate(rows(), refine="a", latent="mean", generator=seeded())
    plain = tiny.translate(rows(), latent="mean", generator=seeded())
    for name in ("b", "c"):
        assert torch.equal(everything[name], plain[name])
    assert not torch.equal(everything["a"], plain["a"])
    assert torch.equal(tiny.translate(rows(), refine=(), generator=seeded())["a"],
                       tiny.translate(rows(), generator=seeded())["a"])  # fmt: skip


def test_given_nothing_and_new_rows(tiny):
    drawn = tiny.translate(rows(), to="a", given=(), refine=True, n=2)["a"]
    assert drawn.shape == (2, 8, 3)
    data, latents = tiny.sample(5, refine=["a", "b"], latents=True, generator=seeded())
    plain, same = tiny.sample(5, latents=True, generator=seeded())
    assert torch.equal(latents.z, same.z)
    assert data["b"].shape == (5, 2, 2)
    assert not torch.equal(data["a"], plain["a"])


def test_imputation_of_refined_draws(tiny):
    data = {"a": np.array([[1.0, np.nan, 0.5]] * 3), "b": np.full((3, 2, 2), np.nan)}
    options = {"n": 40, "quantiles": (0.1, 0.9), "draws": True}
    sharp = mvkit.impute(tiny, data, refine=True, generator=seeded(), **options)
    assert sharp.filled["a"][0, 0] == 1.0
    assert np.isfinite(sharp.filled["b"]).all()
    drawn = np.stack([filled["a"][:, 1] for filled in sharp.draws])
    np.testing.assert_allclose(drawn.std(0, ddof=1), sharp.sd["a"][:, 1], rtol=1e-9)
    blurred = mvkit.impute(tiny, data, generator=seeded(), **options)
    assert not np.array_equal(blurred.draws[0]["a"], sharp.draws[0]["a"])
    mean = mvkit.impute(tiny, data, n=40, refine=True, generator=seeded())
    np.testing.assert_allclose(mean["a"][:, 1], drawn.mean(0), atol=3 * drawn.std())


def test_evaluation_of_refined_draws(tiny):
    report = mvkit.evaluate(tiny, rows(40), ["reconstruction"], refine=["a"], progress=False)
    plain = mvkit.evaluate(tiny, rows(40), ["reconstruction"], progress=False)
    assert report.about["refine"] == ["a"]
    assert "refine" not in plain.about
    assert any("draws of refiners" in note for note in report.notes)
    values = [{s.name: s.value for s in r.scores} for r in (report, plain)]
    assert values[0]["a, MSE"] != values[1]["a, MSE"]
    assert values[0]["b, MSE"] == values[1]["b, MSE"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refine": True}, "'c' cannot be refined, since classes"),
        ({"refine": "d"}, "'d' is not among what is generated"),
        ({"to": "a", "refine": ["b"]}, "'b' is not among what is generated"),
        ({"refine": 3}, "refine=3; expected True, False, or names"),
    ],
)
def test_what_cannot_be_refined_is_told(tiny, options, message):
    with pytest.raises(RequestError, match=message):
        tiny.translate(rows(), **options)


def test_a_refiner_that_was_not_trained_is_told():
    lacking = model("mopoe")
    with pytest.raises(RequestError, match=r"sample: no refiner was trained for 'a'.* none; call"):
        lacking.sample(2, refine="a")
    mvkit.fit_refiner(lacking, rows(14), SMALL, "b", epochs=1, **QUIET)
    message = r"for 'a'; modalities with one: 'b'; call mvkit.fit_refiner\(.*\['a'\]"
    with pytest.raises(RequestError, match=message):
        lacking.translate(rows(), to=["a", "b"], refine=True)
    with pytest.raises(RequestError, match="evaluate: no refiner was trained for 'a'"):
        mvkit.evaluate(lacking, rows(40), refine="a", progress=False)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("energy", "c"), RequestError, "values of 'c', Categorical.*are classes, counts"),
        (("energy", "d"), RequestError, "unknown modality 'd'"),
        (("energi",), SpecError, "did you mean 'energy'"),
        (({"a": "energy"}, ["b"]), RequestError, "no refiner is given for 'b'"),
        (("energy", ()), RequestError, "no modality to refine"),
        (({"name": "energy", "draws": 1},), SpecError, "draws"),
    ],
)
def test_bad_arguments_of_a_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        mvkit.fit_refiner(model(), rows(), *arguments, epochs=1, **QUIET)


def test_other_stages_are_not_of_fit_refiner():
    with pytest.raises(RequestError, match="stages: it has one of its own"):
        mvkit.fit_refiner(model(), rows(), stages="single")
    with pytest.raises(RequestError, match="fit_refiner: got str as its model"):
        mvkit.fit_refiner("a", rows())


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial"])
def test_counts_are_refused(likelihood):
    with pytest.raises(RequestError, match="are classes, counts"):
        mvkit.fit_refiner(Model({"a": {"shape": (2,), "likelihood": likelihood}}), {"a": [[1, 2]]})


def test_limits_of_values():
    kinds = {"normal": "normal", "positive": "lognormal", "share": "beta", "grey": "bernoulli"}
    several = Model({name: {"shape": (2,), "likelihood": kind} for name, kind in kinds.items()})
    limits = {
        name: (sizes_for(several, name).low, sizes_for(several, name).high) for name in kinds
    }
    assert limits == {
        "normal": (-math.inf, math.inf),
        "positive": (1e-6, math.inf),
        "share": (1e-6, 1 - 1e-6),
        "grey": (0.0, 1.0),
    }


def test_a_failed_fit_leaves_the_refiners_that_there_were(tiny):
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    header = tiny.header()
    bad = rows(14)
    bad.data["a"][0, 0] = torch.inf
    with pytest.raises(mvkit.DataError):
        mvkit.fit_refiner(tiny, bad, "energy", epochs=1, **QUIET)
    assert tiny.header() == header
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())


def test_a_stack_is_refused():
    shapes = {"a": (3,), "b": (2,)}
    private = {name: {"shape": shape, "private_dim": 2} for name, shape in shapes.items()}
    levels = [Model(private, latent_dim=0), Model(dict.fromkeys(shapes, (2,)), latent_dim=2)]
    stack = mvkit.Stack(levels)
    data = {name: torch.zeros(4, *shape) for name, shape in shapes.items()}
    with pytest.raises(RequestError, match="fit_refiner: a stack decodes through two levels"):
        mvkit.fit_refiner(stack, data)
    with pytest.raises(RequestError, match="translate: refine: a stack decodes through two"):
        stack.translate(data, refine=True)
    objective = {
        "name": "levels",
        "levels": [{"name": "refine", "refiners": {"a": SMALL}}, "elbo"],
    }
    with pytest.raises(SpecError, match="a stack decodes through two levels"):
        mvkit.fit(stack, data, stages=Stage(objective, 1), **QUIET)


def test_weights_that_change_make_a_refiner_stale(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.sample(2, refine="a")
        tiny.float().sample(2, refine="a")
        tiny.double()
        mvkit.fit_refiner(tiny, rows(14), SMALL, "b", epochs=1, **QUIET)
        tiny.sample(2, refine="a")
        mvkit.fit_sampler(tiny, rows(14), {"name": "gmm", "components": 2})
        tiny.sample(2, refine="a", sampler="gmm")
    mvkit.fit(tiny, rows(14), epochs=1, **QUIET)
    with pytest.warns(UserWarning, match="refiner of 'a': the model's weights have changed"):
        tiny.sample(2, refine="a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.sample(2, refine="a")  # told once
        refining = Stage("refine", 1, ["refiners.b.*"])
        mvkit.fit(tiny, rows(14), stages=refining, **QUIET)
        tiny.sample(2, refine="b")
    with pytest.warns(UserWarning, match="sampler 'gmm'"):
        tiny.sample(2, sampler="gmm")


def test_refiners_do_not_make_a_sampler_stale():
    fitted = model("mopoe")
    mvkit.fit_sampler(fitted, rows(14), {"name": "gmm", "components": 2})
    mvkit.fit_refiner(fitted, rows(14), SMALL, epochs=1, **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.sample(2, sampler="gmm")


@pytest.mark.parametrize("parts", [("mopoe", "mog"), ("joint",), ("moe", "vamp"), ("poe",)])
def test_unobserved_values_and_rows_without_weight_change_nothing(parts):
    def trained(value, without):
        batch = rows(14)
        for name, x in batch.data.items():
            x[~batch.mask[:, list(batch.data).index(name)]] = value
        holes = torch.zeros(14, 3, dtype=torch.bool)
        holes[1, 0] = batch.mask[1, 0]
        batch.data["a"][1, 0] = value
        weight = torch.ones(14)
        weight[-1] = 0.0
        batch.data["a"][-1] = without
        elements = {"a": ~(torch.arange(14)[:, None].eq(1) & torch.arange(3).eq(0))}
        batch = Batch(batch.data, batch.mask, elements, {"row_weight": weight})
        tiny = model(*parts, private=1)
        mvkit.fit_refiner(tiny, batch, SMALL, epochs=2, batch_size=5, **QUIET)
        return tiny.refiners.state_dict()

    first, second = trained(0.0, 0.0), trained(77.0, 3.0)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_loss_is_the_weighted_mean_over_rows_of_what_they_observe(tiny):
    """Against a loop over rows and modalities, at the latents that the objective draws."""
    tiny.eval()
    weight = torch.arange(8) % 3.0
    batch = tiny.conform(Batch(rows().data, rows().mask, extra={"row_weight": weight}))
    seen = {}

    def recorded(name, refiner):
        def loss(out, x, z, context, observed, generator):
            seen[name] = refiner(out, x, z, context, observed, generator)
            assert torch.equal(observed.flatten(1).all(1), batch.observed[:, "ab".index(name)])
            plain = tiny.decoding.decode(name, z[:, :2], z[:, 2:])
            assert torch.equal(plain, out)
            return seen[name]

        return loss

    for name, refiner in tiny.refiners.items():
        refiner.loss = recorded(name, refiner.loss)
    loss = tiny.loss(batch, objective="refine", generator=seeded())
    seen = {name: value.detach() for name, value in seen.items()}
    total = 0.0
    for i in range(8):
        for m, name in enumerate("ab"):
            if batch.observed[i, m]:
                total += float(batch.row_weight[i]) * float(seen[name][i])
    assert abs(loss.loss.item() - total / 8) < 1e-9
    kept = [i for i in range(8) if batch.observed[i, 0]]
    mean = sum(float(batch.row_weight[i]) * float(seen["a"][i]) for i in kept)
    mean /= sum(float(batch.row_weight[i]) for i in kept)
    assert abs(float(loss.metrics["refine/a"]) - mean) < 1e-9


def test_parts_of_rows_are_random_and_never_empty():
    observed = rows(700).mask
    part = random_part(observed, torch.zeros((), dtype=torch.float64), seeded())
    assert bool((part <= observed).all())
    assert bool(part.any(1).all())
    complete = part[observed.all(1)]
    shown = {tuple(row) for row in complete.tolist()}
    assert len(shown) == 7


def test_a_batch_without_rows_has_a_loss(tiny):
    empty = tiny.conform(rows()).take(slice(0, 0))
    experts = tiny.experts(empty)
    loss = Refine().forward(tiny, empty, experts)
    assert loss.loss.item() == 0.0
    loss.loss.backward()


def test_covariates_reach_refiners():
    seen = []

    class Watching(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def refine(self, out, z, context, generator):
            seen.append(context)
            return self.inner.refine(out, z, context, generator)

    covariates = {"site": Covariate(levels=("A", "B"))}
    conditioned = model("mopoe", covariates=covariates)
    batch = rows(8)
    batch.extra["site"] = ["A", "B"] * 4
    mvkit.fit_refiner(conditioned, batch, SMALL, "a", epochs=1, **QUIET)
    inner = conditioned.refiners["a"]
    conditioned.refiners["a"] = Watching(inner)
    conditioned.translate(batch, to="a", refine=True, n=2, generator=seeded())
    assert torch.equal(seen[0].reshape(2, 8, -1)[0], seen[0].reshape(2, 8, -1)[1])
    assert torch.equal(seen[0][:8, 0], torch.tensor([1.0, 0.0] * 4).double())
    conditioned.translate(batch, to="a", refine=True, covariates={"site": "B"})
    assert bool((seen[1][:, 1] == 1).all())
    conditioned.sample(3, refine="a", covariates={"site": "B"})
    assert seen[2].shape == seen[1][:3].shape
    conditioned.refiners["a"] = inner
    with pytest.raises(RequestError, match="add_level: the refiners of 'a' see covariates"):
        conditioned.add_level("site", "C")
    conditioned.refiners.clear()
    conditioned.add_level("site", "C")


def test_gaps_that_a_model_explains_have_no_refiner():
    explaining = model("mopoe", likelihood="normal", missingness="self")
    mvkit.fit_refiner(explaining, rows(14), SMALL, epochs=1, **QUIET)
    data = rows(4).data
    data["a"][0, 0] = torch.nan
    with pytest.raises(RequestError, match="a refiner knows nothing of why values are missing"):
        explaining.translate(data, refine=True)
    assert torch.isfinite(explaining.sample(3, refine=True)["a"]).all()


def test_stages_make_refiners_that_are_named_and_are_plain_data():
    plan = [
        Stage(None, 1),
        Stage({"name": "refine", "refiners": {"a": SMALL}}, 1, ["refiners.*"], ema=0.9),
    ]
    stages = [to_dict(stage) for stage in plan]
    tiny = model("mopoe")
    history = mvkit.fit(tiny, rows(14), validation=rows(7, seed=1), stages=stages, **QUIET)
    assert "valid/refine/a" in history.rows[1]
    assert list(tiny.refiners) == ["a"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.sample(2, refine="a")
    assert as_part("objective", to_dict(plan[1].objective)) == plan[1].objective
    with pytest.raises(SpecError, match="refiners: no modality 'z'"):
        mvkit.fit(tiny, rows(), stages=Stage({"name": "refine", "refiners": {"z": "energy"}}))
    with pytest.raises(RequestError, match="no refiners to train"):
        model().loss(rows(), objective="refine")


def test_a_stage_resumes_with_the_same_bits(tmp_path):
    plan = [
        Stage(None, 1),
        Stage({"name": "refine", "refiners": {"a": SMALL, "b": SMALL}}, 2, ["refiners.*"]),
    ]
    options = {"data": rows(14), "stages": plan, "batch_size": 3, "progress": False}

    def make():
        return model("mopoe", private=1)

    whole = uninterrupted(make, tmp_path / "whole", **options)
    for saves in (3, 8, 10):
        again = interrupted(make, saves, tmp_path / str(saves), **options)
        assert_same(whole, again)
    kept = mvkit.load(tmp_path / "whole" / "model.safetensors")
    assert list(kept.refiners) == ["a", "b"]


def test_a_fit_resumes_in_its_folder(tmp_path):
    class Stop(Exception):
        pass

    def stop(event):
        if type(event).__name__ == "EpochFinished" and event.row["epoch"] == 2:
            raise Stop

    options = {"refiner": SMALL, "epochs": 4, "batch_size": 4, **QUIET}
    whole, parts = model("mopoe"), model("mopoe")
    mvkit.fit_refiner(whole, rows(14), **options)
    folder = tmp_path / "run"
    with pytest.raises(Stop):
        mvkit.fit_refiner(parts, rows(14), checkpoint=folder, listeners=[stop], **options)
    assert not parts.refiners
    mvkit.fit_refiner(parts, rows(14), checkpoint=folder, resume="must", **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    assert parts.refined_to == whole.refined_to


def test_one_seed_gives_one_refiner():
    first, second = model("mopoe"), model("mopoe")
    for tiny in (first, second):
        torch.rand(3)
        mvkit.fit_refiner(tiny, rows(14), SMALL, epochs=1, seed=3, **QUIET)
    weights = second.refiners.state_dict()
    for name, value in first.refiners.state_dict().items():
        assert torch.equal(value, weights[name])
    assert first.seeded_weights == model("mopoe").seeded_weights


def test_only_stages_that_train_refiners_note_weights(tiny):
    tiny.refined_to.clear()
    note_refined(tiny, Stage("elbo", 1))
    assert not tiny.refined_to
    note_refined(tiny, Stage("refine", 1, ["refiners.a.*"]))
    assert set(tiny.refined_to) == {"a"}
