"""Steps that wait for no device, rows stored there, and steps as one program."""

import os
import subprocess
import sys

import attrs
import pytest
import torch
from dense_recipes import RECIPES, gaps, model_of, objectives_of
from helpers import rows
from torch import nn
from waiting import counted_waits

import mvkit
from mvkit import Modality, RequestError, Stage, parts
from mvkit.core import batch_fields
from mvkit.core.experts import low_precision
from mvkit.data import device_batches
from mvkit.data.pipeline import Pipeline
from mvkit.testing import bound_noise, noise, tiny_models
from mvkit.training import nonfinite, step
from mvkit.training.optimizers import can_fuse, optimizer_of
from mvkit.training.stages import as_stages

HERE = [name for name in RECIPES if name != "jnf"]  # of a package
QUIET = {"progress": False, "seed": 0}


def many(names, b=24):
    """Rows with gaps, several times over."""
    batch = gaps(names)
    index = torch.arange(b) % len(batch)
    extra = {name: [values[i] for i in index] for name, values in batch.extra.items()}
    data = {name: value[index] for name, value in batch.data.items()}
    return mvkit.Batch(data, batch.mask[index], extra=extra)


@pytest.mark.parametrize("name", HERE)
def test_a_step_works_on_a_device_without_values(name, monkeypatch):
    """Forward and backward on `meta`: whatever looks at a value, or is elsewhere, is an error."""
    model = model_of(name).train()
    batch = model.conform(gaps(model.names)).dense()
    monkeypatch.setattr(batch_fields, "is_plain", lambda value: True)
    elsewhere = batch.map(lambda x: x.to("meta"))
    state = {}
    for key, value in (*model.named_parameters(), *model.named_buffers()):
        state[key] = value.detach().to("meta").requires_grad_(value.requires_grad)

    def source(site, shape, dtype, device):
        assert device.type == "meta", site
        return torch.empty(shape, dtype=dtype, device=device)

    for objective in objectives_of(model):
        with noise(source):
            options = {"objective": objective}
            loss = torch.func.functional_call(model, state, (elsewhere,), options)
        loss.loss.backward()
        for value in (*loss.metrics.values(), *loss.counts.values()):
            assert value.device.type == "meta"


@pytest.mark.parametrize("name", HERE)
def test_no_step_waits_for_the_device(name, monkeypatch):
    """An epoch of six steps waits as often as one of two: at its end, for metrics and flags."""
    monkeypatch.setattr(nonfinite, "POLL_EVERY", 1000)
    guard = nonfinite.Guard.__init__

    def late(self, *args, **kwargs):
        guard(self, *args, **kwargs)
        self.late = True  # as on an accelerator

    monkeypatch.setattr(nonfinite.Guard, "__init__", late)
    # words beside the rows are picked on the host, by an index that it has
    monkeypatch.setattr(device_batches, "pick", lambda value, index: value[: len(index)])
    counts = []
    for b in (16, 48):
        model = model_of(name)
        data = many(model.names, b)
        with counted_waits(monkeypatch) as waits:
            mvkit.fit(model, data, epochs=1, batch_size=8, data_on="device", **QUIET)
        counts.append(waits)
    assert counts[0]["tolist"] > 0  # of the means, once an epoch
    assert counts[0] == counts[1]


def test_what_waits_is_counted(monkeypatch):
    flags = torch.tensor([True, False])
    with counted_waits(monkeypatch) as waits:
        bool(flags.any())
        flags.float()[flags]
        float(flags.sum())
        flags.nonzero()
    assert waits["__bool__"] == waits["__float__"] == waits["index"] == 1
    assert waits["nonzero"] == 2  # the method, and its operation


