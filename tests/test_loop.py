"""The loop: clipping, accumulation, averages, schedules, early stops, non-finite losses."""

import math

import attrs
import pytest
import torch
from helpers import modalities, model, rows
from torch import nn

import mvkit
from mvkit import Batch, Modality, Model, NonFiniteError, RequestError, SpecError, Stage
from mvkit.data.pipeline import Pipeline
from mvkit.testing import noise
from mvkit.training.events import NonFinite
from mvkit.training.nonfinite import Guard


def quiet(site, shape, dtype, device):
    return torch.full(shape, 0.5 if site.startswith("choice") else 0.0, dtype=dtype, device=device)


def fitted(stage, tiny=None, **options):
    tiny = tiny or model()
    options = {"data": rows(9), "batch_size": 9, **options}
    with noise(quiet):
        history = mvkit.fit(tiny, stages=[stage], **options)
    return tiny, history


def same(first, second, **tolerance):
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[name], **tolerance)


def test_clipping_clips():
    norms = []

    @attrs.frozen
    class Watched:
        def optimizer(self, parameters, lr):
            def note(*_):
                gradients = [p.grad for p in parameters if p.grad is not None]
                norms.append(float(nn.utils.get_total_norm(gradients)))

            tiny = torch.optim.SGD(parameters, lr)
            tiny.register_step_pre_hook(note)
            return tiny

    for clip in (None, 0.25):
        stage = Stage("elbo", 1, clip=clip)
        object.__setattr__(stage, "optimizer", Watched())
        fitted(stage)
    assert norms[0] > 1
    assert norms[1] == pytest.approx(0.25, rel=1e-5)


def test_accumulated_batches_are_one_batch():
    whole, _ = fitted(Stage("elbo", 2))
    data = Pipeline(rows(9), batch_size=4)  # 4, 4 and 1
    parts, _ = fitted(Stage("elbo", 2, accumulate=3), batch_size=4, data=data)
    same(whole, parts, rtol=1e-9, atol=1e-11)


def test_averages_of_weights_are_carried_on():
    tiny = model()
    seen = []

    def note(event):
        seen.append({name: p.detach().clone() for name, p in tiny.named_parameters()})

    note(None)
    start = seen[0]

    fitted(Stage("elbo", 1, ema=0.75), tiny, listeners=[note])
    after = seen[-2]  # when the epoch ended
    for name, value in tiny.named_parameters():
        torch.testing.assert_close(value, 0.75 * start[name] + 0.25 * after[name])


def test_steps_end_a_stage():
    _, history = fitted(Stage("elbo", 50, steps=5), batch_size=3)
    assert [row["step"] for row in history.rows] == [3, 5]


def test_a_stage_without_progress_ends_early():
    stage = Stage("elbo", 50, patience=2, optimizer={"name": "adam", "lr": 0.0})
    _, history = fitted(stage, validation=rows(4))
    assert len(history) == 3  # the first is the best
    with pytest.raises(
        RequestError, match=r"stage 0 has patience=2, but nothing to judge by; give validation="
    ):
        mvkit.fit(model(), rows(), stages=[Stage("elbo", 3, patience=2)])


def test_learning_rate_schedules():
    by_epoch = {"name": "StepLR", "step_size": 1, "gamma": 0.5}
    _, history = fitted(Stage("elbo", 4, lr_schedule=by_epoch), lr=0.08)
    assert history["lr"] == pytest.approx([0.08, 0.04, 0.02, 0.01])
    by_step = {"name": "ExponentialLR", "gamma": 0.5, "every": "step"}
    _, history = fitted(Stage("elbo", 2, lr_schedule=by_step), lr=0.08, batch_size=3)
    assert history["lr"] == pytest.approx([0.01, 0.00125])
    for wrong, message in {
        "StepLRR": "did you mean 'StepLR'",
        "Optimizer": "torch.optim.lr_scheduler by name",
        3: "torch.optim.lr_scheduler by name",
    }.items():
        with pytest.raises(SpecError, match=message):
            Stage("elbo", 1, lr_schedule=wrong)
    with pytest.raises(SpecError, match=r"lr_schedule: StepLR: .*step_size"):
        fitted(Stage("elbo", 1, lr_schedule="StepLR"))


class Spoilt(nn.Module):
    """Emits infinities for rows whose first number is above 5; or has gradients only that are
    none.
    """

    def __init__(self, only_gradient=False):
        super().__init__()
        self.inner, self.only_gradient = nn.Linear(3, 4), only_gradient

    def forward(self, x):
        bad = (x[:, :1] > 5).to(x.dtype)
        if self.only_gradient:
            return self.inner(x) + (bad * self.inner.weight.sum() * 0).abs().sqrt()
        return self.inner(x) / (1 - bad)


def spoilt(**options):
    torch.manual_seed(0)
    decoder = {"name": "mlp", "hidden": [5]}
    a = Modality((3,), encoder=Spoilt(**options), decoder=decoder)
    return Model({**modalities(), "a": a}, latent_dim=2, seed=0).double()


def spoilt_rows():
    data = rows(12, missing=False)
    data.data["a"][7, 0] = 9.0
    return data


