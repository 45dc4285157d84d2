"""Penalties: what modules of a model add to its loss, against closed forms."""

import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch
from helpers import loss_and_gradients, model, rows
from installs import guide_package
from torch import nn

import mvkit
from mvkit import Modality, Stage
from mvkit.models import penalties
from mvkit.registry import Component, plugins
from mvkit.testing import noise

WORKER = str(Path(__file__).parent / "penalties_worker.py")
EXPECTED = r"expected a tensor of shape \(\), in nats per row"


class Shrunk(nn.Linear):
    """A linear layer with a normal prior of its weights, for all rows together."""

    def penalty(self, rows):
        return 0.5 * self.weight.square().sum() / rows


def shrunk(decoder=None, **options):
    """A tiny model whose first decoder has a penalty."""
    torch.manual_seed(0)
    return model(first={"decoder": Shrunk(2, 3) if decoder is None else decoder}, **options)


def plain(tiny):
    """The same model, whose decoder has none."""
    other = model(first={"decoder": nn.Linear(2, 3)})
    other.load_state_dict(tiny.state_dict())
    return other


def weight_of(tiny):
    return tiny.decoders["a"].network.weight


@pytest.mark.parametrize("n", [None, 40])
def test_a_penalty_is_added_to_loss_and_gradients_alone(n):
    tiny = shrunk()
    tiny.training_rows = n
    loss, gradients = loss_and_gradients(tiny, rows())
    other, others = loss_and_gradients(plain(tiny), rows())
    divisor = n or 8  # without the rows of training, those of the batch
    expected = 0.5 * weight_of(tiny).square().sum() / divisor
    torch.testing.assert_close(loss.loss, other.loss + expected, rtol=1e-12, atol=0)
    assert torch.equal(loss.metrics["loss"], loss.loss.detach())
    torch.testing.assert_close(loss.metrics["penalty"], expected.detach(), rtol=1e-12, atol=0)
    assert torch.equal(loss.bound, other.bound)
    assert torch.equal(loss.metrics["bound"], other.metrics["bound"])
    assert "penalty" not in other.metrics
    for name, gradient in gradients.items():
        extra = weight_of(tiny) / divisor if name == "decoders.a.network.weight" else 0.0
        torch.testing.assert_close(gradient, others[name] + extra, rtol=1e-12, atol=1e-15)


def test_every_kind_of_module_may_have_one_and_counts_once():
    class Encoder(Shrunk):
        pass

    shared = Shrunk(2, 3)
    torch.manual_seed(0)
    both = {
        "a": Modality((3,), encoder=Encoder(3, 4), decoder=shared),
        "b": Modality((3,), decoder=shared),
    }
    tiny = mvkit.Model(both, latent_dim=2, aggregator="gpoe", prior="learnable", seed=0).double()
    kinds = (type(tiny.aggregator), type(tiny.prior))
    for kind in kinds:
        kind.penalty = lambda self, rows: sum(p.sum() for p in self.parameters()) + 6.0 / rows
    try:
        paths = [*penalties.penalised(tiny)]
        value = tiny.loss({"a": torch.randn(4, 3), "b": torch.randn(4, 3)}).metrics["penalty"]
    finally:
        for kind in kinds:
            del kind.penalty
    assert sorted(paths) == ["aggregator", "decoders.a.network", "encoders.a", "prior"]
    parts = [*tiny.aggregator.parameters(), *tiny.prior.parameters()]
    expected = sum(p.sum() for p in parts) + 2 * 6.0 / 4
    expected = (
        expected + (shared.weight.square().sum() + tiny.encoders["a"].weight.square().sum()) / 8
    )
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)


def test_fit_notes_the_rows_and_files_keep_them(tmp_path):
    tiny = shrunk()
    history = mvkit.fit(tiny, rows(20), validation=rows(4, seed=1), batch_size=7, epochs=2)
    assert tiny.training_rows == 20
    mvkit.save(tiny, tmp_path / "m")
    assert mvkit.describe(tmp_path / "m")["model"]["training_rows"] == 20
    again = mvkit.load(tmp_path / "m", decoders={"a": Shrunk(2, 3)})
    found, _ = loss_and_gradients(again, rows(3))
    expected, _ = loss_and_gradients(tiny, rows(3))
    assert torch.equal(found.loss, expected.loss)
    last = 0.5 * weight_of(tiny).square().sum().item() / 20
    assert history["valid/penalty"][-1] == pytest.approx(last, rel=1e-12)
    for row in history.rows:  # without ramps, loss and bound differ by it
        assert row["valid/loss"] == pytest.approx(
            row["valid/penalty"] - row["valid/bound"], rel=1e-9
        )
    held = shrunk()
    mvkit.fit(held, rows(20), validation=0.25, epochs=1)
    assert held.training_rows == 15
    assert "penalty    decoders.a.network" in repr(tiny)


