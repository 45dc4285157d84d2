"""What a run came to, in plain sentences: whether the model learnt anything, and what to try.

Axes: b rows, d latent, c clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.cells import explained_share
from mvkit.core.row_context import RowContext
from mvkit.data.pipeline import Pipeline
from mvkit.errors import MvkitError
from mvkit.models.inference import evaluation
from mvkit.models.multimodal import MultimodalModel
from mvkit.training.history import History

ROWS = 1024  # looked at
ALIVE = 0.1  # deviation over rows of a latent's posterior mean; the prior's is 1
RISING = 0.02  # of all that the loss fell: how much the last tenth of the epochs still adds
FEW = 10  # epochs below which nothing is said of a trend


def judge(model: MultimodalModel, data: Pipeline, history: History) -> None:
    """Writes into the history what the run came to, going by the first rows of some data."""
    last = max((row.get("stage", 0) for row in history.rows), default=0)
    rows = [row for row in history.rows if row.get("stage", 0) == last]
    key = "valid/loss" if any("valid/loss" in row for row in rows) else "loss"
    losses = [row[key] for row in rows if key in row]
    history.verdict[:] = verdict_of(model, data.first_rows(ROWS), losses)


def verdict_of(model: MultimodalModel, rows: Batch | None, losses: Sequence[float]) -> list[str]:
    """Sentences about latents, reconstructions, clusters and the course of the loss.

    Args:
        model: a trained model.
        rows: some conformed rows; None: nothing is said of latents and reconstructions.
        losses: by epoch, of the last stage; those of validation if there are some.
    """
    sentences = []
    try:
        if rows is not None:
            sentences += _about_rows(model, rows.to(model.like.device))
    except MvkitError as error:  # a finished run is not lost for a question that has no answer
        sentences.append(f"not looked at: {error}")
    return sentences + _about_losses(losses)


def _about_rows(model: MultimodalModel, rows: Batch) -> list[str]:
    observing = rows.take(rows.observed.any(1).nonzero()[:, 0])
    if len(observing) < 2:
        return []
    with torch.no_grad():
        z = latents_of(model, observing)
        sentences = _about_latents(z) if model.latent_dim else []
        sentences += _about_reconstructions(model, observing, z)
        return sentences + _about_clusters(model, observing)


def _about_latents(z: Tensor) -> list[str]:
    deviations = deviations_of(z)
    alive = int((deviations >= ALIVE).sum())
    largest = float(deviations.max())
    if alive:
        return [f"{alive} of {len(deviations)} latents vary over rows (largest sd {largest:.2f})"]
    return [
        f"the model learnt nothing: no latent varies over rows (largest sd {largest:.3f}); train "
        "longer, let kl_weight grow from 0 (a ramp), standardise the data, or take fewer latents"
    ]


def _about_reconstructions(model: MultimodalModel, rows: Batch, z: Tensor) -> list[str]:
    shares = reconstructed_shares(model, rows, z)
    parts = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
    sentences = [f"reconstructions explain of the variance: {parts}"] if shares else []
    if shares and max(shares.values()) <= 0:
        sentences.append("no modality is reconstructed better than by its mean")
    return sentences


def reconstructed_shares(model: MultimodalModel, rows: Batch, z: Tensor) -> dict[str, float]:
    """How much less each modality's squared error is than that of its mean, {name: share}.

    Args:
        model: a model.
        rows: conformed rows that observe something.
        z: their latents, (b, d).
    """
    given = RowContext.of(rows)
    decoded = {}
    with evaluation(model):
        for name in model.names:
            decoded[name] = model.decoding.decode(name, z, None, rows=given)
    shares = {}
    for name in model.names:
        share = explained_share(rows.data[name], decoded[name], rows.present(name))
        if not math.isnan(share):
            shares[name] = share
    return shares


def latents_of(model: MultimodalModel, rows: Batch) -> Tensor:
    """Posterior means of conformed rows, (b, d), of a model without a shared latent (b, 0)."""
    if model.latent_dim:
        return model.encode(rows)
    return model.like.new_zeros(len(rows), 0)


def deviations_of(z: Tensor) -> Tensor:
    """Standard deviations of latents (b, d) over rows, (d,); 0 of fewer than two rows."""
    if len(z) < 2 or not z.shape[1]:
        return z.new_zeros(z.shape[1]).double()
    return z.double().std(0)


def _about_clusters(model: MultimodalModel, rows: Batch) -> list[str]:
    if model.n_clusters < 2:
        return []
    used = len(model.clusters(rows).unique())
    sentence = f"rows fall into {used} of {model.n_clusters} clusters"
    if used == 1:
        remedy = "place them by schedule='warmup_then_mixture'"
        if model.placed:
            remedy = "give 'mog' covariance='tied'"
        sentence += f": they have collapsed; train longer, or {remedy}"
    return [sentence]


def _about_losses(losses: Sequence[float]) -> list[str]:
    """Whether the last tenth of the epochs still brought something."""
    if len(losses) < FEW:
        return []
    values = np.asarray(losses)
    tenth = max(1, len(values) // 10)
    last, before = values[-tenth:].mean(), values[-2 * tenth : -tenth].mean()
    fallen = values[0] - last
    if fallen > 0 and (before - last) > RISING * fallen:
        return ["the loss was still falling at the end: more epochs would help"]
    return []
