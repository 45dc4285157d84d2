"""Likelihoods of bits and classes.

Axes: r repeats of a row (samples and drawn components), n rows, then the shape of the modality.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mvkit.core import noise
from mvkit.core.likelihood import ALONE, Context, Likelihood
from mvkit.core.modality import Sizes
from mvkit.registry.spec import spec


@spec
class Bernoulli(Likelihood):
    """Bernoulli likelihood on logits; grey values in [0, 1] are taken as probabilities of a bit.

    Example:
        >>> import mvkit
        >>> model = mvkit.Model({"x": mvkit.Modality((3,), "bernoulli")}, latent_dim=2, seed=0)
        >>> model.log_likelihood({"x": [[0.0, 1.0, 0.3]]}, n=5).shape
        torch.Size([1])

    Reference: Kingma and Welling, Auto-Encoding Variational Bayes, 2014,
    https://arxiv.org/abs/1312.6114.
    """

    integers = True
    support = "values in [0, 1]; scale the data, for instance divide pictures of 0…255 by 255"

    def build(self, sizes: Sizes) -> Bernoulli:
        """The likelihood itself: it has no parameters."""
        return self

    def log_prob(self, out: Tensor, x: Tensor, context: Context) -> Tensor:
        return x * out - functional.softplus(out)

    def mean(self, out: Tensor, context: Context = ALONE) -> Tensor:
        return torch.sigmoid(out)

    def sample(self, out: Tensor, context: Context = ALONE) -> Tensor:
        uniform = noise.draw("x", out.shape, out, generator=context.generator)
        return (uniform < self.mean(out)).to(out.dtype)

    def out_of_support(self, x: Tensor) -> Tensor:
        return ~((x >= 0) & (x <= 1))


@spec
class Categorical(Likelihood):
    """Categorical likelihood on logits, classes last; one-hot, probabilities or class indices.

    Example:
        >>> import mvkit
        >>> model = mvkit.Model({"x": mvkit.Modality((3,), "categorical")}, latent_dim=2, seed=0)
        >>> model.log_likelihood({"x": [2, 0]}, n=5).shape
        torch.Size([2])

    Reference: Kingma et al., Semi-supervised Learning with Deep Generative Models, 2014,
    https://arxiv.org/abs/1406.5298.
    """

    integers = True
    class_axis = True
    support = "classes on the last axis, at least 0 and summing to 1"

    def build(self, sizes: Sizes) -> Categorical:
        """The likelihood itself: it has no parameters."""
        return self

    def log_prob(self, out: Tensor, x: Tensor, context: Context) -> Tensor:
        return (x * functional.log_softmax(out, dim=-1)).sum(-1)

    def mean(self, out: Tensor, context: Context = ALONE) -> Tensor:
        return functional.softmax(out, dim=-1)

    def sample(self, out: Tensor, context: Context = ALONE) -> Tensor:
        uniform = noise.draw("x", out.shape, out, generator=context.generator)
        # Gumbel-max; a uniform of exactly 0 would give log 0
        gumbel = -torch.log(-torch.log(uniform.clamp(min=torch.finfo(out.dtype).tiny)))
        return functional.one_hot((out + gumbel).argmax(-1), out.shape[-1]).to(out.dtype)

    def out_of_support(self, x: Tensor) -> Tensor:
        off = (x.sum(-1, keepdim=True) - 1).abs() > 1e-3
        return (x < 0) | ~torch.isfinite(x) | off


def has_classes(likelihood: Likelihood) -> bool:
    """Whether values are classes, of which there are sets instead of intervals."""
    return likelihood.class_axis or isinstance(likelihood, Bernoulli)
