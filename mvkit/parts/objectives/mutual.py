"""Two modalities that supervise each other.

Axes: s samples, b rows, m modalities, c pseudo-samples, d latent.
"""

from __future__ import annotations

import math
from typing import cast

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.bounds import weighted_sum
from mvkit.core.experts import Experts
from mvkit.core.loss import Loss, Metrics, finish, row_metrics, sum_of, weighted_mean
from mvkit.core.mixture import Mixture
from mvkit.core.modality import Sizes
from mvkit.core.posterior import Posterior
from mvkit.core.terms import Terms
from mvkit.errors import SpecError
from mvkit.parts.latent_model import LatentModel
from mvkit.parts.objectives.objective import Objective
from mvkit.registry.fields import count, factor, switch
from mvkit.registry.spec import spec


@attrs.frozen(eq=False)
class Direction:
    """What one modality's posterior says of both: s is the one it looked at, t the other.

    Args:
        z: its draws, (s, b, d).
        value: what is maximised, (b,).
        log_px: log p(x_m|z) of both, 0 where unobserved, (s, b, m).
        log_own: log q(z|s), (s, b).
        log_cross: log q(t|s), 0 in rows that lack t, (b,).
    """

    z: Tensor
    value: Tensor
    log_px: Tensor
    log_own: Tensor
    log_cross: Tensor


@spec
class MEME(Objective):
    """Mutual supervision of two modalities: each one's posterior is the prior of the other.

    Of a row that observes both, the mean over (s, t) and (t, s) of
    Σ_k w_k [λ_s log p(s|z_k) + β (log q(z_k|t) - log q(z_k|s)) - log q(t|z_k)] + α log q(t|s),
    with z_k ~ q(z|s), q(t|z) = p(t|z)^λ_t, q(t|s) = mean_k q(t|z_k) and weights w_k in proportion
    to q(t|z_k). At α = β = λ = 1 it bounds log ∫ p(s|z) q(z|t) dz for any number of draws.

    Of a row that lacks t, E_q(z|s) [λ_s log p(s|z) + β (log p_t(z) - log q(z|s))]: p_t is the
    mixture of the posteriors of t's pseudo-samples, where the prior has pseudo-inputs (`vamp`),
    else p(z). Pseudo-samples learn from such rows alone.

    Only posteriors of one modality are looked at: what else an aggregator holds is not trained.
    What is reported is the mean over the observed modalities of the ELBO under q(z|x_m), a bound
    for p(z).

    Args:
        kl_weight: β.
        alpha: α, factor of the other modality's likelihood given this one.
        samples: draws of each posterior.
        stop_weights: stop the gradient of the w_k, as the published code does.

    Example:
        >>> import mvkit, torch
        >>> from mvkit.parts import MEME
        >>> model = mvkit.Model(
        ...     {"a": (3,), "b": (2,)},
        ...     latent_dim=2,
        ...     aggregator="moe",
        ...     prior="vamp",
        ...     objective=MEME(),
        ...     seed=0,
        ... )
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.loss(rows).bound.shape
        torch.Size([4])

    Reference: Joy, Shi, Torr, Rainforth, Schmon and Siddharth, Learning Multimodal VAEs through
    Mutual Supervision, ICLR 2022, https://arxiv.org/abs/2106.12570.
    """

    kl_weight: float = factor()
    alpha: float = factor()
    samples: int = count(10)
    stop_weights: bool = switch(False)
    trains_unimodal = True

    def build(self, sizes: Sizes) -> MEME:
        if len(sizes.names) != 2:
            raise SpecError(
                f"objective 'meme' lets two modalities supervise each other, and there are "
                f"{len(sizes.names)}; take 'elbo', 'jsd', or two modalities"
            )
        for name, modality in sizes.modalities.items():
            if modality.private_dim:
                raise SpecError(
                    f"objective 'meme' weighs draws by what they say of {name!r}, which its "
                    "private latent would leave open; expected private_dim=0; leave it out"
                )
        return self

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        if model.missingness is not None:
            raise SpecError(
                "objective 'meme' says nothing of why values are missing, and the model has a "
                "missingness; expected None; take 'elbo', 'iwae' or 'jsd' with it",
                "objective",
            )
        unimodal = [*model.aggregator.unimodal(experts, batch).values()]
        prior = model.prior_at(experts, model.joint_posterior(batch, experts))
        pseudo = _of_pseudo_samples(model, batch)
        values, reports, metrics = [], [], []
        for i, own in enumerate(unimodal):
            other = unimodal[1 - i]
            instead = prior if pseudo is None else pseudo[1 - i]
            seen = batch.observed[:, i]
            draws = self._direction(model, batch, experts, i, own, other, instead)
            values.append(torch.where(seen, draws.value, 0.0))
            report, means = _reported(model, batch, draws, prior, seen)
            reports.append(torch.where(seen, report, 0.0))
            metrics.append(means)
        number = batch.observed.sum(1).clamp(min=1)
        value, report = sum_of(values) / number, sum_of(reports) / number
        pooled = Metrics.pooled(metrics)
        return finish(model.bound_name, value, report, None, pooled, batch.row_weight)

    def _direction(
        self,
        model: LatentModel,
        batch: Batch,
        experts: Experts,
        i: int,
        own: Posterior,
        other: Posterior,
        instead: Posterior,
    ) -> Direction:
        """The bound under the posterior `own` of modality i, in all rows.

        `other` is q(z|t), the prior of rows that observe both; `instead` is p_t(z), that of rows
        that lack t.
        """
        drawn = own.draw(self.samples, "iid", experts.generator)
        z = rearrange(drawn.z, "s 1 b d -> s b d")
        seen = rearrange(batch.observed[:, i].to(z.dtype), "b -> 1 b")
        log_px = model.decoding.log_px(batch, drawn.z, {}, batch.observed, seen)
        log_px = rearrange(log_px, "s 1 b m -> s b m")
        log_own = own.log_prob(z)
        both = batch.observed.all(1)
        log_prior = other.log_prob(z)
        if not batch.complete:
            log_prior = torch.where(both, log_prior, instead.log_prob(z))
        log_ps, log_pt = _weighted(model, log_px, i), _weighted(model, log_px, 1 - i)
        log_pt = torch.where(both, log_pt, 0.0)  # rows without t weigh all draws alike
        share = torch.softmax(log_pt, 0)
        if self.stop_weights:
            share = share.detach()
        log_cross = torch.logsumexp(log_pt, 0) - math.log(self.samples)
        inner = log_ps + self.kl_weight * (log_prior - log_own) - log_pt
        value = (share * inner).sum(0) + self.alpha * log_cross
        return Direction(z, value, log_px, log_own, log_cross)


