"""What several test files need: tiny models in float64 and batches with every pattern of gaps."""

import itertools

import torch
from torch.nn import functional

from mvkit import Family, SpecError, spec
from mvkit.registry import component, plugins
from mvkit.testing.tiny_models import NAMES, fillers, loss_and_gradients, modalities, model, rows  # noqa: F401

AGGREGATORS = ("poe", "moe", "mopoe", "joint", "mean_message", "gpoe", "wasserstein", "set")
PRIORS = ("standard", "learnable", "mog", "vamp")
OBJECTIVES = ("elbo", "telbo", "jmvae", "iwae", "dreg")
FAMILIES = ("normal", "normal_softplus", "laplace_softmax")
TABLE = list(itertools.product(AGGREGATORS, PRIORS, OBJECTIVES, FAMILIES))


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


def refused(*arguments, **options):
    """The model, or None where its construction is refused with a reason."""
    try:
        return model(*arguments, **options)
    except SpecError as error:
        if "no closed product" not in str(error):
            raise
        return None
