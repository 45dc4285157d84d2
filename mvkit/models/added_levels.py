"""New levels of a covariate in a trained model, such as a site that training never saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, cast

import attrs
import torch
from torch import Tensor, nn

from mvkit.core.context_networks import takes_context
from mvkit.core.covariates import Conditions, Level, Side
from mvkit.core.likelihood import Likelihood
from mvkit.core.modality import Modality
from mvkit.errors import RequestError, suggest
from mvkit.parts.likelihoods import ForegroundBackground, NegativeBinomial
from mvkit.parts.networks import WithContext
from mvkit.parts.priors import Shift, VampPrior

PREFIX = "covariates."  # of globs that name levels, as in "covariates.site.D"


class Conditional(Protocol):
    """A model that may be conditioned on covariates."""

    conditions: Conditions | None

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """All modules inside, by path."""
        ...


def check_addable(conditions: Conditions | None, name: str, level: object, like: object) -> None:
    """Raises RequestError unless a covariate can have a new level that begins like another."""
    known = {} if conditions is None else conditions.covariates
    if name not in known:
        raise RequestError(
            f"add_level: no covariate {name!r} in the model; {suggest(name, known)}"
        )
    levels = known[name].levels
    if not levels:
        raise RequestError(
            f"add_level: covariate {name!r} is a number; expected one with levels; give rows its "
            "value"
        )
    if type(level) is not type(levels[0]):
        raise RequestError(
            f"add_level: got {level!r}; expected a level such as those of {name!r}: {levels[0]!r}"
        )
    if level in levels:
        raise RequestError(f"add_level: {name!r} has the level {level!r} already")
    if like != "average" and like not in levels:
        hint = suggest(str(like), [*map(str, levels), "average"])
        raise RequestError(f"add_level: like={like!r} is no level of {name!r}; {hint}")


def grow(model: Conditional, name: str, level: Level, like: Level) -> None:
    """Gives networks and prior of a model a new level, which begins like another, or as the
    average of all by their shares in training.
    """
    conditions = cast(Conditions, model.conditions)
    covariate = conditions.covariates[name]
    shares = torch.zeros(len(covariate.levels), dtype=torch.float64)
    if like == "average":
        shares = conditions.shares(name).double().cpu()
    else:
        shares[covariate.levels.index(like)] = 1.0
    seeing = list(_seeing(model))  # which may raise: nothing is half done then
    for _, module in model.named_modules():
        if isinstance(module, Likelihood):
            module.add_level(name, shares)
    for module, side in seeing:
        if name in _seen(conditions, side):
            _widen(module, conditions.columns(name, side), shares)
    conditions.add_level(name, level)


def modalities_with_more_levels(
    modalities: Mapping[str, Modality], name: str
) -> dict[str, Modality]:
    """The modalities, whose likelihoods ask the model how many levels a covariate has."""
    changed = dict(modalities)
    for key, modality in modalities.items():
        likelihood = modality.likelihood
        counts = isinstance(likelihood, NegativeBinomial | ForegroundBackground)
        if counts and likelihood.level == name:
            likelihood = attrs.evolve(likelihood, levels=0)
            changed[key] = attrs.evolve(modality, likelihood=likelihood)  # type: ignore[misc]
    return changed


def level_columns(model: Conditional, glob: str) -> dict[nn.Parameter, Tensor]:
    """The weights that a level alone decides: parameters, and flags of their columns (c,), or of
    the rows of what likelihoods keep by level, (levels, 1, ...).

    Args:
        model: the model.
        glob: `covariates.<covariate>.<level>`.

    Raises:
        RequestError: no such covariate, or no such level.
    """
    name, _, word = glob.removeprefix(PREFIX).partition(".")
    conditions = model.conditions
    known = {} if conditions is None else conditions.covariates
    if conditions is None or name not in known:
        raise RequestError(f"{glob!r}: no covariate {name!r}; {suggest(name, known)}")
    words = [str(level) for level in known[name].levels]
    if word not in words:
        raise RequestError(f"{glob!r}: no level {word!r} of {name!r}; {suggest(word, words)}")
    columns = {}
    for module, side in _seeing(model):
        if name in _seen(conditions, side):
            parameter = _weight(module)
            flags = torch.zeros(parameter.shape[-1], dtype=torch.bool, device=parameter.device)
            flags[conditions.columns(name, side).start + words.index(word)] = True
            columns[parameter] = flags
    for _, likelihood in model.named_modules():
        if isinstance(likelihood, Likelihood):
            for parameter in likelihood.by_level(name):
                flags = torch.zeros(len(parameter), dtype=torch.bool, device=parameter.device)
                flags[words.index(word)] = True
                columns[parameter] = flags.reshape(-1, *[1] * (parameter.ndim - 1))
    return columns


def _seen(conditions: Conditions, side: Side) -> list[str]:
    return [name for name, covariate in conditions.covariates.items() if side in covariate.into]


def _seeing(model: Conditional) -> Iterator[tuple[nn.Module, Side]]:
    """Modules whose weights have a column for each number of a side's context.

    Raises:
        RequestError: a module of the user's, whose weights nobody else can widen.
    """
    conditions = cast(Conditions, model.conditions)
    for path, module in model.named_modules():
        group = path.partition(".")[0]
        side: Side = "decoders" if group == "decoders" else "encoders"
        if isinstance(module, WithContext):
            for projection in module.projections.values():
                yield projection, side
        elif isinstance(module, Shift):
            yield module, "prior"
        elif isinstance(module, VampPrior) and module.context is not None:
            yield module, "encoders"
        elif _is_users(path, module) and conditions.width(side):
            raise RequestError(
                f"{path}: a module of yours, whose weights cannot be widened for a new level; "
                "expected networks of mvkit; make a new model with all levels"
            )


def _is_users(path: str, module: nn.Module) -> bool:
    """Whether a module is an encoder or a decoder that takes a context, and none of mvkit's."""
    parts = path.split(".")
    encoder = len(parts) == 2 and parts[0] == "encoders"
    decoder = len(parts) == 3 and parts[0] == "decoders" and parts[2] == "network"
    return (encoder or decoder) and takes_context(module) and not isinstance(module, WithContext)


def _weight(module: nn.Module) -> nn.Parameter:
    name = "context" if isinstance(module, VampPrior) else "weight"
    return cast(nn.Parameter, getattr(module, name))


def _widen(module: nn.Module, place: slice, shares: Tensor) -> None:
    """Adds a column after those of a covariate, which is their mean by shares."""
    weight = _weight(module)
    old = weight.detach()
    column = old[:, place] @ shares.to(old)
    if isinstance(module, VampPrior):
        column = torch.zeros_like(column)  # pseudo-inputs begin as they were
    parts = [old[:, : place.stop], column.unsqueeze(1), old[:, place.stop :]]
    widened = nn.Parameter(torch.cat(parts, 1), requires_grad=weight.requires_grad)
    setattr(module, "context" if isinstance(module, VampPrior) else "weight", widened)
    if isinstance(module, nn.Linear):
        module.in_features += 1
