"""Each recipe's loss and every gradient against a plain loop, row by row, written from its paper."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from mvkit import Batch, Modality, recipes
from mvkit.testing import bound_noise, noise

ROWS = 14
LEVELS = ("A", "B")
GENES, PROTEINS, PEAKS = "rna", "adt", "atac"


def rows(names):
    """Every pattern of gaps, twice, in two batches."""
    generator = torch.Generator().manual_seed(0)
    data = {
        GENES: torch.randint(6, (ROWS, 5), generator=generator).double(),
        PROTEINS: torch.randint(30, (ROWS, 4), generator=generator).double(),
        PEAKS: torch.randint(2, (ROWS, 3), generator=generator).double(),
        "batch": torch.eye(2).double()[[i % 3 % 2 for i in range(ROWS)]],
    }
    patterns = [p for p in itertools.product([True, False], repeat=len(names)) if any(p)]
    mask = torch.tensor([patterns[i % len(patterns)] for i in range(ROWS)])
    batch = Batch({name: data[name] for name in names}, mask)
    batch.extra["batch"] = [LEVELS[i % 3 % 2] for i in range(ROWS)]
    return batch


def built(name, names, **options):
    shapes = {GENES: (5,), PROTEINS: (4,), PEAKS: (3,), "batch": (2,)}
    modalities = {n: Modality(shapes[n], encoder="linear", decoder="linear") for n in names}
    if "batch" not in names:
        options["covariates"] = {"batch": LEVELS}
    recipe = recipes.get(f"mvkit-omics/{name}")
    model = recipe(modalities, latent_dim=3, seed=0, **options).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # away from 0, where a loop could not go wrong
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


class Row:
    """A row of the batch, seen by a model: experts, outputs of decoders, the noise that is drawn."""

    def __init__(self, model, batch, source, row):
        self.model, self.source, self.row = model, source, row
        self.names = list(model.names)
        self.seen = [name for i, name in enumerate(self.names) if batch.mask[row, i]]
        self.x = {name: values[row] for name, values in batch.data.items()}
        self.level = LEVELS.index(batch.extra["batch"][row])
        self.context = ()
        if "batch" not in self.names:
            self.context = (torch.eye(2).double()[self.level][None],)
        self.experts = {}
        for name in self.seen:
            x = self.x[name]
            x = x if name in (PEAKS, "batch") else torch.log(1 + x)
            out = model.encoders[name](x[None], *self.context)[0]
            self.experts[name] = Normal(out[:3], torch.exp(out[3:] / 2))

    def eps(self, components=1):
        shape = (1, components, ROWS, 3)
        return self.source("z", shape, torch.float64, torch.device("cpu"))[0, 0, self.row]

    def out(self, name, z):
        """What the decoder of a modality emits, (*shape) or (*shape, numbers)."""
        return self.model.decoders[name].network(z[None], *self.context)[0]

    def likelihood(self, name):
        return self.model.decoders[name].likelihood


def kl(q):
    return kl_divergence(q, Normal(torch.zeros_like(q.loc), torch.ones_like(q.loc))).sum()


def product(experts, prior):
    """The product of normals, and of the standard one."""
    precision = sum(q.scale**-2 for q in experts) + prior
    loc = sum(q.loc * q.scale**-2 for q in experts) / precision
    return Normal(loc, precision**-0.5)


def nb(x, mu, theta):
    """Log NB by its formula."""
    whole = theta + mu
    size = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return size + theta * torch.log(theta / whole) + x * torch.log(mu / whole)


def genes(row, z, zero_inflated=False):
    """Σ_g log NB(x_g; s ρ_g, θ_g), with zero inflation if asked for."""
    x, out, live = row.x[GENES], row.out(GENES, z), row.likelihood(GENES)
    rates = out[..., 0] if zero_inflated else out
    mu = x.sum() * torch.exp(rates) / torch.exp(rates).sum()
    theta = live.log_theta.exp()
    if theta.ndim == 2:
        theta = theta[row.level]
    p = torch.exp(nb(x, mu, theta)) if x.sum() > 0 else (x == 0).double()
    if not zero_inflated:
        return torch.log(p).sum()
    pi = torch.sigmoid(out[..., 1])
    return torch.log(torch.where(x == 0, pi, 0.0) + (1 - pi) * p).sum()


def proteins_on_background(row, z):
    """Σ_t E log [π NB(μ, φ) + (1 - π) NB((1 + e^a) μ, φ)], log μ ~ q, by five nodes."""
    x, out, live = row.x[PROTEINS], row.out(PROTEINS, z), row.likelihood(PROTEINS)
    pi, ratio = torch.sigmoid(out[..., 0]), 1 + torch.exp(out[..., 1])
    loc, scale = live.background[row.level], live.log_scale[row.level].exp()
    total = 0.0
    nodes, weights = np.polynomial.hermite.hermgauss(5)
    for node, weight in zip(nodes, weights, strict=True):
        mu = torch.exp(loc + math.sqrt(2) * float(node) * scale)
        phi = live.log_theta.exp()
        p = pi * nb(x, mu, phi).exp() + (1 - pi) * nb(x, ratio * mu, phi).exp()
        total = total + float(weight) / math.sqrt(math.pi) * torch.log(p).sum()
    return total


def bernoulli(row, z):
    p = torch.sigmoid(row.out(PEAKS, z))
    x = row.x[PEAKS]
    return (x * torch.log(p) + (1 - x) * torch.log(1 - p)).sum()


def background_penalty(live):
    """Σ KL(q(log μ) ‖ N(m, v)), m and v those closest to all q, by rows."""
    variance = live.log_scale.exp() ** 2
    m = live.background.mean()
    v = (variance + (live.background - m) ** 2).mean()
    prior = Normal(m, v.sqrt())
    return kl_divergence(Normal(live.background, live.log_scale.exp()), prior).sum() / ROWS


def check(model, names, loop, penalty=None):
    """The library's loss and gradients against the loop's, relative error 1e-9."""
    batch = rows(names)
    source = bound_noise(list(range(ROWS)), tuple(names))
    with noise(source):
        found = model.loss(batch).loss
    found.backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    expected = -sum(loop(Row(model, batch, source, row)) for row in range(ROWS)) / ROWS
    if penalty is not None:
        expected = expected + penalty()
    expected.backward()
    assert abs(found - expected) <= 1e-9 * abs(expected)
    for name, parameter in model.named_parameters():
        theirs = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        own = ours.get(name, torch.zeros_like(parameter))
        assert (own - theirs).norm() <= 1e-9 * theirs.norm() + 1e-12, name


@pytest.mark.parametrize("zero_inflated", [True, False])
@pytest.mark.parametrize("dispersion", ["feature", "feature_and_level"])
def test_scvi(dispersion, zero_inflated):
    """E log ZINB(x; s ρ(z, batch), θ, π) - β KL(q(z|x, batch) ‖ N(0, I))."""
    options = {"dispersion": dispersion, "zero_inflated": zero_inflated, "beta": 0.7}
    model = built("scvi", [GENES], **options)

    def loop(row):
        q = row.experts[GENES]
        z = q.loc + q.scale * row.eps()
        return genes(row, z, zero_inflated) - 0.7 * kl(q)

    check(model, [GENES], loop)


def test_totalvi():
    """Genes by NB, proteins on backgrounds by batch; a product of encoders and the prior."""
    model = built("totalvi", [GENES, PROTEINS], beta=0.7)

    def loop(row):
        q = product(row.experts.values(), 1)
        z = q.loc + q.scale * row.eps()
        total = -0.7 * kl(q)
        if GENES in row.seen:
            total = total + genes(row, z)
        if PROTEINS in row.seen:
            total = total + proteins_on_background(row, z)
        return total

    live = model.decoders[PROTEINS].likelihood
    check(model, [GENES, PROTEINS], loop, lambda: background_penalty(live))


def test_multivi():
    """Means of means and of variances; the symmetric KL of cells with both modalities."""
    model = built("multivi", [GENES, PEAKS], beta=0.7, alpha=1.3)

    def loop(row):
        experts = list(row.experts.values())
        loc = sum(q.loc for q in experts) / len(experts)
        variance = sum(q.scale**2 for q in experts) / len(experts)
        q = Normal(loc, variance.sqrt())
        z = q.loc + q.scale * row.eps()
        total = -0.7 * kl(q)
        if GENES in row.seen:
            total = total + genes(row, z)
        if PEAKS in row.seen:
            total = total + bernoulli(row, z)
        if len(experts) == 2:
            there = kl_divergence(experts[0], experts[1]).sum()
            back = kl_divergence(experts[1], experts[0]).sum()
            total = total - 1.3 * (there + back)
        return total

    check(model, [GENES, PEAKS], loop)


def test_midas():
    """z = (c, u): Poisson and Bernoulli of both, the batch of u alone, factors of the paper."""
    names = [GENES, PROTEINS, PEAKS, "batch"]
    factors = {"beta": 0.7, "technical_beta": 5.0, "alpha": 2.0, "batch_weight": 10.0}
    model = built("midas", names, technical_dim=1, **factors)

    def poisson(row, name, z):
        out, x = row.out(name, z), row.x[name]
        return (x * out - torch.exp(out) - torch.lgamma(x + 1)).sum()

    def loop(row):
        q = product(row.experts.values(), 1)
        z = q.loc + q.scale * row.eps()
        of_c, of_u = Normal(q.loc[:2], q.scale[:2]), Normal(q.loc[2:], q.scale[2:])
        total = -0.7 * kl(of_c) - 5.0 * kl(of_u)
        for name in (GENES, PROTEINS):
            if name in row.seen:
                total = total + poisson(row, name, z)
        if PEAKS in row.seen:
            total = total + bernoulli(row, z)
        if "batch" in row.seen:
            network = model.decoders["batch"].network.network
            logits = network(z[2:][None])[0]
            total = total + 10.0 * torch.log_softmax(logits, 0)[row.level]
        anchor = [row.experts["batch"]] if "batch" in row.seen else []
        alone = [product([q, *anchor], 1) for n, q in row.experts.items() if n != "batch"]
        for one, q in enumerate(alone):
            # E (z_m - z̄)², independent draws: the square of the mean, and the variance
            others = [p for other, p in enumerate(alone) if other != one]
            number = len(alone)
            mean = q.loc - sum(p.loc for p in alone) / number
            variance = (1 - 1 / number) ** 2 * q.scale**2
            variance = variance + sum((p.scale / number) ** 2 for p in others)
            total = total - 2.0 * (mean**2 + variance).sum()
        return total

    check(model, names, loop)


def test_cite_mopoe():
    """One subset of each row, spread evenly over the batch; KLs of all subsets, by their number."""
    names = [GENES, PROTEINS, PEAKS]
    model = built("cite_mopoe", names, beta=0.7, encode_batch=True)
    order = sorted(names)
    subsets = []
    for size in (1, 2, 3):
        subsets += itertools.combinations(order, size)

    def loop(row):
        usable = [subset for subset in subsets if set(subset) <= set(row.seen)]
        q = {}
        for subset in usable:
            prior = 1 if len(subset) == len(names) else 0
            q[subset] = product([row.experts[name] for name in subset], prior)
        uniform = row.source("choice/component", (2, ROWS), torch.float64, torch.device("cpu"))
        ranks = sorted(uniform[0].tolist())
        place = (ranks.index(float(uniform[0, row.row])) + float(uniform[1, row.row])) / ROWS
        picked = q[usable[min(int(place * len(usable)), len(usable) - 1)]]
        z = picked.loc + picked.scale * row.eps()
        total = -0.7 * sum(kl(each) for each in q.values()) / len(usable)
        if GENES in row.seen:
            total = total + genes(row, z)
        if PROTEINS in row.seen:
            theta = row.likelihood(PROTEINS).log_theta.exp()
            total = total + nb(row.x[PROTEINS], row.out(PROTEINS, z).exp(), theta).sum()
        if PEAKS in row.seen:
            total = total + bernoulli(row, z)
        return total

    check(model, names, loop)