def test_a_model_without_penalties_keeps_its_files_and_looks_once(tmp_path, monkeypatch):
    looked = []
    has_penalty = penalties._has_penalty
    monkeypatch.setattr(
        penalties, "_has_penalty", lambda kind: looked.append(kind) or has_penalty(kind)
    )
    counts = []
    for epochs in (1, 4):
        tiny = model()
        looked.clear()
        mvkit.fit(tiny, rows(20), validation=rows(4), batch_size=4, epochs=epochs)
        counts.append(len(looked))
    assert counts[0] == counts[1] > 0
    assert tiny.training_rows is None
    assert "training_rows" not in tiny.header()
    assert "penalty" not in repr(tiny)


def test_accumulated_batches_and_row_weights_count_it_once():
    def trained(stage, batch_size, batch):
        tiny = shrunk()
        with noise(quiet):
            mvkit.fit(tiny, batch, stages=[stage], batch_size=batch_size)
        return tiny

    def quiet(site, shape, dtype, device):
        value = 0.5 if site.startswith("choice") else 0.0
        return torch.full(shape, value, dtype=dtype, device=device)

    whole = trained(Stage(None, 3), 8, rows(13))
    halves = trained(Stage(None, 3, accumulate=2), 4, rows(13))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(halves.state_dict()[name], value, rtol=1e-7, atol=1e-9)
    tiny = shrunk()
    tiny.training_rows = 50
    weighted = attrs.evolve(rows(), row_weight=torch.arange(8.0).double())
    loss, _ = loss_and_gradients(tiny, weighted)
    other, _ = loss_and_gradients(plain(tiny), weighted)
    expected = 0.5 * weight_of(tiny).square().sum() / 50
    torch.testing.assert_close(loss.loss - other.loss, expected, rtol=1e-9, atol=0)


def test_both_levels_of_a_stack(tmp_path):
    torch.manual_seed(0)
    low = {k: Modality((3,), private_dim=2, decoder=Shrunk(2, 3)) for k in "ab"}
    high = {k: Modality((2,), decoder=Shrunk(3, 2) if k == "a" else "mlp") for k in "ab"}
    levels = [mvkit.Model(low, latent_dim=0, seed=0), mvkit.Model(high, latent_dim=3, seed=0)]
    stack = mvkit.Stack(levels).double()
    x = {"a": torch.randn(10, 3).double(), "b": torch.randn(10, 3).double()}
    mvkit.fit(stack, x, epochs=1)
    found = stack.loss(x).metrics["penalty"]
    decoders = [*stack.bottom.decoders.values(), stack.top.decoders["a"]]
    expected = sum(0.5 * d.network.weight.square().sum() for d in decoders) / 10
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=0)
    mvkit.save(stack, tmp_path / "m")
    assert mvkit.describe(tmp_path / "m")["model"]["training_rows"] == 10
    modules = {
        "levels.0.modalities.a.decoder": Shrunk(2, 3),
        "levels.0.modalities.b.decoder": Shrunk(2, 3),
        "levels.1.modalities.a.decoder": Shrunk(3, 2),
    }
    again = mvkit.load(tmp_path / "m", modules=modules)
    assert torch.equal(again.loss(x).metrics["penalty"], stack.loss(x).metrics["penalty"])


def test_frozen_modules_keep_their_weights_and_count():
    tiny = shrunk()
    before = weight_of(tiny).detach().clone()
    stage = Stage(None, 1, ["encoders.*", "decoders.b.*"])
    history = mvkit.fit(tiny, rows(8), stages=[stage])
    assert torch.equal(weight_of(tiny), before)
    assert history["penalty"] == [pytest.approx(0.5 * before.square().sum().item() / 8)]


def test_a_stage_that_trains_penalties_alone_is_refused_as_without_them():
    stage = Stage("align", 1, ["decoders.*"])
    for tiny in (model("joint", objective="jmvae"), shrunk(aggregator="joint", objective="jmvae")):
        with pytest.raises(mvkit.RequestError, match="so that nothing is trained"):
            mvkit.fit(tiny, rows(8), stages=[stage])


def test_swapped_modules_are_found():
    tiny = model(first={"decoder": nn.Linear(2, 3)})
    assert "penalty" not in tiny.loss(rows()).metrics
    tiny.decoders["a"].network = Shrunk(2, 3).double()
    expected = 0.5 * weight_of(tiny).detach().square().sum() / 8
    torch.testing.assert_close(tiny.loss(rows()).metrics["penalty"], expected, rtol=1e-12, atol=0)
    tiny.decoders["a"].network = nn.Linear(2, 3).double()
    assert "penalty" not in tiny.loss(rows()).metrics


class Other(nn.Linear):
    def penalty(self, factor=1.0):
        raise AssertionError


class Constant(nn.Linear):
    penalty = 3.0


@pytest.mark.parametrize("kind", [Other, Constant])
def test_what_is_called_so_and_means_something_else_is_left_alone(kind):
    assert "penalty" not in shrunk(kind(2, 3)).loss(rows()).metrics


def test_samplers_have_no_place_in_the_loss():
    tiny = model()
    tiny.samplers["gmm"] = Shrunk(2, 3).double()
    assert "penalty" not in tiny.loss(rows()).metrics


def test_a_penalty_in_another_dtype_is_that_of_the_loss():
    class Rough(Shrunk):
        def penalty(self, rows):
            return super().penalty(rows).float()

    loss = shrunk(Rough(2, 3)).loss(rows())
    assert loss.loss.dtype == torch.float64


