"""What a stage trains, at which rates: exclusions, groups of parameters, `sgd`, and schedules that
hold others. Each is computed a second time here, by plain loops.
"""

import itertools
import json
import math
import tomllib

import pytest
import torch
from helpers import model, rows
from safetensors.torch import load_file

import mvkit
from mvkit import Covariate, SpecError, Stage
from mvkit.registry import component, plugins
from mvkit.registry.spec import as_part, to_dict
from mvkit.training.events import CheckpointSaved
from mvkit.training.freezing import trainable
from mvkit.training.optimizers import SGD, Adam, optimizer_of
from mvkit.training.stages import as_stages


class Stopped(Exception):
    pass


def names_of(tiny, globs):
    with trainable(tiny, globs):
        return {name for name, p in tiny.named_parameters() if p.requires_grad}


def every_name(tiny):
    return {name for name, _ in tiny.named_parameters()}


# exclusions


def test_exclusions_leave_out_what_they_match_wherever_they_stand():
    tiny = model()
    encoders = {name for name in every_name(tiny) if name.startswith("encoders.")}
    first = {name for name in encoders if name.startswith("encoders.a.")}
    assert first
    assert first < encoders
    for globs in itertools.permutations(["encoders.*", "!encoders.a.*"]):
        assert names_of(tiny, globs) == encoders - first
    assert names_of(tiny, ["*", "!encoders.*", "!decoders.*"]) == {
        name for name in every_name(tiny) if name.partition(".")[0] not in ("encoders", "decoders")
    }


def test_only_exclusions_train_all_else():
    tiny = model()
    first = {name for name in every_name(tiny) if name.startswith("encoders.a.")}
    assert names_of(tiny, ["!encoders.a.*"]) == every_name(tiny) - first


def test_a_level_alone_but_for_the_networks_that_are_left_out():
    tiny = model(covariates={"site": Covariate(levels=("A", "B"))})
    both = names_of(tiny, ["covariates.site.A"])
    assert {name.partition(".")[0] for name in both} == {"encoders", "decoders"}
    some = names_of(tiny, ["!encoders.*", "covariates.site.A"])
    assert some == {name for name in both if name.startswith("decoders.")}


def test_what_is_left_out_does_not_move():
    tiny = model()
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    mvkit.fit(tiny, rows(8), stages=Stage("elbo", 1, ["!decoders.b.*"], optimizer="sgd"))
    for name, value in tiny.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(("decoders.b.", "order")), name


@pytest.mark.parametrize(
    ("globs", "message"),
    [
        (["!encoder.a.*"], "'encoder.a.\\*' matches no parameter; did you mean 'encoders.\\*'"),
        (["!covariates.site.A"], "'!covariates.site.A': the weights of a level cannot be left"),
    ],
)
def test_exclusions_that_match_nothing_are_errors(globs, message):
    tiny = model(covariates={"site": Covariate(levels=("A", "B"))})
    with pytest.raises(SpecError, match=message):
        names_of(tiny, globs)


def test_everything_left_out_is_an_error():
    with pytest.raises(SpecError, match="which has no parameters"):
        mvkit.fit(model(), rows(4), stages=Stage("elbo", 1, ["!*"]))


# groups


def one_step(optimizer, **options):
    """Weights before a step of SGD, its gradients, and weights after it."""
    tiny = model()
    gradients = {}
    before = {name: p.detach().clone() for name, p in tiny.named_parameters()}
    hooks = []
    for name, parameter in tiny.named_parameters():
        hooks.append(parameter.register_hook(lambda g, name=name: gradients.update({name: g})))
    history = mvkit.fit(tiny, rows(8), stages=Stage("elbo", 1, optimizer=optimizer, **options))
    return before, gradients, dict(tiny.named_parameters()), history


GROUPS = {"encoders.a.*": 0.0, "encoders.*": 0.25, "*.c.*": 0.125}


