"""The guard: losses and gradients that are no numbers never reach the weights, and are traced to where they arose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mvkit.core.batch import Batch

LOOK = 16  # steps between looks at an accelerator's flags


class Guard:
    """Keeps steps that are no numbers from the weights.

    On the CPU every step is looked at. On an accelerator nobody waits: fused optimizers leave out a step whose flag is
    up on the device, and the flags are read every 16 steps. In mode `stop` all steps after a bad one are left out too,
    so that the weights found then are those before it.

    Args:
        model: whose floating-point buffers are put back after a bad step.
        optimizer: what steps.
        mode: `stop` or `skip`.
    """

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, mode: str
    ) -> None:
        self.optimizer, self.mode = optimizer, mode
        self.buffers = [b for b in model.buffers() if b.is_floating_point()]
        self.held: list[Tensor] = []
        device = next(model.parameters()).device
        # how torch's own gradient scaler asks fused optimizers to leave out a step
        self.late = device.type != "cpu" and getattr(
            optimizer, "_step_supports_amp_scaling", False
        )
        self.raised = torch.zeros((), dtype=torch.bool, device=device)
        self.recent: list[tuple[Tensor, Any]] = []

    def hold(self) -> None:
        """Notes the buffers before a step."""
        self.held = [b.clone() for b in self.buffers]

    def step(
        self, loss: Tensor, gradients: list[Tensor], context: Any
    ) -> tuple[Tensor, list[Any]]:
        """Steps unless the loss () or a gradient is no number.

        Returns:
            A flag () whether this step was left out for its own sake, and the contexts of bad steps that came to light.
        """
        norms = torch.stack(torch._foreach_norm(gradients)).sum() if gradients else loss.detach()
        bad = ~torch.isfinite(loss.detach() + norms)
        if not self.late:
            if bool(bad):
                self._put_back(bad)
                return bad, [context]
            self.optimizer.step()
            return bad, []
        self.raised = self.raised | bad if self.mode == "stop" else bad
        self._put_back(self.raised)
        # both attributes are read by the fused kernels of torch.optim
        self.optimizer.found_inf = self.raised.to(torch.float32)  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        self.recent.append((bad, context))
        return bad, self.look() if len(self.recent) >= LOOK else []

    def look(self) -> list[Any]:
        """Contexts of the bad steps since the last look; waits for the device."""
        recent, self.recent = self.recent, []
        flags = torch.stack([bad for bad, _ in recent]).tolist() if recent else []
        return [context for flag, (_, context) in zip(flags, recent, strict=True) if flag]

    def _put_back(self, bad: Tensor) -> None:
        for buffer, old in zip(self.buffers, self.held, strict=True):
            buffer.copy_(torch.where(bad, old, buffer))


def locate(
    batch: Batch,
    rows_of_data: Tensor | None,
    evaluate: Callable[[Batch], tuple[Tensor, dict[str, Tensor]]],
) -> str:
    """Which terms and which rows of a batch are no numbers.

    Args:
        batch: a conformed batch.
        rows_of_data: their rows in the data, (b,), if that is known.
        evaluate: loss () and metrics of some of its rows.
    """
    with torch.no_grad():
        metrics = evaluate(batch)[1]
        bad = [name for name, value in metrics.items() if not bool(torch.isfinite(value))]
        rows = [
            i for i in range(len(batch)) if not bool(torch.isfinite(evaluate(batch.take([i]))[0]))
        ]
    names = rows if rows_of_data is None else sorted(rows_of_data[rows].tolist())
    shown = ", ".join(map(str, names[:8])) + (
        f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    )
    where = (
        f"rows {shown} of the {'batch' if rows_of_data is None else 'data'}"
        if rows
        else "no row alone"
    )
    return f"{', '.join(bad)} ({where})" if bad else ""


def nonfinite_gradients(named: dict[str, Tensor]) -> str:
    """Names of the parameters whose gradients are no numbers."""
    bad = [
        name
        for name, p in named.items()
        if p.grad is not None and not bool(torch.isfinite(p.grad).all())
    ]
    return (
        f"the gradient of {', '.join(bad[:4])}" + (" and others" if len(bad) > 4 else "")
        if bad
        else ""
    )
