"""Terms: every log-density of a batch at sampled latents, and how a model evaluates them.

Axes: s samples, j drawn components, k components, b rows, m modalities, d latent. All in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import torch
from einops import rearrange, repeat
from torch import Tensor

from mvkit.batch import Batch
from mvkit.errors import ShapeError, SpecError
from mvkit.experts import Experts
from mvkit.likelihoods import Context
from mvkit.posterior import Posterior
from mvkit.private import Private

if TYPE_CHECKING:
    from mvkit.model import Model


@attrs.frozen(eq=False)
class Terms:
    """Every log-density of a batch at sampled latents, before any weight.

    Args:
        log_px: log p(x_m|z, w_m), zeros where not reconstructed or unobserved, (s, j, b, m).
        log_weight: log-weights of the drawn components, (j, b).
        log_component: log-weights of all components, (k, b).
        log_pz: log p(z), (s, j, b); None if not asked for.
        log_qz: log of the mixture's density at z, likewise.
        log_qk: log-density of each draw's own component, likewise.
        kl: closed-form KL(q_k ‖ p), (k, b); None without one.
        log_rw: log p(w_m) - log q(w_m|x_m) where the rule counts it, else 0, (s, j, b, m); None without
            private latents.
        kl_w: closed-form private KLs, weighted by how much of the posterior's evidence they are, (b, m); None
            without private latents or closed form.
        scaled: called with a function (z's or a modality's name) -> factor (s, j, b), multiplies the gradient
            of each draw by it; None if no gradient will be asked for.
    """

    log_px: Tensor
    log_weight: Tensor
    log_component: Tensor
    log_pz: Tensor | None = None
    log_qz: Tensor | None = None
    log_qk: Tensor | None = None
    kl: Tensor | None = None
    log_rw: Tensor | None = None
    kl_w: Tensor | None = None
    scaled: Callable[[Callable[[str | None], Tensor]], None] | None = None


def needed(value: Tensor | None, name: str) -> Tensor:
    """The value, or an error that says that `Terms` lacks it."""
    if value is None:
        raise ValueError(f"terms: {name} was not computed; ask for it in Model.terms(want=…)")
    return value


def evaluate_terms(
    model: Model,
    batch: Batch,
    n: int,
    experts: Experts,
    posterior: Posterior,
    *,
    draw: str,
    reconstruct: str,
    want: str,
    stop_density: bool,
    private_from: str | None,
) -> Terms:
    """See `Model.terms`, which says what the arguments are."""
    if draw != "stratified" and len(posterior.log_weight) > 1 and posterior.log_weight.requires_grad:
        name = type(model.spec.aggregator).__name__
        reason = (
            f"got {draw!r}, which leaves trained component weights, as aggregator {name!r} has, without gradient; "
            "take draw='stratified', or torch.no_grad() where none is wanted"
        )
        raise SpecError(reason, "draw")
    draws = posterior.draw(n, draw, experts.generator)
    prior = model.prior_at(experts, posterior)
    kl = draws.kl(prior) if want == "kl" else None
    density = posterior.detach() if stop_density else posterior
    used = draws.evidence & batch.observed if reconstruct == "own" else batch.observed
    private = Private.draw(model, experts, draws, used, stop_density=stop_density, rule=private_from)
    weight = None
    if posterior.active is not None or len(draws.log_weight) > 1:  # draws that count less, or not at all
        weight = draws.log_weight.detach().exp() * (1.0 if posterior.active is None else posterior.active)
    return Terms(
        log_px=log_likelihoods(model, batch, draws.z, private.w, used, weight),
        log_weight=draws.log_weight,
        log_component=posterior.log_weight,
        log_pz=prior.log_prob(draws.z) if kl is None else None,
        log_qz=density.log_prob(draws.z) if want == "mixture" else None,
        log_qk=draws.log_qk if want == "kl" and kl is None else None,
        kl=kl,
        log_rw=private.log_rw,
        kl_w=private.kl_w,
        scaled=lambda factor: private.scale_gradients(draws, factor),
    )


def log_likelihoods(
    model: Model, batch: Batch, z: Tensor, w: dict[str, Tensor], used: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Log p(x_m|z, w_m) summed over observed elements, (s, j, b, m); zeros where not `used`, (b, m) or (s, j, b, m).

    `weight` (j, b) says how much each draw counts, for likelihoods that look at the batch as a whole. Only rows that
    observe a modality are decoded; one that no row observes keeps its decoder in the graph.
    """
    columns = []
    for i, name in enumerate(model.names):
        index = batch.rows[i]
        if name in batch.hidden or (index is not None and not len(index) and not torch.is_grad_enabled()):
            columns.append(z.new_zeros(z.shape[:-1]))
            continue
        latent = torch.cat([z, w[name]], -1) if name in w else z
        log_px = _decoded(model, name, batch, latent, index, weight)
        if index is not None:
            log_px = z.new_zeros(z.shape[:-1]).index_copy(2, index, log_px)
        columns.append(torch.where(used[..., i], log_px, 0.0) if used.ndim == 4 else log_px)
    return torch.stack(columns, dim=-1)


def _decoded(
    model: Model, name: str, batch: Batch, latent: Tensor, index: Tensor | None, weight: Tensor | None
) -> Tensor:
    """Log p(x_m|z, w_m) of the rows at `index` (n,), (s, j, n)."""
    x = batch.data[name]
    elements = None if batch.elements is None else batch.elements.get(name)
    if index is not None:
        latent, x = latent.index_select(2, index), x.index_select(0, index)
        elements = None if elements is None else elements.index_select(0, index)
        weight = None if weight is None else weight.index_select(1, index)
    decoder = model.decoders[name]
    s, j, n, _ = latent.shape
    out = decoder(rearrange(latent, "s j n d -> (s j) n d"))
    each = None if weight is None else repeat(weight, "j n -> (s j) n", s=s)
    log_px: Tensor = decoder.likelihood.log_prob(out, x, Context(elements, each))  # type: ignore[union-attr, operator]
    likelihood: Any = decoder.likelihood
    expected = (s * j, *(x.shape[:-1] if likelihood.class_axis else x.shape))
    if tuple(log_px.shape) != expected:
        raise ShapeError(
            f"likelihood of {name!r}: log_prob gave {tuple(log_px.shape)}; expected {expected}, elementwise"
        )
    if elements is not None:
        log_px = torch.where(elements, log_px, 0.0)
    # without rows there is nothing to reshape, but the decoder stays in the graph
    return log_px.reshape(s, j, n, -1).sum(-1) if n else log_px.sum() + out.new_zeros(s, j, 0)
