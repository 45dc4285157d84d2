"""Each recipe's loss and every gradient against a plain loop, row by row, written from its paper."""

import itertools
import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import mvkit
from mvkit import Batch, Modality, SpecError, recipes
from mvkit.testing import bound_noise, check_component, noise

SHAPES = {"a": (3,), "b": (2, 2), "c": (4,)}
NAMES = tuple(SHAPES)
ROWS = 14
NAMED = ("codevae", "helvae", "mwb")


def made(name, **options):
    nets = {"encoder": "linear", "decoder": "linear"}
    modalities = {
        "a": Modality((3,), **nets),
        "b": Modality((2, 2), "bernoulli", **nets),
        "c": Modality((4,), "categorical", weight=1.5, **nets),
    }
    return getattr(recipes, name)(modalities, latent_dim=2, seed=0, **options).double()


def rows():
    """Every pattern of gaps, twice."""
    generator = torch.Generator().manual_seed(0)
    data = {
        "a": torch.randn(ROWS, 3, generator=generator).double(),
        "b": torch.rand(ROWS, 2, 2, generator=generator).double(),
        "c": torch.eye(4).double()[torch.randint(4, (ROWS,), generator=generator)],
    }
    patterns = [p for p in itertools.product([True, False], repeat=3) if any(p)]
    return Batch(data, torch.tensor([patterns[i % 7] for i in range(ROWS)]))


class Row:
    """A row of the batch, seen by a model: experts, decoders and the noise that was drawn."""

    def __init__(self, model, batch, source, row):
        self.model, self.source, self.row = model, source, row
        self.x = {name: values[row] for name, values in batch.data.items()}
        self.seen = [name for i, name in enumerate(NAMES) if batch.mask[row, i]]
        self.experts = {}
        self.private = {}
        for name in self.seen:
            p = model.modalities[name].private_dim
            out = model.encoders[name](self.x[name][None])[0]
            self.experts[name] = Normal(out[:2], torch.exp(out[2:4] / 2))
            self.private[name] = Normal(out[4 : 4 + p], torch.exp(out[4 + p :] / 2))

    def eps(self, site, components, d=2):
        """Noise at a site, (components, d); uniforms (2,) of choices."""
        if site.startswith("choice"):
            return self.source(site, (2, ROWS), torch.float64, torch.device("cpu"))
        shape = (1, components, ROWS, d)
        return self.source(site, shape, torch.float64, torch.device("cpu"))[0, :, self.row]

    def log_px(self, name, z, w):
        """λ log p(x_m | z, w)."""
        out = self.model.decoders[name].network(torch.cat([z, w])[None])[0]
        x = self.x[name]
        if name == "a":
            return Normal(out, 1.0).log_prob(x).sum()
        if name == "b":
            bce = torch.nn.functional.binary_cross_entropy_with_logits
            return -bce(out, x, reduction="sum")
        return 1.5 * (x * torch.log_softmax(out, -1)).sum()

    def fit(self, q, j, components):
        """Σ_{m∈O} λ log p(x_m | z, w_m) at the draw of component j."""
        z = q.loc + q.scale * self.eps("z", components)[j]
        total = 0.0
        for name, own in self.private.items():
            p = len(own.loc)
            w = own.loc + own.scale * self.eps(f"w/{name}", components, p)[j] if p else own.loc
            total = total + self.log_px(name, z, w)
        return total

    def private_kl(self):
        return sum(kl(own) for own in self.private.values())


def kl(q):
    return kl_divergence(q, Normal(torch.zeros_like(q.loc), torch.ones_like(q.loc))).sum()


def subsets(seen):
    """Subsets in the order of the package's: a bit for each modality, by name."""
    whole = []
    for code in range(1, 8):
        subset = [name for i, name in enumerate(NAMES) if code >> i & 1]
        whole.append((code - 1, subset if set(subset) <= set(seen) else None))
    return whole


def check(model, loop):
    """The library's loss and gradients against the loop's, relative error 1e-9."""
    batch = rows()
    source = bound_noise(list(range(ROWS)), NAMES)
    with noise(source):
        found = model.loss(batch).loss
    found.backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    expected = -sum(loop(Row(model, batch, source, row)) for row in range(ROWS)) / ROWS
    expected.backward()
    assert abs(found - expected) <= 1e-9 * abs(expected)
    for name, parameter in model.named_parameters():
        theirs = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        own = ours.get(name, torch.zeros_like(parameter))
        assert (own - theirs).norm() <= 1e-9 * theirs.norm() + 1e-14, name


