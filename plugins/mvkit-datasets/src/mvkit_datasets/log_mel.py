"""Short sounds as pictures, and back: log-mel spectrograms of 32 bands and 32 frames.

A clip is 0.62 s at 8 kHz. Frames are 20 ms apart under a Hann window of 64 ms; the bands, triangles on the mel scale,
reach from 60 Hz to 4 kHz. Values are decibels below the clip's loudest cell, [FLOOR, 0] mapped to [0, 1]: how loud a
clip was recorded does not count.

Axes: b clips, k bands, f frequencies, t frames.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from einops import einsum, rearrange, reduce
from numpy.typing import NDArray
from torch import Tensor

from mvkit.data.missing import uniforms

RATE, BANDS, FRAMES, HOP, WINDOW = 8000, 32, 32, 160, 512


SAMPLES = HOP * (FRAMES - 1)


LOW, HIGH = 60.0, 4000.0


# decibels: the 30th percentile of the training split of the spoken digits, whose quietest fifth is padding
FLOOR = -65.0


def mel_filters() -> Tensor:
    """The bands, (k, f) in [0, 1], f of 0 … 4 kHz: neighbours overlap and sum to 1 between the outer centres.

    Reference: O'Shaughnessy, Speech Communication, 1987 (mel = 2595 log10(1 + f / 700)).
    """
    low, high = (2595 * math.log10(1 + f / 700) for f in (LOW, HIGH))
    edges = 700 * (10 ** (torch.linspace(low, high, BANDS + 2, dtype=torch.float64) / 2595) - 1)
    width = edges.diff()
    hertz = torch.linspace(0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    above = rearrange(hertz, "f -> 1 f") - rearrange(edges, "k -> k 1")
    rise, fall = (
        above[:-2] / rearrange(width[:-1], "k -> k 1"),
        -above[2:] / rearrange(width[1:], "k -> k 1"),
    )
    return torch.minimum(rise, fall).clamp(min=0).float()


def log_mel(samples: Tensor) -> Tensor:
    """Pictures of clips, (b, samples) -> (b, 1, k, t) in [0, 1]; the lowest band is the first row.

    Args:
        samples: (b, 4960) at 8 kHz, of any loudness.
    """
    power = einsum(mel_filters(), _spectrum(samples).abs().square(), "k f, b f t -> b k t")
    loudest = reduce(power, "b k t -> b 1 1", "max").clamp(
        min=1e-20
    )  # of a silent clip: nothing is
    decibels = 10 * torch.log10((power / loudest).clamp(min=1e-20))
    return rearrange(1 - decibels.clamp(min=FLOOR) / FLOOR, "b k t -> b 1 k t")


def to_sound(picture: Tensor, *, iterations: int = 30) -> tuple[Tensor, int]:
    """Clips that look like log-mel pictures, to be heard: bands spread over frequencies, phases by Griffin and Lim.

    Args:
        picture: (…, 1, k, t), values in [0, 1]; what lies outside is clamped.
        iterations: rounds of the search for phases.

    Returns:
        Samples (…, 4960), the loudest of each clip at 0.9, and how many make a second.

    Example:
        >>> import torch
        >>> samples, rate = to_sound(torch.zeros(1, 32, 32))
        >>> samples.shape, rate
        (torch.Size([4960]), 8000)

    Reference: Griffin and Lim, Signal Estimation from Modified Short-Time Fourier Transform, 1984,
    https://doi.org/10.1109/TASSP.1984.1164317.
    """
    level = rearrange(picture.detach().float().clamp(0, 1), "... 1 k t -> ... k t")
    lead, level = level.shape[:-2], level.reshape(-1, BANDS, FRAMES)
    power = torch.where(level > 0, 10 ** (FLOOR * (1 - level) / 10), 0.0)
    size = (
        einsum(torch.linalg.pinv(mel_filters()), power, "f k, b k t -> b f t").clamp(min=0).sqrt()
    )
    phase = torch.from_numpy(2 * np.pi * uniforms(0, *size.shape[1:])).float()
    for _ in range(iterations):
        phase = _spectrum(_samples(torch.polar(size, phase.expand_as(size)))).angle()
    samples = _samples(torch.polar(size, phase.expand_as(size)))
    loudest = reduce(samples.abs(), "b n -> b 1", "max").clamp(min=1e-12)
    return (0.9 * samples / loudest).reshape(*lead, SAMPLES), RATE


def cut(samples: NDArray[np.int16], length: NDArray[np.integer]) -> Tensor:
    """Clips of one length, (b, 4960) in [-1, 1], around the centres of energy of recordings; padded with silence.

    Args:
        samples: the recordings one after the other.
        length: samples of each, (b,).
    """
    length = length.astype(np.int64)
    first = np.cumsum(length) - length
    energy = samples.astype(np.float64) ** 2
    moment = np.add.reduceat(energy * (np.arange(len(samples)) - np.repeat(first, length)), first)
    centre = moment / np.maximum(np.add.reduceat(energy, first), 1.0)
    spare = length - SAMPLES  # below zero: all of the recording is kept
    start = np.clip(
        np.round(centre).astype(np.int64) - SAMPLES // 2,
        np.minimum(spare, 0),
        np.maximum(spare, 0),
    )
    place = rearrange(start, "b -> b 1") + np.arange(SAMPLES)
    inside = (place >= 0) & (place < rearrange(length, "b -> b 1"))
    found = samples[np.where(inside, place + rearrange(first, "b -> b 1"), 0)]
    return torch.from_numpy(np.where(inside, found, 0).astype(np.float32) / 2**15)


def _spectrum(samples: Tensor) -> Tensor:
    window = torch.hann_window(WINDOW)
    return torch.stft(
        samples, WINDOW, HOP, window=window, pad_mode="constant", return_complex=True
    )


def _samples(spectrum: Tensor) -> Tensor:
    return torch.istft(spectrum, WINDOW, HOP, window=torch.hann_window(WINDOW), length=SAMPLES)
