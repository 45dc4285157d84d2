"""Bounds: pure functions from `Terms` to one number a row. They know nothing of models or parts.

Axes: s samples, j drawn components, k components, b rows, m modalities. All in nats.
"""

from __future__ import annotations

import math

import torch
from einops import einsum, rearrange
from torch import Tensor

from mvkit.terms import Terms, needed


def average(values: Tensor, log_weight: Tensor) -> Tensor:
    """E over samples and drawn components, (s, j, b) and (j, b) -> (b,)."""
    if values.shape[0] == 1 and values.shape[1] == 1:
        return rearrange(values, "1 1 b -> b")
    return einsum(values.mean(0), log_weight.exp(), "j b, j b -> b")


def weighted(values: Tensor, weights: Tensor | None) -> Tensor:
    """Sum over modalities, each times its weight (m,), over the last axis."""
    return values.sum(-1) if weights is None else values @ weights.to(values.dtype)


def divergence(terms: Terms, *, density: str = "component", weights: Tensor | None = None) -> Tensor:
    """KL of the posterior from the prior and of the private posteriors from theirs, (b,).

    Args:
        terms: densities.
        density: `component`: Σ_k w_k KL(q_k ‖ p), closed form if there is one; `mixture`: the mixture's own
            density at the draws.
        weights: factors of the private KLs, (m,).
    """
    if density == "component" and terms.kl is not None:
        kl = terms.kl.squeeze(0) if len(terms.kl) == 1 else (terms.log_component.exp() * terms.kl).sum(0)
    else:
        log_q = needed(terms.log_qk if density == "component" else terms.log_qz, "log_q")
        kl = average(log_q - needed(terms.log_pz, "log_pz"), terms.log_weight)
    if terms.kl_w is not None:
        kl = kl + weighted(terms.kl_w, weights)
    elif terms.log_rw is not None:
        kl = kl - average(weighted(terms.log_rw, weights), terms.log_weight)
    return kl


def elbo(
    terms: Terms,
    *,
    weights: Tensor | None = None,
    beta: float = 1.0,
    private: Tensor | None = None,
    density: str = "component",
) -> Tensor:
    """Evidence lower bound E_q Σ_m λ_m log p(x_m|z) - β KL, (b,).

    Args:
        terms: densities.
        weights: λ, (m,); None: ones.
        beta: β.
        private: factors of the private KLs beside β, (m,); None: ones.
        density: see `divergence`.

    Reference: Kingma and Welling, Auto-Encoding Variational Bayes, 2014, https://arxiv.org/abs/1312.6114.
    """
    likelihood = average(weighted(terms.log_px, weights), terms.log_weight)
    return likelihood - beta * divergence(terms, density=density, weights=private)


def log_weights(
    terms: Terms, *, weights: Tensor | None = None, beta: float = 1.0, private: Tensor | None = None
) -> Tensor:
    """Log importance weights Σ_m λ_m log p(x_m|z) + β (log p(z) - log q(z)) and private ratios, (s, j, b)."""
    ratio = needed(terms.log_pz, "log_pz") - needed(terms.log_qz, "log_qz")
    if terms.log_rw is not None:
        ratio = ratio + weighted(terms.log_rw, private)
    return weighted(terms.log_px, weights) + beta * ratio


def iwae(log_w: Tensor, log_weight: Tensor, *, bound: str = "tight") -> Tensor:
    """Importance-weighted bound, (s, j, b) and (j, b) -> (b,).

    Args:
        log_w: log importance weights.
        log_weight: log-weights of the drawn components.
        bound: `tight`: one log-mean-exp over all draws; `loose`: one for each component, then their mean.

    Reference: Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016,
    https://arxiv.org/abs/1509.00519; Shi et al., 2019, https://arxiv.org/abs/1911.03393 (loose).
    """
    samples = math.log(len(log_w))
    if bound == "loose":
        return (log_weight.exp() * (torch.logsumexp(log_w, 0) - samples)).sum(0)
    return torch.logsumexp(rearrange(log_w + log_weight, "s j b -> (s j) b"), 0) - samples


def normalised(log_w: Tensor, log_weight: Tensor, *, bound: str = "tight") -> Tensor:
    """Normalised importance weights ŵ, stopped, (s, j, b); in `loose` they sum to one in each component."""
    log_w = log_w.detach()
    if bound == "loose":
        return torch.softmax(log_w, 0)
    joined = torch.softmax(rearrange(log_w + log_weight.detach(), "s j b -> (s j) b"), 0)
    return rearrange(joined, "(s j) b -> s j b", s=len(log_w))


def dreg(log_w: Tensor, log_weight: Tensor, *, bound: str = "tight") -> Tensor:
    """A number whose value is `iwae`'s and whose gradient is Σ ŵ ∂log w, (b,).

    With log q's own parameters stopped in `log_w` and the gradients through draws multiplied by
    (1-β) + β ŵ, that is the doubly reparametrised estimator. Gradients of component weights stay.

    Reference: Tucker et al., Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, 2019,
    https://arxiv.org/abs/1810.04152.
    """
    share = normalised(log_w, log_weight, bound=bound)
    value = iwae(log_w.detach(), log_weight, bound=bound)  # live in log_weight alone
    if bound == "loose":
        share = share * log_weight.detach().exp()
    surrogate = (share * log_w).sum((0, 1))
    return value + surrogate - surrogate.detach()
