"""`encode` while torch.export or torch.onnx traces it: no check looks at a value.

Axes: b rows, m modalities, d latent.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.raw_values import widened
from mvkit.core.validation import Schema
from mvkit.errors import RequestError
from mvkit.parts.latent_model import LatentModel


def means(model: LatentModel, schema: Schema, batch: Batch, names: tuple[str, ...]) -> Tensor:
    """Posterior means of rows (b, d), for any number of rows and any pattern of gaps.

    All rows go through every network, and what each row lacks is left out by the mask. Values are
    taken as they are: what is wrong in them is nobody's notice.

    Args:
        model: in evaluation mode.
        schema: of its rows.
        batch: the values of every modality, and a mask or none.
        names: modalities to look at.

    Raises:
        RequestError: rows with gaps within a modality, covariates or exposures, or a modality
            without values.
    """
    if batch.elements or batch.covariates or schema.covariates:
        raise RequestError(
            "encode: gaps within a modality and covariates cannot be exported; expected whole "
            "modalities and a mask (b, m); export a module of your own"
        )
    rows = _conformed(batch, schema)
    shown = torch.tensor([name in names for name in schema.names], device=rows.observed.device)
    rows = attrs.evolve(rows, mask=rows.observed & shown)
    experts = model.experts(rows)
    return model.aggregator.inference(experts, rows).mean


def _conformed(batch: Batch, schema: Schema) -> Batch:
    """The batch in the model's units, zeros where unobserved."""
    missing = [name for name in schema.names if name not in batch.data]
    if missing:
        raise RequestError(
            f"encode: no values of {', '.join(missing)}; an export needs those of every modality, "
            "with False in the mask where a row lacks them"
        )
    data: Mapping[str, Tensor] = batch.data
    mask = batch.mask
    if mask is None:
        first = data[schema.names[0]]
        mask = torch.ones(first.shape[0], len(schema.names), dtype=torch.bool, device=first.device)
    order = batch.order or tuple(data)
    columns = [order.index(name) for name in schema.names]
    values = {}
    for name, column in zip(schema.names, columns, strict=True):
        observed = widened(mask[:, column], data[name].shape)
        x = torch.where(observed, data[name], 0)
        for step in schema.transforms.get(name, ()):
            x = step.forward(x)
        x = x.to(schema.dtype)
        values[name] = torch.where(widened(mask[:, column], x.shape), x, 0)
    every = (None,) * len(schema.names)
    rows = Batch(values, mask[:, columns], schema=schema, observed_rows=every)
    return rows.dense(schema.names)
