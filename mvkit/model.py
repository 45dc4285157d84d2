"""Model: encoders → aggregator → posterior → decoders and likelihoods, with a prior, from any parts.

Axes: b rows, m modalities, d latent, p private latent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from mvkit import estimates, generation
from mvkit.assembly import ModelSpec, assemble
from mvkit.batch import Batch, indices_of
from mvkit.errors import SpecError
from mvkit.estimates import Asked, Condition
from mvkit.experts import Experts
from mvkit.generation import Translation
from mvkit.generative import Generative
from mvkit.mixture import Mixture
from mvkit.modality import Sizes
from mvkit.objectives import Objective
from mvkit.posterior import Posterior
from mvkit.priors import Prior
from mvkit.spec import as_part, to_dict
from mvkit.terms import Terms, evaluate_terms
from mvkit.values import Layout


class Model(Generative):
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

    order: Tensor

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
                    torch.default_generator.manual_seed(seed)  # modules are made on the CPU
                parts = assemble(spec)
        except SpecError as error:
            raise error.within("model") from None
        self.spec, self.modalities, self.names = parts.spec, spec.modalities, tuple(spec.modalities)
        self.latent_dim, self.width = latent_dim, parts.aggregator.width(latent_dim)
        self.family, self.aggregator, self.objective = parts.family, parts.aggregator, parts.objective
        self.encoders, self.decoders, self.prior, self.cross = parts.encoders, parts.decoders, parts.prior, parts.cross
        self.n_clusters = self.prior.clusters if isinstance(self.prior, Prior) else 0
        # an order of the modalities that declaring them otherwise does not change
        self.register_buffer("order", torch.tensor(parts.order), persistent=False)
        self._lambdas = parts.lambdas
        self._vectors: dict[Any, Tensor] = {}
        self._layouts: dict[torch.dtype, Layout] = {}

    @property
    def layout(self) -> Layout:
        """What this model expects of a batch."""
        dtype = self.like.dtype
        if dtype not in self._layouts:
            shapes = {name: m.shape for name, m in self.modalities.items()}
            likelihoods = {name: decoder.likelihood for name, decoder in self.decoders.items()}
            features = {name: m.features for name, m in self.modalities.items()}
            steps = {name: m.transform for name, m in self.modalities.items()}
            self._layouts[dtype] = Layout(shapes, likelihoods, dtype, features, steps)  # type: ignore[arg-type]
        return self._layouts[dtype]

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

    def fused(self, batch: Batch, experts: Experts) -> Posterior:
        """The aggregator's posterior; of the experts' own batch it is made once, however many terms ask for it."""
        kept = experts.fused if batch is experts.batch else None
        found: Posterior = self.aggregator.forward(experts, batch) if kept is None else kept
        if batch is experts.batch:
            experts.fused = found
        return found

    def prior_at(self, experts: Experts | None = None, posterior: Any = None) -> Any:
        """p(z): of rows whose experts and posterior are given, if it depends on them."""
        prior = self.prior
        if not isinstance(prior, Prior):
            return prior(posterior)
        if prior.pseudo_inputs is not None:
            posterior = self._folded(prior.pseudo_inputs)
        elif prior.conditional and experts is not None:
            posterior = self.fused(experts.batch, experts)
        return prior.forward(posterior)

    def _folded(self, inputs: dict[str, Tensor]) -> Mixture:
        """The posteriors of rows as one mixture, each row with the same weight."""
        c = len(next(iter(inputs.values())))
        mask = torch.ones(c, len(self.names), dtype=torch.bool, device=self.like.device)
        rows = Batch(inputs, mask, layout=self.layout, **indices_of(mask))
        each: Any = self.aggregator.forward(self.experts(rows), rows)
        loc, scale = (rearrange(t, "k c d -> (k c) 1 d") for t in (each.loc, each.scale))
        return Mixture(self.family, loc, scale, rearrange(each.log_weight - math.log(c), "k c -> (k c) 1"))

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
        draw: str = "iid",
        reconstruct: str = "all",
        want: str = "kl",
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
            want: `kl`: closed-form KLs, or the components' densities without one; `mixture`: p(z) and the
                mixture's density.
            stop_density: stop the gradient of log q's own parameters (DReG).
            private_from: rule of the private latents; None: the model's.
        """
        experts = experts or self.experts(batch)
        posterior = posterior or self.fused(batch, experts)
        options: Any = {"draw": draw, "reconstruct": reconstruct, "want": want, "stop_density": stop_density}
        options["private_from"] = private_from
        return evaluate_terms(self, batch, n, experts, posterior, **options)

    def build_objective(self, objective: Any) -> Objective:
        """See `Mechanism.build_objective`."""
        sizes = Sizes(self.latent_dim, self.family, self.modalities, self.spec.prior)
        made: Objective = as_part("objective", objective).build(sizes)
        return made

    def conditions(self, rows: Batch, asked: Asked) -> Iterator[Condition]:
        """See `Mechanism.conditions`."""
        return estimates.conditions(self, rows, asked)

    def decode_one(
        self, name: str, z: Tensor, w: Tensor | None, *, sample: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """See `Mechanism.decode_one`."""
        return generation.decode(self, name, z, w, sample=sample, generator=generator)

    def prior_draws(
        self, n: int, cluster: int | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        """See `Mechanism.prior_draws`."""
        return generation.prior_draws(self, n, cluster, generator)

    def from_latents(
        self, z: Tensor, *, sample: bool, generator: torch.Generator | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See `Mechanism.from_latents`."""
        return generation.from_latents(self, z, sample=sample, generator=generator)

    def generate(self, plan: Translation, found: Condition) -> dict[str, Tensor]:
        """See `Mechanism.generate`."""
        return generation.translate(self, plan, found)

    def weight_blocks(
        self, batch: Batch, n: int, proposal: str, generator: torch.Generator | None, memory: int | None
    ) -> Iterator[Tensor]:
        """See `Mechanism.weight_blocks`."""
        return estimates.weight_blocks(self, batch, n, proposal, generator, memory)

    def predictive_blocks(
        self, batch: Batch, posterior: Posterior, n: int, generator: torch.Generator | None, memory: int | None
    ) -> Iterator[Tensor]:
        """See `Mechanism.predictive_blocks`."""
        return estimates.predictive_blocks(self, batch, posterior, n, generator, memory)

    def assign(self, rows: Batch, *, soft: bool, by_modality: bool) -> Any:
        """See `Mechanism.assign`."""
        return estimates.clusters(self, rows, soft=soft, by_modality=by_modality)

    def header(self) -> dict[str, Any]:
        """The model as plain JSON data, all defaults written out."""
        # the file's keys are sorted, and columns of masks follow the order
        return {"name": "model", "order": list(self.names), **to_dict(self.spec), **self.sampler_header()}

    def __repr__(self) -> str:
        return estimates.describe(self)
