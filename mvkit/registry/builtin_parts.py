"""The parts that mvkit itself offers, declared through the hook that every package uses."""

from __future__ import annotations

from mvkit.registry.component import Component, hookimpl

# by kind: name, class, a few words for listings
BUILT_IN = """
[aggregator]
poe          mvkit.parts.aggregators.products:PoE           product of experts
moe          mvkit.parts.aggregators.mixtures:MoE           mixture of experts
mopoe        mvkit.parts.aggregators.mixtures:MoPoE         mixture of products over subsets
joint        mvkit.parts.aggregators.joint_encoder:Joint    joint encoder with unimodal surrogates
wasserstein  mvkit.parts.aggregators.barycentre:Wasserstein Wasserstein barycentre
gpoe         mvkit.parts.aggregators.products:GPoE       product with trained weights per dimension
set          mvkit.parts.aggregators.messages:Set           learned, permutation-invariant
top_down_poe mvkit.parts.top_down:TopDownPoE                a product of experts at each level
mean_message mvkit.parts.aggregators.messages:MeanMessage   mean of messages and a head
labelled_sum mvkit.parts.labelled_mixture:LabelledSum       components and z from zero-filled rows
[prior]
standard          mvkit.parts.priors:Standard         standard of the family
learnable         mvkit.parts.priors:Learnable        diagonal, trained
vamp              mvkit.parts.posterior_priors:Vamp posterior of trained pseudo-inputs
posterior_mixture mvkit.parts.posterior_priors:PosteriorMixture mixture of a row's posteriors
top_down          mvkit.parts.top_down:TopDown        levels of latents, each given those above
mog               mvkit.parts.priors:MoG              mixture of the family, trained
labelled_mog mvkit.parts.labelled_mixture:LabelledMoG mixture whose component decoders see
[objective]
elbo   mvkit.parts.objectives.elbo:ELBO                evidence lower bound
iwae   mvkit.parts.objectives.importance_weighted:IWAE importance-weighted bound
dreg   mvkit.parts.objectives.importance_weighted:DReG iwae, doubly reparametrised gradient
align  mvkit.parts.objectives.composite:Align          KL to the unimodal posteriors, or contrast
masked mvkit.parts.objectives.masked:Masked           observed cells that encoders do not see
mmd    mvkit.parts.objectives.mmd:MMD                  draws of the posterior against the prior's
sum    mvkit.parts.objectives.composite:Sum            weighted sum of objectives
telbo  mvkit.parts.objectives.published:TELBO          joint and unimodal bounds
jmvae  mvkit.parts.objectives.published:JMVAE          joint bound and alignment
levels mvkit.models.levels:Levels                      one objective per level of a stack
mvtcae mvkit.parts.objectives.published:MVTCAE         total correlation
crmvae mvkit.parts.objectives.published:CRMVAE         joint and unimodal reconstructions
meme   mvkit.parts.objectives.mutual:MEME              two modalities that supervise each other
jsd    mvkit.parts.objectives.jensen_shannon:JSD       Jensen-Shannon divergence, dynamic prior
adversary mvkit.parts.objectives.adversary:Adversary critic of modalities, and encoders against it
refine mvkit.parts.objectives.refining:Refine          refiners, in a stage of their own
[family]
normal          mvkit.parts.families:Normal         normal, log-variance
normal_softplus mvkit.parts.families:NormalSoftplus normal, softplus scale
laplace_softmax mvkit.parts.families:LaplaceSoftmax Laplace, scales summing to D
[likelihood]
normal      mvkit.parts.likelihoods.location_scale:Normal   scale fixed, trained, optimal, decoded
laplace     mvkit.parts.likelihoods.location_scale:Laplace  fixed, trained or decoded scale
bernoulli   mvkit.parts.likelihoods.discrete:Bernoulli      bits and grey values
categorical mvkit.parts.likelihoods.discrete:Categorical    classes
student_t   mvkit.parts.likelihoods.location_scale:StudentT heavy tails
poisson     mvkit.parts.likelihoods.counts:Poisson          counts, log-means
negative_binomial mvkit.parts.likelihoods.negative_binomial:NegativeBinomial counts, overdispersed
multinomial mvkit.parts.likelihoods.multinomial:Multinomial counts, given their total
ordinal     mvkit.parts.likelihoods.ordinal:Ordinal         ordered levels, trained thresholds
lognormal   mvkit.parts.likelihoods.positive:LogNormal      positive numbers, normal logarithms
gamma       mvkit.parts.likelihoods.positive:Gamma          positive numbers, means and shapes
beta        mvkit.parts.likelihoods.positive:Beta           numbers between 0 and 1
hazard      mvkit.parts.likelihoods.hazard:Hazard           times to an event, some censored
foreground_background mvkit.parts.likelihoods.background:ForegroundBackground counts on background
[missingness]
self     mvkit.parts.missingness:SelfMasking     each value decides whether it is missing
logistic mvkit.parts.missingness:LogisticMasking all values of a modality decide
[network]
linear mvkit.parts.networks:Linear one affine map
mlp    mvkit.parts.networks:MLP    fully connected
conv   mvkit.parts.networks:Conv   2-d convolutions
conv1d mvkit.parts.networks:Conv1d 1-d convolutions
tabular mvkit.parts.tabular:Tabular columns: piecewise linear codes, residual blocks
by_column mvkit.parts.tabular:ByColumn columns: one layer, cut into a piece for each
ard    mvkit.parts.relevance:ARD   linear or mlp, unneeded latents switched off
[schedule]
single              mvkit.training.stages:Single            one stage
joint_then_unimodal mvkit.training.stages:JointThenUnimodal joint encoder first, then the others
warmup_then_mixture mvkit.training.stages:WarmupThenMixture standard prior, then a placed mixture
[ramp]
linear   mvkit.training.annealing:Linear   straight to the end value
cosine   mvkit.training.annealing:Cosine   half a cosine
cyclical mvkit.training.annealing:Cyclical repeated linear ramps
[optimizer]
adam  mvkit.training.optimizers:Adam  fused Adam
adamw mvkit.training.optimizers:AdamW fused Adam, decoupled decay
sgd   mvkit.training.optimizers:SGD   gradient descent with momentum
[transform]
standardise mvkit.data.transforms:Standardise mean 0 and standard deviation 1
log1p       mvkit.data.transforms:Log1p       log(1 + x)
one_hot     mvkit.data.transforms:OneHot      categories to classes
binarise    mvkit.data.transforms:Binarise    bits, by a threshold or drawn
[sampler]
prior mvkit.parts.samplers:Prior the model's own prior
gmm   mvkit.parts.samplers:GMM   mixture of normals, fitted to latents
[refiner]
energy mvkit.parts.refiners:Energy residual network with noise, energy score
[metric]
likelihood     mvkit.evaluation.log_likelihood:Likelihood     joint, marginal, conditional
coherence      mvkit.evaluation.coherence:Coherence           classes of what is generated
probe          mvkit.evaluation.representation:Probe          linear classifier on latents
clusters       mvkit.evaluation.representation:Clusters       k-means and mixture against classes
latents        mvkit.evaluation.representation:Latents        active dimensions, private shares
reconstruction mvkit.evaluation.reconstruction:Reconstruction errors from all that is there
imputation     mvkit.evaluation.reconstruction:Imputation     errors from the others
calibration    mvkit.evaluation.reconstruction:Calibration    coverage of intervals
frechet        mvkit.evaluation.frechet:Frechet               distance of features
precision_recall mvkit.evaluation.neighbours:PrecisionRecall  samples where the data are
diversity      mvkit.evaluation.diversity:Diversity           distances of draws
agreement      mvkit.evaluation.agreement:Agreement           of all that is generated
[dataset]
polydigits      mvkit.data.datasets.catalogue:PolyDigits     five pictures of a digit, real images
linear_gaussian mvkit.data.datasets.catalogue:LinearGaussian known truth, for proofs
files           mvkit.data.datasets.own_files:OwnFiles       your own tables, mixed columns
[recipe]
telbo     mvkit.recipes:telbo     joint and unimodal bounds
jmvae     mvkit.recipes:jmvae     joint encoder, aligned with unimodal surrogates
cvae      mvkit.recipes:cvae      conditioned on covariates, in the prior too
mopoe     mvkit.recipes:mopoe     mixture of products over subsets
cmvae     mvkit.recipes:cmvae     clusters: mixture of experts, mixture prior, private latents
mvae      mvkit.recipes:mvae      product of experts, sub-sampled bounds
mmvae     mvkit.recipes:mmvae     mixture of Laplace experts, importance-weighted
mmvaeplus mvkit.recipes:mmvaeplus mmvae with private latents
mvtcae    mvkit.recipes:mvtcae    total correlation
dmvae     mvkit.recipes:dmvae     private and shared latents, crossed reconstructions
crmvae    mvkit.recipes:crmvae    joint and unimodal reconstructions
mmvm      mvkit.recipes:mmvm      a latent per modality, prior of the others' posteriors
jnf       mvkit.recipes:jnf       flows as unimodal encoders
mhvae     mvkit.recipes:mhvae     levels of latents
meme      mvkit.recipes:meme      two modalities that supervise each other
miwae     mvkit.recipes:miwae     gaps at random, importance-weighted
not_miwae mvkit.recipes:not_miwae gaps that depend on what is missing
masked    mvkit.recipes:masked    columns of tables, hidden cells predicted from the others
hivae     mvkit.recipes:hivae     columns of mixed kinds with gaps, latent clusters
mmjsd     mvkit.recipes:mmjsd     mixture of experts, Jensen-Shannon divergence
nexus     mvkit.recipes:nexus     two levels of models, messages with dropout
"""

