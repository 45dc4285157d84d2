"""Model: encoders → aggregator → posterior → decoders and likelihoods, with a prior.

Axes: b rows, m modalities, d latent, p private latent, k components, c pseudo-inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, cast

import attrs
import torch
from torch import Tensor, nn

from mvkit.core.batch import Batch
from mvkit.core.completion import completion
from mvkit.core.covariates import Conditions, CovariateLike, Level, Side
from mvkit.core.decoder import Decoder
from mvkit.core.decoding import Decoding
from mvkit.core.experts import Experts
from mvkit.core.mixture import Mixture
from mvkit.core.modality import Modality, ModalityLike, PartLike, ScheduleLike, Sizes
from mvkit.core.noise import Generator
from mvkit.core.posterior import Draws, Posterior
from mvkit.core.terms import Draw, Reconstruct, Terms, Want
from mvkit.core.validation import Schema
from mvkit.errors import SpecError
from mvkit.models import (
    clusters,
    description,
    exported,
    generation,
    importance_sampling,
    inference,
    objective_modules,
    relevance,
    weighted_draws,
)
from mvkit.models.added_levels import check_addable, grow, modalities_with_more_levels
from mvkit.models.build import ModelSpec, sizes_of
from mvkit.models.multimodal import MultimodalModel
from mvkit.models.part_checks import assembled
from mvkit.models.refiners import check_no_growth, refiner_header
from mvkit.models.swapped_modules import (
    architecture,
    check_changes,
    digest_of_weights,
    with_swapped_networks,
)
from mvkit.parts.objectives.objective import Objective
from mvkit.parts.priors import as_prior
from mvkit.registry import plugins
from mvkit.registry.spec import as_part, to_dict


class Model(MultimodalModel):
    """A generative model p(z) ∏_m p(x_m|z, w_m) with a posterior for any subset of modalities.

    Parts are named by a string, an object or a dict; `mvkit.available(kind)` lists them.

    Args:
        modalities: mapping from name to shape or `Modality`.
        latent_dim: width d of the shared latent; 0 only if every modality has a private latent.
        aggregator: what fuses the unimodal experts.
        prior: p(z).
        objective: what `loss` computes.
        family: distribution of the experts.
        rescale: factors of the log-likelihoods: None, `dims` (max_j d_j / d_m), or a mapping.
        private_from: rule of private latents, `evidence` or `observed`; None: the aggregator's.
        schedule: the stages that `fit` goes through.
        covariates: what all is conditioned on, p(x, z | covariates): {name: `Covariate`}.
        missingness: why values are missing, where that depends on the values themselves; None:
            missing at random.
        seed: makes the initial weights reproducible; None: torch's global state.

    Raises:
        SpecError: with the path of what cannot be built, why, and what would work.

    Example:
        >>> import torch, mvkit
        >>> shapes = {"image": (1, 8, 8), "sound": (20,)}
        >>> model = mvkit.Model(shapes, latent_dim=4, aggregator="mopoe", seed=0)
        >>> x = {"image": torch.rand(3, 1, 8, 8)}  # no sound: it is imputed
        >>> model.translate(x, to=["sound"])["sound"].shape
        torch.Size([1, 3, 20])
    """

    spec: ModelSpec
    decoding: Decoding
    order: Tensor

    def __init__(
        self,
        modalities: Mapping[str, ModalityLike],
        *,
        latent_dim: int = 10,
        aggregator: PartLike = "poe",
        prior: PartLike = "standard",
        objective: PartLike = "elbo",
        family: PartLike = "normal",
        rescale: Literal["dims"] | Mapping[str, float] | None = None,
        private_from: Literal["evidence", "observed"] | None = None,
        schedule: ScheduleLike | None = None,
        covariates: Mapping[str, CovariateLike] | None = None,
        missingness: PartLike | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        parts = assembled(
            seed,
            modalities=modalities,
            latent_dim=latent_dim,
            aggregator=aggregator,
            prior=prior,
            objective=objective,
            family=family,
            rescale=rescale,
            private_from=private_from,
            schedule=schedule or "single",
            covariates={} if covariates is None else covariates,
            missingness=missingness,
        )
        self.spec = parts.spec
        self.modalities = parts.spec.modalities
        self.names = tuple(self.modalities)
        self.latent_dim = latent_dim
        self.family = parts.family
        self.aggregator = parts.aggregator
        self.width = parts.aggregator.width(latent_dim)  # numbers for the aggregator
        self.objective = parts.objective
        self.encoders = parts.encoders
        self.decoders = parts.decoders
        self.prior = cast(nn.Module, parts.prior)
        self.cross = parts.cross
        self.conditions = parts.conditions
        self.objectives = parts.objectives
        self.adopted: list[Objective] = []  # specs whose modules were made after the model
        self.decoding = parts.decoding
        self.missingness = parts.missingness
        self.prior_name = str(plugins.name_of("prior", type(self.spec.prior)))
        self.bound_name = parts.bound_name
        self.n_clusters = as_prior(self.prior).clusters
        self.register_buffer("order", torch.tensor(parts.order), persistent=False)
        self._likelihood_weights = parts.likelihood_weights
        self._vectors: dict[object, Tensor] = {}
        self._schemas: dict[torch.dtype, Schema] = {}
        self._remember_how_it_was_built(seeded=seed is not None)

    @property
    def schema(self) -> Schema:
        dtype = self.like.dtype
        if dtype not in self._schemas:
            self._schemas[dtype] = Schema.of(
                self.modalities, self.decoders, dtype, self.spec.covariates
            )
        return self._schemas[dtype]

    def experts(
        self,
        batch: Batch,
        *,
        training: bool = False,
        context: Tensor | None = None,
        generator: Generator = None,
    ) -> Experts:
        return Experts(
            cast(Mapping[str, nn.Module], self.encoders),
            self.modalities,
            batch,
            family=self.family,
            width=self.width,
            training=training,
            context=self._context(batch, "encoders") if context is None else context,
            generator=generator,
        )

    def exported_means(self, batch: Batch, names: tuple[str, ...]) -> Tensor:
        return exported.means(self, self.schema, batch, names)

    def _context(self, batch: Batch, side: Side) -> Tensor | None:
        """What a side sees of the covariates of a conformed batch, (b, c); None: nothing."""
        if self.conditions is None:
            return None
        return self.conditions.context(batch.covariates, side)

    def joint_posterior(self, batch: Batch, experts: Experts) -> Posterior:
        """The aggregator's posterior q(z|x_O); that of the experts' own batch is computed once."""
        if batch is not experts.batch:
            return self.aggregator.forward(experts, batch)
        return experts.joint_posterior(self.aggregator.forward)

    def prior_at(
        self,
        experts: Experts | None = None,
        posterior: Posterior | None = None,
        context: Tensor | None = None,
    ) -> Posterior:
        """p(z): of rows whose experts and posterior are given, or whose `prior_context`, if it
        depends on them.
        """
        prior = as_prior(self.prior)
        if prior.pseudo_inputs is not None:
            posterior = inference.aggregated_posterior(self, prior, self.schema)
        elif experts is not None:
            if prior.conditional:
                posterior = self.joint_posterior(experts.batch, experts)
            context = self.prior_context(experts.batch.covariates)
        return prior.density(cast(Mixture | None, posterior), context)

    def prior_context(self, covariates: Mapping[str, Tensor]) -> Tensor | None:
        """What the prior sees of rows with these covariates, (b, c); None: nothing."""
        if self.conditions is None or not covariates:
            return None
        return self.conditions.context(covariates, "prior")

    def likelihood_weights(self, extra: Mapping[str, float] | None = None) -> Tensor | None:
        """Factors λ of the log-likelihoods, times `extra`, (m,); None if all are 1."""
        extra = extra or {}
        own = self._likelihood_weights
        return self._vector(tuple(own[name] * extra.get(name, 1.0) for name in self.names))

    @property
    def private_betas(self) -> Tensor | None:
        """Factors of the private KLs, (m,); None if all are 1."""
        return self._vector(tuple(m.private_beta for m in self.modalities.values()))

    def _vector(self, values: tuple[float, ...]) -> Tensor | None:
        """Numbers as a tensor on the model's device, made once; None if all are 1."""
        if all(value == 1 for value in values):
            return None
        like = self.like
        key = (values, like.dtype, like.device)
        if key not in self._vectors:
            with torch.inference_mode(False):  # kept for training too
                self._vectors[key] = torch.tensor(values, dtype=like.dtype, device=like.device)
        return self._vectors[key]

    def terms(
        self,
        batch: Batch,
        n: int = 1,
        *,
        experts: Experts | None = None,
        posterior: Posterior | None = None,
        draw: Draw = "iid",
        reconstruct: Reconstruct = "all",
        want: Want = "kl",
        stop_density: bool = False,
        private_from: str | None = None,
    ) -> Terms:
        """Every log-density of a conformed batch at n draws of the posterior.

        Args:
            batch: a conformed batch.
            n: samples.
            experts: encoder outputs, if they are there already; their generator gives the noise.
            posterior: where z comes from; None: the aggregator's.
            draw: how components are drawn.
            reconstruct: `all` observed modalities, or each component's `own` evidence.
            want: `kl`: closed-form KLs, or the components' densities without one; `mixture`: p(z)
                and the mixture's density.
            stop_density: stop the gradient of log q's own parameters but component weights (DReG).
            private_from: rule of the private latents; None: the model's.
        """
        experts = experts or self.experts(batch)
        posterior = posterior or self.joint_posterior(batch, experts)
        _check_draw(posterior, draw)
        draws = posterior.draw(n, draw, experts.generator)
        prior = self.prior_at(experts, posterior)
        kl = draws.kl(prior) if want == "kl" else None
        used = draws.evidence & batch.observed if reconstruct == "own" else batch.observed
        rule = private_from or self.decoding.private_from
        private = self.decoding.draw_private(experts, draws, used, rule, stop_density=stop_density)
        at = (draws.z, private.w)
        complete = completion(self, batch, *at, experts.generator)
        log_px = self.decoding.log_px(batch, *at, used, _weight(draws), complete.outputs)
        log_pz = log_qz = log_qk = None
        if kl is None:
            log_pz = prior.log_prob(draws.z)
        if want == "mixture":
            density = posterior.stop_density() if stop_density else posterior
            log_qz = density.log_prob(draws.z)
        elif kl is None:
            log_qk = draws.log_qk
        log_pi = (draws.log_pi, posterior.log_weight)
        densities = (log_pz, log_qz, log_qk, kl)
        hook = partial(private.scale_gradients, draws.z)
        of_private = (private.log_ratio, private.kl)
        return Terms(log_px, *log_pi, *densities, *of_private, complete.log_ps, hook)

    def build_objective(self, objective: PartLike) -> Objective:
        live: Objective = as_part("objective", objective).build(self.sizes)
        return live

    @property
    def sizes(self) -> Sizes:
        """What parts are told of the model."""
        sizes = sizes_of(self.spec, self.family, self.conditions)
        return attrs.evolve(sizes, live_prior=self.prior)

    conditional_posteriors = inference.conditional_posteriors
    prior_draws = generation.prior_draws
    generate = weighted_draws.generate
    weight_blocks = importance_sampling.weight_blocks
    predictive_blocks = importance_sampling.predictive_blocks
    responsibilities = clusters.responsibilities
    adopt = objective_modules.adopt
    trains_modules_of = objective_modules.trains_modules_of
    trained = objective_modules.trained
    relevance = relevance.relevance
    __repr__ = description.describe

    def header(self) -> dict[str, Any]:
        # the file's keys are sorted, and columns of masks follow the order
        order = list(self.names)
        spec = {**to_dict(self.spec), "modalities": to_dict(self.current_modalities())}
        header = {"name": "model", "order": order, **spec, **self.sampler_header()}
        header |= refiner_header(self)
        header |= self.rows_header()
        if self.conditions is not None:
            header["covariate_rows"] = len(self.conditions.rows)
        if self.adopted:
            header["objectives"] = [to_dict(objective) for objective in self.adopted]
        return header

    def current_modalities(self) -> dict[str, Modality]:
        """The modalities, with the networks that replaced those that were built."""
        changes = self.changes()
        return with_swapped_networks(self.modalities, self.encoders, self.decoders, changes)

    def adopted_objectives(self) -> list[Objective]:
        return list(self.adopted)

    def add_level(self, covariate: str, level: Level, *, like: Level = "average") -> None:
        """Gives a covariate a new level: every network that sees it then has weights for it.

        `fit` with `Stage(trainable=["covariates.<covariate>.<level>"])` trains these alone, and
        what likelihoods keep by level.

        Args:
            covariate: its name.
            level: the new level.
            like: the level that it begins like, or the `average` by shares of training.

        Raises:
            RequestError: no such covariate, a level that is there, or modules of the user's.
        """
        check_addable(self.conditions, covariate, level, like)
        objective_modules.check_growth(self, covariate)
        check_no_growth(self, "add_level")
        grow(self, covariate, level, like)
        conditions = cast(Conditions, self.conditions)
        modalities = modalities_with_more_levels(self.modalities, covariate)
        self.modalities.update(modalities)
        self.spec = attrs.evolve(  # type: ignore[misc]
            self.spec, covariates=dict(conditions.covariates), modalities=modalities
        )
        for decoder in self.decoders.values():
            cast(Decoder, decoder).context = conditions.width("decoders")
        self._schemas.clear()
        self._remember_how_it_was_built(seeded=False)

    def _remember_how_it_was_built(self, *, seeded: bool) -> None:
        self.built_as = architecture(self, self.spec)
        self.seeded_weights = digest_of_weights(self) if seeded else None

    def note_new(self, kind: str) -> None:
        """Takes the `prior`, or the modules of `objectives`, as they are now for what the model
        was made with.
        """
        if self.built_as is not None:
            now = architecture(self, self.spec)
            rest = {k: part for k, part in self.built_as.items() if not k.startswith(kind)}
            parts = {k: part for k, part in now.items() if k.startswith(kind)}
            self.built_as = {**rest, **parts}

    def check_savable(self) -> None:
        check_changes(self.changes(), self.current_modalities())


def _weight(draws: Draws) -> Tensor | None:
    """How much each draw counts, (j, b); None if all count alike."""
    active = draws.posterior.active
    if active is None and len(draws.log_pi) == 1:
        return None
    weight = draws.log_pi.detach().exp()
    return weight if active is None else weight * active


def _check_draw(posterior: Posterior, draw: Draw) -> None:
    """Raises SpecError if draws would leave trained component weights without gradient."""
    trained = len(posterior.log_weight) > 1 and posterior.log_weight.requires_grad
    if draw != "stratified" and trained:
        raise SpecError(
            f"got {draw!r}, which leaves trained component weights, as this aggregator has, "
            "without gradient; take draw='stratified', or torch.no_grad() where none is wanted",
            "draw",
        )
