"""Refiners that a model holds: how they are made, kept, asked for, and known to be out of date.

Axes: d shared and p private latent, c numbers of the covariates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

import torch
from torch import nn

from mvkit.core.decoder import Decoder
from mvkit.core.noise import global_seed, seed_of_name
from mvkit.errors import RequestError, SpecError, suggest, within
from mvkit.models import sampler_requests
from mvkit.models.objective_modules import every_objective
from mvkit.models.refined_decoding import Asked
from mvkit.models.sampler_requests import HasSamplers, digest_of_fit, warn_if_changed
from mvkit.parts.objectives.objective import Objective
from mvkit.parts.objectives.refining import Refine
from mvkit.parts.refiners import Refiner, RefinerSizes
from mvkit.registry import plugins
from mvkit.registry.loading import live_part
from mvkit.registry.spec import as_part, to_dict

Wanted = bool | str | Iterable[str]  # all modalities, or none; or the names of some
BORDER = 1e-6  # how far draws stay from a border that values may not be on


class HasRefiners(HasSamplers, Protocol):
    """A model that holds refiners of modalities."""

    modalities: dict[str, Any]
    refiners: nn.ModuleDict
    refined_to: dict[str, str]  # digests of the weights that they were trained on
    training: bool

    @property
    def context_width(self) -> int:
        """How many numbers of the covariates decoders see of a row."""


def sizes_for(model: HasRefiners, name: str) -> RefinerSizes:
    """What a refiner is told of a modality.

    Raises:
        RequestError: a modality that there is not, or whose values are no continuous numbers.
    """
    if name not in model.modalities:
        hint = suggest(str(name), model.modalities)
        raise RequestError(f"refiner: unknown modality {name!r}; {hint}")
    modality = model.modalities[name]
    if not _is_continuous(model, name):
        raise RequestError(
            f"refiner: the values of {name!r}, {modality.likelihood!r}, are classes, counts or "
            "the like, and refiners draw numbers of any size; expected continuous values; leave "
            "it out: modalities=[…], and take draws of its likelihood: sample=True"
        )
    low, high = (_limit(model, name, at, step) for at, step in ((0.0, -1.0), (1.0, 1.0)))
    p = modality.private_dim
    latent = model.latent_dim + p
    return RefinerSizes(name, modality.shape, latent, p, model.context_width, low, high)


def _is_continuous(model: HasRefiners, name: str) -> bool:
    """Whether a modality may have values such as ½, all of them at once."""
    likelihood = _decoder(model, name).likelihood
    return not likelihood.class_axis and not _refuses(model, name, 0.5)


def _limit(model: HasRefiners, name: str, at: float, step: float) -> float:
    """The limit of draws on one side: `at`, or just inside of it, if values beyond are refused."""
    if not _refuses(model, name, at + step):
        return step * torch.inf
    return at - step * BORDER if _refuses(model, name, at) else at


def _refuses(model: HasRefiners, name: str, value: float) -> bool:
    """Whether the likelihood of a modality takes a row of one value for impossible."""
    likelihood = _decoder(model, name).likelihood
    x = torch.full((1, *model.modalities[name].shape), value).to(model.like)
    return bool(likelihood.out_of_support(x).any())


def _decoder(model: HasRefiners, name: str) -> Decoder:
    decoders = cast(Mapping[str, Decoder], model.decoding.decoders)  # type: ignore[attr-defined]
    return decoders[name]


def install(model: HasRefiners, name: str, spec: Any, seed: int | None = None) -> None:
    """Gives a model a fresh refiner of a modality, in place of the one that it has.

    Args:
        model: the model.
        name: the modality.
        spec: a refiner by name or spec.
        seed: of its initial weights, with the name; None: torch's global state.

    Raises:
        RequestError: a modality that cannot be refined.
        SpecError: what cannot be built.
    """
    spec = as_part("refiner", spec)
    sizes = sizes_for(model, name)
    drawn = None if seed is None else seed_of_name(seed, f"refiner/{name}")
    with global_seed(drawn), plugins.error_context(type(spec), "when it was built"):
        refiner = live_part(spec, "refiner", (Refiner,), sizes)
    if not isinstance(refiner, nn.Module):
        raise SpecError(
            f"refiner {spec!r} built a {type(refiner).__name__}, whose state no file would hold; "
            "expected an nn.Module; let it inherit nn.Module too"
        )
    _check_latents(cast(Refiner, refiner))
    refiner.spec = spec
    model.refiners[name] = refiner.to(model.like).train(model.training)
    model.refined_to.pop(name, None)


def _check_latents(refiner: Refiner) -> None:
    """Raises SpecError for a refiner that cannot be trained on the latents that it asks for."""
    asked = refiner.latents_from
    if asked not in ("parts", "own"):
        raise SpecError(f"latents_from: got {asked!r}; expected 'parts' or 'own'")
    if refiner.knows_given and asked == "own":
        raise SpecError(
            "knows_given: with latents_from='own' the modality is always given in training; "
            "expected latents_from='parts', whose parts may lack it"
        )


def adopt(model: HasRefiners, objective: Objective, seed: int) -> None:
    """Makes the refiners that objectives name a part of the model, unless it has the same.

    Args:
        model: the model.
        objective: that of a stage, and those that it is made of.
        seed: of initial weights.

    Raises:
        SpecError: a `Stack`.
    """
    for part in every_objective(objective):
        if not isinstance(part, Refine):
            continue
        if hasattr(model, "levels"):
            raise SpecError(STACK, "objective")
        for name, spec in part.refiners.items():
            if name not in model.refiners or model.refiners[name].spec != spec:
                with within(f"objective.refiners.{name}"):
                    install(model, name, spec, seed)


STACK = (
    "a stack decodes through two levels, and a refiner sees the latents of one; expected a Model; "
    "take one with private latents"
)


def note_weights(model: HasRefiners, names: Iterable[str]) -> None:
    """Notes that refiners are trained on the weights that the model has now."""
    now = digest_of_fit(model)
    for name in names:
        if now is not None:
            model.refined_to[name] = now


def asked_refiners(model: HasRefiners, wanted: Wanted, to: tuple[str, ...], where: str) -> Asked:
    """The refiners that are to draw modalities; warns of those that are out of date.

    Args:
        model: the model.
        wanted: all of `to`, none, or the names of some.
        to: what is generated.
        where: begins messages.

    Raises:
        RequestError: a modality without a refiner, or that is not generated.
    """
    if wanted is False:
        return {}
    names = to if wanted is True else _names(wanted, to, where)
    lacking = [name for name in names if name not in model.refiners]
    if lacking:
        raise RequestError(_lacking(model, lacking, where))
    refiners = {}
    for name in names:
        _warn_if_stale(model, name)
        refiners[name] = cast(Refiner, model.refiners[name]), sizes_for(model, name)
    return refiners


def _names(wanted: Any, to: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Modalities by name, checked."""
    try:
        names = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    except TypeError:
        raise RequestError(
            f"{where}: refine={wanted!r}; expected True, False, or names of modalities"
        ) from None
    for name in names:
        if name not in to:
            raise RequestError(
                f"{where}: refine: {name!r} is not among what is generated; "
                f"{suggest(str(name), to)}"
            )
    return names


