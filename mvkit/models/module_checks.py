"""Modules of users, tried on two rows when a model is made: a module that cannot stand where it
was put is refused by name, with what it emitted.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mvkit.core import noise
from mvkit.errors import ShapeError
from mvkit.models.inference import evaluation

ROWS = 2
Shape = tuple[int, ...]


def check_module(
    path: str, module: nn.Module, shape: Shape, emitted: Shape, meaning: str = "", context: int = 0
) -> None:
    """Raises ShapeError unless a module maps rows (n, *shape) to (n, *emitted).

    Args:
        path: where the module is, such as `encoders.a`.
        module: tried in evaluation mode; draws nothing from torch's global generator.
        shape: of what it is given.
        emitted: of what it must emit.
        meaning: what that is, for the message.
        context: numbers of the covariates that it is given too; 0: it is given rows alone.
    """
    for name, parameter in module.named_parameters():
        if is_lazy(parameter):
            raise ShapeError(
                f"{path}: its layer {name.rpartition('.')[0]!r} is lazy, so that its width is not "
                "known before it is used; take a layer with a width, or call the module on a row "
                "before"
            )
    like = next(module.parameters(), torch.zeros(()))
    if like.device.type == "meta":
        return
    inputs = [like.new_zeros(ROWS, *shape)]
    if context:
        inputs.append(like.new_zeros(ROWS, context))
    expected = f"expected a tensor {_as_rows(emitted)} for rows {_as_rows(shape)}{meaning}"
    try:
        with evaluation(module), torch.no_grad(), noise.kept_global(devices=None):
            output: object = module(*inputs)
    except Exception as error:
        raise ShapeError(
            f"{path}: {type(error).__name__}: {error}; {expected}, floats of {like.dtype}"
        ) from error
    if not isinstance(output, Tensor):
        raise ShapeError(f"{path}: emitted a {type(output).__name__}; {expected}")
    if tuple(output.shape) != (ROWS, *emitted):
        raise ShapeError(f"{path}: emitted {tuple(output.shape)} for {ROWS} rows; {expected}")


def _as_rows(shape: Shape) -> str:
    return f"({', '.join(map(str, ('n', *shape)))})"
