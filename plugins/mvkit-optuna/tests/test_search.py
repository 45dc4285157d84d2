"""Search: paths checked against specs, trials that are runs of fit, resumed studies, pruning."""

import optuna
import pytest
import torch
from mvkit_optuna import Choice, Float, Int, LogFloat, Search
from torch import nn

import mvkit
from mvkit import Modality, RequestError, SpecError

optuna.logging.set_verbosity(optuna.logging.ERROR)
TINY = {"name": "mlp", "hidden": [4]}
BASE = {
    "model": {
        "modalities": {k: Modality((3,), encoder=TINY, decoder=TINY) for k in "ab"},
        "latent_dim": 2,
    },
    "train": {"epochs": 2, "batch_size": 16},
}
PARTS = {
    "model.prior.components": Int(2, 5),
    "model.prior": Choice("standard", "mog"),
}  # in any order


def rows(seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(32, 1, generator=generator)
    return {k: z + 0.1 * torch.randn(32, 3, generator=generator) for k in "ab"}


def run(search, trials, **options):
    return search.run(rows(), validation=rows(1), trials=trials, **options)


# what is searched


def test_a_trial_replaces_fields_of_specs_and_options_of_fit():
    space = {
        **PARTS,
        "model.modalities.a.private_dim": Int(0, 3),
        "train.lr": LogFloat(1e-4, 1e-1),
    }
    parameters = {
        "model.prior": "mog",
        "model.prior.components": 4,
        "model.modalities.a.private_dim": 3,
    }
    configuration = Search(space, BASE).configuration({**parameters, "train.lr": 0.01})
    assert configuration["model"].prior == mvkit.plugins.lookup("prior", "mog")(components=4)
    assert [m.private_dim for m in configuration["model"].modalities.values()] == [3, 0]
    assert (configuration["train"]["lr"], configuration["train"]["batch_size"]) == (0.01, 16)


def test_options_of_a_part_are_asked_for_only_where_the_part_has_them():
    trial = optuna.trial.FixedTrial({"model.prior": "standard"})
    Search(PARTS, BASE).configuration(trial)
    assert trial.params == {"model.prior": "standard"}


def test_a_choice_may_be_a_dict_or_a_spec():
    search = Search({"model.prior": Choice("standard", {"name": "mog", "components": 3})}, BASE)
    label = '{"name": "mog", "components": 3}'
    assert search.configuration({"model.prior": label})["model"].prior.components == 3


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"model.latent": Int(1, 2)},
            r"search.model.latent: ModelSpec has no 'latent'; did you mean 'latent_dim'\?",
        ),
        ({"modle.prior": Choice("mog")}, r"search.modle: no 'modle' here; did you mean 'model'\?"),
        (
            {"model.modalities.c.weight": Float(0, 1)},
            r"search.model.modalities.c: no 'c' here; known: 'a', 'b'",
        ),
        (
            {"train.epoch": Int(1, 2)},
            r"search.train.epoch: no 'epoch' here; did you mean 'epochs'\?",
        ),
        (
            {"model.prior.components": Int(1, 9)},
            "search.model.prior.components: Standard has no 'components'",
        ),
        (
            {**PARTS, "model.prior.component": Int(1, 9)},
            r"MoG has no 'component'; did you mean 'components'\?",
        ),
        (
            {"model.latent_dim": Int(-1, 4)},
            "search.model.latent_dim: got -1; expected an integer of at least 0",
        ),
        (
            {"model.prior": Choice("standard", "mogg")},
            r"unknown prior 'mogg'; did you mean 'mog'\?",
        ),
    ],
)
def test_paths_and_values_are_checked_when_the_search_is_made(space, message):
    with pytest.raises(SpecError, match=message):
        Search(space, BASE)


