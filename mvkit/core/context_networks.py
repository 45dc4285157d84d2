"""Networks that see the covariates of a row beside its values: called as `module(x, context)`.

Axes: n rows, c numbers of a context.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import nn

from mvkit.core.covariates import Side
from mvkit.errors import SpecError


def takes_context(module: nn.Module) -> bool:
    """Whether a module's `forward` takes a context beside the rows."""
    parameters = inspect.signature(module.forward).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 1 or any(p.kind == p.VAR_POSITIONAL for p in parameters)


def built_network(
    build: Callable[..., nn.Module], before: object, after: object, context: int, side: Side
) -> nn.Module:
    """What a network's `encoder` or `decoder` returns, told how wide the context is.

    Raises:
        SpecError: a network without a place for a context that there is.
    """
    if not context:
        return build(before, after)
    if "context" in inspect.signature(build).parameters:
        module = build(before, after, context=context)
    else:
        module = build(before, after)
    check_takes_context(module, context, side)
    return module


def check_takes_context(module: nn.Module, context: int, side: Side) -> None:
    """Raises SpecError unless a module takes the context that its side sees."""
    if context and not takes_context(module):
        raise SpecError(
            f"{type(module).__name__}.forward takes rows alone, and there are covariates; "
            f"expected forward(x, context), a context of shape (n, {context}); or leave {side!r} "
            "out of the covariates' into="
        )
