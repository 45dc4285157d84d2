"""Guidance of pictures: its velocities against closed forms, its loss and draws against loops."""

import itertools
import math

import pytest
import torch
from mvkit_diffusion import angles
from mvkit_diffusion.diffusion import HIDDEN, STRENGTH, Diffusion

import mvkit
from mvkit import Batch, Modality, Model, SpecError
from mvkit.parts import RefinerSizes
from mvkit.registry import to_dict

NAME = "mvkit-diffusion/diffusion"
QUIET = {"progress": False, "device": "cpu"}
PICTURE = (1, 8, 8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def refiner(shape=PICTURE, seed=0, context=0, **options):
    torch.manual_seed(seed)
    sizes = RefinerSizes("a", shape, latent=2, context=context)
    options = {"hidden": 8, "layers": 1, "steps": 4} | options
    live = Diffusion(**options).build(sizes).double().eval()
    live.spread.squares.fill_(6.0)
    live.spread.numbers.fill_(24.0)  # a spread of 0.5
    if live.guidance:
        live.size.squares.fill_(32.0)
        live.size.numbers.fill_(2.0)  # rows of 4, which are divided by 1
    return live


def of_gaussian(mean, scale):
    """The velocity that is expected of noisy draws of N(mean, scale²), by regression."""

    def velocity(noisy, angle):
        alpha, sigma = math.cos(angle), math.sin(angle)
        deviation = (noisy - alpha * mean) / (alpha**2 * scale**2 + sigma**2)
        return alpha * sigma * deviation - sigma * (mean + alpha * scale**2 * deviation)

    return velocity


@pytest.mark.parametrize("angle", [0.0, 0.01, 0.4, 1.1, 1.5, math.pi / 2])
@pytest.mark.parametrize("ratio", [0.6, 1.0, 3.0, 200.0])
def test_what_knows_no_mean_tells_the_velocity_of_residuals(angle, ratio):
    """X is Gaussian; residuals from any mean are too, with a velocity of a closed form."""
    spread, center, scale = 0.25, 0.7, 0.9
    out, noisy = normal(6, 3, seed=1), normal(6, 3)
    size = ratio * spread
    of_rows = of_gaussian(center / size, scale / size)
    v = angles.without_mean(of_rows, noisy, angle, out / spread, ratio)
    expected = of_gaussian((center - out) / spread, scale / spread)(noisy, angle)
    assert (v - expected).abs().max() < 1e-9 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(("guided", "begin"), [(0.7, 1.0), (1.0, 0.98), (0.3, 0.8), (1.0, 0.5)])
def test_a_guided_draw_is_a_loop(guided, begin):
    """By the noise that both tell of the rows themselves, in place of velocities of residuals."""
    live = refiner(context=1, guided=guided, begin=begin)
    assert live.guidance == STRENGTH
    spread, size = 0.5, 1.0
    out, eps, z, context = normal(5, *PICTURE), normal(5, *PICTURE, seed=1), normal(5, 2), None
    context = normal(5, 1, seed=2)
    with mvkit.testing.noise(lambda *_: eps):
        drawn = live.refine(out, z, context, None)
    zero, one = torch.zeros(5, 1).double(), torch.ones(5, 1).double()
    told = torch.cat([z, context, zero], 1)
    untold = torch.cat([torch.zeros_like(z), context, one], 1)
    first = begin * math.pi / 2
    y, before, steps = math.sin(first) * eps, None, 0
    for now, after in itertools.pairwise(angles.angles(4, first)):
        at = torch.full((5,), now, dtype=torch.float64)
        v = live.network(y, out, at, told)
        if now <= guided * math.pi / 2:
            steps += 1
            x_noisy = math.cos(now) * out + spread * y  # cos φ x + spread sin φ ε
            signal, level = size * math.cos(now), spread * math.sin(now)
            scale = math.sqrt(signal**2 + level**2)
            angle = math.asin(level / scale)
            at = torch.full((5,), angle, dtype=torch.float64)
            v_rows = live.network(x_noisy / scale, torch.zeros_like(out), at, untold)
            eps_rows = math.sin(angle) * x_noisy / scale + math.cos(angle) * v_rows
            eps_told = math.sin(now) * y + math.cos(now) * v
            eps_guided = eps_told + STRENGTH * (eps_told - eps_rows)
            v = (eps_guided - math.sin(now) * y) / math.cos(now)
        slope = torch.zeros_like(v) if before is None else (v - before[1]) / (now - before[0])
        before = (now, v)
        y = y + v * (after - now) + slope * (after - now) ** 2 / 2
    assert 0 < steps <= 4
    assert (steps == 4) == (guided >= begin)
    assert (drawn - (out + spread * y)).abs().max() < 1e-9


@pytest.mark.parametrize("begin", [1.0, 0.9, 0.5, 0.1])
@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_draws_that_begin_on_the_way_stay_near_the_mean(begin, scale):
    """Of residuals N(0, scale²) the way to the data multiplies by the ratio of deviations."""
    first = begin * math.pi / 2

    def velocity(noisy, angle):
        cosine, sine = math.cos(angle), math.sin(angle)
        return noisy * sine * cosine * (1 - scale**2) / (scale**2 * cosine**2 + sine**2)

    drawn = angles.denoise(velocity, torch.ones(1).double(), 2000, "adams", first)
    there = math.hypot(scale * math.cos(first), math.sin(first))
    assert abs(float(drawn) / (scale * math.sin(first) / there) - 1) < 1e-3


def test_draws_that_begin_near_the_data_are_the_mean():
    out, z = normal(5, *PICTURE), normal(5, 2)
    near = refiner(begin=1e-6).refine(out, z, None, seeded())
    assert (near - out).abs().max() < 1e-4


def test_the_loss_is_that_of_a_loop():
    live = refiner()
    x, out, z = normal(6, *PICTURE), normal(6, *PICTURE, seed=1), normal(6, 2, seed=2)
    observed = torch.rand(x.shape, generator=seeded(3)) < 0.7
    x = torch.where(observed, x, 0.0)
    u, eps = torch.rand(6, generator=seeded(4), dtype=torch.float64), normal(6, *PICTURE, seed=5)
    hides = torch.tensor([0.0, 0.9, HIDDEN, HIDDEN - 1e-9, 0.5, 0.1], dtype=torch.float64)
    values = {"choice/angle": u, "choice/hidden": hides, "x/refine/a": eps}
    with mvkit.testing.noise(lambda site, *_: values[site]):
        losses = live.loss(out, x, z, None, observed, None)
    for i, hidden in enumerate([True, False, False, True, False, True]):
        angle = math.pi / 2 * float(u[i])
        residual = torch.where(observed[i], x[i] if hidden else x[i] - out[i], 0.0)
        y = residual / (1.0 if hidden else 0.5)
        noisy = math.cos(angle) * y + math.sin(angle) * eps[i]
        told = torch.zeros(1, 3).double() if hidden else torch.cat([z[i], torch.zeros(1)])[None]
        if hidden:
            told[0, 2] = 1.0
        shown = torch.zeros_like(out[:1]) if hidden else out[i : i + 1]
        at = torch.tensor([angle], dtype=torch.float64)
        v = live.network(noisy[None], shown, at, told)[0]
        goal = math.cos(angle) * eps[i] - math.sin(angle) * y
        expected = (v - goal)[observed[i]].square().sum() / 64
        assert abs(float(expected.detach() - losses[i].detach())) < 1e-9


def test_the_size_of_rows_is_measured():
    live = refiner().train()
    x, out, z = normal(5, *PICTURE), normal(5, *PICTURE, seed=1), normal(5, 2)
    observed = torch.rand(x.shape, generator=seeded(3)) < 0.7
    for part in (live.size, live.spread):
        part.squares.zero_()
        part.numbers.zero_()
    live.loss(out, x, z, None, observed, seeded())
    assert abs(float(live.size()) - float(x[observed].square().mean().sqrt())) < 1e-9
    assert abs(float(live.spread()) - float((x - out)[observed].square().mean().sqrt())) < 1e-9


def test_rows_are_as_residuals_unless_they_are_large():
    live = refiner()
    for size, expected in ((0.3, 0.5), (1.5, 0.5), (2.0, 0.5), (10.0, 2.5)):
        live.size.squares.fill_(size**2)
        live.size.numbers.fill_(1.0)
        assert abs(float(live._of_rows()) - expected) < 1e-9


def test_no_guidance_draws_as_before():
    live = refiner(guidance=0)
    assert not hasattr(live, "size")
    out, z, eps = normal(5, *PICTURE), normal(5, 2, seed=1), normal(5, *PICTURE, seed=2)
    with mvkit.testing.noise(lambda *_: eps):
        drawn = live.refine(out, z, None, None)

    def velocity(noisy, angle):
        return live.network(noisy, out, torch.full((5,), angle, dtype=torch.float64), z)

    expected = out + 0.5 * angles.denoise(velocity, eps, 4, "adams")
    assert (drawn - expected).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("shape", "options", "strength", "latents"),
    [
        (PICTURE, {}, STRENGTH, "own"),
        ((28, 28), {}, STRENGTH, "own"),
        (PICTURE, {"knows_given": True}, 0.0, "parts"),
        (PICTURE, {"knows_given": True, "guidance": 2}, 2.0, "parts"),
        (PICTURE, {"guidance": 0.0, "latents": "parts"}, 0.0, "parts"),
        ((5,), {}, 0.0, "parts"),
        ((5,), {"latents": "own", "guidance": 0}, 0.0, "own"),
        ((2, 2), {}, 0.0, "parts"),
    ],
)
def test_pictures_are_guided_and_see_reconstructions(shape, options, strength, latents):
    live = refiner(shape, **options)
    assert live.guidance == strength
    assert live.latents_from == latents
    assert live.refine(normal(2, *shape), normal(2, 2), None, seeded()).shape == (2, *shape)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (PICTURE, {"guidance": -1.0}, "guidance: got -1.0; expected None, or a number from 0 on"),
        (PICTURE, {"guidance": math.inf}, "guidance: got inf"),
        (PICTURE, {"guidance": True}, "guidance: got True"),
        (PICTURE, {"latents": "all"}, "latents: got 'all'"),
        (PICTURE, {"begin": 0.0}, "begin: got 0.0"),
        (PICTURE, {"begin": 1.1}, "begin: got 1.1"),
        (PICTURE, {"guided": -0.1}, "guided: got -0.1"),
        ((5,), {"guidance": 1.0}, r"guidance is of pictures.* got rows \(5,\)"),
    ],
)
def test_bad_options(shape, options, message):
    with pytest.raises(SpecError, match=message):
        refiner(shape, **options)


