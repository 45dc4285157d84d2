"""Penalties: nats that modules of a model add to its loss, whatever rows it sees."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Protocol, cast

import attrs
import torch
from torch import Tensor, nn

from mvkit.core.loss import Loss, sum_of
from mvkit.errors import ShapeError
from mvkit.registry import plugins

# samplers and refiners belong to a trained model, so that nothing of theirs belongs in its loss
APART = tuple(
    f"{level}{kind}."
    for level in ("", "levels.0.", "levels.1.")
    for kind in ("samplers", "refiners")
)


class Penalised(Protocol):
    """A module that adds to the loss of its model."""

    def penalty(self, rows: int) -> Tensor:
        """Nats added to the mean loss of a row, (); `rows` is the number of training rows, by
        which what is meant for all rows together is divided.
        """
        ...


@attrs.frozen(eq=False)
class KnownPenalties:
    """The modules of a model that have a penalty, found beforehand.

    Args:
        model: the model.
        modules: its modules with a penalty, by path.
    """

    model: nn.Module
    modules: Mapping[str, Penalised]


_known: ContextVar[KnownPenalties | None] = ContextVar("known_penalties", default=None)


@contextlib.contextmanager
def penalties_found_once(model: nn.Module) -> Iterator[None]:
    """Inside, the modules of a model that have a penalty are not looked for at each step."""
    token = _known.set(KnownPenalties(model, penalised(model)))
    try:
        yield
    finally:
        _known.reset(token)


def penalised(model: nn.Module) -> dict[str, Penalised]:
    """The modules of a model that have a method `penalty(rows)`, by path; each once."""
    known = _known.get()
    if known is not None and known.model is model:
        return dict(known.modules)
    modules: dict[str, Penalised] = {}
    for path, module in model.named_modules():
        if _has_penalty(type(module)) and not path.startswith(APART):
            modules[path] = cast(Penalised, module)
    return modules


def _has_penalty(kind: type) -> bool:
    """Whether a class has a method `penalty` with an argument `rows`.

    Methods of that name with other arguments are the user's own, and are left alone.
    """
    method = getattr(kind, "penalty", None)
    if not inspect.isfunction(method):
        return False
    return "rows" in inspect.signature(method).parameters


def with_penalties(model: nn.Module, loss: Loss, rows: int) -> Loss:
    """A loss with the penalties of all modules of its model, and their sum among the metrics.

    Args:
        model: the model.
        loss: what its objective returned.
        rows: the number of training rows.

    Raises:
        ShapeError: a penalty that is no 0-d tensor of floats, with its module and package.
    """
    modules = penalised(model)
    if not modules:
        return loss
    values = [_value(path, module, rows) for path, module in modules.items()]
    total = sum_of(values).to(loss.loss)
    whole = loss.loss + total
    metrics = {**loss.metrics, "loss": whole.detach(), "penalty": total.detach()}
    return attrs.evolve(loss, loss=whole, metrics=metrics, trains=loss.loss.requires_grad)


def _value(path: str, module: Penalised, rows: int) -> Tensor:
    """The penalty of the module at a path, ()."""
    value: object = module.penalty(rows)
    expected = "expected a tensor of shape (), in nats per row"
    if not isinstance(value, Tensor):
        returned = f"a {type(value).__name__}"
    elif value.ndim:
        returned = f"a tensor of shape {tuple(value.shape)}"
    elif not value.is_floating_point():
        returned = f"a tensor of {str(value.dtype).removeprefix('torch.')}"
    else:
        return value
    raise ShapeError(f"{_named(path, module)}: penalty returned {returned}; {expected}")


def _named(path: str, module: object) -> str:
    """A module by path and class, with the package that brought it, for messages."""
    kind = type(module)
    name = f"{path or 'model'} ({kind.__name__})"
    package = plugins.package_of(kind)
    return name if package is None else f"{name} of {package}"


@torch.no_grad()
def nonfinite_penalties(model: nn.Module, rows: int) -> str:
    """The modules whose penalty is not finite, by path; empty if all are."""
    names = []
    for path, module in penalised(model).items():
        if not bool(torch.isfinite(module.penalty(rows))):
            names.append(path or "model")
    return f"the penalty of {', '.join(names)}" if names else ""
