"""Checks of what objectives make of the other rows of a batch.

Axes: b rows, c rows of all shares.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mvkit.core.all_rows import shared_rows
from mvkit.core.batch import Batch
from mvkit.models.model import Model
from mvkit.models.part_checks import expect
from mvkit.testing.tiny_models import loss_and_gradients

SHARES = ((0, 1, 2, 3, 4), (5, 6, 7))  # of the eight rows of a check
ROUNDS = 8  # enough for what is gathered to depend on what was gathered seven times before


class Replayed:
    """Gathers rows as several processes would, from what each share gathered a round before.

    Args:
        share: the number of this share.
        before: by share, what was gathered in the last round, in order; empty in the first.
    """

    def __init__(self, share: int, before: list[list[Tensor]]) -> None:
        self.share = share
        self.before = before
        self.asked: list[Tensor] = []

    def gather(self, values: Tensor) -> tuple[Tensor, int]:
        """See `mvkit.core.all_rows.all_rows`."""
        call = len(self.asked)
        self.asked.append(values.detach())
        if any(len(asked) <= call for asked in self.before):
            return values, 0
        shares = [asked[call] for asked in self.before]
        if not shares:
            return values, 0
        shares[self.share] = values
        first = sum(len(share) for share in shares[: self.share])
        return torch.cat(shares), first

    def connect(self, loss: Tensor) -> Tensor:
        """See `mvkit.core.all_rows.connected`; nobody waits here."""
        return loss


def check_coupling(model: Model, batch: Batch) -> None:
    """Raises Fault unless rows are coupled as the objective of a model says.

    The loss of a batch is the mean of its rows' own losses, unless it says `couples_rows`; then
    that of the shares that processes have of the batch, by their rows, and of permuted rows too.
    """
    loss = float(loss_and_gradients(model, batch)[0].loss.detach())
    if not model.objective.couples_rows:
        alone = [_loss_of(model, batch, [i]) for i in range(len(batch))]
        expect(
            _close(loss, sum(alone) / len(batch)),
            f"returned the loss {loss:.6g} of a batch, and {sum(alone) / len(batch):.6g} as the "
            "mean of its rows' losses alone; expected the same; say couples_rows = True, if rows "
            "are to be coupled",
        )
        return
    order = list(reversed(range(len(batch))))
    permuted = _loss_of(model, batch, order)
    expect(
        _close(loss, permuted),
        f"returned the loss {loss:.6g} of a batch, and {permuted:.6g} of its rows in another "
        "order; expected the same",
    )
    shared = _of_shares(model, batch)
    expect(
        _close(loss, shared),
        f"returned the loss {loss:.6g} of a batch, and {shared:.6g} as the mean over two shares "
        "of it; expected the same; look at other rows through mvkit.core.all_rows alone, and take "
        "the mean over the share's own rows",
    )


def _of_shares(model: Model, batch: Batch) -> float:
    """The mean loss over the rows of all shares, each of which sees the others' rows."""
    before: list[list[Tensor]] = []
    losses: list[float] = []
    for _ in range(ROUNDS):
        losses = []
        asked = []
        for share, rows in enumerate(SHARES):
            replayed = Replayed(share, before)
            with shared_rows(replayed):
                losses.append(_loss_of(model, batch, list(rows)) * len(rows))
            asked.append(replayed.asked)
        before = asked
    counts = [len(values) for values in before]
    expect(
        len(set(counts)) == 1,
        f"called all_rows {counts[0]} times for one share of a batch, and {counts[1]} for "
        "another; expected as often in all processes, which wait for one another",
    )
    return sum(losses) / len(batch)


def _loss_of(model: Model, batch: Batch, rows: list[int]) -> float:
    """The loss of some rows of a batch, with the noise of these rows."""
    loss, _ = loss_and_gradients(model, batch.take(rows), ids=rows)
    return float(loss.loss.detach())


def _close(value: float, expected: float) -> bool:
    return abs(value - expected) <= 1e-9 * max(abs(value), abs(expected)) + 1e-12
