"""Models of what is missing that break one rule fail in that rule's check."""

import pytest
import torch
from torch import nn

import mvkit
from mvkit import SpecError, spec
from mvkit.parts.missingness import SelfMasking, SelfMaskingModel
from mvkit.registry import plugins
from mvkit.registry.component import Component
from mvkit.testing import ConformanceError, check_component

DOC = "Broken on purpose. Reference: none; options: sign, slope, modalities."


def broken(live):
    """A spec like `self` with another live part."""

    def build(self, sizes):
        shapes = {name: modality.shape for name, modality in sizes.modalities.items()}
        return live(shapes, "high", "trained")

    methods = {"__doc__": DOC, "__annotations__": {}, "build": build}
    return spec(type("Broken", (SelfMasking,), methods))


class Changed(SelfMaskingModel):
    """Self-masking whose log-probabilities are changed."""

    def log_prob(self, x, observed, z):
        return self.changed(super().log_prob(x, observed, z), x, observed)


class Summed(Changed):
    def changed(self, log_ps, x, observed):
        return log_ps.sum(-1)


class NotFinite(Changed):
    def changed(self, log_ps, x, observed):
        return log_ps * torch.nan


class Above(Changed):
    def changed(self, log_ps, x, observed):
        return log_ps.abs()


class InPlace(Changed):
    def changed(self, log_ps, x, observed):
        next(iter(x.values())).zero_()
        return log_ps


class ZeroTimesInfinity(Changed):
    """Infinite where a row lacks a modality, which the trial on three rows never does."""

    def changed(self, log_ps, x, observed):
        lacking = torch.stack([~flags.flatten(1).any(1) for flags in observed.values()]).sum(0)
        return torch.where(lacking == 2, log_ps / 0.0, log_ps)


class Idle(Changed):
    def __init__(self, *options):
        super().__init__(*options)
        self.idle = nn.Parameter(torch.ones(2))

    def changed(self, log_ps, x, observed):
        return log_ps


class Forgetful(Changed):
    serial = 0

    def __init__(self, *options):
        super().__init__(*options)
        Forgetful.serial += 1
        self.number = Forgetful.serial
        self.extra = nn.Parameter(torch.zeros(Forgetful.serial))

    def changed(self, log_ps, x, observed):
        return log_ps - self.extra.sum().square()


class Global(Changed):
    def changed(self, log_ps, x, observed):
        return log_ps - torch.rand(log_ps.shape, dtype=log_ps.dtype)


class Coupled(Changed):
    def changed(self, log_ps, x, observed):
        return log_ps - log_ps.std() * torch.arange(log_ps.shape[-1])


class Ordered(Changed):
    def changed(self, log_ps, x, observed):
        first = next(iter(x.values()))
        return log_ps - first.flatten(3).square().sum(-1)


class Rounded(Changed):
    def changed(self, log_ps, x, observed):
        return log_ps.float().to(log_ps.dtype)


class Unnormalised(Changed):
    def changed(self, log_ps, x, observed):
        return 1.5 * log_ps


WRONG = {
    "summed": ("shapes", Summed, "log_prob of z"),
    "not finite": ("finite", NotFinite, "not finite"),
    "above 1": ("finite", Above, "a probability above 1"),
    "in place": ("inputs", InPlace, "changed its input"),
    "gaps": ("masks", ZeroTimesInfinity, "not finite where rows observe"),
    "idle": ("gradients", Idle, "no gradient reaches"),
    "file": ("save", Forgetful, "raised"),
    "global": ("determinism", Global, "two losses for one generator|global generator"),
    "coupled": ("rows", Coupled, "when the batch was permuted"),
    "ordered": ("modalities", Ordered, "declared in another order"),
    "rounded": ("precision", Rounded, "by differences in float64"),
    "unnormalised": ("patterns", Unnormalised, "sum to .*expected 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_check_catches_a_broken_part(name, monkeypatch):
    """There is none for `fillers`: such a part never sees what is stored in a gap."""
    check, live, reason = WRONG[name]
    monkeypatch.setattr(f"{__name__}.Broken", broken(live), raising=False)
    plugins.declare(Component("missingness", "broken", f"{__name__}:Broken"))
    skip = ["determinism"] if check == "save" else []
    with pytest.raises(ConformanceError, match=f"check '{check}': it .*({reason})"):
        check_component("missingness", "broken", skip=skip)


def test_a_model_tries_a_part_of_a_package(monkeypatch):
    monkeypatch.setattr(f"{__name__}.Broken", broken(Summed), raising=False)
    plugins.declare(Component("missingness", "broken", f"{__name__}:Broken"))
    with pytest.raises(SpecError, match="in a trial on three rows: returned log_prob of z"):
        mvkit.Model({"a": (2,)}, latent_dim=1, missingness="broken")
