"""Datasets made of real ones: things of the same class put side by side as the modalities of a row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mvkit.core.modality import Modality
from mvkit_datasets.from_files import Array, Contents, Folder, FromFiles, paired, stream
from mvkit_datasets.converted import FSDD, MNIST, SignDigits, fsdd, mnist, sign_digits
from mvkit.errors import DataError
from mvkit.parts.likelihoods import Laplace
from mvkit.registry.spec import field, flag, integer, one_of, spec

PHOTOGRAPHS = (
    "00flowers-19830_1280.jpg",
    "01the_scream.jpg",
    "05tree-736885_1280.jpg",
    "03milky-way-2695569_1280.jpg",
    "04poppies-174276_1280.jpg",
    "08pink-324175_1280.jpg",
    "09road-3186188_1280.jpg",
)


BACKGROUNDS = (
    "poly_background/*.jpg of https://github.com/rooshenasgroup/sbmae and, as 01the_scream.jpg, "
    "examples/inputs/the_scream.jpg of https://github.com/jcjohnson/neural-style"
)


SMALL = 21  # a digit three quarters of its size


INK = 128.5 / 255  # published: bytes above 128


@spec
class SpokenDigits(FromFiles):
    """A digit written, spoken and signed: `image` (1, 28, 28), `sound` (1, 32, 32), `sign` (3, 32, 32), all in [0, 1].

    As many rows as MNIST has in each split; each shows one of the class's items in each modality, at random, every item
    of a split equally often, give or take one. No item is in two splits. `extra["label"]`, and `extra["image_id"]` …
    as in `mnist`, `fsdd` and `sign_digits`, whose likelihoods, splits and licences hold here too. 20 kB a row.

    Args:
        path: folder with the folders `mnist`, `fsdd` and `sign_digits`.
        missing: share of modalities missing at random in train and valid, one at least kept a row.
        missing_test: likewise in test.
        seed: of the pairing and of the missingness.
        rows: at most so many rows a split; None: all of them.

    Reference: the idea of MNIST-SVHN, Shi et al., 2019, https://arxiv.org/abs/1911.03393; the data: see `MNIST`,
    `FSDD` and `SignDigits` in `mvkit_datasets.converted`.
    """

    origin = f"in three folders: mnist: {MNIST.origin}; fsdd: {FSDD.origin}; sign_digits: {SignDigits.origin}"

    rows: int | None = field(default=None, check=one_of(None, other=integer(1)))

    def read(self, path: Path) -> Contents:
        """See `FromFiles.read`."""
        sources = {"image": mnist(path / "mnist"), "sound": fsdd(path / "fsdd")}
        sources["sign"] = sign_digits(path / "sign_digits")
        data: dict[str, dict[str, Tensor]] = {}
        extra: dict[str, dict[str, Tensor]] = {}
        for i, (split, images) in enumerate(sources["image"].splits.items()):
            uniform = stream(self.seed, i, len(images.label), len(sources))
            extra[split] = {"label": torch.from_numpy(images.label[: self.rows])}
            data[split] = {}
            for column, (name, source) in enumerate(sources.items()):
                items = source.splits[split]
                pick = paired(images.label, items.label, uniform[:, column])[: self.rows]
                data[split][name] = items.values[pick]
                extra[split][f"{name}_id"] = torch.from_numpy(items.number[pick])
        return Contents({name: source.modality for name, source in sources.items()}, data, extra)


@spec
class PolyMNIST(FromFiles):
    """Up to seven pictures of one digit over photographs: `m0` … (3, 28, 28) in [0, 1], Laplace with scale 0.75.

    Each modality shows another MNIST digit of the row's class, binarised, as the negative of a random crop of the
    modality's photograph: only the class is shared. Rows, classes and base digits of the splits are those of `mnist`.
    `extra["label"]`, and `extra["m0_id"]` …: the base digits. 9.4 kB a picture: 3.3 GB for all rows of five. The
    photographs are the published ones but for `m2`, a tree. Licences: MNIST CC BY-SA 3.0; photographs CC0 or in the
    public domain. Needs `mvkit[data]` (pillow).

    Args:
        path: folder with the folders `mnist` and `polymnist_backgrounds`.
        missing: share of modalities missing at random in train and valid, one at least kept a row.
        missing_test: likewise in test.
        seed: of the pairing, the crops, the places and the missingness.
        rows: at most so many rows a split; None: all of them.
        modalities: how many, 1 to 7.
        translated: whether digits are three quarters of their size and anywhere in the picture.

    Reference: Sutter, Daunhawer and Vogt, Generalized Multimodal ELBO, 2021, https://arxiv.org/abs/2105.02470;
    translated: Daunhawer et al., On the Limitations of Multimodal VAEs, 2022, https://arxiv.org/abs/2110.04121.
    """

    origin = f"in two folders: mnist: {MNIST.origin}; polymnist_backgrounds: {BACKGROUNDS}"

    rows: int | None = field(default=None, check=one_of(None, other=integer(1)))
    modalities: int = field(default=5, check=one_of(*range(1, len(PHOTOGRAPHS) + 1)))
    translated: bool = field(default=False, check=flag)

    def read(self, path: Path) -> Contents:
        """See `FromFiles.read`."""
        digits = mnist(path / "mnist")
        folder = Folder(path / "polymnist_backgrounds", BACKGROUNDS)
        photographs = {
            f"m{m}": folder.read(file, _photograph)
            for m, file in enumerate(PHOTOGRAPHS[: self.modalities])
        }
        data: dict[str, dict[str, Tensor]] = {}
        extra: dict[str, dict[str, Tensor]] = {}
        for i, (split, items) in enumerate(digits.splits.items()):
            uniform = stream(self.seed, i, len(items.label), 5 * self.modalities)
            extra[split] = {"label": torch.from_numpy(items.label[: self.rows])}
            data[split] = {}
            for m, (name, photograph) in enumerate(photographs.items()):
                pick = paired(items.label, items.label, uniform[:, 5 * m])[: self.rows]
                places = uniform[: self.rows, 5 * m + 1 : 5 * m + 5]
                shape = _shapes(items.values[pick], places[:, 2:] if self.translated else None)
                data[split][name] = _over(photograph, shape, places[:, :2])
                extra[split][f"{name}_id"] = torch.from_numpy(items.number[pick])
        looks = {name: Modality((3, 28, 28), Laplace(scale=0.75)) for name in photographs}
        return Contents(looks, data, extra)


def _photograph(path: Path) -> Array:
    """The colours of a photograph, (h, w, 3) uint8."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise DataError(
            f"{path}: reading photographs needs pillow; pip install 'mvkit[data]'"
        ) from None
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _shapes(digits: Tensor, places: NDArray[np.float64] | None) -> NDArray[np.bool_]:
    """Which pixels are the digit's, (b, 28, 28): of grey pictures (b, 1, 28, 28), moved to places (b, 2) if given."""
    if places is None:
        return rearrange(digits > INK, "b 1 h w -> b h w").numpy()
    small = functional.interpolate(digits, (SMALL, SMALL), mode="bilinear", antialias=True) > INK
    wide = functional.pad(rearrange(small, "b 1 h w -> b h w"), [28 - SMALL] * 4).numpy()
    windows = sliding_window_view(wide, (28, 28), axis=(1, 2))
    top, left = (places * windows.shape[1:3]).astype(np.int64).T
    moved: NDArray[np.bool_] = windows[np.arange(len(wide)), top, left]
    return moved


def _over(photograph: Array, shape: NDArray[np.bool_], places: NDArray[np.float64]) -> Tensor:
    """Crops of a photograph at places (b, 2) in [0, 1), inverted where the digit is, (b, 3, 28, 28) in [0, 1]."""
    windows = sliding_window_view(photograph, (28, 28), axis=(0, 1))
    top, left = (places * windows.shape[:2]).astype(np.int64).T
    crops = windows[top, left]
    inverted = np.where(rearrange(shape, "b h w -> b 1 h w"), 255 - crops, crops)
    return torch.from_numpy(inverted).float().div_(255)
