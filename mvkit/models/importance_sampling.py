"""Importance sampling: log-likelihoods from weighted draws, decoded in blocks that fit a memory.

Axes: n samples, b rows, m modalities, d latent, p private latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, Protocol

import attrs
import torch
from einops import rearrange
from torch import Tensor, nn

from mvkit.core import blocks, bounds, noise
from mvkit.core.batch import Batch
from mvkit.core.completion import completion, explained
from mvkit.core.given import check_exposed
from mvkit.core.likelihood import TOTAL
from mvkit.core.mixture import product_of_observed
from mvkit.core.modality import Modality
from mvkit.core.noise import Generator
from mvkit.core.posterior import Posterior
from mvkit.core.raw_values import nothing_observed
from mvkit.core.validation import Schema
from mvkit.data.dataset import Rows
from mvkit.errors import RequestError, check_option
from mvkit.models.asked_rows import Stated, StatesRows
from mvkit.models.inference import Empty, Evaluable, Names, check_count, evaluation, names_of
from mvkit.models.lacking_covariates import check_covariates
from mvkit.parts.latent_model import LatentModel
from mvkit.parts.priors import as_prior


@attrs.frozen(eq=False)
class Sampling:
    """How importance samples are drawn.

    Args:
        n: draws.
        proposal: `mixture`: iid draws of the posterior under its density; `product`: the product
            of the unimodal experts under its own.
        generator: source of randomness.
        memory: bytes that a block of decoded draws may take; None: by the device.
    """

    n: int = attrs.field(converter=check_count)
    proposal: str = "mixture"
    generator: Generator = None
    memory: int | None = None

    def __attrs_post_init__(self) -> None:
        check_option("proposal", self.proposal, "mixture", "product")


def numbers_per_row(model: LatentModel) -> int:
    """Numbers that decoding one row makes, found by decoding one and counting what its layers
    emit.
    """
    count = 0

    def add(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal count
        is_layer = not list(module.children())
        if is_layer and isinstance(output, Tensor):
            count += output.numel()

    largest = 0
    for name, decoder in model.decoding.decoders.items():
        count = 0
        modality = model.modalities[name]
        hooks = [module.register_forward_hook(add) for module in decoder.modules()]
        context = model.like.new_zeros(1, decoder.context) if decoder.context else None
        decoder(model.like.new_zeros(1, model.latent_dim + modality.private_dim), context)
        for hook in hooks:
            hook.remove()
        largest = max(largest, count + 4 * modality.numbers)
    return largest


def block_sizes(model: LatentModel, n: int, b: int, memory: int | None) -> list[int]:
    """How many of n draws of b rows to decode at a time."""
    like = model.like
    if memory is None:
        on_cpu = like.device.type == "cpu"
        memory = blocks.DECODED if on_cpu else blocks.DECODED_ACCELERATOR
    size = blocks.block_size(b * numbers_per_row(model), memory, like.element_size())
    return [min(size, n - start) for start in range(0, n, size)]


def check_proper(model: LatentModel) -> None:
    """Raises RequestError if p(z) depends on the row, which leaves the density of rows without a
    normaliser.
    """
    if as_prior(model.prior).conditional:
        raise RequestError(
            "there is no likelihood under a prior that depends on the row, such as "
            "prior='posterior_mixture': nothing normalises it; take another prior, or "
            "estimator='predictive' with `given`"
        )


def weight_blocks(model: LatentModel, batch: Batch, sampling: Sampling) -> Iterator[Tensor]:
    """Log importance weights of iid draws in blocks (n_i, b); 0 in rows of which nothing is said:
    that observe nothing, in models that do not explain it.
    """
    check_proper(model)
    experts = model.experts(batch, generator=sampling.generator)
    aggregator = model.aggregator
    if sampling.proposal == "mixture":
        posterior = aggregator.posterior(experts, batch)
    elif model.decoding.family.closed_product and aggregator.defaults.has_unimodal_experts:
        posterior = product_of_observed(experts, batch.observed, 0.0)
    else:
        raise RequestError(
            "proposal='product' needs normal experts in every modality; take proposal='mixture'"
        )
    known = batch.observed.any(1)
    if explained(model.missingness, batch):  # that nothing is observed has a probability too
        known = torch.ones_like(known)
    for size in block_sizes(model, sampling.n, len(batch), sampling.memory):
        noise.next_draws(sampling.generator, size)
        terms = model.terms(
            batch,
            size,
            experts=experts,
            posterior=posterior,
            want="mixture",
            private_from="observed",
        )
        log_w = rearrange(bounds.importance_log_weights(terms), "n 1 b -> n b")
        yield torch.where(known, log_w, 0.0)


def predictive_blocks(
    model: LatentModel, batch: Batch, posterior: Posterior, sampling: Sampling
) -> Iterator[Tensor]:
    """Log p(x|z, w) of all that a batch observes at draws of a posterior and w ~ p(w), in blocks
    (n_i, b); of what is missing too, in models that explain it.
    """
    decoding = model.decoding
    for size in block_sizes(model, sampling.n, len(batch), sampling.memory):
        noise.next_draws(sampling.generator, size)
        z = rearrange(posterior.rsample(size, sampling.generator), "n b d -> n 1 b d")
        w = decoding.private_prior(z, sampling.generator)
        complete = completion(model, batch, z, w, sampling.generator)
        log_px = decoding.log_px(batch, z, w, batch.observed, decoded=complete.outputs).sum(-1)
        log_p = log_px if complete.log_ps is None else log_px + complete.log_ps
        yield rearrange(log_p, "n 1 b -> n b")


def log_mean_exp(pieces: Iterable[Tensor]) -> Tensor:
    """Log mean exp over the first axis of all blocks, [(n_i, b)] -> (b,)."""
    sums = []
    count = 0
    for block in pieces:
        sums.append(torch.logsumexp(block, 0))
        count += len(block)
    return torch.logsumexp(torch.stack(sums), 0) - math.log(count)


class Samples(Evaluable, StatesRows, Protocol):
    """A model whose importance weights can be drawn in blocks: `Model` or `Stack`."""

    names: tuple[str, ...]

    @property
    def like(self) -> Tensor:
        """A tensor of the model's dtype and device."""
        ...

    @property
    def schema(self) -> Schema:
        """What the model expects of a batch."""
        ...

    def conform(self, data: Rows) -> Batch:
        """Data as a checked batch."""
        ...

    def modality(self, name: str) -> Modality:
        """The modality of a name, or an error that suggests one."""
        ...

    def in_blocks(self, function: Callable[[Batch], Tensor], data: Rows) -> Tensor:
        """Evaluates a function of batches block by block."""
        ...

    def posterior_given(
        self, rows: Batch, given: tuple[str, ...], empty: str, generator: Generator
    ) -> Posterior:
        """The posterior given a set of modalities."""
        ...

    def weight_blocks(self, batch: Batch, sampling: Sampling) -> Iterator[Tensor]:
        """Log importance weights in blocks (n_i, b)."""
        ...

    def predictive_blocks(
        self, batch: Batch, posterior: Posterior, sampling: Sampling
    ) -> Iterator[Tensor]:
        """Log p(x|z) in blocks (n_i, b)."""
        ...


