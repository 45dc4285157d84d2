"""Rows whose values were looked at when they were saved, so that no pass looks at them again.

Axes: b rows, m modalities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.given import conform_given
from mvkit.core.likelihood import Likelihood
from mvkit.core.modality import Modality, Sizes
from mvkit.core.raw_values import Source, widened
from mvkit.core.row_picks import indices_of
from mvkit.core.validation import Schema, conform_values
from mvkit.data.shard_index import Kind
from mvkit.errors import MvkitError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # a model's dtype
Plain = dict[str, bool]  # by modality: whether no single value of an observed row is missing


def look_at(batch: Batch, modalities: Mapping[str, Modality], mask: Tensor) -> Plain | None:
    """What the values of a batch are like, as `Batch.conform` looks at them.

    Args:
        batch: as it is saved.
        modalities: what its modalities are.
        mask: what each row observes, (b, m).

    Returns:
        Whether each modality has no gap but whole rows; None: something is wrong with a value,
        which training has to say.
    """
    plain = {}
    try:
        for i, (name, modality) in enumerate(modalities.items()):
            x = batch.data.get(name)
            if x is None:
                plain[name] = True
                continue
            schema = _schema_of(name, modality, x)
            elements = (batch.elements or {}).get(name)
            columns = batch.columns.get(name)
            if columns is not None and (columns.words or columns.names != modality.features):
                return None
            source = Source(name, x, mask[:, i], elements, None)
            _, _, present = conform_values(schema, source, len(batch))
            plain[name] = present is None
    except MvkitError:
        return None
    return plain


def _schema_of(name: str, modality: Modality, x: Tensor) -> Schema:
    """What a model of this modality alone expects, in the type of its values."""
    dtype = x.dtype if x.dtype in FLOATS else torch.float32
    fields: dict[str, Any] = {"features": {name: modality.features}}
    fields["transforms"] = {name: modality.transform}
    return Schema({name: modality.shape}, {name: _live(modality)}, dtype, **fields)


def _live(modality: Modality) -> Likelihood:
    live: Likelihood = modality.likelihood.build(Sizes.alone(modality))
    return live


@attrs.frozen(eq=False)
class CheckedRows:
    """What was seen of the values of all rows.

    Args:
        modalities: what they were taken for.
        plain: by modality, whether no single value of an observed row is missing.
        kinds: type and shape of the values as they are stored.
    """

    modalities: Mapping[str, Modality]
    plain: Plain
    kinds: Mapping[str, Kind]

    def covers(self, schema: Schema) -> bool:
        """Whether a model with this schema takes all values, which need not be looked at again."""
        return schema.names == tuple(self.modalities) and all(
            self._covers(schema, name) for name in schema.names
        )

    def _covers(self, schema: Schema, name: str) -> bool:
        modality = self.modalities[name]
        dtype, shape = self.kinds.get(f"data/{name}", (torch.bool, []))
        likelihood = schema.likelihoods[name]
        floats = dtype in FLOATS and tuple(shape) == modality.raw_shape
        if not floats or likelihood.class_axis:
            return False
        same = schema.shapes[name] == modality.shape
        same = same and schema.transforms.get(name, ()) == modality.transform
        same = same and schema.features.get(name, ()) == modality.features
        typed = bool(modality.transform) or dtype == schema.dtype
        return same and typed and repr(_live(modality)) == repr(likelihood)

    def conform(self, batch: Batch, schema: Schema) -> Batch:
        """What `mvkit.core.batch.conform` returns of rows of which all is known.

        Their values are changed in place where they are stored nowhere else.

        Args:
            batch: with a mask (b, m).
            schema: one that is covered.
        """
        mask = batch.mask
        if mask is None:
            raise ValueError("mask: None; expected what each row observes")
        data = {}
        elements = {}
        for i, name in enumerate(schema.names):
            data[name], present = self._values(batch, schema, name, mask[:, i])
            if present is not None:
                elements[name] = present
        given = conform_given(schema, data, mask, batch.extra)
        fixed = {"schema": schema, **given, **indices_of(mask)}
        return Batch(data, mask, elements or None, batch.extra, **fixed)

    def _values(
        self, batch: Batch, schema: Schema, name: str, observed: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Values without fillers in the model's units, and which elements are observed."""
        x = batch.data[name]
        steps: tuple[Any, ...] = schema.transforms.get(name, ())
        if self.plain[name]:
            unobserved = (~observed).nonzero()[:, 0]
            x = x.index_fill_(0, unobserved, 0.0)
            if not steps:
                return x, None
            for step in steps:
                x = step.forward(x if x.dtype == torch.float32 else x.double())
            return x.to(schema.dtype).index_fill(0, unobserved, 0.0), None
        present = (batch.elements or {}).get(name)
        present = ~torch.isnan(x) if present is None else present
        rows = widened(observed, x.shape)
        seen = present & rows
        for step in steps:
            x = step.forward(torch.where(seen, x if x.dtype == torch.float32 else x.double(), 0.0))
        x = torch.where(seen, x.to(schema.dtype), 0.0)
        present = seen | ~rows
        return x, None if bool(present.all()) else present
