"""Published models of this package, each a filled-in `Model`: what they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mvkit import Model, recipes
from mvkit.core.modality import ModalityLike
from mvkit_diffusion.refined import ThenRefine

Modalities = Mapping[str, ModalityLike]


def d_cmvae(
    modalities: Modalities,
    latent_dim: int = 10,
    *,
    refiner: Any = "mvkit-diffusion/diffusion",
    share: float = 0.5,
    schedule: Any = "warmup_then_mixture",
    **options: Any,
) -> Model:
    """D-CMVAE: CMVAE, then diffusion decoders given what its decoders say.

    `schedule` trains CMVAE; the last `share` of the epochs of `mvkit.fit` train a `refiner` of
    every modality with continuous values, which `refine=True` asks for. `options` are those of
    `mvkit.recipes.cmvae` and of `Model`.

    Reference: Palumbo et al., ICLR 2024, https://openreview.net/forum?id=k5THrhXDV3; Pandey et
    al., DiffuseVAE, 2022, https://arxiv.org/abs/2201.00308.
    """
    refined = ThenRefine(first=schedule, refiner=refiner, share=share)
    return recipes.cmvae(modalities, latent_dim, schedule=refined, **options)
