"""The samplers of latents: their losses against loops, their draws with exact fields, and doors.

Axes: n draws, b rows, m modalities, v numbers of all latents, s blocks of them.
"""

import itertools
import json
import math

import attrs
import mvkit_diffusion
import pytest
import torch
from mvkit_diffusion.latents import moments
from mvkit_diffusion.samplers import picked, subsets

import mvkit
from mvkit import Batch, Covariate, Modality, Model, RequestError
from mvkit.core.noise import global_seed, seeded
from mvkit.parts.conditional_samplers import Code, Condition, FittingRows, SamplerSizes
from mvkit.parts.families import Normal
from mvkit.registry.spec import as_part, to_dict

NAMES = ("latent_flow", "latent_diffusion")
EACH = pytest.mark.parametrize("name", NAMES)
SMALL = {"steps": 5, "batch": 16, "width": 8, "layers": 1, "integration": 4}
SIZES = SamplerSizes(2, ("a", "b", "c"), {"a": 1, "c": 2})
OWNERS = (None, None, 0, 2, 2)  # the modality of each number of the latents; None: z
PATTERNS = [p for p in itertools.product([True, False], repeat=3) if any(p)]


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def fitting_rows(b=40, weight=None):
    """Rows with every pattern of gaps in turn."""
    generator = seeded(0)
    codes, private, drawn = {}, {}, {}
    for name in SIZES.names:
        codes[name] = Code(normal(generator, b, 2), normal(generator, b, 2).exp())
    for name, p in SIZES.private.items():
        private[name] = Code(normal(generator, b, p), normal(generator, b, p).exp())
        drawn[name] = normal(generator, b, p) + 1
    observed = torch.tensor([PATTERNS[i % 7] for i in range(b)])
    condition = Condition(SIZES, observed | True, codes, private, Normal()).keep(observed)
    return FittingRows(3 + 2 * normal(generator, b, 2), drawn, condition, weight)


def built(name, **options):
    with global_seed(0):
        return as_part("sampler", {"name": name, **SMALL, **options}).build(2, SIZES).double()


def step_of(live, rows, generator):
    """A step of a fit to these rows."""
    weight = torch.ones(len(rows)).double()
    z = live.latents.fit(rows, weight)
    live.told.fit(rows.condition, weight)
    return live.step(rows, z, live.told(rows.condition), generator)


def nothing_known(live, b):
    """What is asked for of rows of which nothing is known."""
    condition = Condition.nothing(SIZES, b, like=MEAN)
    return live.asked(condition.observed, live.told(condition))


def test_the_numbers_of_a_part_of_a_condition_are_those_of_the_whole_that_are_left():
    live = built("latent_flow")
    rows = fitting_rows()
    live.told.fit(rows.condition, torch.ones(40).double())
    kept = rows.condition.observed & (torch.rand(40, 3, generator=seeded(3)) < 0.5)
    whole = live.told(rows.condition)
    assert torch.equal(live.told.keep(whole, kept), live.told(rows.condition.keep(kept)))


def test_mvkit_knows_what_this_package_offers():
    from mvkit.registry.builtin_parts import EXTERNAL_PARTS

    offered = {(part.kind, part.name) for part in mvkit_diffusion.mvkit_components()}
    known = EXTERNAL_PARTS["mvkit-diffusion"].items()
    assert offered == {(kind, name) for kind, names in known for name in names}


# losses and fields

MEAN = torch.tensor([0.3, -0.7, 0.2, 1.1, -0.4], dtype=torch.float64)
SPREAD = torch.tensor([0.5, 1.5, 0.8, 0.3, 1.0], dtype=torch.float64)


def exact_field(y, u, told):
    """F of latents N(MEAN, SPREAD²) on the diffusion's path, by Bayes' rule, (n, b, v)."""
    block = torch.tensor([0, 0, 1, 2, 2])
    angle = math.pi / 2 * u[:, block]
    variance = angle.cos() ** 2 + (angle.sin() * SPREAD) ** 2
    off = (y - angle.sin() * MEAN) / variance
    z = MEAN + SPREAD**2 * angle.sin() * off
    return angle.cos() * z - angle.sin() * angle.cos() * off


