"""Every aggregator × prior × objective × family trains on complete and on partially observed rows,
or is refused.
"""

import pytest
import torch
from helpers import TABLE, fillers, loss_and_gradients, modalities, model, refused, rows

import mvkit


def surrogates_only(made, name):
    """The joint aggregator's unimodal encoders, which elbo, iwae and dreg leave alone on complete
    rows.
    """
    return made.aggregator.defaults.has_joint_encoder and name.startswith("encoders.")


@pytest.mark.parametrize(("aggregator", "prior", "objective", "family"), TABLE)
@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
def test_trains_or_is_refused(aggregator, prior, objective, family, missing):
    made = refused(aggregator, prior, objective, family)
    if made is None:
        assert family == "laplace_softmax"
        assert aggregator in ("poe", "mopoe", "joint", "gpoe")
        return
    batch = rows(missing=missing)
    found, gradients = loss_and_gradients(made, batch)
    assert torch.isfinite(found.loss)
    assert found.bound.shape == (8,)
    for name, gradient in gradients.items():
        if surrogates_only(made, name) and not missing and objective in ("elbo", "iwae", "dreg"):
            continue
        assert gradient is not None, name
        assert torch.isfinite(gradient).all(), name
    history = mvkit.fit(made, batch, epochs=2, batch_size=4, validation=batch)
    assert all(torch.isfinite(torch.tensor(history["valid/loss"])))


@pytest.mark.parametrize(("aggregator", "prior", "objective", "family"), TABLE)
@pytest.mark.parametrize("private", [0, 2], ids=["shared", "private"])
def test_fillers_change_nothing(aggregator, prior, objective, family, private):
    made = refused(aggregator, prior, objective, family, private=private)
    if made is None:
        return
    plain, gradients = loss_and_gradients(made, rows())
    for value in (torch.nan, torch.inf, -torch.inf, 1e6):
        found, others = loss_and_gradients(made, fillers(rows(), value))
        assert torch.equal(found.loss, plain.loss)
        assert torch.equal(found.bound, plain.bound)
        for name, gradient in gradients.items():
            assert (gradient is None and others[name] is None) or torch.equal(
                gradient, others[name]
            ), name


@pytest.mark.parametrize("aggregator", ["poe", "moe", "mopoe", "joint", "mean_message"])
@pytest.mark.parametrize("private_from", ["evidence", "observed"])
def test_fillers_change_no_output(aggregator, private_from):
    made = model(aggregator, "mog", private=2, private_from=private_from)
    batch, garbage = rows(), fillers(rows(), torch.nan)

    def outputs(batch):
        def generator():
            return torch.Generator().manual_seed(0)

        return {
            "encode": made.encode(batch),
            "clusters": made.clusters(batch, soft=True),
            "likelihood": made.log_likelihood(batch, n=20, generator=generator()),
            "conditional": made.log_likelihood(
                batch, ["a"], ["b"], n=20, empty="prior", generator=generator()
            ),
            "weights": made.log_weights(batch, 3, generator=generator()),
            **made.private(batch),
            **{f"to {k}": v for k, v in made.translate(batch, n=2, generator=generator()).items()},
        }

    plain, others = outputs(batch), outputs(garbage)
    for name, value in plain.items():
        assert torch.isfinite(value.double()).all(), name
        assert torch.equal(value, others[name]), name


@pytest.mark.parametrize("aggregator", ["poe", "moe", "mopoe", "joint", "mean_message"])
@pytest.mark.parametrize("objective", ["elbo", "telbo", "jmvae", "iwae", "dreg"])
def test_a_modality_that_no_row_observes_gets_zero_gradient(aggregator, objective):
    made = model(aggregator, "mog", objective, private=1)
    batch = rows(missing=False)
    mask = batch.mask.clone()
    mask[:, 1] = False
    _, gradients = loss_and_gradients(made, mvkit.Batch(batch.data, mask))
    for name, gradient in gradients.items():
        if name.split(".")[1] == "b" and not name.startswith("cross"):
            assert gradient is not None, name
            assert (gradient == 0).all(), name
        elif gradient is not None:
            assert torch.isfinite(gradient).all(), name


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("aggregator", ["poe", "moe", "mopoe", "joint", "mean_message"])
def test_any_number_of_modalities(aggregator, count):
    shapes = {
        f"m{i}": mvkit.Modality((3,), encoder="linear", decoder="linear") for i in range(count)
    }
    made = mvkit.Model(shapes, latent_dim=2, aggregator=aggregator, objective="telbo", seed=0)
    found = made.loss(mvkit.Batch({name: torch.randn(4, 3) for name in shapes}))
    assert torch.isfinite(found.loss)
    assert made.encode({"m0": torch.randn(4, 3)}).shape == (4, 2)


@pytest.mark.parametrize("aggregator", ["poe", "moe", "mopoe", "joint", "mean_message"])
def test_no_shared_latent_where_all_are_private(aggregator):
    made = mvkit.Model(
        modalities(private=2), latent_dim=0, aggregator=aggregator, objective="telbo", seed=0
    ).double()
    batch = rows()
    made.loss(batch).loss.backward()
    assert made.encode(batch).shape == (8, 0)
    assert made.translate(batch, n=2)["a"].shape == (2, 8, 3)
