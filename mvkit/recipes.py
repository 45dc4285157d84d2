"""Published models, each a filled-in `Model` of a few lines: what they are made of, and nothing else.

Every recipe takes `modalities` and `latent_dim`, its paper's options, and whatever else `Model` takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from mvkit.core.modality import Modality, as_modalities
from mvkit.models.model import Model
from mvkit.models.stack import Stack
from mvkit.parts.aggregators.joint_encoder import Joint
from mvkit.parts.aggregators.messages import MeanMessage
from mvkit.parts.aggregators.mixtures import MoPoE
from mvkit.parts.likelihoods import Normal
from mvkit.parts.objectives.composite import Align, Sum
from mvkit.parts.objectives.elbo import ELBO
from mvkit.parts.objectives.published import CRMVAE, JMVAE, MVTCAE, TELBO
from mvkit.parts.priors import Learnable, MoG, PosteriorMixture
from mvkit.parts.top_down import TopDown
from mvkit.training.annealing import Linear
from mvkit.training.stages import JointThenUnimodal, Single

Modalities = Mapping[str, Any]
UNIMODAL = ELBO(condition="unimodal", reduce="sum", reconstruct="own")


def _private(modalities: Modalities, dim: int | None, **options: Any) -> dict[str, Any]:
    """The modalities with private latents of a width, and other options of theirs; None leaves the width."""
    options |= {} if dim is None else {"private_dim": dim}
    return {name: attrs.evolve(m, **options) for name, m in as_modalities(modalities).items()}  # type: ignore[misc]


def _warmup(epochs: int) -> Single:
    return Single(ramps={"kl_weight": Linear(0.0, 1.0, epochs)} if epochs else {})


def telbo(
    modalities: Modalities,
    latent_dim: int = 10,
    *,
    lambdas: Mapping[str, float] | None = None,
    gammas: Mapping[str, float] | None = None,
    stages: int = 2,
    share: float = 0.5,
    rescale: Any = "dims",
    **options: Any,
) -> Model:
    """TELBO: joint ELBO, then unimodal ones under the trained decoders; or, with one stage, all at once.

    Complete rows give the joint terms, every row the unimodal terms of what it has.

    Reference: Vedantam, Fischer, Huang and Murphy, MultimodalModel Models of Visually Grounded Imagination, ICLR 2018,
    https://arxiv.org/abs/1705.10762.
    """
    weights, own = dict(lambdas or {}), dict(gammas or {})
    unimodal = ELBO(condition="unimodal", reduce="sum", reconstruct="own", weights=own)
    two = JointThenUnimodal(share=share, joint=ELBO(weights=weights), unimodal=unimodal)
    return Model(
        modalities,
        latent_dim=latent_dim,
        aggregator=Joint(incomplete="skip"),
        objective=TELBO(lambdas=weights, gammas=own),
        rescale=rescale,
        schedule=two if stages == 2 else Single(),
        **options,
    )


def jmvae(
    modalities: Modalities,
    latent_dim: int = 10,
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    warmup: int = 0,
    **options: Any,
) -> Model:
    """JMVAE-kl: joint ELBO and alignment with unimodal surrogates; their product for larger subsets.

    Reference: Suzuki, Nakayama and Matsuo, Joint Multimodal Learning with Deep MultimodalModel Models, 2016,
    https://arxiv.org/abs/1611.01891.
    """
    objective = JMVAE(alpha=alpha, beta=beta)
    return Model(
        modalities,
        latent_dim=latent_dim,
        aggregator="joint",
        objective=objective,
        schedule=_warmup(warmup),
        **options,
    )


def mopoe(
    modalities: Modalities,
    latent_dim: int = 10,
    *,
    beta: float = 1.0,
    private_dim: int | None = None,
    subsets: Any = None,
    max_subsets: int | None = None,
    prior_expert: str = "full",
    inference: str = "product",
    **options: Any,
) -> Model:
    """MoPoE-VAE: a mixture of products of experts over subsets of the modalities.

    Reference: Sutter, Daunhawer and Vogt, Generalized Multimodal ELBO, ICLR 2021, https://arxiv.org/abs/2105.02470.
    """
    fusion = MoPoE(
        subsets=subsets, max_subsets=max_subsets, prior_expert=prior_expert, inference=inference
    )
    made = _private(modalities, private_dim)
    return Model(
        made, latent_dim=latent_dim, aggregator=fusion, objective=ELBO(kl_weight=beta), **options
    )


def cmvae(
    modalities: Modalities,
    latent_dim: int = 10,
    *,
    private_dim: int = 4,
    clusters: int = 10,
    beta: float = 1.0,
    samples: int = 10,
    gradient: str = "dreg",
    bound: str = "loose",
    cross_prior: str = "learned",
    **options: Any,
) -> Model:
    """CMVAE: mixture of experts, mixture prior, private latents with auxiliary priors; see `prune_clusters`.

    Reference: Palumbo, Manduchi, Laguna, Chopard and Vogt, Deep MultimodalModel Clustering with Multimodal Diffusion
    Variational Autoencoders, ICLR 2024, https://openreview.net/forum?id=k5THrhXDV3.
    """
    return Model(
        _private(modalities, private_dim, cross_prior=cross_prior),
        latent_dim=latent_dim,
        aggregator="moe",
        prior=MoG(components=clusters),
        objective={"name": gradient, "kl_weight": beta, "samples": samples, "bound": bound},
        **options,
    )


def mvae(
    modalities: Modalities,
    latent_dim: int = 10,
    *,
    subsets: int = 1,
    warmup: int = 0,
    **options: Any,
) -> Model:
    """MVAE: product of experts; the joint, the unimodal and some random subsets' ELBOs summed.

    Reference: Wu and Goodman, Multimodal MultimodalModel Models for Scalable Weakly-Supervised Learning, NeurIPS 2018,
    https://arxiv.org/abs/1802.05335.
    """
    random = (ELBO(condition="subset", reconstruct="own"),) * subsets
    objective = Sum(terms=(ELBO(), UNIMODAL, *random))
    return Model(
        modalities, latent_dim=latent_dim, objective=objective, schedule=_warmup(warmup), **options
    )


def mmvae(
    modalities: Modalities,
    latent_dim: int = 10,
    *,
    samples: int = 10,
    gradient: str = "dreg",
    **options: Any,
) -> Model:
    """MMVAE: mixture of Laplace experts, importance-weighted, prior with a trained scale.

    Reference: Shi, Siddharth, Paige and Torr, Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep
    MultimodalModel Models, NeurIPS 2019, https://arxiv.org/abs/1911.03393.
    """
    options = {"family": "laplace_softmax", "prior": Learnable(learn_loc=False), **options}
    estimator = {"name": gradient, "samples": samples}
    return Model(
        modalities, latent_dim=latent_dim, aggregator="moe", objective=estimator, **options
    )


def mmvaeplus(
    modalities: Modalities,
    latent_dim: int = 10,
    *,
    private_dim: int = 4,
    beta: float = 1.0,
    samples: int = 10,
    gradient: str = "dreg",
    cross_prior: str = "learned",
    **options: Any,
) -> Model:
    """MMVAE+: MMVAE with private latents, drawn from auxiliary priors where another modality is generated.

    Reference: Palumbo, Daunhawer and Vogt, MMVAE+: Enhancing the MultimodalModel Quality of Multimodal VAEs without
    Compromises, ICLR 2023, https://openreview.net/forum?id=sdQGxouELX.
    """
    options = {"family": "laplace_softmax", "prior": Learnable(learn_loc=False), **options}
    estimator = {"name": gradient, "samples": samples, "kl_weight": beta}
    made = _private(modalities, private_dim, cross_prior=cross_prior)
    return Model(made, latent_dim=latent_dim, aggregator="moe", objective=estimator, **options)


def mvtcae(
    modalities: Modalities,
    latent_dim: int = 10,
    *,
    alpha: float = 5 / 6,
    beta: float = 2.5,
    **options: Any,
) -> Model:
    """MVTCAE: total correlation between modalities; product of experts without a prior expert.

    Reference: Hwang, Kim, Hong and Kim, Multi-View Representation Learning via Total Correlation Objective,
    NeurIPS 2021, https://openreview.net/forum?id=SmQxNpUNhtT.
    """
    fusion = {"name": "poe", "prior_expert": False}
    objective = MVTCAE(alpha=alpha, beta=beta)
    return Model(
        modalities, latent_dim=latent_dim, aggregator=fusion, objective=objective, **options
    )


def dmvae(
    modalities: Modalities,
    latent_dim: int = 10,
    *,
    private_dim: int = 4,
    beta: float = 1.0,
    **options: Any,
) -> Model:
    """DMVAE: shared and private latents; the joint ELBO and those of each expert alone, which generate everything.

    Reference: Lee and Pavlovic, Private-Shared Disentangled Multimodal VAE for Learning of Latent Representations,
    CVPR Workshops 2021, https://arxiv.org/abs/2012.13024.
    """
    crossed = ELBO(condition="expert", reduce="sum")
    objective = Sum(terms=(ELBO(), crossed), kl_weight=beta)
    made = _private(modalities, private_dim)
    return Model(made, latent_dim=latent_dim, aggregator="poe", objective=objective, **options)


def crmvae(
    modalities: Modalities, latent_dim: int = 10, *, beta: float = 1.0, **options: Any
) -> Model:
    """CRMVAE: product of experts; reconstruction from the joint and from each own expert, KLs to all of them.

    Reference: Suzuki and Matsuo, Mitigating the Limitations of Multimodal VAEs with Coordination-Based Approach,
    2023, https://openreview.net/forum?id=Rn8u4MYgeNJ.
    """
    fusion = {"name": "poe", "prior_expert": False}
    return Model(
        modalities,
        latent_dim=latent_dim,
        aggregator=fusion,
        objective=CRMVAE(kl_weight=beta),
        **options,
    )


def mmvm(
    modalities: Modalities,
    latent_dim: int = 10,
    *,
    beta: float = 1.0,
    standard: float = 0.0,
    **options: Any,
) -> Model:
    """MMVM: a latent a modality, whose prior is the mixture of all its row's posteriors.

    Reference: Sutter et al., Unity by Diversity: Improved Representation Learning for Multimodal VAEs, NeurIPS 2024,
    https://arxiv.org/abs/2403.05300.
    """
    objective = ELBO(condition="unimodal", reduce="sum", reconstruct="own", kl_weight=beta)
    prior = PosteriorMixture(standard=standard)
    return Model(
        modalities,
        latent_dim=latent_dim,
        aggregator="moe",
        prior=prior,
        objective=objective,
        **options,
    )


def jnf(
    modalities: Modalities,
    latent_dim: int = 10,
    *,
    beta: float = 1.0,
    samples: int = 1,
    share: float = 0.5,
    flow: Any = "mvkit-flows/maf",
    conditional: bool = True,
    steps: int = 20,
    **options: Any,
) -> Model:
    """JNF: joint ELBO; then unimodal flows, fitted to draws of the frozen joint posterior. Needs mvkit-flows.

    Reference: Senellart, Chadebec and Allassonnière, Improving Multimodal Joint Variational Autoencoders through
    Normalizing Flows and Correlation Analysis, 2023, https://arxiv.org/abs/2305.11832.
    """
    joint, align = ELBO(kl_weight=beta), Align(estimate="samples", samples=samples)
    return Model(
        modalities,
        latent_dim=latent_dim,
        aggregator={
            "name": "mvkit-flows/joint_flow",
            "flow": flow,
            "conditional": conditional,
            "steps": steps,
        },
        objective=joint,
        schedule=JointThenUnimodal(share=share, joint=joint, unimodal=align),
        **options,
    )


def mhvae(
    modalities: Modalities,
    latent_dim: int = 10,
    *,
    levels: Any = 2,
    beta: float = 1.0,
    condition: str = "aggregator",
    warmup: int = 0,
    **options: Any,
) -> Model:
    """MHVAE: levels of latents, at each a product of its prior and an expert a modality; one ELBO.

    `condition="subset"` takes the posterior given a random subset of what each row has, and reconstructs all of it.

    Reference: Dorent et al., Unified Brain MR-Ultrasound Synthesis using Multi-Modal Hierarchical Representations,
    MICCAI 2023, https://arxiv.org/abs/2309.08747.
    """
    return Model(
        modalities,
        latent_dim=latent_dim,
        aggregator="top_down_poe",
        prior=TopDown(levels=levels),
        objective=ELBO(kl_weight=beta, condition=condition),
        schedule=_warmup(warmup),
        **options,
    )


def nexus(
    modalities: Modalities,
    latent_dim: int = 10,
    *,
    bottom_dim: int | Mapping[str, int] = 16,
    message_dim: int = 64,
    dropout_rate: float = 0.5,
    bottom_beta: float = 1.0,
    top_beta: float = 1.0,
    gammas: Mapping[str, float] | None = None,
    scale: float | str = "optimal",
    warmup: int = 0,
    **options: Any,
) -> Stack:
    """Nexus: a VAE a modality, and a mean-message model of their latents with forced perceptual dropout.

    Reference: Vasco, Yin, Melo and Paiva, Leveraging Hierarchy in Multimodal MultimodalModel Models for Effective
    Cross-Modality Inference, Neural Networks 146, 2022, https://doi.org/10.1016/j.neunet.2021.11.019.
    """
    made = as_modalities(modalities)
    widths = {k: bottom_dim if isinstance(bottom_dim, int) else bottom_dim[k] for k in made}
    low = {
        k: attrs.evolve(m, private_dim=widths[k], private_beta=bottom_beta)
        for k, m in made.items()
    }  # type: ignore[misc]
    high = {
        k: Modality((w,), Normal(scale=scale), weight=(gammas or {}).get(k, 1.0))
        for k, w in widths.items()
    }
    fusion = MeanMessage(message_dim=message_dim, dropout_rate=dropout_rate)
    bottom = Model(low, latent_dim=0, **options)
    top = Model(
        high,
        latent_dim=latent_dim,
        aggregator=fusion,
        objective=ELBO(kl_weight=top_beta),
        **options,
    )
    return Stack([bottom, top], schedule=_warmup(warmup))
