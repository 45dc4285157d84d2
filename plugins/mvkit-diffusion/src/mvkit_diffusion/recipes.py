"""Published models of this package, each a filled-in `Model`: what they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from mvkit import Model, SpecError, recipes
from mvkit.core.modality import Modality, ModalityLike, as_modalities
from mvkit.parts import ELBO, IWAE, Sum
from mvkit_diffusion.information import GenerativeAugmentation, MutualInformation
from mvkit_diffusion.refined import ThenRefine

Modalities = Mapping[str, ModalityLike]


def _check_not_set(options: Mapping[str, Any], *names: str) -> None:
    """Raises SpecError if an option of `Model` is given that the recipe sets itself."""
    for name in names:
        if name in options:
            raise SpecError("the recipe sets it; take the recipe's own options, or Model", name)


def _each(modalities: Modalities, **options: Any) -> dict[str, Modality]:
    """The modalities with these options."""
    every = as_modalities(modalities).items()
    return {name: attrs.evolve(modality, **options) for name, modality in every}  # type: ignore[misc]


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


def idmvae(
    modalities: Modalities,
    latent_dim: int = 10,
    *,
    private_dim: int = 4,
    beta: float = 1.0,
    samples: int = 1,
    information: float = 10.0,
    augmentation: float = 1.0,
    temperature: float = 1.0,
    cross_prior: str = "learned",
    **options: Any,
) -> Model:
    """IDMVAE: MMVAE+ whose shared latents tell each other, and tell nothing of private ones.

    `information` weighs the mutual information of what modalities share, `augmentation` that of
    latents with what is left of them in rows that are generated from them and another row's. The
    diffusion prior is the sampler `latent_diffusion`, fitted afterwards:
    `mvkit.fit_sampler(model, data, "latent_diffusion")`.

    Reference: Zhang, Shen and Wang, Disentanglement of Variations with Multimodal Generative
    Modeling, ICLR 2026, https://arxiv.org/abs/2509.23548.
    """
    _check_not_set(options, "aggregator", "objective")
    each = _each(modalities, private_dim=private_dim, cross_prior=cross_prior)
    terms = (
        IWAE(kl_weight=beta, samples=samples),
        MutualInformation(alpha=information, temperature=temperature),
        GenerativeAugmentation(alpha=augmentation, temperature=temperature),
    )
    objective = Sum(terms=terms)
    return Model(each, latent_dim=latent_dim, aggregator="moe", objective=objective, **options)


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
    _check_not_set(options, "aggregator", "objective", "prior")
    each = _each(modalities, private_dim=latent_dim)
    objective = ELBO(kl_weight=beta)
    return Model(each, latent_dim=0, aggregator="moe", objective=objective, **options)
