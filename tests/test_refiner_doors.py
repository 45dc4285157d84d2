"""Refiners at every door: files, run files, runs that resume; and what they know of the given."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import model, rows
from test_resume import assert_same, interrupted, uninterrupted
from torch import nn

import mvkit
from mvkit import DataError, Modality, Model, SpecError, Stage
from mvkit.apps.cli import main
from mvkit.parts import Energy, Refine
from mvkit.registry.spec import as_part, to_dict
from mvkit.testing import check_component, injected_noise

FILES = Path(__file__).parent / "files" / "refiners"
PLAIN = Energy(hidden=8)
TOLD = Energy(hidden=8, knows_given=True)
KINDS = pytest.mark.parametrize("spec", [PLAIN, TOLD], ids=["plain", "told"])
QUIET = {"progress": False, "device": "cpu"}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def fitted(spec=TOLD, modalities=("a", "b"), **options):
    made = model("mopoe", private=1, **options)
    mvkit.fit_refiner(made, rows(14), spec, modalities, epochs=1, **QUIET)
    return made


def from_one_stream(generator):
    """Noise that all sites draw from one generator in turn, as they did when the file was made."""

    def source(site, shape, dtype, device):
        draw = torch.rand if site.startswith("choice/") else torch.randn
        return draw(shape, dtype=dtype, device=device, generator=generator)

    return source


# files, run files, runs


def test_a_file_from_before_they_were_told_draws_as_it_did():
    made = mvkit.load(FILES / "refined.safetensors")
    assert not made.refiners["a"].spec.knows_given
    answers = json.loads((FILES / "answers.json").read_text())
    x = {"a": torch.linspace(-1, 1, 12).reshape(4, 3)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with injected_noise.noise(from_one_stream(seeded(5))):
            drawn = made.translate(x, ["a", "b"], refine=True)
    for name, values in drawn.items():
        np.testing.assert_allclose(values, answers[name], rtol=1e-5, atol=1e-6)


def test_specs_are_plain_data_and_quiet():
    for spec in (PLAIN, TOLD):
        assert as_part("refiner", json.loads(json.dumps(to_dict(spec)))) == spec
    assert "knows_given" not in to_dict(PLAIN)
    assert to_dict(TOLD)["knows_given"] is True
    with pytest.raises(SpecError, match="knows_given: got 'yes'; expected True or False"):
        Energy(knows_given="yes")


@KINDS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_files_keep_them(spec, dtype, tmp_path):
    made = fitted(spec).to(dtype)
    mvkit.save(made, tmp_path / "m")
    loaded = mvkit.load(tmp_path / "m")
    assert loaded.refiners["a"].spec == spec
    assert repr(spec) in repr(loaded)
    for given in (None, "b", ()):
        options = {"refine": True, "n": 2, "empty": "prior"}
        first, second = (
            m.translate(rows(), ["a", "b"], given, generator=seeded(), **options)
            for m in (made, loaded)
        )
        for name, x in first.items():
            assert x.dtype == dtype
            assert torch.isfinite(x).all()
            assert torch.equal(x, second[name])


TEXT = """
[data]
name = "linear_gaussian"
rows = 60
missing = 0.3
[model]
recipe = "mopoe"
latent_dim = 2
[train]
batch_size = 20
[[train.stages]]
epochs = 1
[[train.stages]]
objective = {name = "refine", refiners = {m0 = {name = "energy", hidden = 8, knows_given = true}}}
epochs = 1
trainable = ["refiners.*"]
"""


def test_a_run_file_trains_them(tmp_path):
    (tmp_path / "a.toml").write_text(TEXT)
    folders = tmp_path / "one", tmp_path / "other"
    assert main(["train", str(tmp_path / "a.toml"), "--folder", str(folders[0])]) == 0
    assert main(["train", str(folders[0] / "run.toml"), "--folder", str(folders[1])]) == 0
    first, second = (mvkit.load(folder / "model.safetensors") for folder in folders)
    assert first.refiners["m0"].spec == TOLD
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert first.sample(2, refine="m0")["m0"].isfinite().all()


def test_a_stage_resumes_with_the_same_bits(tmp_path):
    refine = {"name": "refine", "refiners": {"a": PLAIN, "b": TOLD}}
    plan = [Stage(None, 1), Stage(refine, 2, ["refiners.*"])]
    options = {"data": rows(14), "stages": plan, "progress": False}

    def make():
        return model("mopoe", private=1)

    whole = uninterrupted(make, tmp_path / "whole", **options)
    assert_same(whole, interrupted(make, 8, tmp_path / "parts", **options))


def test_a_modality_that_no_row_has_learns_nothing_and_is_told():
    made = fitted(PLAIN)
    before = dict(made.refiners)
    batch = rows(14)
    batch.mask[:, 0] = False
    batch.mask[:, 1] = True
    with pytest.raises(DataError, match="fit_refiner: no row has 'a', so that its refiner"):
        mvkit.fit_refiner(made, batch, PLAIN, epochs=1, **QUIET)
    assert dict(made.refiners) == before


# what they know of the given


def test_it_conforms():
    check_component("refiner", "energy", hidden=8, knows_given=True)


class Recorded(nn.Module, mvkit.Refiner):
    """A refiner that notes what it is told."""

    knows_given = True

    def __init__(self, inner, latent_draws=3):
        super().__init__()
        self.inner = inner
        self.latent_draws = latent_draws
        self.asked = []
        self.lost = []

    def refine(self, out, z, context, generator, given=None):
        self.asked.append(given)
        return self.inner.refine(out, z, context, generator, given)

    def loss(self, out, x, z, context, observed, generator, given=None):
        self.lost.append((out, z, given))
        return (out.sum(0) - x).square().flatten(1).sum(1)


def test_draws_are_told_what_was_given():
    made = fitted()
    recorded = made.refiners["a"] = Recorded(made.refiners["a"])
    batch = rows()
    has = batch.mask[:, 0]
    options = {"refine": "a", "n": 3, "empty": "prior"}
    made.translate(batch, "a", **options)
    made.translate(batch, "a", ("b", "c"), **options)
    made.translate(batch, "a", (), **options)
    made.sample(5, refine="a")
    own, others, nothing, new = recorded.asked
    assert torch.equal(own.reshape(3, 8), has.expand(3, 8))
    assert has.any()
    assert not has.all()
    assert not others.any()
    assert not nothing.any()
    assert new is None
    spec = {"name": "gmm", "components": 2, "floor": 0.1, "conditional": True}
    mvkit.fit_sampler(made, rows(40), spec)
    made.translate(batch, "a", sampler="gmm", **options)
    assert torch.equal(recorded.asked[-1].reshape(3, 8), has.expand(3, 8))


@pytest.mark.parametrize("parts", [("mopoe", "mog"), ("poe",), ("joint",)])
def test_latents_of_rows_that_were_given_it_are_one_draw(parts):
    made = model(*parts, private=1).eval()
    mvkit.fit_refiner(made, rows(14), TOLD, ["a", "b"], epochs=1, **QUIET)
    for name in "ab":
        made.refiners[name] = Recorded(made.refiners[name])
    batch = made.conform(rows(70))
    made.loss(batch, objective="refine", generator=seeded())
    parts_given = []
    for m, name in enumerate("ab"):
        ((out, z, given),) = made.refiners[name].lost
        parts_given.append(given)
        assert out.shape == (3, 70, *made.modalities[name].shape)
        assert z.shape == (3, 70, 3)
        assert bool((given <= batch.observed[:, m]).all())
        same = (z == z[:1]).all(0).all(1)
        assert torch.equal(same, given)
        assert {0, 1} == set(given.long().tolist())
        plain = made.decoding.decode(name, z[..., :2], z[..., 2:])
        assert torch.equal(plain, out)
    assert bool((parts_given[0] != parts_given[1]).any())  # one part decides over both


def test_a_row_that_is_given_nothing_has_latents_of_the_prior():
    """With one modality, latents that did not see it are the prior's: injected noise shows it."""
    made = Model({"a": (3,)}, latent_dim=2, seed=0).double().eval()
    data = {"a": torch.randn(200, 3, generator=seeded(), dtype=torch.float64)}
    mvkit.fit_refiner(made, data, TOLD, epochs=1, **QUIET)
    recorded = made.refiners["a"] = Recorded(made.refiners["a"])
    with mvkit.testing.noise(lambda site, shape, dtype, device: numbers(site, shape, dtype)):
        made.loss(data, objective="refine")
    ((_, z, given),) = recorded.lost
    assert 60 < int(given.sum()) < 140
    eps = numbers("z", (3, 1, 200, 2), torch.float64)[:, 0]
    posterior = made.posterior(data)
    torch.testing.assert_close(z[:, ~given], eps[:, ~given])
    own = posterior.mean + eps[0] * posterior.scale[0]
    torch.testing.assert_close(z[0, given], own[given])