def exact_field_of_flow(y, u, told):
    """The same at the angle that flow matching has at a time."""
    return exact_field(y, torch.atan2(u, 1 - u) / (math.pi / 2), told)


FIELDS = {"latent_flow": exact_field_of_flow, "latent_diffusion": exact_field}


def velocity(x, t, j):
    """Of one number of latents N(m, s²) on the optimal-transport path, in closed form."""
    m, s = float(MEAN[j]), float(SPREAD[j])
    return m + (t * s**2 - (1 - t)) / ((1 - t) ** 2 + (t * s) ** 2) * (x - t * m)


def test_the_loss_of_the_flow_is_that_of_loops():
    """(v(x_t) - (z - ε))² with the exact velocity of normal latents."""
    live = built("latent_flow")
    rows = fitting_rows()
    step = step_of(live, rows, seeded(1))
    live.field_of = exact_field_of_flow
    total = 0.0
    for i in range(16):
        t = float(step.time[i])
        for j in range(5):
            if not step.asked.wanted[i, (0, 0, 1, 2, 2)[j]]:
                continue
            z, eps = float(step.z[i, j]), float(step.eps[i, j])
            x = (1 - t) * eps + t * z
            total += (velocity(x, t, j) - (z - eps)) ** 2
    assert abs(float(live.loss(step)) - total / 80) <= 1e-9 * total / 80


def test_the_loss_of_the_diffusion_is_that_of_loops():
    """The error of the score, -E[ε|y] / σ, weighted by (σ² / α)², with that of normal latents."""
    live = built("latent_diffusion")
    rows = fitting_rows()
    step = step_of(live, rows, seeded(1))
    live.field_of = exact_field
    total = 0.0
    for i in range(16):
        alpha = math.sin(math.pi / 2 * float(step.time[i]))
        sigma = math.cos(math.pi / 2 * float(step.time[i]))
        for j in range(5):
            if not step.asked.wanted[i, (0, 0, 1, 2, 2)[j]]:
                continue
            m, s = float(MEAN[j]), float(SPREAD[j])
            z, eps = float(step.z[i, j]), float(step.eps[i, j])
            y = alpha * z + sigma * eps
            score = -(y - alpha * m) / (sigma**2 + (alpha * s) ** 2)
            total += (sigma / alpha * (score + eps / sigma)) ** 2
    assert abs(float(live.loss(step)) - total / 80) <= 1e-9 * total / 80


@EACH
def test_blocks_have_the_times_of_what_is_known_of_them(name):
    """Given ones the end, wanted ones the row's, others the beginning and no value."""
    live = built(name)
    rows = fitting_rows()
    again = seeded(1)
    step = step_of(live, rows, seeded(1))
    like = torch.zeros(0, dtype=torch.float64)
    index = picked(torch.rand(16, generator=again, dtype=like.dtype), 40, None)
    had = rows.condition.observed[index]
    subset = subsets(had, torch.rand(16, 4, generator=again, dtype=like.dtype))
    seen = {}

    def field(y, u, told):
        seen.update(y=y[0], u=u)
        return torch.zeros_like(y)

    live.field_of = field
    live.loss(step)
    for i in range(16):
        t = float(step.time[i])
        for j, owner in enumerate(OWNERS):
            u = float(seen["u"][i, (0, 0, 1, 2, 2)[j]])
            if owner is None or (had[i, owner] and not subset[i, owner]):
                assert u == t
                assert step.asked.wanted[i, (0, 0, 1, 2, 2)[j]]
            elif name == "latent_diffusion" and subset[i, owner]:
                assert u == 1
                assert seen["y"][i, j] == step.z[i, j]
            else:
                assert u == 0
                assert seen["y"][i, j] == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [("latent_flow", {"integration": 200}), ("latent_diffusion", {"integration": 4000, "eta": 0})],
)
def test_exact_fields_bring_noise_to_the_latents_that_belong_to_it(name, options):
    """Of a normal each number moves along its quantile."""
    live = built(name, **options)
    live.field_of = FIELDS[name]
    asked = nothing_known(live, 3)
    eps = normal(seeded(2), 4, 3, 5)
    z = live.generated(asked, torch.zeros_like(eps), eps, seeded(0))
    tolerance = 1e-3 if name == "latent_flow" else 5e-3
    torch.testing.assert_close(z, MEAN + SPREAD * eps, rtol=0, atol=tolerance)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_fresh_noise_keeps_the_distribution(eta):
    live = built("latent_diffusion", integration=200, eta=eta)
    live.field_of = exact_field
    n = 4000
    asked = nothing_known(live, 1)
    eps = normal(seeded(2), n, 1, 5)
    z = live.generated(asked, torch.zeros_like(eps), eps, seeded(0))[:, 0]
    assert ((z.mean(0) - MEAN) / SPREAD * n**0.5).abs().max() < 3
    assert ((z.std(0) / SPREAD - 1) * (2 * n) ** 0.5).abs().max() < 3
    own = MEAN + SPREAD * eps[:, 0]
    assert not torch.allclose(z, own, atol=0.1)