@pytest.mark.device
def test_no_step_waits_for_a_gpu():
    torch.cuda.synchronize()
    for name in HERE:
        model = model_of(name).float().to("cuda")
        batch = model.conform(gaps(model.names)).to("cuda").dense()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        generator = torch.Generator("cuda").manual_seed(0)
        model.train().loss(batch, generator=generator)  # what is made once
        torch.cuda.set_sync_debug_mode("error")
        try:
            model.loss(batch, generator=generator).loss.backward()
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def histories(data, model, *options, **shared):
    """The rows of the histories of copies of a model, trained in several ways."""
    results = []
    for own in options:
        copy = model()
        history = mvkit.fit(copy, data, **QUIET, **shared, **own)
        results.append((history.rows, copy.state_dict()))
    return results


def check_close(results, **tolerance):
    (first, weights), *others = results
    for rows_of_other, weights_of_other in others:
        torch.testing.assert_close(rows_of_other, first, equal_nan=True, **tolerance)
        torch.testing.assert_close(weights_of_other, weights, equal_nan=True, **tolerance)


@pytest.mark.parametrize("name", ["jmvae", "cvae", "nexus"])
def test_rows_on_the_device_give_the_same_history(name):
    model = model_of(name)
    ways = ({}, {"data_on": "device"})
    options = {"epochs": 2, "batch_size": 7}
    results = histories(many(model.names), lambda: model_of(name), *ways, **options)
    check_close(results, rtol=1e-8, atol=1e-8)


def test_complete_rows_on_the_device_give_the_same_bits():
    ways = ({}, {"data_on": "device"}, {"data_on": "device", "validation": 0.25})
    results = histories(rows(24, missing=False), tiny_models.model, *ways[:2], epochs=2)
    check_close(results, rtol=0, atol=0)


def test_rows_that_are_not_in_memory_are_refused_on_the_device():
    model = tiny_models.model()
    items = [{"a": torch.zeros(3), "b": torch.zeros(2, 2), "c": torch.eye(4)[0]}]
    with pytest.raises(RequestError, match="data_on='device': got rows as Loaded.*'host'"):
        mvkit.fit(model, items * 4, epochs=1, data_on="device", **QUIET)
    with pytest.raises(RequestError, match="data_on='cuda'; expected 'host' or 'device'"):
        mvkit.fit(model, rows(), epochs=1, data_on="cuda", **QUIET)


def test_batches_of_stored_rows_are_those_of_a_pipeline():
    model = tiny_models.model()
    data = rows(20)
    data.extra["id"] = [f"row {i}" for i in range(20)]
    pipeline = Pipeline(data, batch_size=6, schema=model.schema)
    pairs = zip(pipeline, pipeline.stored_on_device(), strict=True)
    for gathered, dense in pairs:
        assert dense.may_lack == {"a", "b", "c"}
        assert dense.extra["id"] == gathered.extra["id"]
        assert torch.equal(dense.observed, gathered.observed)
        for name, x in gathered.data.items():
            assert torch.equal(dense.data[name], x)


@pytest.fixture
def traced(monkeypatch):
    """Steps as programs, which are run without a compiler."""

    def programs(self, *, accumulates):
        if self.compile != "step":
            return None
        return step.ProgramSteps(self.model, "traced", accumulates=accumulates)

    monkeypatch.setattr("mvkit.training.run.Run.programs", programs)


@pytest.mark.parametrize("name", HERE)
def test_a_program_gives_the_losses_and_weights_of_a_step(name, traced):
    model = model_of(name)
    stages = []
    for stage in as_stages(None, model, 4):  # Adam would divide what is rounding by itself
        stages.append(attrs.evolve(stage, optimizer={"name": "sgd"}))
    options = {"epochs": 4, "batch_size": 8, "stages": stages}
    ways = ({}, {"compile": "step"})
    results = histories(many(model.names, 20), lambda: model_of(name), *ways, **options)
    check_close(results, rtol=1e-9, atol=1e-10)


def with_dropout():
    layers = (torch.nn.Linear(3, 6), torch.nn.Dropout(0.5), torch.nn.Linear(6, 4))
    first = {"encoder": torch.nn.Sequential(*layers)}
    return tiny_models.model(first=first)


