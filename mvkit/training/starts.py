"""What a run learns of its training data before the first step: where parameters start, and what
is odd about the data.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mvkit.core.batch import Batch
from mvkit.core.covariate_values import conform_covariates, numbers_of
from mvkit.core.decoder import Decoder
from mvkit.core.given import ROW_WEIGHT
from mvkit.core.likelihood import Likelihood
from mvkit.data.dataset import as_batch
from mvkit.data.first_rows import first_of_stream
from mvkit.data.pipeline import Pipeline
from mvkit.data.shards import Shards
from mvkit.data.sources import Described, Loaded, Source, Stream
from mvkit.data.suspicions import suspicions
from mvkit.errors import DataError, RequestError
from mvkit.models.far_covariates import far_numbers
from mvkit.models.model import Model
from mvkit.models.multimodal import MultimodalModel
from mvkit.models.penalties import penalised
from mvkit.parts.likelihoods.scales import spread_by_feature
from mvkit.parts.networks import Dense, StartsOutputs, WithContext

ROWS = 1024  # looked at for likelihoods
ROWS_GIVEN = 10_000  # likewise, for exposures, and covariates that are not all known


def look_at_first_rows(
    model: MultimodalModel, data: Pipeline, notes: list[str] | None = None
) -> list[str]:
    """Lets likelihoods place their parameters by the first rows of the training data.

    Where that moves some (a trained scale, say), the fully connected networks of the modality
    start there too: encoders as if the values were standardised, decoders around their means.
    What was trained already stays. Streams and loaders, whose first rows may not come again, are
    left alone unless the model has covariates or exposures; so is what a source of the user's
    returns, unless parameters are to be placed. A stack starts at its bottom. A model with
    penalties is told how many rows there are.

    Args:
        model: the model.
        data: what it is trained on.
        notes: a list to which is added what was learnt of a part of the rows.

    Returns:
        Sentences about what is odd in these rows.
    """
    _note_training_rows(model, data)
    bottom = cast(Model, getattr(model, "bottom", model))
    learnt = _place_given(bottom, data)
    if notes is not None:
        notes += learnt
    starting = _starting(bottom)
    free = isinstance(data.rows, Batch | Shards) and data.transform is None
    first = data.first_rows(ROWS) if starting or free else None
    if first is None:
        return []
    typical = weighed_rows(first)
    for name, decoder in starting.items():
        present = typical.present(name)
        if present.any() and _moves(decoder.likelihood, typical.data[name], present):
            _start_networks(bottom, name, decoder, typical)
    return suspicions(first, model.schema, model.modalities)


def _note_training_rows(model: MultimodalModel, data: Pipeline) -> None:
    """Tells a model with penalties how many rows it is trained on, in all processes together.

    Raises:
        RequestError: data whose rows are not known beforehand, and the model was not told.
    """
    paths = [*penalised(model)]
    if not paths:
        return
    rows = _known_rows(data)
    if rows is not None:
        model.training_rows = rows
    elif model.training_rows is None:
        raise RequestError(
            f"fit: the penalty of {', '.join(paths)} is divided by the number of training rows, "
            "which these data do not tell; expected data in memory, shards, or a source with a "
            "length; say it before: model.training_rows = …"
        )


def _known_rows(data: Pipeline) -> int | None:
    """The number of rows of all shares of the data; None of streams, which do not tell."""
    rows = data.rows
    if isinstance(rows, Loaded) and isinstance(rows.batches, list | tuple):
        return sum(len(as_batch(batch)) for batch in rows.batches)
    return None if isinstance(rows, Loaded | Stream) else len(rows)


def far_from_training(model: MultimodalModel, data: Pipeline | None) -> list[str]:
    """Sentences about validation data whose covariates are far outside those of training."""
    conditions = model.decoding.conditions
    if conditions is None or data is None or isinstance(data.rows, Stream | Loaded):
        return []
    values = _covariates_of_all(data)
    if values is None:
        first = data.first_rows(ROWS)
        values = {} if first is None else first.covariates
    return [f"validation: {sentence}" for sentence in far_numbers(conditions, values)]


def _place_given(model: Model, data: Pipeline) -> list[str]:
    """Learns what training tells of covariates and exposures, if the model has any, once.

    Returns:
        Sentences about what was learnt of a part of the rows.
    """
    exposed = {}
    for name, decoder in model.decoders.items():
        if isinstance(decoder, Decoder) and decoder.waits_for_exposure:
            exposed[name] = decoder
    conditions = model.conditions
    waiting = conditions is not None and not bool(conditions.placed)
    if not exposed and not waiting:
        return []
    first = data.first_rows(ROWS_GIVEN)
    streamed = first is None
    batches = first_of_stream(data, ROWS) if first is None else [first]
    if not batches:
        return []
    unknown: list[str] = []
    if conditions is not None and waiting:
        values = _covariates_of_all(data) or _joined([batch.covariates for batch in batches])
        unknown = conditions.place(values, all_rows=not streamed)
    _place_exposures(exposed, _joined([batch.exposure for batch in batches]))
    _warn_of_unknown(unknown)
    if not streamed:
        return []
    rows = sum(map(len, batches))
    return [
        f"the data come as a stream: what is typical of covariates and exposures was learnt of "
        f"the first {rows:,} rows"
    ]


def _place_exposures(decoders: Mapping[str, Decoder], exposures: Mapping[str, Tensor]) -> None:
    """Gives decoders the medians of the exposures of their modalities, {name: (b,)}."""
    for name, decoder in decoders.items():
        known = exposures[name]
        known = known[~known.isnan()]
        if len(known):
            decoder.typical_exposure.fill_(known.median())


def _covariates_of_all(data: Pipeline) -> Mapping[str, Tensor] | None:
    """The covariates of all rows, {name: (b,)}, where they are known beforehand."""
    rows = data.rows
    if data.transform is not None or data.schema is None:
        return None
    if isinstance(rows, Batch):
        return rows.covariates
    if isinstance(rows, Source) and isinstance(rows, Described):
        return conform_covariates(data.schema.covariates, rows.extra, len(rows))
    return None


def _joined(values: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Values of several batches, one after another."""
    return {name: torch.cat([batch[name] for batch in values]) for name in values[0]}


