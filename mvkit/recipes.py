"""Published models, each a filled-in `Model` of a few lines: what they are made of, nothing else.

Every recipe takes `modalities` and `latent_dim`, its paper's options, and whatever else `Model`
takes. `mvkit.available("recipe")` names them all, with those of packages, which are attributes of
this module too; `get("package/name")` says which package's.
"""
# fmt: off

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import attrs

from mvkit import parts
from mvkit.core.covariates import CovariateLike, as_covariates, into_all
from mvkit.core.modality import Modality, ModalityLike, PartLike, as_modalities
from mvkit.errors import SpecError, check_number, check_option, check_whole_number
from mvkit.models.model import Model
from mvkit.models.stack import Stack
from mvkit.parts.mixture_fit import CovarianceKind
from mvkit.parts.objectives.objective import check_names
from mvkit.registry import recipe_names
from mvkit.registry.spec import as_part
from mvkit.training.annealing import Linear
from mvkit.training.stages import JointThenUnimodal, Single, WarmupThenMixture

get = recipe_names.get
__dir__ = recipe_names.listing
__getattr__ = recipe_names.attribute  # recipes of packages

Modalities = Mapping[str, ModalityLike]
Factors = Mapping[str, float]  # by modality
Rescale = Literal["dims"] | Factors | None
UNIMODAL = parts.ELBO(condition="unimodal", reduce="sum", reconstruct="own")
POE = parts.PoE(prior_expert=False)
SKIPPING = parts.Joint(incomplete="skip")
LAPLACE: dict[str, Any] = {"family": "laplace_softmax", "prior": parts.Learnable(learn_loc=False)}


def _each(modalities: Modalities, **options: object) -> dict[str, Modality]:
    """The modalities with these options, None leaving what they have."""
    given = {name: value for name, value in options.items() if value is not None}
    each = as_modalities(modalities).items()
    return {name: attrs.evolve(modality, **given) for name, modality in each}  # type: ignore[misc]


def _model(options: Mapping[str, Any], modalities: Modalities, **own: Any) -> Model:
    """A model with a recipe's own options and those of the user, which may not be the same."""
    for name in own:
        if name in options:
            raise SpecError("the recipe sets it; take the recipe's own options, or Model", name)
    return Model(modalities, **own, **options)


def _warmup(epochs: int) -> Single:
    """One stage, in whose first epochs the factor of the KL grows from 0 to 1."""
    epochs = check_whole_number("warmup", epochs, 0)
    return Single(ramps={"kl_weight": Linear(0.0, 1.0, epochs)} if epochs else {})


def telbo(modalities: Modalities, latent_dim: int = 10, *, lambdas: Factors | None = None,
          gammas: Factors | None = None, stages: int = 1, share: float = 0.5,
          rescale: Rescale = "dims", aggregator: PartLike = SKIPPING, **options: Any) -> Model:
    """TELBO: joint and unimodal ELBOs at once; with `stages=2`, the joint one, then unimodal ones.

    The second stage leaves the decoders as the first has trained them.

    Reference: Vedantam, Fischer, Huang and Murphy, ICLR 2018, https://arxiv.org/abs/1705.10762.
    """
    check_option("telbo: stages", check_whole_number("telbo: stages", stages), 1, 2)
    both = parts.TELBO(lambdas=lambdas or {}, gammas=gammas or {})
    unimodal = attrs.evolve(UNIMODAL, weights=both.gammas)  # type: ignore[misc]
    two = JointThenUnimodal(share=share, joint=parts.ELBO(weights=both.lambdas), unimodal=unimodal)
    return _model(options, modalities, latent_dim=latent_dim, aggregator=aggregator,
                  objective=both, rescale=rescale, schedule=two if stages == 2 else Single())


def jmvae(modalities: Modalities, latent_dim: int = 10, *, alpha: float = 0.1, beta: float = 1.0,
          warmup: int = 0, aggregator: PartLike = "joint", **options: Any) -> Model:
    """JMVAE-kl: joint ELBO and alignment with unimodal surrogates; their product for subsets.

    Reference: Suzuki, Nakayama and Matsuo, 2016, https://arxiv.org/abs/1611.01891.
    """
    return _model(options, modalities, latent_dim=latent_dim, aggregator=aggregator,
                  objective=parts.JMVAE(alpha=alpha, beta=beta), schedule=_warmup(warmup))


