"""Terms: every log-density of a batch at sampled latents.

Axes: s samples, j drawn components, k components, b rows, m modalities, d latent. All in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import attrs
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.decoding import Decoding
from mvkit.core.experts import Experts
from mvkit.core.posterior import Posterior
from mvkit.core.private_latents import draw_private
from mvkit.errors import SpecError

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
        private_log_ratio: log p(w_m) - log q(w_m|x_m) where the rule counts it, else 0, (s, j, b, m); None without
            private latents.
        private_kl: closed-form private KLs, weighted by how much of the posterior's evidence they are, (b, m); None
            without private latents or closed form.
        scale_gradients: called with a function (None for z, or a modality's name) -> factor (s, j, b), multiplies the
            gradient of each draw by it; None if no gradient will be asked for.
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
    scale_gradients: Callable[[Callable[[str | None], Tensor]], None] | None = None


def required(value: Tensor | None, name: str) -> Tensor:
    """The value, or an error that says that `Terms` lacks it."""
    if value is None:
        raise ValueError(f"terms: {name} was not computed; ask for it in Model.terms(want=…)")
    return value


def evaluate_terms(
    decoding: Decoding,
    prior: Callable[[], Posterior],
    batch: Batch,
    n: int,
    experts: Experts,
    posterior: Posterior,
    *,
    draw: Draw,
    reconstruct: Reconstruct,
    want: Want,
    stop_density: bool,
    private_from: str | None,
) -> Terms:
    """Evaluates the densities; `prior` returns p(z), the rest is as in `Model.terms`."""
    _check_draw(posterior, draw)
    draws = posterior.draw(n, draw, experts.generator)
    p = prior()
    kl = draws.kl(p) if want == "kl" else None
    used = draws.evidence & batch.observed if reconstruct == "own" else batch.observed
    private = draw_private(
        decoding, experts, draws, used, stop_density=stop_density, rule=private_from
    )
    log_px = decoding.log_px(batch, draws.z, private.w, used, _weight(posterior, draws.log_pi))
    log_pz = log_qz = log_qk = None
    if kl is None:
        log_pz = p.log_prob(draws.z)
    if want == "mixture":
        density = posterior.detach() if stop_density else posterior
        log_qz = density.log_prob(draws.z)
    elif kl is None:
        log_qk = draws.log_qk
    return Terms(
        log_px,
        log_pi=draws.log_pi,
        all_log_pi=posterior.log_weight,
        log_pz=log_pz,
        log_qz=log_qz,
        log_qk=log_qk,
        kl=kl,
        private_log_ratio=private.log_ratio,
        private_kl=private.kl,
        scale_gradients=lambda factor: private.scale_gradients(draws.z, factor),
    )


def _weight(posterior: Posterior, log_pi: Tensor) -> Tensor | None:
    """How much each draw counts, (j, b); None if all count alike."""
    if posterior.active is None and len(log_pi) == 1:
        return None
    weight = log_pi.detach().exp()
    return weight if posterior.active is None else weight * posterior.active


def _check_draw(posterior: Posterior, draw: Draw) -> None:
    """Raises SpecError if draws would leave trained component weights without gradient."""
    trained = len(posterior.log_weight) > 1 and posterior.log_weight.requires_grad
    if draw != "stratified" and trained:
        raise SpecError(
            f"got {draw!r}, which leaves trained component weights, as this aggregator has, "
            "without gradient; take draw='stratified', or torch.no_grad() where none is wanted",
            "draw",
        )
