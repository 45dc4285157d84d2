"""Posterior: what bounds, likelihoods and questions ask of q(z|x_O), whatever it is made of.

Axes: s samples, j drawn components, k components, b rows, m modalities, d latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core import noise
from mvkit.core.noise import Generator
from mvkit.errors import RequestError, ShapeError


class Posterior(ABC):
    """q(z|x_O) of each row of a batch; `Mixture` is the one with closed forms.

    To implement one, write the abstract methods. The defaults are those of one density without
    components: K = 1, weights of one. Rows are independent, draws come from `mvkit.core.noise`,
    and nothing is NaN, also in rows that observe nothing.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, aggregator="poe", seed=0)
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> posterior = model.posterior(rows)
        >>> posterior.mean.shape, posterior.log_prob(torch.zeros(4, 2)).shape
        (torch.Size([4, 2]), torch.Size([4]))
    """

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Mean of each row, (b, d), the same at every call."""

    @property
    @abstractmethod
    def log_weight(self) -> Tensor:
        """Log-weights of the components, (k, b)."""

    @property
    @abstractmethod
    def evidence(self) -> Tensor | None:
        """Modalities that each component looked at, (k, b, m) bool; None for a prior."""

    @property
    def active(self) -> Tensor | None:
        """Rows that objectives count, (b,) bool; None: all."""
        return None

    @abstractmethod
    def draw(self, n: int, how: str, generator: Generator = None, site: str = "z") -> Draws:
        """N reparametrised draws; see `Mixture.draw`."""

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of the whole, (..., b, d) -> (..., b), in nats."""

    @abstractmethod
    def detach(self) -> Posterior:
        """The same distribution with every parameter stopped."""

    def stop_density(self) -> Posterior:
        """The same distribution, its parameters stopped but for the components' weights.

        What DReG takes as log q: draws repay the gradients of locations and scales that are
        stopped, and nothing repays those of weights.
        """
        return self.detach()

    def kl(self, prior: object) -> Tensor | None:
        """KL(q_k ‖ p) of every component, (k, b), in nats; None where there is no closed form."""
        return None

    def sample(
        self, n: int, component: int | None = None, generator: Generator = None
    ) -> tuple[Tensor, Tensor | None]:
        """Draws of a prior (b = 1): latents (n, d), and their components (n,) if it has any."""
        z = self.draw(n, "iid", generator, "prior").z
        return rearrange(z, "n 1 1 d -> n d"), None

    def rsample(self, n: int, generator: Generator = None) -> Tensor:
        """Reparametrised iid draws, (n, b, d); the pick of a component carries no gradient."""
        return rearrange(self.draw(n, "iid", generator).z, "n 1 b d -> n b d")

    def where(self, rows: Tensor, other: Posterior) -> Posterior:
        """This one in `rows` (b,) bool, `other` in the rest."""
        return Either(rows, self, other)

    def expand(self, b: int, m: int) -> Posterior:
        """A prior as the posterior of b rows that observe none of m modalities."""
        raise RequestError("this posterior belongs to its rows, and cannot stand in for others")


@attrs.frozen(eq=False)
class Draws:
    """Samples of a posterior, with the components they came from.

    Args:
        posterior: the whole of it.
        z: samples, (s, j, b, d).
        component: their components, (s or 1, 1, b); None: j is k, in order.
        log_pi: log-weights of the drawn components, (j, b); they sum to one over j.
        density: returns the log-density of each draw under its own component, (s, j, b).
        kl: returns the closed-form KL of every component from a prior, (k, b), or None; at these
            draws, where the closed form is that of a conditional.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, aggregator="moe", seed=0)
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> draws = model.posterior(rows).draw(5, "stratified")
        >>> draws.z.shape  # (s, j, b, d): two components
        torch.Size([5, 2, 4, 2])
    """

    posterior: Posterior
    z: Tensor
    component: Tensor | None
    log_pi: Tensor
    density: Callable[[], Tensor]
    kl: Callable[[object], Tensor | None]

    @property
    def evidence(self) -> Tensor:
        """What the component of each draw looked at, (s or 1, j, b, m) bool."""
        evidence = self.posterior.evidence
        if evidence is None:
            raise ValueError("this posterior has no evidence")
        if self.component is None:
            return rearrange(evidence, "j b m -> 1 j b m")
        picked = rearrange(self.component, "s 1 b -> s b 1").expand(-1, -1, evidence.shape[-1])
        return rearrange(torch.gather(evidence, 0, picked), "s b m -> s 1 b m")

    @property
    def log_qk(self) -> Tensor:
        """Log-density of each draw under its own component, (s, j, b)."""
        return self.density()


@attrs.frozen(eq=False)
class Either(Posterior):
    """One posterior in some rows, another in the rest; as a whole, one component.

    Args:
        rows: where the first applies, (b,) bool.
        first: a posterior of all rows.
        second: another.
    """

    rows: Tensor
    first: Posterior
    second: Posterior

    @property
    def mean(self) -> Tensor:
        return torch.where(rearrange(self.rows, "b -> b 1"), self.first.mean, self.second.mean)

    @property
    def log_weight(self) -> Tensor:
        return torch.zeros_like(self.first.log_weight[:1])

    @property
    def evidence(self) -> Tensor | None:
        first, second = self.first.evidence, self.second.evidence
        if first is None or second is None:
            return None
        rows = rearrange(self.rows, "b -> 1 b 1")
        return torch.where(rows, first.any(0, keepdim=True), second.any(0, keepdim=True))

    def draw(self, n: int, how: str, generator: Generator = None, site: str = "z") -> Draws:
        first = self.first.draw(n, "iid", generator, site).z
        second = self.second.draw(n, "iid", generator, site).z
        z = torch.where(rearrange(self.rows, "b -> b 1"), first, second)
        return Draws(self, z, None, self.log_weight, lambda: self.log_prob(z), self.kl)

    def log_prob(self, z: Tensor) -> Tensor:
        return torch.where(self.rows, self.first.log_prob(z), self.second.log_prob(z))

    def detach(self) -> Posterior:
        return Either(self.rows, self.first.detach(), self.second.detach())

    def stop_density(self) -> Posterior:
        return Either(self.rows, self.first.stop_density(), self.second.stop_density())


class Distribution(Protocol):
    """A distribution of torch's kind, such as `torch.distributions.Independent`."""

    def log_prob(self, value: Tensor, /) -> Tensor:
        """Log-density, (..., b, d) -> (..., b)."""
        ...

    def sample(self, shape: tuple[int, ...], /) -> Tensor:
        """Draws of `shape`, (*shape, d)."""
        ...


