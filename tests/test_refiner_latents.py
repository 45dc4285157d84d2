"""Refiners of `latents_from = "own"` are trained on latents that have seen their modality."""

import math

import pytest
import torch
from helpers import model, rows
from torch import nn

import mvkit
from mvkit import Model, SpecError
from mvkit.parts import Energy, Refine
from mvkit.parts.refiners import EnergyRefiner
from mvkit.registry import Component, plugins

QUIET = {"progress": False, "device": "cpu"}
PLAIN = Energy(hidden=8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Recorded(nn.Module, mvkit.Refiner):
    """A refiner that notes what it is told."""

    def __init__(self, latents_from="own", latent_draws=1):
        super().__init__()
        self.latents_from = latents_from
        self.latent_draws = latent_draws
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.lost = []

    def refine(self, out, z, context, generator):
        return out * self.weight

    def loss(self, out, x, z, context, observed, generator):
        self.lost.append((out, z, context))
        squares = torch.where(observed, (self.weight * out - x).square(), 0.0)
        return squares.flatten(1).sum(1)


def numbers(site, shape, dtype, device):
    """Noise that only depends on the shape: uniform at choices, else normal."""
    draw = torch.rand if site.startswith("choice") else torch.randn
    return draw(shape, generator=seeded(math.prod(shape)), dtype=dtype)


def gaussian(made, batch, kept, i):
    """Mean and scale of the product of a row's experts in `kept`, and the prior, by hand."""
    precision, weighted = torch.ones(2).double(), torch.zeros(2).double()
    for m, name in enumerate(made.names):
        if not kept[m]:
            continue
        loc, raw = made.encoders[name](batch.data[name][i : i + 1])[0, :4].chunk(2)
        scale = made.family.scale(raw)
        precision = precision + scale**-2
        weighted = weighted + loc / scale**2
    return weighted / precision, precision**-0.5


def test_latents_are_of_a_random_part_and_the_modality():
    made = model("poe").eval()
    batch = made.conform(rows(40))
    refiners = {name: Recorded() for name in ("a", "b")}
    made.refiners.update(refiners)
    with mvkit.testing.noise(numbers), torch.no_grad():
        made.loss(batch, objective="refine")
    uniform = numbers("choice", (40, 4), torch.float64, None)
    eps = numbers("z", (1, 1, 40, 2), torch.float64, None)[0, 0]
    differing = 0
    for m, name in enumerate(("a", "b")):
        ((out, z, _),) = refiners[name].lost
        for i in range(40):
            has = [bool(flag) for flag in batch.observed[i]]
            kept = [has[k] and bool(uniform[i, k] < uniform[i, 3]) for k in range(3)]
            if not any(kept):
                kept = has
            differing += not kept[m] and has[m]
            kept = [kept[k] or (k == m and has[k]) for k in range(3)]
            loc, scale = gaussian(made, batch, kept, i)
            expected = loc + scale * eps[i]
            assert (z[i] - expected).abs().max() < 1e-9
        assert (made.decoding.decode(name, z, None) - out).abs().max() < 1e-12
    assert differing > 2  # of which parts alone would have lacked the modality


@pytest.mark.parametrize("parts", [("mopoe", "mog"), ("joint",), ("moe",), ("set",)])
def test_posteriors_are_those_of_parts_encoded_anew(parts):
    made = model(*parts, private=1).eval()
    batch = made.conform(rows(30))
    every = made.experts(batch)
    for seed in range(3):
        kept = batch.observed & (torch.rand(30, 3, generator=seeded(seed)) < 0.6)
        kept |= ~kept.any(1, keepdim=True) & batch.observed
        shared = every.part(kept)
        anew = made.experts(shared.batch)
        assert torch.equal(shared.batch.observed, kept)
        for name, (loc, scale) in anew.private.items():
            seen = kept[:, made.names.index(name)]
            torch.testing.assert_close(shared.private[name][0][seen], loc[seen])
            torch.testing.assert_close(shared.private[name][1][seen], scale[seen])
        draws = []
        for experts in (shared, anew):
            posterior = made.aggregator.inference(experts, experts.batch)
            draws.append(posterior.draw(2, "iid", seeded(seed)).z)
        torch.testing.assert_close(draws[0], draws[1])


def test_private_latents_have_seen_the_modality():
    made = model("mopoe", private=1).eval()
    batch = made.conform(rows(40))
    refiner = made.refiners["a"] = Recorded()
    with mvkit.testing.noise(numbers), torch.no_grad():
        made.loss(batch, objective="refine")
    ((_, z, _),) = refiner.lost
    loc, scale = made.experts(batch).private["a"]
    eps = numbers("w", (1, 40, 1), torch.float64, None)[0]
    has = batch.observed[:, 0]
    assert has.any()
    assert not has.all()
    torch.testing.assert_close(z[has, 2:], (loc + scale * eps)[has])
    torch.testing.assert_close(z[~has, 2:], eps[~has])  # these rows count nothing


def test_rows_that_lack_the_modality_count_nothing():
    made = model("mopoe").eval()
    refiner = made.refiners["a"] = Recorded()
    values = []
    for filler in (0.0, 7.0):
        batch = rows(30)
        for m, x in enumerate(batch.data.values()):
            x[~batch.mask[:, m]] = filler
        values.append(made.loss(made.conform(batch), objective="refine", generator=seeded()).loss)
    assert torch.equal(values[0], values[1])
    values[0].backward()
    assert refiner.weight.grad != 0.0
    assert all(p.grad is None for name, p in made.named_parameters() if "refiners" not in name)


def test_others_draw_what_they_drew():
    """A refiner of parts that comes first has the same noise beside one of `own`."""
    seen = []
    for others in ({}, {"b": Recorded("own")}):
        made = model("mopoe", private=1).eval()
        spied = Recorded("parts")
        made.refiners.update({"a": spied, **others})
        batch = made.conform(rows(20))
        with mvkit.testing.noise(numbers):
            made.loss(batch, objective="refine")
        seen.append(spied.lost[0])
    assert all(torch.equal(a, b) for a, b in zip(seen[0][:2], seen[1][:2], strict=True))


def test_an_empty_batch_has_a_loss():
    made = model("mopoe", private=1)
    made.refiners["a"] = Recorded()
    empty = made.conform(rows()).take(slice(0, 0))
    loss = Refine().forward(made, empty, made.experts(empty))
    assert loss.loss.item() == 0.0
    loss.loss.backward()


class Own(EnergyRefiner):
    latents_from = "own"


class Wrong(EnergyRefiner):
    latents_from = "all"


@mvkit.spec
class Chosen:
    """A refiner of one of these classes."""

    wrong: bool = False
    knows_given: bool = False
    draws: int = 2

    def build(self, sizes):
        spec = Energy(hidden=8, knows_given=self.knows_given)
        return (Wrong if self.wrong else Own)(spec, sizes)


@pytest.fixture
def declared():
    plugins.declare(Component("refiner", "chosen", f"{__name__}:Chosen"))


@pytest.mark.usefixtures("declared")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Chosen(wrong=True), "latents_from: got 'all'; expected 'parts' or 'own'"),
        (Chosen(knows_given=True), "knows_given: with latents_from='own' the modality is always"),
    ],
)
def test_what_cannot_be_trained_is_refused(spec, message):
    data = {"a": torch.randn(9, 3), "b": torch.randn(9, 2)}
    made = Model({"a": (3,), "b": (2,)}, latent_dim=2, seed=0)
    with pytest.raises(SpecError, match=message):
        mvkit.fit_refiner(made, data, spec, epochs=1, **QUIET)
    assert not made.refiners


@pytest.mark.usefixtures("declared")
def test_training_learns_and_resumes(tmp_path):
    class Halt(Exception):
        pass

    def listen(event):
        if type(event).__name__ == "CheckpointSaved":
            saves.append(event)
            if len(saves) == 4:
                raise Halt

    saves = []
    options = {"epochs": 2, "batch_size": 4, "save_every": 0.0, **QUIET}
    refiner = {"a": Chosen(), "b": PLAIN}
    whole, halted = model("mopoe", private=1), model("mopoe", private=1)
    mvkit.fit_refiner(whole, rows(14), refiner, checkpoint=tmp_path / "whole", **options)
    folder = tmp_path / "parts"
    with pytest.raises(Halt):
        mvkit.fit_refiner(
            halted, rows(14), refiner, checkpoint=folder, listeners=[listen], **options
        )
    resumed = model("mopoe", private=1)
    mvkit.fit_refiner(resumed, rows(14), refiner, checkpoint=folder, resume="must", **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
