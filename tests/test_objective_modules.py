"""Objectives with trained parameters: made with a model or for a stage, trained, saved, resumed."""

import attrs
import pytest
import torch
from helpers import loss_and_gradients, model, rows
from test_resume import assert_same, assert_same_weights, interrupted, uninterrupted
from torch import nn

import mvkit
from mvkit import CheckpointError, Covariate, RequestError, SpecError, Stage, field, recipes, spec
from mvkit.apps.cli import main
from mvkit.models.checkpoint import rebuilt
from mvkit.parts.objectives.composite import Sum, auxiliary_loss
from mvkit.registry import component, plugins
from mvkit.registry.spec import to_dict
from mvkit.training.stages import as_stages


@spec
class Critic(mvkit.Objective):
    """The square of a trained linear score of the posterior mean, as many scores as `width`."""

    width: int = 1
    kl_weight: float = 1.0
    key: str = field(default="critic")

    def modules(self, sizes):
        return nn.Linear(sizes.latent, self.width)

    def forward(self, model, batch, experts):
        mean = model.joint_posterior(batch, experts).mean
        scores = model.trained(self)(mean).square().sum(-1)
        everything = torch.ones_like(batch.observed[:, 0])
        return auxiliary_loss("score", scores, -self.kl_weight, everything, batch.row_weight)


@spec
class ByLevel(Critic):
    """A critic with a score for each level of the covariate `site`."""

    def modules(self, sizes):
        return nn.Linear(sizes.latent, sizes.levels["site"])


@spec
class ByScore(Sum):
    """A sum that is not registered."""


SCORED = {"name": "sum", "terms": ["elbo", "critic"]}
HEAVY = {"name": "sum", "terms": ["elbo", {"name": "critic", "key": "second", "kl_weight": 3.0}]}
NAMES = ["objectives.critic.weight", "objectives.critic.bias"]


@pytest.fixture(autouse=True)
def critics():
    for name in ("Critic", "ByLevel"):
        target = f"test_objective_modules:{name}"
        plugins.declare(component.Component("objective", name.lower(), target))


def named(tiny):
    return [name for name in tiny.state_dict() if "objectives." in name]


def test_modules_are_drawn_after_everything_else():
    plain, scored = model(), model(objective=SCORED)
    assert not named(plain)
    assert named(scored) == NAMES
    for name, value in plain.state_dict().items():
        assert torch.equal(value, scored.state_dict()[name])
    assert_same_weights(scored.state_dict(), model(objective=SCORED).state_dict())
    assert "objectives" not in plain.header()
    assert "objectives" not in scored.header()
    assert scored.like.dtype == scored.objectives["critic"].weight.dtype == torch.float64


def test_they_get_gradients_and_ramped_copies_find_them():
    tiny = model(objective=SCORED)
    loss, gradients = loss_and_gradients(tiny, rows())
    mean = tiny.encode(rows())
    weight, bias = (tiny.get_parameter(name) for name in NAMES)
    score = mean @ weight[0] + bias
    torch.testing.assert_close(loss.metrics["1/score"], score.square().mean().detach())
    torch.testing.assert_close(gradients[NAMES[1]], 2 * score.mean().detach()[None])
    ramped = {**SCORED, "kl_weight": 0.5}
    half = loss_and_gradients(tiny, rows(), objective=ramped)[1][NAMES[1]]
    torch.testing.assert_close(half, gradients[NAMES[1]] / 2)


def test_a_file_names_the_packages_of_stages_objectives(tmp_path):
    tiny, two = model(), stack()
    tiny.adopt(SCORED, seed=0)
    two.adopt({"name": "levels", "levels": ["elbo", SCORED]}, seed=0)
    for which in (tiny, two):
        mvkit.save(which, tmp_path / "model.safetensors")
        assert list(mvkit.describe(tmp_path / "model.safetensors")["packages"]) == ["local"]


def test_a_file_keeps_them(tmp_path):
    tiny = model(objective=SCORED)
    mvkit.fit(tiny, rows(9), epochs=1, stages=[Stage(HEAVY, 1), Stage(None, 1)])
    assert len(named(tiny)) == 4
    assert len(tiny.header()["objectives"]) == 1
    mvkit.save(tiny, tmp_path / "model.safetensors")
    again = mvkit.load(tmp_path / "model.safetensors")
    assert again.header() == tiny.header()
    assert_same_weights(tiny.state_dict(), again.state_dict())
    assert "trained    objectives.second: 3" in repr(again)


