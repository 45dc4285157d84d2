"""Decoding: p(x, w | z), everything that turns latents into data.

Axes: s samples, j drawn components, b rows, n of these rows, m modalities, d latent, p private
latent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

import attrs
import torch
from einops import einsum, rearrange, repeat
from torch import Tensor

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.covariates import Conditions
from mvkit.core.decoder import Decoder
from mvkit.core.experts import Experts, check_rows_apart, on_rows
from mvkit.core.family import Family
from mvkit.core.likelihood import Context, log_prob_sum_of, mean_of, sample_of
from mvkit.core.modality import Modality
from mvkit.core.noise import Generator
from mvkit.core.posterior import Draws, Posterior
from mvkit.core.row_context import NOTHING_GIVEN, RowContext
from mvkit.core.scored_rows import ScoredRows, counted_draws
from mvkit.core.stacked_copies import scale_gradient, stacked_noise


class Decodes(Protocol):
    """p(x, w | z) of all modalities."""

    @property
    def conditions(self) -> Conditions | None:
        """The covariates, if there are any."""
        ...

    def decode(
        self,
        name: str,
        z: Tensor,
        w: Tensor | None,
        *,
        sample: bool = False,
        rows: RowContext = NOTHING_GIVEN,
        generator: Generator = None,
    ) -> Tensor:
        """Means or draws (..., *shape) of a modality at z (..., d) and w (..., p); None: zeros."""
        ...

    def from_latents(
        self, z: Tensor, *, sample: bool, rows: RowContext = NOTHING_GIVEN, generator: Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Rows {name: (n, *shape)} at z (n, d), and private latents, drawn from their priors."""
        ...


@attrs.frozen(eq=False)
class PrivateLatents:
    """Private latents of a batch at the draws of a posterior.

    Args:
        w: what decoders see, {name: (s, j, b, p)}.
        drawn: the part of them that came from q(w_m|x_m), likewise.
        log_ratio: log p(w_m) - log q(w_m|x_m) where counted, else 0, (s, j, b, m); None without
        private latents.
        kl: closed-form KLs times the share of the posterior that counts them, (b, m); None
            without.
    """

    w: dict[str, Tensor] = attrs.field(factory=dict)
    drawn: dict[str, Tensor] = attrs.field(factory=dict)
    log_ratio: Tensor | None = None
    kl: Tensor | None = None

    def scale_gradients(self, z: Tensor, factor: Callable[[str | None], Tensor]) -> None:
        """Multiplies gradients of z by factor(None), and of w by factor(name), (s, j, b) each."""
        for site, latent in ((None, z), *self.drawn.items()):
            if latent.requires_grad or stacked_noise.get() is not None:
                multiplier = rearrange(factor(site), "s j b -> s j b 1")
                scale_gradient(latent, multiplier)


