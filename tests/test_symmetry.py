"""Permuting modalities or rows, or splitting the batch, changes nothing but the order."""

import pytest
import torch
from helpers import TABLE, loss_and_gradients, model, refused, rows

import mvkit
from mvkit.testing import bound_noise

TIGHT = {"rtol": 1e-9, "atol": 1e-12}


def same(gradients, others):
    for name, gradient in gradients.items():
        if gradient is not None or others[name] is not None:
            torch.testing.assert_close(gradient, others[name], **TIGHT, msg=name)


@pytest.mark.parametrize(("aggregator", "prior", "objective", "family"), TABLE)
@pytest.mark.parametrize("private", [0, 2], ids=["shared", "private"])
def test_permuting_rows(aggregator, prior, objective, family, private):
    vae = refused(aggregator, prior, objective, family, private=private)
    if vae is None:
        return
    batch, order = rows(), torch.tensor([3, 1, 7, 0, 5, 2, 6, 4])
    losses, gradients = loss_and_gradients(vae, batch)
    other, others = loss_and_gradients(vae, batch.take(order), ids=order.tolist())
    torch.testing.assert_close(losses.bound[order], other.bound, **TIGHT, equal_nan=True)
    same(gradients, others)


@pytest.mark.parametrize(("aggregator", "prior", "objective", "family"), TABLE)
@pytest.mark.parametrize("private", [0, 2], ids=["shared", "private"])
def test_permuting_modalities(aggregator, prior, objective, family, private):
    vae = refused(aggregator, prior, objective, family, private=private)
    if vae is None:
        return
    names = ("c", "a", "b")
    permuted = model(aggregator, prior, objective, family, private=private, names=names)
    state = vae.state_dict()
    if aggregator == "joint":  # the head's inputs follow the order of the trunks
        key = next(k for k in state if k.startswith("aggregator.head") and k.endswith("weight"))
        state[key] = torch.cat([state[key].chunk(3, 1)[i] for i in (2, 0, 1)], 1)
    permuted.load_state_dict(state)
    batch = rows()
    other_batch = mvkit.Batch(batch.data, batch.mask[:, [2, 0, 1]])
    losses, gradients = loss_and_gradients(vae, batch)
    other, others = loss_and_gradients(permuted, other_batch)
    torch.testing.assert_close(losses.bound, other.bound, **TIGHT, equal_nan=True)
    if aggregator != "joint":
        same(gradients, others)


@pytest.mark.parametrize(("aggregator", "prior", "objective", "family"), TABLE)
@pytest.mark.parametrize("private", [0, 2], ids=["shared", "private"])
def test_splitting_the_batch(aggregator, prior, objective, family, private):
    if aggregator == "mopoe" and objective in ("elbo", "telbo", "jmvae"):
        # balanced draws couple rows by design; with iid ones the same must hold
        aggregator, objective = "mopoe", {"name": "elbo", "draw": "iid", "density": "mixture"}
    vae = refused(aggregator, prior, objective, family, private=private)
    if vae is None:
        return
    batch = rows()
    losses, gradients = loss_and_gradients(vae, batch)
    parts = [
        loss_and_gradients(vae, batch.take(slice(i, i + 4)), ids=range(i, i + 4)) for i in (0, 4)
    ]
    torch.testing.assert_close(
        losses.bound, torch.cat([p[0].bound for p in parts]), **TIGHT, equal_nan=True
    )
    for name, gradient in gradients.items():
        if gradient is not None:
            torch.testing.assert_close(
                gradient, sum(p[1][name] for p in parts) / 2, **TIGHT, msg=name
            )


@pytest.mark.parametrize("aggregator", ["poe", "moe", "mopoe", "joint", "mean_message"])
def test_permuting_modalities_changes_no_likelihood(aggregator):
    vae, permuted = model(aggregator), model(aggregator, names=("b", "c", "a"))
    state = vae.state_dict()
    if aggregator == "joint":
        key = next(k for k in state if k.startswith("aggregator.head") and k.endswith("weight"))
        state[key] = torch.cat([state[key].chunk(3, 1)[i] for i in (1, 2, 0)], 1)
    permuted.load_state_dict(state)
    batch = rows()
    with mvkit.testing.noise(bound_noise(range(8), vae.names)):
        plain = vae.log_likelihood(batch, n=10)
    with mvkit.testing.noise(bound_noise(range(8), permuted.names)):
        other = permuted.log_likelihood(mvkit.Batch(batch.data, batch.mask[:, [1, 2, 0]]), n=10)
    torch.testing.assert_close(plain, other, **TIGHT)


def test_mean_message_dropout_follows_rows_and_names():
    options = {"name": "mean_message", "dropout_rate": 0.7}
    vae, permuted = model(options), model(options, names=("b", "c", "a"))
    permuted.load_state_dict(vae.state_dict())
    batch = rows(64, missing=False)
    losses, _ = loss_and_gradients(vae, batch)
    other, _ = loss_and_gradients(permuted, mvkit.Batch(batch.data, batch.mask[:, [1, 2, 0]]))
    torch.testing.assert_close(losses.bound, other.bound, **TIGHT)
    assert not torch.allclose(losses.bound, loss_and_gradients(vae.eval(), batch)[0].bound)


def test_drawn_subsets_follow_rows_and_names():
    options = {"name": "mopoe", "max_subsets": 3}
    vae, permuted = (
        model(options, objective="iwae"),
        model(options, objective="iwae", names=("b", "c", "a")),
    )
    permuted.load_state_dict(vae.state_dict())
    batch = rows(32)
    losses, _ = loss_and_gradients(vae, batch)
    other, _ = loss_and_gradients(permuted, mvkit.Batch(batch.data, batch.mask[:, [1, 2, 0]]))
    torch.testing.assert_close(losses.bound, other.bound, **TIGHT)