@attrs.frozen(eq=False)
class ForeignDensity(Posterior):
    """A distribution of torch's kind as a prior: it has a density and draws, but no rows.

    Args:
        distribution: the distribution.
    """

    distribution: Distribution

    @property
    def mean(self) -> Tensor:
        raise self._refusal("has no mean of each row")

    @property
    def log_weight(self) -> Tensor:
        return torch.zeros(1, 1)

    @property
    def evidence(self) -> Tensor | None:
        return None

    def draw(self, n: int, how: str, generator: Generator = None, site: str = "z") -> Draws:
        raise self._refusal("has no draws of each row")

    def log_prob(self, z: Tensor) -> Tensor:
        return self.distribution.log_prob(z)

    def detach(self) -> Posterior:
        raise self._refusal("cannot be detached")

    def sample(
        self, n: int, component: int | None = None, generator: Generator = None
    ) -> tuple[Tensor, Tensor | None]:
        """Draws (n, d), from the global generator, which is seeded from the one given."""
        return noise.sampled(self.distribution, n, generator), None

    def expand(self, b: int, m: int) -> Posterior:
        raise self._refusal("is no mixture, so it cannot stand in for a posterior")

    def _refusal(self, reason: str) -> RequestError:
        return RequestError(
            f"prior of type {type(self.distribution).__name__!r} {reason}; give modalities to "
            "condition on, or use sample()"
        )


def as_density(value: Posterior | Distribution) -> Posterior:
    """What a prior returned, as a `Posterior`; other distributions are taken in only here.

    Example:
        >>> import torch
        >>> from mvkit.core import as_density
        >>> normal = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
        >>> prior = as_density(torch.distributions.Independent(normal, 1))
        >>> prior.log_prob(torch.zeros(4, 2)).shape
        torch.Size([4])
    """
    return value if isinstance(value, Posterior) else ForeignDensity(value)


def check_latents(z: Tensor, shape: Sequence[int]) -> None:
    """Raises ShapeError unless z is (..., b, d); `shape` is (b, d), and one row serves all."""
    b, d = shape
    fits = z.ndim > 1 and z.shape[-1] == d
    if not fits or (z.shape[-2] != b and 1 not in (z.shape[-2], b)):
        raise ShapeError(
            f"log_prob: z has shape {tuple(z.shape)}; expected (..., {b}, {d}), rows and latent "
            "dimensions last; reshape it"
        )
