"""Data by name: `load_dataset("polydigits")`."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import attrs
import numpy as np
import torch
from einops import einsum, rearrange
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.covariates import Covariate
from mvkit.core.modality import Modality
from mvkit.core.noise import row_uniforms, seed_of_making, seed_of_split, seeded
from mvkit.data.dataset import MultimodalDataset
from mvkit.errors import DataError
from mvkit.parts.likelihoods import Normal
from mvkit.registry.fields import count, switch
from mvkit.registry.spec import as_part, field, number, one_of, spec

SPLITS = ("train", "valid", "test")
share = number(0.0, 1.0)  # the check of options such as `missing`


def _widths(value: object) -> str | None:
    """A check: widths of modalities."""
    fine = isinstance(value, tuple) and value and all(type(n) is int and n > 0 for n in value)
    return None if fine else "a list of positive whole numbers, such as [4, 5, 6]"


@attrs.frozen(eq=False)
class Splits:
    """A dataset's modalities and its splits.

    Args:
        modalities: what the data are.
        train: rows to learn from.
        valid: rows to choose by.
        test: rows to report on.
        truth: the model that the rows were drawn from, where it is known.
        notes: a dict of what else is known, such as the names of features.

    Example:
        >>> import mvkit
        >>> data = mvkit.load_dataset("linear_gaussian")
        >>> type(data).__name__, len(data.train) > len(data.test)
        ('Splits', True)
    """

    modalities: dict[str, Modality]
    train: MultimodalDataset
    valid: MultimodalDataset
    test: MultimodalDataset
    truth: object = None
    notes: Any = attrs.field(factory=dict)

    @property
    def covariates(self) -> dict[str, Covariate]:
        """What a model may be conditioned on, as training rows have it."""
        return self.train.covariates

    def with_missing(self, rate: float, test_rate: float, *, seed: int) -> Splits:
        """These splits with modalities missing at random; every row keeps at least one.

        Args:
            rate: share of modalities missing in `train` and `valid`; 0 leaves them as they are.
            test_rate: share missing in `test`.
            seed: of the missingness, a function of (seed, split, row).
        """
        splits = {}
        for i, split in enumerate(SPLITS):
            dataset: MultimodalDataset = getattr(self, split)
            share_missing = test_rate if split == "test" else rate
            if share_missing:
                dataset = dataset.with_missing(share_missing, seed=seed_of_split(seed, i))
            splits[split] = dataset
        return Splits(self.modalities, **splits, truth=self.truth, notes=self.notes)


def load_dataset(name: str, **options: object) -> Splits:
    """A dataset by its registered name.

    Args:
        name: see `mvkit.available("dataset")`.
        options: the dataset's own, such as `missing` and `seed`.

    Example:
        >>> import mvkit
        >>> data = mvkit.load_dataset("polydigits", missing=0.3)
        >>> len(data.train), list(data.modalities)
        (10000, ['m0', 'm1', 'm2', 'm3', 'm4'])
    """
    splits: Splits = as_part("dataset", {"name": name, **options}).load()
    return splits


@spec
class PolyDigits:
    """Five pictures of one digit: real handwriting over real photographs, (1, 8, 8) each, values
    in [0, 1].

    10,000 train, 1,000 valid and 2,000 test rows; `extra["label"]`. The base digits of the test
    rows are never seen in training. Made by `mvkit/data/datasets/polydigits/make.py`; licences in
    SOURCES.md beside it.

    Args:
        missing: share of modalities missing at random in train and valid; every row keeps one.
        missing_test: likewise in test.
        seed: of the missingness and of the quadrants, a function of (seed, row).
        attribute: what else the pictures of a row share, which the first of them does not tell.
            `quadrant`: all but `m0` are (1, 16, 16), black but for one of four quadrants, the
            same in all of them, which shows the picture; `extra["quadrant"]` is 0 top left, 1 top
            right, 2 bottom left, 3 bottom right. `m0` stays as it is. None: nothing.

    Example:
        >>> import mvkit
        >>> from mvkit.parts import PolyDigits
        >>> PolyDigits(missing=0.3).missing
        0.3

    Reference: the idea of PolyMNIST, Sutter, Daunhawer and Vogt, 2021,
    https://arxiv.org/abs/2105.02470; the digits: Alpaydin and Kaynak, 1998,
    https://doi.org/10.24432/C50P49.
    """

    missing: float = field(default=0.0, check=share)
    missing_test: float = field(default=0.0, check=share)
    seed: int = count(0, low=0)
    attribute: str | None = field(default=None, check=one_of(None, "quadrant"), quiet=True)

    def load(self) -> Splits:
        """The splits."""
        modality = Modality((1, 8, 8), Normal(scale=0.25))
        modalities = {f"m{m}": modality for m in range(5)}
        if self.attribute == "quadrant":
            wide = Modality((1, 16, 16), Normal(scale=0.25))
            modalities = {name: modality if name == "m0" else wide for name in modalities}
        path = files("mvkit.data.datasets").joinpath("polydigits/polydigits.npz")
        splits = {}
        with path.open("rb") as file, np.load(file) as arrays:
            for i, split in enumerate(SPLITS):
                pictures = torch.from_numpy(arrays[split]).float() / 31
                data = {}
                for m, name in enumerate(modalities):
                    data[name] = rearrange(pictures[:, m], "b h w -> b 1 h w").contiguous()
                extra = {"label": torch.from_numpy(arrays[f"{split}_label"]).long()}
                if self.attribute == "quadrant":
                    extra["quadrant"] = self._quadrants(i, len(pictures))
                    for name in modalities:
                        if name != "m0":
                            data[name] = in_quadrant(data[name], extra["quadrant"])
                splits[split] = MultimodalDataset(Batch(data, extra=extra), modalities)
        complete = Splits(modalities, **splits)
        return complete.with_missing(self.missing, self.missing_test, seed=self.seed)

    def _quadrants(self, split: int, rows: int) -> Tensor:
        """The quadrant of each row of a split, (b,): 0 to 3, each as likely."""
        uniforms = row_uniforms(seed_of_making(self.seed, split), rows, 1)
        return torch.from_numpy((4 * uniforms[:, 0]).astype(np.int64))


def in_quadrant(pictures: Tensor, quadrant: Tensor) -> Tensor:
    """Pictures (b, c, h, w) in one quadrant of black ones, (b, c, 2h, 2w).

    Args:
        pictures: (b, c, h, w).
        quadrant: which, by row and column, (b,): 0 top left, 1 top right, 2 bottom left, 3 bottom
            right.
    """
    chosen = torch.nn.functional.one_hot(quadrant, 4).to(pictures.dtype)
    chosen = rearrange(chosen, "b (i j) -> b i j", i=2)
    placed = einsum(chosen, pictures, "b i j, b c h w -> b c i h j w")
    return rearrange(placed, "b c i h j w -> b c (i h) (j w)").contiguous()


@attrs.frozen(eq=False)
class LinearGaussianTruth:
    """The model x_m = W_m z + b_m + σ_m ε, z ~ N(0, I), and what follows from it in closed form.

    Args:
        weight: W_m by modality, (x, d).
        bias: b_m by modality, (x,).
        sigma: σ_m by modality.
    """

    weight: dict[str, Tensor]
    bias: dict[str, Tensor]
    sigma: dict[str, float]

    def _joined(self, data: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Weight (x, d) and variance (x,) of the modalities in `data`, and x - b, (b, x)."""
        weight = torch.cat([self.weight[name] for name in data])
        bias = torch.cat([self.bias[name] for name in data])
        sigma = torch.cat([torch.full_like(self.bias[k], self.sigma[k]) for k in data])
        x = torch.cat(list(data.values()), -1)
        return weight, sigma.square(), x - bias

    def log_prob(self, data: dict[str, Tensor]) -> Tensor:
        """Log p(x_O) in nats, (b,), of the modalities in `data` (b, x): log N(x; b, W Wᵀ + σ²)."""
        weight, variance, deviation = self._joined(data)
        covariance = weight @ weight.T + torch.diag(variance)
        mean = torch.zeros_like(variance)
        density = torch.distributions.MultivariateNormal(mean, covariance)
        log_px: Tensor = density.log_prob(deviation)
        return log_px

    def posterior(self, data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean (b, d) and covariance (d, d) of p(z|x_O) for the modalities in `data`."""
        weight, variance, deviation = self._joined(data)
        scaled = weight / rearrange(variance, "x -> x 1")
        identity = torch.eye(weight.shape[1], dtype=weight.dtype)
        covariance = torch.linalg.inv(identity + scaled.T @ weight)
        return einsum(covariance, scaled, deviation, "d e, x e, b x -> b d"), covariance


@spec
class LinearGaussian:
    """Rows of a linear-Gaussian model with known truth, float64, for proofs; `Splits.truth` has
    the closed forms.

    Args:
        dims: width of each modality (m0, m1, …).
        latent: width of z.
        sigma: noise of every modality.
        orthogonal: whether the columns of each W_m are orthogonal, so that posteriors are
            diagonal.
        rows: rows of train; valid and test have a tenth of them each.
        missing: share of modalities missing at random in all splits; every row keeps one.
        seed: of everything.

    Example:
        >>> import mvkit
        >>> data = mvkit.load_dataset("linear_gaussian")
        >>> list(data.modalities), data.truth is not None
        (['m0', 'm1', 'm2'], True)

    Reference: Tipping and Bishop, Probabilistic Principal Component Analysis, 1999,
    https://doi.org/10.1111/1467-9868.00196.
    """

    dims: tuple[int, ...] = field(default=(4, 5, 6), check=_widths)
    latent: int = count(3)
    sigma: float = field(default=0.5, check=number(above=0.0))
    orthogonal: bool = switch(True)
    rows: int = count(1000, low=10)
    missing: float = field(default=0.0, check=share)
    seed: int = count(0, low=0)

    def load(self) -> Splits:
        """The splits and the truth.

        Raises:
            DataError: a modality is too narrow for orthogonal columns.
        """
        if self.orthogonal and min(self.dims) < self.latent:
            raise DataError(
                f"linear_gaussian: dims={self.dims}: {min(self.dims)} numbers cannot have "
                f"{self.latent} orthogonal columns; give dims of at least latent, or "
                "orthogonal=False"
            )
        generator = seeded(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        dims = {f"m{i}": dim for i, dim in enumerate(self.dims)}
        weight = {name: normal(dim, self.latent) for name, dim in dims.items()}
        if self.orthogonal:
            lengths = normal(self.latent).abs() + 0.5
            for name in dims:
                weight[name] = torch.linalg.qr(weight[name]).Q * lengths
        bias = {name: normal(dim) for name, dim in dims.items()}
        likelihood = Normal(scale=self.sigma)
        modalities = {name: Modality((dim,), likelihood) for name, dim in dims.items()}
        splits = {}
        for split in SPLITS:
            rows = self.rows if split == "train" else self.rows // 10
            z = normal(rows, self.latent)
            data = {}
            for name, dim in dims.items():
                mean = z @ weight[name].T + bias[name]
                data[name] = mean + self.sigma * normal(rows, dim)
            splits[split] = MultimodalDataset(Batch(data, extra={"z": z}), modalities)
        truth = LinearGaussianTruth(weight, bias, dict.fromkeys(dims, self.sigma))
        complete = Splits(modalities, **splits, truth=truth)
        return complete.with_missing(self.missing, self.missing, seed=self.seed)