def test_each_parameter_has_the_rate_of_the_first_glob_that_matches():
    optimizer = {"name": "sgd", "lr": 0.5, "groups": GROUPS}
    before, gradients, after, history = one_step(optimizer)
    rates = set()
    for name, value in after.items():
        rate = 0.5
        if name.startswith("encoders."):
            rate = 0.0 if name.startswith("encoders.a.") else 0.25
        elif ".c." in name:
            rate = 0.125
        rates.add(rate)
        near = {"rtol": 1e-12, "atol": 1e-15}
        torch.testing.assert_close(value.detach(), before[name] - rate * gradients[name], **near)
    assert rates == {0.0, 0.125, 0.25, 0.5}
    assert history.rows[0]["lr"] == 0.5
    assert {key: history.rows[0][f"lr/{key}"] for key in GROUPS} == GROUPS


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_group_moves_as_it_would_alone_at_its_rate(name):
    def trained(**options):
        tiny = model()
        optimizer = {"name": name, **options}
        # one modality's networks see nothing of the others' within a step
        stage = Stage("elbo", 1, ["decoders.*"], optimizer=optimizer)
        mvkit.fit(tiny, rows(8), stages=stage)
        return tiny.state_dict()

    mixed = trained(lr=1e-2, groups={"decoders.b.*": 3e-2})
    slow, fast = trained(lr=1e-2), trained(lr=3e-2)
    for key, value in mixed.items():
        assert torch.equal(value, (fast if key.startswith("decoders.b.") else slow)[key]), key


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"encoder.*": 0.1}, "stages.0.optimizer.groups: 'encoder.\\*' matches no parameter that"),
        ({"prior.*": 0.1}, "'prior.\\*' matches no parameter that the stage trains"),
        ({"encoders.*": 0.1, "encoders.a.*": 0.2}, "'encoders.a.\\*' matches only parameters of"),
    ],
)
def test_groups_that_no_parameter_follows_are_errors(groups, message):
    stage = Stage("elbo", 1, ["encoders.*"], optimizer={"name": "adam", "groups": groups})
    with pytest.raises(SpecError, match=message):
        mvkit.fit(model(), rows(4), stages=stage)


@pytest.mark.parametrize("value", [{"encoders.*": -1.0}, {"encoders.*": "fast"}, 0.1])
def test_rates_are_numbers_of_at_least_zero(value):
    with pytest.raises(SpecError, match="groups: got .*; expected a dict from globs over names"):
        Adam(groups=value)


def test_a_schedule_scales_the_rate_of_every_group():
    optimizer = {"name": "sgd", "lr": 0.5, "groups": {"encoders.*": 0.25}}
    stage = Stage(
        "elbo", 3, optimizer=optimizer, lr_schedule={"name": "ExponentialLR", "gamma": 0.5}
    )
    history = mvkit.fit(model(), rows(8), stages=stage)
    assert history["lr"] == [0.5, 0.25, 0.125]
    assert history["lr/encoders.*"] == [0.25, 0.125, 0.0625]


@pytest.mark.parametrize("held", [False, True])
def test_a_schedule_that_would_give_all_groups_one_rate_is_refused(held):
    one_cycle = {"name": "OneCycleLR", "max_lr": 0.1, "total_steps": 9}
    schedule = {"name": "ChainedScheduler", "schedulers": [one_cycle]} if held else one_cycle
    optimizer = {"name": "adam", "groups": {"encoders.*": 0.25}}
    path = "schedulers.0.max_lr" if held else "max_lr"
    with pytest.raises(SpecError, match=f"stages.0.lr_schedule.{path}: .* a list of 2 numbers, "):
        mvkit.fit(
            model(), rows(4), stages=Stage("elbo", 2, optimizer=optimizer, lr_schedule=schedule)
        )
    fine = {"name": "OneCycleLR", "max_lr": [0.1, 0.2], "total_steps": 9}
    stage = Stage("elbo", 2, optimizer=optimizer, lr_schedule=fine)
    history = mvkit.fit(model(), rows(4), stages=stage)
    assert history["lr/encoders.*"] == pytest.approx([2 * rate for rate in history["lr"]])


def test_files_of_models_without_groups_do_not_name_them():
    assert to_dict(Adam()) == {"name": "adam", "lr": None, "betas": [0.9, 0.999]}
    assert to_dict(Adam(groups={"x": 1.0}))["groups"] == {"x": 1.0}


def test_a_run_file_says_the_same():
    text = """
        [[stages]]
        epochs = 9
        trainable = ["!encoders.a.*"]
        optimizer = {name = "sgd", momentum = 0.9, nesterov = true, groups = {"encoders.*" = 1e-4}}
        lr_schedule = {name = "SequentialLR", milestones = [3], schedulers = [
            {name = "LinearLR", start_factor = 0.1, total_iters = 3},
            {name = "CosineAnnealingLR", T_max = 6},
        ]}
    """
    (stage,) = as_stages(tomllib.loads(text)["stages"], model(), 9)
    assert stage.optimizer == SGD(momentum=0.9, nesterov=True, groups={"encoders.*": 1e-4})
    assert stage.lr_schedule == WARM_THEN_COSINE
    again = Stage(**json.loads(json.dumps(to_dict(stage))))
    assert again == stage


