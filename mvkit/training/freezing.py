"""Which parameters a stage trains, by globs over their names; the rest is frozen."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import cast

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mvkit.errors import SpecError, suggest
from mvkit.models.added_levels import PREFIX, level_columns
from mvkit.models.model import Model

NOT = "!"  # before a glob: what it matches is left out


def selected(model: nn.Module, globs: Iterable[str]) -> dict[nn.Parameter, str]:
    """Parameters with their names that globs match, but for what the user froze.

    Globs after "!" leave out what they match, wherever they stand; with none but such, all else is
    selected.

    Raises:
        SpecError: a glob that matches no parameter.
    """
    globs = list(globs)
    excluded = [glob.removeprefix(NOT) for glob in globs if glob.startswith(NOT)]
    included = [glob for glob in globs if not glob.startswith(NOT)]
    if excluded and not included:
        included = ["*"]
    _check_globs(model, included)
    _check_globs(model, excluded)
    chosen = {}
    for name, parameter in model.named_parameters():
        wanted = _matches(name, included) and not _matches(name, excluded)
        if wanted and parameter.requires_grad:
            chosen[parameter] = name
    return chosen


@contextlib.contextmanager
def trainable(
    model: nn.Module, globs: Sequence[str], but: Container[nn.Parameter] = ()
) -> Iterator[list[nn.Parameter]]:
    """Trains only the parameters that match, inside; restores everything on exit.

    Globs after "!" leave out what they match, wherever they stand; with none but such, all else is
    trained. Modules whose parameters are all frozen are in evaluation mode, so that no statistic
    or dropout moves. What the user froze stays frozen.

    Args:
        model: the model.
        globs: over names of parameters, or levels.
        but: parameters that are frozen all the same.

    Raises:
        SpecError: a glob that matches no parameter.
    """
    levels = [glob for glob in globs if glob.startswith(PREFIX)]
    plain = [glob for glob in globs if not glob.startswith(PREFIX)]
    excluded = [glob for glob in plain if glob.startswith(NOT)]
    chosen: dict[nn.Parameter, str] = {}
    if plain != excluded or not levels:
        chosen = selected(model, plain)
    for parameter in [parameter for parameter in chosen if parameter in but]:
        del chosen[parameter]
    rest = selected(model, excluded) if excluded else None
    hooks = _train_levels(model, levels, chosen, rest)
    try:
        with _frozen_rest(model, chosen):
            yield list(chosen)
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _frozen_rest(model: nn.Module, chosen: Container[nn.Parameter]) -> Iterator[None]:
    """Freezes all parameters but those chosen, inside; restores everything on exit."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    modes = {module: module.training for module in model.modules()}
    try:
        for parameter in flags:
            parameter.requires_grad_(parameter in chosen)
        for module in idle_modules(model, chosen):
            module.training = False
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for module, mode in modes.items():
            module.training = mode


def idle_modules(model: nn.Module, chosen: Container[nn.Parameter]) -> set[nn.Module]:
    """Modules with parameters of which none is chosen, and all modules inside them."""
    idle: set[nn.Module] = set()
    for module in model.modules():
        own = set(module.parameters())
        if own and not any(parameter in chosen for parameter in own):
            idle.update(module.modules())
    return idle


def _train_levels(
    model: nn.Module,
    globs: Iterable[str],
    chosen: dict[nn.Parameter, str],
    among: Container[nn.Parameter] | None,
) -> list[RemovableHandle]:
    """Adds the parameters of levels to those that are chosen; hooks let no other column move.

    Args:
        model: the model.
        globs: levels.
        chosen: what is trained wholly.
        among: the parameters that may be added; None: all.
    """
    bottom = cast(Model, getattr(model, "bottom", model))
    flags: dict[nn.Parameter, Tensor] = {}
    for glob in globs:
        for parameter, columns in level_columns(bottom, glob).items():
            flags[parameter] = flags.get(parameter, columns) | columns
    hooks = []
    for parameter, columns in flags.items():
        if parameter in chosen or not parameter.requires_grad:
            continue
        if among is not None and parameter not in among:
            continue
        chosen[parameter] = PREFIX
        keep = columns.to(parameter)
        hooks.append(parameter.register_hook(lambda gradient, keep=keep: gradient * keep))
    return hooks


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def _check_globs(model: nn.Module, globs: Iterable[str]) -> None:
    # names of groups end in a dot; these six count even where they have no parameters
    groups = {"encoders.", "decoders.", "aggregator.", "prior.", "cross.", "objectives."}
    for name, child in model.named_children():
        groups.add(f"{name}.")
        groups.update(f"{name}.{inner}." for inner, _ in child.named_children())
    names = groups.union(name for name, _ in model.named_parameters())
    names = {name for name in names if "samplers" not in name.split(".")}  # by `fit_sampler`
    for glob in globs:
        if any(fnmatch.fnmatchcase(name, glob) for name in names):
            continue
        if glob.startswith(PREFIX):
            raise SpecError(
                f"{NOT + glob!r}: the weights of a level cannot be left out; expected a level "
                "alone, or the name of a parameter",
                "trainable",
            )
        names -= {"objectives.", "refiners."}  # most models have none
        groups = {name.partition(".")[0] for name in names}
        hint = suggest(glob, [f"{group}.*" for group in groups])
        reason = f"{glob!r} matches no parameter; {hint}; groups are {sorted(groups)}"
        raise SpecError(reason, "trainable")
