"""Opponents: parameters that are trained against the objective of a stage, by an optimizer of
their own. The loop is written a second time here.
"""

import json
import tomllib

import pytest
import torch
from helpers import modalities, model, rows
from torch import nn

import mvkit
from mvkit import (
    Modality,
    Model,
    NonFiniteError,
    Opponent,
    RequestError,
    SpecError,
    Stage,
    recipes,
)
from mvkit.core.loss import Loss
from mvkit.registry import component, plugins
from mvkit.registry.spec import to_dict
from mvkit.training.events import CheckpointSaved
from mvkit.training.stages import as_stages


class Stopped(Exception):
    pass


@mvkit.spec
class Critic(mvkit.Objective):
    """Scores of codes by a network with dropout: the opponent pulls them up, a stage down."""

    kl_weight: float = 1.0
    sign: float = 1.0
    spoilt: bool = False

    def modules(self, sizes):
        return nn.Sequential(
            nn.Linear(sizes.latent, 3), nn.Tanh(), nn.Dropout(0.2), nn.Linear(3, 1)
        )

    def forward(self, model, batch, experts):
        z = model.joint_posterior(batch, experts).rsample(1, experts.generator)[0]
        score = model.trained(self)(z)[:, 0]
        score = torch.tanh(score)
        if self.spoilt:  # rows whose first code is above 0
            score = score * torch.where(z[:, 0] > 0, torch.nan, 1.0)
        loss = -self.sign * self.kl_weight * score.sum() / max(len(score), 1)
        metrics = {"loss": loss.detach(), "score": score.detach().sum() / max(len(score), 1)}
        return Loss(loss, torch.full_like(score.detach(), torch.nan), metrics)


AGAINST = {"name": "sum", "terms": ["elbo", {"name": "critic", "sign": -1.0}]}


@pytest.fixture(autouse=True)
def critic():
    plugins.declare(component.Component("objective", "critic", f"{__name__}:Critic"))


def quiet(site, shape, dtype, device):
    return torch.full(shape, 0.5 if site.startswith("choice") else 0.0, dtype=dtype, device=device)


# two elbos, of which one trains the encoders and one the rest: no modules are needed for the loop
HALVES = {"trainable": ["!encoders.*"], "optimizer": {"name": "sgd", "lr": 0.05}}


def halves(steps=2, momentum=0.5, **options):
    optimizer = {"name": "sgd", "lr": 0.1, "momentum": momentum}
    opponent = Opponent("jmvae", ["encoders.*"], optimizer=optimizer, steps=steps)
    return Stage("elbo", 3, opponent=opponent, **HALVES, **options)


def by_hand(steps, momentum):
    """Three epochs of one batch, without noise: weights, and losses of both in each epoch."""
    tiny = model("joint")
    named = dict(tiny.named_parameters())
    encoders = {n: p for n, p in named.items() if n.startswith("encoders.")}
    rest = {n: p for n, p in named.items() if n not in encoders}
    velocity = {name: torch.zeros_like(p) for name, p in encoders.items()}
    losses = []
    for _ in range(3):
        own = []
        for _ in range(steps):
            loss = tiny.loss(rows(8), objective="jmvae").loss
            own.append(loss.item())
            gradients = torch.autograd.grad(loss, encoders.values(), allow_unused=True)
            with torch.no_grad():
                for (name, parameter), gradient in zip(encoders.items(), gradients, strict=True):
                    velocity[name] = momentum * velocity[name] + gradient
                    parameter -= 0.1 * velocity[name]
        loss = tiny.loss(rows(8), objective="elbo").loss
        losses.append((loss.item(), sum(own) / steps))
        gradients = torch.autograd.grad(loss, rest.values(), allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(rest.values(), gradients, strict=True):
                if gradient is not None:
                    parameter -= 0.05 * gradient
    return named, losses


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_opponent_steps_first_and_each_moves_its_own(steps, momentum):
    tiny = model("joint")
    with mvkit.testing.noise(quiet):
        expected, losses = by_hand(steps, momentum)
        history = mvkit.fit(tiny, rows(8), stages=halves(steps, momentum), batch_size=8)
    for name, value in tiny.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12, msg=name)
    assert history["loss"] == pytest.approx([loss for loss, _ in losses], rel=1e-9)
    assert history["opponent/loss"] == pytest.approx([own for _, own in losses], rel=1e-9)
    assert history["opponent/lr"] == [0.1] * 3