# sgd


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_sgd_is_the_papers(momentum, nesterov, decay):
    if nesterov and not momentum:
        with pytest.raises(SpecError, match="nesterov: got True with momentum=0; expected"):
            SGD(nesterov=True)
        return
    start = [1.0, -2.0, 0.5]
    weights = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    spec = as_part(
        "optimizer",
        {"name": "sgd", "momentum": momentum, "nesterov": nesterov, "weight_decay": decay},
    )
    optimizer = optimizer_of(spec, {"w": weights}, 0.01)
    for _ in range(5):
        optimizer.zero_grad()
        weights.pow(4).sum().backward()
        optimizer.step()
    for i, x in enumerate(start):
        velocity = None
        for _ in range(5):
            gradient = 4 * x**3 + decay * x
            velocity = gradient if velocity is None else momentum * velocity + gradient
            x = x - 0.01 * (gradient + momentum * velocity if nesterov else velocity)
        assert weights[i].item() == pytest.approx(x, abs=1e-12)


# schedules that hold others

WARM_THEN_COSINE = {
    "name": "SequentialLR",
    "milestones": (3,),
    "schedulers": (
        {"name": "LinearLR", "start_factor": 0.1, "total_iters": 3},
        {"name": "CosineAnnealingLR", "T_max": 6},
    ),
}
CHAINED = {
    "name": "ChainedScheduler",
    "schedulers": [
        {"name": "ConstantLR", "factor": 0.1, "total_iters": 2},
        {"name": "MultiStepLR", "milestones": [1, 4], "gamma": 0.5},
    ],
}


def test_warm_up_and_cosine_in_one_stage():
    stage = Stage("elbo", 9, optimizer={"name": "sgd", "lr": 0.5}, lr_schedule=WARM_THEN_COSINE)
    rates = mvkit.fit(model(), rows(4), stages=stage)["lr"]
    expected = [0.5 * (0.1 + 0.9 * epoch / 3) for epoch in range(3)]
    expected += [0.25 * (1 + math.cos(math.pi * epoch / 6)) for epoch in range(6)]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_chained_schedules_multiply():
    stage = Stage("elbo", 6, optimizer={"name": "sgd", "lr": 0.5}, lr_schedule=CHAINED)
    rates = mvkit.fit(model(), rows(4), stages=stage)["lr"]
    expected = []
    for epoch in range(6):
        factor = 0.1 if epoch < 2 else 1.0
        expected.append(0.5 * factor * 0.5 ** ((epoch >= 1) + (epoch >= 4)))
    assert rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"name": "SequentialLR"}, "schedulers: got None; expected a list of schedules"),
        (
            {"name": "ChainedScheduler", "schedulers": []},
            "schedulers: got \\(\\); expected a list",
        ),
        (
            {"name": "SequentialLR", "schedulers": ["LinearLR", "CosinLR"], "milestones": [1]},
            "lr_schedule.schedulers.1: got 'CosinLR'; expected a class .* holds no others",
        ),
        (
            {"name": "ChainedScheduler", "schedulers": ["ReduceLROnPlateau"]},
            "schedulers.0: got 'ReduceLROnPlateau'; expected a class .* that needs no loss",
        ),
        (
            {"name": "ChainedScheduler", "schedulers": [CHAINED]},
            "schedulers.0: got .*; expected a class .* holds no others",
        ),
        (
            {"name": "ChainedScheduler", "schedulers": [{"name": "LinearLR", "every": "step"}]},
            "schedulers.0: got 'every' in LinearLR; expected it beside 'schedulers'",
        ),
        (
            {"name": "SequentialLR", "schedulers": ["LinearLR", "LinearLR"]},
            "lr_schedule.milestones: got None for 2 schedules; expected 1 rising whole numbers",
        ),
        (
            {"name": "SequentialLR", "schedulers": ["LinearLR"] * 3, "milestones": [4, 4]},
            "milestones: got \\(4, 4\\) for 3 schedules; expected 2 rising",
        ),
        (
            {"name": "SequentialLR", "schedulers": ["LinearLR"] * 2, "milestones": [0]},
            "milestones: got \\(0,\\) for 2 schedules",
        ),
    ],
)
def test_schedules_that_hold_others_are_checked_when_they_are_made(schedule, message):
    with pytest.raises(SpecError, match=message):
        Stage("elbo", 5, lr_schedule=schedule)


