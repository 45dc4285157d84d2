"""MLD, a latent of each modality and diffusion of them all, on linear-Gaussian views with gaps.

Axes: n draws, b rows.
"""

import itertools

import pytest
import torch

import mvkit
from mvkit import Batch, Modality, recipes
from mvkit.core.noise import seeded

NAMES = ("a", "b", "c")
QUIET = {"progress": False, "device": "cpu"}
SUBSETS = [s for size in range(4) for s in itertools.combinations(NAMES, size)]
# of independent sources s: a = (s0, s1), b = (s0 + s2, s3), c = (s0 - s1 + s4, s2 + s5)
SOURCES = torch.tensor(
    [
        [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 1.0, 0.0, 0.0, 0.0, 0.0],
        [0.8, 0.0, 0.6, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 1.0, 0.0, 0.0],
        [0.6, -0.6, 0.0, 0.0, 0.5, 0.0],
        [0.0, 0.0, 0.8, 0.0, 0.0, 0.6],
    ]
)
PLACES = {"a": slice(0, 2), "b": slice(2, 4), "c": slice(4, 6)}


def views(b, gaps, seed=0):
    """Rows of three views of two numbers; with gaps, every second row lacks one or two of them."""
    x = torch.randn(b, 6, generator=seeded(seed)) @ SOURCES.T
    mask = torch.ones(b, 3).bool()
    if gaps:
        patterns = [[name in subset for name in NAMES] for subset in SUBSETS[1:-1]]
        mask[::2] = torch.tensor(patterns).repeat(b, 1)[: len(mask[::2])]
    return Batch({name: x[:, place] for name, place in PLACES.items()}, mask)


@pytest.fixture(scope="module")
def mld():
    data = views(4000, gaps=True)
    networks = {"encoder": "linear", "decoder": "linear"}
    modality = Modality((2,), {"name": "normal", "scale": 0.1}, **networks)
    modalities = dict.fromkeys(NAMES, modality)
    model = recipes.mld(modalities, latent_dim=2, seed=0)
    mvkit.fit(model, data, epochs=25, lr=1e-2, seed=0, **QUIET)
    spec = {"name": "latent_diffusion", "steps": 1200, "batch": 512, "width": 64, "layers": 2}
    mvkit.fit_sampler(model, data, {**spec, "lr": 5e-3})
    return model


def conditional(given, x):
    """Means (b, 6) and covariance (6, 6) of all numbers given those of some views (b, 6)."""
    covariance = SOURCES @ SOURCES.T
    known = [i for name in given for i in range(6)[PLACES[name]]]
    gain = covariance[:, known] @ torch.linalg.inv(covariance[known][:, known])
    return x[:, known] @ gain.T, covariance - gain @ covariance[known]


@pytest.mark.parametrize("given", SUBSETS[:-1], ids=lambda s: "+".join(s) or "nothing")
def test_views_are_drawn_as_linear_regression_of_any_subset_says(mld, given):
    """Root mean squares of errors of means and standard deviations are below a fifth of the
    numbers' own deviation, which is 0.98 to 1.
    """
    rows = views(40, gaps=False, seed=1)
    mean, covariance = conditional(given, torch.cat(list(rows.data.values()), 1))
    wanted = [name for name in NAMES if name not in given]
    options = {"sampler": "latent_diffusion", "generator": seeded(2), "n": 400, "empty": "prior"}
    draws = mld.translate(rows, wanted, given, **options)
    for name in wanted:
        off = draws[name].mean(0) - mean[:, PLACES[name]]
        spread = draws[name].std(0) - covariance.diagonal()[PLACES[name]].clamp(min=0).sqrt()
        assert off.square().mean().sqrt() < 0.2, name
        assert spread.square().mean().sqrt() < 0.2, name


def test_samples_have_the_covariance_of_the_views(mld):
    samples = mld.sample(4000, sampler="latent_diffusion", generator=seeded(0))
    covariance = torch.cat([samples[name] for name in NAMES], 1).T.cov()
    assert (covariance - SOURCES @ SOURCES.T).abs().max() < 0.15


def test_without_the_sampler_views_know_nothing_of_each_other(mld):
    """The paper's point: autoencoders alone leave the latents independent."""
    rows = views(40, gaps=False, seed=1)
    draws = mld.translate(rows, ["b"], ["a"], n=400, generator=seeded(2))["b"]
    mean, _ = conditional(("a",), torch.cat(list(rows.data.values()), 1))
    off = draws.mean(0) - mean[:, PLACES["b"]]
    assert off.square().mean().sqrt() > 0.4


def test_files_answer_with_the_same_bits_whatever_is_given(mld, tmp_path):
    mvkit.save(mld, tmp_path / "m")
    again = mvkit.load(tmp_path / "m")
    rows = views(14, gaps=True)
    for given in (None, *SUBSETS):
        options = {"sampler": "latent_diffusion", "empty": "prior", "n": 2}
        first, second = (
            model.translate(rows, NAMES, given, generator=seeded(0), **options)
            for model in (mld, again)
        )
        for name, x in first.items():
            assert torch.isfinite(x).all()
            assert torch.equal(x, second[name])
