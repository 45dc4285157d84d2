"""Where parameters start that training data place: before the first step of a run."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from mvkit.core.batch import Batch
from mvkit.core.decoding import Decoder
from mvkit.core.likelihood import Likelihood
from mvkit.data.pipeline import Pipeline
from mvkit.models.model import Model
from mvkit.models.multimodal import MultimodalModel
from mvkit.parts.networks import Dense

ROWS = 1024  # looked at
SMALLEST = 1e-3  # spread of a feature, as a share of that of its modality


def start_from_data(model: MultimodalModel, data: Pipeline) -> None:
    """Lets likelihoods place their parameters by the first rows of the training data.

    Where that moves some (a trained scale, say), the fully connected networks of the modality
    start there too: encoders as if the values were standardised, decoders around their means.
    What was trained already stays. Streams and loaders, whose first rows may not come again, are
    left alone. A stack starts at its bottom.
    """
    bottom = cast(Model, getattr(model, "bottom", model))
    starting = _starting(bottom)
    first = data.first_rows(ROWS) if starting else None
    if first is None:
        return
    for name, decoder in starting.items():
        present = first.present(name)
        if present.any() and _moves(decoder.likelihood, first.data[name], present):
            _start_networks(bottom, name, decoder, first)


def _starting(model: Model) -> dict[str, Decoder]:
    """Decoders whose likelihoods place parameters, by modality."""
    starting = {}
    for name, decoder in model.decoders.items():
        if isinstance(decoder, Decoder) and decoder.likelihood.starts:
            starting[name] = decoder
    return starting


def _moves(likelihood: Likelihood, x: Tensor, present: Tensor) -> bool:
    """Starts a likelihood; whether that has changed a parameter or a buffer of it."""
    state = likelihood.state_dict() if isinstance(likelihood, nn.Module) else {}
    before = {name: value.clone() for name, value in state.items()}
    likelihood.start(x, present)
    return not all(torch.equal(before[name], value) for name, value in state.items())


def _start_networks(model: Model, name: str, decoder: Decoder, first: Batch) -> None:
    mean, spread = _moments(first.data[name], first.present(name))
    for network in (model.encoders[name], *model.aggregator.readers(name)):
        if isinstance(network, Dense):
            network.start_inputs(mean, spread)
    outputs = decoder.likelihood.first_outputs(mean, spread)
    if outputs is not None and isinstance(decoder.network, Dense):
        decoder.network.start_outputs(outputs)


def _moments(x: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature's observed values, (*shape) each.

    Features that nobody observes have mean 0, and, as constant ones, the smallest spread allowed.
    """
    values = torch.where(present, x, 0.0).double()
    count = present.sum(0)
    mean = values.sum(0) / count.clamp(min=1)
    residual = torch.where(present, x - mean, 0.0)
    squares = residual.square().sum(0)
    spread = (squares / count.clamp(min=1)).sqrt()
    overall = (squares.sum() / count.sum()).sqrt()
    return mean.to(x.dtype), spread.clamp(min=SMALLEST * float(overall)).to(x.dtype)