def test_accumulated_batches_are_one_to_the_opponent_too():
    outcomes = []
    for size, accumulate in ((8, 1), (2, 4), (3, 3)):  # 3 + 3 + 2 rows
        tiny = model("joint")
        with mvkit.testing.noise(quiet):
            stage = halves(accumulate=accumulate)
            history = mvkit.fit(tiny, rows(8), stages=stage, batch_size=size)
        outcomes.append((tiny.state_dict(), history))
    weights, history = outcomes[0]
    for others, other_history in outcomes[1:]:
        assert other_history["opponent/loss"] == pytest.approx(history["opponent/loss"], rel=1e-9)
        for name, value in others.items():
            torch.testing.assert_close(value, weights[name], rtol=1e-9, atol=1e-12, msg=name)


def test_a_stage_that_stands_still_and_an_opponent_that_does():
    for still in ("stage", "opponent"):
        tiny = model(objective=AGAINST)
        before = {name: value.clone() for name, value in tiny.state_dict().items()}
        rate = {"stage": 0.1, "opponent": 0.1, still: 0.0}
        opponent = Opponent("critic", optimizer={"name": "sgd", "lr": rate["opponent"]})
        stage = Stage(
            AGAINST, 1, optimizer={"name": "sgd", "lr": rate["stage"]}, opponent=opponent
        )
        mvkit.fit(tiny, rows(8), stages=stage, batch_size=4)
        for name, value in tiny.state_dict().items():
            owner = "opponent" if name.startswith("objectives.") else "stage"
            assert torch.equal(value, before[name]) == (owner == still or name == "order"), name
        assert all(parameter.requires_grad for parameter in tiny.parameters())


def test_the_steps_of_the_stage_see_the_opponent_frozen_and_without_dropout():
    seen = []
    tiny = model(objective=AGAINST)
    module = tiny.objectives["critic"]

    def look(module, inputs, output):
        seen.append((module[2].training, module[0].weight.requires_grad))

    hook = module.register_forward_hook(look)
    stage = Stage(AGAINST, 1, opponent=Opponent("critic", steps=2))
    mvkit.fit(tiny, rows(4), stages=stage, batch_size=2)
    hook.remove()
    assert seen[:6] == [(True, True), (True, True), (False, False)] * 2


def test_a_critic_learns_and_the_encoders_answer():
    def last_score(**options):
        tiny = model("moe", objective=AGAINST, seed=3)
        stage = Stage(
            AGAINST,
            25,
            opponent=Opponent("critic", optimizer={"name": "adam", "lr": 0.02}),
            **options,
        )
        return mvkit.fit(tiny, rows(16), stages=stage, batch_size=16)["opponent/score"]

    alone = last_score(trainable=["prior.*", "decoders.*"])
    assert alone[-1] > alone[0] + 0.2
    answered = last_score(optimizer={"name": "adam", "lr": 0.02})
    assert answered[-1] < alone[-1] - 0.1


# saved and resumed


def dropped():
    torch.manual_seed(3)
    encoder = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.3), nn.Linear(6, 4))
    every = {**modalities(), "a": Modality((3,), encoder=encoder)}
    return Model(
        every, latent_dim=2, aggregator="mopoe", prior="mog", objective=AGAINST, seed=0
    ).double()


def stack():
    sizes = {"latent_dim": 2, "bottom_dim": 2, "message_dim": 4}
    return recipes.nexus(modalities(), **sizes, seed=0).double()


