"""Published models of this package, each a filled-in `Model`: what they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from mvkit import Model, SpecError
from mvkit.core.modality import Modality, ModalityLike, as_modalities
from mvkit.parts import ELBO, Sum
from mvkit_fusion import hoelder, subsets
from mvkit_fusion.entropy import Entropy

Modalities = Mapping[str, ModalityLike]


def codevae(
    modalities: Modalities,
    latent_dim: int = 10,
    *,
    rho: float | None = None,
    beta: float = 1.0,
    alpha: float = 1.0,
    max_subsets: int | None = None,
    private_dim: int | None = None,
    **options: Any,
) -> Model:
    """CoDE-VAE: consensus of dependent experts, over subsets with trained weights π.

    The bound is Σ_S π_S (E log p - `beta` KL) + `alpha` H(π); `rho`, the correlation of the
    experts' errors, is a number or trained (None).

    Reference: Mancisidor, Jenssen, Yu and Kampffmeyer, ICML 2025,
    https://arxiv.org/abs/2505.01134.
    """
    objective = Sum(terms=(ELBO(kl_weight=beta), Entropy(alpha=alpha)))
    fusion = subsets.CoDE(rho=rho, max_subsets=max_subsets)
    each = _each(modalities, private_dim)
    return _model(options, each, latent_dim, aggregator=fusion, objective=objective)


def helvae(
    modalities: Modalities,
    latent_dim: int = 10,
    *,
    beta: float = 1.0,
    trained: bool = False,
    private_dim: int | None = None,
    **options: Any,
) -> Model:
    """HELVAE: one normal with the moments of Hölder's pool of the experts; no subsets are drawn.

    `trained` says whether the experts' weights are.

    Reference: Vo and Valera, 2026, https://arxiv.org/abs/2601.06572.
    """
    fusion = hoelder.Hellinger(trained=trained)
    each = _each(modalities, private_dim)
    return _model(options, each, latent_dim, aggregator=fusion, objective=ELBO(kl_weight=beta))


def mwb(
    modalities: Modalities,
    latent_dim: int = 10,
    *,
    beta: float = 1.0,
    max_subsets: int | None = None,
    private_dim: int | None = None,
    **options: Any,
) -> Model:
    """MWB-VAE: a mixture of Wasserstein barycentres over subsets of the modalities.

    Reference: Qiu, Zhu, Cui, Lin and Ma, AAAI 2025, https://arxiv.org/abs/2412.20487.
    """
    fusion = subsets.MWB(max_subsets=max_subsets)
    each = _each(modalities, private_dim)
    return _model(options, each, latent_dim, aggregator=fusion, objective=ELBO(kl_weight=beta))


def _each(modalities: Modalities, private_dim: int | None) -> dict[str, Modality]:
    """The modalities with private latents so wide; None leaves what they have."""
    each = as_modalities(modalities)
    if private_dim is None:
        return each
    return {
        name: attrs.evolve(modality, private_dim=private_dim) for name, modality in each.items()
    }


def _model(
    options: Mapping[str, Any], modalities: dict[str, Modality], latent_dim: int, **own: Any
) -> Model:
    """A model with a recipe's own options and those of the user, which may not be the same."""
    for name in own:
        if name in options:
            raise SpecError("the recipe sets it; take the recipe's own options, or Model", name)
    return Model(modalities, latent_dim=latent_dim, **own, **options)