WRONG = {
    "a float": (0.1, "penalty returned a float"),
    "an axis": (torch.zeros(1), r"penalty returned a tensor of shape \(1,\)"),
    "whole numbers": (torch.tensor(1), "penalty returned a tensor of int64"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_name_the_module_and_its_package(case):
    value, reason = WRONG[case]

    class Wrong(nn.Linear):
        def penalty(self, rows):
            return value

    tiny = shrunk(Wrong(2, 3))
    with pytest.raises(
        mvkit.ShapeError, match=rf"decoders\.a\.network \(Wrong\): {reason}; {EXPECTED}"
    ):
        tiny.loss(rows())
    target = f"{Wrong.__module__}:SomethingElse"
    plugins.declare(Component("network", "somewhere", target))
    try:
        with pytest.raises(mvkit.ShapeError, match=r"decoders\.a\.network \(Wrong\) of local: "):
            tiny.loss(rows())
    finally:
        plugins.registry.cache_clear()


def test_a_penalty_that_is_not_finite_is_located_by_name():
    class Broken(Shrunk):
        def penalty(self, rows):
            return super().penalty(rows) * torch.inf

    expected = r"stage 0, epoch 1, batch 1: not finite: the penalty of decoders\.a\.network;"
    with pytest.raises(mvkit.NonFiniteError, match=expected):
        mvkit.fit(shrunk(Broken(2, 3)), rows(8), epochs=1)


def test_streams_do_not_tell_how_many_rows_there_are():
    items = ({"a": row} for row in rows(8).data["a"])
    tiny = shrunk()
    with pytest.raises(
        mvkit.RequestError, match=r"fit: the penalty of decoders\.a\.network is div"
    ):
        mvkit.fit(tiny, items, epochs=1)
    tiny.training_rows = 8
    mvkit.fit(tiny, [rows(4), rows(1)], epochs=1)
    assert tiny.training_rows == 5  # batches in a list tell it


def test_a_run_resumes_in_the_middle_with_the_same_bits(tmp_path):
    def stop(event):
        if isinstance(event, mvkit.training.events.EpochFinished) and len(seen) < 2:
            seen.append(event)
            if len(seen) == 2:
                raise mvkit.training.events.StopTraining

    settings = {"epochs": 4, "batch_size": 4, "validation": rows(3, seed=1)}
    seen = []
    whole = shrunk()
    history = mvkit.fit(whole, rows(9), **settings)
    part = shrunk()
    mvkit.fit(part, rows(9), checkpoint=tmp_path, listeners=[stop], **settings)
    again = shrunk()
    resumed = mvkit.fit(again, rows(9), checkpoint=tmp_path, **settings)
    assert resumed.rows == history.rows
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_backgrounds_of_proteins_pay_their_divergence_once_for_all_rows():
    proteins = Modality((3,), "foreground_background", decoder="linear", encoder="linear")
    tiny = mvkit.Model({"proteins": proteins}, latent_dim=2, seed=0).double()
    counts = torch.poisson(torch.full((30, 3), 4.0), generator=torch.Generator().manual_seed(0))
    mvkit.fit(tiny, {"proteins": counts.double()}, epochs=2)
    part = tiny.decoders["proteins"].likelihood
    with torch.no_grad():
        part.background.copy_(torch.tensor([0.0, 1.0, 3.0]))
    found = tiny.loss({"proteins": counts.double()}).metrics["penalty"]
    torch.testing.assert_close(found, part.penalty().detach() / 30, rtol=1e-12, atol=0)


def test_the_example_of_the_guide(tmp_path):
    space = {}
    exec((guide_package(tmp_path) / "examples" / "lasso.py").read_text(), space)
    weight = space["modality"].decoder.weight
    expected = (weight.abs() / 0.05 + torch.tensor(0.1).log()).sum().item()
    assert space["nats"] == pytest.approx(expected, rel=0.02)  # of the last epoch's steps
    assert space["history"]["loss"][-1] < space["history"]["loss"][0]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("penalties")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for launcher in (torchrun, []):
        command = [sys.executable, *launcher, WORKER, str(folder)]
        subprocess.run(command, check=True, timeout=120, capture_output=True)
    return {name: torch.load(folder / f"{name}.pt") for name in ("1-0", "2-0", "2-1")}


def test_two_processes_train_as_one_also_with_empty_shares(outcomes):
    for name, alone in outcomes["1-0"].items():
        both, second = outcomes["2-0"][name], outcomes["2-1"][name]
        assert both["history"] == second["history"]
        for key, value in alone["weights"].items():
            assert torch.equal(both["weights"][key], second["weights"][key]), (name, key)
            torch.testing.assert_close(both["weights"][key], value, rtol=1e-7, atol=1e-9)
        for row, other in zip(alone["history"], both["history"], strict=True):
            assert other["penalty"] == pytest.approx(row["penalty"], rel=1e-9)
            assert other["loss"] == pytest.approx(row["loss"], rel=1e-9)
            assert other["valid/loss"] == pytest.approx(row["valid/loss"], rel=1e-9)
