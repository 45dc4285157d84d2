"""Options of a run, beside its stages."""

from __future__ import annotations

from typing import Literal

import attrs

from mvkit.training.nonfinite import OnNonFinite

Precision = Literal["float32", "bf16"]
Resume = Literal["auto", "must", "never"]
DataOn = Literal["host", "device"]
Compile = bool | Literal["step"]


@attrs.frozen
class Options:
    """Options of a run, beside its stages; `fit` documents each."""

    batch_size: int
    lr: float
    seed: int
    on_nonfinite: OnNonFinite
    precision: Precision
    save_every: float
