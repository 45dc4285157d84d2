"""From the specs of a model to its live parts, with the path of whatever cannot be built."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal, cast

import attrs
from torch import Tensor, nn

from mvkit.core.covariates import SIDES, Conditions, as_covariates
from mvkit.core.decoder import Decoder
from mvkit.core.decoding import Decoding
from mvkit.core.family import Family
from mvkit.core.missingness import Missingness
from mvkit.core.modality import Modality, Sizes, as_modalities
from mvkit.errors import SpecError, within
from mvkit.models.objective_modules import add_modules, every_objective
from mvkit.parts.aggregators.aggregator import Aggregator
from mvkit.parts.networks import encoder_of
from mvkit.parts.objectives.objective import Objective, check_names
from mvkit.parts.priors import Prior, as_prior, raw_of_one
from mvkit.registry import plugins
from mvkit.registry.fields import choice, count
from mvkit.registry.loading import live_part
from mvkit.registry.spec import QUIET, factors, field, one_of, part, spec

LIVE: dict[str, tuple[type, ...]] = {
    "family": (Family,),
    "aggregator": (Aggregator,),
    "objective": (Objective,),
    "prior": (Prior, nn.Module),
    "missingness": (Missingness,),
}
Rescale = Literal["dims"] | Mapping[str, float] | None


@spec
class ModelSpec:
    """Everything that says what a model is; what a checkpoint's header holds."""

    modalities: Any = attrs.field(converter=as_modalities)
    latent_dim: int = count(10, low=0)
    aggregator: Any = part("aggregator", default="poe")
    prior: Any = part("prior", default="standard")
    objective: Any = part("objective", default="elbo")
    family: Any = part("family", default="normal")
    rescale: Rescale = field(default=None, check=one_of(None, "dims", other=factors))
    private_from: str | None = choice(None, "evidence", "observed")
    schedule: Any = part("schedule", default="single")
    covariates: Any = attrs.field(factory=dict, converter=as_covariates, metadata={QUIET: True})
    missingness: Any = part("missingness", default=None, optional=True, quiet=True)


@attrs.frozen(eq=False)
class Parts:
    """The live parts of a model, and its spec with the defaults that they decide."""

    spec: ModelSpec
    family: Family
    aggregator: Aggregator
    prior: Prior | nn.Module
    objective: Objective
    objectives: nn.ModuleDict  # the objective's trained modules, by key
    encoders: nn.ModuleDict
    decoders: nn.ModuleDict
    cross: nn.ParameterDict
    likelihood_weights: dict[str, float]
    order: tuple[int, ...]  # of the modalities; the same however they are declared
    conditions: Conditions | None  # the covariates, if there are any
    missingness: Missingness | None  # why values are missing; None: at random

    @property
    def decoding(self) -> Decoding:
        """What generates."""
        return Decoding(
            self.spec.modalities,
            cast(Mapping[str, Decoder], self.decoders),
            cast(Mapping[str, Tensor], self.cross),
            self.family,
            str(self.spec.private_from),
            self.conditions,
        )

    @property
    def bound_name(self) -> str:
        """What the metrics call a bound: with priors r_m other than p(w), or a p(z) that depends
        on the row, what is reported bounds nothing.
        """
        unbounded = len(self.cross) or as_prior(self.prior).conditional
        return "surrogate_bound" if unbounded else "bound"


def assemble(spec: ModelSpec) -> Parts:
    """Builds every part of a model.

    Raises:
        SpecError: parts that do not go together, and what would.
    """
    if not spec.latent_dim and not all(m.private_dim for m in spec.modalities.values()):
        raise SpecError(
            "0 leaves modalities without any latent; give each a private_dim, or take 1 or more",
            "latent_dim",
        )
    family = _built(spec, "family", None)
    conditions = _conditions(spec)
    sizes = sizes_of(spec, family, conditions)
    prior = _built(spec, "prior", sizes)
    sizes = attrs.evolve(sizes, live_prior=prior)
    aggregator = _built(spec, "aggregator", sizes)
    objective = _built(spec, "objective", sizes)
    _check_combination(spec, aggregator, prior, objective)
    rule = spec.private_from or aggregator.defaults.private_from
    spec = attrs.evolve(spec, private_from=rule)  # type: ignore[misc]
    encoders, decoders = _networks(sizes, aggregator.width(spec.latent_dim))
    cross = nn.ParameterDict()
    for name, modality in spec.modalities.items():
        p = modality.private_dim
        if p and modality.cross_prior == "learned" and rule == "evidence":
            cross[name] = nn.Parameter(raw_of_one(family, (p,)))
    objectives = nn.ModuleDict()
    with within("objective"):
        add_modules(objectives, objective, sizes)
    _warn_of_idle_encoders(spec, aggregator, objective)
    return Parts(
        spec,
        family,
        aggregator,
        prior,
        objective,
        objectives,
        encoders,
        decoders,
        cross,
        _likelihood_weights(spec, sizes),
        sizes.canonical,
        conditions,
        _missingness(spec, sizes, decoders),
    )


def _missingness(spec: ModelSpec, sizes: Sizes, decoders: nn.ModuleDict) -> Missingness | None:
    """The live model of what is missing; None without one.

    Raises:
        SpecError: it explains gaps of a modality whose draws have no gradients.
    """
    if spec.missingness is None:
        return None
    live = cast(Missingness, _built(spec, "missingness", sizes))
    part = type(spec.missingness)
    with within("missingness"), plugins.error_context(part, "when it was asked for modalities"):
        check_names(live.modalities, sizes.names, "modalities")
    for name in live.modalities if live.looks_at_values else ():
        decoder = cast(Decoder, decoders[name])
        if not decoder.likelihood.reparametrised:
            law = plugins.name_of("likelihood", type(spec.modalities[name].likelihood))
            raise SpecError(
                f"draws of {name!r} (likelihood {law!r}) have no gradients, so that decoders "
                "would not learn from what is missing; expected 'normal', 'laplace', "
                "'student_t' or 'lognormal'; take one of these, or leave the modality out of "
                "modalities=",
                "missingness",
            )
    return live


