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

from mvkit.core.batch import Batch, check_not_empty, conform
from mvkit.core.decoding import Decodes
from mvkit.core.experts import Experts
from mvkit.core.loss import Loss
from mvkit.core.modality import Modality
from mvkit.core.noise import Generator
from mvkit.core.posterior import Posterior
from mvkit.core.validation import Schema
from mvkit.data.dataset import Rows, as_batch
from mvkit.errors import RequestError
from mvkit.models import clusters, generation, importance_sampling, swapped_modules
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
from mvkit.parts.aggregators.aggregator import Aggregator
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
    seeded_weights: str | None = None  # a digest of those that the seed gave; None: no seed
    left_weights: str | None = None  # likewise of those that a run left, where it is compared
    built_as: swapped_modules.Architecture | None = (
        None  # None: nobody noted it when the model was made
    )

    def __init__(self) -> None:
        super().__init__()
        self.samplers = nn.ModuleDict()  # those that `fit_sampler` fitted, by registered name

    @abstractmethod
    def header(self) -> dict[str, Any]:
        """The model as plain JSON data, all defaults written out."""

    @abstractmethod
    def build_objective(self, objective: ObjectiveLike) -> Objective:
        """An objective by name or spec, checked against this model."""

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

    def sampler_header(self) -> dict[str, Any]:
        """The samplers' part of the header; nothing where none was fitted."""
        specs = [to_dict(sampler.spec) for sampler in self.samplers.values()]
        return {"samplers": specs} if specs else {}

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
        return conform(batch, schema).to(device)

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
            data: rows.
            dim: the axis along which the blocks are put together.
            rows: rows of a block; None: 1,024.
        """
        batch = as_batch(data)
        schema = self.schema
        device = self.like.device
        with evaluation(self), torch.no_grad():
            return by_rows(function, conform(batch, schema, compact=True), device, dim, rows)

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
        """The objective on a batch.

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
        return loss.checked(len(rows.observed), type(chosen), weighted=weighted)

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
    log_weights = importance_sampling.log_weights
    log_likelihood = importance_sampling.log_likelihood
    clusters = clusters.clusters
    changes = swapped_modules.changes
    check_savable = swapped_modules.check_savable


def check_model(model: object, where: str) -> None:
    """Raises RequestError, which names the function, if the argument is not a model."""
    if not isinstance(model, MultimodalModel):
        raise RequestError(
            f"{where}: got {type(model).__name__} as its model; expected a Model or a Stack, "
            "then the rest"
        )
