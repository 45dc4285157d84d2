"""Samplers: where latents of new rows come from, after training.

Axes: n rows, b fitted rows, c components, d latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum
from torch import Tensor, nn

from mvkit import estimates, noise, plugins
from mvkit.batch import Batch
from mvkit.errors import DataError, RequestError
from mvkit.mechanism import check_model
from mvkit.spec import as_part, field, integer, spec

if TYPE_CHECKING:
    from mvkit.generative import Generative


class Sampler(ABC):
    """Draws shared latents of new rows.

    To implement one, write a spec whose `build(width)` returns an `nn.Module` with these two methods, whose state is in
    buffers and parameters of shapes that the spec and the width d alone decide, so that files can hold it.
    """

    spec: Any

    @abstractmethod
    def fit(self, z: Tensor, seed: int) -> None:
        """Fits to latents (b, d) of rows."""

    @abstractmethod
    def sample(self, model: Generative, n: int, generator: torch.Generator | None) -> Tensor:
        """Latents (n, d)."""


@spec
class Prior:
    """The model's own prior, which needs no fit.

    Reference: Kingma and Welling, Auto-Encoding Variational Bayes, 2014, https://arxiv.org/abs/1312.6114.
    """

    def build(self, width: int) -> PriorSampler:
        """The live part."""
        return PriorSampler(self)


class PriorSampler(nn.Module, Sampler):
    """Asks the model."""

    def __init__(self, spec: Prior) -> None:
        super().__init__()
        self.spec = spec

    def fit(self, z: Tensor, seed: int) -> None:
        """Nothing to do."""

    def sample(self, model: Generative, n: int, generator: torch.Generator | None) -> Tensor:
        """See `Sampler.sample`."""
        return model.prior_draws(n, None, generator)[0]


@spec
class GMM:
    """Mixture of normals with full covariances, fitted to latents of training rows by scikit-learn.

    Args:
        components: number of components.
        floor: added to the variances, so that no component shrinks to a point.

    Reference: Ghosh, Sajjadi, Vergari, Black and Schölkopf, From Variational to Deterministic Autoencoders, ICLR 2020,
    https://arxiv.org/abs/1903.12436.
    """

    components: int = field(default=10, check=integer(1))
    floor: float = 1e-6

    def build(self, width: int) -> GMMSampler:
        """The live part."""
        return GMMSampler(self, width)


class GMMSampler(nn.Module, Sampler):
    """Weights (c,), means (c, d) and the lower factors of the covariances (c, d, d)."""

    weight: Tensor
    loc: Tensor
    factor: Tensor

    def __init__(self, spec: GMM, width: int) -> None:
        super().__init__()
        self.spec = spec
        c = spec.components
        self.register_buffer("weight", torch.full((c,), 1 / c))
        self.register_buffer("loc", torch.zeros(c, width))
        self.register_buffer("factor", torch.eye(width).repeat(c, 1, 1))

    def fit(self, z: Tensor, seed: int) -> None:
        """See `Sampler.fit`."""
        from sklearn.mixture import GaussianMixture

        if len(z) < self.spec.components:
            raise DataError(f"sampler 'gmm': needs {self.spec.components} rows at least; got {len(z)}")
        made = GaussianMixture(self.spec.components, reg_covar=self.spec.floor, random_state=seed, max_iter=500)
        found = made.fit(z.cpu().double().numpy())
        self.weight.copy_(torch.as_tensor(found.weights_))
        self.loc.copy_(torch.as_tensor(found.means_))
        self.factor.copy_(torch.linalg.cholesky(torch.as_tensor(found.covariances_)))

    def sample(self, model: Generative, n: int, generator: torch.Generator | None) -> Tensor:
        """See `Sampler.sample`."""
        uniform = noise.draw("choice/component", (n, 1), self.weight, generator=generator)
        cdf = self.weight.cumsum(0)
        picked = torch.searchsorted(cdf / cdf[-1], uniform[:, 0].contiguous(), right=True)
        eps = noise.draw("prior", (n, self.loc.shape[1]), self.loc, generator=generator, sampler=torch.randn)
        return self.loc[picked] + einsum(self.factor[picked], eps, "n d e, n e -> n d")


def fit_sampler(model: Generative, data: Any, sampler: Any = "gmm", *, seed: int = 0) -> Sampler:
    """Fits a sampler to latents of rows, for `model.sample(n, sampler="gmm")`; `mvkit.save` keeps it.

    One draw of the posterior a row, given all that it has. The model holds one sampler of each name: another fit takes
    its place. Private latents keep their priors.

    Args:
        model: a trained model.
        data: rows, as a rule the training rows.
        sampler: a name, a spec or a dict (`mvkit.available("sampler")`).
        seed: of the draws and of the fit.

    Example:
        >>> import torch, mvkit
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, seed=0)
        >>> rows = {"a": torch.randn(50, 3), "b": torch.randn(50, 2)}
        >>> _ = mvkit.fit_sampler(model, rows, {"name": "gmm", "components": 3})
        >>> model.sample(4, sampler="gmm")["b"].shape
        torch.Size([4, 2])
    """
    check_model(model, "fit_sampler")
    if not model.latent_dim:
        raise RequestError("fit_sampler: the model has no shared latent; only private ones, which keep their priors")
    made = as_part("sampler", sampler)
    generator = torch.Generator(model.like.device).manual_seed(seed)

    def draw(rows: Batch) -> Tensor:
        return model.condition(rows, None, "error", inference=True).posterior.rsample(1, generator)[0]

    z = estimates.answer(model, draw, data)
    if not torch.isfinite(z).all():
        raise DataError("fit_sampler: the model's latents are not finite; expected numbers; train it again")
    with torch.random.fork_rng(devices=[]):  # of samplers with networks
        torch.default_generator.manual_seed(seed)
        live: Any = made.build(model.latent_dim).to(model.like)
        live.fit(z, seed)
    return _kept(model, made, live.eval())


def install(model: Generative, made: Any) -> None:
    """Gives a model a sampler whose state is still to be loaded."""
    _kept(model, made, made.build(model.latent_dim))


def _kept(model: Generative, made: Any, live: Any) -> Sampler:
    live.requires_grad_(False)  # later training of the model leaves it alone
    model.samplers[str(plugins.name_of("sampler", type(made)))] = live
    return live  # type: ignore[no-any-return]


def fitted(model: Generative, name: str) -> Sampler:
    """The sampler of a model with a bare or qualified name."""
    known = str(plugins.name_of("sampler", plugins.lookup("sampler", name)))
    if known == "prior":
        return Prior().build(model.latent_dim)
    if known not in model.samplers:
        raise RequestError(
            f"sample: sampler {name!r} is not fitted yet; call mvkit.fit_sampler(model, data, {name!r}) first"
        )
    return model.samplers[known]  # type: ignore[return-value]
