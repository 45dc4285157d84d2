"""Private latents w_m: drawn by one of two rules, for every model alike.

Rule `evidence`: a component decodes modality m with w_m ~ q(w_m|x_m) if it looked at m, else with w̃_m ~ r_m, and only
its evidence is counted. Rule `observed`: every observed modality uses its own, and all are counted.

Axes: s samples, j drawn components, k components, b rows, m modalities, p private latent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
import torch
from einops import einsum, rearrange
from torch import Tensor

from mvkit import noise
from mvkit.experts import Experts
from mvkit.families import Family
from mvkit.posterior import Draws

if TYPE_CHECKING:
    from mvkit.model import Model


@attrs.frozen(eq=False)
class Private:
    """Private latents of a batch at the draws of a posterior.

    Args:
        w: what decoders see, {name: (s, j, b, p)}.
        drawn: the part of them that came from q(w_m|x_m), likewise.
        log_rw: log p(w_m) - log q(w_m|x_m) where counted, else 0, (s, j, b, m); None without private latents.
        kl_w: closed-form KLs times the share of the posterior that counts them, (b, m); None without.
    """

    w: dict[str, Tensor] = attrs.field(factory=dict)
    drawn: dict[str, Tensor] = attrs.field(factory=dict)
    log_rw: Tensor | None = None
    kl_w: Tensor | None = None

    @classmethod
    def draw(
        cls, model: Model, experts: Experts, draws: Draws, used: Tensor, *, stop_density: bool, rule: str | None = None
    ) -> Private:
        """Draws for every modality that has a private latent.

        Args:
            model: whose family, rule and cross-priors apply.
            experts: encoder outputs.
            draws: of the shared latent.
            used: what is reconstructed, (b, m) or (s or 1, j, b, m) bool.
            stop_density: stop the gradient of log q's own parameters.
            rule: `evidence` or `observed`; None: the model's.
        """
        with_private = [name for name, m in model.modalities.items() if m.private_dim]
        if not with_private:
            return cls()
        by_evidence = (rule or model.spec.private_from) == "evidence"
        counted = draws.evidence & used if by_evidence else used
        share = _share(draws, experts.batch.observed, each=by_evidence or used.ndim == 4)
        w, drawn, ratios = {}, {}, []
        kls: list[Tensor | None] = []
        like = draws.z.new_zeros(draws.z.shape[:-1])
        for i, name in enumerate(model.names):
            if name not in with_private or name in experts.batch.hidden:
                ratios.append(like)
                kls.append(like[0, 0])
                continue
            loc, scale = experts.private[name]
            shape = (*draws.z.shape[:-1], loc.shape[-1])
            eps = noise.draw(f"w/{name}", shape, loc, generator=experts.generator, sampler=model.family.noise)
            drawn[name] = torch.addcmul(loc, scale, eps)
            w[name] = drawn[name]
            if by_evidence:
                own = rearrange(draws.evidence[..., i], "s j b -> s j b 1")
                w[name] = torch.where(own, drawn[name], cls.cross(model, name, shape, experts))
            stopped = (loc.detach(), scale.detach()) if stop_density else (loc, scale)
            ratio = _log_ratio(model.family, drawn[name], *stopped)
            ratios.append(torch.where(counted[..., i], ratio, 0.0))
            kl = model.family.kl(loc, scale, torch.zeros_like(loc), torch.ones_like(scale))
            kls.append(None if kl is None else torch.where(share[:, i] > 0, share[:, i] * kl, 0.0))
        closed = [kl for kl in kls if kl is not None]
        return cls(w, drawn, torch.stack(ratios, -1), torch.stack(closed, -1) if len(closed) == len(kls) else None)

    @staticmethod
    def cross(model: Model, name: str, shape: tuple[int, ...], experts: Experts) -> Tensor:
        """Draws w̃ ~ r_m, zero mean, of `shape` (..., p)."""
        like = experts.private[name][0]
        eps = noise.draw(f"cross/{name}", shape, like, generator=experts.generator, sampler=model.family.noise)
        return eps * model.family.scale(model.cross[name]) if name in model.cross else eps

    def scale_gradients(self, draws: Draws, factor: Callable[[str | None], Tensor]) -> None:
        """Multiplies the gradients of all draws by factor(None) (z) and factor(name) (w), (s, j, b) each."""
        for site, tensor in ((None, draws.z), *self.drawn.items()):
            if tensor.requires_grad:
                by = rearrange(factor(site), "s j b -> s j b 1")
                tensor.register_hook(lambda gradient, by=by: gradient * by)


def _log_ratio(family: Family, w: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    log_q = family.log_density((w - loc) / scale) - scale.log()
    return (family.log_density(w) - log_q).sum(-1)


def _share(draws: Draws, observed: Tensor, *, each: bool) -> Tensor:
    """How much of the posterior counts each modality, (b, m)."""
    posterior = draws.posterior
    if not each:
        return observed.to(posterior.log_weight.dtype)
    if posterior.evidence is None:
        raise ValueError("this posterior has no evidence")
    counted = (posterior.evidence & observed).to(posterior.log_weight.dtype)
    return einsum(posterior.log_weight.exp(), counted, "k b, k b m -> b m")
