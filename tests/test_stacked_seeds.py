"""Copies that are trained in one step: the runs of their seeds, and what is trained otherwise."""

import warnings

import attrs
import pytest
import torch
from dense_recipes import RECIPES, gaps, model_of

import mvkit
from mvkit import RequestError, Stage
from mvkit.core import noise
from mvkit.core.stacked_copies import CopiesNoise, copies_draw
from mvkit.data.pipeline import Pipeline
from mvkit.parts import Objective
from mvkit.registry import plugins
from mvkit.registry.component import Component
from mvkit.training.preparing import prepared
from mvkit.training.stacked_stage import tied_names

SEEDS = [0, 3, 4]
AFTER = "the copies were trained one after another: "


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(seed=0, **options):
    return mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, seed=seed, **options)


def data(b=24, seed=0):
    x = torch.randn(b, 5, generator=seeded(seed))
    return {"a": x[:, :3].clone(), "b": x[:, 3:].clone()}


def repeated(names, missing, times=3):
    """Rows with or without gaps, several batches of 8."""
    batch = gaps(list(names), missing=missing)
    mask = None if batch.mask is None else torch.cat([batch.mask] * times)
    values = {name: torch.cat([x] * times) for name, x in batch.data.items()}
    generator = seeded(1)
    values["a"] = values["a"] + 0.1 * torch.randn(values["a"].shape, generator=generator)
    extra = {name: value * times for name, value in batch.extra.items()}
    return mvkit.Batch(values, mask, extra=extra)


def fitted(model, rows, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mvkit.fit(model, rows, batch_size=8, seeds=SEEDS, progress=False, **options)


def check_alike(stacked, alone, tolerance):
    """Same columns and numbers of rows, weights and buffers, to a relative tolerance."""
    assert not [note for note in stacked.notes if note.startswith(AFTER)]
    assert len(stacked.rows) == len(alone.rows)
    for row, own in zip(stacked.rows, alone.rows, strict=True):
        assert list(row) == list(own)
        for key, value in own.items():
            assert row[key] == pytest.approx(value, rel=tolerance, abs=tolerance, nan_ok=True), key
    expected = alone.ensemble.state_dict()
    weights = stacked.ensemble.state_dict()
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(
            weights[name], weight, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name
        )


def both(make, rows, tolerance=1e-9, **options):
    """The histories of one step for all and of one run after another, which must agree."""
    stacked = fitted(make(), rows, stacked=True, **options)
    alone = fitted(make(), rows, stacked=False, **options)
    check_alike(stacked, alone, tolerance)
    return stacked, alone


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "gaps"])
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("jnf", "not_miwae")])
def test_every_recipe_is_trained_as_alone(name, missing):
    rows = repeated(model_of(name).names, missing)
    both(lambda: model_of(name), rows, epochs=2)  # two: some have two stages


def test_copies_differ_and_each_is_a_run_of_its_seed():
    stacked = fitted(tiny().double(), data(), stacked=True, epochs=2)
    for seed, copy in zip(SEEDS, stacked.ensemble.members, strict=True):
        alone = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, seed=seed).double()
        own = mvkit.fit(alone, data(), batch_size=8, seed=seed, epochs=2, progress=False)
        losses = [row["loss"] for row in stacked.rows if row["seed"] == seed]
        assert losses == pytest.approx(own["loss"], rel=1e-9)
        for name, weight in alone.state_dict().items():
            torch.testing.assert_close(copy.state_dict()[name], weight, rtol=1e-9, atol=1e-9)
    assert len({row["loss"] for row in stacked.rows}) == len(stacked.rows)


@pytest.mark.parametrize("name", ["mopoe", "mmvaeplus", "telbo"])
def test_twenty_steps_in_float32(name):
    rows = repeated(model_of(name).names, True, times=20)
    both(lambda: model_of(name).float(), rows, tolerance=1e-4, epochs=1, stages=Stage(epochs=1))


def test_a_mixture_prior_is_placed_by_each_copy():
    options = {"prior": {"name": "mog", "components": 3}, "aggregator": "mopoe"}
    options |= {"schedule": "warmup_then_mixture"}
    stacked, _ = both(lambda: tiny(**options).double(), data(), epochs=4)
    assert stacked["stage"] == [0, 0, 1, 1] * len(SEEDS)