def cvae(modalities: Modalities, latent_dim: int = 10, *,
         covariates: Mapping[str, CovariateLike], beta: float = 1.0, prior: PartLike = "learnable",
         aggregator: PartLike = POE, **options: Any) -> Model:
    """CVAE: p(x, z | covariates), with a prior that depends on them; all see them.

    Covariates that say nothing else go into encoders, decoders and, where the prior may depend on
    them, the prior: `prior="standard"` leaves it out.

    Reference: Sohn, Lee and Yan, NeurIPS 2015 (conditional VAE).
    """
    given = as_covariates(covariates)
    if as_part("prior", prior) != parts.Standard():
        given = {name: into_all(covariate) for name, covariate in given.items()}
    return _model(options, modalities, latent_dim=latent_dim, aggregator=aggregator, prior=prior,
                  objective=parts.ELBO(kl_weight=beta), covariates=given)


def mopoe(modalities: Modalities, latent_dim: int = 10, *, beta: float = 1.0,
          private_dim: int | None = None, subsets: Sequence[Sequence[str]] | None = None,
          max_subsets: int | None = None, prior_expert: str = "full", inference: str = "product",
          **options: Any) -> Model:
    """MoPoE-VAE: a mixture of products of experts over subsets of the modalities.

    Reference: Sutter, Daunhawer and Vogt, ICLR 2021, https://arxiv.org/abs/2105.02470.
    """
    fusion = {"name": "mopoe", "subsets": subsets, "max_subsets": max_subsets,
              "prior_expert": prior_expert, "inference": inference}
    return _model(options, _each(modalities, private_dim=private_dim), latent_dim=latent_dim,
                  aggregator=fusion, objective=parts.ELBO(kl_weight=beta))


def cmvae(modalities: Modalities, latent_dim: int = 10, *, private_dim: int = 4,
          clusters: int = 10, beta: float = 1.0, samples: int = 10, gradient: str = "dreg",
          bound: str = "loose", cross_prior: str = "learned", covariance: str | None = None,
          **options: Any) -> Model:
    """CMVAE: mixture of experts, mixture prior, private latents; see `prune_clusters`.

    The first half of the epochs has the standard prior; then the mixture is placed. `covariance`
    is that of the clusters; None: tied, and diagonal where experts are not normal. docs/models.md
    has the setting of the paper.

    Reference: Palumbo et al., ICLR 2024, https://openreview.net/forum?id=k5THrhXDV3.
    """
    each = _each(modalities, private_dim=private_dim, cross_prior=cross_prior)
    objective = {"name": gradient, "kl_weight": beta, "samples": samples, "bound": bound}
    if covariance is None:
        family = as_part("family", options.get("family", "normal"))
        covariance = "tied" if family.density == "normal" else "diagonal"
    prior = parts.MoG(components=clusters, covariance=cast(CovarianceKind, covariance))
    options = {"schedule": WarmupThenMixture(), **options}
    return _model(options, each, latent_dim=latent_dim, aggregator="moe", objective=objective,
                  prior=prior)


def mvae(modalities: Modalities, latent_dim: int = 10, *, subsets: int = 1, warmup: int = 0,
         **options: Any) -> Model:
    """MVAE: product of experts; ELBOs of all, of each and of random subsets, summed.

    Reference: Wu and Goodman, NeurIPS 2018, https://arxiv.org/abs/1802.05335.
    """
    subsets = check_whole_number("mvae: subsets", subsets, 0)
    random = (parts.ELBO(condition="subset", reconstruct="own"),) * subsets
    objective = parts.Sum(terms=(parts.ELBO(), UNIMODAL, *random))
    return _model(options, modalities, latent_dim=latent_dim, objective=objective,
                  schedule=_warmup(warmup))


def mmvae(modalities: Modalities, latent_dim: int = 10, *, samples: int = 10,
          gradient: str = "dreg", **options: Any) -> Model:
    """MMVAE: mixture of Laplace experts, importance-weighted, prior with a trained scale.

    Reference: Shi, Siddharth, Paige and Torr, NeurIPS 2019, https://arxiv.org/abs/1911.03393.
    """
    objective = {"name": gradient, "samples": samples}
    return _model(LAPLACE | options, modalities, latent_dim=latent_dim, aggregator="moe",
                  objective=objective)