def test_bases_and_domains_are_checked():
    with pytest.raises(SpecError, match="base: no 'trian' here; did you mean 'train'"):
        Search({}, {"trian": {}})
    with pytest.raises(SpecError, match="train.epoch: no 'epoch' here; did you mean 'epochs'"):
        Search({}, {**BASE, "train": {"epoch": 3}})
    with pytest.raises(SpecError, match=r"base.model.latent_dim: got 1.5"):
        Search({}, {"model": {**BASE["model"], "latent_dim": 1.5}})
    with pytest.raises(SpecError, match=r"Int\(low=5, high=2, log=False\): 5 is above 2"):
        Int(5, 2)
    with pytest.raises(SpecError, match="nothing to choose from"):
        Choice()
    with pytest.raises(SpecError, match="the same value twice"):
        Choice("poe", "poe")


# trials


def test_the_best_trial_can_be_made_again():
    search = Search({**PARTS, "train.lr": LogFloat(1e-3, 1e-1)}, BASE)
    study = run(search, 4)
    assert len(study.trials) == 4
    _, history = search.fit(study.best_params, rows(), validation=rows(1))
    kept = min(history.rows, key=lambda row: row["valid/loss"])
    assert kept["valid/bound"] == study.best_value
    assert study.best_value == max(
        trial.value for trial in study.trials if trial.value is not None
    )


def test_networks_of_the_users_own_begin_anew_in_each_trial():
    def network():
        torch.manual_seed(0)
        return nn.Linear(3, 4)

    own = network()
    model = {
        **BASE["model"],
        "modalities": {**BASE["model"]["modalities"], "a": Modality((3,), encoder=own)},
    }
    search = Search({"train.lr": Choice(0.1)}, {**BASE, "model": model})
    values = [trial.value for trial in run(search, 2).trials]
    assert values[0] == values[1]
    assert torch.equal(own.weight, network().weight)


def test_a_study_goes_on(tmp_path):
    space = {"train.lr": LogFloat(1e-3, 1e-1)}
    run(Search(space, BASE), 2, storage=tmp_path / "study.db")
    study = run(Search(space, BASE), 4, storage=tmp_path / "study.db")
    assert len(study.trials) == len({trial.params["train.lr"] for trial in study.trials}) == 4
    assert len(run(Search(space, BASE), 3, storage=tmp_path / "study.db").trials) == 4


def test_a_study_of_another_search_is_refused(tmp_path):
    run(Search({"train.lr": Choice(0.1)}, BASE), 1, storage=tmp_path / "study.db")
    with pytest.raises(
        RequestError,
        match="search: study 'mvkit' was begun with another space: .*; take another name",
    ):
        run(Search({"train.lr": Choice(0.2)}, BASE), 2, storage=tmp_path / "study.db")


def test_a_hopeless_trial_is_pruned():
    pruner = optuna.pruners.ThresholdPruner(lower=-1e9, n_warmup_steps=1)
    study = run(Search({"train.lr": Choice(1e-3)}, BASE), 1, pruner=pruner)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"]
    pruner = optuna.pruners.ThresholdPruner(lower=1e9)
    study = run(Search({"train.lr": Choice(1e-3)}, BASE), 1, pruner=pruner)
    assert [trial.state.name for trial in study.trials] == ["PRUNED"]
    assert list(study.trials[0].intermediate_values) == [1]


def test_parts_that_do_not_go_together_count_as_pruned():
    space = {"model.family": Choice("normal", "laplace_softmax"), "train.seed": Int(0, 99)}
    study = run(Search(space, BASE), 8)
    for trial in study.trials:
        refused = (
            trial.params["model.family"] != "normal"
        )  # the product of Laplace experts has no closed form
        assert (trial.state.name == "PRUNED") == refused
        assert ("closed product" in trial.user_attrs.get("refused", "")) == refused
    with pytest.raises(
        SpecError, match="search: every trial was refused, the last one since: .*closed product"
    ):
        run(Search({"model.family": Choice("laplace_softmax")}, BASE), 2)


def test_a_run_that_meets_no_number_counts_as_failed():
    study = run(Search({"train.lr": Choice(1e300)}, BASE), 2)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "FAIL"]


def test_an_unknown_metric_is_named():
    with pytest.raises(
        RequestError, match="metric='valid/bond' is not in the history; did you mean 'valid/bound'"
    ):
        run(Search({"train.lr": Choice(0.1)}, BASE, metric="valid/bond"), 1)
