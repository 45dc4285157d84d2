"""Datasets made of real ones: things of the same class, side by side as modalities of a row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from torch import Tensor
from torch.nn import functional

from mvkit import Batch, Modality, MultimodalDataset
from mvkit.core.noise import row_uniforms, seed_of_making
from mvkit.data.datasets import SPLITS, Splits
from mvkit.parts.likelihoods import Laplace
from mvkit.registry import field, one_of, spec
from mvkit.registry.fields import optional_count, switch
from mvkit_datasets.converted import FSDD, MNIST, SignDigits
from mvkit_datasets.from_files import Array, Folder, FromFiles, Uniforms, paired

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
class Composed(FromFiles):
    """A dataset whose rows are composed of items of other datasets.

    Args:
        path: the folder with their folders.
        missing: share of modalities missing at random in train and valid; every row keeps one.
        missing_test: likewise in test.
        seed: of the pairing and of the missingness.
        rows: at most so many rows in a split; None: all of them.
    """

    rows: int | None = optional_count()

    def compose(
        self, sources: Mapping[str, Splits], modalities: dict[str, Modality], *, uniforms: int = 1
    ) -> Splits:
        """The rows of the first source, each with a random item of its class from every source.

        Args:
            sources: by modality; of the two modalities there, values of the first are taken.
            modalities: what the rows show.
            uniforms: uniforms per item; the first of them decides which item it is.
        """
        first = next(iter(sources.values()))
        splits = {}
        for i, split in enumerate(SPLITS):
            label = getattr(first, split).labels
            seed = seed_of_making(self.seed, i)
            data = {}
            extra = {"label": label[: self.rows]}
            for m, (name, source) in enumerate(sources.items()):
                items = getattr(source, split).batch
                uniform = row_uniforms(seed, len(label), 1, start=m * uniforms)[:, 0]
                partners = paired(label.numpy(), items.extra["label"].numpy(), uniform)
                partners = partners[: self.rows]
                values, _ = items.data.values()
                data[name] = values[partners]
                extra[f"{name}_id"] = items.extra["id"][partners]
            splits[split] = MultimodalDataset(Batch(data, extra=extra), modalities)
        return Splits(modalities, **splits)


@spec
class SpokenDigits(Composed):
    """A digit written, spoken and signed: `image` (1, 28, 28), `sound` (1, 32, 32),
    `sign` (3, 32, 32), all in [0, 1].

    As many rows as MNIST has in each split. Each row shows a random item of its class in each
    modality; within a split the counts of the items of a class differ by at most one. No item is
    in two splits. `extra["label"]`, and `extra["image_id"]` … as in `mnist`, `fsdd` and
    `sign_digits`, whose likelihoods, splits and licences hold here too. 20 kB per row.

    Args:
        path: folder with the folders `mnist`, `fsdd` and `sign_digits`.
        missing: share of modalities missing at random in train and valid; every row keeps one.
        missing_test: likewise in test.
        seed: of the pairing and of the missingness.
        rows: at most so many rows in a split; None: all of them.

    Reference: the idea of MNIST-SVHN, Shi et al., 2019, https://arxiv.org/abs/1911.03393; the
    data: see `MNIST`, `FSDD` and `SignDigits` in `mvkit_datasets.converted`.
    """

    origin = (
        f"in three folders: mnist: {MNIST.origin}; fsdd: {FSDD.origin}; "
        f"sign_digits: {SignDigits.origin}"
    )

    def read(self, path: Path) -> Splits:
        sources = {
            "image": MNIST().read(path / "mnist"),
            "sound": FSDD().read(path / "fsdd"),
            "sign": SignDigits().read(path / "sign_digits"),
        }
        modalities = {name: source.modalities[name] for name, source in sources.items()}
        return self.compose(sources, modalities)


@spec
class PolyMNIST(Composed):
    """Up to seven pictures of one digit over photographs: `m0` … (3, 28, 28) in [0, 1], Laplace
    with scale 0.75.

    Each modality shows another MNIST digit of the row's class, binarised, as the negative of a
    random crop of the modality's photograph: only the class is shared. Rows, classes and base
    digits of the splits are those of `mnist`. `extra["label"]`, and `extra["m0_id"]` …: the base
    digits. 9.4 kB per picture: 3.3 GB for all rows of five. The photographs are the published ones
    but for `m2`, a tree. Licences: MNIST CC BY-SA 3.0; photographs CC0 or in the public domain.

    Args:
        path: folder with the folders `mnist` and `polymnist_backgrounds`.
        missing: share of modalities missing at random in train and valid; every row keeps one.
        missing_test: likewise in test.
        seed: of the pairing, the crops, the places and the missingness.
        rows: at most so many rows in a split; None: all of them.
        modalities: how many, 1 to 7.
        translated: whether digits are three quarters of their size and anywhere in the picture.

    Reference: Sutter, Daunhawer and Vogt, Generalized Multimodal ELBO, 2021,
    https://arxiv.org/abs/2105.02470; translated: Daunhawer et al., On the Limitations of
    Multimodal VAEs, 2022, https://arxiv.org/abs/2110.04121.
    """

    origin = f"in two folders: mnist: {MNIST.origin}; polymnist_backgrounds: {BACKGROUNDS}"

    modalities: int = field(default=5, check=one_of(*range(1, len(PHOTOGRAPHS) + 1)))
    translated: bool = switch(False)

    def read(self, path: Path) -> Splits:
        source = MNIST().read(path / "mnist")
        folder = Folder(path / "polymnist_backgrounds", BACKGROUNDS)
        photographs = {}
        for m, file in enumerate(PHOTOGRAPHS[: self.modalities]):
            photographs[f"m{m}"] = folder.read(file, _photograph)
        modality = Modality((3, 28, 28), Laplace(scale=0.75))
        modalities = dict.fromkeys(photographs, modality)
        sources = dict.fromkeys(modalities, source)
        splits = self.compose(sources, modalities, uniforms=5)
        for i, split in enumerate(SPLITS):
            data = getattr(splits, split).batch.data
            for m, (name, digits) in enumerate(data.items()):
                seed = seed_of_making(self.seed, i)
                places = row_uniforms(seed, len(digits), 4, start=5 * m + 1)
                ink = digits > INK
                if self.translated:
                    ink = _moved(digits, places[:, 2:])
                data[name] = _over(photographs[name], ink, places[:, :2])
        return splits


def _photograph(path: Path) -> Array:
    """The colours of a photograph, (h, w, 3) uint8."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _moved(digits: Tensor, places: Uniforms) -> Tensor:
    """Which pixels are the digit's, (b, 1, 28, 28), once grey pictures (b, 1, 28, 28) are made
    smaller and moved to places (b, 2) in [0, 1).
    """
    small = functional.interpolate(digits, (SMALL, SMALL), mode="bilinear", antialias=True)
    wide = functional.pad(small > INK, [28 - SMALL] * 4)
    windows = wide.unfold(2, 28, 1).unfold(3, 28, 1)
    corners = torch.from_numpy(places) * windows.shape[2]
    top, left = corners.long().T
    return windows[torch.arange(len(digits)), :, top, left]


def _over(photograph: Array, ink: Tensor, places: Uniforms) -> Tensor:
    """Crops of a photograph at places (b, 2) in [0, 1), inverted where the digit is,
    (b, 3, 28, 28) in [0, 1].
    """
    windows = sliding_window_view(photograph, (28, 28), axis=(0, 1))
    corners = places * windows.shape[:2]
    top, left = corners.astype(np.int64).T
    crops = windows[top, left]
    inverted = np.where(ink.numpy(), 255 - crops, crops)
    return torch.from_numpy(inverted).float().div_(255)