def test_a_refiner_that_is_told_is_trained_on_parts():
    model = Model({"a": Modality(PICTURE)}, latent_dim=2, seed=0)
    told = {"name": NAME, "hidden": 8, "knows_given": True, "latents": "own"}
    with pytest.raises(SpecError, match="knows_given: with latents_from='own'"):
        mvkit.fit_refiner(model, {"a": torch.rand(9, *PICTURE)}, told, epochs=1, **QUIET)


def test_tables_are_drawn_as_they_were():
    """What rows of numbers have by default is what they have without both new abilities."""
    states = []
    for options in ({}, {"guidance": 0.0, "latents": "parts"}):
        model = Model({"a": (3,), "b": (2,)}, latent_dim=2, aggregator="mopoe", seed=0)
        data = Batch({"a": normal(12, 3).float(), "b": normal(12, 2).float()})
        spec = {"name": NAME, "hidden": 8, "layers": 1, **options}
        mvkit.fit_refiner(model, data, spec, epochs=2, batch_size=5, **QUIET)
        states.append(model.state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(x, states[1][name]) for name, x in states[0].items())


def test_a_file_keeps_guided_draws(tmp_path):
    model = Model({"a": Modality(PICTURE), "b": (2,)}, latent_dim=2, seed=0).double()
    data = {"a": torch.rand(9, *PICTURE).double(), "b": normal(9, 2)}
    spec = {"name": NAME, "hidden": 8, "layers": 1, "steps": 3, "guidance": 0.7}
    mvkit.fit_refiner(model, data, spec, "a", epochs=1, **QUIET)
    mvkit.save(model, tmp_path / "m")
    loaded = mvkit.load(tmp_path / "m")
    assert to_dict(loaded.refiners["a"].spec)["guidance"] == 0.7
    draws = [m.sample(4, refine="a", generator=seeded())["a"] for m in (model, loaded)]
    assert torch.equal(*draws)
