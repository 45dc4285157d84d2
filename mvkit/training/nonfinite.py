"""Steps with a NaN or infinite loss or gradient are skipped, and traced to their rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from mvkit.core.batch import Batch
from mvkit.core.loss import Loss

Context = TypeVar("Context")
OnNonFinite = Literal["stop", "skip"]

POLL_EVERY = 16  # steps between reads of an accelerator's flags


class Guard(Generic[Context]):
    """Skips optimizer steps whose loss or gradient is not finite.

    On the CPU every step is checked before it is taken. On an accelerator nothing waits: fused
    optimizers skip a step whose flag on the device is set, and the flags are read every 16 steps.
    In mode `stop` all steps after a bad one are skipped too, so that the weights found then are
    those before it.

    Args:
        model: its floating-point buffers are put back after a bad step.
        optimizer: what takes the steps.
        mode: `stop` or `skip`.
        at_once: wait for the device in every step, because another optimizer steps in between.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        mode: OnNonFinite,
        *,
        at_once: bool = False,
    ) -> None:
        self.optimizer = optimizer
        self.mode = mode
        self.buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self.saved: list[Tensor] = []
        device = next(model.parameters()).device
        # how torch's own gradient scaler asks fused optimizers to skip a step
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        self.late = fused and device.type != "cpu" and not at_once
        self.raised = torch.zeros((), dtype=torch.bool, device=device)
        self.recent: list[tuple[Tensor, Context]] = []

    def snapshot(self) -> None:
        """Copies the buffers before a step."""
        self.saved = [buffer.clone() for buffer in self.buffers]

    def step(
        self, loss: Tensor, gradients: list[Tensor], context: Context
    ) -> tuple[Tensor, list[Context]]:
        """Takes a step unless the loss () or a gradient is not finite.

        Returns:
            A flag (): whether this step itself is bad; the contexts of bad steps found just now.
        """
        total = loss.detach()
        if gradients:
            total = total + torch.stack(torch._foreach_norm(gradients)).sum()
        bad = ~torch.isfinite(total)
        if self.late:
            return bad, self._late_step(bad, context)
        if not bool(bad):
            self.optimizer.step()
            return bad, []
        self._put_back(bad)
        return bad, [context]

    def _late_step(self, bad: Tensor, context: Context) -> list[Context]:
        self.raised = self.raised | bad if self.mode == "stop" else bad
        self._put_back(self.raised)
        # both attributes are read by the fused kernels of torch.optim
        self.optimizer.found_inf = self.raised.to(torch.float32)  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        self.recent.append((bad, context))
        return self.poll() if len(self.recent) >= POLL_EVERY else []

    def poll(self) -> list[Context]:
        """Contexts of the bad steps since the last poll; waits for the device."""
        if not self.recent:
            return []
        flags, contexts = zip(*self.recent, strict=True)
        self.recent = []
        bad = torch.stack(flags).tolist()
        return [context for flag, context in zip(bad, contexts, strict=True) if flag]

    def _put_back(self, bad: Tensor) -> None:
        for buffer, saved in zip(self.buffers, self.saved, strict=True):
            buffer.copy_(torch.where(bad, saved, buffer))


@torch.no_grad()
def locate(batch: Batch, rows_of_data: Tensor | None, evaluate: Callable[[Batch], Loss]) -> str:
    """Which terms and which rows of a batch are not finite; empty if all are.

    Args:
        batch: a conformed batch.
        rows_of_data: where its rows are in the data, (b,), if that is known.
        evaluate: the loss of some of its rows.
    """
    metrics = evaluate(batch).metrics
    terms = [name for name, value in metrics.items() if not _is_finite(value)]
    if not terms:
        return ""
    rows = [i for i in range(len(batch)) if not _is_finite(evaluate(batch.take([i])).loss)]
    where = "batch"
    if rows_of_data is not None:
        where = "data"
        rows = sorted(rows_of_data[rows].tolist())
    source = f"rows {_listed(rows, 8)} of the {where}" if rows else "no row alone"
    return f"{', '.join(terms)} ({source})"


def remedy_of(dtype: torch.dtype) -> str:
    """What to do about non-finite losses of a model in a dtype."""
    if dtype == torch.float16:  # it ends at 65504, and at 6e-8
        return (
            "a model in float16 has too small a range to train in; train it in float32 "
            "(model.float()), with precision='bf16' for speed"
        )
    return "scale the data, lower the learning rate, or clip gradients"


def nonfinite_gradients(parameters: Mapping[str, Tensor]) -> str:
    """Names of the parameters with a non-finite gradient; empty if there are none."""
    names = []
    for name, parameter in parameters.items():
        if parameter.grad is not None and not _is_finite(parameter.grad):
            names.append(name)
    return f"the gradient of {_listed(names, 4)}" if names else ""


def _is_finite(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all())


def _listed(items: Sequence[object], most: int) -> str:
    shown = ", ".join(map(str, items[:most]))
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
