"""Model: encoders → aggregator → posterior → decoders and likelihoods, with a prior, from any parts.

Axes: n samples asked for, b rows, m modalities, d latent, p private latent, c clusters. Log-probabilities in nats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mvkit import estimates, generation
from mvkit.assembly import ModelSpec, assemble
from mvkit.batch import Batch, Layout, conform, refuse_empty
from mvkit.data.sources import as_batch
from mvkit.errors import RequestError, ShapeError, SpecError, suggest
from mvkit.experts import Experts
from mvkit.mixture import Mixture
from mvkit.modality import Modality, Sizes
from mvkit.objectives import Loss
from mvkit.priors import Prior
from mvkit.spec import as_part
from mvkit.terms import Terms, evaluate_terms

Names = Iterable[str] | None


class Model(nn.Module):
    """A multimodal generative model p(z) ∏_m p(x_m|z, w_m) with a posterior for any subset of modalities.

    Parts are named by a string, an object or a dict; `mvkit.available(kind)` lists them.

    Args:
        modalities: mapping from name to shape or `Modality`.
        latent_dim: width d of the shared latent; 0 only if every modality has a private latent.
        aggregator: what fuses the unimodal experts.
        prior: p(z).
        objective: what `loss` computes.
        family: distribution of the experts.
        rescale: factors of the log-likelihoods in objectives: None, `dims` (max_j d_j / d_m), or a mapping.
        private_from: rule of private latents, `evidence` or `observed`; None: the aggregator's.
        schedule: the stages that `fit` goes through.
        seed: makes the initial weights reproducible; None: torch's global state.

    Raises:
        SpecError: with the path of what cannot be built, why, and what would work.

    Example:
        >>> import torch, mvkit
        >>> model = mvkit.Model({"image": (1, 8, 8), "sound": (20,)}, latent_dim=4, aggregator="mopoe", seed=0)
        >>> x = {"image": torch.rand(3, 1, 8, 8)}            # no sound: it is imputed
        >>> model.translate(x, to=["sound"])["sound"].shape
        torch.Size([1, 3, 20])
    """

    def __init__(
        self,
        modalities: Mapping[str, Any],
        *,
        latent_dim: int = 10,
        aggregator: Any = "poe",
        prior: Any = "standard",
        objective: Any = "elbo",
        family: Any = "normal",
        rescale: Any = None,
        private_from: str | None = None,
        schedule: Any = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        options = {"aggregator": aggregator, "prior": prior, "objective": objective, "family": family}
        options |= {"rescale": rescale, "private_from": private_from, "schedule": schedule or "single"}
        try:
            spec = ModelSpec(modalities=modalities, latent_dim=latent_dim, **options)  # type: ignore[arg-type]
            with torch.random.fork_rng(devices=[], enabled=seed is not None):
                if seed is not None:
                    torch.manual_seed(seed)
                parts = assemble(spec)
        except SpecError as error:
            raise error.within("model") from None
        self.spec, self.modalities, self.names = parts.spec, spec.modalities, tuple(spec.modalities)
        self.latent_dim, self.width = latent_dim, parts.aggregator.width(latent_dim)
        self.family, self.aggregator, self.objective = parts.family, parts.aggregator, parts.objective
        self.encoders, self.decoders, self.prior, self.cross = parts.encoders, parts.decoders, parts.prior, parts.cross
        self.n_clusters = self.prior.clusters if isinstance(self.prior, Prior) else 0
        self._lambdas = parts.lambdas
        self._vectors: dict[Any, Tensor] = {}
        self._layouts: dict[torch.dtype, Layout] = {}

    # What objectives use.

    @property
    def layout(self) -> Layout:
        """What this model expects of a batch."""
        dtype = self._like.dtype
        if dtype not in self._layouts:
            shapes = {name: m.shape for name, m in self.modalities.items()}
            likelihoods = {name: decoder.likelihood for name, decoder in self.decoders.items()}
            self._layouts[dtype] = Layout(shapes, likelihoods, dtype)  # type: ignore[arg-type]
        return self._layouts[dtype]

    @property
    def _like(self) -> Tensor:
        """A tensor of the model's dtype and device."""
        floating = (p for p in self.parameters() if p.is_floating_point())
        return next(floating, torch.zeros(()))

    def conform(self, data: Any) -> Batch:
        """Data as a checked batch on the model's device; see `mvkit.batch.conform`."""
        return conform(as_batch(data), self.layout).to(self._like.device)

    def experts(self, batch: Batch, *, training: bool = False, generator: torch.Generator | None = None) -> Experts:
        """What the encoders make of a conformed batch; computed when first looked at."""
        return Experts(
            self.encoders,  # type: ignore[arg-type]
            self.modalities,
            batch,
            family=self.family,
            width=self.width,
            training=training,
            generator=generator,
        )

    def weights(self, extra: Mapping[str, float] | None = None) -> Tensor | None:
        """Factors λ of the log-likelihoods, times `extra`, (m,); None if all are 1."""
        return self._vector(tuple(self._lambdas[n] * (extra or {}).get(n, 1.0) for n in self.names))

    @property
    def private_betas(self) -> Tensor | None:
        """Factors of the private KLs, (m,); None if all are 1."""
        return self._vector(tuple(m.private_beta for m in self.modalities.values()))

    def _vector(self, values: tuple[float, ...]) -> Tensor | None:
        if all(value == 1 for value in values):
            return None
        like = self._like
        key = (values, like.dtype, like.device)
        if key not in self._vectors:
            self._vectors[key] = torch.tensor(values, dtype=like.dtype, device=like.device)
        return self._vectors[key]

    def terms(
        self,
        batch: Batch,
        n: int = 1,
        *,
        experts: Experts | None = None,
        posterior: Mixture | None = None,
        draw: str = "iid",
        reconstruct: str = "all",
        want: str = "kl",
        stop_density: bool = False,
    ) -> Terms:
        """Every log-density of a conformed batch at n draws of the posterior.

        Args:
            batch: a conformed batch.
            n: samples.
            experts: encoder outputs, if they are there already; their generator gives the noise.
            posterior: where z comes from; None: the aggregator's.
            draw: how components are drawn.
            reconstruct: `all` observed modalities, or each component's `own` evidence.
            want: `kl`: closed-form KLs, or the components' densities without one; `mixture`: p(z) and the
                mixture's density.
            stop_density: stop the gradient of log q's own parameters (DReG).
        """
        experts = experts or self.experts(batch)
        posterior = posterior or self.aggregator.forward(experts, batch)
        options: Any = {"draw": draw, "reconstruct": reconstruct, "want": want, "stop_density": stop_density}
        return evaluate_terms(self, batch, n, experts, posterior, **options)

    # What users call.

    def loss(self, batch: Batch, *, objective: Any = None, generator: torch.Generator | None = None) -> Loss:
        """The objective on a batch.

        Args:
            batch: rows that observe one modality at least.
            objective: another objective than the model's own.
            generator: source of randomness.

        Returns:
            loss (), bound (b,) and metrics.

        Raises:
            DataError: a row with nothing observed, or values that cannot be.
        """
        batch = self.conform(batch)
        refuse_empty(batch)
        if objective is not None:
            sizes = Sizes(self.latent_dim, self.family, self.modalities, self.spec.prior)
            objective = as_part("objective", objective).build(sizes)
        experts = self.experts(batch, training=self.training, generator=generator)
        return (objective or self.objective).forward(self, batch, experts)

    def forward(self, batch: Batch, **options: Any) -> Loss:
        """`loss`, so that wrappers such as DistributedDataParallel see it."""
        return self.loss(batch, **options)

    def posterior(self, batch: Any, given: Names = None, *, empty: str = "error") -> Mixture:
        """q(z|x_given), the mixture that bounds and likelihoods use.

        Args:
            batch: rows.
            given: modalities to look at; None: all that each row has; (): none, which gives the prior.
            empty: rows with none of them: `error`, or the `prior`.

        Returns:
            A mixture: rsample(n) (n, b, d), log_prob, mean, loc, scale, log_weight, evidence.
        """
        with estimates.evaluation(self):
            return estimates.condition(self, self.conform(batch), given, empty).posterior

    def encode(self, batch: Any, given: Names = None, *, empty: str = "error") -> Tensor:
        """Posterior mean of each row from whatever it has, or from `given`, (b, d).

        The aggregator says which posterior: mopoe takes the product of what is given, so that this need not equal
        `posterior().mean`.
        """

        def means(rows: Batch) -> Tensor:
            return estimates.condition(self, rows, given, empty, inference=True).posterior.mean

        return estimates.answer(self, means, batch)

    def private(self, batch: Any) -> dict[str, Tensor]:
        """Means of the private latents, {name: (b, p)}, zeros where unobserved."""

        def means(rows: Batch) -> dict[str, Tensor]:
            private = self.experts(rows).private
            shown = {name: rows.observed[:, [self.names.index(name)]] for name in private}
            return {name: torch.where(shown[name], loc, 0.0) for name, (loc, _) in private.items()}

        return estimates.answer(self, means, batch)

    def decode(self, z: Tensor, private: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Decoder means {name: (..., *shape)} at latents z (..., d) and private latents {name: (..., p)}.

        Private latents that are not given are 0, the mean of their prior. Gradients flow only to a z that asks for
        them.
        """
        for name in private or {}:
            if not self._modality(name).private_dim:
                raise RequestError(f"decode: modality {name!r} has no private latent; leave it out")
        if z.shape[-1:] != (self.latent_dim,):
            raise ShapeError(f"decode: z has shape {tuple(z.shape)}; expected (..., {self.latent_dim})")
        with estimates.evaluation(self), torch.set_grad_enabled(torch.is_grad_enabled() and z.requires_grad):
            return {name: generation.decode(self, name, z, (private or {}).get(name)) for name in self.names}

    def _modality(self, name: str) -> Modality:
        if name not in self.modalities:
            raise RequestError(f"unknown modality {name!r}; {suggest(name, self.names)}")
        return self.modalities[name]

    def translate(
        self,
        batch: Any,
        to: Names = None,
        given: Names = None,
        n: int = 1,
        *,
        latent: str = "draw",
        sample: bool = False,
        private_source: str = "prior",
        empty: str = "error",
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Modalities `to` generated from those `given`, {name: (n, b, *shape)}: imputation.

        Args:
            batch: rows.
            to: wanted modalities; None: all.
            given: modalities to look at; None: all that each row has.
            n: draws of z.
            latent: `draw` latents, or take their `mean`.
            sample: draw from the likelihood as well, instead of taking its mean.
            private_source: private latents of what was not given: from the `prior` p(w), or `cross`, from r_m.
            empty: rows with none of what is given: `error`, or generated from the `prior`.
            generator: source of randomness.
        """
        names = self.names if to is None else tuple(to)
        for name in names:
            self._modality(name)
        plan = generation.Translation(names, n, latent, sample, private_source, generator)

        def generate(rows: Batch) -> dict[str, Tensor]:
            found = estimates.condition(self, rows, given, empty, inference=True, generator=generator)
            return plan.generate(self, found)

        return estimates.answer(self, generate, batch, dim=1)

    def sample(
        self,
        n: int,
        *,
        cluster: int | None = None,
        sample: bool = False,
        latents: bool = False,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Rows from the prior, {name: (n, *shape)}: decoder means, or draws with `sample`.

        Args:
            n: number of rows.
            cluster: draw z from this component of a mixture prior.
            sample: draw from the likelihood as well.
            latents: return a pair (data, latents): z, private, cluster.
            generator: source of randomness.
        """
        if cluster is not None and not 0 <= cluster < self._clusters("sample(cluster=…)"):
            raise RequestError(f"sample: no cluster {cluster}; expected 0 to {self.n_clusters - 1}")
        with estimates.evaluation(self), torch.no_grad():
            made = generation.from_prior(self, n, cluster, sample=sample, generator=generator)
        return made if latents else made[0]

    def log_weights(
        self, batch: Batch, n: int, *, proposal: str = "mixture", generator: torch.Generator | None = None
    ) -> Tensor:
        """Log importance weights of n draws, (n, b): their log-mean-exp estimates log p of what each row has.

        Args:
            batch: rows; one with nothing observed gets 0.
            n: draws.
            proposal: `mixture`: iid draws of the posterior under its density; `product`: the product of the raw
                experts under its own.
            generator: source of randomness.
        """
        with estimates.evaluation(self), torch.no_grad():
            return torch.cat(list(estimates.weight_blocks(self, self.conform(batch), n, proposal, generator)))

    def log_likelihood(
        self,
        batch: Any,
        of: Names = None,
        given: Iterable[str] = (),
        n: int = 1000,
        *,
        estimator: str = "importance",
        proposal: str = "mixture",
        empty: str = "error",
        memory: int = estimates.MEMORY,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Log p(x_of | x_given) of each row in nats, (b,), by importance sampling.

        Args:
            batch: rows.
            of: modalities to score; None: all that is observed and not given. A row with none of them gets 0.
            given: modalities to condition on.
            n: draws.
            estimator: `importance`: joint(of ∪ given) - joint(given), each importance sampled; `predictive`:
                log-mean-exp of p(x_of|z), z ~ q(z|x_given), which is no bound on either side.
            proposal: see `log_weights`.
            empty: rows with none of `given`: `error`, or no condition at all with `prior`.
            memory: bytes that a block of decoded draws may take; n draws go block by block.
            generator: source of randomness.

        Reference: Burda, Grosse and Salakhutdinov, 2016, https://arxiv.org/abs/1509.00519; Wu and Goodman, 2018,
        https://arxiv.org/abs/1802.05335 (conditionals).
        """
        names = tuple(given)
        wanted = [k for k in self.names if k not in names] if of is None else list(of)
        for name in (*wanted, *names):
            self._modality(name)
        overlap = [name for name in wanted if name in names]
        if overlap:
            raise RequestError(f"log_likelihood: {overlap[0]!r} is both in `of` and in `given`; take it out of one")
        estimate = estimates.Query(self, tuple(wanted), names, n, estimator, proposal, empty, memory, generator)
        return estimates.answer(self, estimate, batch)

    def clusters(self, batch: Any, *, soft: bool = False, by_modality: bool = False) -> Any:
        """Clusters of rows under a mixture prior, deterministic.

        Each observed modality votes with p(c|z_m) at its own posterior mean.

        Args:
            batch: rows.
            soft: mean responsibilities (b, c) instead of the majority (b,), whose ties go to the largest mean.
            by_modality: {name: (b, c)} of each modality's own, NaN where unobserved.
        """
        self._clusters("clusters")

        def assign(rows: Batch) -> Any:
            refuse_empty(rows)
            return estimates.clusters(self, rows, soft=soft, by_modality=by_modality)

        return estimates.answer(self, assign, batch)

    def _clusters(self, what: str) -> int:
        if not self.n_clusters:
            raise RequestError(
                f"{what}: prior {type(self.spec.prior).__name__!r} has no components to assign rows to; "
                "make the model with a mixture prior, such as prior='mog'"
            )
        return self.n_clusters

    def __repr__(self) -> str:
        return estimates.describe(self)
