"""Questions to a trained model: posteriors given anything, likelihoods, imputation, clusters.

Axes: n samples, b rows, m modalities, d latent, p private latent, c clusters.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import torch
from einops import rearrange
from torch import Tensor, nn

from mvkit import bounds, noise
from mvkit.aggregators import product_of_observed
from mvkit.batch import Batch, conform
from mvkit.data.sources import as_batch
from mvkit.errors import NothingObserved, RequestError, suggest
from mvkit.experts import Experts
from mvkit.posterior import Posterior
from mvkit.terms import log_likelihoods

if TYPE_CHECKING:
    from mvkit.generative import Generative
    from mvkit.model import Model

# bytes of a block of decoded draws: few enough to stay in the cache, or enough to fill an accelerator; not a function
# of the threads, since a generator's draws depend on the blocks
MEMORY, MEMORY_ACCELERATOR = 2**23, 2**28
ROWS = 1024
T = TypeVar("T")


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's own mode again after."""
    modes = {module: True for module in model.modules() if module.training}
    if modes:
        model.eval()
    try:
        yield
    finally:
        for module in modes:
            module.training = True


def by_rows(
    function: Callable[[Batch], T], batch: Batch, device: torch.device, dim: int = 0, rows: int | None = None
) -> T:
    """The function on blocks of rows, moved to a device one by one, its tensors put together along `dim`."""
    rows = ROWS if rows is None else rows
    if len(batch) <= rows:
        return function(batch.to(device))
    pieces: list[Any] = []
    for start in range(0, len(batch), rows):
        try:
            pieces.append(function(batch.take(slice(start, start + rows)).to(device)))
        except NothingObserved as error:
            raise NothingObserved(error.row + start, error.given) from None
    if isinstance(pieces[0], dict):
        return {name: torch.cat([piece[name] for piece in pieces], dim) for name in pieces[0]}  # type: ignore[return-value]
    return torch.cat(pieces, dim)  # type: ignore[return-value]


def answer(model: Generative, function: Callable[[Batch], T], data: Any, dim: int = 0, rows: int | None = None) -> T:
    """What a question that needs no gradient comes to: evaluation mode, block by block."""
    with evaluation(model), torch.no_grad():
        return by_rows(function, conform(as_batch(data), model.layout), model.like.device, dim, rows)


def draws(n: Any) -> int:
    """A number of draws, checked."""
    if isinstance(n, bool) or not isinstance(n, numbers.Integral) or n < 1:
        raise RequestError(f"n: got {n!r}; expected a whole number of at least 1")
    return int(n)


