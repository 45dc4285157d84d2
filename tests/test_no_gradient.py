"""Objectives that train nothing are refused by `fit`, instead of training nothing in silence."""

import attrs
import pytest
import torch

import mvkit
from mvkit import Loss, RequestError, Stage
from mvkit.registry.component import Component

ROWS = {"a": torch.randn(12, 3), "b": torch.randn(12, 2)}
ROWS["b"][::3] = torch.nan


@mvkit.spec
class Constant(mvkit.Objective):
    """A loss that no weight moves."""

    counted: bool = True
    kl_weight: float = 1.0

    def forward(self, model, batch, experts):
        bound = torch.full((len(batch),), 2.0)
        counts = {"loss": torch.tensor(len(batch))} if self.counted else {}
        return Loss(bound.mean(), bound, {"loss": bound.mean()}, counts)


@mvkit.spec
class Some(Constant):
    """A loss with a gradient where a row observes the second modality."""

    def forward(self, model, batch, experts):
        loss = super().forward(model, batch, experts)
        moved = next(model.parameters()).sum() if batch.observed[:, 1].any() else 0.0
        return attrs.evolve(loss, loss=loss.loss + moved)


@mvkit.spec
class Bare(mvkit.ELBO):
    """The ELBO, which does not report its loss."""

    def forward(self, model, batch, experts):
        loss = super().forward(model, batch, experts)
        metrics = {key: value for key, value in loss.metrics.items() if key != "loss"}
        return attrs.evolve(loss, metrics=metrics, counts={})


@pytest.fixture(autouse=True)
def declared():
    for name, target in {"constant": "Constant", "some": "Some", "bare": "Bare"}.items():
        mvkit.plugins.declare(Component("objective", name, f"test_no_gradient:{target}"))
    yield
    mvkit.plugins.registry.cache_clear()


def model(objective="elbo", **options):
    return mvkit.Model(
        {"a": (3,), "b": (2,)}, latent_dim=2, seed=0, objective=objective, **options
    )


REFUSED = {"alone": "constant", "without counts": {"name": "constant", "counted": False}}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_objective_without_a_gradient_is_refused_by_its_name(kind):
    text = "fit: stage 0, epoch 1: the loss of the objective 'local/constant' depends on none of"
    with pytest.raises(RequestError, match=text):
        mvkit.fit(model(REFUSED[kind]), ROWS, epochs=1)


def test_a_stage_with_such_an_objective_is_refused():
    stages = [Stage(epochs=1), Stage(epochs=1, objective="constant")]
    with pytest.raises(RequestError, match="objective 'local/constant' depends on none"):
        mvkit.fit(model(), ROWS, stages=stages)


def test_a_sum_of_such_objectives_is_refused_and_one_with_another_trains():
    both = {"name": "sum", "terms": ["constant", "constant"]}
    with pytest.raises(RequestError, match="objective 'sum' depends on none"):
        mvkit.fit(model(both), ROWS, epochs=1)
    histories = []
    for objective in ("elbo", {"name": "sum", "terms": ["elbo", "constant"]}):
        histories.append(mvkit.fit(model(objective), ROWS, epochs=2)["loss"])
    assert torch.allclose(torch.tensor(histories[0]) + 2, torch.tensor(histories[1]), atol=1e-4)


def test_one_batch_with_a_gradient_suffices():
    rare = torch.full((12, 2), torch.nan)
    rare[11] = 1.0
    vae = model("some")
    before = next(vae.parameters()).clone()
    mvkit.fit(vae, {**ROWS, "b": rare}, epochs=1, batch_size=2)
    assert not torch.equal(before, next(vae.parameters()))
    with pytest.raises(RequestError, match="objective 'local/some' depends on none of the param"):
        mvkit.fit(model("some"), {**ROWS, "b": torch.full((12, 2), torch.nan)}, epochs=1)


def test_batches_in_which_no_row_counts_are_passed_over():
    skipping = mvkit.recipes.telbo({"a": (3,), "b": (2,)}, latent_dim=2, seed=0, stages=1)
    batches = [{"a": ROWS["a"][::3], "b": ROWS["b"][::3]}, ROWS]
    history = mvkit.fit(skipping, batches, epochs=1)
    assert torch.isfinite(torch.tensor(history["loss"])).all()


def test_an_objective_that_leaves_the_loss_out_of_its_metrics_is_reported_all_the_same():
    histories = []
    for objective in ("elbo", "bare"):
        vae = model()
        stages = [Stage(epochs=1, objective=objective)]
        histories.append(mvkit.fit(vae, {"a": ROWS["a"]}, stages=stages)["loss"])
    assert histories[0] == histories[1]