def test_programs_draw_accumulate_and_follow_ramps(traced):
    """Dropout, gradients of several batches, a ramp, and a skipped part of the parameters."""
    ramp = {"kl_weight": {"name": "linear", "epochs": 2}}
    stages = [
        Stage(epochs=4, accumulate=2, ramps=ramp, clip=1.0, ema=0.9),
        Stage(epochs=1, trainable=["decoders.*"]),
    ]
    ways = ({"data_on": "device"}, {"compile": "step", "data_on": "device"})
    options = {"epochs": 5, "batch_size": 8, "stages": stages, "validation": 0.2}
    torch.manual_seed(0)
    model = with_dropout()
    state = model.state_dict()

    def again():
        other = with_dropout()
        other.load_state_dict(state)
        return other

    check_close(histories(rows(40), again, *ways, **options), rtol=1e-6, atol=1e-8)


def test_runs_by_programs_resume_exactly(traced, tmp_path):
    options = {"compile": "step", "batch_size": 8, **QUIET}
    whole = tiny_models.model()
    mvkit.fit(whole, rows(24), epochs=4, **options)
    part = tiny_models.model()
    mvkit.fit(part, rows(24), epochs=2, checkpoint=tmp_path, **options)
    mvkit.fit(part, rows(24), epochs=4, checkpoint=tmp_path, **options)
    for name, value in part.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_draws_by_values_are_refused_in_a_program(traced):
    model = mvkit.recipes.not_miwae(
        {"a": Modality((3,), {"name": "normal", "scale": "decoded"})}, latent_dim=2, seed=0
    )

    class Drawn(torch.nn.Module):
        def penalty(self, rows):
            rate = model.like.abs().sum()
            return 0 * torch.poisson(rate, generator=torch.Generator()).sum()

    model.drawn = Drawn()
    with pytest.raises(RequestError, match=r"compile='step': aten.poisson.*draws by values"):
        mvkit.fit(model, {"a": torch.randn(8, 3)}, epochs=1, compile="step", **QUIET)


def test_steps_are_not_compiled_of_what_cannot_be():
    model = tiny_models.model()
    with pytest.raises(RequestError, match="compile='steps'; expected"):
        mvkit.fit(model, rows(), epochs=1, compile="steps", **QUIET)
    lacking = attrs.evolve(rows())
    layers = (torch.nn.Linear(3, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 4))
    model = tiny_models.model(first={"encoder": torch.nn.Sequential(*layers)})
    with pytest.raises(RequestError, match="BatchNorm1d takes statistics over all rows"):
        mvkit.fit(model, lacking, epochs=1, compile="step", **QUIET)


def small():
    each = {"a": Modality((3,), encoder="linear", decoder="linear")}
    return mvkit.Model(each, latent_dim=2, seed=0).double()


