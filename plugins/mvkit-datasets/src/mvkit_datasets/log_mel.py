"""Short sounds as pictures, and back: log-mel spectrograms of 32 bands and 32 frames.

A clip is 0.62 s at 8 kHz. Frames are 20 ms apart under a Hann window of 64 ms; the bands,
triangles on the mel scale, reach from 60 Hz to 4 kHz. Values are decibels below the clip's loudest
cell, [FLOOR, 0] mapped to [0, 1]: how loud a clip was recorded does not count.

Axes: b clips, k bands, f frequencies, t frames, n samples.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from einops import einsum, rearrange, reduce
from numpy.typing import NDArray
from torch import Tensor

from mvkit.core.noise import row_uniforms

RATE = 8000
BANDS = 32
FRAMES = 32
HOP = 160
WINDOW = 512
SAMPLES = HOP * (FRAMES - 1)
LOW = 60.0
HIGH = 4000.0
# decibels: the 30th percentile of the training split of the spoken digits, whose quietest fifth is
# padding
FLOOR = -65.0


def mel_filters() -> Tensor:
    """The bands, (k, f) in [0, 1], f of 0 … 4 kHz: neighbours overlap and sum to 1 between the
    outer centres.

    Reference: O'Shaughnessy, Speech Communication, 1987 (mel = 2595 log10(1 + f / 700)).
    """
    low = 2595 * math.log10(1 + LOW / 700)
    high = 2595 * math.log10(1 + HIGH / 700)
    mel = torch.linspace(low, high, BANDS + 2, dtype=torch.float64)
    edges = rearrange(700 * (10 ** (mel / 2595) - 1), "k -> k 1")
    width = edges.diff(dim=0)
    hertz = torch.linspace(0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    above = hertz - edges
    rise = above[:-2] / width[:-1]
    fall = -above[2:] / width[1:]
    return torch.minimum(rise, fall).clamp(min=0).float()


def log_mel(samples: Tensor) -> Tensor:
    """Pictures of clips, (b, n) -> (b, 1, k, t) in [0, 1]; the lowest band is the first row.

    Args:
        samples: (b, 4960) at 8 kHz, of any loudness.
    """
    spectrum = _spectrum(samples).abs().square()
    power = einsum(mel_filters(), spectrum, "k f, b f t -> b k t")
    loudest = reduce(power, "b k t -> b 1 1", "max")
    # a silent clip must not divide by zero
    relative = power / loudest.clamp(min=1e-20)
    decibels = 10 * torch.log10(relative.clamp(min=1e-20))
    return rearrange(1 - decibels.clamp(min=FLOOR) / FLOOR, "b k t -> b 1 k t")


def to_sound(picture: Tensor, *, iterations: int = 30) -> tuple[Tensor, int]:
    """Clips that look like log-mel pictures, to be heard: bands spread over frequencies, phases by
    Griffin and Lim.

    Args:
        picture: (…, 1, k, t), values in [0, 1]; others are clamped.
        iterations: rounds of the search for phases.

    Returns:
        Samples (…, 4960), the loudest of each clip at 0.9, and the number of samples per second.

    Example:
        >>> import torch
        >>> samples, rate = to_sound(torch.zeros(1, 32, 32))
        >>> samples.shape, rate
        (torch.Size([4960]), 8000)

    Reference: Griffin and Lim, Signal Estimation from Modified Short-Time Fourier Transform, 1984,
    https://doi.org/10.1109/TASSP.1984.1164317.
    """
    level = picture.detach().float().clamp(0, 1)
    level = level.reshape(-1, BANDS, FRAMES)
    decibels = FLOOR * (1 - level)
    power = torch.where(level > 0, 10 ** (decibels / 10), 0.0)
    spread = einsum(torch.linalg.pinv(mel_filters()), power, "f k, b k t -> b f t")
    size = spread.clamp(min=0).sqrt()
    uniforms = row_uniforms(0, *size.shape[1:])
    phase = torch.from_numpy(2 * np.pi * uniforms).float().expand_as(size)
    for _ in range(iterations):
        phase = _spectrum(_samples(size, phase)).angle()
    samples = _samples(size, phase)
    loudest = reduce(samples.abs(), "b n -> b 1", "max").clamp(min=1e-12)
    samples = 0.9 * samples / loudest
    return samples.reshape(*picture.shape[:-3], SAMPLES), RATE


def cut(samples: NDArray[np.int16], length: NDArray[np.integer]) -> Tensor:
    """Clips of one length, (b, 4960) in [-1, 1], around the centres of energy of recordings;
    padded with silence.

    Args:
        samples: the recordings one after the other.
        length: samples of each, (b,).
    """
    clips = []
    for recording in np.split(samples, np.cumsum(length)[:-1]):
        energy = recording.astype(np.float64) ** 2
        moment = (energy * np.arange(len(recording))).sum()
        centre = round(moment / max(energy.sum(), 1.0))
        spare = len(recording) - SAMPLES  # negative: all of the recording is kept
        start = np.clip(centre - SAMPLES // 2, min(spare, 0), max(spare, 0))
        padded = np.pad(recording, SAMPLES)
        clips.append(padded[SAMPLES + start :][:SAMPLES])
    return torch.from_numpy(np.stack(clips)).float() / 2**15


def _spectrum(samples: Tensor) -> Tensor:
    window = torch.hann_window(WINDOW)
    return torch.stft(
        samples, WINDOW, HOP, window=window, pad_mode="constant", return_complex=True
    )


def _samples(size: Tensor, phase: Tensor) -> Tensor:
    spectrum = torch.polar(size, phase)
    return torch.istft(spectrum, WINDOW, HOP, window=torch.hann_window(WINDOW), length=SAMPLES)
