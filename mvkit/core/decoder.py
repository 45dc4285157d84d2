"""Decoder: a modality's network from latents to outputs, and its likelihood.

Axes: n rows, d latent, p private latent, c numbers of a context.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn

from mvkit.core.context_networks import built_network, check_takes_context
from mvkit.core.experts import on_rows
from mvkit.core.likelihood import TOTAL, Context, Likelihood
from mvkit.core.modality import Modality, Sizes
from mvkit.core.raw_values import widened
from mvkit.errors import ShapeError, SpecError
from mvkit.registry import plugins
from mvkit.registry.loading import live_part


class Decoder(nn.Module):
    """A modality's decoder network and its likelihood."""

    likelihood: Likelihood
    typical_exposure: Tensor

    def __init__(self, name: str, modality: Modality, sizes: Sizes) -> None:
        super().__init__()
        self.name = name
        with plugins.error_context(type(modality.likelihood), "when it was built"):
            sizes = attrs.evolve(sizes, name=name)
            self.likelihood = live_part(modality.likelihood, "likelihood", (Likelihood,), sizes)
            params = self.likelihood.params
        self.shape = (*modality.shape, params) if params > 1 else modality.shape
        if modality.exposure is not None and not self.likelihood.takes_exposure:
            raise SpecError(
                f"likelihood {modality.likelihood!r} takes none; expected one of counts, such as "
                "'poisson'",
                "exposure",
            )
        if modality.exposure == TOTAL and not self.likelihood.takes_total:
            raise SpecError(
                f"likelihood {modality.likelihood!r} multiplies rates by an exposure, and a total "
                "is to be shared out; expected the name of a number of the rows, or a likelihood "
                "with takes_total, such as 'poisson'",
                "exposure",
            )
        network = modality.decoder
        context = sizes.context("decoders")
        if isinstance(network, nn.Module):
            check_takes_context(network, context, "decoders")
        else:
            width = sizes.latent + modality.private_dim
            with plugins.error_context(type(network), "when its decoder was built"):
                build = network.decoder
                network = built_network(build, width, self.shape, context, "decoders")
        self.network: nn.Module = network
        self.context = context
        self.by_total = modality.exposure == TOTAL
        self.has_exposure = modality.exposure is not None
        if self.has_exposure:
            # the median of training, for rows that do not tell theirs
            self.register_buffer("typical_exposure", torch.tensor(torch.nan))

    @property
    def waits_for_exposure(self) -> bool:
        """Whether training has yet to tell the median of the exposures."""
        return self.has_exposure and bool(self.typical_exposure.isnan())

    def forward(self, latent: Tensor, context: Tensor | None = None) -> Tensor:
        """Outputs for latents of any leading shape, (..., d + p) -> (..., *shape).

        Args:
            latent: z and w.
            context: what decoders see of the covariates, (..., c), of as many rows, or a shape
                that can be expanded to them.
        """
        rows = latent.reshape(-1, latent.shape[-1])
        if context is not None:
            context = context.expand(*latent.shape[:-1], context.shape[-1])
            context = context.reshape(-1, context.shape[-1])
        return self.shaped(on_rows(self.network, rows, context), latent)

    def likelihood_context(
        self, exposure: Tensor | None, elements: Tensor | None, known: Context
    ) -> Context:
        """What the likelihood is told of rows, with the exposure of training where none is known.

        Args:
            exposure: of each row, (n,), NaN where unknown; None: unknown.
            elements: observed elements, (n, *shape) bool; None: all.
            known: what else it is told.
        """
        if not self.has_exposure:
            return known
        typical = self.typical_exposure
        if exposure is None:
            return attrs.evolve(known, exposure=typical)
        unknown = exposure.isnan()
        counted = None
        if self.by_total and elements is not None:
            counted = elements | widened(unknown, elements.shape)
        return attrs.evolve(
            known, exposure=torch.where(unknown, typical, exposure), counted=counted
        )

    def shaped(self, output: Tensor, latent: Tensor) -> Tensor:
        """The network's output (n, *shape) in the leading shape of the latents (..., d + p).

        Raises:
            ShapeError: it emitted something else.
        """
        n = latent[..., 0].numel()
        if tuple(output.shape) != (n, *self.shape):
            raise ShapeError(
                f"decoders.{self.name}: emitted {tuple(output.shape)} for latents "
                f"{(n, latent.shape[-1])}; expected {(n, *self.shape)}"
            )
        return output.reshape(*latent.shape[:-1], *self.shape)
