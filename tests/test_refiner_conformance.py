"""Conformance tells refiners that break a rule apart; the template and the guide's keep them."""

import importlib
import sys

import pytest
import torch
from installs import guide_package
from torch import nn

import mvkit
from mvkit.parts import Energy, Refiner, energy_score
from mvkit.parts.refiners import EnergyRefiner
from mvkit.registry import plugins
from mvkit.registry.component import Component
from mvkit.testing import ConformanceError, check_component


def test_the_built_in_one_conforms():
    check_component("refiner", "energy")
    check_component("refiner", "energy", shapes={"a": (1, 3, 3)}, draws=4, layers=1, noise=2)


class Global(EnergyRefiner):
    def refine(self, out, z, context, generator):
        return super().refine(out, z, context, None)


class Fixed(EnergyRefiner):
    def refine(self, out, z, context, generator):
        return out


class Crowd(EnergyRefiner):
    def refine(self, out, z, context, generator):
        return super().refine(out, z, context, generator) + out.mean()


class Flat(EnergyRefiner):
    def refine(self, out, z, context, generator):
        return super().refine(out, z, context, generator).flatten()


class Infinite(EnergyRefiner):
    def refine(self, out, z, context, generator):
        return super().refine(out, z, context, generator) / 0.0


class Unsaved(EnergyRefiner):
    def __init__(self, spec, sizes):
        super().__init__(spec, sizes)
        self.shift = torch.rand(())

    def refine(self, out, z, context, generator):
        return super().refine(out, z, context, generator) + self.shift


class Single(EnergyRefiner):
    def refine(self, out, z, context, generator):
        return super().refine(out, z, context, generator).float()


class Peeking(EnergyRefiner):
    def loss(self, out, x, z, context, observed, generator):
        return super().loss(out, x, z, context, torch.ones_like(observed), generator)


class Averaged(EnergyRefiner):
    def loss(self, *arguments):
        return super().loss(*arguments).mean()


class Centred(EnergyRefiner):
    def loss(self, *arguments):
        loss = super().loss(*arguments)
        return loss - loss.mean()


class Undefined(EnergyRefiner):
    def loss(self, out, x, z, context, observed, generator):
        loss = super().loss(out, x, z, context, observed, generator)
        return loss / observed.flatten(1).sum(1)


class Rough(EnergyRefiner):
    """Its gradient is NaN where a row observes nothing."""

    def loss(self, out, x, z, context, observed, generator):
        draws = self._draws(2, out, z, context, generator)
        difference = (draws.sum(0).reshape(x.shape) - torch.where(observed, x, 0.0)) * observed
        return difference.flatten(1).square().sum(1).sqrt()


class NotDrawn(EnergyRefiner):
    def loss(self, out, x, z, context, observed, generator):
        return super().loss(out, x, z, context, observed, None)


class Detached(EnergyRefiner):
    def loss(self, *arguments):
        return super().loss(*arguments).detach()


class InPlace(EnergyRefiner):
    def loss(self, out, x, z, context, observed, generator):
        x.mul_(observed).add_(0.0)
        out[observed] = 0.0
        return super().loss(out, x, z, context, observed, generator)


class Plain(Refiner):
    def __init__(self, spec, sizes):
        pass

    def refine(self, out, z, context, generator):
        return out

    def loss(self, out, x, z, context, observed, generator):
        return energy_score(out[None], x)


class Untrained(nn.Module, Refiner):
    def __init__(self, spec, sizes):
        super().__init__()

    def refine(self, out, z, context, generator):
        return out + torch.randn(out.shape, generator=generator, dtype=out.dtype)

    def loss(self, out, x, z, context, observed, generator):
        return torch.where(observed, out - x, 0.0).square().flatten(1).sum(1)


WRONG = {
    Global: "used the global one",
    Fixed: "the same for two generators",
    Crowd: "another draw of a row when other rows changed",
    Flat: r"returned draws of shape \(18,\)",
    Infinite: "non-finite",
    Unsaved: "other draws from its saved state",
    Single: "torch.float32",
    Peeking: "other losses when unobserved values changed",
    Averaged: r"returned losses of shape \(\)",
    Centred: "another loss of a row when other rows changed",
    Undefined: "also where nothing is observed",
    NotDrawn: "other losses for one generator",
    Rough: "gradients that are not finite",
    Detached: "a loss without gradient",
    InPlace: "changed .* in place",
    Plain: "expected an nn.Module",
    Untrained: "has no parameters",
}


@pytest.mark.parametrize("cls", WRONG, ids=lambda cls: cls.__name__)
def test_broken_ones_are_told_apart(monkeypatch, cls):
    name = f"wrong_{cls.__name__.lower()}"

    def build(self, sizes):
        return cls(self, sizes)

    methods = {"__doc__": Energy.__doc__, "__annotations__": {}, "build": build}
    monkeypatch.setitem(globals(), name, mvkit.spec(type(name, (Energy,), methods)))
    plugins.declare(Component("refiner", name, f"{__name__}:{name}"))
    with pytest.raises(ConformanceError, match=WRONG[cls]):
        check_component("refiner", name)


def test_the_refiner_of_the_guide(tmp_path, monkeypatch):
    """The example of docs/plugins.md conforms, and is trained, used and kept like any other."""
    monkeypatch.syspath_prepend(guide_package(tmp_path) / "examples")
    monkeypatch.delitem(sys.modules, "refiner", raising=False)
    importlib.import_module("refiner")
    check_component("refiner", "denoiser", steps=4)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 1, generator=generator)
    rows = {"a": torch.cat([z, z], 1) + 0.5 * torch.randn(2000, 1, generator=generator)}
    model = mvkit.Model({"a": (2,)}, latent_dim=1, seed=0)
    spec = {"name": "denoiser", "hidden": 32}
    quiet = {"progress": False, "device": "cpu"}
    history = mvkit.fit_refiner(model, rows, spec, epochs=3, lr=3e-3, **quiet)
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    mvkit.save(model, tmp_path / "m")
    loaded = mvkit.load(tmp_path / "m")
    options = {"refine": True, "generator": torch.Generator().manual_seed(1)}
    first = model.sample(5, **options)["a"]
    options["generator"].manual_seed(1)
    assert torch.equal(first, loaded.sample(5, **options)["a"])