def test_the_report_names_terms_rows_and_keeps_the_state_before(tmp_path):
    tiny = spoilt()
    events = []
    options = {"batch_size": 4, "epochs": 1, "checkpoint": tmp_path, "listeners": [events.append]}
    match = r"stage 0, epoch 1, batch \d: not finite: .*loss.*\(rows 7 of the data\); the state before it is in .*nonfinite"
    with pytest.raises(NonFiniteError, match=match):
        mvkit.fit(tiny, spoilt_rows(), **options)
    assert any(isinstance(event, NonFinite) for event in events)
    assert events[-1].error.startswith("NonFiniteError")
    assert all(bool(torch.isfinite(p).all()) for p in tiny.parameters())
    header = mvkit.describe(tmp_path / "nonfinite.safetensors")
    assert header["training"]["place"]["epoch"] == 0


def test_gradients_that_are_no_numbers_are_named():
    with pytest.raises(
        NonFiniteError, match=r"not finite: the gradient of encoders\.a\.inner\.weight"
    ):
        mvkit.fit(spoilt(only_gradient=True), spoilt_rows(), batch_size=4, epochs=1)


def test_skipping_counts_and_leaves_the_weights_alone():
    tiny = spoilt()
    history = mvkit.fit(tiny, spoilt_rows(), batch_size=4, epochs=3, on_nonfinite="skip")
    assert history["skipped"] == [1, 1, 1]
    assert all(torch.isfinite(torch.tensor(history["loss"])))
    assert all(bool(torch.isfinite(p).all()) for p in tiny.parameters())
    good = spoilt_rows().take(torch.tensor([i for i in range(12) if i != 7]))
    assert mvkit.fit(spoilt(), good, batch_size=4, epochs=1)["skipped"] != [1]


def guarded_steps(guard, layer, values):
    """Steps on losses of these values; the numbers of the bad steps that came to light."""
    bad_steps = []
    for step, value in enumerate(values):
        loss = layer(torch.tensor([[value, 1.0]])).sum()
        layer.zero_grad()
        loss.backward()
        guard.snapshot()
        gradients = [p.grad for p in layer.parameters()]
        bad_steps += guard.step(loss.detach(), gradients, step)[1]
    return bad_steps


def guarded_layer(mode, late):
    layer = nn.Linear(2, 1)
    nn.init.constant_(layer.weight, 1.0)
    guard = Guard(layer, torch.optim.Adam(layer.parameters(), 0.1, fused=True), mode)
    guard.late = late
    return layer, guard


def test_a_late_look_leaves_out_the_same_steps():
    """What happens on accelerators, on the CPU's own fused kernels."""
    weights = []
    for late in (False, True):
        layer, guard = guarded_layer("skip", late)
        bad_steps = guarded_steps(guard, layer, [1.0, math.nan, 2.0, math.inf, 3.0])
        assert bad_steps + guard.poll() == [1, 3]
        weights.append(layer.weight.detach().clone())
    assert torch.equal(*weights)


def test_a_late_look_stops_everything_after_a_bad_step():
    layer, guard = guarded_layer("stop", late=True)
    guarded_steps(guard, layer, [1.0])
    before = layer.weight.detach().clone()
    guarded_steps(guard, layer, [math.nan, 2.0])
    assert torch.equal(before, layer.weight)
    assert guard.poll() == [0]  # of the second call


def test_bf16_keeps_densities_in_the_models_type(monkeypatch):
    # what is said of a run at its end is computed in the model's own type
    monkeypatch.setattr("mvkit.training.preparing.judge", lambda *_: None)
    seen = []

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 4)

        def forward(self, x):
            out = self.inner(x)
            seen.append(out.dtype)
            return out

    def build():
        a = Modality((3,), encoder=Network())
        return Model({"a": a, "b": (2,)}, latent_dim=2, seed=0)

    tiny = build()
    seen.clear()
    data = {"a": torch.randn(8, 3), "b": torch.randn(8, 2)}
    history = mvkit.fit(tiny, data, epochs=2, precision="bf16")
    assert set(seen) == {torch.bfloat16}
    full = mvkit.fit(build(), data, epochs=2)
    assert history["loss"][0] == pytest.approx(full["loss"][0], rel=0.1)
    with torch.no_grad():
        assert tiny.loss(Batch(data)).loss.dtype == torch.float32
        assert tiny.posterior(data).loc.dtype == torch.float32
    seen.clear()
    tiny.encode(data)
    assert set(seen) == {torch.float32}  # afterwards nothing is left of it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, r"precision='fp8'; expected 'float32' or 'bf16'"),
        ({"on_nonfinite": "go"}, r"on_nonfinite='go'; expected 'stop' or 'skip'"),
        ({"resume": True}, r"resume=True; expected 'auto' or 'must' or 'never'"),
        ({"keep": 0}, r"keep=0; expected a whole number of at least 1"),
        ({"save_every": -1}, r"save_every=-1; expected a number of at least 0"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(RequestError, match=message):
        mvkit.fit(model(), rows(), **options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler has its own
def test_compiled_networks_train_the_same():
    whole, history = fitted(Stage("elbo", 2), model())
    compiled, other = fitted(Stage("elbo", 2), model(), compile=True)
    same(whole, compiled, rtol=1e-6, atol=1e-8)
    assert compiled.encoders["a"]._compiled_call_impl is None
    assert history["loss"] == pytest.approx(other["loss"], rel=1e-6)