def sizes_of(spec: ModelSpec, family: Family, conditions: Conditions | None) -> Sizes:
    """What parts are told of a model."""
    contexts: dict[str, int] = {}
    levels = {}
    if conditions is not None:
        contexts.update((side, conditions.width(side)) for side in SIDES)
        levels = {name: len(covariate.levels) for name, covariate in spec.covariates.items()}
    return Sizes(
        spec.latent_dim,
        family,
        spec.modalities,
        spec.prior,
        contexts=contexts,
        levels=levels,
        missingness=spec.missingness,
    )


def _conditions(spec: ModelSpec) -> Conditions | None:
    """The live covariates of a model; None without any.

    Raises:
        SpecError: a covariate called like a modality, or an exposure by one with levels.
    """
    for name in spec.covariates:
        if name in spec.modalities:
            raise SpecError(
                f"{name!r} is a modality too; expected another name; rename one", "covariates"
            )
    for name, modality in spec.modalities.items():
        covariate = spec.covariates.get(modality.exposure)
        if covariate is not None and covariate.levels:
            raise SpecError(
                f"{modality.exposure!r} has levels; expected a number of each row",
                f"modalities.{name}.exposure",
            )
    return Conditions(spec.covariates) if spec.covariates else None


def _built(spec: ModelSpec, kind: str, sizes: Sizes | None) -> Any:
    """The live part of a kind."""
    part = getattr(spec, kind)
    with within(kind), plugins.error_context(type(part), "when it was built"):
        return live_part(part, kind, LIVE[kind], sizes)


def _name(spec: ModelSpec, kind: str) -> str:
    """The registered name of a part, quoted, as users type it."""
    return repr(plugins.name_of(kind, type(getattr(spec, kind))))


def _check_combination(
    spec: ModelSpec, aggregator: Aggregator, prior: Prior | nn.Module, objective: Objective
) -> None:
    """Raises SpecError for parts that do not go together."""
    if objective.needs_experts and not aggregator.defaults.has_unimodal_experts:
        raise SpecError(
            f"{_name(spec, 'objective')} looks at raw experts, which aggregator "
            f"{_name(spec, 'aggregator')} has none of; take another of either",
            "objective",
        )
    if any(part.needs_refiners for part in every_objective(objective)):
        raise SpecError(
            f"{_name(spec, 'objective')} trains refiners, of which a new model has none; expected "
            "it in a stage of its own; take 'elbo', and call mvkit.fit_refiner afterwards",
            "objective",
        )
    live = as_prior(prior)
    into_prior = any("prior" in covariate.into for covariate in spec.covariates.values())
    if into_prior and not live.takes_context:
        raise SpecError(
            f"{_name(spec, 'prior')} does not depend on covariates, and some go into the prior; "
            "take 'learnable' or 'mog', or leave 'prior' out of their into=",
            "prior",
        )
    reason = live.incompatibility(aggregator, objective)
    if reason:
        raise SpecError(reason, "prior")


def _networks(sizes: Sizes, width: int) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    """Encoders, which emit `width` numbers for the aggregator, and decoders, by modality."""
    encoders, decoders = nn.ModuleDict(), nn.ModuleDict()
    for name, modality in sizes.modalities.items():
        network = modality.encoder
        total = width + 2 * modality.private_dim
        with within(f"modalities.{name}"):
            _check_transforms(modality)
            with plugins.error_context(type(network), "when its encoder was built"):
                context = sizes.context("encoders")
                encoders[name] = encoder_of(network, modality.input_shape, total, context)
            decoders[name] = Decoder(name, modality, sizes)
    return encoders, decoders


def _check_transforms(modality: Modality) -> None:
    """Raises SpecError for transforms that were not fitted or do not lead to the likelihood."""
    for step in modality.transform:
        if not step.ready:
            raise SpecError(
                f"{step!r} is not fitted; use dataset.fit_transforms(…) and its modalities",
                "transform",
            )
    if not modality.transform:
        return
    *before, last = (step.classes for step in modality.transform)
    if any(before) or last != getattr(modality.likelihood, "class_axis", False):
        raise SpecError(
            "one_hot comes last and goes with a categorical likelihood, others do not; change one "
            "of them",
            "transform",
        )


def _warn_of_idle_encoders(spec: ModelSpec, aggregator: Aggregator, objective: Objective) -> None:
    """Warns where unimodal encoders learn from incomplete rows only."""
    idle = aggregator.defaults.has_joint_encoder and not objective.trains_unimodal
    if idle and plugins.name_of("schedule", type(spec.schedule)) == "single":
        warnings.warn(
            f"objective {_name(spec, 'objective')} trains the unimodal encoders of aggregator "
            f"{_name(spec, 'aggregator')} on incomplete rows only; take 'jmvae' or 'telbo', or "
            "schedule='joint_then_unimodal', to give them something to learn from complete rows",
            stacklevel=4,
        )


def _likelihood_weights(spec: ModelSpec, sizes: Sizes) -> dict[str, float]:
    """Factors of the log-likelihoods in objectives: each modality's weight times its rescaling."""
    rescale = spec.rescale or {}
    if isinstance(rescale, str):
        most = max(m.numbers for m in spec.modalities.values())
        rescale = {name: most / m.numbers for name, m in spec.modalities.items()}
    check_names(rescale, sizes.names, "rescale")
    return {name: m.weight * rescale.get(name, 1.0) for name, m in spec.modalities.items()}
