"""Latents in two dimensions, for pictures.

Axes: b rows, d latent.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mvkit.errors import RequestError


def umap_plane(z: Tensor, seed: int) -> NDArray[np.floating]:
    """Points (b, 2) for latents (b, d), by UMAP.

    Raises:
        RequestError: there is no latent, or umap-learn is not installed.
    """
    _check_some(z)
    try:
        from umap import UMAP
    except ImportError:
        reason = "latent_map: method='umap' needs umap-learn; pip install umap-learn"
        raise RequestError(reason) from None
    return np.asarray(UMAP(random_state=seed).fit_transform(z.numpy()))


def principal_plane(z: Tensor) -> NDArray[np.floating]:
    """Points (b, 2) for latents (b, d): their first two principal components.

    Raises:
        RequestError: there is no latent.
    """
    _check_some(z)
    centred = z - z.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    largest = directions.abs().argmax(1, keepdim=True)
    signs = directions.gather(1, largest).sign()  # the same picture every time
    points = centred @ (directions * signs).T
    return nn.functional.pad(points, (0, 2 - points.shape[1])).numpy()


def _check_some(z: Tensor) -> None:
    """Raises RequestError if latents (b, d) have no width."""
    if not z.shape[1]:
        raise RequestError(
            "latent_map: the model has latent_dim=0, and so no shared latent to show; expected 1 "
            "or more"
        )
