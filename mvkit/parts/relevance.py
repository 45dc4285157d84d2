"""Decoders that switch off the latent dimensions that a modality does not need.

Axes: n rows, d latent dimensions (shared, then private), h outputs of the first layer.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from mvkit.core.context_networks import built_network
from mvkit.errors import SpecError
from mvkit.parts.networks import Dense, Network, Shape, WithContext
from mvkit.registry.spec import field, number, part, spec

LOG_2_PI = math.log(2 * math.pi)


def _taken_over(layer: nn.Linear, of: nn.Linear) -> None:
    """Gives a layer the weights of another, and its widths."""
    layer.in_features, layer.out_features = of.in_features, of.out_features
    layer.weight, layer.bias = of.weight, of.bias


class ARDLinear(nn.Linear):
    """A linear layer whose columns are switched off where the data do not need them.

    Args:
        layer: whose weights it takes over.
        concentration, rate: of the gamma prior of each column's precision α_d.
    """

    def __init__(self, layer: nn.Linear, concentration: float, rate: float) -> None:
        super().__init__(1, 1)
        _taken_over(self, layer)
        self.concentration = concentration
        self.rate = rate

    @property
    def relevance(self) -> Tensor:
        """Root mean square of the weights of each latent dimension, (d,)."""
        return self.weight.detach().square().mean(0).sqrt()

    def penalty(self, rows: int) -> Tensor:
        """-Σ_d log p(w_d) by the number of training rows, in nats, ().

        The α_d are integrated out: p(w_d) = ∫ N(w_d; 0, 1/α) Gamma(α; a, b) dα is a Student's t
        of all h weights together.
        """
        a, b = self.concentration, self.rate
        h = self.out_features
        constant = math.lgamma(a + h / 2) - math.lgamma(a) + a * math.log(b) - h / 2 * LOG_2_PI
        halved = self.weight.square().sum(0) / 2
        log_p = constant - (a + h / 2) * torch.log(b + halved)
        return -log_p.sum() / rows


class NormalLinear(nn.Linear):
    """A linear layer with a normal prior of its weights, N(0, 1/inputs).

    Args:
        layer: whose weights it takes over.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(1, 1)
        _taken_over(self, layer)

    def penalty(self, rows: int) -> Tensor:
        """-log p(weights) by the number of training rows, in nats, ()."""
        precision = float(max(self.in_features, 1))
        log_scale = self.weight.numel() * (LOG_2_PI - math.log(precision)) / 2
        return (precision * self.weight.square().sum() / 2 + log_scale) / rows


@spec
class ARD(Network):
    """Decoders with automatic relevance determination: w_d ~ N(0, 1/α_d), α_d ~ Gamma(a, b).

    w_d are the weights of the first layer from latent dimension d, shared or private; each
    modality has precisions α_d of its own, which are integrated out. The dimensions that a
    modality does not need then lose their weights: `model.relevance()` says which are left.
    Columns of covariates are left alone. The weights of later layers have a N(0, 1/inputs) prior,
    so that they cannot undo what the first one does. The penalty is -log p of all these weights;
    `fit` counts it once for all training rows. Encoders are those of the network, without it.

    Args:
        network: what it is made of, whose decoder is fully connected: `mlp` or `linear`.
        concentration: a.
        rate: b, in squared weights; a column pays by the logarithm of its squared norm where that
            is far above b, and hardly more for being smaller than b.

    Example:
        >>> import mvkit
        >>> from mvkit.parts import ARD
        >>> model = mvkit.Model({"a": mvkit.Modality((3,), decoder=ARD())}, latent_dim=4, seed=0)
        >>> model.sample(2)["a"].shape
        torch.Size([2, 3])

    Reference: MacKay, Bayesian Non-Linear Modeling for the Prediction Competition, 1994; Bishop,
    Bayesian PCA, NeurIPS 1998 (linear decoders); Ainsworth, Foti, Lee and Fox, oi-VAE: Output
    Interpretable VAEs for Nonlinear Group Factor Analysis, ICML 2018,
    https://arxiv.org/abs/1802.06765 (by modality, α_d integrated out).
    """

    network: object = part("network", default="mlp")
    concentration: float = field(default=1e-3, check=number(above=0.0))
    rate: float = field(default=1e-4, check=number(above=0.0))

    def encoder(self, shape: Shape, width: int, context: int = 0) -> nn.Module:
        build = cast(Network, self.network).encoder
        return built_network(build, shape, width, context, "encoders")

    def decoder(self, width: int, shape: Shape, context: int = 0) -> nn.Module:
        build = cast(Network, self.network).decoder
        module = built_network(build, width, shape, context, "decoders")
        layers = module.network if isinstance(module, WithContext) else module
        if not isinstance(layers, Dense):
            raise SpecError(
                f"{self.network!r} has no fully connected decoder, whose first layer says what "
                "each latent dimension is for; expected 'mlp' or 'linear'",
                "network",
            )
        places = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
        for i in places:
            layer = cast(nn.Linear, layers[i])
            layers[i] = NormalLinear(layer) if i > places[0] else self._first(layer)
        return module

    def _first(self, layer: nn.Linear) -> ARDLinear:
        return ARDLinear(layer, self.concentration, self.rate)
