"""Makes polydigits.npz: `python -m mvkit.data.datasets.polydigits.make`. Needs scikit-learn and pillow; licences in SOURCES.md.

Each of the five modalities shows another real handwritten digit of the row's class, blended over a random crop of a
photograph. The base digits of train, valid and test are disjoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS = {"train": 10_000, "valid": 1_000, "test": 2_000}


SHARES = {"train": 0.7, "valid": 0.1, "test": 0.2}


# photograph, part of its width, flip (axis or None), how the digit is blended
LOOKS = [
    ("china.jpg", (0.0, 0.5), None, "bright"),
    ("china.jpg", (0.5, 1.0), 1, "dark"),
    ("flower.jpg", (0.0, 0.5), None, "difference"),
    ("flower.jpg", (0.5, 1.0), 1, "bright"),
    ("china.jpg", (0.25, 0.75), 0, "difference"),
]


def background(name: str, part: tuple[float, float], flip: int | None) -> NDArray[np.float64]:
    """A photograph's part in grey, a quarter of its size, values in [0, 1]."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image(name)).convert("L")
    image = image.resize((image.width // 4, image.height // 4), Image.Resampling.BOX)
    grey: NDArray[np.float64] = np.asarray(image, dtype=np.float64) / 255
    grey = grey[:, int(part[0] * grey.shape[1]) : int(part[1] * grey.shape[1])]
    return grey if flip is None else np.flip(grey, flip)


def blend(
    how: str, ground: NDArray[np.float64], digit: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The digit over the ground; all in [0, 1]."""
    if how == "difference":
        return np.asarray(np.abs(0.25 * ground - digit))
    # a ground that leaves the digit its contrast: no white digit on a white sky
    ground = 0.6 * ground + 0.4 * (how == "dark")
    blended: NDArray[np.float64] = ground * (1 - digit) + digit * (how == "bright")
    return blended


def main() -> None:
    """Writes the file beside this script: {split} (b, 5, 8, 8) uint8 of 0…31, {split}_label (b,)."""
    from sklearn.datasets import load_digits

    source = load_digits()
    digits, classes = source.images / 16, source.target
    random = np.random.default_rng(20_261_121)
    grounds = [background(*look[:3]) for look in LOOKS]
    pools = split(random, classes)
    arrays: dict[str, Any] = {}
    for name, rows in ROWS.items():
        labels = random.permutation(np.arange(rows) % 10)
        pictures = np.empty((rows, len(LOOKS), 8, 8))
        for m, look in enumerate(LOOKS):
            chosen = np.array([random.choice(pools[name][label]) for label in labels])
            top = random.integers(0, grounds[m].shape[0] - 7, rows)
            left = random.integers(0, grounds[m].shape[1] - 7, rows)
            crops = np.stack(
                [grounds[m][t : t + 8, s : s + 8] for t, s in zip(top, left, strict=True)]
            )
            pictures[:, m] = blend(look[3], crops, digits[chosen])
        arrays[name] = np.round(pictures * 31).astype(np.uint8)
        arrays[f"{name}_label"] = labels.astype(np.uint8)
    np.savez_compressed(Path(__file__).with_name("polydigits.npz"), **arrays)


def split(
    random: np.random.Generator, classes: NDArray[np.int64]
) -> dict[str, list[NDArray[np.int64]]]:
    """Disjoint pools of base digits, {split: [indices of class 0, …]}."""
    pools: dict[str, list[NDArray[np.int64]]] = {name: [] for name in SHARES}
    for label in range(10):
        members = random.permutation(np.flatnonzero(classes == label))
        cuts = np.cumsum([round(share * len(members)) for share in SHARES.values()])[:-1]
        for name, part in zip(SHARES, np.split(members, cuts), strict=True):
            pools[name].append(part)
    return pools


if __name__ == "__main__":
    main()
