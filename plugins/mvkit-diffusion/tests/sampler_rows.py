"""Rows whose latents are made up, and samplers that are too small to learn them.

Axes: b rows.
"""

import itertools

import pytest
import torch

from mvkit.core.noise import global_seed, seeded
from mvkit.parts.conditional_samplers import Code, Condition, FittingRows, SamplerSizes
from mvkit.parts.families import Normal
from mvkit.registry.spec import as_part

NAMES = ("latent_flow", "latent_diffusion")
EACH = pytest.mark.parametrize("name", NAMES)
SMALL = {"steps": 5, "batch": 16, "width": 8, "layers": 1, "integration": 4}
SIZES = SamplerSizes(2, ("a", "b", "c"), {"a": 1, "c": 2})
OWNERS = (None, None, 0, 2, 2)  # the modality of each number of the latents; None: z
PATTERNS = [p for p in itertools.product([True, False], repeat=3) if any(p)]


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def fitting_rows(b=40, weight=None):
    """Rows with every pattern of gaps in turn."""
    generator = seeded(0)
    codes, private, drawn = {}, {}, {}
    for name in SIZES.names:
        codes[name] = Code(normal(generator, b, 2), normal(generator, b, 2).exp())
    for name, p in SIZES.private.items():
        private[name] = Code(normal(generator, b, p), normal(generator, b, p).exp())
        drawn[name] = normal(generator, b, p) + 1
    observed = torch.tensor([PATTERNS[i % 7] for i in range(b)])
    condition = Condition(SIZES, observed | True, codes, private, Normal()).keep(observed)
    return FittingRows(3 + 2 * normal(generator, b, 2), drawn, condition, weight)


def built(name, **options):
    with global_seed(0):
        return as_part("sampler", {"name": name, **SMALL, **options}).build(2, SIZES).double()
