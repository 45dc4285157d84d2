"""Weights of rows: what counts how much in training, and nowhere else."""

import math

import pytest
import torch

import mvkit
from mvkit import Batch, DataError, Model, RequestError
from mvkit.testing import tiny_models

OBJECTIVES = (
    "elbo",
    "iwae",
    "dreg",
    "telbo",
    "mvtcae",
    "crmvae",
    {"name": "elbo", "condition": "unimodal", "reduce": "sum"},
    {"name": "sum", "terms": ["elbo", "align"]},
)


def weighted(rows, weights):
    return Batch(rows.data, rows.mask, rows.elements, row_weight=weights)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_loss_is_the_weighted_sum_of_the_rows_losses(objective):
    model = tiny_models.model("poe", "standard", objective).eval()
    rows = tiny_models.rows(6)
    weights = [0.5, 2.0, 0.0, 1.0, 3.0, 0.25]
    whole, gradients = tiny_models.loss_and_gradients(model, weighted(rows, weights))
    total, sums = 0.0, {}
    for i, weight in enumerate(weights):
        part, gradient = tiny_models.loss_and_gradients(model, rows.take([i]), ids=[i])
        total += weight * float(part.loss.detach()) / 6
        for name, value in gradient.items():
            if value is not None:
                sums[name] = sums.get(name, 0.0) + weight * value / 6
    assert float(whole.loss.detach()) == pytest.approx(total, rel=1e-9)
    for name, value in sums.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-8, atol=1e-10)


def test_a_stack_weighs_its_rows_at_both_levels():
    model = mvkit.recipes.nexus({"a": (3,), "b": (2,)}, latent_dim=2, scale=0.5, seed=0)
    model = model.double().eval()
    rows = Batch({"a": torch.randn(4, 3).double(), "b": torch.randn(4, 2).double()})
    twice = [2.0, 0.0, 1.0, 1.0]
    whole, _ = tiny_models.loss_and_gradients(model, weighted(rows, twice))
    parts = []
    for i in range(4):
        parts.append(tiny_models.loss_and_gradients(model, rows.take([i]), ids=[i])[0].loss)
    expected = sum(w * float(p.detach()) for w, p in zip(twice, parts, strict=True)) / 4
    assert float(whole.loss.detach()) == pytest.approx(expected, rel=1e-9)


def test_trained_scales_start_at_the_weighted_spread():
    def started(x, weight=None):
        modality = mvkit.Modality((3,), {"name": "normal", "scale": "trained"}, encoder="linear")
        model = Model({"a": modality}, latent_dim=1, seed=0).double()
        mvkit.fit(model, Batch({"a": x}, row_weight=weight), epochs=1, lr=0.0, progress=False)
        return model.decoders["a"].likelihood.scale()

    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double()
    x[:10] *= 9
    weights = torch.ones(40)
    weights[:10] = 3.0
    twice = started(torch.cat([x, x[:10], x[:10]]))
    torch.testing.assert_close(started(x, weights), twice, rtol=0.05, atol=0)
    assert started(x) < 0.9 * twice


def test_optimal_scales_are_those_of_rows_that_stand_as_often_as_they_weigh():
    def scale(ids, weight=None):
        modality = mvkit.Modality((3,), {"name": "normal", "scale": "optimal"})
        model = Model({"a": modality}, latent_dim=1, seed=0).double().train()
        rows = Batch({"a": x[ids]}, row_weight=weight)
        tiny_models.loss_and_gradients(model, rows, ids=ids)
        return model.decoders["a"].likelihood.scale.running

    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
    x[3] = 1e6
    expected = scale([0, 0, 1, 2])
    torch.testing.assert_close(scale([0, 1, 2, 3], [2.0, 1.0, 1.0, 0.0]), expected)


