"""Information in latents: what modalities share, and what of a latent generated rows keep.

Axes: b own rows, c rows of all processes, m modalities, p pairs of codes, d shared latent, q
private latent, k width of a code.
"""

from __future__ import annotations

import itertools

import attrs
import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.nn import functional

from mvkit import Batch, Loss, Objective, SpecError, spec
from mvkit.core import Experts, RowContext, Sizes, all_rows, noise
from mvkit.parts import LatentModel
from mvkit.parts.objectives.composite import auxiliary_loss
from mvkit.registry import field, number
from mvkit.registry.fields import factor

Codes = dict[str, Tensor]  # by modality


@spec
class MutualInformation(Objective):
    """Cross-view information α Σ_{m≠n} I(z_m, z_n) / (|O| - 1) of the shared latents of a row.

    I(z_m, z_n) is the mean log-probability at which the code of m tells the code of n, that of
    its own row, from the codes of both in all other rows of the batch that observe both, and the
    other way round: softmax of cosines / τ. Codes are the means of q_m(z|x_m). The sum is over
    ordered pairs of what the row observes; a row with one modality, and a row without others
    beside it, count as 0. Weights of rows multiply their own terms; a row of weight 0 is in no
    sum.

    Args:
        alpha: α.
        kl_weight: a further factor, for ramps.
        temperature: τ.

    Reference: Zhang, Shen and Wang, Disentanglement of Variations with Multimodal Generative
    Modeling, ICLR 2026, https://arxiv.org/abs/2509.23548 (cross-view mutual information); the
    contrast is that of Chen et al., SimCLR, 2020, https://arxiv.org/abs/2002.05709.
    """

    alpha: float = factor()
    kl_weight: float = factor()
    temperature: float = field(default=1.0, check=number(above=0.0))
    couples_rows = True
    trains_unimodal = True

    def build(self, sizes: Sizes) -> MutualInformation:
        if len(sizes.names) < 2 or not sizes.latent:
            raise SpecError(
                f"'mutual_information' compares the shared codes of two modalities; got "
                f"{len(sizes.names)} and latent_dim={sizes.latent}; leave it out"
            )
        return self

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        observed = batch.observed
        means = unimodal_means(model, batch, experts)
        codes = torch.stack([means[name] for name in model.names], 1)
        first, second = zip(*itertools.combinations(range(codes.shape[1]), 2), strict=True)
        both = observed[:, first] & observed[:, second]
        told = told_apart(codes[:, first], codes[:, second], both, batch, self.temperature)
        others = (observed.sum(1) - 1).clamp(min=1)
        value = 2 * torch.where(both, told, 0.0).sum(1) / others  # each pair in both orders
        weight = self.alpha * self.kl_weight
        return auxiliary_loss("mutual_information", value, weight, both.any(1), batch.row_weight)


@spec
class GenerativeAugmentation(Objective):
    """Generative augmentation α Σ_{m∈O} ½ [I(z_m, ẑ_m) + I(w_m, ŵ_m)] of latents and their echoes.

    The echo ẑ_m is what the encoder of m says of the row that its decoder generates from z_m and
    the private latent of another row; ŵ_m that of a row generated from w_m and the z_m of another
    row. Latents are draws of the posteriors given m alone; generated are means, with the gaps,
    covariates and exposure of the row. The other row is the next that observes m, in a random
    order of the batch. I is the log-probability at which means tell their echoes from the means
    and echoes of all other rows, as in `mutual_information`. What is left in w of z, or in z of w,
    makes the echoes worse. Modalities without a private latent are left out; weights of rows
    multiply their own terms, and a row of weight 0 is in no sum.

    Args:
        alpha: α.
        kl_weight: a further factor, for ramps.
        temperature: τ.

    Reference: Zhang, Shen and Wang, Disentanglement of Variations with Multimodal Generative
    Modeling, ICLR 2026, https://arxiv.org/abs/2509.23548.
    """

    alpha: float = factor()
    kl_weight: float = factor()
    temperature: float = field(default=1.0, check=number(above=0.0))
    couples_rows = True
    trains_unimodal = True

    def build(self, sizes: Sizes) -> GenerativeAugmentation:
        private = any(modality.private_dim for modality in sizes.modalities.values())
        if not sizes.latent or not private:
            raise SpecError(
                "'generative_augmentation' exchanges private latents beside a shared one, and the "
                f"model has latent_dim={sizes.latent} and "
                f"{'some' if private else 'no'} private latents; expected both; set private_dim= "
                "of a modality, or leave it out"
            )
        return self

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        own = Latents.of(model, batch, experts)
        others = own.exchanged(model, batch, experts)
        kept_z = Latents(own.z, others.w).echo(model, batch, experts)
        kept_w = Latents(others.z, own.w).echo(model, batch, experts)
        value = model.like.new_zeros(len(batch))
        means = unimodal_means(model, batch, experts)
        echoes = unimodal_means(model, kept_z.batch, kept_z)
        for name in own.w:
            observed = batch.observed[:, model.names.index(name)]
            of_z = self._told(means[name], echoes[name], observed, batch)
            private = experts.private[name][0], kept_w.private[name][0]
            of_w = self._told(*private, observed, batch)
            value = value + torch.where(observed, (of_z + of_w) / 2, 0.0)
        weight = self.alpha * self.kl_weight
        active = batch.observed.any(1)
        return auxiliary_loss("generative_augmentation", value, weight, active, batch.row_weight)

    def _told(self, codes: Tensor, echoes: Tensor, observed: Tensor, batch: Batch) -> Tensor:
        """How well codes (b, k) and echoes (b, k) of rows that observe a modality tell, (b,)."""
        told = told_apart(
            rearrange(codes, "b k -> b 1 k"),
            rearrange(echoes, "b k -> b 1 k"),
            rearrange(observed, "b -> b 1"),
            batch,
            self.temperature,
        )
        return rearrange(told, "b 1 -> b")


