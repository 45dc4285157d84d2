"""What is asked of fitted samplers: latents of new rows, and of rows given what they have.

Axes: n draws, b rows, d latent, p private latent, k components.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, cast

import attrs
from einops import einsum, rearrange
from torch import Tensor, nn

from mvkit.core.batch import Batch
from mvkit.core.decoding import Decodes, Decoding
from mvkit.core.digests import digest
from mvkit.core.experts import Experts
from mvkit.core.mixture import Mixture
from mvkit.core.noise import Generator
from mvkit.core.posterior import Posterior
from mvkit.core.raw_values import nothing_observed
from mvkit.errors import RequestError, ShapeError
from mvkit.models.inference import ANY, ConditionalPosterior, ConditioningSets
from mvkit.parts.conditional_samplers import (
    Code,
    Condition,
    ConditionalSampler,
    LatentDraws,
    SamplerSizes,
)
from mvkit.parts.samplers import Prior, Sampler
from mvkit.registry import plugins

DRAWS_OF_SCALE = 100  # of a posterior that has no scale in closed form
# of a model, or of a level of one; no latent and no decoder depends on what is there
APART = re.compile(r"(levels\.\d+\.)?(samplers|refiners|objectives|prior)\.")


class HasSamplers(Protocol):
    """A model that holds fitted samplers: `Model` or `Stack`."""

    names: tuple[str, ...]
    latent_dim: int
    samplers: nn.ModuleDict
    fitted_to: dict[str, str]
    seen_weights: dict[str, tuple[object, str]]

    @property
    def decoding(self) -> Decodes:
        """What generates the modalities."""
        ...

    @property
    def like(self) -> Tensor:
        """A tensor of the model's dtype and device."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """The model's tensors by name."""
        ...

    def sampler_sizes(self) -> SamplerSizes:
        """What samplers are told of the model."""
        ...

    def experts(
        self, batch: Batch, *, training: bool = False, generator: Generator = None
    ) -> Experts:
        """What the encoders make of a batch."""
        ...

    def conditional_posteriors(
        self, rows: Batch, asked: ConditioningSets
    ) -> Iterator[ConditionalPosterior]:
        """The posteriors given each of several sets of modalities, in turn."""
        ...

    def prior_draws(
        self,
        n: int,
        cluster: int | None,
        generator: Generator,
        covariates: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Draws z (n, d) of the prior, or of one of its clusters, and their clusters (n,) if it
        has any.
        """
        ...


@attrs.frozen(eq=False)
class SampledLatents:
    """Rows with only the given modalities left, and the sampler that draws their latents."""

    batch: Batch
    experts: Experts
    sampler: ConditionalSampler
    condition: Condition

    def draw(self, n: int, generator: Generator) -> LatentDraws:
        """Draws of z (n, b, d), and of the private latents that the sampler models."""
        return _checked(self.sampler.sample(self.condition, n, generator), self.condition, (n,))

    def mean(self, generator: Generator) -> LatentDraws:
        """Means of the same, (b, d) and {name: (b, p)}."""
        return _checked(self.sampler.mean(self.condition, generator), self.condition, ())


def _checked(draws: LatentDraws, condition: Condition, leading: tuple[int, ...]) -> LatentDraws:
    """What a sampler returned, if it has the right shapes.

    Raises:
        ShapeError: with the shape that was expected.
    """
    z, private = draws
    sizes = condition.sizes
    shapes = {"z": (z, sizes.latent)}
    for name, w in private.items():
        shapes[f"the private latent of {name!r}"] = (w, sizes.private.get(name, 0))
    for what, (latent, width) in shapes.items():
        expected = (*leading, len(condition), width)
        if tuple(latent.shape) != expected:
            raise ShapeError(
                f"sampler: returned {what} of shape {tuple(latent.shape)}; expected {expected}"
            )
    return draws


def sampled_latents(
    model: HasSamplers, name: str, n: int, covariates: Mapping[str, Tensor], generator: Generator
) -> LatentDraws:
    """Latents z (n, d) of new rows with these covariates, and private latents {name: (n, p)} if
    the sampler models them.
    """
    sampler = fitted_sampler(model, name, "sample")
    if not isinstance(sampler, ConditionalSampler):
        return sampler.sample(model, n, generator), {}
    context = context_of(model, covariates, n)
    sizes = model.sampler_sizes()
    family = family_of(model, sizes)
    condition = Condition.nothing(sizes, n, like=model.like, family=family, context=context)
    z, private = _checked(sampler.sample(condition, 1, generator), condition, (1,))
    one_draw = {key: rearrange(w, "1 n p -> n p") for key, w in private.items()}
    return rearrange(z, "1 n d -> n d"), one_draw


