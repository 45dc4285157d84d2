"""LatentModel: what objectives, samplers and estimators ask of the model that they work on.

Axes: n samples, b rows, m modalities, d latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from mvkit.core.batch import Batch
from mvkit.core.decoding import Decoding
from mvkit.core.experts import Experts
from mvkit.core.missingness import Missingness
from mvkit.core.modality import Modality
from mvkit.core.noise import Generator
from mvkit.core.posterior import Posterior
from mvkit.core.terms import Draw, Reconstruct, Terms, Want
from mvkit.parts.aggregators.aggregator import Aggregator


class LatentModel(Protocol):
    """A model with encoders, an aggregator, a prior and decoders; `mvkit.Model` is one.

    Example:
        >>> import mvkit
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, aggregator="moe", seed=0)
        >>> model.names, model.latent_dim, model.bound_name
        (('a', 'b'), 2, 'bound')
    """

    names: tuple[str, ...]
    modalities: dict[str, Modality]
    latent_dim: int
    n_clusters: int
    prior: nn.Module
    refiners: nn.ModuleDict  # by modality
    decoding: Decoding
    missingness: Missingness | None  # why values are missing; None: at random
    order: Tensor  # of the modalities, (m,), whatever the order of their declaration

    @property
    def aggregator(self) -> Aggregator:
        """What fuses the unimodal experts."""

    @property
    def like(self) -> Tensor:
        """A tensor of the model's dtype and device."""

    @property
    def bound_name(self) -> str:
        """The metric's name of what an objective reports: `bound`, if it is one."""

    @property
    def private_betas(self) -> Tensor | None:
        """Factors of the private KLs, (m,); None if all are 1."""

    def trained(self, objective: Any) -> Any:
        """The modules of an objective that has trained parameters, as it made them."""

    def likelihood_weights(self, extra: Mapping[str, float] | None = None) -> Tensor | None:
        """Factors λ of the log-likelihoods, times `extra`, (m,); None if all are 1."""

    def experts(
        self,
        batch: Batch,
        *,
        training: bool = False,
        context: Tensor | None = None,
        generator: Generator = None,
    ) -> Experts:
        """What the encoders make of a conformed batch; computed when first looked at."""

    def joint_posterior(self, batch: Batch, experts: Experts) -> Posterior:
        """The aggregator's posterior q(z|x_O)."""

    def prior_at(
        self,
        experts: Experts | None = None,
        posterior: Posterior | None = None,
        context: Tensor | None = None,
    ) -> Posterior:
        """p(z): of rows whose experts and posterior are given, or whose `prior_context`, if it
        depends on them.
        """

    def prior_context(self, covariates: Mapping[str, Tensor]) -> Tensor | None:
        """What the prior sees of rows with these covariates, (b, c); None: nothing."""

    def prior_draws(
        self,
        n: int,
        cluster: int | None,
        generator: Generator,
        covariates: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Draws z (n, d) of the prior, or of one cluster, and their clusters (n,) if any."""

    def terms(
        self,
        batch: Batch,
        n: int = 1,
        *,
        experts: Experts | None = None,
        posterior: Posterior | None = None,
        draw: Draw = "iid",
        reconstruct: Reconstruct = "all",
        want: Want = "kl",
        stop_density: bool = False,
        private_from: str | None = None,
    ) -> Terms:
        """Every log-density of a batch at n draws of the posterior; see `Model.terms`."""
