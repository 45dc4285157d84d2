"""Published models of this package, each a filled-in `Model`: what they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from mvkit import Model, SpecError, recipes
from mvkit.core.modality import ModalityLike, as_modalities
from mvkit.parts import ELBO
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


def mld(
    modalities: Modalities, latent_dim: int = 10, *, beta: float = 0.0, **options: Any
) -> Model:
    """MLD: an autoencoder of each modality, with a latent of its own, `latent_dim` wide.

    What the latents have to do with one another is left to the sampler `latent_diffusion`, which
    is fitted afterwards: `mvkit.fit_sampler(model, data, "latent_diffusion")`, then
    `model.sample(n, sampler="latent_diffusion")`, and `translate` likewise. `beta` weighs the KL:
    without it, latents are as certain as training makes them.

    Reference: Bounoua, Franzese and Michiardi, Multi-modal Latent Diffusion, Entropy 2024,
    https://arxiv.org/abs/2306.04445.
    """
    for name in ("aggregator", "objective", "prior"):
        if name in options:
            raise SpecError("the recipe sets it; take the recipe's own options, or Model", name)
    each = {}
    for name, modality in as_modalities(modalities).items():
        each[name] = attrs.evolve(modality, private_dim=latent_dim)  # type: ignore[misc]
    objective = ELBO(kl_weight=beta)
    return Model(each, latent_dim=0, aggregator="moe", objective=objective, **options)