# parts of packages that are installed apart, for the message that says which
EXTERNAL_PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "mvkit-datasets": {
        "dataset": (
            "fsdd",
            "mfeat",
            "mnist",
            "polymnist",
            "rosmap",
            "sign_digits",
            "spoken_digits",
        )
    },
    "mvkit-diffusion": {
        "objective": ("generative_augmentation", "mutual_information"),
        "recipe": ("d_cmvae", "idmvae", "mld"),
        "refiner": ("diffusion",),
        "sampler": ("latent_diffusion", "latent_flow"),
        "schedule": ("then_refine",),
    },
    "mvkit-flows": {"prior": ("maf", "nsf"), "aggregator": ("joint_flow",), "sampler": ("flow",)},
    "mvkit-fusion": {
        "aggregator": ("code", "hellinger", "hoelder", "mwb"),
        "objective": ("entropy",),
        "recipe": ("codevae", "helvae", "mwb"),
    },
    "mvkit-omics": {
        "aggregator": ("mean",),
        "likelihood": ("discretised_normal",),
        "network": ("last_latents",),
        "objective": ("consistency", "jeffreys", "latent_kl"),
        "recipe": ("cite_mopoe", "midas", "multivi", "scvi", "totalvi"),
        "schedule": ("warmup",),
    },
}


@hookimpl
def mvkit_components() -> list[Component]:
    """Every part of `BUILT_IN`."""
    components = []
    for line in BUILT_IN.strip().splitlines():
        if line.startswith("["):
            kind = line.strip("[]")
            continue
        name, target, summary = line.split(maxsplit=2)
        components.append(Component(kind, name, target, summary))
    return components