@attrs.frozen(eq=False)
class Latents:
    """Latents of the modalities that have private ones, zeros where a row does not observe them.

    Args:
        z: draws of q_m(z|x_m), {name: (b, d)}.
        w: draws of q(w_m|x_m), {name: (b, q)}.
    """

    z: Codes
    w: Codes

    @classmethod
    def of(cls, model: LatentModel, batch: Batch, experts: Experts) -> Latents:
        """Draws of the rows of a batch."""
        generator = experts.generator
        unimodal = model.aggregator.unimodal(experts, batch)
        z, w = {}, {}
        for name, (loc, scale) in experts.private.items():
            draws = unimodal[name].draw(1, "iid", generator)
            z[name] = rearrange(draws.z, "1 1 b d -> b d")
            eps = model.decoding.private_noise(name, (1, 1, *loc.shape), loc, generator)
            w[name] = loc + scale * rearrange(eps, "1 1 b q -> b q")
        return cls(z, w)

    def exchanged(self, model: LatentModel, batch: Batch, experts: Experts) -> Latents:
        """Those of the row that comes next in a random order, by modality."""
        shape = (1, len(batch))
        uniform = noise.draw("choice/partner", shape, model.like, generator=experts.generator)
        partner = next_rows(rearrange(uniform, "1 b -> b"), counted(batch.observed, batch))
        z, w = {}, {}
        for name in self.w:
            index = partner[:, model.names.index(name)]
            z[name] = all_rows(self.z[name])[0].index_select(0, index)
            w[name] = all_rows(self.w[name])[0].index_select(0, index)
        return Latents(z, w)

    def echo(self, model: LatentModel, batch: Batch, experts: Experts) -> Experts:
        """What the encoders make of the means of rows that the decoders generate from them."""
        data = dict(batch.data)
        rows = RowContext.of(batch)
        for name, w in self.w.items():
            mean = model.decoding.decode(name, self.z[name], w, rows=rows)
            data[name] = torch.where(batch.present(name), mean, 0.0)
        generated = attrs.evolve(batch, data=data)
        return model.experts(generated, training=experts.training, generator=experts.generator)


def unimodal_means(model: LatentModel, batch: Batch, experts: Experts) -> Codes:
    """The mean of q_m(z|x_m) for each modality, {name: (b, d)}."""
    unimodal = model.aggregator.unimodal(experts, batch)
    return {name: posterior.mean for name, posterior in unimodal.items()}


def counted(observed: Tensor, batch: Batch) -> Tensor:
    """What is observed (b, ...) bool in rows that have weight."""
    if batch.row_weight is None:
        return observed
    weighs: Tensor = batch.row_weight > 0
    return observed & rearrange(weighs, "b -> b 1")


def told_apart(
    first: Tensor, second: Tensor, observed: Tensor, batch: Batch, temperature: float
) -> Tensor:
    """Log-probability that the codes of a pair tell one another, (b, p), at most 0.

    The mean over both codes u of a row, whose match is v, of
    u·v/τ - log Σ_v' exp(u·v'/τ), at length 1. v' are v itself and both codes of all other rows
    that observe the pair and have weight. Rows that do not observe a pair have no meaning.

    Args:
        first: codes, (b, p, k).
        second: their matches, likewise.
        observed: which pairs rows observe, (b, p) bool.
        batch: the rows, for their weights.
        temperature: τ.
    """
    # anything but zeros, at which the direction has no gradient
    first, second = (
        functional.normalize(torch.where(rearrange(observed, "b p -> b p 1"), codes, 1.0), dim=-1)
        for codes in (first, second)
    )
    every_first, start = all_rows(first)
    every_second, _ = all_rows(second)
    among, _ = all_rows(counted(observed, batch))
    row = torch.arange(len(first), device=first.device) + start
    is_own = rearrange(row, "b -> b 1") == torch.arange(len(among), device=first.device)
    among = rearrange(among, "c p -> p 1 c")
    matching = einsum(first, second, "b p k, b p k -> p b") / temperature
    told = torch.zeros_like(matching)
    for code, same, other in (
        (first, every_first, every_second),
        (second, every_second, every_first),
    ):
        within = einsum(code, same, "b p k, c p k -> p b c") / temperature
        across = einsum(code, other, "b p k, c p k -> p b c") / temperature
        candidates = torch.cat(
            [
                within.masked_fill(~(among & ~is_own), -torch.inf),
                across.masked_fill(~(among | is_own), -torch.inf),
            ],
            -1,
        )
        told = told + (matching - candidates.logsumexp(-1)) / 2
    return rearrange(told, "p b -> b p")


def next_rows(uniform: Tensor, observed: Tensor) -> Tensor:
    """For each row, which of all rows comes next among those that observe a modality, (b, m).

    Rows stand in a circle, in the order of their random numbers. A row that does not observe the
    modality is its own next.

    Args:
        uniform: random numbers in [0, 1) of the own rows, (b,).
        observed: which modalities they observe, (b, m) bool.
    """
    every, start = all_rows(uniform)
    among, _ = all_rows(observed)
    own = rearrange(torch.arange(len(every), device=every.device), "c -> c 1").expand(among.shape)
    order = torch.where(among, rearrange(every, "c -> c 1"), 2.0).argsort(0)
    after = torch.where(own + 1 < among.sum(0), own + 1, 0)
    following = torch.zeros_like(order).scatter(0, order, order.gather(0, after))
    following = torch.where(among, following, own)
    return following[start : start + len(uniform)]
