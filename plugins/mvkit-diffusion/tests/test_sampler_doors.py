"""The samplers of latents in models: files, seeds, gaps, covariates, and what is refused.

Axes: n draws, b rows, m modalities, v numbers of all latents, s blocks of them.
"""

import itertools
import json

import attrs
import pytest
import torch
from mvkit_diffusion.samplers import LatentSampler
from sampler_rows import EACH, PATTERNS, SIZES, SMALL, built, fitting_rows, normal

import mvkit
from mvkit import Batch, Covariate, Modality, Model, RequestError
from mvkit.core.noise import global_seed, seeded
from mvkit.parts.conditional_samplers import Code, Condition, FittingRows, SamplerSizes
from mvkit.parts.families import Normal
from mvkit.registry.spec import as_part, to_dict


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
        live.sample(Condition.nothing(other, 2, like=live.latents.loc), 1, seeded(0))
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


@EACH
def test_it_is_fitted_to_means_of_posteriors_or_to_draws(name, monkeypatch):
    rows = []
    monkeypatch.setattr(LatentSampler, "fit", lambda self, given, seed: rows.append(given))
    made = model()
    for latents in ("means", "draws"):
        mvkit.fit_sampler(made, batch(), {"name": name, "latents": latents, **SMALL})
    means, draws = rows
    torch.testing.assert_close(means.z, made.encode(batch()))
    experts = made.experts(made.conform(batch()))
    for key, w in means.private.items():
        had = means.condition.observes(key)
        posterior = Code(*(each.detach() for each in experts.private[key]))
        torch.testing.assert_close(w[had], posterior.loc[had])
        off = (draws.private[key] - posterior.loc)[had] / posterior.scale[had]
        assert 0.5 < float(off.std()) < 1.5
    assert not torch.allclose(means.z, draws.z, atol=1e-2)


@pytest.mark.parametrize("latents", ["means", "draws"])
def test_the_network_sees_of_private_latents_what_it_was_fitted_to(latents):
    live = built("latent_diffusion", latents=latents)
    live.fit(fitting_rows(), 0)
    seen = []
    field_of = live.field_of
    live.field_of = lambda y, u, condition: seen.append(y) or field_of(y, u, condition)
    condition = fitting_rows().condition.take(torch.tensor([0]))  # has a, b and c
    loc = torch.cat([condition.private["a"].loc, condition.private["c"].loc], 1)
    z, private = live.sample(condition, 3, seeded(0))
    shown = seen[0][..., 2:] * live.latents.scale[2:] + live.latents.loc[2:]
    drawn = torch.cat([private["a"], private["c"]], -1)
    expected = loc.expand(3, 1, 3) if latents == "means" else drawn
    torch.testing.assert_close(shown, expected)
    assert not torch.allclose(drawn[0], drawn[1])