def test_a_compiled_step_gives_the_losses_of_a_step():
    data = {"a": torch.randn(16, 3).double()}
    ways = ({}, {"compile": "step"})
    check_close(histories(data, small, *ways, epochs=2, batch_size=8), rtol=1e-9, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", HERE)
def test_compiled_steps_give_the_losses_of_every_recipe(name):
    stages = []
    model = model_of(name)
    for stage in as_stages(None, model, 2):
        stages.append(attrs.evolve(stage, optimizer={"name": "sgd"}))
    options = {"epochs": 2, "batch_size": 8, "stages": stages}
    ways = ({}, {"compile": "step"})
    results = histories(many(model.names, 16), lambda: model_of(name), *ways, **options)
    check_close(results, rtol=1e-9, atol=1e-10)


MISSING = """
import mvkit, torch
model = mvkit.Model({"a": mvkit.Modality((3,))}, latent_dim=2, seed=0)
try:
    mvkit.fit(model, {"a": torch.randn(8, 3)}, epochs=1, compile="step", progress=False)
except mvkit.RequestError as error:
    print(error)
"""


def test_a_missing_compiler_is_said_in_words(tmp_path):
    environment = {**os.environ, "CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", MISSING]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "compile='step': torch.compile failed" in run.stdout, run.stderr
    assert "expected a working C++ compiler" in run.stdout


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("groups", [{}, {"encoders.*": 0.01}])
def test_fused_optimizers_take_the_steps_of_the_formula(name, groups):
    """Also where a step is skipped on the device, as after a non-finite loss."""
    kinds = {"adam": parts.Adam, "adamw": parts.AdamW}
    plain = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    models = [tiny_models.model() for _ in range(2)]
    fused = optimizer_of(kinds[name](groups=groups), dict(models[0].named_parameters()), 0.02)
    assert all(group["fused"] for group in fused.param_groups)
    each = [{"params": [p]} for p in models[1].parameters()]
    for (path, _), group in zip(models[1].named_parameters(), each, strict=True):
        group["lr"] = 0.01 if groups and path.startswith("encoders.") else 0.02
    slow = plain[name](each, 0.02, foreach=False, fused=False)
    for i in range(6):
        for model in models:
            model.zero_grad()
            with noise(bound_noise(range(8), model.names)):
                model.train().loss(rows()).loss.backward()
        skipped = i == 3
        fused.found_inf = torch.tensor(float(skipped))
        fused.grad_scale = None
        fused.step()
        if not skipped:
            slow.step()
    for first, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(first, other, rtol=1e-9, atol=1e-12)


def test_a_device_without_fused_kernels_gets_others():
    here, elsewhere = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, device="meta"))
    assert can_fuse([here])
    assert not can_fuse([elsewhere])
    assert not can_fuse([{"params": [here]}, {"params": [elsewhere], "lr": 0.1}])
    assert not parts.AdamW().optimizer([elsewhere], 0.1).param_groups[0]["fused"]


def test_densities_keep_float32_beside_networks_in_bf16():
    model = tiny_models.model(private=2).float()
    seen = []
    first = model.encoders["a"].register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    batch = model.conform(rows()).dense()
    with low_precision(torch.bfloat16):
        terms = model.terms(batch, want="mixture")
        loss = model.loss(batch)
    first.remove()
    assert set(seen) == {torch.bfloat16}
    values = [terms.log_px, terms.log_pz, terms.log_qz, terms.private_log_ratio, loss.bound]
    assert {value.dtype for value in values} == {torch.float32}
    loss.loss.backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


def test_programs_compute_networks_in_bf16(traced):
    ways = ({"data_on": "device"}, {"data_on": "device", "compile": "step"})
    options = {"epochs": 2, "batch_size": 8, "precision": "bf16"}
    results = histories(rows(16), lambda: tiny_models.model().float(), *ways, **options)
    check_close(results, rtol=1e-4, atol=1e-5)
    exact = histories(rows(16), lambda: tiny_models.model().float(), {}, epochs=2, batch_size=8)
    losses = [row["loss"] for row in exact[0][0]]
    assert [row["loss"] for row in results[1][0]] != losses  # which is another precision


def test_tracing_leaves_the_model_as_it_is():
    """Nexus has a module in two places; here two modules share a parameter too."""
    model = model_of("nexus").train()
    first, second = (model.levels[0].encoders[name] for name in ("a", "b"))
    linear = [
        next(m for m in net.modules() if isinstance(m, nn.Linear)) for net in (first, second)
    ]
    linear[1].bias = linear[0].bias
    parameters = dict(model.named_parameters())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    batch = model.conform(gaps(model.names)).dense()
    generator = torch.Generator().manual_seed(3)
    program = step.ProgramSteps(model, "traced")
    before = generator.get_state()
    (traced, _) = program._program(batch, None, generator)
    assert torch.equal(generator.get_state(), before)
    assert all(parameters[name] is value for name, value in model.named_parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    generator.manual_seed(3)
    computed = program(batch, None, generator)
    computed.add_gradient(1.0)
    gradients = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    model.zero_grad()
    model.load_state_dict(state)
    generator.manual_seed(3)
    model.loss(batch, generator=generator).loss.backward()
    expected = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    assert set(gradients) == set(expected)
    torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-10)
    assert traced.names
