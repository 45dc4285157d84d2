"""Unimodal evidence: what the encoders make of the observed rows of a batch.

Axes: b rows, m modalities, w encoder width, d latent, p private latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mvkit.batch import Batch
from mvkit.errors import ShapeError
from mvkit.families import Family
from mvkit.modality import Modality
from mvkit.networks import on_rows
from mvkit.posterior import Posterior
from mvkit.products import Some


class Experts:
    """Encoder outputs for a batch, computed when first asked for and then kept.

    A part that never looks (the joint encoder on complete rows) costs nothing. Unobserved rows hold zeros.

    Args:
        encoders: modality to network, rows in, `width + 2 p` numbers out.
        modalities: what they encode.
        batch: a conformed batch.
        family: what turns raw numbers into scales.
        width: numbers for the aggregator, w.
        training: whether parts behave as in training (dropout, subsets drawn).
        generator: source of randomness of everything computed from these experts.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        modalities: Mapping[str, Modality],
        batch: Batch,
        *,
        family: Family,
        width: int,
        training: bool,
        generator: torch.Generator | None = None,
    ) -> None:
        self.encoders = encoders
        self.modalities = modalities
        self.batch = batch
        self.family = family
        self.width = width
        self.training = training
        self.generator = generator
        self.fused: Posterior | None = None  # what `Model.fused` made of them
        self._encoded: dict[str, Tensor] = {}

    @property
    def _options(self) -> dict[str, Any]:
        return {"family": self.family, "width": self.width, "training": self.training, "generator": self.generator}

    def given(self, batch: Batch) -> Experts:
        """The experts of a batch that `hide` made of this one's; no modality is encoded twice."""
        made = Experts(self.encoders, self.modalities, batch, **self._options)
        made._encoded = self._encoded
        return made

    def take(self, index: Tensor) -> Experts:
        """The experts of the rows at `index` (n,) alone."""
        return Experts(self.encoders, self.modalities, self.batch.take(index), **self._options)

    @property
    def wanted(self) -> bool:
        """Whether every row is encoded anyway: some modality was already, or private latents will be asked for."""
        return bool(self._encoded) or any(modality.private_dim for modality in self.modalities.values())

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        """Everything the encoders emit, {name: (b, w + 2 p)}."""
        return {name: self._output(i, name) for i, name in enumerate(self.modalities)}

    def _output(self, i: int, name: str) -> Tensor:
        x, index = self.batch.data[name], self.batch.rows[i]
        total = self.width + 2 * self.modalities[name].private_dim
        if name in self.batch.hidden or (index is not None and not len(index) and not torch.is_grad_enabled()):
            return torch.zeros(len(x), total, dtype=x.dtype, device=x.device)
        if name not in self._encoded:
            self._encoded[name] = self._encode(name, index, total)
        return self._encoded[name]

    def _encode(self, name: str, index: Tensor | None, total: int) -> Tensor:
        x = self.batch.data[name]
        rows = self.batch.inputs(name, index, indicator=self.modalities[name].indicator)
        out = on_rows(self.encoders[name], rows)
        if tuple(out.shape) != (len(rows), total):
            raise ShapeError(
                f"encoders.{name}: emitted {tuple(out.shape)} for {tuple(rows.shape)}; expected {(len(rows), total)}: "
                f"{self.width} numbers for the aggregator and {total - self.width} for the private latent"
            )
        if index is None:
            return out
        return out.new_zeros(len(x), total).index_copy(0, index, out)

    @cached_property
    def stats(self) -> Tensor:
        """The numbers for the aggregator, (m, b, w)."""
        return torch.stack([out[:, : self.width] for out in self.outputs.values()])

    @cached_property
    def _located(self) -> tuple[Tensor, Tensor]:
        loc, raw = self.stats.chunk(2, dim=-1)
        return loc, self.family.scale(raw)

    @property
    def loc(self) -> Tensor:
        """Locations of the unimodal experts, (m, b, d)."""
        return self._located[0]

    @property
    def scale(self) -> Tensor:
        """Scales of the unimodal experts, (m, b, d)."""
        return self._located[1]

    @property
    def shown(self) -> list[int]:
        """Which modalities no question hid."""
        return [i for i, name in enumerate(self.modalities) if name not in self.batch.hidden]

    def only(self, which: list[int]) -> Some:
        """Some unimodal experts, the others not so much as stacked."""
        names = list(self.modalities)
        loc, raw = torch.stack([self._output(i, names[i])[:, : self.width] for i in which]).chunk(2, dim=-1)
        return Some(loc, self.family.scale(raw))

    @cached_property
    def private(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Private experts q(w_m|x_m): {name: (loc (b, p), scale (b, p))}."""
        found = {}
        for name, modality in self.modalities.items():
            if modality.private_dim:
                loc, raw = self.outputs[name][:, self.width :].chunk(2, dim=-1)
                found[name] = (loc, self.family.scale(raw))
        return found