def _warn_of_unknown(names: Sequence[str]) -> None:
    """Warns of covariates that the first rows of a stream tell nothing of."""
    for name in names:
        warnings.warn(
            f"fit: covariate {name!r} is the same in the first rows of this stream, or all of "
            "them lack it, so that it is not standardised; shuffle the stream, or give fit data "
            "in memory, or shards",
            stacklevel=7,
        )


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
    x, present = first.data[name], first.present(name)
    seen = x.log1p() if model.modalities[name].input == "log1p" else x
    moments = _moments(seen, present)
    for network in (model.encoders[name], *model.aggregator.readers(name)):
        dense = _without_context(network)
        if isinstance(dense, Dense):
            dense.start_inputs(*moments)
    outputs = decoder.likelihood.first_outputs(*_moments(x, present))
    network = _without_context(decoder.network)
    if isinstance(network, StartsOutputs) and outputs is not None:
        network.start_outputs(outputs)


def _moments(x: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Means and spreads of the features of rows (n, *shape), (*shape) each."""
    count = present.sum(0).clamp(min=1)
    mean = torch.where(present, x, 0.0).double().sum(0) / count
    return mean.to(x.dtype), spread_by_feature(x, present).to(x.dtype)


def _without_context(network: nn.Module) -> nn.Module:
    """A network itself, of one that is given a context too."""
    return network.network if isinstance(network, WithContext) else network


def known_weights(data: Pipeline, dtype: torch.dtype, what: str) -> Tensor | None:
    """Weights of all rows, (b,) in float64; None where rows have none, or come as a stream.

    Args:
        data: the rows.
        dtype: of the model, in which weights may be next to nothing.
        what: they are called in messages.

    Raises:
        DataError: all of them are 0.
    """
    extra = getattr(data.rows, "extra", {})
    if ROW_WEIGHT not in extra:
        return None
    weights = numbers_of(ROW_WEIGHT, extra[ROW_WEIGHT], len(extra[ROW_WEIGHT]))
    if not float(weights.to(dtype).sum()) > 0:
        raise DataError(
            f"fit: {what} is 0 in all rows; expected a number above 0 in some; leave it out to "
            "count all rows alike"
        )
    return weights


def weighed_rows(rows: Batch) -> Batch:
    """Rows of a conformed batch, each as often as its weight says, as many as there are in all;
    the rows as they are, if they have no weights.
    """
    if rows.row_weight is None:
        return rows
    shares = rows.row_weight.double().cumsum(0)
    steps = torch.arange(len(rows), dtype=torch.float64, device=shares.device) + 0.5
    places = steps / len(rows) * shares[-1]
    return rows.take(torch.searchsorted(shares, places).clamp(max=len(rows) - 1))