def test_options_of_a_schedule_inside_another_are_refused_in_place():
    odd = {"name": "ChainedScheduler", "schedulers": ["LinearLR", {"name": "StepLR", "step": 2}]}
    with pytest.raises(SpecError, match="stages.0.lr_schedule.schedulers.1: StepLR: .*'step'"):
        mvkit.fit(model(), rows(4), stages=Stage("elbo", 1, lr_schedule=odd))


@pytest.mark.parametrize(("epochs", "warned"), [(3, True), (4, False)])
def test_a_stage_too_short_for_its_milestones_warns(epochs, warned, recwarn):
    mvkit.fit(model(), rows(4), stages=Stage("elbo", epochs, lr_schedule=WARM_THEN_COSINE))
    text = "fit: stage 0: lr_schedule: milestone 3 is not reached in 3 epochs; the schedules after"
    assert any(text in str(warning.message) for warning in recwarn) == warned


def test_one_cycle_in_second_place_must_last():
    cycle = {"name": "OneCycleLR", "max_lr": 0.1, "total_steps": 3}
    schedule = {"name": "SequentialLR", "schedulers": ["LinearLR", cycle], "milestones": [2]}
    mvkit.fit(model(), rows(4), stages=Stage("elbo", 5, lr_schedule=schedule))
    with pytest.raises(SpecError, match="OneCycleLR ends after 3 epochs, and the stage has 4"):
        mvkit.fit(model(), rows(4), stages=Stage("elbo", 6, lr_schedule=schedule))


# resumed


@mvkit.spec
class Backwards:
    """A third party's optimizer with groups of its own, not in the order of the model."""

    def optimizer(self, parameters, lr):
        first, *rest = parameters
        return torch.optim.Adam([{"params": rest[::-1]}, {"params": [first], "lr": 0.1 * lr}], lr)


SGD_GROUPS = {"name": "sgd", "momentum": 0.9, "groups": {"*.b.*": 0.1, "encoders.*": 0.01}}
ADAM_GROUPS = {"name": "adam", "groups": {"decoders.*": 0.1}}
STEPS = {"every": "step"}


@pytest.mark.parametrize(
    "stage",
    [
        Stage("elbo", 4, ["!encoders.a.*"], optimizer=SGD_GROUPS, ema=0.5),
        Stage("elbo", 4, optimizer=ADAM_GROUPS, lr_schedule=WARM_THEN_COSINE),
        Stage("elbo", 4, optimizer=ADAM_GROUPS, lr_schedule={**WARM_THEN_COSINE, **STEPS}),
        Stage("elbo", 4, lr_schedule={**CHAINED, **STEPS}, accumulate=2),
        {"objective": "elbo", "epochs": 4, "optimizer": {"name": "backwards"}},
    ],
    ids=["sgd", "epochs", "steps", "chained", "third party"],
)
def test_runs_resume_with_the_same_bits(stage, tmp_path):
    plugins.declare(component.Component("optimizer", "backwards", f"{__name__}:Backwards"))
    options = {"batch_size": 3, "save_every": 0, "validation": rows(4, seed=1)}
    whole = model()
    history = mvkit.fit(whole, rows(8), stages=[stage], **options)
    options["checkpoint"] = tmp_path
    for step in (2, 4, 5, 8):

        def listen(event, step=step):
            if isinstance(event, CheckpointSaved) and event.step >= step:
                raise Stopped

        with pytest.raises(Stopped):
            mvkit.fit(model(), rows(8), stages=[stage], listeners=[listen], **options)
    again = model()
    assert mvkit.fit(again, rows(8), stages=[stage], **options).rows == history.rows
    assert all(map(torch.equal, again.parameters(), whole.parameters()))


def test_the_state_in_a_checkpoint_is_named_by_parameters(tmp_path):
    stage = Stage("elbo", 1, optimizer=SGD_GROUPS)
    tiny = model()
    seen = {}
    for name, parameter in tiny.named_parameters():
        parameter.register_hook(lambda gradient, name=name: seen.update({name: gradient.clone()}))
    mvkit.fit(tiny, rows(4), stages=stage, checkpoint=tmp_path)
    (path,) = (tmp_path / "checkpoints").iterdir()
    tensors = load_file(path)
    assert len(seen) > 10
    for name, gradient in seen.items():  # one step: the sum is the gradient
        assert torch.equal(tensors[f"optimizer/{name}/momentum_buffer"], gradient), name
