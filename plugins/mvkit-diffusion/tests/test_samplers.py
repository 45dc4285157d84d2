"""The samplers of latents: their losses against loops, and their draws with exact fields.

Axes: n draws, b rows, m modalities, v numbers of all latents, s blocks of them.
"""

import math

import mvkit_diffusion
import pytest
import torch
from mvkit_diffusion.latents import moments
from mvkit_diffusion.samplers import picked, subsets
from sampler_rows import EACH, OWNERS, PATTERNS, SIZES, built, fitting_rows, normal

from mvkit.core.noise import seeded
from mvkit.parts.conditional_samplers import Condition, FittingRows


def step_of(live, rows, generator):
    """A step of a fit to these rows."""
    weight = torch.ones(len(rows)).double()
    z = live.latents.fit(rows, weight)
    live.features.fit(rows.condition, weight)
    return live.step(rows, z, live.features(rows.condition), generator)


def nothing_known(live, b):
    """What is asked for of rows of which nothing is known."""
    condition = Condition.nothing(SIZES, b, like=MEAN)
    return live.asked(condition.observed, live.features(condition))


def test_the_numbers_of_a_part_of_a_condition_are_those_of_the_whole_that_are_left():
    live = built("latent_flow")
    rows = fitting_rows()
    live.features.fit(rows.condition, torch.ones(40).double())
    kept = rows.condition.observed & (torch.rand(40, 3, generator=seeded(3)) < 0.5)
    whole = live.features(rows.condition)
    assert torch.equal(live.features.keep(whole, kept), live.features(rows.condition.keep(kept)))


def test_mvkit_knows_what_this_package_offers():
    from mvkit.registry.builtin_parts import EXTERNAL_PARTS

    offered = {(part.kind, part.name) for part in mvkit_diffusion.mvkit_components()}
    known = EXTERNAL_PARTS["mvkit-diffusion"].items()
    assert offered == {(kind, name) for kind, names in known for name in names}


# losses and fields

MEAN = torch.tensor([0.3, -0.7, 0.2, 1.1, -0.4], dtype=torch.float64)
SPREAD = torch.tensor([0.5, 1.5, 0.8, 0.3, 1.0], dtype=torch.float64)


def exact_field(y, u, condition):
    """F of latents N(MEAN, SPREAD²) on the diffusion's path, by Bayes' rule, (n, b, v)."""
    block = torch.tensor([0, 0, 1, 2, 2])
    angle = math.pi / 2 * u[:, block]
    variance = angle.cos() ** 2 + (angle.sin() * SPREAD) ** 2
    off = (y - angle.sin() * MEAN) / variance
    z = MEAN + SPREAD**2 * angle.sin() * off
    return angle.cos() * z - angle.sin() * angle.cos() * off


def exact_field_of_flow(y, u, condition):
    """The same at the angle that flow matching has at a time."""
    return exact_field(y, torch.atan2(u, 1 - u) / (math.pi / 2), condition)


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

    def field(y, u, condition):
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
    [
        ("latent_flow", {"integration": 200}),
        ("latent_diffusion", {"integration": 200}),
        ("latent_diffusion", {"integration": 4000, "eta": 0}),
    ],
)
def test_exact_fields_bring_noise_to_the_latents_that_belong_to_it(name, options):
    """Of a normal each number moves along its quantile."""
    live = built(name, **options)
    live.field_of = FIELDS[name]
    asked = nothing_known(live, 3)
    eps = normal(seeded(2), 4, 3, 5)
    z = live.generated(asked, torch.zeros_like(eps), eps, seeded(0))
    tolerance = 5e-3 if "eta" in options else 1e-3
    torch.testing.assert_close(z, MEAN + SPREAD * eps, rtol=0, atol=tolerance)


def spreads_kept(**options):
    """By how much the spread of each normal latent is that of the exact field, (v,)."""
    live = built("latent_diffusion", **options)
    live.field_of = exact_field
    asked = nothing_known(live, 1)
    eps = torch.stack([torch.zeros(5), torch.ones(5)]).double().reshape(2, 1, 5)
    z = live.generated(asked, torch.zeros_like(eps), eps, seeded(0))[:, 0]
    return (z[1] - z[0]) / SPREAD


def test_few_steps_keep_means_and_spreads_of_latents():
    """Of second order, because of its first step: errors fall with the square of the steps; those
    of DDIM with their number.
    """
    assert (spreads_kept(integration=25) - 1).abs().max() < 0.01
    for options, order in (({}, 2), ({"eta": 0}, 1)):
        coarse, fine = (spreads_kept(integration=n, **options)[:4] - 1 for n in (200, 400))
        torch.testing.assert_close(coarse / fine, coarse * 0 + 2**order, rtol=0.05, atol=0)
    torch.testing.assert_close(spreads_kept(integration=7)[4], SPREAD[4])  # of unit variance


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
