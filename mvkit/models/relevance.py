"""Relevance: which latent dimensions each modality needs, where its decoder tells.

Axes: d latent, m modalities.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from mvkit.errors import RequestError
from mvkit.parts.relevance import ARDLinear


class Decoded(Protocol):
    """A model with decoders."""

    names: tuple[str, ...]
    latent_dim: int
    decoders: nn.ModuleDict

    @property
    def like(self) -> Tensor:
        """A tensor of the model's dtype and device."""


def relevance(self: Decoded) -> Tensor:
    """How much each modality needs each shared latent dimension, (d, m).

    It is the root mean square of the first layer's weights from that dimension, near 0 where the
    modality does without; NaN for modalities whose decoder is not an `ard`.

    Raises:
        RequestError: no decoder is an `ard`.
    """
    columns = []
    for name in self.names:
        layers = [layer for layer in self.decoders[name].modules() if isinstance(layer, ARDLinear)]
        column = self.like.new_full((self.latent_dim,), torch.nan)
        if layers:
            column = layers[0].relevance[: self.latent_dim]
        columns.append(column)
    table = torch.stack(columns, 1)
    if self.latent_dim and bool(table.isnan().all()):
        raise RequestError(
            "relevance: no decoder tells what its modality needs; expected one that is an 'ard'; "
            "make the model with Modality(…, decoder='ard')"
        )
    return table
