"""MEME against a plain loop, row by row, written from its paper, against quadrature, and in use."""

import math

import pytest
import torch
from helpers import rows
from test_recipes import LINEAR, ROWS, Oracle, check
from torch.distributions import Normal

import mvkit
from mvkit import Modality, recipes
from mvkit.testing import bound_noise

NAMES = ("a", "b")
K = 4


def two():
    return {
        "a": Modality((3,), **LINEAR, weight=1.5),
        "b": Modality((2, 2), "bernoulli", **LINEAR),
    }


def made(**options):
    settings = {"samples": K, "pseudo_samples": 3, "seed": 0, **options}
    return recipes.meme(two(), latent_dim=2, **settings).double()


class Two(Oracle):
    """A row of two modalities."""

    def __init__(self, model, batch=None):
        super().__init__(model, rows(ROWS, NAMES) if batch is None else batch)
        self.source = bound_noise(list(range(ROWS)), NAMES)

    def observed(self, row):
        return [name for i, name in enumerate(NAMES) if self.batch.mask[row, i]]

    def pseudo(self, name):
        """The posteriors of the pseudo-samples of a modality."""
        inputs = self.model.prior.inputs[name]
        out = self.model.encoders[name](inputs)
        return self.kind(out[:, :2], torch.stack([self.scale(raw) for raw in out[:, 2:]]))


def loop_of(beta=1.0, alpha=1.0, stop=False):
    """½ [L(a, b) + L(b, a)] of complete rows; L(a) or L(b) under pseudo-samples of others."""

    def direction(oracle, row, s, t):
        own = oracle.q(s, row)[0]
        terms, crossed = [], []
        for k in range(K):
            z = own.loc + own.scale * oracle.eps("z", K, 1)[k, 0, row]
            term = oracle.log_px(s, row, z) - beta * own.log_prob(z).sum()
            if t in oracle.observed(row):
                term = term + beta * oracle.q(t, row)[0].log_prob(z).sum()
                crossed.append(oracle.log_px(t, row, z))
                terms.append(term - crossed[-1])
            else:
                each = oracle.pseudo(t).log_prob(z).sum(-1)
                terms.append(term + beta * (torch.logsumexp(each, 0) - math.log(3)))
        if not crossed:
            return sum(terms) / K
        q = [log_q.exp() for log_q in crossed]
        mean = sum(q) / K
        w = [(one / mean).detach() if stop else one / mean for one in q]
        return sum(w[k] * terms[k] for k in range(K)) / K + alpha * mean.log()

    def loop(oracle, row):
        seen = oracle.observed(row)
        other = {"a": "b", "b": "a"}
        return sum(direction(oracle, row, s, other[s]) for s in seen) / len(seen)

    return loop


@pytest.mark.parametrize("family", ["normal", "laplace_softmax"])
@pytest.mark.parametrize("options", [{}, {"beta": 0.6, "alpha": 3.0, "stop_weights": True}])
def test_meme(options, family):
    vae = made(family=family, **options)
    assert {len(Two(vae).observed(row)) for row in range(ROWS)} == {1, 2}
    stop = options.get("stop_weights", False)
    loop = loop_of(options.get("beta", 1.0), options.get("alpha", 1.0), stop)
    check(vae, loop, Two(vae))


def test_complete_rows_alone():
    vae = made()
    oracle = Two(vae, rows(ROWS, NAMES, missing=False))
    check(vae, loop_of(), oracle)


def one_dimensional():
    """A model of one latent whose integrals can be taken on a grid."""
    torch.manual_seed(0)
    modalities = {name: Modality((2,), **LINEAR) for name in NAMES}
    return recipes.meme(modalities, latent_dim=1, samples=2, seed=0).double()


def test_it_bounds_the_likelihood_given_the_other_with_any_number_of_draws():
    """L(s, t) ≤ log ∫ p(s|z) q(z|t) dz in expectation, and more draws come closer."""
    vae = one_dimensional()
    x = {"a": torch.tensor([[0.4, -1.0]]).double(), "b": torch.tensor([[0.9, 0.2]]).double()}
    grid = torch.linspace(-12, 12, 4001).double()
    truth = 0.0
    for s, t in (("a", "b"), ("b", "a")):
        loc, raw = vae.encoders[t](x[t])[0]
        log_pz = Normal(loc, (raw / 2).exp()).log_prob(grid)
        out = vae.decoders[s].network(grid[:, None])
        log_px = Normal(out, 1.0).log_prob(x[s]).sum(-1)
        truth = truth + torch.trapezoid((log_pz + log_px).exp(), grid).log() / 2
    repeated = {name: value.repeat(20_000, 1) for name, value in x.items()}
    means = []
    for samples in (1, 3, 30):
        objective = {"name": "meme", "samples": samples}
        with torch.no_grad():
            means.append(-vae.loss(repeated, objective=objective).loss.item())
    assert means[0] < means[1] < means[2] < truth.item()


def test_what_is_reported_is_a_bound_under_each_posterior():
    vae = made()
    oracle = Two(vae)
    unimodal = {"name": "elbo", "condition": "unimodal", "samples": K, "density": "mixture"}
    with mvkit.testing.noise(oracle.source):
        bound = vae.loss(oracle.batch).bound
        expected = vae.loss(oracle.batch, objective=unimodal).bound
    torch.testing.assert_close(bound, expected, rtol=1e-9, atol=0)


