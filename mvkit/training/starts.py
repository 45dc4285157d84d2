"""Where parameters start that training data place: before the first step of a run."""

from __future__ import annotations

from typing import cast

from torch import nn

from mvkit.core.decoding import Decoder
from mvkit.core.likelihood import Likelihood
from mvkit.data.pipeline import Pipeline
from mvkit.models.multimodal import MultimodalModel

ROWS = 1024  # looked at


def start_likelihoods(model: MultimodalModel, data: Pipeline) -> None:
    """Lets likelihoods place their parameters by the first rows of the training data.

    Streams and loaders, whose first rows may not come again, are left alone.
    """
    likelihoods = _likelihoods(model)
    first = data.first_rows(ROWS) if likelihoods else None
    if first is None:
        return
    for name, likelihood in likelihoods.items():
        present = first.present(name)
        if present.any():
            likelihood.start(first.data[name], present)


def _likelihoods(model: MultimodalModel) -> dict[str, Likelihood]:
    """Those of the data that place parameters; a stack's are of its bottom."""
    bottom = getattr(model, "bottom", model)
    likelihoods = {}
    for name, decoder in cast(nn.ModuleDict, bottom.decoders).items():
        if isinstance(decoder, Decoder) and decoder.likelihood.starts:
            likelihoods[name] = decoder.likelihood
    return likelihoods