@attrs.frozen(eq=False)
class LikelihoodEstimator:
    """Log p(x_of | x_given) of a block of rows; see `Model.log_likelihood`."""

    model: Samples
    of: tuple[str, ...]
    given: tuple[str, ...]
    sampling: Sampling
    estimator: str
    empty: str
    exposed: frozenset[str] = frozenset()  # modalities whose exposure the caller states

    def __attrs_post_init__(self) -> None:
        check_option("estimator", self.estimator, "importance", "predictive")

    def __call__(self, rows: Batch) -> Tensor:
        rows = self._without_totals(rows)
        noise.next_rows(self.sampling.generator, len(rows))
        scored = rows.hide(self.of).observed.any(1)
        if self.given and self.empty != "prior":
            lost = scored & ~rows.hide(self.given).observed.any(1)
            if lost.any():
                raise nothing_observed(lost, rows.extra.get("id"), self.given)
        log_px = self._predictive(rows) if self.estimator == "predictive" else self._ratio(rows)
        return torch.where(scored, log_px, 0.0)

    def _without_totals(self, rows: Batch) -> Batch:
        """The rows without exposures that are computed from values that are scored."""
        if rows.schema is None or not rows.exposure:
            return rows
        exposure = dict(rows.exposure)
        for name in self.of:
            if rows.schema.exposures.get(name) == TOTAL and name not in self.exposed:
                del exposure[name]
        return attrs.evolve(rows, exposure=exposure)

    def _ratio(self, rows: Batch) -> Tensor:
        """Log p(x_of, x_given) - log p(x_given), each importance sampled, (b,)."""
        joint = self._joint(rows, (*self.of, *self.given))
        return joint - self._joint(rows, self.given) if self.given else joint

    def _joint(self, rows: Batch, names: tuple[str, ...]) -> Tensor:
        generator = noise.child(self.sampling.generator)  # joint and given: other draws
        noise.next_rows(generator, len(rows))
        sampling = attrs.evolve(self.sampling, generator=generator)
        return log_mean_exp(self.model.weight_blocks(rows.hide(names), sampling))

    def _predictive(self, rows: Batch) -> Tensor:
        """Log mean of p(x_of|z, w) at z ~ q(z|x_given), w ~ p(w), (b,)."""
        posterior = self.model.posterior_given(rows, self.given, "prior", self.sampling.generator)
        hidden = rows.hide(self.of)
        return log_mean_exp(self.model.predictive_blocks(hidden, posterior, self.sampling))


