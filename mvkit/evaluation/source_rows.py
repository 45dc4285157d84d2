"""Conformed rows of a source, which stay where they are until a block of them is scored.

Axes: b rows, m modalities.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvkit.core.batch import Batch, conform
from mvkit.core.row_picks import RowPick
from mvkit.core.validation import Schema
from mvkit.data.joined_batches import elements_of
from mvkit.data.shards import Shards
from mvkit.data.sources import Source, gather
from mvkit.evaluation.joined_rows import fingerprint, joined
from mvkit.evaluation.metric import ROW
from mvkit.models.ensemble import Ensemble
from mvkit.models.far_covariates import warn_if_far
from mvkit.models.inference import ROWS
from mvkit.models.multimodal import MultimodalModel
from mvkit.models.source_blocks import raw_blocks


@attrs.frozen(eq=False)
class SourceRows:
    """Rows of a source, as metrics look at a conformed batch.

    Masks, labels and all that is known of the rows beside their values is in memory. Whatever
    else is asked of them gathers them: metrics take blocks first.

    Args:
        source: where they are.
        schema: the model's.
        known: all but their values.
        gaps: the modalities of which some row of the source lacks single values.
    """

    source: Source
    schema: Schema
    known: Batch
    gaps: tuple[str, ...]

    @classmethod
    def of(cls, model: MultimodalModel | Ensemble, source: Source) -> Self:
        """The rows of a source, all of which are looked at once."""
        blocks: list[Batch] = []
        gaps: dict[str, None] = {}
        with raw_blocks(source, ROWS) as raw:
            for start, batch in raw:
                block = conform(batch, model.schema)
                warn_if_far(model.decoding.conditions, block, conformed=start > 0)
                gaps |= dict.fromkeys(block.elements or {})
                blocks.append(attrs.evolve(block, data={}, elements=None))
        known = joined(blocks)
        if isinstance(source, Shards):  # rows are scored in an order that their contents decide
            source = Shards(source.folder, window=None, memory=source.memory)
        names = tuple(name for name in model.names if name in gaps)
        return cls(source, model.schema, known, names)

    def __len__(self) -> int:
        return len(self.known)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.batch(), name)

    @property
    def observed(self) -> Tensor:
        """What each row observes, (b, m)."""
        return self.known.observed

    @property
    def mask(self) -> Tensor | None:
        """The same."""
        return self.known.mask

    @property
    def extra(self) -> dict[str, Any]:
        """Labels and other things that are known of the rows."""
        return self.known.extra

    @property
    def covariates(self) -> dict[str, Any]:
        """What a model is conditioned on."""
        return self.known.covariates

    @property
    def exposure(self) -> dict[str, Tensor]:
        """Exposures of the modalities that have one."""
        return self.known.exposure

    @property
    def row_weight(self) -> Any:
        """How much each row counts in objectives."""
        return self.known.row_weight

    def with_extra(self, extra: dict[str, Any]) -> Self:
        """The same rows with other things known of them, the number of each row among them."""
        return attrs.evolve(self, known=attrs.evolve(self.known, extra=extra))

    def take(self, index: RowPick) -> Self:
        """Some of the rows, which stay where they are."""
        return attrs.evolve(self, known=self.known.take(index))

    def hide(self, keep: Iterable[str]) -> Batch:
        """What the rows observe with only the modalities in `keep` left; without their values."""
        return self.known.hide(keep)

    def to(self, device: torch.device | str) -> Batch:
        """The rows, gathered, on a device."""
        return self.batch().to(device)

    def batch(self) -> Batch:
        """The rows, gathered."""
        places = self.known.extra[ROW].tolist()
        rows = conform(gather(self.source, places, None), self.schema)
        elements = {name: elements_of(rows, name, rows.data[name]) for name in self.gaps}
        return attrs.evolve(rows, elements=elements or None, extra=dict(self.known.extra))

    def fingerprint(self, seed: int) -> NDArray[np.uint64]:
        """A number for each row that its contents and the seed decide, (b,)."""
        parts = [self.take(slice(i, i + ROWS)) for i in range(0, len(self), ROWS)]
        return np.concatenate([fingerprint(part.batch(), seed) for part in parts])
