"""Batches on their way to a device, or of rows that are stored there."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import attrs
import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.row_picks import pick
from mvkit.errors import RequestError


def pinned(batches: Iterable[Batch] | Exception) -> list[Batch] | Exception:
    """Batches in pinned memory, from which copies to a device wait for nobody; or an error."""
    if isinstance(batches, Exception):
        return batches
    return [batch.map(Tensor.pin_memory) for batch in batches]


def lacked_by_some(rows: object, names: Iterable[str]) -> frozenset[str]:
    """Modalities that some row lacks: of rows that are not a conformed batch, any of `names`."""
    if isinstance(rows, Batch) and rows.schema is not None:
        names = (name for name in rows.data if not rows.seen_by_all(name))
    return frozenset(names)


@attrs.frozen(eq=False)
class StoredRows:
    """Conformed rows on a device, from which batches are picked there.

    Args:
        rows: the rows, with what else is known of them in tensors.
        others: what else is known of them, {name: (b,)}, such as names; stays where it is.
        may_lack: modalities that some row lacks.
    """

    rows: Batch
    others: dict[str, object]
    may_lack: frozenset[str]

    @classmethod
    def of(cls, rows: object, device: torch.device) -> StoredRows:
        """Rows in memory, copied to a device.

        Raises:
            RequestError: rows that are not in memory, or not conformed beforehand.
        """
        if not isinstance(rows, Batch) or rows.schema is None:
            raise RequestError(
                f"data_on='device': got rows as {type(rows).__name__}, which are read or "
                "transformed batch by batch; expected rows in memory without a transform, since "
                "all of them are copied to the device; take data_on='host'"
            )
        tensors = {key: value for key, value in rows.extra.items() if isinstance(value, Tensor)}
        others = {key: value for key, value in rows.extra.items() if key not in tensors}
        may_lack = lacked_by_some(rows, ())
        stored = attrs.evolve(rows, extra=tensors)
        if may_lack:
            stored = stored.dense()
        return cls(stored.to(device), others, may_lack)

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Batch]:
        """The rows at each of some indices (n,), dense where some row lacks a modality."""
        if not indices:
            return
        ends = list(itertools.accumulate(map(len, indices)))
        device = self.rows.observed.device
        order = torch.cat(list(indices))
        if device.type == "cuda":
            order = order.pin_memory()
        on_device = order.to(device, non_blocking=True)
        for start, end in itertools.pairwise([0, *ends]):
            yield self._at(on_device[start:end], order[start:end])

    def _at(self, index: Tensor, known: Tensor) -> Batch:
        """The rows at an index (n,) on the device, which is `known` to the host too."""
        rows = self.rows

        def picked(value: object) -> object:
            if isinstance(value, dict):
                return {name: picked(item) for name, item in value.items()}
            return value.index_select(0, index) if isinstance(value, Tensor) else value

        fields = ("data", "mask", "elements", "extra", "covariates", "exposure", "row_weight")
        changed = {name: picked(getattr(rows, name)) for name in fields}
        if self.others:
            others = {key: pick(value, known) for key, value in self.others.items()}
            changed["extra"] = {**changed["extra"], **others}  # type: ignore[dict-item]
        return attrs.evolve(rows, **changed).expanded()  # type: ignore[arg-type]