LEVELS = {"name": "levels", "levels": ["elbo", "critic"]}
EVERYTHING = {
    "objective": AGAINST,
    "epochs": 4,
    "trainable": ["!decoders.a.*"],
    "optimizer": {"name": "adam", "groups": {"encoders.*": 1e-4}},
    "accumulate": 2,
    "ema": 0.5,
    "patience": 2,
    "clip": 1.0,
    "ramps": {"terms.1.kl_weight": "linear"},
    "lr_schedule": {"name": "ExponentialLR", "gamma": 0.7, "every": "step"},
    "opponent": {"objective": "critic", "optimizer": {"name": "sgd", "momentum": 0.9}, "steps": 3},
}
PLAIN = {"objective": AGAINST, "epochs": 3, "opponent": {"objective": "critic", "steps": 2}}
BOTH_LEVELS = {
    "objective": {"name": "levels", "levels": ["elbo", AGAINST]},
    "epochs": 2,
    "opponent": {"objective": LEVELS},
}
CASES = {
    "plain": (dropped, [PLAIN]),
    "everything": (dropped, [{"objective": "elbo", "epochs": 1}, EVERYTHING]),
    "stack": (stack, [BOTH_LEVELS]),
}


@pytest.mark.parametrize("case", CASES)
def test_runs_resume_with_the_same_bits(case, tmp_path):
    make, plan = CASES[case]
    options = {"stages": plan, "batch_size": 3, "save_every": 0, "validation": rows(4, seed=1)}
    whole = make()
    history = mvkit.fit(whole, rows(8), **options)
    options["checkpoint"] = tmp_path
    for step in (1, 4, 5, 6):

        def listen(event, step=step):
            if isinstance(event, CheckpointSaved) and event.step >= step:
                raise Stopped

        with pytest.raises(Stopped):
            mvkit.fit(make(), rows(8), listeners=[listen], **options)
    again = make()
    rows_again = mvkit.fit(again, rows(8), **options).rows
    assert str(rows_again) == str(history.rows)  # which may hold NaN
    for name, value in again.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    loaded = mvkit.load(tmp_path / "model.safetensors") if case == "stack" else again
    assert loaded.state_dict().keys() == whole.state_dict().keys()


def test_the_average_of_weights_leaves_the_opponent_alone():
    tiny = model(objective=AGAINST)
    stage = Stage(
        AGAINST, 2, ema=0.999, opponent=Opponent("critic", optimizer={"name": "sgd", "lr": 0.1})
    )
    twin = model(objective=AGAINST)
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    mvkit.fit(tiny, rows(8), stages=stage)
    mvkit.fit(twin, rows(8), stages=Stage(AGAINST, 2, opponent=stage.opponent))
    for name, value in tiny.state_dict().items():
        if name.startswith("objectives."):
            assert torch.equal(value, twin.state_dict()[name])
        elif name != "order":
            assert (value - before[name]).abs().max() < 1e-4


def test_files_of_stages_without_opponents_do_not_name_them():
    assert "opponent" not in to_dict(Stage())
    text = """
        [[stages]]
        objective = "elbo"
        opponent = {objective = {name = "critic", sign = 1.0}, steps = 2, optimizer = "sgd"}
    """
    (stage,) = as_stages(tomllib.loads(text)["stages"], model(), 9)
    assert stage.opponent == Opponent({"name": "critic"}, optimizer="sgd", steps=2)
    assert Stage(**json.loads(json.dumps(to_dict(stage)))) == stage


# what is not finite


def test_a_step_that_is_not_finite_ends_the_run_with_its_rows(tmp_path):
    tiny = model("moe")
    stage = Stage("elbo", 2, opponent=Opponent({"name": "critic", "spoilt": True}))
    with mvkit.testing.noise(quiet), pytest.raises(NonFiniteError) as error:
        mvkit.fit(tiny, rows(8), stages=stage, batch_size=4, checkpoint=tmp_path)
    tiny = model("moe")
    z = tiny.encode(rows(8))
    assert "fit: stage 0, epoch 1, batch 1: not finite: of the opponent: loss, score" in str(
        error.value
    )
    named = str(error.value).partition("(rows ")[2].partition(" of the data")[0]
    spoilt = {int(row) for row in named.split(",")}
    assert spoilt
    assert spoilt <= {i for i in range(8) if z[i, 0] > 0}
    assert (tmp_path / "nonfinite.safetensors").exists()