@pytest.mark.parametrize("saves", [2, 5, 8])
def test_a_run_resumes_with_the_same_bits(saves, tmp_path):
    stages = [Stage(HEAVY, 2, ramps={"kl_weight": "linear"}), Stage("elbo", 1), Stage(None, 1)]
    options = {"data": rows(7), "validation": rows(4, seed=1), "stages": stages}

    def make():
        return model(objective=SCORED)

    whole = uninterrupted(make, tmp_path / "whole", **options)
    again = interrupted(make, saves, tmp_path / "again", **options)
    assert_same(whole, again)
    begun = mvkit.describe(tmp_path / "whole" / "model.safetensors")
    assert [o["terms"][1]["key"] for o in begun["model"]["objectives"]] == ["second"]


def test_weights_that_fit_adds_are_not_taken_for_weights_of_the_users(tmp_path):
    tiny = model().float()
    mvkit.fit(tiny, rows(9), stages=[Stage(SCORED, 1)], checkpoint=tmp_path)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    assert "initial_weights" not in mvkit.describe(newest)["training"]["begun_with"]


def test_fits_seed_decides_what_it_adds():
    def added(seed):
        tiny = model()
        mvkit.fit(
            tiny,
            rows(9),
            stages=[Stage(SCORED, 1, optimizer={"name": "adam", "lr": 0.0})],
            seed=seed,
        )
        return tiny.objectives["critic"].weight

    assert torch.equal(added(1), added(1))
    assert not torch.equal(added(1), added(2))


def test_one_key_is_one_module():
    shared = {"name": "sum", "terms": ["critic", {"name": "critic", "kl_weight": 2.0}]}
    assert named(model(objective=shared)) == NAMES
    other = {"name": "sum", "terms": ["critic", {"name": "critic", "width": 2}]}
    with pytest.raises(
        SpecError, match=r"model.objective: two objectives of the key 'critic'.*another key"
    ):
        model(objective=other)
    tiny = model(objective=SCORED)
    with pytest.raises(SpecError, match=r"stages.0.*two objectives of the key 'critic'"):
        mvkit.fit(tiny, rows(9), stages=[Stage({"name": "critic", "width": 2}, 1)])
    for key in ("a.b", "items", ""):
        with pytest.raises(SpecError, match="cannot be called"):
            model(objective={"name": "sum", "terms": ["elbo", {"name": "critic", "key": key}]})


def test_default_keys_are_registered_names():
    assert Sum(terms=("elbo",)).key == "sum"
    assert ByScore(terms=("elbo",)).key == "ByScore"
    assert attrs.evolve(Critic(), kl_weight=2.0).key == "critic"


def test_a_model_without_them_says_how_to_get_them():
    tiny = model()
    with pytest.raises(RequestError, match=r"no modules of the objective 'critic'.*model.adopt"):
        tiny.loss(rows(), objective=SCORED)
    tiny.adopt(SCORED, seed=0)
    assert torch.isfinite(tiny.loss(rows(), objective=SCORED).loss)


def test_stages_can_train_them_alone_or_freeze_them():
    tiny = model(objective=SCORED)
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    mvkit.fit(tiny, rows(9), stages=[Stage(None, 1, ["objectives.*"])])
    moved = [
        name for name, value in tiny.state_dict().items() if not torch.equal(value, before[name])
    ]
    assert moved == NAMES
    with pytest.raises(SpecError, match="has no parameters"):
        mvkit.fit(model(), rows(9), stages=[Stage("elbo", 1, ["objectives.*"])])


def test_joint_then_unimodal_trains_them_too():
    schedule = {"name": "joint_then_unimodal", "joint": SCORED}
    plan = as_stages(schedule, model("joint"), 2)
    assert "objectives.*" in plan[0].trainable
    assert "objectives.*" not in plan[1].trainable
    assert "objectives.*" not in as_stages("joint_then_unimodal", model("joint"), 2)[0].trainable
    tiny = model("joint")
    mvkit.fit(tiny, rows(9), stages=schedule, epochs=2)
    assert named(tiny) == NAMES


