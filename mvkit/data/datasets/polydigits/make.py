"""Makes polydigits.npz: `python -m mvkit.data.datasets.polydigits.make`. Needs scikit-learn and
pillow; licences in SOURCES.md.

Each of the five modalities shows another real handwritten digit of the row's class, blended over a
random crop of a photograph. The base digits of train, valid and test are disjoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Grey = NDArray[np.float64]  # values in [0, 1]
Rows = NDArray[np.int64]
ROWS = {"train": 10_000, "valid": 1_000, "test": 2_000}
SHARES = {"train": 0.7, "valid": 0.1, "test": 0.2}
# photograph, part of its width, flip (axis or None), how the digit is blended
LOOKS = (
    ("china.jpg", 0.0, 0.5, None, "bright"),
    ("china.jpg", 0.5, 1.0, 1, "dark"),
    ("flower.jpg", 0.0, 0.5, None, "difference"),
    ("flower.jpg", 0.5, 1.0, 1, "bright"),
    ("china.jpg", 0.25, 0.75, 0, "difference"),
)


def background(name: str, start: float, stop: float, flip: int | None) -> Grey:
    """Part of a photograph in grey, a quarter of its size."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image(name)).convert("L")
    width = image.width // 4
    image = image.resize((width, image.height // 4), Image.Resampling.BOX)
    grey = np.asarray(image, dtype=np.float64) / 255
    grey = grey[:, int(start * width) : int(stop * width)]
    return grey if flip is None else np.flip(grey, flip)


def blend(how: str, ground: Grey, digit: Grey) -> Grey:
    """The digit over the ground."""
    if how == "difference":
        return np.abs(0.25 * ground - digit)
    # a ground that leaves the digit its contrast: no white digit on a white sky
    ground = 0.6 * ground + 0.4 * (how == "dark")
    return ground * (1 - digit) + digit * (how == "bright")


def main() -> None:
    """Writes the file beside this script: {split} (b, 5, 8, 8) of 0…31 and {split}_label (b,)."""
    from sklearn.datasets import load_digits

    source = load_digits()
    random = np.random.default_rng(20_261_121)
    pools = split(random, source.target)
    arrays: dict[str, Any] = {}
    for name, rows in ROWS.items():
        labels = random.permutation(np.arange(rows) % 10)
        pictures = np.empty((rows, len(LOOKS), 8, 8))
        for m, (photograph, start, stop, flip, how) in enumerate(LOOKS):
            chosen = [random.choice(pools[name][label]) for label in labels]
            digits = source.images[chosen] / 16
            ground = background(photograph, start, stop, flip)
            windows = sliding_window_view(ground, (8, 8))
            top = random.integers(0, windows.shape[0], rows)
            left = random.integers(0, windows.shape[1], rows)
            pictures[:, m] = blend(how, windows[top, left], digits)
        arrays[name] = np.round(pictures * 31).astype(np.uint8)
        arrays[f"{name}_label"] = labels.astype(np.uint8)
    np.savez_compressed(Path(__file__).with_name("polydigits.npz"), **arrays)


def split(random: np.random.Generator, classes: Rows) -> dict[str, list[Rows]]:
    """Disjoint pools of base digits, {split: [indices of class 0, …]}."""
    pools: dict[str, list[Rows]] = {name: [] for name in SHARES}
    for label in range(10):
        members = random.permutation(np.flatnonzero(classes == label))
        counts = [round(share * len(members)) for share in SHARES.values()]
        parts = np.split(members, np.cumsum(counts)[:-1])
        for pool, part in zip(pools.values(), parts, strict=True):
            pool.append(part)
    return pools


if __name__ == "__main__":
    main()