def _weighted(model: LatentModel, log_px: Tensor, i: int) -> Tensor:
    """λ log p(x_m|z) of the modality at position i, (s, b)."""
    weights = model.likelihood_weights()
    own = slice(i, i + 1)
    return weighted_sum(log_px[..., own], None if weights is None else weights[own])


def _of_pseudo_samples(model: LatentModel, batch: Batch) -> list[Mixture] | None:
    """The mixture of the posteriors of each modality's pseudo-samples, as priors, (c, 1, d).

    None where nobody asks, and where the prior has none.
    """
    inputs = getattr(model.prior, "pseudo_inputs", None)  # a user's bare module has none
    if batch.complete or inputs is None:
        return None
    c = len(next(iter(inputs.values())))
    mask = torch.ones(c, len(inputs), dtype=torch.bool, device=model.like.device)
    rows = Batch(inputs, mask, schema=batch.schema, observed_rows=(None,) * len(inputs))
    context = cast(Tensor | None, getattr(model.prior, "pseudo_context", None))
    experts = model.experts(rows, context=context)
    mixtures = []
    for each in model.aggregator.unimodal(experts, rows).values():
        alone = cast(Mixture, each)
        loc = rearrange(alone.loc, "k c d -> (k c) 1 d")
        scale = rearrange(alone.scale, "k c d -> (k c) 1 d")
        log_weight = rearrange(alone.log_weight - math.log(c), "k c -> (k c) 1")
        mixtures.append(Mixture(model.decoding.family, loc, scale, log_weight))
    return mixtures


@torch.no_grad()
def _reported(
    model: LatentModel, batch: Batch, draws: Direction, prior: Posterior, seen: Tensor
) -> tuple[Tensor, Metrics]:
    """The ELBO under q(z|s), (b,), and metrics over the rows that observe s."""
    log_pi = draws.log_own.new_zeros(1, len(batch))
    terms = Terms(rearrange(draws.log_px, "s b m -> s 1 b m"), log_pi, log_pi)
    kl = (draws.log_own - prior.log_prob(draws.z)).mean(0)
    metrics = row_metrics(model.names, terms, kl, batch.observed, seen, batch.row_weight)
    both = batch.observed.all(1)
    weight = torch.ones_like(kl) if batch.row_weight is None else batch.row_weight
    metrics.means["log_q"], metrics.counts["log_q"] = weighted_mean(draws.log_cross, weight, both)
    return draws.log_px.sum(-1).mean(0) - kl, metrics
