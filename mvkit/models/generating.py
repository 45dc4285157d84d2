"""What models generate: modalities at latents, and from one another.

Axes: n samples, b rows, d latent, p private latent.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, TypeVar, cast

import attrs
import torch
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.asked_by import asker
from mvkit.core.batch import Batch
from mvkit.core.decoding import Decodes
from mvkit.core.missingness import Missingness
from mvkit.core.modality import Modality
from mvkit.core.noise import Generator
from mvkit.core.raw_values import as_tensor
from mvkit.core.row_context import NOTHING_GIVEN, RowContext
from mvkit.core.validation import Schema
from mvkit.data.dataset import Rows
from mvkit.errors import RequestError, ShapeError, bad_option, suggest
from mvkit.models.asked_rows import asked_row_context
from mvkit.models.far_covariates import far_numbers
from mvkit.models.generation import GenerationOptions, Units
from mvkit.models.inference import (
    ConditionalLatents,
    ConditionalPosterior,
    ConditioningSets,
    Empty,
    Names,
    evaluation,
    names_of,
)
from mvkit.models.refiners import HasRefiners, Wanted, asked_refiners
from mvkit.parts.conditional_samplers import ConditionalSampler

Answer = TypeVar("Answer")


class GeneratingModel(nn.Module, ABC):
    """A model that decodes latents, and generates modalities from one another."""

    names: tuple[str, ...]
    modalities: dict[str, Modality]
    latent_dim: int
    decoding: Decodes
    missingness: Missingness | None

    @property
    @abstractmethod
    def schema(self) -> Schema:
        """What the model expects of a batch."""

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """A tensor of the model's dtype and device."""

    @abstractmethod
    def in_blocks(
        self,
        function: Callable[[Batch], Answer],
        data: Rows,
        *,
        dim: int = 0,
        rows: int | None = None,
    ) -> Answer:
        """Evaluates a function of batches block by block."""

    @abstractmethod
    def conditional_posteriors(
        self, rows: Batch, asked: ConditioningSets
    ) -> Iterator[ConditionalPosterior]:
        """The posteriors given each of several sets of modalities, in turn."""

    @abstractmethod
    def generate(
        self, options: GenerationOptions, condition: ConditionalLatents
    ) -> dict[str, Tensor]:
        """Modalities {name: (n, b, *shape)} of the rows of a conditional posterior or sampler."""

    @abstractmethod
    def conditional_sampler(self, name: str, where: str) -> ConditionalSampler:
        """A fitted sampler that can be asked for latents given what rows have."""

    @abstractmethod
    def sampled_given(
        self, rows: Batch, asked: ConditioningSets, sampler: ConditionalSampler
    ) -> ConditionalLatents:
        """Where a sampler draws the latents of rows from, given a set of modalities."""

    def row_context(
        self,
        where: str,
        covariates: Mapping[str, object] | None,
        exposure: Mapping[str, object] | None,
        shape: tuple[int, ...] | None,
        *,
        partly: bool = False,
    ) -> RowContext:
        """What a caller states of rows that are generated; see `asked_row_context`."""
        if not covariates and not exposure and (shape is None or self.decoding.conditions is None):
            return NOTHING_GIVEN
        rows = asked_row_context(
            self.schema, self.like, where, covariates, exposure, shape, partly=partly
        )
        conditions = self.decoding.conditions
        if conditions is not None:
            for sentence in far_numbers(conditions, rows.covariates, "value"):
                warnings.warn(f"{where}: {sentence}", stacklevel=3)
        return rows

    def in_units(self, data: dict[str, Tensor], units: Units) -> dict[str, Tensor]:
        """Values {name: (..., *shape)} of the model in the units asked for."""
        if units not in ("data", "model"):
            raise bad_option("units", units, "data", "model")
        restored = dict(data)
        for name, x in data.items():
            if units == "data" and self.modalities[name].transform:
                restored[name] = self.modalities[name].restore(x)
        return restored

    def decode(
        self,
        z: Tensor,
        private: Mapping[str, Tensor] | None = None,
        *,
        covariates: Mapping[str, object] | None = None,
        exposure: Mapping[str, object] | None = None,
        background: bool = True,
        units: Units = "data",
    ) -> dict[str, Tensor]:
        """Decoder means {name: (..., *shape)} at latents z (..., d) and private latents {name:
        (..., p)}.

        Private latents that are not given are 0, the mean of their prior. Gradients flow only to
        latents that ask for them.

        Args:
            z: shared latents, (..., d).
            private: private latents, {name: (..., p)}.
            covariates: what the model is conditioned on, {name: one value, or (...)}.
            exposure: of modalities that have one, likewise; not given: the median of training.
            background: see `translate`.
            units: `data`, undoing the modalities' transforms, in the shape of the user's data; or
                `model`.
        """
        z = self._latent(z, "z", self.latent_dim)
        given = {}
        for name, w in (private or {}).items():
            p = self.modality(name).private_dim
            if not p:
                raise RequestError(
                    f"decode: modality {name!r} has no private latent; leave it out"
                )
            given[name] = self._latent(w, f"private latent of {name!r}", p)
        wanted = any(latent.requires_grad for latent in (z, *given.values()))
        with evaluation(self), torch.set_grad_enabled(torch.is_grad_enabled() and wanted):
            rows = self.row_context("decode", covariates, exposure, tuple(z.shape[:-1]))
            rows = attrs.evolve(rows, background=background)
            data = {}
            for name in self.names:
                data[name] = self.decoding.decode(name, z, given.get(name), rows=rows)
            return self.in_units(data, units)

    def _latent(self, value: Tensor, name: str, width: int) -> Tensor:
        """A latent that `decode` was given, checked."""
        latent = as_tensor(value, f"decode: {name}")
        if latent.shape[-1:] != (width,):
            raise ShapeError(
                f"decode: {name} has shape {tuple(latent.shape)}; expected (..., {width})"
            )
        return latent.to(self.like.dtype)

    def modality(self, name: str) -> Modality:
        """The modality of a name, or an error that suggests one."""
        if name not in self.modalities:
            raise RequestError(f"unknown modality {name!r}; {suggest(str(name), self.names)}")
        return self.modalities[name]

    def translate(
        self,
        batch: Rows,
        to: Names = None,
        given: Names = None,
        n: int = 1,
        *,
        latent: Literal["draw", "mean"] = "draw",
        sample: bool = False,
        refine: Wanted = False,
        private_source: Literal["prior", "cross"] = "prior",
        empty: Empty = "error",
        covariates: Mapping[str, object] | None = None,
        exposure: Mapping[str, object] | None = None,
        background: bool = True,
        sampler: str | None = None,
        units: Units = "data",
        generator: Generator = None,
    ) -> dict[str, Tensor]:
        """Modalities `to` generated from those `given`, {name: (n, b, *shape)}: imputation.

        In a model that explains what is missing, `Model(missingness=…)`, missing values of what is
        given are draws of p(x_mis|x_O, s), picked from ten times as many by their importance
        weights; with `latent="mean"` they are the weighted mean of all of these. Modalities that
        are not given say nothing by being missing.

        Args:
            batch: rows.
            to: wanted modalities; None: all.
            given: modalities to look at; None: all that each row has.
            n: draws of z.
            latent: `draw` latents, or take their `mean`.
            sample: draw from the likelihood as well, instead of taking its mean.
            refine: draw from refiners that `mvkit.fit_refiner` trained, in place of means or draws
                of the likelihood: all modalities of `to`, or those named.
            private_source: private latents of what was not given: from the `prior` p(w), or
                `cross`, from r_m.
            empty: rows with none of what is given: `error`, or generated from the `prior`.
            covariates: generated as if all rows had these, {name: value}; encoders see the rows'
                own.
            exposure: likewise, of modalities that have one; not given: what rows tell of the
                modalities given, the median of training of others.
            background: whether means hold what a likelihood knows as background, such as that of
                `foreground_background`.
            sampler: latents from a conditional sampler that `mvkit.fit_sampler` fitted, given what
                rows have; rows with nothing are then drawn as `sample` does it. None: from the
                posterior.
            units: see `decode`.
            generator: gives the seed; one of the CPU gives the same draws on every device.
        """
        names = names_of(to, self.names)
        known = names_of(given, self.names)
        if latent == "draw" or sample or refine or sampler or self.missingness is not None:
            generator = noise.by_row(generator, self.like.device)
        for name in names:
            self.modality(name)
        where = asker("translate")
        asked_rows = self.row_context(where, covariates, exposure, None)
        options = GenerationOptions(
            names,
            n,
            latent,
            sample,
            private_source,
            generator,
            asked_rows.covariates,
            asked_rows.exposure,
            asked_refiners(cast(HasRefiners, self), refine, names, where),
            background,
            where,
        )
        asked = ConditioningSets([known], empty, True, generator, asked_rows.covariates)
        fitted = None if sampler is None else self.conditional_sampler(sampler, where)

        def generate(rows: Batch) -> dict[str, Tensor]:
            noise.next_rows(generator, len(rows), options.n)
            condition: ConditionalLatents
            if fitted is None:
                condition = next(self.conditional_posteriors(rows, asked))
            else:
                condition = self.sampled_given(rows, asked, fitted)
            return self.in_units(self.generate(options, condition), units)

        return self.in_blocks(generate, batch, dim=1)
