"""What is given of rows that are generated: covariates and exposures.

Axes: b rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from torch import Tensor

from mvkit.core.batch import Batch


@attrs.frozen(eq=False)
class RowContext:
    """What is given of rows that are generated.

    Args:
        covariates: {name: (b,)}, or any shape that can be expanded to that of the latents.
        exposure: by modality, likewise; NaN where unknown.
        elements: observed elements, whose sum the exposure `total` is, {name: (b, *shape) bool}.
        background: whether means hold what likelihoods know as background.
    """

    covariates: Mapping[str, Tensor] = attrs.field(factory=dict)
    exposure: Mapping[str, Tensor] = attrs.field(factory=dict)
    elements: Mapping[str, Tensor] = attrs.field(factory=dict)
    background: bool = True

    @classmethod
    def of(cls, batch: Batch) -> RowContext:
        """What is given of the rows of a conformed batch."""
        return cls(batch.covariates, batch.exposure, batch.elements or {})


NOTHING_GIVEN = RowContext()