def test_other_numbers_of_modalities_and_private_latents_are_refused():
    shapes = {"a": (2,), "b": (2,), "c": (2,)}
    reason = "two modalities supervise each other, and there are 3"
    with pytest.raises(mvkit.SpecError, match=reason):
        recipes.meme(shapes)
    with pytest.raises(mvkit.SpecError, match="and there are 1"):
        recipes.meme({"a": (2,)})
    with pytest.raises(mvkit.SpecError, match="its private latent would leave open"):
        recipes.meme({"a": (2,), "b": Modality((2,), private_dim=1)})


def test_without_pseudo_inputs_the_prior_stands_in():
    modalities = two()
    vae = mvkit.Model(modalities, latent_dim=2, aggregator="moe", objective="meme", seed=0)
    batch = rows(ROWS, NAMES)
    only = batch.mask.sum(1) == 1
    source = bound_noise(list(range(ROWS)), NAMES)
    with mvkit.testing.noise(source):
        loss = vae.double().loss(batch)
        options = {"name": "elbo", "condition": "unimodal", "samples": 10, "density": "mixture"}
        elbo = vae.loss(batch, objective=options)
    torch.testing.assert_close(loss.bound[only], elbo.bound[only], rtol=1e-9, atol=0)


def test_a_row_that_lacks_a_modality_trains_its_pseudo_samples():
    vae = made()
    vae.loss(rows(ROWS, NAMES, missing=False)).loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in vae.prior.parameters())
    vae.loss(rows(ROWS, NAMES)).loss.backward()
    assert all(p.grad.any() for p in vae.prior.parameters())


def test_covariates_and_row_weights():
    covariates = {"site": ("A", "B")}
    vae = made(covariates=covariates)
    batch = rows(9, NAMES)
    batch.extra.update({"site": ["AB"[i % 2] for i in range(9)]})
    batch.extra["row_weight"] = 1.0 + torch.arange(9) % 3
    history = mvkit.fit(vae, batch, epochs=2, batch_size=4)
    assert all(map(math.isfinite, history["loss"]))


def test_life(tmp_path):
    vae = made()
    batch = rows(40, NAMES)
    history = mvkit.fit(vae, batch, validation=rows(6, NAMES), epochs=2, batch_size=16)
    assert all(map(math.isfinite, history["loss"] + history["valid/log_q"]))
    mvkit.save(vae, tmp_path / "m")
    again = mvkit.load(tmp_path / "m")
    assert again.header() == vae.header()
    assert torch.equal(vae.encode(batch), again.encode(batch))
    assert torch.isfinite(vae.log_likelihood(batch, n=20)).all()
    assert all(torch.isfinite(x).all() for x in vae.translate(batch, n=2).values())
    assert all(torch.isfinite(x).all() for x in vae.sample(5).values())


def pictures(n, seed):
    """Four classes, each with a centre in two modalities, and half of the rows incomplete."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(7)) * 2
    kind = torch.randint(4, (n,), generator=generator)
    noise = torch.randn(2, n, 6, generator=generator) * 0.5
    data = {name: centres[i, kind] + noise[i] for i, name in enumerate(NAMES)}
    mask = torch.ones(n, 2, dtype=torch.bool)
    mask[: n // 4, 0] = False
    mask[n // 4 : n // 2, 1] = False
    return mvkit.Batch(data, mask), kind, centres


def test_what_it_generates_from_the_other_is_coherent():
    batch, _, centres = pictures(400, 0)
    networks = {
        "encoder": {"name": "mlp", "hidden": [32]},
        "decoder": {"name": "mlp", "hidden": [32]},
    }
    modalities = {name: Modality((6,), **networks) for name in NAMES}
    vae = recipes.meme(modalities, latent_dim=3, pseudo_samples=20, seed=0)
    mvkit.fit(vae, batch, epochs=30, batch_size=50, lr=5e-3, progress=False)
    test, kind, _ = pictures(200, 1)
    for i, (source, target) in enumerate((("b", "a"), ("a", "b"))):
        x = vae.translate({source: test.data[source]}, [target], [source])[target][0]
        nearest = torch.cdist(x, centres[i]).argmin(1)
        assert (nearest == kind).float().mean() > 0.9


def test_row_weights_multiply_each_rows_own_term():
    vae = made()
    batch = rows(ROWS, NAMES)
    weight = torch.arange(float(ROWS)).double()

    def loop(oracle, row):
        return weight[row] * loop_of()(oracle, row)

    batch.extra["row_weight"] = weight
    check(vae, loop, Two(vae, batch))


def test_declaring_the_modalities_in_another_order_changes_no_number():
    vae, other = (
        made(),
        recipes.meme(dict(reversed(two().items())), 2, samples=K, pseudo_samples=3),
    )
    other = other.double()
    other.load_state_dict(vae.state_dict())
    batch = rows(ROWS, NAMES)
    with mvkit.testing.noise(Two(vae).source):
        loss = vae.loss(batch)
        swapped = other.loss(mvkit.Batch(batch.data, batch.mask[:, [1, 0]]))
    torch.testing.assert_close(loss.bound, swapped.bound, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss.loss, swapped.loss, rtol=1e-9, atol=1e-12)
