"""Feature relevance: which features each latent dimension moves, and how far.

Axes: b rows, d latent, f features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mvkit.errors import RequestError, check_option
from mvkit.models.multimodal import MultimodalModel
from mvkit_omics.asking import (
    Covariates,
    DataLike,
    Dense,
    Given,
    asked,
    block_of,
    encoded,
    extra_of,
    feature_names,
    rows_of,
)

TINY = 1e-10  # beside means in logarithms


def feature_relevance(
    model: MultimodalModel,
    data: DataLike,
    modality: str | None = None,
    *,
    given: Given = None,
    scale: str = "log2",
    signed: bool = False,
    covariates: Covariates = None,
    background: bool = False,
) -> pd.DataFrame:
    """How far each latent dimension moves each feature, a table (f, d).

    Of every cell one dimension of the posterior's mean is moved by one standard deviation of the
    cells' means, down and up, and both are decoded at exposure 1. The change is that of log2 of
    the mean, or of the mean; the relevance is its root mean square over cells. Where log-means are
    linear in z it is 2 |W_fd| sd_d / log 2.

    Args:
        model: trained.
        data: cells: a dataset, a batch or a mapping of arrays.
        modality: what is decoded; None: the model's only one.
        given: modalities to look at; None: all that each cell has.
        scale: of changes: `log2`, or the `mean`'s own, for values that may be below 0.
        signed: return means of changes over cells, whose signs tell the direction.
        covariates: what cells are decoded as, see `denoised`; None: the cells' own.
        background: whether means hold the background of `foreground_background`.

    Raises:
        RequestError: means below 0 on a logarithmic scale; a modality of several axes.
    """
    check_option("feature_relevance: scale", scale, "log2", "mean")
    options: dict[str, Any] = {"given": given, "background": background}
    question = asked("feature_relevance", model, modality, covariates, **options)
    rows = rows_of(data)
    z = encoded(model, rows, question.given).to(model.like.device)
    spread = z.std(0, correction=0)
    size = question.block_rows(2)
    total = torch.zeros(question.features, z.shape[1], dtype=torch.float64)
    for start in range(0, len(rows), size):
        block = block_of(rows, slice(start, start + size))
        for stated in question.levels:
            decoder = _Decoder(model, block, question.modality, stated, background)
            changes = decoder.changes(z[start : start + size], spread, scale)
            total += (changes if signed else changes.square()).sum(0).cpu()
    mean = total / (len(rows) * len(question.levels))
    values = mean if signed else mean.sqrt()
    columns = [f"z{i}" for i in range(z.shape[1])]
    index = feature_names(model, question.modality)
    return pd.DataFrame(values.numpy(), index=index, columns=columns)


class _Decoder:
    """Decodes latents of the cells of a block, with their covariates and private latents."""

    def __init__(
        self, model: MultimodalModel, block: Dense, modality: str, stated: Any, background: bool
    ) -> None:
        self.model = model
        self.modality = modality
        private = model.private(block)
        self.private = {name: w for name, w in private.items() if name == modality}
        self.options: dict[str, Any] = {"background": background}
        self.options["covariates"] = {**own_covariates(model, block), **stated}
        if model.modalities[modality].exposure:
            self.options["exposure"] = {modality: 1.0}

    def means(self, z: Tensor) -> Tensor:
        """Means (b, f) at latents (b, d), in float64."""
        decoded = self.model.decode(z, self.private, **self.options)
        return decoded[self.modality].flatten(1).double()

    def changes(self, z: Tensor, spread: Tensor, scale: str) -> Tensor:
        """Changes (b, f, d) as each dimension of z (b, d) goes from down to up."""
        columns = []
        for i in range(z.shape[1]):
            step = torch.zeros_like(spread)
            step[i] = spread[i]
            up = self._scaled(self.means(z + step), scale)
            columns.append(up - self._scaled(self.means(z - step), scale))
        return torch.stack(columns, -1)

    def _scaled(self, means: Tensor, scale: str) -> Tensor:
        if scale == "mean":
            return means
        if bool((means < 0).any()):
            raise RequestError(
                f"feature_relevance: {self.modality!r} has means below 0, without a logarithm; "
                "expected scale='mean'"
            )
        return torch.log2(means + TINY)


def own_covariates(model: MultimodalModel, block: Dense) -> dict[str, object]:
    """The covariates of the cells of a block as `Model.decode` takes them, {name: (b,)}."""
    extra = extra_of(block)
    own: dict[str, object] = {}
    for name in model.schema.covariates:
        if name in extra:
            own[name] = np.asarray(extra[name])
    return own