def test_steps_that_are_not_finite_are_skipped_by_the_opponent_alone():
    tiny = model("poe")
    stage = Stage("elbo", 1, opponent=Opponent({"name": "critic", "spoilt": True}, steps=2))
    with mvkit.testing.noise(quiet):
        fine = [bool((tiny.encode(rows(16).take([i]))[:, 0] <= 0).all()) for i in range(16)]
        tiny.adopt("critic", seed=0)
        history = mvkit.fit(
            tiny, rows(16), stages=stage, batch_size=1, lr=1e-9, on_nonfinite="skip"
        )
    assert 0 < sum(fine) < 16
    assert history["opponent/skipped"] == [2 * (16 - sum(fine))]
    assert "skipped" not in history.rows[0]
    assert torch.isfinite(torch.tensor(history["opponent/loss"])).all()


# what is refused


@pytest.mark.parametrize(
    ("opponent", "message"),
    [
        ({"objective": "elbo"}, "opponent.trainable: got None, and the opponent's objective has no"),
        ({"objective": "elbo", "trainable": ["encoder.*"]}, "opponent.trainable: 'encoder.\\*' matches"),
        ({"objective": "elbo", "trainable": ["prior.*"]}, "opponent.trainable: .* has no parameters"),
        (
            {"objective": "elbo", "trainable": ["covariates.site.A"]},
            "opponent.trainable: 'covariates.site.A' names a level, which only a stage trains",
        ),
        (
            {"objective": "critic", "optimizer": {"name": "adam", "groups": {"encoders.*": 0.1}}},
            "stages.0.opponent.optimizer.groups: 'encoders.\\*' matches no parameter",
        ),
    ],
)  # fmt: skip
def test_opponents_that_train_nothing_are_refused(opponent, message):
    with pytest.raises(SpecError, match=message):
        mvkit.fit(model(), rows(4), stages=Stage("elbo", 1, opponent=opponent))


@pytest.mark.parametrize(
    ("opponent", "message"),
    [
        ("critic", "opponent: got 'critic'; expected an Opponent, or a dict of its options"),
        ({"objective": "critik"}, "opponent.objective: .*did you mean 'critic'"),
        ({"objective": "critic", "steps": 0}, "opponent.steps: got 0; expected an integer of at"),
        ({"objective": "critic", "step": 1}, "opponent.step: unknown option of Opponent"),
        ({"objective": "critic", "trainable": "x"}, "opponent.trainable: got 'x'; expected None or a"),
    ],
)  # fmt: skip
def test_odd_options_are_refused_in_place(opponent, message):
    with pytest.raises(SpecError, match=message):
        Stage("elbo", 1, opponent=opponent)


def test_a_stage_must_keep_some_parameters():
    stage = Stage("elbo", 1, ["encoders.*"], opponent=Opponent("elbo", ["*"]))
    with pytest.raises(SpecError, match="stage 0 trains \\('encoders.\\*',\\), which has no"):
        mvkit.fit(model(), rows(4), stages=stage)


def test_an_opponent_whose_loss_has_no_gradient_is_refused():
    opponent = Opponent("align", ["decoders.*"])
    with pytest.raises(
        RequestError, match="stage 0, epoch 1, opponent: the loss of the objective 'al"
    ):
        mvkit.fit(model(), rows(4), stages=Stage("elbo", 1, ["encoders.*"], opponent=opponent))


def test_a_model_takes_opponents_of_its_own_kind():
    stage = Stage(None, 1, opponent=Opponent("critic"))
    with pytest.raises(SpecError, match="stages.0.opponent.*a stack takes objective 'levels'"):
        mvkit.fit(stack(), rows(4), stages=stage)