def _lacking(model: HasRefiners, names: list[str], where: str) -> str:
    """Why modalities cannot be refined, and what to do."""
    listed = ", ".join(map(repr, names))
    if hasattr(model, "levels"):
        return f"{where}: refine: {STACK}; leave refine out"
    have = ", ".join(map(repr, model.refiners)) or "none"
    hopeless = [name for name in names if not _is_continuous(model, name)]
    if hopeless:
        return (
            f"{where}: {', '.join(map(repr, hopeless))} cannot be refined, since classes, counts "
            f"and the like are no continuous numbers; modalities with a refiner: {have}; name "
            "those that are meant: refine=[…]"
        )
    return (
        f"{where}: no refiner was trained for {listed}; modalities with one: {have}; call "
        f"mvkit.fit_refiner(model, data, modalities={names}) first, or name those that are meant: "
        "refine=[…]"
    )


def _warn_if_stale(model: HasRefiners, name: str) -> None:
    """Warns once, until they change again, if weights are not those that it was trained on."""
    warn_if_changed(
        model,
        f"refiners.{name}",
        model.refined_to.get(name),
        f"refiner of {name!r}: the model's weights have changed since it was trained, so that it "
        "sharpens what the model decoded before; train it again: mvkit.fit_refiner(model, data, "
        f"modalities=[{name!r}])",
    )


def refiner_header(model: HasRefiners) -> dict[str, Any]:
    """The refiners' part of a header; nothing where there are none."""
    if not model.refiners:
        return {}
    specs = {name: to_dict(cast(Any, part).spec) for name, part in model.refiners.items()}
    refined_to = {"refined_to": dict(model.refined_to)} if model.refined_to else {}
    return {"refiners": specs, **refined_to}


def check_no_growth(model: HasRefiners, where: str) -> None:
    """Raises RequestError if networks are to see more than refiners or samplers were built for."""
    sampler_requests.check_no_growth(model, where)
    if model.refiners and model.context_width:
        raise RequestError(
            f"{where}: the refiners of {', '.join(map(repr, model.refiners))} see covariates, and "
            "their networks do not grow; expected a model without; take them out "
            "(model.refiners.clear()), and train them again afterwards"
        )
