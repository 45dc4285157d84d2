"""Published models of single cells, each a filled-in `Model`: what they are made of.

Every recipe takes counts as they are. Encoders see log1p of them; the library size of a cell is
observed, as the sum of its counts, and shared out among the genes. A covariate called `batch`
with levels goes into encoders and decoders; `batch` names another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from mvkit import Model, SpecError
from mvkit.core import ModalityLike, PartLike
from mvkit.core.modality import as_modalities
from mvkit.errors import suggest
from mvkit.parts import ELBO, MLP, MoPoE, PoE, Poisson, Sum
from mvkit_omics import roles
from mvkit_omics.fusion import Mean
from mvkit_omics.networks import LastLatents
from mvkit_omics.objectives import Consistency, Jeffreys, LatentKL
from mvkit_omics.roles import Hidden, Names
from mvkit_omics.schedules import Warmup

Modalities = Mapping[str, ModalityLike]


def scvi(
    modalities: Modalities,
    latent_dim: int = 10,
    *,
    batch: str | None = None,
    dispersion: str = "feature",
    zero_inflated: bool = True,
    library: str | None = "total",
    hidden: Hidden = (128,),
    warmup: int = 20,
    beta: float = 1.0,
    **options: Any,
) -> Model:
    """scVI: counts of genes x_g ~ ZINB(s ρ_g(z, batch), θ_g, π_g(z, batch)), ρ a softmax.

    The library size s is the observed sum of the counts; in the paper it is a latent with a
    lognormal prior. Several modalities of counts are fused by a product of experts.

    Args:
        modalities: counts of genes.
        latent_dim: width of z.
        batch: covariate with a level for each batch; None: the one called `batch`, if there is
            one.
        dispersion: one θ for each `feature`, `feature_and_level` of the batch, or `decoded`.
        zero_inflated: whether decoders emit π.
        library: exposure of the counts: `total`, the name of a covariate, or None.
        hidden: widths of hidden layers of networks that are left at their default; None: as they
            are.
        warmup: epochs in which the factor of the KL grows.
        beta: factor of the KL.
        options: of `Model`, such as `covariates=dataset.covariates`.

    Reference: Lopez, Regier, Cole, Jordan and Yosef, Deep generative modeling for single-cell
    transcriptomics, 2018, https://doi.org/10.1038/s41592-018-0229-2.
    """
    level = roles.batch_of(batch, options)
    likelihood = roles.negative_binomial(dispersion, level, zero_inflated=zero_inflated)
    each = {}
    for name, modality in as_modalities(modalities).items():
        each[name] = roles.counts(modality, likelihood, library, hidden)
    return roles.model_of(
        options,
        each,
        latent_dim,
        aggregator=PoE(prior_expert=False),
        objective=ELBO(kl_weight=beta),
        schedule=Warmup(epochs=warmup),
    )


def totalvi(
    modalities: Modalities,
    latent_dim: int = 20,
    *,
    proteins: Names = None,
    batch: str | None = None,
    dispersion: str = "feature",
    library: str | None = "total",
    aggregator: PartLike = "poe",
    hidden: Hidden = (256,),
    warmup: int = 20,
    beta: float = 1.0,
    **options: Any,
) -> Model:
    """totalVI: genes x_g ~ NB(s ρ_g(z, batch), θ_g); proteins of background and foreground.

    A protein is y_t ~ π NB(μ_t, φ_t) + (1 - π) NB((1 + exp(a)) μ_t, φ_t), π and a decoded from z
    and the batch. The background μ_t is one for each protein and batch, log μ_t with a normal
    posterior; in the paper each cell has a background of its own, and the prior is by batch. The
    library size is observed; in the paper it is a latent. Encoders are one for each modality,
    fused by `aggregator`, so that cells may lack either; in the paper one encoder sees both.

    Args:
        modalities: counts of genes and of proteins.
        latent_dim: width of z.
        proteins: which are proteins; None: those called adt, prot, protein or proteins.
        batch: covariate with a level for each batch; None: the one called `batch`, if there is
            one.
        dispersion: θ of genes: by `feature`, `feature_and_level` of the batch, or `decoded`.
        library: exposure of genes: `total`, the name of a covariate, or None.
        aggregator: what fuses the experts.
        hidden: widths of hidden layers of networks that are left at their default; None: as they
            are.
        warmup: epochs in which the factor of the KL grows.
        beta: factor of the KL.
        options: of `Model`, such as `covariates=dataset.covariates`.

    Reference: Gayoso et al., Joint probabilistic modeling of single-cell multi-omic data with
    totalVI, 2021, https://doi.org/10.1038/s41592-020-01050-x.
    """
    each = as_modalities(modalities)
    level = roles.batch_of(batch, options)
    genes = roles.negative_binomial(dispersion, level)
    background = roles.foreground_background(level)
    are_proteins = roles.members("proteins", proteins, each, roles.PROTEINS)
    if not are_proteins:
        raise SpecError(
            f"none of {list(each)} is called {', '.join(roles.PROTEINS)}; name the modalities of "
            "proteins, or take scvi",
            "proteins",
        )
    for name, modality in each.items():
        if name in are_proteins:
            each[name] = roles.counts(modality, background, None, hidden)
        else:
            each[name] = roles.counts(modality, genes, library, hidden)
    return roles.model_of(
        options,
        each,
        latent_dim,
        aggregator=aggregator,
        objective=ELBO(kl_weight=beta),
        schedule=Warmup(epochs=warmup),
    )


def multivi(
    modalities: Modalities,
    latent_dim: int = 20,
    *,
    peaks: Names = None,
    batch: str | None = None,
    dispersion: str = "feature",
    library: str | None = "total",
    alpha: float = 1.0,
    hidden: Hidden = (128,),
    warmup: int = 20,
    beta: float = 1.0,
    **options: Any,
) -> Model:
    """MultiVI: genes x_g ~ NB(s ρ_g(z, batch), θ_g), peaks x_j ~ Bernoulli(p_j(z, batch)).

    The posterior of a cell is the mean of its modalities' normals, by means and variances, and
    α Σ [KL(q_m ‖ q_n) + KL(q_n ‖ q_m)] over its pairs of modalities keeps these together, so that
    cells with one modality lie among those with both. The library size of genes is observed; in
    the paper it is encoded. In the paper p_j is a product with a factor of the peak, which biases
    of the decoder hold here, and one of the cell's depth, which z holds.

    Args:
        modalities: counts of genes, and peaks as bits (0 and 1, or transformed by `binarise`).
        latent_dim: width of z.
        peaks: which are peaks; None: those called atac or peaks.
        batch: covariate with a level for each batch; None: the one called `batch`, if there is
            one.
        dispersion: θ of genes: by `feature`, `feature_and_level` of the batch, or `decoded`.
        library: exposure of genes: `total`, the name of a covariate, or None.
        alpha: α.
        hidden: widths of hidden layers of networks that are left at their default; None: as they
            are.
        warmup: epochs in which the factors of both KLs grow; in the paper that to the prior
            alone, which leaves cells with two modalities little to say at first.
        beta: factor of the KL to the prior.
        options: of `Model`, such as `covariates=dataset.covariates`.

    Reference: Ashuach, Gabitto, Koodli, Saldi, Jordan and Yosef, MultiVI: deep generative model
    for the integration of multimodal data, 2023, https://doi.org/10.1038/s41592-023-01909-9.
    """
    genes = roles.negative_binomial(dispersion, roles.batch_of(batch, options))
    each = roles.genes_and_peaks(as_modalities(modalities), peaks, genes, library, hidden)
    objective = Sum(terms=(ELBO(kl_weight=beta), Jeffreys(alpha=alpha)))
    return roles.model_of(
        options,
        each,
        latent_dim,
        aggregator=Mean(),
        objective=objective,
        schedule=Warmup(epochs=warmup),
    )


def midas(
    modalities: Modalities,
    latent_dim: int = 34,
    *,
    batch: str = roles.BATCH,
    technical_dim: int = 2,
    peaks: Names = None,
    library: str | None = None,
    alpha: float = 50.0,
    batch_weight: float = 1000.0,
    technical_beta: float = 5.0,
    hidden: Hidden = (128,),
    warmup: int = 0,
    beta: float = 1.0,
    **options: Any,
) -> Model:
    """MIDAS: z = (c, u), biological and technical; the batch of a cell is one of its modalities.

    Counts x_g ~ Poisson(exp f_g(c, u)), peaks x_j ~ Bernoulli(f_j(c, u)), the batch
    b ~ Categorical(f(u)). The posterior is a product of experts, the batch's and the prior among
    them. What is maximised is Σ_m log p(x_m|z) + `batch_weight` log p(b|u) - β KL(q(c) ‖ p) -
    `technical_beta` KL(q(u) ‖ p) - α Σ_m E‖z_m - z̄‖², z_m ~ q(z|x_m, b). Left out are the
    discriminators that keep batches out of c, and the layers that the modalities' encoders and
    decoders share. Cells whose batch is new, or not told, lack that modality like any other.

    Args:
        modalities: counts, peaks as bits, and the batch as a class.
        latent_dim: width of z, of which u is the last part.
        batch: the modality of the batch.
        technical_dim: width of u.
        peaks: which are peaks; None: those called atac or peaks.
        library: exposure of the counts: None, as in the paper, where z holds the depth; `total`,
            or the name of a covariate.
        alpha: α.
        batch_weight: factor of the batch's log-likelihood.
        technical_beta: factor of the KL of u, at least `beta`.
        hidden: widths of hidden layers of networks that are left at their default; None: as they
            are.
        warmup: epochs in which the factors of both KLs and α grow.
        beta: factor of the KL of c.
        options: of `Model`.

    Reference: He et al., Mosaic integration and knowledge transfer of single-cell multimodal data
    with MIDAS, 2024, https://doi.org/10.1038/s41587-023-02040-y.
    """
    each = as_modalities(modalities)
    if batch not in each:
        raise SpecError(
            f"no modality {batch!r}; {suggest(batch, each)}; batches are a modality of classes "
            "here: add their indices to the data",
            "batch",
        )
    if technical_beta < beta:
        raise SpecError(f"got {technical_beta}; expected at least beta={beta}", "technical_beta")
    technical = each.pop(batch)
    each = roles.genes_and_peaks(each, peaks, Poisson(), library, hidden)
    network = LastLatents(dims=technical_dim)
    each[batch] = attrs.evolve(  # type: ignore[misc]
        technical,
        likelihood="categorical",
        encoder=network if technical.encoder == MLP() else technical.encoder,
        decoder=network,
        weight=batch_weight * technical.weight,
    )
    terms = [ELBO(kl_weight=beta), Consistency(alpha=alpha, anchor=batch)]
    terms.append(LatentKL(dims=technical_dim, alpha=technical_beta - beta))
    return roles.model_of(
        options,
        {name: each[name] for name in modalities},
        latent_dim,
        aggregator=PoE(),
        objective=Sum(terms=tuple(terms)),
        schedule=Warmup(epochs=warmup),
    )


def cite_mopoe(
    modalities: Modalities,
    latent_dim: int = 16,
    *,
    proteins: Names = None,
    peaks: Names = None,
    batch: str | None = None,
    encode_batch: bool = False,
    dispersion: str = "feature",
    library: str | None = "total",
    hidden: Hidden = (256,),
    warmup: int = 20,
    weight_decay: float = 0.3,
    beta: float = 2.0,
    **options: Any,
) -> Model:
    """Cells by a mixture of products of experts: every subset of modalities explains all of them.

    Counts of genes x_g ~ NB(s ρ_g(z, batch), θ_g), of proteins y_t ~ NB(exp f_t(z, batch), θ_t),
    peaks ~ Bernoulli. As each modality alone is trained to explain the others in cells that have
    them, what cells lack is imputed well from what they have.

    Args:
        modalities: counts of genes and of proteins, and peaks as bits.
        latent_dim: width of z.
        proteins: which are proteins; None: those called adt, prot, protein or proteins.
        peaks: which are peaks; None: those called atac or peaks.
        batch: covariate with a level for each batch; None: the one called `batch`, if there is
            one.
        encode_batch: whether encoders see the batch too. Those that do not give cells of all
            batches codes that mix better.
        dispersion: θ by `feature`, `feature_and_level` of the batch, or `decoded`.
        library: exposure of genes: `total`, the name of a covariate, or None.
        hidden: widths of hidden layers of networks that are left at their default; None: as they
            are.
        warmup: epochs in which the factor of the KL grows.
        weight_decay: of AdamW; so much of it and a `beta` above 1 keep a few hundred pairs of
            cells from being learnt by heart.
        beta: factor of the KL.
        options: of `Model`, such as `covariates=dataset.covariates`.

    Reference: Sutter, Daunhawer and Vogt, Generalized Multimodal ELBO, 2021,
    https://arxiv.org/abs/2105.02470, with likelihoods as of `scvi`.
    """
    each = as_modalities(modalities)
    batch = roles.batch_of(batch, options)
    likelihood = roles.negative_binomial(dispersion, batch)
    if not encode_batch:
        options = roles.blind_encoders(batch, options)
    are_proteins = roles.members("proteins", proteins, each, roles.PROTEINS)
    each = roles.genes_and_peaks(each, peaks, likelihood, library, hidden)
    for name in are_proteins:
        each[name] = roles.counts(each[name], likelihood, None, hidden)
    return roles.model_of(
        options,
        each,
        latent_dim,
        aggregator=MoPoE(),
        objective=ELBO(kl_weight=beta),
        schedule=Warmup(epochs=warmup, weight_decay=weight_decay),
    )