@pytest.mark.parametrize(
    "stage",
    [
        Stage(epochs=3, clip=0.5),
        Stage(epochs=3, ema=0.9),
        Stage(epochs=3, steps=4),
        Stage(epochs=3, start_from="last"),
        Stage(epochs=3, optimizer={"name": "adamw", "groups": {"encoders.*": 1e-2}}),
        Stage(epochs=3, optimizer={"name": "sgd", "momentum": 0.9, "lr": 1e-3}),
        Stage(epochs=3, lr_schedule={"name": "CosineAnnealingLR", "T_max": 9, "every": "step"}),
        Stage(epochs=3, lr_schedule={"name": "ExponentialLR", "gamma": 0.5}),
        Stage(epochs=3, ramps={"kl_weight": "linear"}),
        Stage(epochs=3, trainable=["decoders.*"]),
    ],
    ids=["clip", "ema", "steps", "last", "groups", "sgd", "steps-lr", "lr", "ramp", "trainable"],
)
def test_what_stages_can_ask_for(stage):
    stages = [stage, Stage(epochs=1)]
    both(lambda: tiny().double(), data(), stages=stages, validation=0.25, lr=0.01)


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("validation", [None, "given"])
def test_the_weights_that_are_kept(ema, validation):
    valid = data(11, seed=5) if validation == "given" else None
    stages = [Stage(epochs=3, ema=ema)]
    both(lambda: tiny().double(), data(), stages=stages, validation=valid, lr=0.1)


def test_weights_of_rows_count():
    weight = torch.rand(24, generator=seeded(3)).tolist()
    rows = mvkit.Batch(data(), row_weight=weight)
    both(lambda: tiny().double(), rows, epochs=2, validation=0.25)


@pytest.mark.parametrize("name", ["mopoe", "mmvaeplus", "telbo"])
def test_no_operation_is_done_to_one_copy_after_another(name):
    rows = repeated(model_of(name).names, missing=True)
    with warnings.catch_warnings():  # torch warns where vmap has no rule for an operation
        warnings.filterwarnings("error", message="There is a performance drop")
        options = {"batch_size": 8, "epochs": 2, "validation": 0.25, "progress": False}
        mvkit.fit(model_of(name), rows, seeds=SEEDS, stacked=True, **options)


def test_steps_of_importance_weights_scale_gradients_of_each_copy():
    options = {"aggregator": "moe", "objective": {"name": "dreg", "samples": 4}}
    both(lambda: tiny(**options).double(), data(), epochs=2)


def test_the_last_batch_may_be_small():
    both(lambda: tiny().double(), data(17), epochs=2)


def declare(name, kind):
    plugins.declare(Component("objective", name, f"{__name__}:{kind.__name__}"))


@mvkit.spec
class Draws(Objective):
    """Draws from a generator that nobody gave it."""

    kl_weight: float = 1.0

    def forward(self, model, batch, experts):
        loss = mvkit.parts.ELBO().forward(model, batch, experts)
        uniform = noise.draw("x", (), loss.loss)
        return attrs.evolve(loss, loss=loss.loss * (1 + uniform))


REFUSED = [
    ({"listeners": [print]}, "listeners are told of one run after another"),
    ({"compile": True}, r"what is compiled is that of one copy \(compile=\)"),
    ({"precision": "bf16"}, r"networks compute in low precision \(precision='bf16'\)"),
    ({"patience": 2, "validation": 0.25}, "each copy ends by itself"),
    ({"stages": Stage(accumulate=2)}, "stage 0: its steps are made of several batches"),
    ({"stages": Stage(lr_schedule="ReduceLROnPlateau")}, "its learning rate follows the loss"),
    ({"stages": [Stage(), Stage(patience=1)], "validation": 0.25}, "stage 1: each copy ends"),
]


@pytest.mark.parametrize(("options", "reason"), REFUSED)
def test_what_cannot_be_stacked_is_refused_in_words(options, reason):
    with pytest.raises(RequestError, match=f"fit: stacked=True: .*{reason}.*stacked='auto'"):
        fitted(tiny(), data(), stacked=True, **options)


def test_folders_are_refused(tmp_path):
    with pytest.raises(RequestError, match=r"each copy keeps a folder of its own"):
        fitted(tiny(), data(), stacked=True, checkpoint=tmp_path)


def test_streams_are_trained_one_after_another_which_the_notes_say():
    rows = mvkit.Batch(data())
    batches = [rows.take(slice(i, i + 8)) for i in range(0, 24, 8)]
    history = fitted(tiny(), batches, epochs=1)
    assert history.notes[0] == f"{AFTER}data are read batch by batch, not held in memory"
    again = fitted(tiny(), batches, epochs=1, stacked=False)
    assert history.rows == again.rows
    assert not again.notes


def test_dropout_is_trained_one_after_another():
    options = {"width": 8, "blocks": 1, "dropout_rate": 0.5}
    rows = repeated(model_of("masked").names, False)
    history = fitted(model_of("masked", **options), rows, epochs=1)
    assert history.notes[0] == f"{AFTER}modules such as Dropout draw from torch's own generators"
    alone = fitted(model_of("masked", **options), rows, epochs=1, stacked=False)
    assert history.rows == alone.rows


def test_models_of_what_is_missing_are_trained_one_after_another():
    history = fitted(model_of("not_miwae"), repeated(("a", "b"), True), epochs=1)
    assert history.notes[0].startswith(f"{AFTER}the model draws what rows lack")


