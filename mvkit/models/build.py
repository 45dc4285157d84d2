"""From the specs of a model to its live parts, with the path of whatever cannot be built."""

from __future__ import annotations

import warnings
from typing import Any

import attrs
from torch import nn

from mvkit.core.decoding import Decoder
from mvkit.core.family import Family
from mvkit.core.modality import Modality, Sizes, as_modalities
from mvkit.errors import SpecError, suggest
from mvkit.parts.aggregators.aggregator import Aggregator
from mvkit.parts.objectives.objective import Objective
from mvkit.parts.priors import Prior, raw_of_one
from mvkit.registry import plugins
from mvkit.registry.spec import factors, field, integer, one_of, part, spec

LIVE: dict[str, tuple[type, ...]] = {
    "family": (Family,),
    "aggregator": (Aggregator,),
    "objective": (Objective,),
    "prior": (Prior, nn.Module),
}


@spec
class ModelSpec:
    """Everything that says what a model is; what a checkpoint's header holds."""

    modalities: dict[str, Modality] = attrs.field(converter=as_modalities)
    latent_dim: int = field(default=10, check=integer())
    aggregator: Any = part("aggregator", default="poe")
    prior: Any = part("prior", default="standard")
    objective: Any = part("objective", default="elbo")
    family: Any = part("family", default="normal")
    rescale: Any = field(default=None, check=one_of(None, "dims", other=factors))
    private_from: str | None = field(default=None, check=one_of(None, "evidence", "observed"))
    schedule: Any = part("schedule", default="single")


@attrs.frozen(eq=False)
class Parts:
    """The live parts of a model, and its spec with the defaults that they decide."""

    spec: ModelSpec
    family: Family
    aggregator: Aggregator
    prior: Prior
    objective: Objective
    encoders: nn.ModuleDict
    decoders: nn.ModuleDict
    cross: nn.ParameterDict
    likelihood_weights: dict[str, float]
    order: tuple[int, ...]


def assemble(spec: ModelSpec) -> Parts:
    """Builds every part of a model.

    Raises:
        SpecError: parts that do not go together, and what would.
    """
    if not spec.latent_dim and not all(m.private_dim for m in spec.modalities.values()):
        reason = (
            "0 leaves modalities without any latent; give each a private_dim, or take 1 or more"
        )
        raise SpecError(reason, "latent_dim")
    family = _built("family", spec.family, None)
    sizes = Sizes(spec.latent_dim, family, spec.modalities, spec.prior)
    prior = _built("prior", spec.prior, sizes)
    sizes = attrs.evolve(sizes, live_prior=prior)
    aggregator, objective = (
        _built(kind, getattr(spec, kind), sizes) for kind in ("aggregator", "objective")
    )
    if objective.needs_experts and not aggregator.defaults.has_unimodal_experts:
        reason = f"looks at raw experts, which aggregator {type(spec.aggregator).__name__} has none of; take another"
        raise SpecError(reason, "objective")
    refusal = prior.incompatibility(aggregator, objective) if isinstance(prior, Prior) else None
    if refusal:
        raise SpecError(refusal, "prior")
    rule = spec.private_from or aggregator.defaults.private_from
    encoders, decoders, cross = nn.ModuleDict(), nn.ModuleDict(), nn.ParameterDict()
    for name, modality in spec.modalities.items():
        width, network = (
            aggregator.width(spec.latent_dim) + 2 * modality.private_dim,
            modality.encoder,
        )
        try:
            _refuse_transforms(modality)
            with plugins.error_context(type(network), "when its encoder was built"):
                made = (
                    network
                    if isinstance(network, nn.Module)
                    else network.encoder(modality.input_shape, width)
                )
            encoders[name] = made
            decoders[name] = Decoder(name, modality, sizes)
        except SpecError as error:
            raise error.within(f"modalities.{name}") from None
        if modality.private_dim and modality.cross_prior == "learned" and rule == "evidence":
            cross[name] = nn.Parameter(raw_of_one(family, (modality.private_dim,)))
    _warn_of_idle_encoders(spec, aggregator, objective)
    spec = attrs.evolve(spec, private_from=rule)  # type: ignore[misc]
    live = (family, aggregator, prior, objective, encoders, decoders, cross)
    parts = Parts(spec, *live, _likelihood_weights(spec), sizes.canonical)
    return parts


def _refuse_transforms(modality: Modality) -> None:
    """Raises SpecError for transforms that were not fitted, or that end in other values than the likelihood takes."""
    for step in modality.transform:
        if not step.ready:
            raise SpecError(
                f"{step!r} is not fitted; use dataset.fit_transforms(…) and its modalities",
                "transform",
            )
    classes = [step.classes for step in modality.transform]
    if classes and (
        any(classes[:-1]) or classes[-1] != getattr(modality.likelihood, "class_axis", False)
    ):
        reason = "one_hot comes last and goes with a categorical likelihood, others do not; change one of them"
        raise SpecError(reason, "transform")


def _built(kind: str, part: Any, sizes: Any) -> Any:
    try:
        with plugins.error_context(type(part), "when it was built"):
            made = part.build(sizes)
            if not isinstance(made, LIVE[kind]):
                names = " or ".join(one.__name__ for one in LIVE[kind])
                raise TypeError(f"build gave {made!r}; expected a {names}")
            return made
    except SpecError as error:
        raise error.within(kind) from None


def _warn_of_idle_encoders(spec: ModelSpec, aggregator: Aggregator, objective: Objective) -> None:
    if (
        aggregator.defaults.has_joint_encoder
        and not objective.trains_unimodal
        and plugins.name_of("schedule", type(spec.schedule)) == "single"
    ):
        warnings.warn(
            f"objective {type(spec.objective).__name__} trains the unimodal encoders of aggregator "
            f"{type(spec.aggregator).__name__} on incomplete rows only; take 'jmvae' or 'telbo', or "
            "schedule='joint_then_unimodal', to give them something to learn from complete rows",
            stacklevel=4,
        )


def _likelihood_weights(spec: ModelSpec) -> dict[str, float]:
    """Factors of the log-likelihoods in objectives: each modality's weight times its rescaling."""
    rescale = spec.rescale or {}
    most = max(m.numbers for m in spec.modalities.values())
    if rescale == "dims":
        rescale = {name: most / m.numbers for name, m in spec.modalities.items()}
    for name in rescale:
        if name not in spec.modalities:
            raise SpecError(f"no modality {name!r}; {suggest(name, spec.modalities)}", "rescale")
    return {name: m.weight * rescale.get(name, 1.0) for name, m in spec.modalities.items()}
