"""Terms: every log-density of a batch at sampled latents.

Axes: s samples, j drawn components, k components, b rows, m modalities, d latent. All in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import attrs
from torch import Tensor

Draw = Literal["stratified", "iid", "balanced"]
Reconstruct = Literal["all", "own"]
Want = Literal["kl", "mixture"]


@attrs.frozen(eq=False)
class Terms:
    """Every log-density of a batch at sampled latents, before any weight.

    Args:
        log_px: log p(x_m|z, w_m), zeros where not reconstructed or unobserved, (s, j, b, m).
        log_pi: log-weights of the drawn components, (j, b).
        all_log_pi: log-weights of all components, (k, b).
        log_pz: log p(z), (s, j, b); None if not asked for.
        log_qz: log of the mixture's density at z, likewise.
        log_qk: log-density of each draw's own component, likewise.
        kl: closed-form KL(q_k ‖ p), (k, b); None without one.
        private_log_ratio: log p(w_m) - log q(w_m|x_m) where the rule counts it, else 0, (s, j, b,
            m); None without private latents.
        private_kl: closed-form private KLs, weighted by how much of the posterior's evidence they
            are, (b, m); None without private latents or closed form.
        log_ps: log-probability of which values are observed, (s, j, b); None in models that say
            nothing of it.
        scale_gradients: called with a function (None for z, or a modality's name) -> factor (s, j,
            b), multiplies the gradient of each draw by it; None if no gradient will be asked for.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, aggregator="moe", seed=0)
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.terms(model.conform(rows)).log_px.shape  # (s, j, b, m)
        torch.Size([1, 1, 4, 2])
    """

    log_px: Tensor
    log_pi: Tensor
    all_log_pi: Tensor
    log_pz: Tensor | None = None
    log_qz: Tensor | None = None
    log_qk: Tensor | None = None
    kl: Tensor | None = None
    private_log_ratio: Tensor | None = None
    private_kl: Tensor | None = None
    log_ps: Tensor | None = None
    scale_gradients: Callable[[Callable[[str | None], Tensor]], None] | None = None


def required(value: Tensor | None, name: str) -> Tensor:
    """The value, or an error that says that `Terms` lacks it."""
    if value is None:
        raise ValueError(f"terms: {name} was not computed; ask for it in Model.terms(want=…)")
    return value