def fitted_sampler(model: HasSamplers, name: str, where: str) -> Sampler | ConditionalSampler:
    """The sampler with a bare or qualified name; warns if the model has changed since its fit.

    Raises:
        RequestError: it is not fitted, or not asked for by name; the message begins with `where`.
    """
    if not isinstance(name, str):
        raise RequestError(
            f"{where}: sampler={name!r}; expected the name of a sampler that mvkit.fit_sampler "
            "fitted to the model, such as 'gmm'; None: none"
        )
    known = str(plugins.name_of("sampler", plugins.lookup("sampler", name)))
    if known == "prior":
        return Prior().build(model.latent_dim)
    if known not in model.samplers:
        raise RequestError(
            f"{where}: sampler {name!r} is not fitted yet; call "
            f"mvkit.fit_sampler(model, data, {name!r}) first"
        )
    _warn_if_stale(model, known)
    return cast(Sampler | ConditionalSampler, model.samplers[known])


def conditional_sampler(self: HasSamplers, name: str, where: str) -> ConditionalSampler:
    """A fitted sampler that can be asked for latents given what rows have.

    Raises:
        RequestError: it is not fitted, or knows no condition.
    """
    sampler = fitted_sampler(self, name, where)
    if isinstance(sampler, ConditionalSampler):
        return sampler
    remedy = "take one that does: mvkit.fit_sampler(model, data, "
    other = {"name": "gmm", "conditional": True}
    if "conditional" in attrs.fields_dict(cast(type[attrs.AttrsInstance], type(sampler.spec))):
        remedy = "fit it again: mvkit.fit_sampler(model, data, "
        other["name"] = name
    raise RequestError(
        f"{where}: sampler {name!r} was fitted to latents alone, so that it draws those of new "
        f"rows and knows nothing of what a row has; {remedy}{other})"
    )


def sampled_given(
    self: HasSamplers, rows: Batch, asked: ConditioningSets, sampler: ConditionalSampler
) -> SampledLatents:
    """Where a sampler draws the latents of rows from, given the one set that is asked for.

    Raises:
        RequestError: an unknown modality.
        NothingObserved: a row with none of the set, with `empty="error"`.
    """
    asked.check(self.names)
    (given,) = asked.sets
    known = asked.restrict(rows)
    empty = ~known.observed.any(1)
    if given and asked.empty == "error" and bool(empty.any()):
        raise nothing_observed(empty, rows.extra.get("id"), given)
    covariates = rows.covariates
    if not given:  # as the prior, which is then asked for, sees them
        covariates = {**covariates, **asked.covariates}
    condition, experts = condition_of(self, known, covariates, asked.generator)
    return SampledLatents(known, experts, sampler, condition)


def condition_of(
    model: HasSamplers, rows: Batch, covariates: Mapping[str, Tensor], generator: Generator
) -> tuple[Condition, Experts]:
    """What samplers are told of conformed rows, and what the encoders make of them.

    Args:
        model: the model.
        rows: with only the given modalities left.
        covariates: that a sampler sees.
        generator: source of randomness, where scales have no closed form.
    """
    sizes = model.sampler_sizes()
    b = len(rows)
    context = context_of(model, covariates, b)
    family = family_of(model, sizes)
    nothing = Condition.nothing(sizes, b, like=model.like, family=family, context=context)
    columns = dict(zip(model.names, rows.observed.unbind(1), strict=True))
    shown = [name for name in model.names if name not in rows.hidden]
    codes = dict(nothing.codes)
    experts = None
    asked = ConditioningSets([(name,) for name in shown], ANY, True, generator)
    if shown:
        for name, alone in zip(shown, model.conditional_posteriors(rows, asked), strict=True):
            codes[name] = _code(alone.posterior, generator).where(columns[name])
            experts = experts or alone.experts.given(rows)
    experts = experts or model.experts(rows, generator=generator)
    private = {}
    for name in sizes.private:
        private[name] = Code(*experts.private[name]).where(columns[name])
    condition = attrs.evolve(nothing, observed=rows.observed, codes=codes, private=private)
    return condition, experts


