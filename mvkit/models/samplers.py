"""Fitting samplers to the latents of a trained model.

Axes: b rows, d latent, p private latent.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.noise import Generator
from mvkit.data.dataset import Rows
from mvkit.errors import DataError, RequestError
from mvkit.models.multimodal import MultimodalModel, check_model
from mvkit.models.sampler_requests import condition_of, digest_of_fit, family_of
from mvkit.parts.conditional_samplers import Code, Condition, ConditionalSampler, FittingRows
from mvkit.parts.samplers import Sampler
from mvkit.registry import plugins
from mvkit.registry.loading import live_part
from mvkit.registry.spec import as_part


class SamplerSpec(Protocol):
    """The options of a sampler."""

    def build(self, width: int, /) -> Sampler:
        """A sampler of latents of this width, not fitted yet."""
        ...


def fit_sampler(
    model: MultimodalModel,
    data: Rows,
    sampler: str | Mapping[str, object] | SamplerSpec = "gmm",
    *,
    seed: int = 0,
) -> Sampler | ConditionalSampler:
    """Fits a sampler to latents of rows, for `model.sample(n, sampler="gmm")`.

    A conditional one, such as `{"name": "gmm", "conditional": True}`, draws latents given what
    rows have too, whatever that is: `model.translate(rows, sampler="gmm")`, `mvkit.impute` and
    `mvkit.evaluate` likewise.

    `mvkit.save` keeps it. It is fitted to one draw of the posterior per row, given all that the
    row has, or to its mean, if it says so; rows may have gaps. Row weights count, those of weight
    0 not at all; samplers that know nothing of weights are refused for such rows. The model holds
    one sampler of each name: another fit takes its place. Private latents keep their priors,
    unless the sampler models them.

    When the weights of the model change after the fit, using the sampler warns.

    Args:
        model: a trained model.
        data: rows, as a rule the training rows.
        sampler: a name, a spec or a dict (`mvkit.available("sampler")`).
        seed: of the draws and of the fit.

    Raises:
        RequestError: a model without shared latent, and a sampler that does not model private
            latents alone; a sampler that knows nothing of row weights that there are, or of
            covariates that the prior depends on.
        DataError: too few rows, or latents that are not finite.

    Example:
        >>> import torch, mvkit
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, seed=0)
        >>> rows = {"a": torch.randn(50, 3), "b": torch.randn(50, 2)}
        >>> spec = {"name": "gmm", "components": 3, "conditional": True}
        >>> _ = mvkit.fit_sampler(model, rows, spec)
        >>> model.sample(4, sampler="gmm")["b"].shape
        torch.Size([4, 2])
        >>> model.translate({"a": rows["a"]}, to="b", sampler="gmm")["b"].shape
        torch.Size([1, 50, 2])
    """
    check_model(model, "fit_sampler")
    spec = as_part("sampler", sampler)
    seed = noise.whole_seed(seed)
    if not model.latent_dim:
        _check_private_alone(model, spec, seed)
    generator = noise.seeded(seed, model.like.device)

    with noise.global_seed(seed):  # of samplers with networks
        fitted: Any = built(model, spec).to(model.like)
        means = isinstance(fitted, ConditionalSampler) and fitted.fits_means
        z, weight = _latents(model, data, means, generator)
        _check_covariates(model, fitted, _name_of(spec))
        _check_weighs(fitted, weight, _name_of(spec))
        if isinstance(fitted, ConditionalSampler):
            rows = _fitting_rows(model, data, z, means, generator)
            fitted.fit(_counted(rows, weight), seed)
        elif weight is None:
            fitted.fit(z, seed)
        else:
            counts = weight > 0
            fitted.fit(z[counts], seed, weight=weight[counts])
    install(model, spec, fitted.eval())
    fitted_to = digest_of_fit(model)
    if fitted_to is not None:
        model.fitted_to[_name_of(spec)] = fitted_to
    return cast(Sampler | ConditionalSampler, fitted)


def _latents(
    model: MultimodalModel, data: Rows, means: bool, generator: Generator
) -> tuple[Tensor, Tensor | None]:
    """Latents of rows (b, d), given all that each has, and the rows' weights (b,), if they differ.

    Args:
        model: the model.
        data: the rows.
        means: means of posteriors rather than draws.
        generator: of the draws.

    Raises:
        DataError: latents that are not finite; every weight is 0.
    """

    def tensors(rows: Batch) -> dict[str, Tensor]:
        posterior = model.posterior_given(rows, model.names, "error", inference=True)
        values = {"z": posterior.mean if means else posterior.rsample(1, generator)[0]}
        if rows.row_weight is not None:
            values["weight"] = rows.row_weight
        return values

    values = model.in_blocks(tensors, data)
    z, weight = values["z"], _proportions(values.get("weight"))
    if not torch.isfinite(z).all():
        raise DataError(
            "fit_sampler: the model's latents are not finite; expected numbers; train it again"
        )
    return z, weight


def _check_private_alone(model: MultimodalModel, spec: SamplerSpec, seed: int) -> None:
    """Raises RequestError unless a sampler can do without a shared latent."""
    with noise.global_seed(seed):
        sampler: Any = built(model, spec)
    if not (isinstance(sampler, ConditionalSampler) and sampler.models_private_alone):
        raise RequestError(
            "fit_sampler: the model has no shared latent; only private ones, which keep their "
            "priors"
        )


def _proportions(weight: Tensor | None) -> Tensor | None:
    """Row weights (b,) with mean 1; None if all count alike.

    Raises:
        DataError: all are 0.
    """
    if weight is None or bool((weight == weight[0]).all() & (weight[0] > 0)):
        return None
    if not weight.any():
        raise DataError("fit_sampler: every row has row_weight 0; expected some above it")
    return weight / weight.mean()


def _check_weighs(sampler: Any, weight: Tensor | None, name: str) -> None:
    """Raises RequestError if there are row weights that a sampler would not heed."""
    if weight is not None and not sampler.weighs_rows:
        raise RequestError(
            f"fit_sampler: sampler {name!r} knows nothing of row weights, and these rows have "
            "some; expected rows that count alike; leave row_weight out, or take 'gmm'"
        )


def _check_covariates(model: MultimodalModel, sampler: Any, name: str) -> None:
    """Raises RequestError if the prior depends on covariates that a sampler does not see."""
    conditions = model.decoding.conditions
    if conditions is None or name == "prior":
        return
    knows = isinstance(sampler, ConditionalSampler) and sampler.knows_covariates
    for covariate, how in conditions.covariates.items():
        if "prior" in how.into and not (knows and "decoders" in how.into):
            raise RequestError(
                f"fit_sampler: the prior depends on covariate {covariate!r}, of which sampler "
                f"{name!r} would know nothing: it would draw latents of rows with other values; "
                "expected one that sees what decoders see; take {'name': 'gmm', 'conditional': "
                "True, 'covariates': True}, and a covariate that decoders see"
            )


def _counted(rows: FittingRows, weight: Tensor | None) -> FittingRows:
    """The rows that count, with their weights (b,), if they have any."""
    if weight is None:
        return rows
    index = weight.nonzero()[:, 0]
    private = {name: w[index] for name, w in rows.private.items()}
    return FittingRows(rows.z[index], private, rows.condition.take(index), weight[index])


def _fitting_rows(
    model: MultimodalModel, data: Rows, z: Tensor, means: bool, generator: Generator
) -> FittingRows:
    """Latents z (b, d) of rows, with draws of their private latents, or means, and what each row
    has.
    """

    def tensors(rows: Batch) -> dict[tuple[str, ...], Tensor]:
        condition, _ = condition_of(model, rows, rows.covariates, generator)
        values: dict[tuple[str, ...], Tensor] = {("observed",): condition.observed}
        if condition.context is not None:
            values["context",] = condition.context
        for kind, codes in (("codes", condition.codes), ("private", condition.private)):
            for name, code in codes.items():
                values[kind, name, "loc"] = code.loc
                values[kind, name, "scale"] = code.scale
        for name, w in condition.private_draws(1, generator).items():
            values["draws", name] = rearrange(w, "1 b p -> b p")
        if means:
            values.update({("draws", name): code.loc for name, code in condition.private.items()})
        return values

    values = model.in_blocks(tensors, data)
    sizes = model.sampler_sizes()

    def codes(kind: str, names: Iterable[str]) -> dict[str, Code]:
        return {
            name: Code(values[kind, name, "loc"], values[kind, name, "scale"]) for name in names
        }

    condition = Condition(
        sizes,
        values["observed",],
        codes("codes", sizes.names),
        codes("private", sizes.private),
        family_of(model, sizes),
        values.get(("context",)),
    )
    return FittingRows(z, {name: values["draws", name] for name in sizes.private}, condition)


def built(model: MultimodalModel, spec: SamplerSpec) -> nn.Module:
    """A sampler with the shapes of a model, not fitted yet; one that takes its sizes gets them."""
    make: Any = getattr(spec, "build", None)
    with plugins.error_context(type(spec), "when it was built"):
        if make is not None and "sizes" in inspect.signature(make).parameters:
            sampler: nn.Module = make(model.latent_dim, sizes=model.sampler_sizes())
            return sampler
        classes = (Sampler, ConditionalSampler)
        return cast(nn.Module, live_part(spec, "sampler", classes, model.latent_dim))


def install(model: MultimodalModel, spec: SamplerSpec, sampler: nn.Module) -> None:
    """Gives a model a sampler, fitted, or with its state still to be loaded."""
    sampler.requires_grad_(False)  # later training of the model leaves it alone
    model.samplers[_name_of(spec)] = sampler


def _name_of(spec: SamplerSpec) -> str:
    """The registered name of a sampler."""
    return str(plugins.name_of("sampler", type(spec)))