def mmvaeplus(modalities: Modalities, latent_dim: int = 10, *, private_dim: int = 4,
              beta: float = 1.0, samples: int = 10, gradient: str = "dreg",
              cross_prior: str = "learned", **options: Any) -> Model:
    """MMVAE+: MMVAE with private latents, from auxiliary priors in other experts' components.

    Reference: Palumbo, Daunhawer and Vogt, ICLR 2023, https://openreview.net/forum?id=sdQGxouELX.
    """
    each = _each(modalities, private_dim=private_dim, cross_prior=cross_prior)
    objective = {"name": gradient, "samples": samples, "kl_weight": beta}
    return _model(LAPLACE | options, each, latent_dim=latent_dim, aggregator="moe",
                  objective=objective)


def mvtcae(modalities: Modalities, latent_dim: int = 10, *, alpha: float = 5 / 6,
           beta: float = 2.5, **options: Any) -> Model:
    """MVTCAE: total correlation between modalities; product of experts without a prior expert.

    Reference: Hwang, Kim, Hong and Kim, NeurIPS 2021, https://openreview.net/forum?id=SmQxNpUNhtT.
    """
    objective = parts.MVTCAE(alpha=alpha, beta=beta)
    return _model(options, modalities, latent_dim=latent_dim, aggregator=POE, objective=objective)


def dmvae(modalities: Modalities, latent_dim: int = 10, *, private_dim: int = 2, beta: float = 0.5,
          **options: Any) -> Model:
    """DMVAE: private latents; the joint ELBO, and each expert's, from which all are generated.

    Reference: Lee and Pavlovic, CVPR Workshops 2021, https://arxiv.org/abs/2012.13024.
    """
    crossed = parts.ELBO(condition="expert", reduce="sum")
    objective = parts.Sum(terms=(parts.ELBO(), crossed), kl_weight=beta)
    return _model(options, _each(modalities, private_dim=private_dim), latent_dim=latent_dim,
                  aggregator="poe", objective=objective)


def crmvae(modalities: Modalities, latent_dim: int = 10, *, beta: float = 1.0,
           **options: Any) -> Model:
    """CRMVAE: product of experts; reconstructions from it and from each expert, KLs to all.

    Reference: Suzuki and Matsuo, 2023, https://openreview.net/forum?id=Rn8u4MYgeNJ.
    """
    objective = parts.CRMVAE(kl_weight=beta)
    return _model(options, modalities, latent_dim=latent_dim, aggregator=POE, objective=objective)


def mmvm(modalities: Modalities, latent_dim: int = 10, *, beta: float = 1.0, standard: float = 0.0,
         **options: Any) -> Model:
    """MMVM: one latent per modality, whose prior is the mixture of all posteriors of its row.

    Reference: Sutter et al., NeurIPS 2024, https://arxiv.org/abs/2403.05300.
    """
    objective = attrs.evolve(UNIMODAL, kl_weight=beta)  # type: ignore[misc]
    return _model(options, modalities, latent_dim=latent_dim, aggregator="moe",
                  objective=objective, prior=parts.PosteriorMixture(standard=standard))


def mmjsd(modalities: Modalities, latent_dim: int = 10, *, beta: float = 1.0, samples: int = 1,
          private_dim: int | None = None, shares: Factors | None = None, prior_share: float = 1.0,
          **options: Any) -> Model:
    """mmJSD: mixture of experts; Jensen-Shannon divergence of the experts and the prior.

    `shares` and `prior_share` are relative weights π. Subsets are answered by the mixture.

    Reference: Sutter, Daunhawer and Vogt, NeurIPS 2020, https://arxiv.org/abs/2006.08242.
    """
    objective = parts.JSD(shares={} if shares is None else shares, prior_share=prior_share,
                          kl_weight=beta, samples=samples)
    return _model(options, _each(modalities, private_dim=private_dim), latent_dim=latent_dim,
                  aggregator="moe", objective=objective, private_from="observed")