def test_other_generators_are_refused():
    declare("draws", Draws)
    stages = Stage(Draws(), epochs=1)
    with pytest.raises(RequestError, match=r"draws from another generator than that of its step"):
        fitted(tiny(), data(), stacked=True, stages=stages)


@mvkit.spec
class ByBatch(Objective):
    """Asks a number for its value, which differs between copies."""

    kl_weight: float = 1.0

    def forward(self, model, batch, experts):
        loss = mvkit.parts.ELBO().forward(model, batch, experts)
        factor = 2.0 if loss.loss > 0 else 1.0
        return attrs.evolve(loss, loss=loss.loss * factor)


def test_values_that_are_looked_at_are_refused():
    declare("by_batch", ByBatch)
    with pytest.raises(RequestError, match="cannot be trained in one step: RuntimeError"):
        fitted(tiny(), data(), stacked=True, stages=Stage(ByBatch(), epochs=1))


@mvkit.spec
class Counts(Objective):
    """Another loss at each call, whatever the noise."""

    kl_weight: float = 1.0

    def forward(self, model, batch, experts):
        calls.append(None)
        loss = mvkit.parts.ELBO().forward(model, batch, experts)
        return attrs.evolve(loss, loss=loss.loss * len(calls))


calls = []


def test_a_first_step_that_is_not_the_copies_own_is_refused():
    declare("counts", Counts)
    with pytest.raises(RequestError, match=r"the first loss of seed 0 is .* beside others, and"):
        fitted(tiny(), data(), stacked=True, stages=Stage(Counts(), epochs=1))


def test_losses_that_are_not_finite_end_as_one_after_another():
    rows = data()
    rows["a"][5] = 1e30
    options = {"epochs": 1, "on_nonfinite": "skip"}
    history = fitted(tiny(), rows, **options)
    assert history.notes[0].startswith(AFTER)
    assert "not finite" in history.notes[0]
    assert history["skipped"] == [1.0] * len(SEEDS)
    with pytest.raises(mvkit.NonFiniteError, match="stage 0, epoch 1, batch"):
        fitted(tiny(), rows, epochs=1)


@pytest.mark.parametrize("stacked", ["yes", None, 2])
def test_other_words_for_stacked_are_refused(stacked):
    with pytest.raises(RequestError, match=r"fit: stacked=.*; expected 'auto' or True or False"):
        fitted(tiny(), data(), stacked=stacked)


def test_one_run_is_no_stack():
    with pytest.raises(RequestError, match="stacked=True, and nothing to stack; expected several"):
        mvkit.fit(tiny(), data(), epochs=1, stacked=True)
    with pytest.raises(RequestError, match="fit: resume='no'"):
        fitted(tiny(), data(), epochs=1, resume="no")


def test_copies_share_rows_in_memory(monkeypatch):
    seen = []

    def note(*arguments, **options):
        seen.append(prepared(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr("mvkit.training.stacked.prepared", note)
    fitted(tiny(), data(), stacked=True, epochs=1, validation=data(9, 1))
    assert len({id(run.loader.rows) for run in seen}) == 1
    assert len({id(run.valid.rows) for run in seen}) == 1


def test_pipelines_keep_their_order_and_share_their_rows():
    pipeline = Pipeline(data(), batch_size=6, shuffle=False)
    stacked, alone = both(lambda: tiny().double(), pipeline, epochs=2)
    assert stacked["step"] == alone["step"] == [4, 8] * len(SEEDS)


def test_weights_beyond_memory_are_trained_one_after_another(monkeypatch):
    monkeypatch.setattr("mvkit.training.stacked_checks.MOST_BYTES", 1000)
    history = fitted(tiny(), data(), epochs=1)
    assert history.notes[0] == f"{AFTER}the weights of all copies together take too much memory"


def test_a_single_seed_is_no_stack():
    history = mvkit.fit(tiny(), data(), epochs=1, seeds=1, progress=False)
    assert not history.notes


def test_each_copy_draws_from_its_own_generator():
    asked = seeded()
    generators = [seeded(1), seeded(2)]

    def draws(number, x):
        with copies_draw(CopiesNoise(generators, asked), number):
            return x + noise.draw("z", (3,), x, generator=asked, sampler=torch.randn)

    zeros = torch.zeros(2, 3, dtype=torch.float64)
    values = torch.vmap(draws)(torch.arange(2), zeros)
    for seed, value in zip((1, 2), values, strict=True):
        expected = torch.randn(3, dtype=torch.float64, generator=seeded(seed))
        assert torch.equal(value, expected)


def test_parameters_with_two_names():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(2, 2)
            self.b = self.a
            self.c = torch.nn.Linear(2, 2)
            self.c.weight = self.a.weight

    assert tied_names(Tied()) == [("a.weight", "c.weight")]
