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
from mvkit.core.modality import Modality
from mvkit.data.dataset import MultimodalDataset
from mvkit.errors import DataError
from mvkit.parts.likelihoods import Normal
from mvkit.registry.spec import as_part, field, flag, integer, number, spec

_rate = number(0.0, 1.0)


@attrs.frozen(eq=False)
class Splits:
    """A dataset's modalities and its splits; `truth` where it is known; `notes`: names of features, scales and such."""

    modalities: dict[str, Modality]
    train: MultimodalDataset
    valid: MultimodalDataset
    test: MultimodalDataset
    truth: Any = None
    notes: Any = attrs.field(factory=dict)


def load_dataset(name: str, **options: Any) -> Splits:
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
    made: Splits = as_part("dataset", {"name": name, **options}).load()
    return made


def _masked(
    data: dict[str, Tensor],
    modalities: dict[str, Modality],
    rate: float,
    seed: int,
    **extra: Tensor,
) -> MultimodalDataset:
    made = MultimodalDataset(Batch(data, extra=dict(extra)), modalities)
    return made.with_missing(rate, seed=seed) if rate else made


@spec
class PolyDigits:
    """Five pictures of one digit: real handwriting over real photographs, (1, 8, 8) each, values in [0, 1].

    10,000 train, 1,000 valid and 2,000 test rows; `extra["label"]`. The base digits of the test rows are never seen in
    training. Made by `mvkit/data/datasets/polydigits/make.py`; licences in SOURCES.md beside it.

    Args:
        missing: share of modalities missing at random in train and valid, one at least kept a row.
        missing_test: likewise in test.
        seed: of the missingness, a function of (seed, row).

    Reference: the idea of PolyMNIST, Sutter, Daunhawer and Vogt, 2021, https://arxiv.org/abs/2105.02470; the digits:
    Alpaydin and Kaynak, 1998, https://doi.org/10.24432/C50P49.
    """

    missing: float = field(default=0.0, check=_rate)
    missing_test: float = field(default=0.0, check=_rate)
    seed: int = field(default=0, check=integer())

    def load(self) -> Splits:
        """The splits."""
        modalities = {f"m{i}": Modality((1, 8, 8), Normal(scale=0.25)) for i in range(5)}
        rates = {"train": self.missing, "valid": self.missing, "test": self.missing_test}
        made = {}
        with (
            files("mvkit.data.datasets").joinpath("polydigits/polydigits.npz").open("rb") as file,
            np.load(file) as arrays,
        ):
            for i, (split, rate) in enumerate(rates.items()):
                pictures = torch.from_numpy(arrays[split]).float() / 31
                data = {
                    f"m{m}": rearrange(pictures[:, m], "b h w -> b 1 h w").contiguous()
                    for m in range(5)
                }
                label = torch.from_numpy(arrays[f"{split}_label"]).long()
                made[split] = _masked(data, modalities, rate, 3 * self.seed + i, label=label)
        return Splits(modalities, **made)


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

    def _joined(self, names: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor]:
        sigma = torch.cat([torch.full_like(self.bias[name], self.sigma[name]) for name in names])
        return (
            torch.cat([self.weight[k] for k in names]),
            torch.cat([self.bias[k] for k in names]),
            sigma,
        )

    def log_prob(self, data: dict[str, Tensor]) -> Tensor:
        """Log p(x_O) in nats, (b,), of the modalities in `data` (b, x): log N(x; b, W Wᵀ + σ²)."""
        weight, bias, sigma = self._joined(tuple(data))
        covariance = weight @ weight.T + torch.diag(sigma.square())
        x = torch.cat(list(data.values()), -1)
        density: Tensor = torch.distributions.MultivariateNormal(bias, covariance).log_prob(x)
        return density

    def posterior(self, data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean (b, d) and covariance (d, d) of p(z|x_O) for the modalities in `data`."""
        weight, bias, sigma = self._joined(tuple(data))
        scaled = weight / rearrange(sigma.square(), "x -> x 1")
        covariance = torch.linalg.inv(
            torch.eye(weight.shape[1], dtype=weight.dtype) + scaled.T @ weight
        )
        x = torch.cat(list(data.values()), -1)
        return einsum(covariance, scaled, x - bias, "d e, x e, b x -> b d"), covariance


@spec
class LinearGaussian:
    """Rows of a linear-Gaussian model with known truth, float64, for proofs; `Splits.truth` has the closed forms.

    Args:
        dims: width of each modality (m0, m1, …).
        latent: width of z.
        sigma: noise of every modality.
        orthogonal: whether the columns of each W_m are orthogonal, so that posteriors are diagonal.
        rows: rows of train; valid and test get a tenth each.
        missing: share of modalities missing at random, one at least kept a row.
        seed: of everything.

    Reference: Tipping and Bishop, Probabilistic Principal Component Analysis, 1999,
    https://doi.org/10.1111/1467-9868.00196.
    """

    dims: tuple[int, ...] = (4, 5, 6)
    latent: int = field(default=3, check=integer(1))
    sigma: float = field(default=0.5, check=number(above=0.0))
    orthogonal: bool = field(default=True, check=flag)
    rows: int = field(default=1000, check=integer(10))
    missing: float = field(default=0.0, check=_rate)
    seed: int = field(default=0, check=integer())

    def load(self) -> Splits:
        """The splits and the truth."""
        if self.orthogonal and min(self.dims) < self.latent:
            raise DataError(
                f"linear_gaussian: {min(self.dims)} numbers cannot have {self.latent} orthogonal columns"
            )
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        names = [f"m{i}" for i in range(len(self.dims))]
        weight = {
            name: normal(dim, self.latent) for name, dim in zip(names, self.dims, strict=True)
        }
        if self.orthogonal:
            lengths = normal(self.latent).abs() + 0.5
            weight = {name: torch.linalg.qr(w).Q * lengths for name, w in weight.items()}
        bias = {name: normal(dim) for name, dim in zip(names, self.dims, strict=True)}
        modalities = {
            n: Modality((d,), Normal(scale=self.sigma))
            for n, d in zip(names, self.dims, strict=True)
        }
        made = {}
        for i, (split, rows) in enumerate(
            {"train": self.rows, "valid": self.rows // 10, "test": self.rows // 10}.items()
        ):
            z = normal(rows, self.latent)
            data = {
                k: z @ weight[k].T + bias[k] + self.sigma * normal(rows, len(bias[k]))
                for k in names
            }
            made[split] = _masked(data, modalities, self.missing, 3 * self.seed + i, z=z)
        return Splits(
            modalities,
            **made,
            truth=LinearGaussianTruth(weight, bias, dict.fromkeys(names, self.sigma)),
        )