def numbers(site, shape, dtype):
    """Noise that only depends on the shape: uniform at choices, else normal."""
    draw = torch.rand if site.startswith("choice") else torch.randn
    return draw(shape, generator=seeded(math.prod(shape)), dtype=dtype)


def test_priors_of_rows_have_no_latents_of_nothing():
    made = mvkit.recipes.mmvm({"a": (3,), "b": (2,)}, latent_dim=2, seed=0)
    data = {"a": torch.randn(40, 3), "b": torch.randn(40, 2)}
    mvkit.fit_refiner(made, data, TOLD, epochs=1, **QUIET)
    for name in "ab":
        made.refiners[name] = Recorded(made.refiners[name])
    made.loss(data, objective="refine", generator=seeded())
    given = [made.refiners[name].lost[0][2] for name in "ab"]
    assert bool((given[0] | given[1]).all())


def test_a_batch_without_rows_has_a_loss():
    made = fitted()
    empty = made.conform(rows()).take(slice(0, 0))
    loss = Refine().forward(made, empty, made.experts(empty))
    assert loss.loss.item() == 0.0
    loss.loss.backward()


def test_unobserved_values_change_nothing():
    def trained(value):
        batch = rows(14)
        for m, x in enumerate(batch.data.values()):
            x[~batch.mask[:, m]] = value
        made = model("mopoe", "mog", private=1)
        mvkit.fit_refiner(made, batch, TOLD, epochs=2, batch_size=5, **QUIET)
        return made.refiners.state_dict()

    first, second = trained(0.0), trained(77.0)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