def meme(modalities: Modalities, latent_dim: int = 10, *, beta: float = 1.0, alpha: float = 1.0,
         samples: int = 10, pseudo_samples: int = 50, stop_weights: bool = False,
         **options: Any) -> Model:
    """MEME: two modalities, the posterior of each being the prior of the other.

    Where one is missing, the posteriors of its trained pseudo-samples stand in; rows that observe
    both do not train these, so that `sample` then needs a fitted sampler.

    Reference: Joy et al., ICLR 2022, https://arxiv.org/abs/2106.12570.
    """
    objective = parts.MEME(kl_weight=beta, alpha=alpha, samples=samples, stop_weights=stop_weights)
    return _model(options, modalities, latent_dim=latent_dim, aggregator="moe",
                  objective=objective, prior=parts.Vamp(components=pseudo_samples))


def jnf(modalities: Modalities, latent_dim: int = 10, *, beta: float = 1.0, samples: int = 1,
        share: float = 0.5, flow: PartLike = "mvkit-flows/maf", conditional: bool = True,
        steps: int = 20, **options: Any) -> Model:
    """JNF: joint ELBO; then flows, fitted to draws of the joint posterior. Needs mvkit-flows.

    Reference: Senellart, Chadebec and Allassonnière, 2023, https://arxiv.org/abs/2305.11832.
    """
    fusion = {"flow": flow, "conditional": conditional, "steps": steps}
    joint, align = parts.ELBO(kl_weight=beta), parts.Align(estimate="samples", samples=samples)
    schedule = JointThenUnimodal(share=share, joint=joint, unimodal=align)
    return _model(options, modalities, latent_dim=latent_dim, objective=joint, schedule=schedule,
                  aggregator={"name": "mvkit-flows/joint_flow", **fusion})


def mhvae(modalities: Modalities, latent_dim: int = 10, *, levels: int | Sequence[int] = 2,
          beta: float = 1.0, condition: str = "aggregator", warmup: int = 0,
          **options: Any) -> Model:
    """MHVAE: levels of latents, at each a product of its prior and the experts; one ELBO.

    Reference: Dorent et al., MICCAI 2023, https://arxiv.org/abs/2309.08747.
    """
    objective = parts.ELBO(kl_weight=beta, condition=condition)
    return _model(options, modalities, latent_dim=latent_dim, aggregator="top_down_poe",
                  prior={"name": "top_down", "levels": levels}, objective=objective,
                  schedule=_warmup(warmup))


def miwae(modalities: Modalities, latent_dim: int = 10, *, samples: int = 20,
          aggregator: PartLike = POE, **options: Any) -> Model:
    """MIWAE: importance-weighted bound on what each row has; the rest is missing at random.

    Reference: Mattei and Frellsen, ICML 2019, https://arxiv.org/abs/1812.02633.
    """
    return _model(options, modalities, latent_dim=latent_dim, aggregator=aggregator,
                  objective=parts.IWAE(samples=samples))


def not_miwae(modalities: Modalities, latent_dim: int = 10, *, samples: int = 20,
              missingness: PartLike = "self", aggregator: PartLike = POE,
              **options: Any) -> Model:
    """not-MIWAE: MIWAE and a model of what is missing, given the values: not at random.

    Where it is known which values go missing, say so: `missingness={"name": "self", "sign":
    "high"}`.

    Reference: Ipsen, Mattei and Frellsen, ICLR 2021, https://arxiv.org/abs/2006.12871.
    """
    return _model(options, modalities, latent_dim=latent_dim, aggregator=aggregator,
                  objective=parts.IWAE(samples=samples), missingness=missingness)


def masked(modalities: Modalities, latent_dim: int = 64, *, width: int = 256, blocks: int = 3,
           dropout_rate: float = 0.1, low: float = 0.1, high: float = 0.5,
           kl_weight: float = 0.0, predict: str = "hidden", **options: Any) -> Model:
    """A denoising model of tables: hidden cells are predicted from the others.

    Encoders' messages are summed and go through residual blocks. This is what `impute` trains for
    tables that come without a model; see the objective `masked`. With `kl_weight=1` and
    `predict="all"` it is a variational autoencoder that sees a part of each row.

    Reference: Vincent et al., ICML 2008, https://doi.org/10.1145/1390156.1390294.
    """
    head = {"name": "tabular", "width": width, "blocks": blocks, "dropout_rate": dropout_rate}
    fusion = {"name": "set", "message_dim": width // 2, "inner": "linear", "features": width,
              "head": head}
    objective = parts.Masked(kl_weight=kl_weight, low=low, high=high, predict=predict)
    return _model(options, modalities, latent_dim=latent_dim, aggregator=fusion,
                  objective=objective)