@EACH
def test_means_are_what_the_field_makes_of_noise_alone(name):
    live = built(name)
    live.field_of = FIELDS[name]
    z, private = live.mean(Condition.nothing(SIZES, 3, like=MEAN), seeded(0))
    assert not private  # no modality was in a fit
    torch.testing.assert_close(z, MEAN[:2].expand(3, 2), rtol=1e-9, atol=1e-9)


# subsets, rows and units


def test_every_size_of_subset_occurs_as_often_within_what_a_row_has():
    n = 30_000
    observed = torch.tensor(PATTERNS).repeat(n // 7 + 1, 1)[:n]
    kept = subsets(observed, torch.rand(n, 4, generator=seeded(0)))
    assert not (kept & ~observed).any()
    for pattern in PATTERNS:
        rows = (observed == torch.tensor(pattern)).all(1)
        own = kept[rows][:, torch.tensor(pattern)]
        k = sum(pattern)
        for size in range(k + 1):
            of_size = own[own.sum(1) == size]
            share, expected = len(of_size) / len(own), 1 / (k + 1)
            error = math.sqrt(expected * (1 - expected) / len(own))
            assert abs(share - expected) < 4 * error
            if 0 < size < k:  # all of a size alike
                each = of_size.double().mean(0)
                error = math.sqrt(size / k * (1 - size / k) / len(of_size))
                assert ((each - size / k).abs() < 4 * error).all()


def test_rows_are_picked_in_proportion_to_their_weights():
    uniform = torch.rand(20_000, generator=seeded(0), dtype=torch.float64)
    for weight in (None, torch.tensor([1.0, 0.5, 2.0, 0.5])):
        expected = torch.full((4,), 0.25) if weight is None else weight / 4
        share = picked(uniform, 4, weight).bincount(minlength=4) / 20_000
        assert ((share - expected).abs() < 4 * (expected * (1 - expected) / 20_000).sqrt()).all()
    assert picked(torch.tensor([0.0, 1.0 - 1e-12]).double(), 4, None).tolist() == [0, 3]
    assert picked(torch.ones(1), 4, torch.ones(4)).tolist() == [3]


def test_moments_are_those_of_the_values_that_are_there():
    values = normal(seeded(0), 30, 3)
    present = torch.rand(30, 3, generator=seeded(1)) < 0.6
    present[:, 2] = False
    times = torch.arange(30) % 3 + 1
    mean, spread = moments(torch.where(present, values, torch.nan), present, times.double())
    for j in range(2):
        column = values[present[:, j], j].repeat_interleave(times[present[:, j]])
        assert float(mean[j]) == pytest.approx(float(column.mean()), rel=1e-12)
        assert float(spread[j]) == pytest.approx(float(column.std(correction=0)), rel=1e-12)
    assert (float(mean[2]), float(spread[2])) == (0, 1)


@EACH
def test_weights_count_in_the_units_and_in_the_rows_of_steps(name):
    """Rows that hardly count are as good as absent."""
    weight = torch.ones(40).double()
    weight[20:] = 1e-12
    rows = fitting_rows(weight=weight)
    few = FittingRows(
        rows.z[:20],
        {key: w[:20] for key, w in rows.private.items()},
        rows.condition.take(torch.arange(20)),
    )
    draws = []
    for each in (rows, few, fitting_rows()):
        live = built(name)
        live.fit(each, 0)
        draws.append(live.sample(few.condition, 2, seeded(0))[0])
    torch.testing.assert_close(draws[0], draws[1], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(draws[0], draws[2], atol=1e-2)


# doors


@EACH
def test_the_sampler_conforms(name):
    from mvkit.testing import check_component

    options = {"steps": 300, "width": 64, "layers": 2, "batch": 128, "lr": 3e-3}
    check_component("sampler", name, **options)


def model(**options):
    modalities = {
        "a": Modality((3,), private_dim=1),
        "b": (2,),
        "c": Modality((2,), private_dim=2),
    }
    return Model(modalities, latent_dim=2, aggregator="mopoe", seed=0, **options)


def batch(b=21, **options):
    generator = seeded(0)
    data = {k: torch.randn(b, p, generator=generator) for k, p in (("a", 3), ("b", 2), ("c", 2))}
    return Batch(data, torch.tensor([PATTERNS[i % 7] for i in range(b)]), **options)


def drawn(made, name, given=None, rows=None, **options):
    options = {"n": 2, "sampler": name, "empty": "prior", "generator": seeded(1), **options}
    return made.translate(batch() if rows is None else rows, ["b", "c"], given, **options)


@EACH
def test_a_sampler_is_fitted_saved_and_asked_for_any_subset(name, tmp_path):
    made = model()
    mvkit.fit_sampler(made, batch(), {"name": name, **SMALL})
    mvkit.save(made, tmp_path / "m")
    assert "mvkit-diffusion" in mvkit.describe(tmp_path / "m")["packages"]
    assert repr(made.samplers[f"mvkit-diffusion/{name}"].spec) in repr(made)
    again = mvkit.load(tmp_path / "m")
    subsets_of_names = [s for k in range(4) for s in itertools.combinations("abc", k)]
    for given in (None, *subsets_of_names):
        for options in ({}, {"latent": "mean", "n": 1}):
            first = drawn(made, name, given, **options)
            second = drawn(again, name, given, **options)
            for key, x in first.items():
                assert torch.isfinite(x).all()
                assert torch.equal(x, second[key])
    assert made.sample(3, sampler=name)["c"].shape == (3, 2)
    assert not any(p.requires_grad for p in again.samplers.parameters())


@EACH
def test_another_fit_with_one_seed_has_the_same_bits(name):
    states = []
    for seed in (0, 0, 1):
        made = model()
        before = torch.get_rng_state()
        mvkit.fit_sampler(made, batch(), {"name": name, **SMALL}, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        states.append(made.samplers.state_dict())
    assert all(torch.equal(x, states[1][key]) for key, x in states[0].items())
    assert not all(torch.equal(x, states[2][key]) for key, x in states[0].items())


@EACH
def test_the_spec_goes_through_json_and_tells_bad_options(name):
    made = as_part("sampler", {"name": name, "steps": None, "width": 32})
    assert as_part("sampler", json.loads(json.dumps(to_dict(made)))) == made
    for option, value in (("lr", 0.0), ("steps", 0), ("ema", 1.0), ("integration", 0)):
        with pytest.raises(mvkit.SpecError, match=option):
            as_part("sampler", {"name": name, option: value})


@EACH
def test_values_that_are_missing_change_no_bit(name):
    junk = {key: x.clone() for key, x in batch().data.items()}
    for i, x in enumerate(junk.values()):
        x[~batch().mask[:, i]] = 1e6
    states = []
    for rows in (batch(), Batch(junk, batch().mask)):
        made = model()
        mvkit.fit_sampler(made, rows, {"name": name, **SMALL})
        states.append(drawn(made, name, rows=rows))
    assert all(torch.equal(x, states[1][key]) for key, x in states[0].items())


@EACH
def test_private_latents_of_what_is_given_are_draws_of_their_posteriors(name):
    live = built(name)
    live.fit(fitting_rows(), 0)
    condition = fitting_rows().condition
    _, private = live.sample(condition, 3, seeded(4))
    own = condition.private_draws(3, seeded(4))
    for key, w in private.items():
        known = condition.observes(key)
        torch.testing.assert_close(w[:, known], own[key][:, known], rtol=1e-9, atol=1e-9)
        assert not torch.allclose(w[:, ~known], own[key][:, ~known])


@EACH
def test_no_rows_have_no_draws(name):
    live = built(name)
    live.fit(fitting_rows(), 0)
    nothing = fitting_rows().condition.take(torch.arange(0))
    for z, private in (live.sample(nothing, 3, seeded(0)), (live.mean(nothing, seeded(0)))):
        assert z.shape[-2:] == (0, 2)
        assert private["c"].shape[-2:] == (0, 2)


@EACH
def test_blocks_of_rows_change_nothing(name, monkeypatch):
    live = built(name)
    live.fit(fitting_rows(), 0)
    condition = fitting_rows().condition
    whole, _ = live.sample(condition, 3, seeded(0))
    monkeypatch.setattr("mvkit_diffusion.samplers.MEMORY", 7 * 4 * 3 * 3 * SMALL["width"])
    parts, _ = live.sample(condition, 3, seeded(0))
    torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-9)


@EACH
def test_latents_follow_covariates(name):
    """Latents that only a covariate tells of are drawn where it says."""
    b = 1000
    sizes = attrs.evolve(SIZES, private={}, context=1)
    context = torch.arange(b)[:, None].double() % 2
    codes = {key: Code(normal(seeded(5), b, 2), torch.ones(b, 2).double()) for key in "abc"}
    observed = torch.tensor([PATTERNS[i % 7] for i in range(b)])
    every = torch.ones_like(observed)
    condition = Condition(sizes, every, codes, {}, None, context).keep(observed)
    z = 2 * context + 0.5 * normal(seeded(6), b, 2)
    with global_seed(0):
        options = {"steps": 500, "width": 32, "layers": 2, "batch": 128, "lr": 5e-3}
        live = as_part("sampler", {"name": name, **options}).build(2, sizes).double()
    live.fit(FittingRows(z, {}, condition), 0)
    nothing = Condition.nothing(sizes, 2, like=z, context=context[:2])
    for asked in (nothing, condition.take(torch.tensor([0, 1]))):
        draws, _ = live.sample(asked, 500, seeded(0))
        torch.testing.assert_close(draws.mean(0), 2 * context[:2].expand(2, 2), rtol=0, atol=0.2)
        torch.testing.assert_close(draws.std(0), draws.new_full((2, 2), 0.5), rtol=0, atol=0.1)


@EACH
def test_priors_that_depend_on_covariates_are_served(name):
    site = Covariate(levels=("A", "B"), into=("decoders", "prior"))
    made = model(covariates={"site": site}, prior="learnable")
    rows = batch(covariates={"site": ["A", "B", "B"] * 7})
    mvkit.fit_sampler(made, rows, {"name": name, **SMALL, "steps": 50, "lr": 1e-2})
    draws = [drawn(made, name, ("a",), rows, covariates={"site": site}) for site in "AB"]
    assert not torch.allclose(draws[0]["b"], draws[1]["b"])


@EACH
def test_a_modality_that_no_row_had_is_refused_and_keeps_its_prior(name):
    made = model()
    rows = Batch(batch().data, batch().mask & torch.tensor([True, True, False]))
    rows = rows.take(rows.mask.any(1).nonzero()[:, 0])
    mvkit.fit_sampler(made, rows, {"name": name, **SMALL})
    with pytest.raises(RequestError, match=f"'{name}': no row that it was fitted to had 'c'"):
        drawn(made, name, ("c",))
    live = made.samplers[f"mvkit-diffusion/{name}"]
    like = live.latents.loc
    _, private = live.sample(Condition.nothing(live.sizes, 2, like=like, family=Normal()), 1, None)
    assert set(private) == {"a"}
    assert torch.isfinite(drawn(made, name, ("a",))["c"]).all()


@EACH
def test_other_models_and_single_rows_are_refused(name):
    live = built(name)
    live.fit(fitting_rows(), 0)
    other = SamplerSizes(3, ("a", "b"), {})
    with pytest.raises(RequestError, match="fitted to a model of other modalities or latents"):
        live.sample(Condition.nothing(other, 2, like=MEAN), 1, seeded(0))
    with pytest.raises(mvkit.DataError, match=f"'{name}': needs 2 rows at least; got 1"):
        mvkit.fit_sampler(model(), batch(1), {"name": name, **SMALL})


@EACH
def test_a_stack_is_served(name, tmp_path):
    made = mvkit.recipes.nexus({"a": (3,), "b": (2,), "c": (2,)}, seed=0)
    mvkit.fit_sampler(made, batch(), {"name": name, **SMALL})
    mvkit.save(made, tmp_path / "m")
    again = mvkit.load(tmp_path / "m")
    for given in (("a",), ("a", "c"), ()):
        first, second = drawn(made, name, given), drawn(again, name, given)
        assert torch.isfinite(first["b"]).all()
        assert torch.equal(first["b"], second["b"])


@EACH
def test_impute_and_evaluate_take_it(name):
    made = model()
    mvkit.fit_sampler(made, batch(), {"name": name, **SMALL})
    filled = mvkit.impute(made, batch(), sampler=name)
    assert all(torch.isfinite(x).all() for x in filled.data.values())
    labelled = Batch(batch().data, extra={"label": torch.arange(21) % 2})
    judge = dict.fromkeys("abc", lambda x: (x.flatten(1)[:, 0] > 0).long().numpy())
    report = mvkit.evaluate(made, labelled, ["coherence"], classifiers=judge, sampler=name)
    assert 0 <= report["coherence/given 1"] <= 1


def private_alone():
    """A latent for each modality and none that is shared, as MLD has them."""
    modalities = {name: Modality((2,), private_dim=2, encoder="linear") for name in "ab"}
    made = Model(modalities, latent_dim=0, seed=0).eval().requires_grad_(False)
    for encoder in made.encoders.values():  # the latent is the row, all but exactly
        encoder[-1].weight.zero_()
        encoder[-1].weight[:2] = torch.eye(2)
        encoder[-1].bias.copy_(torch.tensor([0.0, 0.0, -9.0, -9.0]))
    return made


@EACH
def test_models_without_a_shared_latent_go_from_one_modality_to_the_other(name, tmp_path):
    """Which takes the correlation of private latents, of which no posterior knows."""
    made = private_alone()
    a = torch.randn(4000, 2, generator=seeded(0))
    b = 0.8 * a.flip(1) + 0.6 * torch.randn(4000, 2, generator=seeded(1))
    mask = torch.ones(4000, 2).bool()
    mask[:400, 0] = False
    mask[400:800, 1] = False
    spec = {"name": name, "steps": 800, "batch": 256, "width": 64, "layers": 2, "lr": 3e-3}
    mvkit.fit_sampler(made, Batch({"a": a, "b": b}, mask), spec)
    mvkit.save(made, tmp_path / "m")
    live = mvkit.load(tmp_path / "m").samplers[f"mvkit-diffusion/{name}"]
    sizes = live.sizes
    w = Code(torch.tensor([[1.0, -2.0]]), torch.full((1, 2), 0.01))
    zero = Code(torch.zeros(1, 0), torch.ones(1, 0))
    observed = torch.tensor([[True, False]])
    rest = Code(torch.zeros(1, 2), torch.ones(1, 2))
    condition = Condition(sizes, observed, {"a": zero, "b": zero}, {"a": w, "b": rest}, Normal())
    z, private = live.sample(condition, 2000, seeded(0))
    assert z.shape == (2000, 1, 0)
    drawn_b = private["b"][:, 0]
    torch.testing.assert_close(drawn_b.mean(0), torch.tensor([-1.6, 0.8]), rtol=0, atol=0.15)
    torch.testing.assert_close(drawn_b.std(0), torch.full((2,), 0.6), rtol=0, atol=0.1)
    assert (private["a"] - w.loc).abs().max() < 0.06
    assert made.translate({"a": a[:3]}, "b", sampler=name)["b"].shape == (1, 3, 2)
    assert made.sample(3, sampler=name)["b"].shape == (3, 2)


def test_samplers_of_shared_latents_are_refused_without_them():
    with pytest.raises(RequestError, match="no shared latent; only private ones"):
        mvkit.fit_sampler(private_alone(), {"a": torch.zeros(9, 2), "b": torch.zeros(9, 2)})
