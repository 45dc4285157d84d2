"""Mechanism: what a kind of model provides, and every question that users ask is answered by.

Axes: n samples asked for, b rows, m modalities, d latent, p private latent, c clusters. Log-probabilities in nats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mvkit.batch import Batch
from mvkit.errors import RequestError
from mvkit.estimates import Asked, Condition
from mvkit.experts import Experts
from mvkit.generation import Translation
from mvkit.modality import Modality
from mvkit.objectives import Objective
from mvkit.posterior import Posterior
from mvkit.values import Layout

Names = Iterable[str] | None


def check_model(model: Any, where: str) -> None:
    """Raises RequestError, which names the function, for what is no model."""
    if not isinstance(model, Mechanism):
        raise RequestError(
            f"{where}: got {type(model).__name__} as its model; expected a Model or a Stack, then the rest"
        )


class Mechanism(nn.Module, ABC):
    """How a model encodes, fuses, decodes and scores.

    To implement one, set `spec`, `names`, `modalities`, `latent_dim`, `n_clusters`, `prior`, `objective` on a subclass
    of `mvkit.generative.Generative`, and write the methods below, which see conformed batches only.
    """

    spec: Any
    names: tuple[str, ...]
    modalities: dict[str, Modality]
    latent_dim: int
    n_clusters: int
    objective: Objective
    prior: Any
    aggregator: Any

    @abstractmethod
    def header(self) -> dict[str, Any]:
        """The model as plain JSON data, all defaults written out."""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """What the model expects of a batch."""

    @abstractmethod
    def build_objective(self, objective: Any) -> Objective:
        """An objective by name or spec, checked against this model."""

    @abstractmethod
    def experts(self, batch: Batch, *, training: bool = False, generator: torch.Generator | None = None) -> Experts:
        """What the encoders make of a batch; computed when first looked at."""

    @abstractmethod
    def conditions(self, rows: Batch, asked: Asked) -> Iterator[Condition]:
        """The posteriors given each of several sets of modalities, in turn; no modality is encoded twice."""

    @abstractmethod
    def decode_one(
        self, name: str, z: Tensor, w: Tensor | None, *, sample: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """Means or draws (..., *shape) of a modality at z (..., d) and its private latent (..., p)."""

    @abstractmethod
    def prior_draws(
        self, n: int, cluster: int | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        """Draws z (n, d) of the prior, or of one of its clusters, and their clusters (n,) if it has any."""

    @abstractmethod
    def from_latents(
        self, z: Tensor, *, sample: bool, generator: torch.Generator | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Rows {name: (n, *shape)} at z (n, d), and their private latents, drawn from their priors."""

    @abstractmethod
    def generate(self, plan: Translation, found: Condition) -> dict[str, Tensor]:
        """Modalities {name: (n, b, *shape)} of the rows of a condition; see `translate`."""

    @abstractmethod
    def weight_blocks(
        self, batch: Batch, n: int, proposal: str, generator: torch.Generator | None, memory: int | None
    ) -> Iterator[Tensor]:
        """Log importance weights of n iid draws in blocks (n_i, b); 0 in rows that observe nothing."""

    @abstractmethod
    def predictive_blocks(
        self, batch: Batch, posterior: Posterior, n: int, generator: torch.Generator | None, memory: int | None
    ) -> Iterator[Tensor]:
        """Log p(x|z) of all that a batch observes at n draws of a posterior, in blocks (n_i, b), p(w|z) drawn from."""

    @abstractmethod
    def assign(self, rows: Batch, *, soft: bool, by_modality: bool) -> Any:
        """See `clusters`."""
