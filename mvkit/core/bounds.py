"""Bounds: pure functions from `Terms` to one number a row. They know nothing of models or parts.

Axes: s samples, j drawn components, k components, b rows, m modalities. All in nats.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from einops import einsum, rearrange
from torch import Tensor

from mvkit.core.terms import Terms, required

Density = Literal["component", "mixture"]
Form = Literal["loose", "tight"]


def average(values: Tensor, log_pi: Tensor) -> Tensor:
    """E over samples and drawn components, (s, j, b) and (j, b) -> (b,)."""
    if values.shape[0] == 1 and values.shape[1] == 1:
        return rearrange(values, "1 1 b -> b")
    return einsum(_usable(values.mean(0), log_pi), log_pi.exp(), "j b, j b -> b")


def _usable(values: Tensor, log_pi: Tensor) -> Tensor:
    """Values of components, (j, b), zeros where a component has no weight."""
    return torch.where(log_pi > -math.inf, values, 0.0)


def weighted_sum(values: Tensor, weights: Tensor | None) -> Tensor:
    """Sum over modalities, the last axis, each times its weight (m,); None: ones."""
    if weights is None:
        return values.sum(-1)
    counted = torch.where(weights == 0, 0.0, values)  # of what weighs nothing, infinities too
    return counted @ weights.to(values.dtype)


def kl(terms: Terms, *, density: Density = "component", weights: Tensor | None = None) -> Tensor:
    """KL of the posterior from the prior and of the private posteriors from theirs, (b,).

    Args:
        terms: densities.
        density: `component`: Σ_k w_k KL(q_k ‖ p), closed form if there is one; `mixture`: the
            mixture's own density at the draws.
        weights: factors of the private KLs, (m,).
    """
    if density == "mixture" or terms.kl is None:
        name = "log_qz" if density == "mixture" else "log_qk"
        log_q = required(getattr(terms, name), name)
        divergence = average(log_q - required(terms.log_pz, "log_pz"), terms.log_pi)
    elif len(terms.kl) == 1:
        divergence = terms.kl.squeeze(0)
    else:
        divergence = (terms.all_log_pi.exp() * terms.kl).sum(0)
    if terms.private_kl is not None:
        return divergence + weighted_sum(terms.private_kl, weights)
    if terms.private_log_ratio is not None:
        log_ratio = weighted_sum(terms.private_log_ratio, weights)
        return divergence - average(log_ratio, terms.log_pi)
    return divergence


def likelihood(terms: Terms, *, weights: Tensor | None = None) -> Tensor:
    """E_q [Σ_m λ_m log p(x_m|z) + log p(s|x, z)], (b,), s where the model says what is missing.

    Args:
        terms: densities.
        weights: likelihood weights λ, (m,); None: ones.
    """
    return average(_log_likelihood(terms, weights), terms.log_pi)


def _log_likelihood(terms: Terms, weights: Tensor | None) -> Tensor:
    """Σ_m λ_m log p(x_m|z) + log p(s|x, z) of each draw, (s, j, b)."""
    log_px = weighted_sum(terms.log_px, weights)
    return log_px if terms.log_ps is None else log_px + terms.log_ps


def elbo(
    terms: Terms,
    *,
    weights: Tensor | None = None,
    beta: float = 1.0,
    private: Tensor | None = None,
    density: Density = "component",
) -> Tensor:
    """Evidence lower bound E_q Σ_m λ_m log p(x_m|z) - β KL, (b,).

    In models of what is missing, E_q log p(s|x, z) is part of it.

    Args:
        terms: densities.
        weights: likelihood weights λ, (m,); None: ones.
        beta: β.
        private: factors of the private KLs beside β, (m,); None: ones.
        density: see `kl`.

    Reference: Kingma and Welling, Auto-Encoding Variational Bayes, 2014,
    https://arxiv.org/abs/1312.6114.
    """
    reconstruction = likelihood(terms, weights=weights)
    return reconstruction - beta * kl(terms, density=density, weights=private)


def importance_log_weights(
    terms: Terms,
    *,
    weights: Tensor | None = None,
    beta: float = 1.0,
    private: Tensor | None = None,
) -> Tensor:
    """Log importance weights log w, (s, j, b).

    Σ_m λ_m log p(x_m|z) + β (log p(z) - log q(z) + Σ_m private_m (log p(w_m) - log q(w_m|x_m))),
    and log p(s|x, z) in models of what is missing; arguments as of `elbo`.
    """
    log_ratio = required(terms.log_pz, "log_pz") - required(terms.log_qz, "log_qz")
    if terms.private_log_ratio is not None:
        log_ratio = log_ratio + weighted_sum(terms.private_log_ratio, private)
    return _log_likelihood(terms, weights) + beta * log_ratio


def iwae(log_w: Tensor, log_pi: Tensor, *, bound: Form = "tight") -> Tensor:
    """Importance-weighted bound, (s, j, b) and (j, b) -> (b,).

    Args:
        log_w: log importance weights.
        log_pi: log-weights of the drawn components.
        bound: `tight`: one log-mean-exp over all draws; `loose`: one for each component, then
            their mean.

    Reference: Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016,
    https://arxiv.org/abs/1509.00519; Shi et al., 2019, https://arxiv.org/abs/1911.03393 (loose).
    """
    samples = math.log(len(log_w))
    if bound == "loose":
        of_component = torch.logsumexp(log_w, 0) - samples
        return (log_pi.exp() * _usable(of_component, log_pi)).sum(0)
    return torch.logsumexp(rearrange(log_w + log_pi, "s j b -> (s j) b"), 0) - samples


def normalised_weights(log_w: Tensor, log_pi: Tensor, *, bound: Form = "tight") -> Tensor:
    """Normalised importance weights ŵ without gradient, (s, j, b); in `loose` per component."""
    log_w = log_w.detach()
    if bound == "loose":
        return torch.softmax(log_w, 0)
    joined = torch.softmax(rearrange(log_w + log_pi.detach(), "s j b -> (s j) b"), 0)
    return rearrange(joined, "(s j) b -> s j b", s=len(log_w))


def dreg(log_w: Tensor, log_pi: Tensor, *, bound: Form = "tight") -> Tensor:
    """A number whose value is `iwae`'s and whose gradient is Σ ŵ ∂log w, (b,).

    With log q's own parameters stopped in `log_w` and the gradients through draws multiplied by
    (1-β) + β ŵ, that is the doubly reparametrised estimator. Gradients of component weights stay.

    Reference: Tucker et al., Doubly Reparameterized Gradient Estimators for Monte Carlo
    Objectives, 2019, https://arxiv.org/abs/1810.04152.
    """
    share = normalised_weights(log_w, log_pi, bound=bound)
    value = iwae(log_w.detach(), log_pi, bound=bound)  # its gradient reaches log_pi alone
    if bound == "loose":
        share = share * log_pi.detach().exp()
    surrogate = torch.where(share > 0, share * log_w, 0.0).sum((0, 1))
    return value + surrogate - surrogate.detach()
