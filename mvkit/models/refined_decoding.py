"""Decoding in which some modalities are drawn by their refiners.

Axes: r rows in all, b rows of a batch, d latent, p private latent, c numbers of the covariates.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from torch import Tensor

from mvkit.core.decoding import Decoding
from mvkit.core.noise import Generator
from mvkit.core.row_context import NOTHING_GIVEN, RowContext
from mvkit.errors import ShapeError
from mvkit.parts.refiners import Refiner, RefinerSizes

Asked = Mapping[str, tuple[Refiner, RefinerSizes]]  # refiners that draw, by modality


@attrs.frozen(eq=False)
class RefinedDecoding(Decoding):
    """As `Decoding`, but that `decode` draws from refiners where there are some.

    Args:
        refiners: {modality: its refiner, and what that was built for}.
        given: {modality: rows that had it among what latents were drawn from, (b,) bool}; those
            that are not named: none.
    """

    refiners: Asked = attrs.field(factory=dict)
    given: Mapping[str, Tensor] = attrs.field(factory=dict)

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
        if name not in self.refiners:
            return Decoding.decode(self, name, z, w, sample=sample, rows=rows, generator=generator)
        refiner, sizes = self.refiners[name]
        mean = Decoding.decode(self, name, z, w, rows=rows, generator=generator)
        leading = z.shape[:-1]
        latents = self.latents(name, z, w)
        context = self.context(rows.covariates)
        if context is not None:
            context = context.expand(*leading, context.shape[-1]).reshape(-1, context.shape[-1])
        out = mean.reshape(-1, *sizes.shape)
        rows_of_latents = latents.reshape(-1, latents.shape[-1])
        options: dict[str, Tensor] = {}
        knows_given = isinstance(refiner, Refiner) and refiner.knows_given
        if knows_given and name in self.given:
            options["given"] = self.given[name].expand(leading).reshape(-1)
        draws = refiner.refine(out, rows_of_latents, context, generator, **options)
        if draws.shape != out.shape:
            raise ShapeError(
                f"refiner of {name!r}: returned {tuple(draws.shape)}; expected one draw for each "
                f"row, {tuple(out.shape)}"
            )
        return draws.clamp(sizes.low, sizes.high).reshape(mean.shape)


def refined(
    decoding: Decoding, refiners: Asked, given: Mapping[str, Tensor] | None = None
) -> Decoding:
    """The decoding of a model in which some modalities are drawn by their refiners.

    Args:
        decoding: the model's.
        refiners: {modality: its refiner, and what that was built for}; empty: as it is.
        given: {modality: rows that had it, (b,) bool}; None: no row had any.
    """
    if not refiners:
        return decoding
    fields = {field.name: getattr(decoding, field.name) for field in attrs.fields(Decoding)}
    return RefinedDecoding(**fields, refiners=refiners, given=given or {})
