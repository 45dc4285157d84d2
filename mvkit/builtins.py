"""The parts that mvkit itself offers, declared through the hook that every package uses."""

from __future__ import annotations

from mvkit.plugins import Component, hookimpl

DECLARED = {
    "aggregator": {
        "poe": ("mvkit.aggregators:PoE", "product of experts"),
        "moe": ("mvkit.aggregators:MoE", "mixture of experts"),
        "mopoe": ("mvkit.aggregators:MoPoE", "mixture of products over subsets"),
        "joint": ("mvkit.joint:Joint", "joint encoder with unimodal surrogates"),
        "wasserstein": ("mvkit.fusion:Wasserstein", "Wasserstein barycentre"),
        "gpoe": ("mvkit.fusion:GPoE", "product with trained weights per dimension"),
        "set": ("mvkit.fusion:Set", "learned, permutation-invariant"),
        "top_down_poe": ("mvkit.hierarchy:TopDownPoE", "a product of experts at each level"),
        "mean_message": ("mvkit.joint:MeanMessage", "mean of messages and a head"),
    },
    "prior": {
        "standard": ("mvkit.priors:Standard", "standard of the family"),
        "learnable": ("mvkit.priors:Learnable", "diagonal, trained"),
        "vamp": ("mvkit.priors:Vamp", "posterior of trained pseudo-inputs"),
        "posterior_mixture": ("mvkit.priors:PosteriorMixture", "mixture of the row's unimodal posteriors"),
        "top_down": ("mvkit.hierarchy:TopDown", "levels of latents, each given those above"),
        "mog": ("mvkit.priors:MoG", "mixture of the family, trained"),
    },
    "objective": {
        "elbo": ("mvkit.objectives:ELBO", "evidence lower bound"),
        "iwae": ("mvkit.objectives:IWAE", "importance-weighted bound"),
        "dreg": ("mvkit.objectives:DReG", "iwae, doubly reparametrised gradient"),
        "align": ("mvkit.objectives:Align", "KL to the unimodal posteriors"),
        "sum": ("mvkit.objectives:Sum", "weighted sum of objectives"),
        "telbo": ("mvkit.composed:TELBO", "joint and unimodal bounds"),
        "jmvae": ("mvkit.composed:JMVAE", "joint bound and alignment"),
        "levels": ("mvkit.stack:Levels", "one objective a level of a stack"),
        "mvtcae": ("mvkit.composed:MVTCAE", "total correlation"),
        "crmvae": ("mvkit.composed:CRMVAE", "joint and unimodal reconstructions"),
    },
    "family": {
        "normal": ("mvkit.families:Normal", "normal, log-variance"),
        "normal_softplus": ("mvkit.families:NormalSoftplus", "normal, softplus scale"),
        "laplace_softmax": ("mvkit.families:LaplaceSoftmax", "Laplace, scales summing to D"),
    },
    "likelihood": {
        "normal": ("mvkit.likelihoods:Normal", "fixed, trained or optimal scale"),
        "laplace": ("mvkit.likelihoods:Laplace", "fixed or trained scale"),
        "bernoulli": ("mvkit.likelihoods:Bernoulli", "bits and grey values"),
        "categorical": ("mvkit.likelihoods:Categorical", "classes"),
        "student_t": ("mvkit.likelihoods:StudentT", "heavy tails"),
    },
    "network": {
        "linear": ("mvkit.networks:Linear", "one affine map"),
        "mlp": ("mvkit.networks:MLP", "fully connected"),
        "conv": ("mvkit.networks:Conv", "2-d convolutions"),
        "conv1d": ("mvkit.networks:Conv1d", "1-d convolutions"),
    },
    "schedule": {
        "single": ("mvkit.stages:Single", "one stage"),
        "joint_then_unimodal": ("mvkit.stages:JointThenUnimodal", "joint encoder first, then the others"),
    },
    "ramp": {
        "linear": ("mvkit.stages:Linear", "straight to the end value"),
        "cosine": ("mvkit.stages:Cosine", "half a cosine"),
        "cyclical": ("mvkit.stages:Cyclical", "repeated linear ramps"),
    },
    "optimizer": {
        "adam": ("mvkit.stages:Adam", "fused Adam"),
        "adamw": ("mvkit.stages:AdamW", "fused Adam, decoupled decay"),
    },
    "transform": {
        "standardise": ("mvkit.data.transforms:Standardise", "mean 0 and standard deviation 1"),
        "log1p": ("mvkit.data.transforms:Log1p", "log(1 + x)"),
        "one_hot": ("mvkit.data.transforms:OneHot", "categories to classes"),
        "binarise": ("mvkit.data.transforms:Binarise", "bits, by a threshold or drawn"),
    },
    "sampler": {
        "prior": ("mvkit.samplers:Prior", "the model's own prior"),
        "gmm": ("mvkit.samplers:GMM", "mixture of normals, fitted to latents"),
    },
    "metric": {
        "likelihood": ("mvkit.evaluation.likelihood:Likelihood", "joint, marginal, conditional"),
        "coherence": ("mvkit.evaluation.coherence:Coherence", "classes of what is generated"),
        "probe": ("mvkit.evaluation.representation:Probe", "linear classifier on latents"),
        "clusters": ("mvkit.evaluation.representation:Clusters", "k-means and mixture against classes"),
        "latents": ("mvkit.evaluation.representation:Latents", "active dimensions, private shares"),
        "reconstruction": ("mvkit.evaluation.reconstruction:Reconstruction", "errors from all that is there"),
        "imputation": ("mvkit.evaluation.reconstruction:Imputation", "errors from the others"),
        "calibration": ("mvkit.evaluation.reconstruction:Calibration", "coverage of intervals"),
        "frechet": ("mvkit.evaluation.frechet:Frechet", "distance of features"),
    },
    "dataset": {
        "polydigits": ("mvkit.data.datasets:PolyDigits", "five pictures of a digit, real images"),
        "linear_gaussian": ("mvkit.data.datasets:LinearGaussian", "known truth, for proofs"),
        "mnist": ("mvkit.data.real:MNIST", "handwritten digits and their labels"),
        "fsdd": ("mvkit.data.real:FSDD", "spoken digits as log-mel pictures"),
        "sign_digits": ("mvkit.data.real:SignDigits", "photographs of signed digits"),
        "mfeat": ("mvkit.data.real:MFeat", "six descriptions of a digit"),
        "rosmap": ("mvkit.data.real:ROSMAP", "three omics, Alzheimer's disease"),
        "polymnist": ("mvkit.data.paired:PolyMNIST", "five pictures of a digit over photographs"),
        "spoken_digits": ("mvkit.data.paired:SpokenDigits", "a digit written, spoken and signed"),
    },
}

# parts of packages that are installed apart, for the message that says which
ELSEWHERE = {"mvkit-flows": {"prior": ("maf", "nsf"), "aggregator": ("joint_flow",), "sampler": ("flow",)}}


@hookimpl
def mvkit_components() -> list[Component]:
    """Everything in `DECLARED`."""
    return [
        Component(kind, name, target, summary)
        for kind, parts in DECLARED.items()
        for name, (target, summary) in parts.items()
    ]
