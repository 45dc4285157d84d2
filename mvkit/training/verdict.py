"""What a run came to, in plain sentences: whether the model learnt anything, and what to try.

Axes: b rows, d latent, c clusters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.errors import MvkitError
from mvkit.models.multimodal import MultimodalModel

ALIVE = 0.1  # deviation over rows of a latent's posterior mean; the prior's is 1
RISING = 0.02  # of all that the loss fell: how much the last tenth of the epochs still adds
FEW = 10  # epochs below which nothing is said of a trend


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
        z = _latents(model, observing)
        sentences = _about_latents(z) if model.latent_dim else []
        sentences += _about_reconstructions(model, observing, z)
        return sentences + _about_clusters(model, observing)


def _about_latents(z: Tensor) -> list[str]:
    deviations = z.double().std(0)
    alive = int((deviations >= ALIVE).sum())
    largest = float(deviations.max())
    if alive:
        return [f"{alive} of {len(deviations)} latents vary over rows (largest sd {largest:.2f})"]
    return [
        f"the model learnt nothing: no latent varies over rows (largest sd {largest:.3f}); train "
        "longer, let kl_weight grow from 0 (a ramp), standardise the data, or take fewer latents"
    ]


def _about_reconstructions(model: MultimodalModel, rows: Batch, z: Tensor) -> list[str]:
    """How much less each modality's squared error is than that of its mean."""
    decoded = model.decode(z, units="model")
    shares = {}
    for i, name in enumerate(model.names):
        observed = rows.observed[:, i]
        if not observed.any():
            continue
        x, mean = rows.data[name][observed].double(), decoded[name][observed].double()
        error = _squares(x - mean, rows, name, observed)
        spread = _squares(x - _means(x, rows, name, observed), rows, name, observed)
        if spread > 0:
            shares[name] = 1 - error / spread
    parts = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
    sentences = [f"reconstructions explain of the variance: {parts}"] if shares else []
    if shares and max(shares.values()) <= 0:
        sentences.append("no modality is reconstructed better than by its mean")
    return sentences


def _latents(model: MultimodalModel, rows: Batch) -> Tensor:
    if model.latent_dim:
        return model.encode(rows)
    return model.like.new_zeros(len(rows), 0)


def _elements(rows: Batch, name: str, observed: Tensor) -> Tensor | None:
    if rows.elements is None or name not in rows.elements:
        return None
    elements = rows.elements[name][observed]
    x = rows.data[name]
    return elements.reshape(*elements.shape, *[1] * (x.ndim - elements.ndim))


def _squares(residual: Tensor, rows: Batch, name: str, observed: Tensor) -> float:
    elements = _elements(rows, name, observed)
    if elements is not None:
        residual = torch.where(elements, residual, 0.0)
    return float(residual.square().sum())


def _means(x: Tensor, rows: Batch, name: str, observed: Tensor) -> Tensor:
    """Means of each feature over the rows that observe it, (*shape)."""
    elements = _elements(rows, name, observed)
    if elements is None:
        return x.mean(0)
    total = torch.where(elements, x, 0.0).sum(0)
    return total / elements.expand(x.shape).sum(0).clamp(min=1)


def _about_clusters(model: MultimodalModel, rows: Batch) -> list[str]:
    if model.n_clusters < 2:
        return []
    used = len(model.clusters(rows).unique())
    sentence = f"rows fall into {used} of {model.n_clusters} clusters"
    if used == 1:
        sentence += ": they have collapsed; train longer, or place them by init='kmeans'"
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
