"""Private latents w_m: drawn by one of two rules, for every model alike.

Rule `evidence`: a component decodes modality m with w_m ~ q(w_m|x_m) if it looked at m, else with w̃_m ~ r_m, and only
its evidence is counted. Rule `observed`: every observed modality uses its own, and all are counted.

Axes: s samples, j drawn components, k components, b rows, m modalities, p private latent.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from einops import einsum, rearrange
from torch import Tensor

from mvkit.core.decoding import Decoding
from mvkit.core.experts import Experts
from mvkit.core.family import Family
from mvkit.core.posterior import Draws


@attrs.frozen(eq=False)
class PrivateLatents:
    """Private latents of a batch at the draws of a posterior.

    Args:
        w: what decoders see, {name: (s, j, b, p)}.
        drawn: the part of them that came from q(w_m|x_m), likewise.
        log_ratio: log p(w_m) - log q(w_m|x_m) where counted, else 0, (s, j, b, m); None without private latents.
        kl: closed-form KLs times the share of the posterior that counts them, (b, m); None without.
    """

    w: dict[str, Tensor] = attrs.field(factory=dict)
    drawn: dict[str, Tensor] = attrs.field(factory=dict)
    log_ratio: Tensor | None = None
    kl: Tensor | None = None

    def scale_gradients(self, z: Tensor, factor: Callable[[str | None], Tensor]) -> None:
        """Multiplies the gradients of all draws by factor(None) (z) and factor(name) (w), (s, j, b) each."""
        latents: dict[str | None, Tensor] = {None: z, **self.drawn}
        for site, latent in latents.items():
            if latent.requires_grad:
                multiplier = rearrange(factor(site), "s j b -> s j b 1")
                latent.register_hook(lambda gradient, by=multiplier: gradient * by)


def draw_private(
    decoding: Decoding,
    experts: Experts,
    draws: Draws,
    used: Tensor,
    *,
    stop_density: bool,
    rule: str | None = None,
) -> PrivateLatents:
    """Draws the latent of every modality that has a private one.

    Args:
        decoding: whose family, rule and auxiliary priors apply.
        experts: encoder outputs.
        draws: of the shared latent.
        used: what is reconstructed, (b, m) or (s or 1, j, b, m) bool.
        stop_density: stop the gradient of log q's own parameters.
        rule: `evidence` or `observed`; None: the model's.
    """
    if not any(modality.private_dim for modality in decoding.modalities.values()):
        return PrivateLatents()
    by_evidence = (rule or decoding.private_from) == "evidence"
    counted = draws.evidence & used if by_evidence else used
    share = _share(draws, experts.batch.observed, by_component=by_evidence or used.ndim == 4)
    family = decoding.family
    nothing = draws.z.new_zeros(draws.z.shape[:-1])
    w: dict[str, Tensor] = {}
    drawn: dict[str, Tensor] = {}
    ratios: list[Tensor] = []
    kls: list[Tensor | None] = []
    for i, (name, modality) in enumerate(decoding.modalities.items()):
        if not modality.private_dim or name in experts.batch.hidden:
            ratios.append(nothing)
            kls.append(nothing[0, 0])
            continue
        loc, scale = experts.private[name]
        shape = (*draws.z.shape[:-1], loc.shape[-1])
        eps = decoding.private_noise(name, shape, loc, experts.generator)
        drawn[name] = torch.addcmul(loc, scale, eps)
        w[name] = drawn[name]
        if by_evidence:
            own = rearrange(draws.evidence[..., i], "s j b -> s j b 1")
            other = decoding.auxiliary_prior(name, shape, loc, experts.generator)
            w[name] = torch.where(own, drawn[name], other)
        parameters = (loc.detach(), scale.detach()) if stop_density else (loc, scale)
        ratio = _log_ratio(family, drawn[name], *parameters)
        ratios.append(torch.where(counted[..., i], ratio, 0.0))
        kls.append(_shared_kl(family, loc, scale, share[:, i]))
    closed = [kl for kl in kls if kl is not None]
    kl = torch.stack(closed, -1) if len(closed) == len(kls) else None
    return PrivateLatents(w, drawn, torch.stack(ratios, -1), kl)


def _log_ratio(family: Family, w: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Log p(w_m) - log q(w_m|x_m), (..., p) -> (...)."""
    log_q = family.log_density((w - loc) / scale) - scale.log()
    return (family.log_density(w) - log_q).sum(-1)


def _shared_kl(family: Family, loc: Tensor, scale: Tensor, share: Tensor) -> Tensor | None:
    """KL(q(w_m|x_m) ‖ p(w_m)) times the share that counts it, (b,); None without a closed form."""
    kl = family.kl(loc, scale, torch.zeros_like(loc), torch.ones_like(scale))
    if kl is None:
        return None
    return torch.where(share > 0, share * kl, 0.0)


def _share(draws: Draws, observed: Tensor, *, by_component: bool) -> Tensor:
    """How much of the posterior counts each modality, (b, m)."""
    posterior = draws.posterior
    if not by_component:
        return observed.to(posterior.log_weight.dtype)
    if posterior.evidence is None:
        raise ValueError("this posterior has no evidence")
    counted = (posterior.evidence & observed).to(posterior.log_weight.dtype)
    return einsum(posterior.log_weight.exp(), counted, "k b, k b m -> b m")
