"""What users call: shapes, meanings, randomness."""

import numpy as np
import pytest
import torch
from helpers import AGGREGATORS, model, rows

import mvkit
from mvkit import Batch, Model, MultimodalDataset


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_shapes(aggregator):
    made = model(aggregator, "mog", private=2)
    batch = rows(missing=False)
    z = torch.randn(5, 8, 2).double()
    posterior = made.posterior(batch, given=["a"])
    assert posterior.rsample(3).shape == (3, 8, 2)
    assert posterior.log_prob(z).shape == (5, 8)
    assert posterior.mean.shape == (8, 2)
    assert posterior.evidence.shape == (posterior.components, 8, 3)
    assert made.encode(batch).shape == (8, 2)
    assert {k: v.shape for k, v in made.private(batch).items()} == {
        "a": (8, 2),
        "b": (8, 2),
        "c": (8, 2),
    }
    assert made.decode(z)["b"].shape == (5, 8, 2, 2)
    assert made.decode(z, {"b": torch.zeros(5, 8, 2).double()})["b"].shape == (5, 8, 2, 2)
    assert made.translate(batch, to=["b"], given=["a"], n=4)["b"].shape == (4, 8, 2, 2)
    assert made.sample(6)["c"].shape == (6, 4)
    data, latents = made.sample(6, cluster=2, latents=True)
    assert latents.z.shape == (6, 2)
    assert latents.private["a"].shape == (6, 2)
    assert latents.cluster.tolist() == [2] * 6
    assert made.log_weights(batch, 7).shape == (7, 8)
    assert made.log_likelihood(batch, n=5).shape == (8,)
    assert made.clusters(batch).shape == (8,)
    assert made.clusters(batch, soft=True).shape == (8, 10)
    assert made.clusters(batch, by_modality=True)["a"].shape == (8, 10)


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_arrays_datasets_and_batches_are_alike_and_chunked(aggregator, monkeypatch):
    made = model(aggregator, "mog")
    batch = rows(30, missing=False)
    arrays = {name: x.numpy() for name, x in batch.data.items()}
    dataset = MultimodalDataset(Batch(batch.data), made.modalities)
    whole = made.encode(batch)
    monkeypatch.setattr("mvkit.models.inference.ROWS", 7)
    for data in (batch, arrays, dataset):
        torch.testing.assert_close(made.encode(data), whole)
        torch.testing.assert_close(made.clusters(data, soft=True), made.clusters(batch, soft=True))
        assert made.translate(data, n=2)["b"].shape == (2, 30, 2, 2)
        assert made.log_likelihood(data, n=3).shape == (30,)
        assert made.private(data) == {}
    assert all(isinstance(a, np.ndarray) for a in arrays.values())


def called(modules):
    """A list that grows by a module's name whenever it is called."""
    calls = []
    for name, module in modules.items():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    return calls


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_encoding_subsets_is_encoding_each_of_them(aggregator, monkeypatch):
    made = model(aggregator, private=2)
    batch = rows(30)
    calls = called(made.encoders)
    found = made.encode_subsets(batch, empty="prior")
    assert len(calls) == len(set(calls))  # at most once, however many sets
    assert len(found) == 7
    assert all(len(each) > 0 for each in found)
    for given, means in found.items():
        torch.testing.assert_close(
            means, made.encode(batch, given, empty="prior"), rtol=1e-12, atol=1e-12
        )
    monkeypatch.setattr("mvkit.models.inference.ROWS", 7)
    some = made.encode_subsets(batch, [["c", "a"], "b"], empty="prior")
    assert list(some) == [("c", "a"), ("b",)]
    torch.testing.assert_close(some["c", "a"], found["a", "c"])
    with pytest.raises(mvkit.RequestError, match=r"subsets: got 'ab'; expected a list of sets"):
        made.encode_subsets(batch, "ab")
    with pytest.raises(mvkit.DataError, match="observes none of the given modalities"):
        made.encode_subsets(batch)


