"""Whether the tensors of a file are those of the model that its header describes.

A header may claim enormous networks. While a model is built from one, no more tensors are made
than what the file holds can justify; and what was built is compared with the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mvkit.errors import CheckpointError

Sizes = Any  # whole numbers, or a sequence of them
REALS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SPARE_NUMBERS = 2**24  # that parts may make, however small the file; 64 MiB
SPARE_TENSORS = 2**10  # likewise
TIMES = 16  # as much as the file holds: initial values, and tables that are not stored


def _of_size(*size: Sizes, **options: Sizes) -> int:
    """How many numbers `torch.zeros` and its like make."""
    given = options.get("size", size)
    if len(given) == 1 and isinstance(given[0], tuple | list):
        given = given[0]
    return int(math.prod(given))


def _of_full(size: Iterable[int], *args: object, **options: object) -> int:
    return math.prod(size)


def _of_eye(n: int, m: int | None = None, **options: object) -> int:
    return n * (n if m is None else m)


def _of_arange(
    start: float = 0, end: float | None = None, *args: object, **options: object
) -> int:
    return int(start if end is None else end - start)


def _of_repeat(x: Tensor, *repeats: Sizes, **options: Sizes) -> int:
    return x.numel() * _of_size(*options.get("repeats", repeats))


NUMBERS: dict[object, Callable[..., int]] = {
    **dict.fromkeys((torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn), _of_size),
    torch.full: _of_full,
    torch.eye: _of_eye,
    torch.arange: _of_arange,
    torch.Tensor.repeat: _of_repeat,
}


class Allowance(TorchFunctionMode):
    """Inside, no more tensors can be made than a file justifies.

    Args:
        tensors: those of the file.
        where: begins the message.
    """

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        super().__init__()
        self.where = where
        total = sum(tensor.numel() for tensor in tensors.values())
        self.numbers = SPARE_NUMBERS + TIMES * total
        self.tensors = SPARE_TENSORS + TIMES * len(tensors)

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        options = kwargs or {}
        if func in NUMBERS:
            self.tensors -= 1
            self.numbers -= NUMBERS[func](*args, **options)
            if self.tensors < 0 or self.numbers < 0:
                raise CheckpointError(
                    f"{self.where}: its header describes networks far larger than the tensors of "
                    "the file; take another copy"
                )
        return func(*args, **options)


def check_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], given: Iterable[nn.Module], where: str
) -> None:
    """Raises CheckpointError unless the tensors of a file are those of a model.

    Args:
        model: as its header describes it.
        tensors: those of the file, by name.
        given: modules of the user's, whose tensors `load_state_dict` compares.
        where: begins the message.
    """
    prefixes = tuple(_prefixes(model, list(given)))
    expected = model.state_dict()
    for name in sorted({*expected, *tensors}):
        if name.startswith(prefixes):
            continue
        reason = _difference(tensors.get(name), expected.get(name))
        if reason:
            raise CheckpointError(
                f"{where}: the model cannot be built again: tensor {name!r} {reason}; take "
                "another copy"
            )


def _prefixes(model: nn.Module, given: list[nn.Module]) -> Iterator[str]:
    """How the names of the tensors of the given modules begin."""
    for path, module in model.named_modules(remove_duplicate=False):
        if any(module is other for other in given):
            yield f"{path}."


def _difference(stored: Tensor | None, expected: Tensor | None) -> str:
    """How a tensor of a file differs from that of the model; empty if it does not.

    Kinds of floating-point numbers may differ: `load_state_dict` converts them.
    """
    if stored is None:
        return "is missing from the file, and its header asks for it"
    if expected is None:
        return "is in the file, and its header does not ask for it"
    if stored.shape != expected.shape:
        shapes = f"{tuple(stored.shape)} in the file and {tuple(expected.shape)} by its header"
        return f"has shape {shapes}"
    same = stored.dtype in REALS if expected.dtype in REALS else stored.dtype == expected.dtype
    return "" if same else f"is {stored.dtype} in the file; expected {expected.dtype}"