@pytest.mark.parametrize("private_dim", [None, 2])
@pytest.mark.parametrize("rho", [None, 0.4])
def test_codevae(rho, private_dim):
    """Σ_S π_S (E log p - β KL) + α H(π); consensus by solving with the covariance of errors."""
    vae = made("codevae", rho=rho, beta=0.7, alpha=1.3, private_dim=private_dim)
    with torch.no_grad():
        vae.aggregator.logits.copy_(torch.linspace(-1, 1, 7))

    def consensus(row, names):
        correlation = torch.sigmoid(vae.aggregator.raw) * 0.999 if rho is None else rho
        locs, scales = [], []
        for d in range(2):
            sigma = torch.stack([row.experts[name].scale[d] for name in names])
            mu = torch.stack([row.experts[name].loc[d] for name in names])
            eye = torch.eye(len(names)).double()
            covariance = torch.outer(sigma, sigma) * (eye + (1 - eye) * correlation)
            u = torch.ones(len(names)).double()
            weights = torch.linalg.solve(covariance, u)
            variance = 1 / weights.sum()
            locs.append(variance * (weights * mu).sum())
            scales.append(variance.sqrt())
        return Normal(torch.stack(locs), torch.stack(scales))

    def loop(row):
        usable = [(k, names) for k, names in subsets(row.seen) if names]
        pi = torch.softmax(vae.aggregator.logits[[k for k, _ in usable]], 0)
        value = -0.7 * row.private_kl()
        for weight, (k, names) in zip(pi, usable, strict=True):
            q = consensus(row, names)
            value = value + weight * (row.fit(q, k, 7) - 0.7 * kl(q) - 1.3 * weight.log())
        return value

    check(vae, loop)


@pytest.mark.parametrize("private_dim", [None, 2])
@pytest.mark.parametrize("trained", [False, True])
def test_helvae(trained, private_dim):
    """One normal with the mean and the variances of the mixture of experts and pairs."""
    vae = made("helvae", trained=trained, beta=0.7, private_dim=private_dim)
    if trained:
        with torch.no_grad():
            for i, logit in enumerate(vae.aggregator.pool.logits.values()):
                logit.fill_(0.3 * i)

    def pooled(row):
        weights, means, variances = [], [], []
        for i, first in row.experts.items():
            for j, second in row.experts.items():  # pairs twice, which is their factor 2
                whole = first.scale**2 + second.scale**2
                overlap = (2 * first.scale * second.scale / whole).sqrt()
                overlap = overlap * torch.exp(-((first.loc - second.loc) ** 2) / (4 * whole))
                w = overlap.prod()
                if trained:
                    logits = vae.aggregator.pool.logits
                    w = w * torch.exp(logits[i] + logits[j])
                weights.append(w)
                means.append((first.loc * second.scale**2 + second.loc * first.scale**2) / whole)
                variances.append(2 * first.scale**2 * second.scale**2 / whole)
        share = torch.stack(weights) / sum(weights)
        mean = torch.einsum("k,kd->d", share, torch.stack(means))
        second = torch.stack(variances) + torch.stack(means) ** 2
        return Normal(mean, (torch.einsum("k,kd->d", share, second) - mean**2).sqrt())

    def loop(row):
        q = pooled(row)
        return row.fit(q, 0, 1) - 0.7 * (kl(q) + row.private_kl())

    check(vae, loop)


@pytest.mark.parametrize("private_dim", [None, 2])
def test_mwb(private_dim):
    """One subset a row, spread evenly over the batch; Σ_S KL(q_S ‖ p) by their number."""
    vae = made("mwb", beta=0.7, private_dim=private_dim)

    def loop(row):
        first, second = row.eps("choice/component", 1)
        rank = [sorted(first.tolist()).index(u) for u in first.tolist()]
        usable = [names for _, names in subsets(row.seen) if names]
        at = (rank[row.row] + second[row.row].item()) / ROWS
        picked = usable[min(int(at * len(usable)), len(usable) - 1)]
        q = {}
        for names in usable:
            loc = sum(row.experts[name].loc for name in names) / len(names)
            scale = sum(row.experts[name].scale for name in names) / len(names)
            q[tuple(names)] = Normal(loc, scale)
        total = sum(kl(each) for each in q.values()) / len(usable)
        return row.fit(q[tuple(picked)], 0, 1) - 0.7 * (total + row.private_kl())

    check(vae, loop)


@pytest.mark.parametrize("name", NAMED)
def test_the_rules_of_recipes(name):
    check_component("recipe", f"mvkit-fusion/{name}")


@pytest.mark.parametrize("name", NAMED)
def test_life(name, tmp_path):
    vae = made(name, private_dim=1, covariates={"site": ("A", "B")})
    batch = rows()
    batch.extra["site"] = ["AB"[i % 2] for i in range(ROWS)]
    history = mvkit.fit(vae, batch, validation=batch, epochs=2, batch_size=5)
    assert all(map(math.isfinite, history["loss"] + history["valid/loss"]))
    mvkit.save(vae, tmp_path / "m")
    again = mvkit.load(tmp_path / "m")
    assert again.header() == vae.header()
    assert torch.equal(vae.encode(batch), again.encode(batch))
    assert torch.isfinite(vae.log_likelihood(batch, n=5)).all()


def test_recipes_are_found_by_name_and_set_their_parts():
    assert {"mvkit-fusion/codevae", "codevae"} & set(mvkit.available("recipe"))
    assert recipes.codevae is recipes.get("mvkit-fusion/codevae")
    with pytest.raises(SpecError, match="aggregator: the recipe sets it"):
        made("mwb", aggregator="poe")
    with pytest.raises(SpecError, match="rho: got 2"):
        made("codevae", rho=2.0)
