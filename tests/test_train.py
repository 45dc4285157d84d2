"""fit: stages, ramps, validation, best weights, and the same numbers for the same seed."""

import pytest
import torch
from helpers import model, rows
from torch import nn

import mvkit
from mvkit import Batch, Modality, Model, Stage
from mvkit.data.batch_order import order
from mvkit.data.pipeline import Pipeline
from mvkit.registry.spec import as_part
from mvkit.training.annealing import Cosine, Cyclical, Linear
from mvkit.training.history import Totals
from mvkit.training.loop import StageRun
from mvkit.training.stages import as_stages, trainable


def weights(tiny):
    return {name: value.clone() for name, value in tiny.state_dict().items()}


def moved(before, after):
    """Names of the weights that differ."""
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_same_seed_gives_the_same_weights():
    def run(seed):
        tiny = model("mopoe", "mog", "dreg")
        torch.rand(7)  # the global state does not matter
        history = mvkit.fit(tiny, rows(20), epochs=2, batch_size=8, seed=seed)
        return history.rows, weights(tiny)

    history, trained = run(3)
    history_again, trained_again = run(3)
    assert history == history_again
    assert not moved(trained, trained_again)
    assert moved(trained, run(4)[1])


def test_training_makes_the_bound_better():
    data = mvkit.load_dataset("linear_gaussian", rows=500, missing=0.3)
    nets = {"encoder": "linear", "decoder": "linear"}
    linear = {n: Modality(m.shape, m.likelihood, **nets) for n, m in data.modalities.items()}
    tiny = Model(linear, latent_dim=3, seed=0).double()
    options = {"epochs": 60, "lr": 1e-2, "batch_size": 50}
    history = mvkit.fit(tiny, data.train, validation=data.valid, **options)
    assert history["valid/bound"][-1] > history["valid/bound"][0] + 5
    batch = data.test.batch
    complete = Batch(batch.data)
    truth = data.truth.log_prob(dict(complete.data)).mean()
    bound = tiny.loss(complete, objective={"name": "iwae", "samples": 50}).bound.mean()
    assert (
        truth - 1.5 < bound < truth + 0.5
    )  # near the entropy of the data: nothing can do better in the mean


def test_history():
    history = mvkit.fit(model(), rows(), validation=rows(), epochs=2)
    assert len(history) == 2
    assert {"stage", "epoch", "loss", "bound", "kl", "log_px/a", "valid/loss"} <= set(
        history.rows[0]
    )
    assert len(history["loss"]) == 2
    assert "History(2 epochs)" in repr(history)


def test_the_best_weights_of_a_stage_are_kept(monkeypatch):
    tiny = model()
    seen = []

    def validate(stage, valid):
        seen.append(weights(tiny))
        return original(stage, valid)

    original = StageRun._validate
    monkeypatch.setattr(StageRun, "_validate", validate)
    monkeypatch.setattr(Totals, "means", lambda self, ranks: {"loss": next(losses)})
    losses = iter([0.0, 3.0, 0.0, 1.0, 0.0, 2.0])  # training, validation
    mvkit.fit(tiny, rows(), validation=rows(), epochs=3)
    assert not moved(weights(tiny), seen[1])
    assert moved(seen[1], seen[2])


def test_best_is_judged_with_ramps_at_their_end():
    tiny = model()
    stage = Stage("elbo", 3, ramps={"kl_weight": Linear(0.0, 1.0, 3)})
    history = mvkit.fit(tiny, rows(), validation=rows(), stages=[stage])
    rises = [row["valid/loss"] - (-row["valid/bound"]) for row in history.rows]
    assert rises == pytest.approx([0, 0, 0], abs=1e-9)  # β = 1 on validation in every epoch
    gaps = [row["loss"] + row["bound"] for row in history.rows]
    assert gaps[0] < -1e-3  # while training used less
    assert gaps[2] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("ramp", "values"),
    [
        (Linear(0.0, 1.0, 4), [0.25, 0.5, 0.75, 1, 1]),
        (Linear(2.0, 1.0, 2), [1.5, 1, 1, 1, 1]),
        (Cosine(0.0, 1.0, 2), [0.5, 1, 1, 1, 1]),
        (Cyclical(0.0, 1.0, 1, 1.0), [0.2, 0.4, 0.6, 0.8, 1.0]),
    ],
)
def test_ramps(ramp, values):
    assert [ramp.at(epoch, 5) for epoch in range(1, 6)] == pytest.approx(values)
    assert ramp.last() == 1
    assert Cyclical(cycles=2, rise=0.5).at(6, 10) == pytest.approx(0.4)


