"""How sure a model is of what it fills in: deviations, quantiles and draws, in the user's units.

Axes: n draws, k statistics, b rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mvkit.core.raw_values import full_precision
from mvkit.models.ensemble import Ensemble
from mvkit.models.multimodal import MultimodalModel

Tensors = dict[str, Tensor]


def restored(model: MultimodalModel | Ensemble, name: str, x: Tensor) -> Tensor:
    """Values in the user's units; where transforms are undone, in float64.

    In the model's own float32 a day in seconds would be off by a minute.
    """
    modality = model.modalities[name]
    if not modality.transform or x.device.type == "mps":  # which has no float64
        return modality.restore(x)
    return modality.restore(x.double())


def spread_of(
    samples: Tensors, model: MultimodalModel | Ensemble, shares: Sequence[float], draws: bool
) -> Tensors:
    """Deviations, quantiles and, if asked for, samples, (k, b, *raw_shape).

    Samples (n, b, *shape) are in the model's units, what comes back in the user's.
    """
    values = {}
    for name, modelled in samples.items():
        x = restored(model, name, modelled)
        sd = x.std(0, keepdim=True)
        # torch.quantile takes 16 million numbers at most
        # by (n + 1) p, intervals hold their share whatever n is
        quantiles = np.quantile(full_precision(x).cpu().numpy(), shares, axis=0, method="weibull")
        quantile = torch.from_numpy(quantiles.reshape(len(shares), *x.shape[1:])).to(x)
        # categories have neither
        if any(step.classes for step in model.modalities[name].transform):
            sd = torch.full_like(sd, torch.nan)
            quantile = torch.full_like(quantile, torch.nan)
        values[f"sd/{name}"] = sd
        values[f"quantile/{name}"] = quantile
        if draws:
            values[f"draw/{name}"] = x
    return values
