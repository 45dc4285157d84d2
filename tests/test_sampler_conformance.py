"""The conformance checks of conditional samplers: the built-in one passes, broken ones do not."""

import importlib
import sys

import pytest
import torch
from installs import guide_package
from test_conditional_samplers import SUBSETS, closed_form, drawn_rows, linear_gaussian
from test_conformance import broken

import mvkit
from mvkit.parts import GMM
from mvkit.parts.conditional_gmm import ConditionalGMMSampler
from mvkit.registry import Component, plugins
from mvkit.testing import check_component
from mvkit.testing.conformance import ConformanceError


def test_the_built_in_one_passes():
    check_component("sampler", "gmm")
    check_component("sampler", "gmm", components=2, floor=1e-3, conditional=True)


class Deaf(ConditionalGMMSampler):
    """Draws what it would draw of rows that have nothing."""

    def sample(self, condition, n, generator):
        return super().sample(condition.keep(torch.zeros_like(condition.observed)), n, generator)


class Peeking(ConditionalGMMSampler):
    """Looks at codes of modalities that rows do not have."""

    def sample(self, condition, n, generator):
        z, private = super().sample(condition, n, generator)
        return z + condition.codes["a"].loc, private


class PeekingFit(ConditionalGMMSampler):
    """Likewise in the fit."""

    def fit(self, rows, seed):
        super().fit(rows, seed)
        self.loc += rows.private["b"].mean()


class Flat(ConditionalGMMSampler):
    """Forgets the axis of draws."""

    def sample(self, condition, n, generator):
        z, private = super().sample(condition, n, generator)
        return z[0], private


class Crowd(ConditionalGMMSampler):
    """Draws of a row depend on the batch."""

    def sample(self, condition, n, generator):
        z, private = super().sample(condition, n, generator)
        shown = condition.codes["a"].loc[condition.observes("a")]
        return z + shown.mean(), private


class Unsaved(ConditionalGMMSampler):
    """Keeps something where no file holds it."""

    def fit(self, rows, seed):
        super().fit(rows, seed)
        self.shift = 1.0

    def sample(self, condition, n, generator):
        z, private = super().sample(condition, n, generator)
        return z + getattr(self, "shift", 0.0), private


class Global(ConditionalGMMSampler):
    """Draws from the global generator."""

    def sample(self, condition, n, generator):
        return super().sample(condition, n, None)


class Stranger(ConditionalGMMSampler):
    """Returns a private latent that there is not."""

    def sample(self, condition, n, generator):
        z, private = super().sample(condition, n, generator)
        return z, {**private, "d": z}


WRONG = {
    Deaf: "near one another for codes",
    Peeking: "returned other draws when codes of unobserved modalities changed",
    PeekingFit: "was fitted to other parameters",
    Flat: r"returned z of shape \(8, 2\)",
    Crowd: "when the codes of other rows changed",
    Unsaved: "other draws from its saved state",
    Global: "used the global one",
    Stranger: "a private latent of 'd', which has none",
}


@pytest.mark.parametrize("cls", WRONG, ids=lambda cls: cls.__name__)
def test_broken_ones_are_told_apart(monkeypatch, cls):
    name = cls.__name__.lower()
    options = {"components": 2, "floor": 1e-3, "conditional": True}
    part = broken(GMM, __doc__=GMM.__doc__, build=lambda self, width, sizes: cls(self, sizes))
    monkeypatch.setitem(globals(), f"Spec{name}", part)
    plugins.declare(Component("sampler", name, f"{__name__}:Spec{name}"))
    with pytest.raises(ConformanceError, match=WRONG[cls]):
        check_component("sampler", name, **options)


def test_the_sampler_of_the_guide(tmp_path, monkeypatch):
    """The example of docs/plugins.md conforms, and learns what a mixture of one normal knows."""
    monkeypatch.syspath_prepend(guide_package(tmp_path) / "examples")
    monkeypatch.delitem(sys.modules, "conditional_sampler", raising=False)
    importlib.import_module("conditional_sampler")
    check_component("sampler", "amortised", steps=200)

    model = linear_gaussian()
    mvkit.fit_sampler(model, drawn_rows(2000, seed=1), {"name": "amortised", "steps": 400})
    batch = drawn_rows(200, seed=2, missing=False)
    for subset in SUBSETS:
        mean, sd = closed_form(batch, subset)
        generator = torch.Generator().manual_seed(0)
        z = model.translate(batch, "c", subset, 50, sampler="amortised", generator=generator)["c"]
        assert (z.mean(0) - mean).square().mean().sqrt() < 0.25
        torch.testing.assert_close(z.std(0).mean(0), sd, rtol=0.15, atol=0)
    path = tmp_path / "m"
    decoders = {"b": model.decoders["b"].network, "a": model.decoders["a"].network}
    decoders["c"] = model.decoders["c"].network
    encoders = {name: model.encoders[name] for name in model.names}
    mvkit.save(model, path)
    again = mvkit.load(path, encoders=encoders, decoders=decoders)
    first, second = (
        m.translate(batch, "c", ("a",), sampler="amortised", latent="mean")["c"]
        for m in (model, again)
    )
    assert torch.equal(first, second)
