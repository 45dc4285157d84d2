"""Decoding: p(x, w | z), everything that turns latents into data.

Axes: s samples, j drawn components, b rows, n of these rows, m modalities, d latent, p private latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import attrs
import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.experts import on_rows
from mvkit.core.family import Family
from mvkit.core.likelihood import Context, Likelihood
from mvkit.core.modality import Modality, Sizes
from mvkit.core.noise import Generator
from mvkit.errors import ShapeError
from mvkit.registry import plugins


class Decoder(nn.Module):
    """A modality's decoder network and its likelihood."""

    likelihood: Likelihood

    def __init__(self, name: str, modality: Modality, sizes: Sizes) -> None:
        super().__init__()
        self.name = name
        with plugins.error_context(type(modality.likelihood), "when it was built"):
            self.likelihood = modality.likelihood.build(sizes)
            params = self.likelihood.params
        self.shape = (*modality.shape, params) if params > 1 else modality.shape
        network = modality.decoder
        if not isinstance(network, nn.Module):
            with plugins.error_context(type(network), "when its decoder was built"):
                network = network.decoder(sizes.latent + modality.private_dim, self.shape)
        self.network: nn.Module = network

    def forward(self, latent: Tensor) -> Tensor:
        """Outputs for latents of any leading shape, (..., d + p) -> (..., *shape)."""
        rows = latent.reshape(-1, latent.shape[-1])
        output = on_rows(self.network, rows)
        expected = (len(rows), *self.shape)
        if tuple(output.shape) != expected:
            raise ShapeError(
                f"decoders.{self.name}: emitted {tuple(output.shape)} for latents "
                f"{tuple(rows.shape)}; expected {expected}"
            )
        return output.reshape(*latent.shape[:-1], *self.shape)


class Decodes(Protocol):
    """p(x, w | z) of all modalities."""

    def decode(
        self,
        name: str,
        z: Tensor,
        w: Tensor | None,
        *,
        sample: bool = False,
        generator: Generator = None,
    ) -> Tensor:
        """Means, or draws, (..., *shape) of a modality at z (..., d) and its private latent (..., p)."""
        ...

    def from_latents(
        self, z: Tensor, *, sample: bool, generator: Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Rows {name: (n, *shape)} at z (n, d), and their private latents, drawn from their priors."""
        ...


@attrs.frozen(eq=False)
class Decoding:
    """What generates: p(x_m|z, w_m), p(w_m), and the auxiliary priors r_m of private latents.

    Holds references and is no `nn.Module`, so that parameters keep the names that the model gives them.

    Args:
        modalities: in the model's order.
        decoders: a `Decoder` for each modality.
        cross: raw scales of the auxiliary priors r_m, (p,), of the modalities that have a trained one.
        family: the location-scale family of the latents.
        private_from: rule of the private latents, `evidence` or `observed` (see `private_latents`).
    """

    modalities: Mapping[str, Modality]
    decoders: nn.ModuleDict
    cross: nn.ParameterDict
    family: Family
    private_from: str

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
    ) -> Tensor:
        """Log p(x_m|z, w_m) summed over observed elements, (s, j, b, m), in nats; zeros where not `used`.

        Only rows that observe a modality are decoded; one that no row observes keeps its decoder in the graph.

        Args:
            batch: a conformed batch.
            z: shared latents, (s, j, b, d).
            w: private latents, {name: (s, j, b, p)}.
            used: what is reconstructed, (b, m) or (s or 1, j, b, m) bool.
            weight: how much each draw counts, (j, b), for likelihoods that look at the batch as a whole.
        """
        columns = []
        for i, name in enumerate(self.modalities):
            rows = batch.observed_rows[i]
            if batch.skips(name, rows):
                columns.append(z.new_zeros(z.shape[:-1]))
                continue
            latent = torch.cat([z, w[name]], -1) if name in w else z
            log_px = self._log_px_of(name, batch, latent, rows, weight)
            if rows is not None:
                log_px = z.new_zeros(z.shape[:-1]).index_copy(2, rows, log_px)
            if used.ndim == 4:
                log_px = torch.where(used[..., i], log_px, 0.0)
            columns.append(log_px)
        return torch.stack(columns, dim=-1)

    def _log_px_of(
        self, name: str, batch: Batch, latent: Tensor, rows: Tensor | None, weight: Tensor | None
    ) -> Tensor:
        """Log p(x_m|z, w_m) at the rows of indices `rows` (n,), None for all, (s, j, n)."""
        x = batch.data[name]
        elements = (batch.elements or {}).get(name)
        if rows is not None:
            latent = latent.index_select(2, rows)
            x = x.index_select(0, rows)
            elements = None if elements is None else elements.index_select(0, rows)
            weight = None if weight is None else weight.index_select(1, rows)
        decoder: Decoder = self.decoders[name]
        s, j, n, _ = latent.shape
        output = decoder(rearrange(latent, "s j n d -> (s j) n d"))
        counted = None if weight is None else repeat(weight, "j n -> (s j) n", s=s)
        log_px = decoder.likelihood.log_prob(output, x, Context(elements, counted))
        shape = x.shape[:-1] if decoder.likelihood.class_axis else x.shape
        if tuple(log_px.shape) != (s * j, *shape):
            raise ShapeError(
                f"likelihood of {name!r}: log_prob returned {tuple(log_px.shape)}; expected "
                f"{(s * j, *shape)}, elementwise"
            )
        if elements is not None:
            log_px = torch.where(elements, log_px, 0.0)
        if not n:  # there is nothing to reshape, but the decoder stays in the graph
            return log_px.sum() + output.new_zeros(s, j, 0)
        return log_px.reshape(s, j, n, -1).sum(-1)

    def decode(
        self,
        name: str,
        z: Tensor,
        w: Tensor | None,
        *,
        sample: bool = False,
        generator: Generator = None,
    ) -> Tensor:
        """Means, or draws, (..., *shape) of a modality at z (..., d) and w (..., p); no w: zeros."""
        p = self.modalities[name].private_dim
        if p:
            shape = (*z.shape[:-1], p)
            w = z.new_zeros(shape) if w is None else w.expand(shape)
            z = torch.cat([z, w], -1)
        decoder: Decoder = self.decoders[name]
        output = decoder(z)
        if sample:
            return decoder.likelihood.sample(output, generator)
        return decoder.likelihood.mean(output)

    def private_noise(
        self, name: str, shape: tuple[int, ...], like: Tensor, generator: Generator
    ) -> Tensor:
        """Standard noise for the private latent of a modality, of `shape` (..., p): draws of p(w_m)."""
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
        self, z: Tensor, *, sample: bool, generator: Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Rows {name: (n, *shape)} at z (n, d), and their private latents, drawn from their priors."""
        private = self.private_prior(z, generator)
        data = {}
        for name in self.modalities:
            w = private.get(name)
            data[name] = self.decode(name, z, w, sample=sample, generator=generator)
        return data, private
