"""What several test files need: tiny models in float64 and batches with every pattern of gaps."""

from mvkit.registry import component
import itertools
import warnings

import torch
from torch.nn import functional

import mvkit
from mvkit import Batch, Family, Modality, Model, SpecError, spec
from mvkit.registry import plugins
from mvkit.testing import bound_noise

AGGREGATORS = ("poe", "moe", "mopoe", "joint", "mean_message", "gpoe", "wasserstein", "set")
PRIORS = ("standard", "learnable", "mog", "vamp")
OBJECTIVES = ("elbo", "telbo", "jmvae", "iwae", "dreg")
FAMILIES = ("normal", "normal_softplus", "laplace_softmax")
TABLE = list(itertools.product(AGGREGATORS, PRIORS, OBJECTIVES, FAMILIES))
NAMES = ("a", "b", "c")


@spec
class Logistic(Family):
    """A family without any closed form."""

    density = "logistic"

    def scale(self, raw):
        return functional.softplus(raw) + 1e-6

    def noise(self, size, *, dtype, device, generator):
        uniform = torch.rand(size, dtype=dtype, device=device, generator=generator)
        return torch.logit(uniform, eps=torch.finfo(dtype).eps)

    def log_density(self, eps):
        return -eps - 2 * functional.softplus(-eps)


def declare_logistic():
    """Registers the family `logistic` for the rest of a test."""
    plugins.declare(component.Component("family", "logistic", "helpers:Logistic"))


def modalities(private=0, names=NAMES):
    tiny = {"name": "mlp", "hidden": [5]}
    nets = {"encoder": tiny, "decoder": tiny, "private_dim": private}
    every = {
        "a": Modality((3,), **nets),
        "b": Modality((2, 2), "bernoulli", **nets),
        "c": Modality((4,), "categorical", private_beta=0.7 if private else 1.0, **nets),
    }
    return {name: every[name] for name in names}


def model(
    aggregator="poe",
    prior="standard",
    objective="elbo",
    family="normal",
    *,
    private=0,
    names=NAMES,
    **options,
):
    """A tiny model in float64; the warning about untrained surrogates is not what tests look at."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*unimodal encoders")
        return Model(
            modalities(private, names),
            latent_dim=2,
            aggregator=aggregator,
            prior=prior,
            objective=objective,
            family=family,
            **{"seed": 0, **options},
        ).double()


def refused(*arguments, **options):
    """The model, or None where its construction is refused with a reason."""
    try:
        return model(*arguments, **options)
    except SpecError as error:
        if "no closed product" not in str(error):
            raise
        return None


def rows(b=8, names=NAMES, missing=True, seed=0):
    """A batch in float64 whose rows show every pattern of observed modalities in turn."""
    generator = torch.Generator().manual_seed(seed)
    every = {
        "a": torch.randn(b, 3, generator=generator, dtype=torch.float64),
        "b": torch.rand(b, 2, 2, generator=generator, dtype=torch.float64),
        "c": torch.eye(4, dtype=torch.float64)[torch.randint(4, (b,), generator=generator)],
    }
    data = {name: every[name] for name in names}
    patterns = [p for p in itertools.product([True, False], repeat=len(names)) if any(p)]
    mask = torch.tensor(
        [patterns[i % len(patterns)] if missing else patterns[0] for i in range(b)]
    )
    return Batch(data, mask)


def fillers(batch, value, names=NAMES):
    """The batch with every unobserved place set to a value."""
    data = {}
    for i, name in enumerate(names):
        x = batch.data[name].clone()
        x[~batch.mask[:, i]] = value
        data[name] = x
    return Batch(data, batch.mask, batch.elements)


def loss_and_gradients(made, batch, *, ids=None, names=None, **options):
    """Loss record and gradients by parameter name, with noise bound to row ids."""
    made.zero_grad(set_to_none=True)
    ids = range(len(batch)) if ids is None else ids
    with mvkit.testing.noise(bound_noise(list(ids), names or made.names)):
        found = made.loss(batch, **options)
    if found.loss.requires_grad:
        found.loss.backward()
    return found, {
        name: p.grad.clone() if p.grad is not None else None for name, p in made.named_parameters()
    }