def subsets_of(subsets: Iterable[Iterable[str] | str] | None, every: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Sets of modalities, each as a tuple of names; None: all non-empty ones, the small first."""
    if isinstance(subsets, str):
        raise RequestError(f"subsets: got {subsets!r}; expected a list of sets of modalities, such as [[{subsets!r}]]")
    if subsets is None:
        return [names for size in range(1, len(every) + 1) for names in itertools.combinations(every, size)]
    return [names_of(given, every) for given in subsets]


def names_of(given: Iterable[str] | str | None, every: tuple[str, ...]) -> tuple[str, ...]:
    """The modalities that `given`, `of` or `to` mean: a string is one name, None is all."""
    return every if given is None else (given,) if isinstance(given, str) else tuple(given)


@attrs.frozen(eq=False)
class Condition:
    """A batch with only the given modalities left, its experts, and the posterior they lead to."""

    batch: Batch
    experts: Experts
    posterior: Posterior


@attrs.frozen(eq=False)
class Asked:
    """Sets of modalities, given each of which a posterior is asked for.

    Args:
        sets: names of modalities.
        empty: rows with none of a set: `error`, or the `prior`.
        inference: whether those are wanted that `encode` and `translate` use.
        generator: source of randomness.
    """

    sets: Sequence[tuple[str, ...]]
    empty: str
    inference: bool = False
    generator: torch.Generator | None = None

    def within(self, rows: Batch) -> Batch:
        """The rows with nothing left but what is in some set."""
        return rows.hide(name for names in self.sets for name in names)


def conditions(model: Model, rows: Batch, asked: Asked) -> Iterator[Condition]:
    """The posteriors that are asked for, in turn."""
    for name in (name for names in asked.sets for name in names):
        if name not in model.names:
            raise RequestError(f"given: unknown modality {name!r}; {suggest(str(name), model.names)}")
    if asked.empty not in ("error", "prior"):
        raise RequestError(f"empty: got {asked.empty!r}; expected 'error' or 'prior'")
    rows = asked.within(rows)
    experts = model.experts(rows, generator=asked.generator)
    fuse = model.aggregator.inference if asked.inference else model.aggregator.posterior
    for names in asked.sets:
        batch = rows.hide(names)
        own = experts if batch is rows else experts.given(batch)
        yield Condition(batch, own, _given(model, own, names, asked.empty, fuse))


def _given(model: Model, experts: Experts, names: tuple[str, ...], empty: str, fuse: Any) -> Posterior:
    """The posterior of a batch with nothing but `names`; the prior in rows without any, if that is asked for."""
    batch = experts.batch
    if not names:
        return _prior_of(model, len(batch))
    known = batch.observed.any(1)
    posterior: Posterior = fuse(experts, batch)
    if known.all():
        return posterior
    if empty == "error":
        raise NothingObserved(int((~known).nonzero()[0]), ", ".join(names))
    return posterior.where(known, _prior_of(model, len(batch)))


def _prior_of(model: Model, b: int) -> Posterior:
    prior = model.prior_at()
    if not isinstance(prior, Posterior):
        raise RequestError(
            f"prior {type(model.spec.prior).__name__!r} is no mixture, so it cannot stand in for a posterior; "
            "give modalities to condition on, or use sample()"
        )
    return prior.expand(b, len(model.names))


def numbers_per_row(model: Model) -> int:
    """Numbers that decoding one row makes, found by decoding one and counting what its layers emit."""
    count = 0

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal count
        count += output.numel() if isinstance(output, Tensor) and not list(module.children()) else 0

    most = 0
    like = model.like
    for name, decoder in model.decoders.items():
        count = 0
        hooks = [module.register_forward_hook(note) for module in decoder.modules()]
        decoder(like.new_zeros(1, model.latent_dim + model.modalities[name].private_dim))
        for hook in hooks:
            hook.remove()
        most = max(most, count + 4 * model.modalities[name].numbers)
    return most


def block_sizes(model: Model, n: int, b: int, memory: int | None) -> list[int]:
    """How many of n draws of b rows to decode at a time."""
    if memory is None:
        memory = MEMORY if model.like.device.type == "cpu" else MEMORY_ACCELERATOR
    rows = memory // (numbers_per_row(model) * model.like.element_size())
    block = max(1, min(n, rows // b))
    return [min(block, n - start) for start in range(0, n, block)]


def weight_blocks(
    model: Model, batch: Batch, n: int, proposal: str, generator: torch.Generator | None, memory: int | None
) -> Iterator[Tensor]:
    """Log importance weights of n iid draws in blocks (n_i, b); 0 in rows that observe nothing."""
    n = draws(n)
    experts = model.experts(batch, generator=generator)
    if proposal == "mixture":
        posterior = model.aggregator.posterior(experts, batch)
    elif proposal == "product":
        if not (model.family.closed_product and model.aggregator.defaults.raw_experts):
            raise RequestError("proposal='product' needs normal experts in every modality; take proposal='mixture'")
        posterior = product_of_observed(experts, batch.observed, 0.0)
    else:
        raise RequestError(f"proposal: got {proposal!r}; expected 'mixture' or 'product'")
    known = batch.observed.any(1)
    for size in block_sizes(model, n, len(batch), memory):
        terms = model.terms(batch, size, experts=experts, posterior=posterior, want="mixture", private_from="observed")
        yield torch.where(known, rearrange(bounds.log_weights(terms), "n 1 b -> n b"), 0.0)


def log_mean_exp(blocks: Iterable[Tensor]) -> Tensor:
    """Log mean exp over the first axis of all blocks, [(n_i, b)] -> (b,)."""
    sums, count = [], 0
    for block in blocks:
        sums.append(torch.logsumexp(block, 0))
        count += len(block)
    return torch.logsumexp(torch.stack(sums), 0) - math.log(count)


@attrs.frozen(eq=False)
class Query:
    """log p(x_of | x_given) of a block of rows; see `Model.log_likelihood`."""

    model: Any
    of: tuple[str, ...]
    given: tuple[str, ...]
    n: int
    estimator: str
    proposal: str
    empty: str
    memory: int | None
    generator: torch.Generator | None

    def __call__(self, rows: Batch) -> Tensor:
        scored = rows.hide(self.of).observed.any(1)
        if self.given and self.empty != "prior":
            lost = scored & ~rows.hide(self.given).observed.any(1)
            if lost.any():
                raise NothingObserved(int(lost.nonzero()[0]), ", ".join(self.given))
        if self.estimator == "predictive":
            value = log_mean_exp(self._predictive(rows))
        elif self.estimator == "importance":
            value = self._joint(rows, (*self.of, *self.given)) - (self._joint(rows, self.given) if self.given else 0.0)
        else:
            raise RequestError(f"estimator: got {self.estimator!r}; expected 'importance' or 'predictive'")
        return torch.where(scored, value, 0.0)

    def _joint(self, rows: Batch, names: tuple[str, ...]) -> Tensor:
        hidden = rows.hide(names)
        return log_mean_exp(self.model.weight_blocks(hidden, self.n, self.proposal, self.generator, self.memory))

    def _predictive(self, rows: Batch) -> Iterator[Tensor]:
        """Log p(x_of|z, w) at z ~ q(z|x_given), w ~ p(w)."""
        given = self.model.condition(rows, self.given, "prior", generator=self.generator).posterior
        blocks: Iterator[Tensor] = self.model.predictive_blocks(
            rows.hide(self.of), given, self.n, self.generator, self.memory
        )
        return blocks


def predictive_blocks(
    model: Model, batch: Batch, posterior: Posterior, n: int, generator: torch.Generator | None, memory: int | None
) -> Iterator[Tensor]:
    """Log p(x|z, w) of all that a batch observes at n draws of a posterior and w ~ p(w), in blocks (n_i, b)."""
    for size in block_sizes(model, draws(n), len(batch), memory):
        z = rearrange(posterior.rsample(size, generator), "n b d -> n 1 b d")
        w = {}
        for name, modality in model.modalities.items():
            if modality.private_dim:
                shape = (*z.shape[:-1], modality.private_dim)
                w[name] = noise.draw(f"w/{name}", shape, z, generator=generator, sampler=model.family.noise)
        yield rearrange(log_likelihoods(model, batch, z, w, batch.observed).sum(-1), "n 1 b -> n b")


def clusters(model: Model, rows: Batch, *, soft: bool, by_modality: bool) -> Any:
    """Responsibilities and votes of the observed modalities; see `Model.clusters`."""
    prior: Any = model.prior
    unimodal = model.aggregator.unimodal(model.experts(rows), rows)
    each = torch.stack([prior.assign(posterior.mean) for posterior in unimodal.values()])
    observed = rearrange(rows.observed, "b m -> m b 1")
    if by_modality:
        return dict(zip(model.names, torch.where(observed, each, torch.nan), strict=True))
    mean = torch.where(observed, each, 0.0).sum(0) / observed.sum(0)
    if soft:
        return mean
    return majority(each, observed)


def majority(each: Tensor, observed: Tensor) -> Tensor:
    """The cluster with most votes, responsibilities (m, b, c) and observed (m, b, 1) -> (b,); ties by the mean."""
    votes = nn.functional.one_hot(each.argmax(-1), each.shape[-1])
    mean = torch.where(observed, each, 0.0).sum(0) / observed.sum(0)
    # a mean below 1 settles ties and nothing else
    return (torch.where(observed, votes, 0).sum(0) + mean / 2).argmax(-1)


def describe(model: Model) -> str:
    """Parts, shapes and parameter counts, a line each."""
    spec = model.spec

    def count(module: Any) -> str:
        return f"{sum(p.numel() for p in module.parameters()):,}" if isinstance(module, nn.Module) else "0"

    lines = [f"Model({count(model)} parameters, latent_dim={model.latent_dim}, family={spec.family!r})"]
    for name in ("aggregator", "prior"):
        lines.append(f"  {name:<11}{getattr(spec, name)!r}: {count(getattr(model, name))}")
    lines.append(f"  {'objective':<11}{spec.objective!r}")
    for name, modality in model.modalities.items():
        private = f", private_dim={modality.private_dim} from {spec.private_from}" if modality.private_dim else ""
        steps = "".join(f", {step!r}" for step in modality.transform)
        lines.append(f"  {name}: {modality.shape}, {modality.likelihood!r}{steps}{private}")
        for side, network in (("encoder", modality.encoder), ("decoder", modality.decoder)):
            shown = f"external {type(network).__name__}" if isinstance(network, nn.Module) else repr(network)
            lines.append(f"    {side} {shown}: {count(getattr(model, side + 's')[name])}")
    return "\n".join(lines)
