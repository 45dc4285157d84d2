"""Inference: posteriors given any set of modalities, and questions answered block by block.

Axes: b rows, m modalities.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import numbers
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

import attrs
import torch
from einops import rearrange
from torch import Tensor, nn

from mvkit.core.batch import Batch
from mvkit.core.blocks import block_slices
from mvkit.core.experts import Experts
from mvkit.core.mixture import Mixture
from mvkit.core.noise import Generator
from mvkit.core.posterior import Posterior
from mvkit.core.raw_values import nothing_observed
from mvkit.core.validation import Schema
from mvkit.errors import NothingObserved, RequestError, bad_option, suggest
from mvkit.parts.conditional_samplers import LatentDraws
from mvkit.parts.latent_model import LatentModel
from mvkit.parts.priors import Prior

ROWS = 1024  # rows that are encoded or decoded at a time
ANY = "any"  # see `ConditioningSets`
Answer = TypeVar("Answer")
Names = Iterable[str] | str | None
Empty = Literal["error", "prior"]


class Evaluable(Protocol):
    """Modules that have an evaluation mode: any `nn.Module`."""

    def modules(self) -> Iterator[nn.Module]:
        """All modules inside."""
        ...

    def eval(self) -> object:
        """Goes into evaluation mode."""
        ...


_MODES = threading.Lock()  # held while a model changes its mode
# of models in `evaluation`: how many threads and calls are inside, and which modules were training
_asked: WeakKeyDictionary[Evaluable, tuple[int, list[nn.Module]]] = WeakKeyDictionary()


@contextlib.contextmanager
def evaluation(model: Evaluable) -> Iterator[None]:
    """Evaluation mode inside; every module's own mode again after the last of those inside."""
    with _MODES:
        inside, in_training = _asked.get(model, (0, []))
        modules = [module for module in model.modules() if module.training]
        if modules:
            model.eval()
        _asked[model] = (inside + 1, in_training + modules)
    try:
        yield
    finally:
        with _MODES:
            inside, in_training = _asked.pop(model)
            if inside > 1:
                _asked[model] = (inside - 1, in_training)
            else:
                for module in in_training:
                    module.training = True


def by_rows(
    function: Callable[[Batch], Answer],
    batch: Batch,
    device: torch.device,
    dim: int = 0,
    rows: int | None = None,
) -> Answer:
    """A function on blocks of rows, moved to a device one by one, its tensors put together along
    `dim`.
    """
    size = ROWS if rows is None else rows
    if len(batch) <= size:
        return function(batch.to(device).expanded())
    pieces = []
    for rows_of_block in block_slices(len(batch), size):
        block = batch.take(rows_of_block).to(device).expanded()
        try:
            pieces.append(function(block))
        except NothingObserved as error:
            row = error.row + rows_of_block.start
            raise NothingObserved(row, error.given, error.called) from None
    return joined(pieces, dim)


def joined(pieces: Sequence[Answer], dim: int) -> Answer:
    """Tensors, or mappings of them, put together along an axis."""
    first = pieces[0]
    if not isinstance(first, dict):
        return cast(Answer, torch.cat(cast(list[Tensor], pieces), dim))
    mappings = cast(list[dict[object, Tensor]], pieces)
    answer = {key: torch.cat([piece[key] for piece in mappings], dim) for key in first}
    return cast(Answer, answer)


def check_count(n: object) -> int:
    """A number of draws, checked."""
    if isinstance(n, bool) or not isinstance(n, numbers.Integral) or n < 1:
        raise RequestError(f"n: got {n!r}; expected a whole number of at least 1")
    return int(n)


