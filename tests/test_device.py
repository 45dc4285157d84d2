"""On a device: numbers against those of the CPU, in float32, and what only devices have.

`MVKIT_TEST_DEVICE=cpu` runs them on the CPU, where they show that they can run.
"""

import os
import subprocess
import sys

import pytest
import torch
from dense_recipes import RECIPES, gaps, model_of, objectives_of
from helpers import rows

import mvkit
from mvkit.testing import bound_noise, noise, tiny_models
from mvkit.training.step import ProgramSteps

pytestmark = pytest.mark.device

HERE = [name for name in RECIPES if name != "jnf"]  # of a package
DEVICE = os.environ.get("MVKIT_TEST_DEVICE", "cuda")
CLOSE = {"rtol": 2e-4, "atol": 2e-5}
QUIET = {"progress": False, "seed": 0}
BACKEND = "graph" if DEVICE.startswith("cuda") else "traced"


def on(device, source):
    """Noise that is the same on every device."""

    def moved(site, shape, dtype, _):
        return source(site, shape, dtype, torch.device("cpu")).to(device)

    return moved


def in_turn():
    """Noise drawn one after another."""
    generator = torch.Generator().manual_seed(0)

    def source(site, shape, dtype, device):
        draw = torch.rand if site.startswith("choice/") else torch.randn
        return draw(shape, generator=generator, dtype=dtype)

    return source


def outcome(name, device, *, dense):
    """Loss, metrics and gradients of a recipe's model on a device, on the CPU afterwards."""
    model = model_of(name).float().to(device).train()
    batch = model.conform(gaps(model.names)).to(device)
    batch = batch.dense() if dense else batch
    results = []
    for objective in objectives_of(model):
        model.zero_grad()
        with noise(on(device, bound_noise(range(len(batch)), model.names))):
            loss = model.loss(batch, objective=objective)
        loss.loss.backward()
        metrics = {key: value.cpu() for key, value in loss.metrics.items()}
        gradients = {
            key: p.grad.cpu() for key, p in model.named_parameters() if p.grad is not None
        }
        results.append((loss.loss.detach().cpu(), metrics, gradients))
    return results


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("dense", [True, False])
def test_losses_and_gradients_are_those_of_the_cpu(name, dense):
    elsewhere = outcome(name, DEVICE, dense=dense)
    here = outcome(name, "cpu", dense=dense)
    torch.testing.assert_close(elsewhere, here, equal_nan=True, **CLOSE)


@pytest.mark.parametrize("name", HERE)
def test_a_program_gives_the_gradients_of_a_step(name):
    model = model_of(name).float().to(DEVICE).train()
    batch = model.conform(gaps(model.names)).to(DEVICE).dense()
    generator = torch.Generator(DEVICE)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for objective in objectives_of(model):
        steps = ProgramSteps(model, BACKEND)
        for seed in (0, 1):  # the second time, the graph is there
            generator.manual_seed(seed)
            torch.manual_seed(seed)
            model.load_state_dict(state)
            loss = model.loss(batch, objective=objective, generator=generator)
            wanted = [p for p in model.parameters() if p.requires_grad]
            expected = torch.autograd.grad(loss.loss, wanted, allow_unused=True)
            generator.manual_seed(seed)
            torch.manual_seed(seed)
            model.load_state_dict(state)
            model.zero_grad()
            step = steps(batch, objective, generator)
            step.add_gradient(1.0)
            torch.testing.assert_close(step.loss, loss.loss.detach(), **CLOSE)
            for parameter, gradient in zip(wanted, expected, strict=True):
                if gradient is not None:
                    torch.testing.assert_close(parameter.grad, gradient, **CLOSE)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("compile", [False, "step"])
def test_training_on_stored_rows_learns(precision, compile):
    if compile and BACKEND == "traced":
        pytest.skip("compiled steps of the CPU are tested elsewhere")
    model = tiny_models.model().float()
    options = {"precision": precision, "compile": compile, "data_on": "device", "device": DEVICE}
    history = mvkit.fit(model, rows(64), epochs=30, batch_size=16, lr=0.01, **options, **QUIET)
    assert history["loss"][-1] < history["loss"][0]
    assert next(model.parameters()).device.type == torch.device(DEVICE).type


def test_a_run_on_the_device_resumes_exactly(tmp_path):
    options = {"data_on": "device", "device": DEVICE, "batch_size": 16, **QUIET}
    whole, part = tiny_models.model().float(), tiny_models.model().float()
    mvkit.fit(whole, rows(48), epochs=4, **options)
    mvkit.fit(part, rows(48), epochs=2, checkpoint=tmp_path, **options)
    mvkit.fit(part, rows(48), epochs=4, checkpoint=tmp_path, **options)
    for first, other in zip(whole.parameters(), part.parameters(), strict=True):
        assert torch.equal(first, other)


def test_answers_are_those_of_the_cpu(tmp_path):
    model = tiny_models.model().float()
    here = model.encode(rows())
    with noise(on("cpu", in_turn())):
        likelihood = model.log_likelihood(rows(), n=200)
    model.to(DEVICE)
    torch.testing.assert_close(model.encode(rows()).cpu(), here, **CLOSE)
    with noise(on(DEVICE, in_turn())):
        scored = model.log_likelihood(rows(), n=200).cpu()
    torch.testing.assert_close(scored, likelihood, **CLOSE)
    mvkit.save(model, tmp_path / "model")
    again = mvkit.load(tmp_path / "model")
    torch.testing.assert_close(again.encode(rows()).cpu(), here, **CLOSE)


PROCESSES = """
import sys, torch
from torch import distributed, nn
from helpers import rows
from mvkit.testing import tiny_models
from mvkit.training.distributed import LossModule

device, store = sys.argv[1:]
cuda = device.startswith("cuda")
name = "nccl" if cuda else "gloo"
distributed.init_process_group(name, init_method=f"file://{store}", rank=0, world_size=1)
ones = torch.ones(3, device=device)
distributed.all_reduce(ones)
model = tiny_models.model().float().to(device).train()
batch = model.conform(rows()).to(device)
wrapped = nn.parallel.DistributedDataParallel(
    LossModule(model, connected=True),
    device_ids=[device] if cuda else None,
    find_unused_parameters=True,
)
loss, *_ = wrapped(batch, model.spec.objective, torch.Generator(device).manual_seed(0))
loss.backward()
total = sum(p.grad.abs().sum() for p in model.parameters() if p.grad is not None)
distributed.destroy_process_group()
print("reduced", ones.tolist(), bool(torch.isfinite(total)))
"""


def test_processes_of_the_device_reduce_gradients(tmp_path):
    device = "cuda:0" if DEVICE == "cuda" else DEVICE
    command = [sys.executable, "-W", "ignore", "-c", PROCESSES, device, str(tmp_path / "store")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["tests", *sys.path])}
    run = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert "reduced [1.0, 1.0, 1.0] True" in run.stdout, run.stderr