@attrs.frozen(eq=False)
class Decoding:
    """What generates: p(x_m|z, w_m), p(w_m), and the auxiliary priors r_m of private latents.

    Holds references and is no `nn.Module`, so that parameters keep the names that the model gives
    them.

    Args:
        modalities: in the model's order.
        decoders: a `Decoder` for each modality.
        cross: raw scales of the auxiliary priors r_m, (p,), of the modalities that have a trained
        one.
        family: the location-scale family of the latents.
        private_from: rule of the private latents, `evidence` or `observed` (see `draw_private`).
        conditions: the covariates; None: the model has none.
    """

    modalities: Mapping[str, Modality]
    decoders: Mapping[str, Decoder]
    cross: Mapping[str, Tensor]
    family: Family
    private_from: str
    conditions: Conditions | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the modalities in order."""
        return tuple(self.modalities)

    def log_px(
        self,
        batch: Batch,
        z: Tensor,
        w: Mapping[str, Tensor],
        used: Tensor,
        weight: Tensor | None = None,
        decoded: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Tensor:
        """Log p(x_m|z, w_m) over observed elements, (s, j, b, m), in nats; zeros unless `used`.

        Only rows that observe a modality are decoded, or all of a dense batch; one that no row
        observes keeps its decoder in the graph.

        Args:
            batch: a conformed batch.
            z: shared latents, (s, j, b, d).
            w: private latents, {name: (s, j, b, p)}.
            used: what is reconstructed, (b, m) or (s or 1, j, b, m) bool.
            weight: how much each draw counts, (j, b), for likelihoods that look at the batch as a
                whole.
            decoded: what decoders emitted for all rows already, {name: ((s j), b, *shape)}.
        """
        computed = batch.computed()
        outputs = self._decoded(batch, computed, z, w, decoded)
        counted = {}
        for i, name in enumerate(self.modalities):
            if name in computed:
                counted[name] = counted_draws(weight, used[..., i], z, batch.row_weight)
        densities = self._densities(batch, computed, outputs, counted)
        columns = []
        for i, name in enumerate(self.modalities):
            if name not in computed:
                columns.append(z.new_zeros(z.shape[:-1]))
                continue
            rows = computed[name]
            log_px = rearrange(densities[name], "(s j) n -> s j n", s=len(z))
            if rows is not None:
                log_px = z.new_zeros(z.shape[:-1]).index_copy(2, rows, log_px)
            if used.ndim == 4:
                log_px = torch.where(used[..., i], log_px, 0.0)
            columns.append(log_px)
        return torch.stack(columns, dim=-1)

    def _decoded(
        self,
        batch: Batch,
        computed: Mapping[str, Tensor | None],
        z: Tensor,
        w: Mapping[str, Tensor],
        decoded: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """What decoders emit for the rows of a batch that are computed, but `decoded` already."""
        rest = {}
        for name, rows in computed.items():
            if name not in decoded:
                rest[name] = rows
                if batch.may_lack and name in batch.may_lack:
                    check_rows_apart(self.decoders[name].network, f"decoders.{name}")
        outputs = self.outputs(rest, z, w, self.context(batch.covariates))
        for name, output in decoded.items():
            index = computed.get(name)
            outputs[name] = output if index is None else output.index_select(1, index)
        return outputs

    def context(self, covariates: Mapping[str, Tensor]) -> Tensor | None:
        """What decoders see of rows with these covariates, (b, c); None: nothing."""
        if self.conditions is None:
            return None
        return self.conditions.context(covariates, "decoders")

    def standardised(self, covariates: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What likelihoods are told of these covariates, {name: (b,)}."""
        if self.conditions is None:
            return covariates
        return self.conditions.standardised(covariates)

    def outputs(
        self,
        computed: Mapping[str, Tensor | None],
        z: Tensor,
        w: Mapping[str, Tensor],
        context: Tensor | None,
    ) -> dict[str, Tensor]:
        """What decoders emit for some rows, {name: ((s j), n, *shape)}; None: for all."""
        latents = {}
        for name, rows in computed.items():
            latent = torch.cat([z, w[name]], -1) if name in w else z
            if rows is not None:
                latent = latent.index_select(2, rows)
            latents[name] = rearrange(latent, "s j n d -> (s j) n d")
        outputs = {}
        for name, latent in latents.items():
            rows = rearrange(latent, "r n d -> (r n) d")
            of_rows = None
            if context is not None:
                index = computed[name]
                of_rows = context if index is None else context.index_select(0, index)
                of_rows = repeat(of_rows, "n c -> (r n) c", r=len(latent))
            outputs[name] = on_rows(self.decoders[name].network, rows, of_rows)
        return {name: self.decoders[name].shaped(outputs[name], latents[name]) for name in outputs}

    def _densities(
        self,
        batch: Batch,
        computed: Mapping[str, Tensor | None],
        outputs: Mapping[str, Tensor],
        counted: Mapping[str, Tensor | None],
    ) -> dict[str, Tensor]:
        """Log-probabilities of what rows observe, {name: ((s j), n)}."""
        densities = {}
        covariates = self.standardised(batch.covariates)
        for name, rows in computed.items():
            output = outputs[name]
            decoder = self.decoders[name]
            likelihood = decoder.likelihood
            scored = ScoredRows.of(batch, name, rows, counted[name], covariates, len(output))
            context = Context(scored.elements, scored.weight, covariates=scored.covariates)
            if decoder.has_exposure:
                context = decoder.likelihood_context(scored.exposure, scored.elements, context)
            where = f"likelihood of {name!r}"
            sums = log_prob_sum_of(likelihood, output, scored.x, context, where)
            if scored.rows is not None:
                sums = torch.where(scored.rows, sums, 0.0)
            densities[name] = sums
        return densities

    def decode(
        self,
        name: str,
        z: Tensor,
        w: Tensor | None,
        *,
        sample: bool = False,
        rows: RowContext = NOTHING_GIVEN,
        generator: Generator = None,
    ) -> Tensor:
        """Means or draws (..., *shape) of a modality at z (..., d) and w (..., p); None: zeros."""
        decoder = self.decoders[name]
        output = decoder(self.latents(name, z, w), self.context(rows.covariates))
        context = Context(covariates=self.standardised(rows.covariates), generator=generator)
        if decoder.has_exposure:
            exposure = rows.exposure.get(name)
            context = decoder.likelihood_context(exposure, rows.elements.get(name), context)
        likelihood = decoder.likelihood
        if sample:
            with noise.labelled(generator, name):
                return sample_of(likelihood, output, context)
        return mean_of(likelihood, output, context, background=rows.background)

    def latents(self, name: str, z: Tensor, w: Tensor | None) -> Tensor:
        """What the decoder of a modality sees, (..., d + p), of z and w; None: zeros."""
        p = self.modalities[name].private_dim
        if not p:
            return z
        shape = (*z.shape[:-1], p)
        w = z.new_zeros(shape) if w is None else w.expand(shape)
        return torch.cat([z, w], -1)

    def draw_private(
        self, experts: Experts, draws: Draws, used: Tensor, rule: str, *, stop_density: bool
    ) -> PrivateLatents:
        """Draws the private latents w_m of a batch, by one of two rules, for every model alike.

        `evidence`: a component decodes modality m with w_m ~ q(w_m|x_m) if it looked at m, else
        with w̃_m ~ r_m, and only its evidence is counted. `observed`: every observed modality uses
        its own, and all are counted.

        Args:
            experts: encoder outputs.
            draws: of the shared latent.
            used: what is reconstructed, (b, m) or (s or 1, j, b, m) bool.
            rule: `evidence` or `observed`.
            stop_density: stop the gradient of log q's own parameters.
        """
        if not any(modality.private_dim for modality in self.modalities.values()):
            return PrivateLatents()
        family = self.family
        by_evidence = rule == "evidence"
        evidence = draws.evidence if by_evidence else None
        counted = used if evidence is None else evidence & used
        share = _share(draws.posterior, experts, by_component=by_evidence or used.ndim == 4)
        nothing = draws.z.new_zeros(draws.z.shape[:-1])
        private = PrivateLatents()
        ratios: list[Tensor] = []
        kls: list[Tensor | None] = []
        for i, (name, modality) in enumerate(self.modalities.items()):
            if not modality.private_dim or name in experts.batch.hidden:
                ratios.append(nothing)
                kls.append(nothing[0, 0])
                continue
            loc, scale = experts.private[name]
            shape = (*draws.z.shape[:-1], loc.shape[-1])
            eps = self.private_noise(name, shape, loc, experts.generator)
            w = torch.addcmul(loc, scale, eps)
            private.drawn[name] = w
            private.w[name] = w
            if evidence is not None:
                own = rearrange(evidence[..., i], "s j b -> s j b 1")
                other = self.auxiliary_prior(name, shape, loc, experts.generator)
                private.w[name] = torch.where(own, w, other)
            q_loc, q_scale = (loc.detach(), scale.detach()) if stop_density else (loc, scale)
            log_q = family.log_density((w - q_loc) / q_scale) - q_scale.log()
            ratio = (family.log_density(w) - log_q).sum(-1)
            ratios.append(torch.where(counted[..., i], ratio, 0.0))
            kl = family.kl(loc, scale, torch.zeros_like(loc), torch.ones_like(scale))
            if kl is not None:
                kl = torch.where(share[:, i] > 0, share[:, i] * kl, 0.0)
            kls.append(kl)
        closed = [kl for kl in kls if kl is not None]
        return attrs.evolve(
            private,
            log_ratio=torch.stack(ratios, -1),
            kl=torch.stack(closed, -1) if len(closed) == len(kls) else None,
        )

    def private_noise(
        self, name: str, shape: tuple[int, ...], like: Tensor, generator: Generator
    ) -> Tensor:
        """Draws of p(w_m), standard noise of `shape` (..., p)."""
        return noise.draw(f"w/{name}", shape, like, generator=generator, sampler=self.family.noise)

    def private_prior(self, z: Tensor, generator: Generator) -> dict[str, Tensor]:
        """Draws of every p(w_m) beside latents z (..., d), {name: (..., p)}."""
        draws = {}
        for name, modality in self.modalities.items():
            if modality.private_dim:
                shape = (*z.shape[:-1], modality.private_dim)
                draws[name] = self.private_noise(name, shape, z, generator)
        return draws

    def auxiliary_prior(
        self, name: str, shape: tuple[int, ...], like: Tensor, generator: Generator
    ) -> Tensor:
        """Draws w̃ ~ r_m, zero mean, of `shape` (..., p)."""
        eps = noise.draw(
            f"cross/{name}", shape, like, generator=generator, sampler=self.family.noise
        )
        if name not in self.cross:
            return eps
        return eps * self.family.scale(self.cross[name])

    def from_latents(
        self, z: Tensor, *, sample: bool, rows: RowContext = NOTHING_GIVEN, generator: Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Rows {name: (n, *shape)} at z (n, d), and private latents, drawn from their priors."""
        private = self.private_prior(z, generator)
        data = {}
        for name in self.modalities:
            w = private.get(name)
            data[name] = self.decode(name, z, w, sample=sample, rows=rows, generator=generator)
        return data, private


def _share(posterior: Posterior, experts: Experts, *, by_component: bool) -> Tensor:
    """How much of the posterior counts each modality, (b, m)."""
    observed = experts.batch.observed
    log_weight = posterior.log_weight
    if not by_component:
        return observed.to(log_weight.dtype)
    if posterior.evidence is None:
        raise ValueError("this posterior has no evidence")
    counted = (posterior.evidence & observed).to(log_weight.dtype)
    return einsum(log_weight.exp(), counted, "k b, k b m -> b m")