def subsets_of(subsets: Iterable[Names] | None, every: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Sets of modalities, each as a tuple of names; None: all non-empty ones, the small first."""
    if isinstance(subsets, str):
        raise RequestError(
            f"subsets: got {subsets!r}; expected a list of sets of modalities, such as "
            f"[[{subsets!r}]]"
        )
    if subsets is not None:
        return [names_of(names, every) for names in subsets]
    sizes = range(1, len(every) + 1)
    return list(
        itertools.chain.from_iterable(itertools.combinations(every, size) for size in sizes)
    )


def names_of(given: Names, every: tuple[str, ...]) -> tuple[str, ...]:
    """The modalities that `given`, `of` or `to` mean: a string is one name, None is all."""
    if given is None:
        return every
    if isinstance(given, str):
        return (given,)
    return tuple(given)


@attrs.frozen(eq=False)
class ConditioningSets:
    """Sets of modalities, given each of which a posterior is asked for.

    Args:
        sets: names of modalities.
        empty: rows with none of a set: `error`, or the `prior`; from within the package also
            `any`: whatever the aggregator says of them, which nobody looks at.
        inference: whether to return the posteriors that `encode` and `translate` use.
        generator: source of randomness.
        covariates: what a prior that depends on covariates sees instead of the rows' own.
    """

    sets: Sequence[tuple[str, ...]]
    empty: str
    inference: bool = False
    generator: Generator = None
    covariates: Mapping[str, Tensor] = attrs.field(factory=dict)

    def check(self, known: Sequence[str]) -> None:
        """Raises RequestError for a modality that is not known, or an option that cannot be."""
        for name in itertools.chain.from_iterable(self.sets):
            if name not in known:
                raise RequestError(
                    f"given: unknown modality {name!r}; {suggest(str(name), known)}"
                )
        if self.empty not in ("error", "prior", ANY):
            raise bad_option("empty", self.empty, "error", "prior")

    def restrict(self, rows: Batch) -> Batch:
        """The batch restricted to modalities that occur in any of the sets."""
        return rows.hide(itertools.chain.from_iterable(self.sets))


class ConditionalLatents(Protocol):
    """Rows with only the given modalities left, and where their latents come from."""

    @property
    def batch(self) -> Batch:
        """The rows."""
        ...

    @property
    def experts(self) -> Experts:
        """What the encoders make of them."""
        ...

    def draw(self, n: int, generator: Generator) -> LatentDraws:
        """Draws of z (n, b, d), and of private latents if they come with it, {name: (n, b, p)}."""
        ...

    def mean(self, generator: Generator) -> LatentDraws:
        """Means of the same, (b, d) and {name: (b, p)}."""
        ...


@attrs.frozen(eq=False)
class ConditionalPosterior:
    """A batch with only the given modalities left, its experts, and the posterior they lead to."""

    batch: Batch
    experts: Experts
    posterior: Posterior

    def draw(self, n: int, generator: Generator) -> LatentDraws:
        """Draws of z, (n, b, d); private latents are drawn by themselves."""
        z = self.posterior.draw(n, "iid", generator).z
        return rearrange(z, "n 1 b d -> n b d"), {}

    def mean(self, generator: Generator) -> LatentDraws:
        """Means of z, (b, d)."""
        return self.posterior.mean, {}


def conditional_posteriors(
    model: LatentModel, rows: Batch, asked: ConditioningSets
) -> Iterator[ConditionalPosterior]:
    """The posteriors given each of several sets of modalities, in turn; no modality is encoded
    twice.

    Raises:
        RequestError: an unknown modality.
        NothingObserved: a row with none of a set, with `empty="error"`.
    """
    asked.check(model.names)
    rows = asked.restrict(rows)
    experts = model.experts(rows, generator=asked.generator)
    aggregator = model.aggregator
    fuse = aggregator.inference if asked.inference else aggregator.posterior
    for names in asked.sets:
        batch = rows.hide(names)
        own = experts if batch is rows else experts.given(batch)
        posterior = _posterior_given(model, own, names, asked, fuse)
        yield ConditionalPosterior(batch, own, posterior)


def _posterior_given(
    model: LatentModel,
    experts: Experts,
    names: tuple[str, ...],
    asked: ConditioningSets,
    fuse: Callable[[Experts, Batch], Posterior],
) -> Posterior:
    """The posterior of a batch with nothing but `names`; the prior in rows without any, if that is
    asked for.
    """
    batch = experts.batch
    if not names:
        return _prior_of(model, batch, asked)
    known = batch.observed.any(1)
    posterior = fuse(experts, batch)
    if asked.empty == ANY or known.all():
        return posterior
    if asked.empty == "error":
        raise nothing_observed(~known, batch.extra.get("id"), names)
    return posterior.where(known, _prior_of(model, batch, asked))


def _prior_of(model: LatentModel, batch: Batch, asked: ConditioningSets) -> Posterior:
    """The prior as the posterior of rows, which may depend on covariates: those asked for, else
    the rows' own.
    """
    context = model.prior_context({**batch.covariates, **asked.covariates})
    if context is not None:
        context = context.expand(len(batch), -1)
    return model.prior_at(context=context).expand(*batch.observed.shape)


def aggregated_posterior(model: LatentModel, prior: Prior, schema: Schema) -> Mixture:
    """The posteriors of c pseudo-inputs as one mixture, each with the same weight.

    Reference: Tomczak and Welling, VAE with a VampPrior, 2018, https://arxiv.org/abs/1705.07120.
    """
    inputs = prior.pseudo_inputs or {}
    c = len(next(iter(inputs.values())))
    mask = torch.ones(c, len(model.names), dtype=torch.bool, device=model.like.device)
    rows = Batch(inputs, mask, schema=schema, observed_rows=(None,) * len(inputs))
    experts = model.experts(rows, context=prior.pseudo_context)
    each = cast(Mixture, model.aggregator.forward(experts, rows))
    loc = rearrange(each.loc, "k c d -> (k c) 1 d")
    scale = rearrange(each.scale, "k c d -> (k c) 1 d")
    log_weight = rearrange(each.log_weight - math.log(c), "k c -> (k c) 1")
    return Mixture(model.decoding.family, loc, scale, log_weight)