def test_rows_of_weight_zero_change_nothing_but_the_divisor():
    model = tiny_models.model("mopoe", "mog", "elbo").eval()
    rows = tiny_models.rows(4)
    odd = tiny_models.rows(4)
    for x in odd.data.values():
        x[1] = 1e3 * x[1] if x.ndim == 2 and x.shape[1] == 3 else x[1]
    weights = [1.0, 0.0, 1.0, 2.0]
    first, gradients = tiny_models.loss_and_gradients(model, weighted(rows, weights))
    second, others = tiny_models.loss_and_gradients(model, weighted(odd, weights))
    assert torch.equal(first.loss, second.loss)
    for key, value in first.metrics.items():
        assert torch.equal(value, second.metrics[key]), key
    for name, gradient in gradients.items():
        assert gradient is None or torch.equal(gradient, others[name])


def test_weights_are_one_in_the_mean_of_training_whatever_the_batches():
    x = torch.randn(12, 3)
    weights = torch.arange(12.0)

    def run(scale, **options):
        model = Model({"a": (3,)}, latent_dim=1, seed=0)
        batch = Batch({"a": x}, row_weight=weights * scale)
        history = mvkit.fit(model, batch, progress=False, validation=batch, **options)
        return model.state_dict(), history

    once, history = run(1.0, epochs=2, batch_size=4)
    other, again = run(7.0, epochs=2, batch_size=4)
    for name, value in once.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-6)
    assert again["valid/loss"] == pytest.approx(history["valid/loss"], rel=1e-4)
    stages = [mvkit.Stage(epochs=2, accumulate=2)]
    accumulated, _ = run(1.0, stages=stages, batch_size=2)
    for name, value in once.items():
        assert value.shape == accumulated[name].shape


def test_the_mean_bound_is_that_of_the_weights():
    model = Model({"a": (3,)}, latent_dim=1, seed=0).eval()
    rows = Batch({"a": torch.randn(3, 3)}, row_weight=[1.0, 0.0, 3.0])
    loss = model.loss(rows)
    expected = (loss.bound[0] + 3 * loss.bound[2]) / 4
    torch.testing.assert_close(loss.metrics["bound"], expected)


def test_likelihoods_and_codes_do_not_see_weights():
    model = Model({"a": (3,)}, latent_dim=1, seed=0)
    x = torch.randn(4, 3)
    plain, heavy = Batch({"a": x}), Batch({"a": x}, row_weight=[9.0, 0.0, 1.0, 1.0])
    assert torch.equal(model.encode(plain), model.encode(heavy))
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    scores = [
        model.log_likelihood(batch, n=5, generator=generator)
        for batch, generator in zip((plain, heavy), generators, strict=True)
    ]
    assert torch.equal(*scores)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -1.0], "row 1 is -1.0"),
        ([1.0, math.inf], "row 1 is inf"),
        ([1.0, math.nan], "row 1 is nan"),
        ([0.0, 0.0], "0 in all rows"),
    ],
)
def test_wrong_weights_are_refused(weights, message):
    model = Model({"a": (3,)}, latent_dim=1, seed=0)
    with pytest.raises(DataError, match=message):
        mvkit.fit(model, Batch({"a": torch.zeros(2, 3)}, row_weight=weights), progress=False)


def test_an_objective_that_does_not_weigh_is_refused_by_name():
    from mvkit.core.loss import Loss
    from mvkit.registry import component, plugins

    @mvkit.spec
    class Blind(mvkit.Objective):
        kl_weight: float = 1.0

        def forward(self, model, batch, experts):
            terms = model.terms(batch, experts=experts)
            bound = terms.log_px.sum(-1)[0, 0]
            return Loss(-bound.mean(), bound.detach(), {})

    globals()["Blind"] = Blind
    plugins.declare(component.Component("objective", "blind", "test_row_weights:Blind"))
    model = Model({"a": (3,)}, latent_dim=1, objective={"name": "blind"}, seed=0)
    assert torch.isfinite(model.loss(Batch({"a": torch.zeros(2, 3)})).loss)
    with pytest.raises(RequestError, match="does not look at the rows' weights"):
        model.loss(Batch({"a": torch.zeros(2, 3)}, row_weight=[1.0, 2.0]))