def log_weights(
    self: Samples,
    batch: Rows,
    n: int,
    *,
    proposal: Literal["mixture", "product"] = "mixture",
    missing: Literal["error", "average"] = "error",
    generator: Generator = None,
) -> Tensor:
    """Log importance weights of n draws, (n, b): their log-mean-exp estimates log p of what each
    row has; in a model that explains what is missing, log p(x_O, s), s being what is observed.

    Args:
        self: the model.
        batch: rows; one with nothing observed gets 0, or log p(s).
        n: draws.
        proposal: `mixture`: iid draws of the posterior under its density; `product`: the product
            of the unimodal experts under its own.
        missing: rows that lack a covariate: an `error`, or their weights at the `average`.
        generator: source of randomness.
    """
    rows = self.conform(batch)
    check_covariates(rows, missing, "log_weights")
    by_row = noise.by_row(generator, self.like.device)
    noise.next_rows(by_row, len(rows))
    sampling = Sampling(n, proposal, by_row)
    with evaluation(self), torch.no_grad():
        return torch.cat(list(self.weight_blocks(rows, sampling)))


def log_likelihood(
    self: Samples,
    batch: Rows,
    of: Names = None,
    given: Names = (),
    n: int = 1000,
    *,
    estimator: Literal["importance", "predictive"] = "importance",
    proposal: Literal["mixture", "product"] = "mixture",
    empty: Empty = "error",
    exposure: Stated = None,
    missing: Literal["error", "average"] = "error",
    memory: int | None = None,
    generator: Generator = None,
) -> Tensor:
    """Log p(x_of | x_given) of each row in nats, (b,), by importance sampling.

    In a model that explains what is missing, `Model(missingness=…)`, it is log p(x_of, s_of |
    x_given, s_given): s says which values of these modalities are observed. Such numbers compare
    with one another, not with those of models that take values to be missing at random.

    Args:
        self: the model.
        batch: rows.
        of: modalities to score; None: all that is observed and not given. A row with none of them
            gets 0.
        given: modalities to condition on.
        n: draws.
        estimator: `importance`: joint(of ∪ given) - joint(given), each importance sampled;
            `predictive`: log-mean-exp of p(x_of|z), z ~ q(z|x_given), which is no bound on either
            side.
        proposal: see `log_weights`.
        empty: rows with none of `given`: `error`, or no condition at all with `prior`.
        exposure: of modalities that have one, {name: one value, or (b,)}; those that are scored
            have the median of training, if the caller states none: it is not computed from them.
        missing: rows that lack a covariate: an `error`; or `average`: their likelihoods at the
            shares and means of training, an approximation that a covariate must allow, too.
        memory: bytes that a block of decoded draws may take; n draws go block by block. None: 8 MB
            on the CPU, whose cache then holds them, 256 MB on accelerators.
        generator: gives the seed; one of the CPU gives the same draws on every device.

    Reference: Burda, Grosse and Salakhutdinov, 2016, https://arxiv.org/abs/1509.00519; Wu and
    Goodman, 2018, https://arxiv.org/abs/1802.05335 (conditionals).
    """
    if given is None:
        raise RequestError(
            "log_likelihood: given=None; expected names of modalities, or () to condition on none"
        )
    conditions = names_of(given, self.names)
    rest = tuple(name for name in self.names if name not in conditions)
    scored = names_of(of, rest)
    if not scored:
        raise RequestError(
            f"log_likelihood: nothing to score, with of={of!r} and given={given!r}; name one "
            "modality at least in `of`, or leave it out to score all that is not given"
        )
    for name in (*scored, *conditions):
        self.modality(name)
    for name in scored:
        if name in conditions:
            raise RequestError(
                f"log_likelihood: {name!r} is both in `of` and in `given`; take it out of one"
            )
    by_row = noise.by_row(generator, self.like.device)
    sampling = Sampling(n, proposal, by_row, memory)
    exposed = frozenset(exposure or {})
    estimate = LikelihoodEstimator(self, scored, conditions, sampling, estimator, empty, exposed)
    if self.schema.covariates:
        batch = self.conform(batch)
        check_covariates(batch, missing, "log_likelihood")
    if exposure:
        batch = with_exposure(self, batch, exposure)
    return self.in_blocks(estimate, batch)


def with_exposure(model: Samples, data: Rows, exposure: Stated) -> Batch:
    """Conformed rows with the exposures that a caller states, {modality: one value, or (b,)}."""
    rows = model.conform(data)
    stated = model.row_context("log_likelihood", None, exposure, (len(rows),), partly=True)
    expanded = {name: value.expand(len(rows)) for name, value in stated.exposure.items()}
    for name, value in expanded.items():
        if rows.schema is not None and rows.schema.likelihoods[name].integers:
            where = f"log_likelihood: exposure of {name!r}"
            check_exposed(where, value, rows.data[name], rows.extra.get("id"))
    return attrs.evolve(rows, exposure={**rows.exposure, **expanded})