def test_encoding_subsets_of_two_levels():
    made = mvkit.recipes.nexus(
        {"a": (3,), "b": (2,), "c": (1,)}, latent_dim=2, bottom_dim=2
    ).double()
    batch = Batch({"a": torch.randn(9, 3), "b": torch.randn(9, 2), "c": torch.randn(9, 1)})
    calls = called(
        {f"{i}{k}": e for i, level in enumerate(made.levels) for k, e in level.encoders.items()}
    )
    found = made.encode_subsets(batch)
    assert sorted(calls) == ["0a", "0b", "0c", "1a", "1b", "1c"]
    for given, means in found.items():
        torch.testing.assert_close(means, made.encode(batch, given), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("objective", ["jmvae", "telbo"])
def test_terms_of_an_objective_share_the_joint_posterior(objective):
    made = model("joint", objective=objective)
    calls = called({"head": made.aggregator.head, **made.aggregator.trunks})
    made.train().loss(rows(missing=False)).loss.backward()
    assert sorted(calls) == ["a", "b", "c", "head"]


def test_given_nothing_is_the_prior():
    made = model("moe", "mog")
    posterior = made.posterior(rows(), given=())
    prior = made.prior()
    z = torch.randn(4, 8, 2).double()
    torch.testing.assert_close(posterior.log_prob(z), prior.log_prob(z))
    torch.testing.assert_close(made.encode(rows(), given=()), prior.mean.expand(8, 2))
    assert made.translate(rows(), given=(), n=2)["a"].shape == (2, 8, 3)


def test_rows_without_what_is_given_can_take_the_prior():
    made = model("mopoe")
    batch = rows()
    posterior = made.posterior(batch, given=["b"], empty="prior")
    has = batch.mask[:, 1]
    z = torch.randn(3, 8, 2).double()
    torch.testing.assert_close(posterior.log_prob(z)[:, ~has], made.prior().log_prob(z)[:, ~has])
    only = made.posterior(batch.take(has.nonzero()[:, 0]), given=["b"])
    torch.testing.assert_close(posterior.log_prob(z)[:, has], only.log_prob(z[:, has]))


def test_mopoe_encodes_with_the_product_and_scores_with_the_mixture():
    product, mixture = model("mopoe"), model({"name": "mopoe", "inference": "mixture"})
    batch = rows()
    assert not torch.allclose(product.encode(batch), product.posterior(batch).mean)
    torch.testing.assert_close(mixture.encode(batch), mixture.posterior(batch).mean)
    poe = model({"name": "poe", "prior_expert": False})
    incomplete = batch.take((~batch.mask.all(1)).nonzero()[:, 0])
    torch.testing.assert_close(product.encode(incomplete), poe.encode(incomplete))


def test_translation_by_the_mean_is_decoding_the_mean():
    made = model("poe", private=2)
    batch = rows(missing=False)
    made_up = made.translate(batch, given=["a"], latent="mean", n=2)
    hidden = made.decode(made.encode(batch, given=["a"]), {"a": made.private(batch)["a"]})
    for name, value in hidden.items():
        torch.testing.assert_close(made_up[name], value.expand(2, *value.shape))


def test_private_latents_of_what_was_not_given_come_from_where_they_are_told():
    made = model("moe", private=2, names=("a", "b"))
    with torch.no_grad():
        made.cross["b"].fill_(12.0)  # a scale of e^6
        made.decoders["b"].network[0].weight[:, 2:] = 1.0
    batch, generator = rows(names=("a", "b"), missing=False), torch.Generator
    own = made.translate(batch, ["b"], ["a"], 200, generator=generator().manual_seed(0))["b"]
    cross = made.translate(
        batch, ["b"], ["a"], 200, private_source="cross", generator=generator().manual_seed(0)
    )["b"]
    assert cross.std(0).mean() > own.std(0).mean() * 1.2


def test_sampling_the_likelihood():
    made = model()
    bits = made.sample(50, sample=True)["b"]
    assert set(bits.unique().tolist()) <= {0.0, 1.0}
    assert made.sample(5, sample=True)["c"].sum(-1).tolist() == [1.0] * 5
    assert made.translate(rows(), to=["b"], sample=True)["b"].unique().numel() <= 2


def test_generators_decide_everything():
    made = model("mopoe", "mog", private=1)
    batch = rows()

    def draws(seed):
        def generator():
            return torch.Generator().manual_seed(seed)

        torch.rand(3)
        return [
            made.loss(batch, generator=generator()).loss,
            made.sample(3, sample=True, generator=generator())["b"],
            made.translate(batch, n=2, sample=True, generator=generator())["b"],
            made.log_weights(batch, 4, generator=generator()),
            made.log_likelihood(batch, n=4, generator=generator()),
        ]

    for one, two in zip(draws(1), draws(1), strict=True):
        assert torch.equal(one, two)
    assert not any(
        torch.equal(one, two) for one, two in list(zip(draws(1), draws(2), strict=True))[::3]
    )


def test_likelihood_in_blocks_is_the_same_estimate():
    made = model("moe")
    batch = rows()
    whole = made.log_likelihood(batch, n=3000)
    blocks = made.log_likelihood(batch, n=3000, memory=1)
    torch.testing.assert_close(whole, blocks, rtol=0, atol=0.5)
    assert (whole - blocks).abs().mean() < 0.1


def test_what_is_not_given_is_scored():
    made, batch = model("poe"), rows(missing=False)
    one, two = (
        made.log_likelihood(batch, of, ["a"], n=10, generator=torch.Generator().manual_seed(0))
        for of in (None, ["b", "c"])
    )
    assert torch.equal(one, two)


def test_clusters_vote():
    made = model("moe", {"name": "mog", "components": 4})
    batch = rows()
    each = made.clusters(batch, by_modality=True)
    observed = batch.mask
    for i, name in enumerate(made.names):
        assert torch.equal(torch.isnan(each[name]).all(1), ~observed[:, i])
    soft, hard = (made.clusters(batch, rule="votes", soft=soft) for soft in (True, False))
    for row in range(8):
        seen = [each[name][row] for i, name in enumerate(made.names) if observed[row, i]]
        mean = torch.stack(seen).mean(0)
        torch.testing.assert_close(soft[row], mean)
        votes = [int(s.argmax()) for s in seen]
        most = max(votes.count(v) for v in votes)
        best = max((v for v in votes if votes.count(v) == most), key=lambda v: mean[v])
        assert hard[row] == best
    assert torch.equal(hard, made.clusters(batch, rule="votes"))


def test_evaluation_leaves_the_mode_of_every_module():
    made = model({"name": "mean_message", "dropout_rate": 0.9}).train()
    made.decoders["a"].eval()
    one, two = made.encode(rows()), made.encode(rows())
    assert torch.equal(one, two)  # no dropout outside the loss
    assert made.training
    assert not made.decoders["a"].training


def test_decoding_gives_gradients_to_a_latent_that_asks():
    made = model()
    z = torch.zeros(1, 2).double().requires_grad_()
    made.decode(z)["a"].sum().backward()
    assert z.grad.abs().sum() > 0
    assert not made.decode(z.detach())["a"].requires_grad


def test_repr_is_for_people():
    shown = repr(model("mopoe", "mog", private=2))
    for part in (
        "MoPoE(",
        "MoG(components=10",
        "a: (3,)",
        "Bernoulli()",
        "private_dim=2 from observed",
        "hidden=(5,)",
    ):
        assert part in shown


def test_a_seed_makes_the_weights_and_leaves_the_global_state():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = Model({"a": (3,)}, seed=1)
    assert torch.equal(torch.rand(1), expected)
    two = Model({"a": (3,)}, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_names_that_modules_cannot_have():
    with pytest.raises(mvkit.SpecError, match="cannot be called 'keys'"):
        Model({"keys": (3,)})


def test_complete_rows_are_encoded_jointly_and_by_nothing_else():
    made = model("joint", objective="jmvae")
    batch = rows(16)
    seen = []
    for encoder in made.encoders.values():
        encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    together = made.encode(batch)
    complete = made.conform(batch).complete_rows
    assert 0 < len(complete) < 16
    assert sum(seen) == int(batch.mask.sum()) - 3 * len(complete)
    alone = torch.cat([made.encode(batch.take([i])) for i in range(16)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
