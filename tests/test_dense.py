"""Dense batches: every row computed under a mask, with the numbers of those that are gathered."""

import attrs
import pytest
import torch
from dense_recipes import RECIPES, gaps, model_of, objectives_of
from helpers import rows

import mvkit
from mvkit import DataError, Modality, RequestError
from mvkit.testing import tiny_models
from mvkit.testing.tiny_models import loss_and_gradients

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def compared(model, batch, *, objective=None, row_weight=None):
    """Loss, bound, metrics, every gradient and every buffer, of both forms of a batch."""
    outcomes = []
    gathered = model.conform(batch)
    if row_weight is not None:
        gathered = attrs.evolve(gathered, row_weight=row_weight)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for form in (gathered, gathered.dense(), gathered.dense(model.names)):
        model.load_state_dict(state)
        loss, gradients = loss_and_gradients(model.train(), form, objective=objective)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        outcomes.append((loss, gradients, buffers))
    first = outcomes[0]
    assert torch.isfinite(first[0].loss)
    assert any(gradient is not None and gradient.any() for gradient in first[1].values())
    for loss, gradients, buffers in outcomes[1:]:
        torch.testing.assert_close(loss.loss, first[0].loss, **CLOSE)
        torch.testing.assert_close(loss.bound, first[0].bound, equal_nan=True, **CLOSE)
        torch.testing.assert_close(loss.metrics, first[0].metrics, **CLOSE)
        torch.testing.assert_close(loss.counts, first[0].counts, check_dtype=False, **CLOSE)
        for name, gradient in gradients.items():
            expected = first[1][name]
            if expected is None:  # what is computed for rows that might lack something
                assert gradient is None or not gradient.any(), name
            else:
                torch.testing.assert_close(gradient, expected, msg=name, **CLOSE)
        torch.testing.assert_close(buffers, first[2], equal_nan=True, **CLOSE)


def test_the_table_has_every_recipe():
    assert set(RECIPES) == set(mvkit.available("recipe"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_computes_the_same(name):
    if name == "jnf":
        pytest.importorskip("mvkit_flows")
    model = model_of(name)
    batch = gaps(model.names)
    for objective in objectives_of(model):
        compared(model, batch, objective=objective)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_computes_the_same_in_complete_rows(name):
    if name == "jnf":
        pytest.importorskip("mvkit_flows")
    model = model_of(name)
    compared(model, gaps(model.names, missing=False))


def likelihoods():
    total = {"exposure": "total"}
    return {
        "gamma": Modality((3,), "gamma"),
        "lognormal": Modality((3,), "lognormal"),
        "beta": Modality((3,), "beta"),
        "poisson": Modality((3,), "poisson", **total),
        "negative_binomial": Modality((3,), "negative_binomial", exposure="size"),
        "multinomial": Modality((3,), "multinomial", **total),
        "hazard": Modality((2,), "hazard"),
        "ordinal": Modality((3,), {"name": "ordinal", "levels": 4}),
    }


def values_of(name, modality):
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(8, *modality.shape, generator=generator, dtype=torch.float64)
    if name in ("gamma", "lognormal", "beta"):
        return 0.1 + 0.8 * uniform
    if name == "hazard":
        return torch.stack([uniform[:, 0], (uniform[:, 1] > 0.5).double()], 1)
    return (3.9 * uniform).floor()


@pytest.mark.parametrize("name", likelihoods())
@pytest.mark.parametrize("lacking", [[1, 4, 5], list(range(8))])
def test_rows_that_are_not_there_make_no_gradient_infinite(name, lacking):
    """Zeros stand where nothing is observed, of which many laws have no density."""
    modality = likelihoods()[name]
    model = mvkit.Model({"a": (3,), "x": modality}, latent_dim=2, seed=0).double()
    mask = torch.ones(8, 2, dtype=torch.bool)
    mask[lacking, 1] = False
    data = {"a": torch.randn(8, 3).double(), "x": values_of(name, modality)}
    extra = {"size": torch.arange(1.0, 9.0)}
    compared(model, mvkit.Batch(data, mask, extra=extra))


def test_weights_of_rows_count_the_same():
    model = tiny_models.model()
    compared(model, rows(), row_weight=torch.arange(8.0).double())


def test_a_modality_that_a_question_hides_computes_the_same():
    model = tiny_models.model("joint", private=2)
    shown = rows().mask | torch.tensor([True, False, False])
    batch = model.conform(mvkit.Batch(rows().data, shown))
    for kept in (["a"], ["a", "c"]):
        form = batch.dense().hide(kept)
        torch.testing.assert_close(
            loss_and_gradients(model, form)[0].bound,
            loss_and_gradients(model, batch.hide(kept))[0].bound,
            **CLOSE,
        )


def test_what_is_known_of_a_dense_batch():
    model = tiny_models.model()
    complete = model.conform(rows(missing=False)).dense()
    assert complete.complete
    assert complete.complete_rows is None
    assert not complete.dense(["a"]).complete
    batch = model.conform(rows()).dense()
    assert batch.may_lack == {"a", "b", "c"}
    assert batch.observed_rows == (None, None, None)
    assert not batch.complete
    assert not batch.take([0]).complete  # the mask is not looked at
    assert batch.take(slice(2, 4)).observed.equal(batch.observed[2:4])
    assert batch.to("cpu").map(torch.clone).may_lack == batch.may_lack
    only = mvkit.Batch({"a": rows().data["a"], "b": rows().data["b"]}, rows().mask[:, :2])
    model = tiny_models.model(names=("a", "b"))
    some = model.conform(mvkit.Batch(only.data, only.mask | torch.tensor([True, False])))
    assert some.dense().may_lack == {"b"}
    assert some.dense().hide(["b"]).may_lack == {"a", "b"}


def test_which_rows_of_a_dense_batch_are_complete_is_refused():
    batch = tiny_models.model().conform(rows()).dense()
    with pytest.raises(DataError, match=r"dense.*use batch.observed.all\(1\)"):
        _ = batch.complete_rows
    with pytest.raises(DataError, match="not conformed"):
        rows().dense()


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_statistics_over_rows_that_are_not_there_are_refused(side):
    width = 4 if side == "encoder" else 3
    module = torch.nn.Sequential(
        torch.nn.Linear(3 if side == "encoder" else 2, 5),
        torch.nn.BatchNorm1d(5),
        torch.nn.Linear(5, width),
    )
    options = {side: module}
    model = mvkit.Model({"a": Modality((3,), **options), "b": (2,)}, latent_dim=2, seed=0).double()
    data = {"a": torch.randn(6, 3).double(), "b": torch.randn(6, 2).double()}
    mask = torch.ones(6, 2, dtype=torch.bool)
    mask[2, 1] = False
    model.train().loss(model.conform(mvkit.Batch(data, mask)).dense())  # `a` is there
    lacking = model.conform(mvkit.Batch(data, mask.flip(1))).dense()
    with pytest.raises(RequestError, match=rf"{side}s.a: BatchNorm1d takes statistics over all"):
        model.train().loss(lacking)
    model.eval().loss(lacking)  # by statistics that are known
