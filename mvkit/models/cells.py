"""Cells of a conformed batch: which are observed, and which hold classes.

Axes: b rows, c classes; places are the shape of a modality without its axis of classes.
"""

from __future__ import annotations

from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.likelihood import Likelihood
from mvkit.parts.likelihoods.discrete import Bernoulli


def present(batch: Batch, name: str) -> Tensor:
    """Which cells of a modality a conformed batch observes, (b, *places) bool."""
    flags = batch.present(name)
    classes = batch.schema is not None and batch.schema.likelihoods[name].class_axis
    return flags[..., 0] if classes and name not in batch.classes else flags


def has_classes(likelihood: Likelihood) -> bool:
    """Whether values are classes, of which there are sets instead of intervals."""
    return likelihood.class_axis or isinstance(likelihood, Bernoulli)


def as_columns(x: Tensor) -> Tensor:
    """Values (b, *places) as (b, k)."""
    return x.reshape(len(x), -1)