def test_a_swapped_module_is_not_saved(tmp_path):
    tiny = model(objective=SCORED)
    tiny.objectives["critic"] = nn.Linear(2, 5).double()
    with pytest.raises(CheckpointError, match=r"objectives.critic.* was changed after the model"):
        mvkit.save(tiny, tmp_path / "model.safetensors")


def stack(objective=None, bottom="elbo"):
    tiny = recipes.nexus({"a": (3,), "b": (2, 2), "c": (4,)}, seed=0, latent_dim=2)
    levels = [
        mvkit.Model(tiny.bottom.modalities, latent_dim=0, objective=bottom, seed=0),
        tiny.top,
    ]
    return mvkit.Stack(levels, objective=objective).double()


def test_levels_of_a_stack_have_their_own(tmp_path):
    both = {"name": "levels", "levels": ["elbo", SCORED]}
    options = {"data": rows(7), "stages": [Stage(both, 2), Stage(None, 1)]}
    whole = uninterrupted(stack, tmp_path / "whole", **options)
    assert [name for name in whole[0] if "objectives" in name] == [
        f"levels.1.{name}" for name in NAMES
    ]
    assert_same(whole, interrupted(stack, 4, tmp_path / "again", **options))
    again = mvkit.load(tmp_path / "whole" / "model.safetensors")
    assert_same_weights(again.state_dict(), whole[0])
    built = stack(both)
    assert built.seeded_weights is not None
    assert_same_weights(built.state_dict(), stack(both).state_dict())
    loss, gradients = loss_and_gradients(built, rows())
    assert gradients[f"levels.1.{NAMES[0]}"].any()
    mvkit.save(built, tmp_path / "model.safetensors")
    assert mvkit.load(tmp_path / "model.safetensors").header() == built.header()


def test_a_stack_is_rebuilt_with_the_weights_of_its_seed():
    tiny = stack({"name": "levels", "levels": ["elbo", SCORED]})
    again = rebuilt(tiny.header(), seed=0).double()
    key = f"levels.1.{NAMES[0]}"
    assert torch.equal(again.state_dict()[key], tiny.state_dict()[key])


TOML = """
[data]
name = "linear_gaussian"
rows = 60
[model]
latent_dim = 2
seed = 3
[train]
epochs = 2
batch_size = 20
[[train.stages]]
epochs = 1
[[train.stages]]
epochs = 1
[train.stages.objective]
name = "sum"
terms = ["elbo", {name = "align", estimate = "contrast", temperature = 0.2}, "mmd"]
"""


def test_a_run_file_names_them(tmp_path, capsys):
    (tmp_path / "a.toml").write_text(TOML)
    one, other = tmp_path / "one", tmp_path / "other"
    assert main(["train", str(tmp_path / "a.toml"), "--folder", str(one)]) == 0
    assert main(["train", str(one / "run.toml"), "--folder", str(other)]) == 0
    assert (one / "history.jsonl").read_text() == (other / "history.jsonl").read_text()
    left, right = (mvkit.load(folder / "model.safetensors") for folder in (one, other))
    assert_same_weights(left.state_dict(), right.state_dict())
    assert float(left.objectives["align"].log_scale.detach().exp()) == pytest.approx(5.0, rel=0.05)
    assert main(["show", str(one / "model.safetensors")]) == 0
    assert '"estimate": "contrast"' in capsys.readouterr().out
    assert main(["list", "objective"]) == 0
    assert "mmd" in capsys.readouterr().out


def test_modules_by_level_keep_a_covariate_from_growing():
    options = {"covariates": {"site": Covariate(("A", "B"))}}
    tiny = model(objective={"name": "sum", "terms": ["elbo", "bylevel"]}, **options)
    with pytest.raises(
        RequestError, match="add_level: the modules of an objective.*of each level"
    ):
        tiny.add_level("site", "C")
    scored = model(objective=SCORED, **options)
    scored.add_level("site", "C")
    assert named(scored) == NAMES


def test_what_modules_returns_is_looked_at(monkeypatch):
    monkeypatch.setattr(Critic, "modules", lambda self, sizes: 3)
    with pytest.raises(SpecError, match=r"Critic.modules returned a int; expected an nn.Module"):
        model(objective=SCORED)


def test_specs_of_stages_are_plain_data():
    stage = Stage(HEAVY, 1)
    data = to_dict(stage)
    assert Stage(**data) == stage
