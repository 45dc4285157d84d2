"""Samplers that know a condition: what they are told of rows, and what they return.

Axes: n draws, b rows, m modalities, d latent, p private latent, c numbers of the covariates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core import noise
from mvkit.core.family import Family
from mvkit.core.noise import Generator

LatentDraws = tuple[Tensor, Mapping[str, Tensor]]  # z, and private latents by modality
DRAWS_OF_MEAN = 100  # over which the mean of a sampler is taken that has none in closed form


@attrs.frozen(eq=False)
class SamplerSizes:
    """What the shapes of a sampler's state follow from, beside its spec.

    Args:
        latent: width d of the shared latent.
        names: the modalities in the model's order.
        private: widths p of the private latents, of the modalities that have one.
        context: how many numbers of the covariates a row has, c.
    """

    latent: int
    names: tuple[str, ...]
    private: Mapping[str, int]
    context: int = 0

    def same_latents(self, other: SamplerSizes) -> bool:
        """Whether another model has the same modalities in the same order, and as wide latents."""
        if self.names != other.names or self.latent != other.latent:
            return False
        return dict(self.private) == dict(other.private)

    @property
    def features(self) -> int:
        """How many numbers `Condition.features` has of a row."""
        private = sum(self.private.values())
        return len(self.names) * (2 * self.latent + 1) + 2 * private + self.context


@attrs.frozen(eq=False)
class Code:
    """What one modality alone says of a latent.

    Args:
        loc: means, (b, d), zeros in rows that do not observe the modality.
        scale: scales, (b, d), ones there: those of the family, or standard deviations of a
            posterior that has several components.
    """

    loc: Tensor
    scale: Tensor

    def where(self, known: Tensor) -> Code:
        """The code in the rows `known` (b,) bool, zeros and ones in the rest."""
        known = rearrange(known, "b -> b 1")
        return Code(torch.where(known, self.loc, 0.0), torch.where(known, self.scale, 1.0))

    def take(self, index: Tensor) -> Code:
        """The code of the rows at `index` (n,)."""
        return Code(self.loc[index], self.scale[index])


@attrs.frozen(eq=False)
class Condition:
    """What is known of rows whose latents are asked for.

    Args:
        sizes: the model's.
        observed: what each row has, among what was given, (b, m) bool.
        codes: mean and scale of the posterior q(z|x_m) given each modality alone, {name: (b, d)}.
        private: the posteriors q(w_m|x_m) of the private latents, {name: (b, p)}.
        family: of the private latents; None: there are none.
        context: what decoders see of the covariates, (b, c); None: nothing.
    """

    sizes: SamplerSizes
    observed: Tensor
    codes: Mapping[str, Code]
    private: Mapping[str, Code]
    family: Family | None = None
    context: Tensor | None = None

    @classmethod
    def nothing(
        cls,
        sizes: SamplerSizes,
        b: int,
        *,
        like: Tensor,
        family: Family | None = None,
        context: Tensor | None = None,
    ) -> Condition:
        """The condition of b rows of which nothing is known but their covariates.

        Args:
            sizes: the model's.
            b: rows.
            like: a tensor of the model's dtype and device.
            family: of the private latents.
            context: see `Condition`.
        """
        observed = torch.zeros(b, len(sizes.names), dtype=torch.bool, device=like.device)
        zeros = like.new_zeros(b, sizes.latent)
        codes = dict.fromkeys(sizes.names, Code(zeros, torch.ones_like(zeros)))
        private = {}
        for name, p in sizes.private.items():
            zeros = like.new_zeros(b, p)
            private[name] = Code(zeros, torch.ones_like(zeros))
        return cls(sizes, observed, codes, private, family, context)

    def __len__(self) -> int:
        return len(self.observed)

    def observes(self, name: str) -> Tensor:
        """Which rows have a modality, (b,) bool."""
        return self.observed[:, self.sizes.names.index(name)]

    def take(self, index: Tensor) -> Condition:
        """The condition of the rows at `index` (n,)."""
        return attrs.evolve(
            self,
            observed=self.observed[index],
            codes={name: code.take(index) for name, code in self.codes.items()},
            private={name: code.take(index) for name, code in self.private.items()},
            context=None if self.context is None else self.context[index],
        )

    def keep(self, kept: Tensor) -> Condition:
        """The condition with only what `kept` (b, m) bool leaves of it."""
        observed = self.observed & kept
        columns = dict(zip(self.sizes.names, observed.unbind(1), strict=True))
        return attrs.evolve(
            self,
            observed=observed,
            codes={name: code.where(columns[name]) for name, code in self.codes.items()},
            private={name: code.where(columns[name]) for name, code in self.private.items()},
        )

    def features(self) -> Tensor:
        """All of it as numbers that a network can take, (b, m (2 d + 1) + Σ 2 p + c).

        Of each modality whether it is there, then means and log-scales, zeros where it is not;
        then the covariates.
        """
        columns = [self.observed.to(self._like.dtype)]
        for code in (*self.codes.values(), *self.private.values()):
            columns += [code.loc, code.scale.log()]
        if self.context is not None:
            columns.append(self.context)
        return torch.where(self.present(), torch.cat(columns, 1), 0.0)

    def present(self) -> Tensor:
        """Which of the `features` tell something of a row, (b, the same) bool."""
        columns = [torch.ones_like(self.observed)]
        for codes in (self.codes, self.private):
            for name, code in codes.items():
                known = rearrange(self.observes(name), "b -> b 1")
                columns.append(known.expand(-1, 2 * code.loc.shape[1]))
        if self.context is not None:
            columns.append(torch.ones_like(self.context, dtype=torch.bool))
        return torch.cat(columns, 1)

    @property
    def _like(self) -> Tensor:
        return next(iter(self.codes.values())).loc

    def private_draws(self, n: int, generator: Generator = None) -> dict[str, Tensor]:
        """Draws of the posteriors q(w_m|x_m), {name: (n, b, p)}; of the prior's standard form in
        rows that do not have the modality.
        """
        draws = {}
        for name, code in self.private.items():
            maker = torch.randn if self.family is None else self.family.noise
            shape = (n, *code.loc.shape)
            eps = noise.draw(f"w/{name}", shape, code.loc, generator=generator, sampler=maker)
            draws[name] = code.loc + code.scale * eps
        return draws


@attrs.frozen(eq=False)
class FittingRows:
    """What a sampler is fitted to: latents of rows, and what each of the rows has.

    Args:
        z: a draw of each row's posterior, given all that the row has, (b, d).
        private: a draw of each private posterior, {name: (b, p)}; without meaning in rows that do
            not have the modality (see `Condition.observes`).
        condition: what each row has.
        weight: how much each row counts, (b,), above 0, of which only the proportions matter;
            None: all alike. Of samplers with `weighs_rows` only.
    """

    z: Tensor
    private: Mapping[str, Tensor]
    condition: Condition
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.z)


class ConditionalSampler(ABC):
    """Draws latents of rows given whatever each of them has: p(z, w | codes of what is observed).

    One fit serves every subset of the modalities, none of them included, which is what
    `model.sample(n, sampler=…)` asks for. What a sampler is told of a modality is its code, the
    mean and the scale of the posterior that it leads to alone, never the data.

    To implement one, write a spec whose `build(width, sizes)` returns an `nn.Module` with `fit`
    and `sample`; `mean` has a default. Its state is in buffers and parameters whose shapes depend
    on the spec and the `SamplerSizes` alone, so that files can hold it. Invariants:

    * rows of a fit have gaps: `rows.condition.observed` says what is there, and codes and private
      latents of what is not are without meaning. To learn all subsets, a network is trained on
      random ones of what a row has (`condition.keep`).
    * draws of a row depend on its own condition alone; what stands in unobserved places changes no
      number; nothing is NaN.
    * randomness comes from `mvkit.core.noise` and the generator given.
    * `sample` returns private latents of the modalities that the sampler models. These are then
      decoded in every row; return draws of `condition.private_draws` in rows that observe the
      modality, or something better. Of the other modalities, a row that has the modality keeps the
      draw of its posterior, and one that has not draws from the prior, as without a sampler.

    `weighs_rows` says that `fit` heeds `rows.weight`: others are refused for rows with weights.
    One that does not look at `condition.context` sets `knows_covariates` to False: it is then
    refused for models whose prior depends on covariates.
    One that models the private latents of models without a shared one, whose d is 0, sets
    `models_private_alone`; others are refused for such models.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, aggregator="poe", seed=0)
        >>> rows = {"a": torch.randn(50, 3), "b": torch.randn(50, 2)}
        >>> spec = {"name": "gmm", "components": 2, "conditional": True}
        >>> _ = mvkit.fit_sampler(model, rows, spec)
        >>> model.translate({"a": rows["a"]}, to="b", sampler="gmm")["b"].shape
        torch.Size([1, 50, 2])
    """

    spec: object
    weighs_rows: bool = False
    knows_covariates: bool = True
    models_private_alone: bool = False

    @abstractmethod
    def fit(self, rows: FittingRows, seed: int) -> None:
        """Fits to latents of rows and what they have."""

    @abstractmethod
    def sample(self, condition: Condition, n: int, generator: Generator) -> LatentDraws:
        """Draws z (n, b, d) and private latents {name: (n, b, p)} of the rows of a condition."""

    def mean(self, condition: Condition, generator: Generator) -> LatentDraws:
        """Means of z (b, d) and of private latents {name: (b, p)}: by default, over 100 draws."""
        z, private = self.sample(condition, DRAWS_OF_MEAN, generator)
        return z.mean(0), {name: w.mean(0) for name, w in private.items()}


def patterns_of(observed: Tensor) -> list[tuple[tuple[bool, ...], Tensor]]:
    """Patterns of observed modalities (b, m) bool that occur, each with the rows (n,) that show
    it.
    """
    if not len(observed):
        return []
    shown, which = observed.unique(dim=0, return_inverse=True)
    patterns = []
    for i, pattern in enumerate(shown.tolist()):
        patterns.append((tuple(pattern), (which == i).nonzero()[:, 0]))
    return patterns
