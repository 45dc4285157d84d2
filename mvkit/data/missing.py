"""Simulated missingness: a pure function of (seed, row, modality), whatever the batches or workers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def uniforms(seed: int, rows: int, columns: int) -> NDArray[np.float64]:
    """Uniforms (rows, columns) in [0, 1), each a hash of (seed, row, column): the splitmix64 finaliser."""
    row = np.arange(rows, dtype=np.uint64)[:, None]
    column = np.arange(columns, dtype=np.uint64)[None, :]
    with np.errstate(over="ignore"):
        state = np.uint64(seed % 2**63) * np.uint64(0x9E3779B97F4A7C15) + row * np.uint64(0xD1B54A32D192ED03)
        state = state + (column + np.uint64(1)) * np.uint64(0x8CB92BA72F3D8DD7)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) / 2.0**53


def at_random(rows: int, modalities: int, rate: float, seed: int) -> NDArray[np.bool_]:
    """A mask (b, m), True where observed: each place missing with probability `rate`, one at least kept a row."""
    uniform = uniforms(seed, rows, modalities)
    mask = uniform >= rate
    lost = ~mask.any(1)
    mask[lost, uniform[lost].argmax(1)] = True
    return mask
