"""MultimodalModel: what users ask of a model, whatever it is made of.

Axes: n samples asked for, b rows, m modalities, d latent, p private latent, c clusters.
Log-probabilities in nats.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mvkit.core.batch import Batch, conform
from mvkit.core.batch_checks import check_not_empty
from mvkit.core.decoding import Decodes
from mvkit.core.experts import Experts
from mvkit.core.loss import Loss
from mvkit.core.missingness import Missingness
from mvkit.core.modality import Modality
from mvkit.core.noise import Generator
from mvkit.core.posterior import Posterior
from mvkit.core.validation import Schema
from mvkit.data.dataset import Rows, as_batch
from mvkit.errors import RequestError
from mvkit.models import (
    clusters,
    generation,
    importance_sampling,
    sampler_requests,
    swapped_modules,
)
from mvkit.models.far_covariates import warn_if_far
from mvkit.models.generating import GeneratingModel
from mvkit.models.importance_sampling import Sampling
from mvkit.models.inference import (
    ConditioningSets,
    Empty,
    Names,
    by_rows,
    evaluation,
    names_of,
    subsets_of,
)
from mvkit.models.penalties import with_penalties
from mvkit.models.source_blocks import by_rows_of_source, is_source
from mvkit.parts.aggregators.aggregator import Aggregator
from mvkit.parts.conditional_samplers import SamplerSizes
from mvkit.parts.objectives.objective import Objective, ObjectiveLike
from mvkit.registry.spec import to_dict

Answer = TypeVar("Answer")


class MultimodalModel(GeneratingModel):
    """A trained or trainable model of several modalities: `Model`, `Stack`, or one of your own.

    To implement one, set `spec`, `names`, `modalities`, `latent_dim`, `n_clusters`, `prior`,
    `aggregator`, `objective` and `decoding` on a subclass, and write the abstract methods, which
    see conformed batches only; everything that users call then works.
    """

    spec: Any
    names: tuple[str, ...]
    modalities: dict[str, Modality]
    latent_dim: int
    n_clusters: int
    prior_name: str  # as users type it
    objective: Objective
    prior: nn.Module
    aggregator: Aggregator
    decoding: Decodes
    missingness: Missingness | None  # why values are missing; None: at random
    seeded_weights: str | None = None  # a digest of those that the seed gave; None: no seed
    left_weights: str | None = None  # likewise of those that a run left, where it is compared
    built_as: swapped_modules.Architecture | None = (
        None  # None: nobody noted it when the model was made
    )
    training_rows: int | None = None  # noted by `fit` if a module has a penalty
    placed: bool = False  # noted by `fit` where a stage placed the prior

    def __init__(self) -> None:
        super().__init__()
        self.missingness = None
        self.samplers = nn.ModuleDict()  # those that `fit_sampler` fitted, by registered name
        self.fitted_to: dict[str, str] = {}  # digests of the weights that they were fitted to
        self.refiners = nn.ModuleDict()  # those that `fit_refiner` trained, by modality
        self.refined_to: dict[str, str] = {}  # digests of the weights that they were trained on
        self.seen_weights: dict[str, tuple[object, str]] = {}  # those of their last use

    @abstractmethod
    def header(self) -> dict[str, Any]:
        """The model as plain JSON data, all defaults written out."""

    @abstractmethod
    def build_objective(self, objective: ObjectiveLike) -> Objective:
        """An objective by name or spec, checked against this model."""

    def adopt(self, objective: ObjectiveLike, *, seed: int | None = None) -> None:
        """Makes the trained modules of an objective a part of the model, if it has any.

        A model of one's own that does not say how does nothing.
        """

    def adopted_objectives(self) -> list[Objective]:
        """Specs of the objectives whose modules `adopt` has added."""
        return []

    @abstractmethod
    def experts(
        self, batch: Batch, *, training: bool = False, generator: Generator = None
    ) -> Experts:
        """What the encoders make of a batch; computed when first looked at."""

    @abstractmethod
    def prior_draws(
        self,
        n: int,
        cluster: int | None,
        generator: Generator,
        covariates: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Draws z (n, d) of the prior, or of one cluster, and their clusters (n,) if it has
        any.
        """

    @abstractmethod
    def weight_blocks(self, batch: Batch, sampling: Sampling) -> Iterator[Tensor]:
        """Log importance weights in blocks (n_i, b); 0 in rows that observe nothing."""

    @abstractmethod
    def predictive_blocks(
        self, batch: Batch, posterior: Posterior, sampling: Sampling
    ) -> Iterator[Tensor]:
        """Log p(x|z, w) at draws of a posterior and w ~ p(w), in blocks (n_i, b)."""

    @abstractmethod
    def responsibilities(self, rows: Batch) -> Tensor:
        """p(c|z_m) at the mean of each modality's own posterior, (m, b, c)."""

    def prior_context(self, covariates: Mapping[str, Tensor]) -> Tensor | None:
        """What the prior sees of rows with these covariates, (b, c); None: nothing."""
        return None

    def sampler_header(self) -> dict[str, Any]:
        """The samplers' part of the header; nothing where none was fitted."""
        if not self.samplers:
            return {}
        specs = [to_dict(sampler.spec) for sampler in self.samplers.values()]
        fitted_to = {"samplers_fitted_to": self.fitted_to} if self.fitted_to else {}
        return {"samplers": specs, **fitted_to}

    def sampler_sizes(self) -> SamplerSizes:
        """What samplers are told of the model."""
        private = {}
        for name, modality in self.modalities.items():
            if modality.private_dim:
                private[name] = modality.private_dim
        return SamplerSizes(self.latent_dim, self.names, private, self.context_width)

    @property
    def context_width(self) -> int:
        """How many numbers of the covariates decoders see of a row."""
        conditions = self.decoding.conditions
        return 0 if conditions is None else conditions.width("decoders")

    def rows_header(self) -> dict[str, Any]:
        """What training rows left in the header: their number, where a penalty asks for it, and
        that the prior was placed, where it was.
        """
        number = {} if self.training_rows is None else {"training_rows": self.training_rows}
        return {**number, "placed": True} if self.placed else number

    @property
    def like(self) -> Tensor:
        """A tensor of the model's dtype and device."""
        floating = (parameter for parameter in self.parameters() if parameter.is_floating_point())
        return next(floating, torch.zeros(()))

    @property
    def layout(self) -> Schema:
        """The old name of `schema`."""
        warnings.warn("model.layout is now model.schema", DeprecationWarning, stacklevel=2)
        return self.schema

    def conform(self, data: Rows) -> Batch:
        """Data as a checked batch on the model's device; see `mvkit.core.batch.conform`."""
        batch = data if isinstance(data, Batch) else as_batch(data)
        schema = self.schema
        device = self.like.device
        rows = conform(batch, schema)
        warn_if_far(self.decoding.conditions, rows, conformed=batch.schema is not None)
        return rows.to(device)

    def in_blocks(
        self,
        function: Callable[[Batch], Answer],
        data: Rows,
        *,
        dim: int = 0,
        rows: int | None = None,
    ) -> Answer:
        """Evaluates a function of batches block by block, in evaluation mode, without gradients.

        Args:
            function: from a conformed batch to a tensor, or a mapping of tensors, with the rows on
                axis `dim`.
            data: rows; of a source, a block at a time is gathered.
            dim: the axis along which the blocks are put together.
            rows: rows of a block; None: 1,024.
        """
        device = self.like.device
        with evaluation(self), torch.no_grad():
            if is_source(data):
                return by_rows_of_source(function, data, self._compact, device, dim, rows)
            return by_rows(function, self._compact(as_batch(data)), device, dim, rows)

    def _compact(self, batch: Batch, *, looked_at: bool = False) -> Batch:
        """Rows conformed where they are; `looked_at`: nothing is said about their covariates."""
        rows = conform(batch, self.schema, compact=True)
        known = looked_at or batch.schema is not None
        warn_if_far(self.decoding.conditions, rows, conformed=known)
        return rows

    def posterior_given(
        self,
        rows: Batch,
        given: tuple[str, ...],
        empty: str,
        generator: Generator = None,
        *,
        inference: bool = False,
    ) -> Posterior:
        """The posterior of a conformed batch given one set of modalities."""
        asked = ConditioningSets([given], empty, inference, generator)
        return next(self.conditional_posteriors(rows, asked)).posterior

    def loss(
        self, batch: Rows, *, objective: ObjectiveLike | None = None, generator: Generator = None
    ) -> Loss:
        """The objective on a batch, and the penalties of the model's modules.

        What is meant for all rows together is divided by `training_rows`, which `fit` notes, and
        without them by the rows of the batch.

        Args:
            batch: rows that observe one modality at least.
            objective: another objective than the model's own.
            generator: source of randomness.

        Returns:
            loss (), bound (b,) and metrics.

        Raises:
            DataError: a row with nothing observed, or values that cannot be.
        """
        rows = self.conform(batch)
        check_not_empty(rows)
        drawn = [name for name, modality in self.modalities.items() if modality.draws_bits]
        if drawn and self.training:
            rows = generation.with_bits(rows, drawn, generator)
        chosen = self.objective if objective is None else self.build_objective(objective)
        experts = self.experts(rows, training=self.training, generator=generator)
        # an objective takes the kind of model that it was built for
        loss = chosen.forward(self, rows, experts)  # type: ignore[arg-type]
        weighted = rows.row_weight is not None
        b = len(rows.observed)
        loss = loss.checked(b, type(chosen), weighted=weighted)
        return with_penalties(self, loss, self.training_rows or max(b, 1))

    forward = loss  # so that wrappers such as DistributedDataParallel see it

    def posterior(self, batch: Rows, given: Names = None, *, empty: Empty = "error") -> Posterior:
        """q(z|x_given), the mixture that bounds and likelihoods use.

        Args:
            batch: rows.
            given: modalities to look at; None: all that each row has; (): none, which is the
                prior.
            empty: rows with none of them: `error`, or the `prior`.

        Returns:
            rsample(n) (n, b, d), log_prob, mean, log_weight, evidence; mostly a `Mixture`, with
            loc and scale too.
        """
        names = names_of(given, self.names)
        with evaluation(self):
            return self.posterior_given(self.conform(batch), names, empty)

    def encode(self, batch: Rows, given: Names = None, *, empty: Empty = "error") -> Tensor:
        """Posterior mean of each row from whatever it has, or from `given`, (b, d).

        The aggregator says which posterior: mopoe takes the product of what is given, so that this
        need not equal `posterior().mean`. While torch.export traces it, values are not checked.
        """
        names = names_of(given, self.names)
        if torch.compiler.is_exporting():
            return self.exported_means(as_batch(batch), names)

        def means(rows: Batch) -> Tensor:
            return self.posterior_given(rows, names, empty, inference=True).mean

        return self.in_blocks(means, batch)

    def exported_means(self, batch: Batch, names: tuple[str, ...]) -> Tensor:
        """What `encode` returns while torch.export traces it, (b, d)."""
        raise RequestError(
            f"encode: a {type(self).__name__} cannot be exported; expected a Model; export the "
            "encoders of its levels"
        )

    def encode_subsets(
        self,
        batch: Rows,
        subsets: Iterable[Iterable[str] | str] | None = None,
        *,
        empty: Empty = "error",
    ) -> dict[tuple[str, ...], Tensor]:
        """Posterior means given each of several sets of modalities, {set: (b, d)}.

        No modality is encoded twice.

        Args:
            batch: rows.
            subsets: sets of modalities; None: all non-empty ones, of which there are 2^m - 1.
            empty: rows with none of a set: `error`, or the mean of the `prior`.

        Example:
            >>> import torch, mvkit
            >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=4)
            >>> list(model.encode_subsets({"a": torch.zeros(5, 3), "b": torch.zeros(5, 2)}))
            [('a',), ('b',), ('a', 'b')]
        """
        sets = subsets_of(subsets, self.names)

        def means(rows: Batch) -> dict[tuple[str, ...], Tensor]:
            asked = ConditioningSets(sets, empty, inference=True)
            conditions = self.conditional_posteriors(rows, asked)
            return {
                names: condition.posterior.mean
                for names, condition in zip(sets, conditions, strict=True)
            }

        return self.in_blocks(means, batch)

    def private(self, batch: Rows) -> dict[str, Tensor]:
        """Means of the private latents, {name: (b, p)}, zeros where unobserved."""

        def means(rows: Batch) -> dict[str, Tensor]:
            private = {}
            for name, (loc, _) in self.experts(rows).private.items():
                observed = rows.observed[:, [self.names.index(name)]]
                private[name] = torch.where(observed, loc, 0.0)
            return private

        return self.in_blocks(means, batch)

    sample = generation.sample
    conditional_sampler = sampler_requests.conditional_sampler
    sampled_given = sampler_requests.sampled_given
    log_weights = importance_sampling.log_weights
    log_likelihood = importance_sampling.log_likelihood
    clusters = clusters.clusters
    changes = swapped_modules.changes
    check_savable = swapped_modules.check_savable


class SeveralModels(nn.Module):
    """Several models in one, which is no model: functions of one model say so."""

    @property
    def members(self) -> tuple[MultimodalModel, ...]:
        """The models."""
        raise NotImplementedError


def check_model(model: object, where: str) -> None:
    """Raises RequestError, which names the function, if the argument is not a model."""
    if isinstance(model, SeveralModels):
        raise RequestError(
            f"{where}: got {type(model).__name__} as its model, which is {len(model.members)} of "
            "them, each with latents and weights of its own; expected one; take one of its "
            ".members"
        )
    if not isinstance(model, MultimodalModel):
        raise RequestError(
            f"{where}: got {type(model).__name__} as its model; expected a Model or a Stack, "
            "then the rest"
        )