def _code(posterior: Posterior, generator: Generator) -> Code:
    """Mean and scale of a posterior, (b, d) each."""
    mean = posterior.mean
    if not isinstance(posterior, Mixture):
        return Code(mean, posterior.rsample(DRAWS_OF_SCALE, generator).std(0))
    if posterior.components == 1:
        return Code(mean, rearrange(posterior.scale, "1 b d -> b d"))
    squares = posterior.scale.square() + (posterior.loc - mean).square()
    return Code(mean, einsum(posterior.log_weight.exp(), squares, "k b, k b d -> b d").sqrt())


def context_of(model: HasSamplers, covariates: Mapping[str, Tensor], b: int) -> Tensor | None:
    """What decoders see of the covariates of b rows, (b, c); None: nothing."""
    conditions = model.decoding.conditions
    if conditions is None:
        return None
    context = conditions.context(covariates, "decoders")
    return None if context is None else context.expand(b, context.shape[-1])


def family_of(model: HasSamplers, sizes: SamplerSizes) -> Any:
    """The family of the private latents; None without any."""
    return cast(Decoding, model.decoding).family if sizes.private else None


def digest_of_fit(model: HasSamplers) -> str | None:
    """A digest of the weights that latents depend on, in single precision, so that a model that is
    only cast to another dtype is the same; None on the meta device.
    """
    tensors = {}
    for path, value in _weights(model).items():
        if value.is_meta:
            return None
        tensors[path] = value.float() if value.is_floating_point() else value
    return digest(tensors)


def _weights(model: HasSamplers) -> dict[str, Tensor]:
    """Tensors of the model but for those of samplers, refiners, objectives and the prior."""
    weights = {}
    for path, value in model.state_dict().items():
        if isinstance(value, Tensor) and not APART.match(path):
            weights[path] = value
    return weights


def _warn_if_stale(model: HasSamplers, name: str) -> None:
    """Warns once, until they change again, if the model's weights are not those of the fit."""
    warn_if_changed(
        model,
        name,
        model.fitted_to.get(name),
        f"sampler {name!r}: the model's weights have changed since it was fitted, so that it "
        "draws latents of the model as it was; fit it again: mvkit.fit_sampler(model, data, "
        f"{name!r})",
    )


def warn_if_changed(model: HasSamplers, key: str, fitted_to: str | None, sentence: str) -> None:
    """Warns once, until they change again, if the model's weights are not those of a fit.

    Weights are digested where torch has counted a change since they were looked at last.

    Args:
        model: the model.
        key: what was fitted.
        fitted_to: the digest of the weights then; None: a file of an older version does not tell.
        sentence: the warning.
    """
    if fitted_to is None:
        return
    state = _state(model)
    seen, before = model.seen_weights.get(key, (None, fitted_to))
    if state is not None and seen == state:
        return
    now = digest_of_fit(model)
    if now is None:
        return
    model.seen_weights[key] = (state, now)
    if now not in (fitted_to, before):
        warnings.warn(sentence, stacklevel=5)


def check_no_growth(model: HasSamplers, where: str) -> None:
    """Raises RequestError if samplers were built for the covariates that there are."""
    if not model.sampler_sizes().context:
        return
    for name, sampler in model.samplers.items():
        if isinstance(sampler, ConditionalSampler) and sampler.knows_covariates:
            raise RequestError(
                f"{where}: sampler {name!r} sees covariates, and does not grow; expected a model "
                f"without; take it out (del model.samplers[{name!r}]), and fit it again afterwards"
            )


def look_again(model: HasSamplers) -> None:
    """Has weights digested when they are asked for next: torch counts no change by fused Adam."""
    for key, (_, digest_then) in model.seen_weights.items():
        model.seen_weights[key] = (None, digest_then)


def _state(model: HasSamplers) -> object:
    """What changes with every step of training; None where torch counts no changes."""
    weights = list(_weights(model).values())
    if any(value.is_meta or value.is_inference() for value in weights):
        return None
    return [(value.data_ptr(), value._version) for value in weights]
