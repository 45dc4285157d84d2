"""What a run learns of its training data before the first step: where parameters start, and what
is odd about the data.
"""

from __future__ import annotations

from typing import cast

from torch import nn

from mvkit.core.batch import Batch
from mvkit.core.decoding import Decoder
from mvkit.core.likelihood import Likelihood
from mvkit.data.pipeline import Pipeline
from mvkit.data.shards import Shards
from mvkit.data.suspicions import suspicions
from mvkit.models.multimodal import MultimodalModel

ROWS = 1024  # looked at


def look_at_first_rows(model: MultimodalModel, data: Pipeline) -> list[str]:
    """Lets likelihoods place their parameters by the first rows of the training data.

    Streams and loaders, whose first rows may not come again, are left alone; so is what a source
    of the user's returns, unless parameters are to be placed.

    Returns:
        Sentences about what is odd in these rows.
    """
    likelihoods = _likelihoods(model)
    free = isinstance(data.rows, Batch | Shards) and data.transform is None
    first = data.first_rows(ROWS) if likelihoods or free else None
    if first is None:
        return []
    for name, likelihood in likelihoods.items():
        present = first.present(name)
        if present.any():
            likelihood.start(first.data[name], present)
    return suspicions(first, model.schema, model.modalities)


def _likelihoods(model: MultimodalModel) -> dict[str, Likelihood]:
    """Those of the data that place parameters; a stack's are of its bottom."""
    bottom = getattr(model, "bottom", model)
    likelihoods = {}
    for name, decoder in cast(nn.ModuleDict, bottom.decoders).items():
        if isinstance(decoder, Decoder) and decoder.likelihood.starts:
            likelihoods[name] = decoder.likelihood
    return likelihoods