def hivae(modalities: Modalities, latent_dim: int = 20, *, components: int | None = None,
          column_dim: int | None = 5, encoder: PartLike | None = "linear", beta: float = 1.0,
          warmup: int = 0, **options: Any) -> Model:
    """HI-VAE: columns of mixed kinds with gaps; p(s) p(z|s), and h_k(y_k, s) of each column k.

    `latent_dim` counts the numbers of the component s, one-hot, half of them by default, and of z:
    10 and 10, as in the paper. `column_dim` is the width of each y_k; None leaves the decoders
    that modalities have, `encoder=None` their encoders. Sums over s are exact. Numbers are to be
    standardised by transforms; docs/models.md has what else differs from the paper.

    Reference: Nazabal, Olmos, Ghahramani and Valera, 2020, https://arxiv.org/abs/1807.03653.
    """
    prior = parts.LabelledMoG(components=components)
    each = _each(modalities, encoder=encoder)
    for name, modality in each.items():
        if column_dim is not None:
            classes = getattr(modality.likelihood, "class_axis", False)
            decoder = parts.ByColumn(piece=column_dim, labels=prior.labels(latent_dim),
                                     together=classes and len(modality.shape) == 1)
            each[name] = attrs.evolve(modality, decoder=decoder)  # type: ignore[misc]
    return _model(options, each, latent_dim=latent_dim, aggregator="labelled_sum", prior=prior,
                  objective=parts.ELBO(kl_weight=beta), schedule=_warmup(warmup))


def nexus(modalities: Modalities, latent_dim: int = 10, *,
          bottom_dim: int | Mapping[str, int] = 8, message_dim: int = 64,
          dropout_rate: float = 0.7, bottom_beta: float = 1.0, top_beta: float = 0.2,
          gammas: Factors | None = None, scale: float | str = "optimal", warmup: int = 5,
          rescale: Rescale = None, **options: Any) -> Stack:
    """Nexus: one VAE per modality, and a mean-message model of their latents with dropout.

    `rescale` weighs the bottom; the top, whose data are latents, has `gammas`. `bottom_beta` times
    the `private_beta` of a modality is the factor of its KL. The top learns nothing where its KL
    costs more than the bottom's latents repay, which at first are noise: hence `top_beta` and
    `warmup`. docs/models.md has the settings of the paper and of the reference library.

    Reference: Vasco, Yin, Melo and Paiva, https://doi.org/10.1016/j.neunet.2021.11.019.
    """
    low, high = as_modalities(modalities), {}
    bottom_beta = check_number("nexus: bottom_beta", bottom_beta)
    if not isinstance(gammas or {}, Mapping):
        raise SpecError(f"got {gammas!r}; expected a mapping from modality to factor", "gammas")
    check_names(gammas or (), low, "gammas")
    if not isinstance(bottom_dim, Mapping):
        bottom_dim = dict.fromkeys(low, bottom_dim)
    check_names(bottom_dim, low, "bottom_dim")
    for name, modality in low.items():
        width = check_whole_number(f"nexus: bottom_dim of {name!r}", bottom_dim.get(name), 1)
        beta = bottom_beta * modality.private_beta
        low[name] = attrs.evolve(modality, private_dim=width, private_beta=beta)  # type: ignore[misc]
        gamma = (gammas or {}).get(name, 1.0)
        high[name] = Modality((width,), parts.Normal(scale=scale), weight=gamma)
    fusion = parts.MeanMessage(message_dim=message_dim, dropout_rate=dropout_rate)
    bottom = _model(options, low, latent_dim=0, rescale=rescale)
    above = {name: value for name, value in options.items() if name != "covariates"}
    top = _model(above, high, latent_dim=latent_dim, aggregator=fusion,
                 objective=parts.ELBO(kl_weight=top_beta))
    return Stack([bottom, top], schedule=_warmup(warmup))