# spreads: x_a = Λ_a z + ε_a, x_b = z + ε_b, with exact posteriors but for how sure experts are

LOADING = {"a": torch.tensor([[1.0], [0.5]]), "b": torch.tensor([[1.0]])}
NOISE = {"a": 0.5, "b": 1.0}


class Expert(nn.Module):
    """The exact expert of a modality, e^`surer` times as sure."""

    def __init__(self, name, surer):
        super().__init__()
        self.register_buffer("solve", torch.linalg.pinv(LOADING[name]))
        raw = math.log(NOISE[name] ** 2 / float(LOADING[name].square().sum())) - surer
        self.register_buffer("raw", torch.tensor([raw]))

    def forward(self, x):
        return torch.cat([x @ self.solve.T, self.raw.expand(len(x), -1)], -1)


class Loading(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.register_buffer("loading", LOADING[name])

    def forward(self, z):
        return z @ self.loading.T


def linear_gaussian(surer):
    modalities = {}
    for name, loading in LOADING.items():
        expert = Expert(name, surer if name == "a" else 0.0)
        modalities[name] = Modality((len(loading),), encoder=expert, decoder=Loading(name))
    return Model(modalities, latent_dim=1, aggregator="poe", seed=0)


def drawn(n, seed):
    generator = seeded(seed)
    z = torch.randn(n, 1, generator=generator)
    data = {}
    for name, loading in LOADING.items():
        eps = torch.randn(n, len(loading), generator=generator)
        data[name] = z @ loading.T + NOISE[name] * eps
    return data


def closed_form(given, surer, rows):
    """Mean (b, 2) and covariance (2, 2) of what generation of a is to be, given b, or a and b.

    Without a: p(x_a|x_b). With it: p(x_a|z) of latents z that have seen it, over these latents.
    """
    precision = {n: float(LOADING[n].square().sum()) / NOISE[n] ** 2 for n in LOADING}
    loading = LOADING["a"].double()
    noise = NOISE["a"] ** 2 * torch.eye(2, dtype=torch.float64)
    if "a" not in given:
        total = 1 + precision["b"]
        mean = rows["b"].double() * precision["b"] / total
        return mean @ loading.T, loading @ loading.T / total + noise
    believed = {"a": precision["a"] * math.exp(surer), "b": precision["b"]}
    total = 1 + sum(believed.values())
    solve = torch.linalg.pinv(loading)
    share = {n: believed[n] / total for n in believed}
    slope = sum(share.values())  # of the mean of q(z|x_a, x_b) in the true z
    variance = slope**2 + sum(share[n] ** 2 / precision[n] for n in share) + 1 / total
    together = loading * slope + noise @ solve.T * share["a"]  # Cov(x_a, z)
    mean = share["a"] * rows["a"].double() @ solve.T + share["b"] * rows["b"].double()
    left = loading @ loading.T + noise - together @ together.T / variance
    spread = together @ together.T / variance**2 / total
    return mean @ together.T / variance, left + spread


def test_the_closed_form_is_that_of_least_squares():
    """Latents that have seen x_a, in a large sample."""
    train = drawn(200_000, 3)
    made = linear_gaussian(3.0)
    posterior = made.posterior(train)
    z = posterior.rsample(1, seeded(1))[0].detach().double()
    x = train["a"].double()
    slope = (z * x).mean(0) / z.square().mean()
    mean, covariance = closed_form(("a", "b"), 3.0, train)
    torch.testing.assert_close(posterior.mean.double() @ slope[None], mean, rtol=0, atol=0.03)
    left = x - z * slope
    spread = left.T @ left / len(x) + slope[:, None] * slope * posterior.scale.square().mean()
    torch.testing.assert_close(spread, covariance, rtol=0, atol=0.01)


@pytest.mark.slow
def test_spreads_are_right_with_the_modality_and_without():
    """Where the expert is too sure, so that latents that have seen x_a tell much of its noise."""
    surer = 3.0
    made = linear_gaussian(surer)
    train, test = drawn(8000, 0), drawn(400, 1)
    options = {"batch_size": 250, **QUIET}
    part = Energy(knows_given=True)
    mvkit.fit_refiner(made, train, part, "a", epochs=60, lr=3e-3, **options)
    for lr in (1e-3, 3e-4):
        mvkit.fit(made, train, stages=[Stage("refine", 30, ["refiners.*"])], lr=lr, **options)
    for given in (("b",), ("a", "b")):
        asked = {"given": given, "n": 300, "refine": True, "generator": seeded(2)}
        draws = made.translate(test, "a", **asked)["a"].double()
        mean, covariance = closed_form(given, surer, test)
        off = draws - draws.mean(0)
        spread = off.square().mean((0, 1)).sqrt()
        expected = covariance.diagonal().sqrt()
        np.testing.assert_allclose(spread, expected, rtol=0.08)
        assert (draws.mean(0) - mean).square().mean().sqrt() < 0.15