def test_ramps_reach_fields_of_terms():
    stage = Stage(ramps={"terms.0.kl_weight": Linear(0.0, 1.0, 2), "kl_weight": "cosine"})
    terms = [{"name": "elbo", "kl_weight": 3.0}, "align"]
    total = as_part("objective", {"name": "sum", "terms": terms})
    assert stage.at(total, 1).terms[0].kl_weight == pytest.approx(1.5)
    assert stage.at(total, None).terms[0].kl_weight == pytest.approx(3.0)
    assert stage.at(total, 1).terms[1] == total.terms[1]


def test_trainable_freezes_the_rest_and_restores_everything():
    encoder = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
    decoder = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
    modality = Modality((3,), encoder=encoder, decoder=decoder)
    tiny = Model({"a": modality}, latent_dim=2).train()
    tiny.encoders["a"][0].bias.requires_grad_(False)
    with trainable(tiny, ["decoders.*"]) as parameters:
        assert {id(p) for p in parameters} == {id(p) for p in tiny.decoders.parameters()}
        assert not tiny.encoders["a"].training
        assert tiny.decoders["a"].network.training
    assert tiny.encoders["a"].training
    assert not tiny.encoders["a"][0].bias.requires_grad
    assert tiny.encoders["a"][0].weight.requires_grad


def test_two_stages_of_the_joint_encoder():
    tiny = model(
        "joint", objective="telbo", schedule={"name": "joint_then_unimodal", "share": 0.5}
    )
    before = weights(tiny)
    stages = as_stages(None, tiny, 4)
    assert [s.epochs for s in stages] == [2, 2]
    mvkit.fit(tiny, rows(16, missing=False), stages=stages[:1])
    groups = {name.split(".")[0] for name in moved(before, weights(tiny))}
    assert "encoders" not in groups
    assert "aggregator" in groups
    history = mvkit.fit(tiny, rows(16), epochs=4)
    assert history["stage"] == [0, 0, 1, 1]
    last = weights(tiny)
    mvkit.fit(tiny, rows(16), stages=stages[1:])
    groups = {name.split(".")[0] for name in moved(last, weights(tiny))}
    assert groups == {"encoders"}


def test_frozen_parts_are_not_evaluated(monkeypatch):
    tiny = model("joint", objective="telbo", schedule="joint_then_unimodal")
    first, second = as_stages(None, tiny, 2)
    # what is said of a run at its end looks at all parts
    monkeypatch.setattr("mvkit.training.preparing.judge", lambda *_: None)
    monkeypatch.setattr(type(tiny.aggregator), "_encode", None)
    mvkit.fit(tiny, rows(), stages=[second])
    monkeypatch.undo()
    monkeypatch.setattr("mvkit.training.preparing.judge", lambda *_: None)
    for encoder in tiny.encoders.values():
        encoder.register_forward_hook(lambda *_: pytest.fail("a frozen encoder was evaluated"))
    mvkit.fit(tiny, rows(missing=False), stages=[first])


def test_any_loader_of_batches():
    tiny = model()
    batches = [rows(4), rows(3)]
    history = mvkit.fit(tiny, batches, epochs=2)
    assert len(history) == 2
    assert not tiny.training
    pipeline = Pipeline(rows(10), batch_size=4)
    assert [len(b) for b in pipeline] == [4, 4, 2]
    mvkit.fit(tiny, pipeline, epochs=1)
    mvkit.fit(tiny, {"a": torch.randn(5, 3)}, epochs=1, batch_size=64)
    from torch.utils.data import DataLoader

    loader = DataLoader(range(3), batch_size=1, collate_fn=lambda _: rows(2))
    mvkit.fit(tiny, loader, epochs=1, progress=False)


def test_a_row_that_only_a_skipping_objective_sees():
    tiny = model({"name": "joint", "incomplete": "skip"})
    mask = torch.tensor([[True, False, False]] * 4)
    mvkit.fit(tiny, Batch(rows(4).data, mask), epochs=1)


def test_the_order_is_a_function_of_seed_and_epoch():
    epoch_2 = order(100, shuffle=True, seed=1, epoch=2)
    torch.rand(3)
    assert torch.equal(epoch_2, order(100, shuffle=True, seed=1, epoch=2))
    assert not torch.equal(epoch_2, order(100, shuffle=True, seed=1, epoch=3))
    assert sorted(epoch_2.tolist()) == list(range(100))
    assert order(3, shuffle=False, seed=1, epoch=3).tolist() == [0, 1, 2]


def test_progress_bar(capsys):
    mvkit.fit(model(), rows(), epochs=2, progress=True)
    assert "2/2" in capsys.readouterr().err
    mvkit.fit(model(), rows(), epochs=2)
    assert capsys.readouterr().err == ""  # no terminal, no bar
