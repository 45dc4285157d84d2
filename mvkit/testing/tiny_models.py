"""Tiny float64 models of three modalities, and rows with every pattern of gaps, for tests.

Axes: b rows, m modalities.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.loss import Loss
from mvkit.core.modality import Modality, PartLike
from mvkit.models.model import Model
from mvkit.testing import injected_noise

NAMES = ("a", "b", "c")
TINY = {"name": "mlp", "hidden": [5]}
Names = tuple[str, ...]
Gradients = dict[str, Tensor | None]
Options = dict[str, Any]  # of a model or of a modality, by name


def modalities(
    private: int = 0,
    names: Names = NAMES,
    first: Options | None = None,
    likelihood: PartLike | None = None,
) -> dict[str, Modality]:
    """A normal, a bernoulli and a categorical modality with tiny networks.

    Args:
        private: width of their private latents.
        names: which of them, in the order of the model.
        first: other options of modality `a`.
        likelihood: of all of them; None: each its own.
    """
    shared: Options = {"encoder": TINY, "decoder": TINY, "private_dim": private}
    options = {"shape": (3,), **shared, **(first or {})}
    beta = 0.7 if private else 1.0
    continuous = Modality(**options)
    binary = Modality((2, 2), "bernoulli", **shared)
    classes = Modality((4,), "categorical", private_beta=beta, **shared)
    every = {"a": continuous, "b": binary, "c": classes}
    if likelihood is not None:
        for name, modality in every.items():
            every[name] = attrs.evolve(modality, likelihood=likelihood)  # type: ignore[misc]
    return {name: every[name] for name in names}


def model(
    *parts: PartLike,
    private: int = 0,
    names: Names = NAMES,
    first: Options | None = None,
    likelihood: PartLike | None = None,
    **options: Any,
) -> Model:
    """A tiny model in float64, without the warning about unimodal encoders that learn little.

    Args:
        parts: aggregator, prior, objective and family, in this order; the defaults of `Model`.
        private: width of the private latents.
        names: the modalities in the model's order.
        first: other options of modality `a`.
        likelihood: of all modalities; None: each its own.
        options: other options of `Model`.
    """
    every = modalities(private, names, first, likelihood)
    by_kind = zip(("aggregator", "prior", "objective", "family"), parts, strict=False)
    options = {"seed": 0, **dict(by_kind), **options}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*unimodal encoders")
        return Model(every, latent_dim=2, **options).double()


def patterns(m: int) -> list[tuple[bool, ...]]:
    """Every pattern of m modalities in which one at least is observed, the complete one first."""
    return [pattern for pattern in itertools.product([True, False], repeat=m) if any(pattern)]


def rows(b: int = 8, names: Names = NAMES, missing: bool = True, seed: int = 0) -> Batch:
    """Rows in float64 that show every pattern of observed modalities in turn, or complete ones."""
    generator = noise.seeded(seed)
    normal = torch.randn(b, 3, generator=generator, dtype=torch.float64)
    uniform = torch.rand(b, 2, 2, generator=generator, dtype=torch.float64)
    classes = torch.randint(4, (b,), generator=generator)
    one_hot = torch.eye(4, dtype=torch.float64)[classes]
    every = {"a": normal, "b": uniform, "c": one_hot}
    shown = patterns(len(names))
    if not missing:
        shown = shown[:1]
    mask = torch.tensor([shown[i % len(shown)] for i in range(b)])
    return Batch({name: every[name] for name in names}, mask)


def fillers(batch: Batch, value: float) -> Batch:
    """The batch with every unobserved place set to a value."""
    data = {name: x.clone() for name, x in batch.data.items()}
    for x, observed in zip(data.values(), batch.observed.T, strict=True):
        x[~observed] = value
    return attrs.evolve(batch, data=data)


def loss_and_gradients(
    model: Model, batch: Batch, *, ids: Sequence[int] | None = None, **options: Any
) -> tuple[Loss, Gradients]:
    """Loss and gradients by parameter name, with noise bound to row ids and modality names."""
    model.zero_grad(set_to_none=True)
    ids = range(len(batch)) if ids is None else ids
    source = injected_noise.bound_noise(ids, model.names)
    with injected_noise.noise(source):
        loss = model.loss(batch, **options)
    if loss.loss.requires_grad:
        loss.loss.backward()
    return loss, {name: parameter.grad for name, parameter in model.named_parameters()}
