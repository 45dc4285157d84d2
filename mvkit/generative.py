"""Generative: what users ask of a model, whatever it is made of.

Axes: n samples asked for, b rows, m modalities, d latent, p private latent, c clusters. Log-probabilities in nats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import torch
from einops import rearrange
from torch import Tensor, nn

from mvkit import estimates, noise, samplers
from mvkit.batch import Batch, conform, refuse_empty
from mvkit.data.sources import as_batch
from mvkit.errors import RequestError, ShapeError, suggest
from mvkit.estimates import Asked, Condition
from mvkit.generation import Latents, Translation
from mvkit.losses import Loss
from mvkit.mechanism import Mechanism, Names
from mvkit.modality import Modality
from mvkit.posterior import Posterior
from mvkit.spec import to_dict
from mvkit.values import as_tensor


class Generative(Mechanism):
    """A trained or trainable model of several modalities: `Model`, `Stack`, or one of your own.

    To implement one, see `mvkit.mechanism.Mechanism`; everything that users call then works.
    """

    def __init__(self) -> None:
        super().__init__()
        self.samplers = nn.ModuleDict()  # those that `fit_sampler` fitted, by registered name

    def sampler_header(self) -> dict[str, Any]:
        """The samplers' part of the header; nothing where none was fitted."""
        specs: list[Any] = [to_dict(sampler.spec) for sampler in self.samplers.values()]
        return {"samplers": specs} if specs else {}

    def condition(self, rows: Batch, given: Names, empty: str, **options: Any) -> Condition:
        """The posterior given one set of modalities; see `conditions`."""
        return next(self.conditions(rows, Asked([estimates.names_of(given, self.names)], empty, **options)))

    @property
    def like(self) -> Tensor:
        """A tensor of the model's dtype and device."""
        floating = (p for p in self.parameters() if p.is_floating_point())
        return next(floating, torch.zeros(()))

    def conform(self, data: Any) -> Batch:
        """Data as a checked batch on the model's device; see `mvkit.batch.conform`."""
        return conform(as_batch(data), self.layout).to(self.like.device)

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
        batch = self._drawn(batch, generator) if self.training else batch
        made: Any = self.objective if objective is None else self.build_objective(objective)
        found: Loss = made.forward(self, batch, self.experts(batch, training=self.training, generator=generator))
        return found.checked(len(batch), type(made))

    def _drawn(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        """The batch with bits drawn where a transform asks for it."""
        drawn = [name for name, m in self.modalities.items() if any(step.drawn for step in m.transform)]
        if not drawn:
            return batch
        data = dict(batch.data)
        for name in drawn:
            p = data[name]
            uniform = noise.draw(f"choice/binarise/{name}", (1, *p.shape), p, generator=generator)
            data[name] = (rearrange(uniform, "1 ... -> ...") < p).to(p.dtype)
        return attrs.evolve(batch, data=data)

    def in_units(self, made: dict[str, Tensor], units: str) -> dict[str, Tensor]:
        """Values {name: (..., *shape)} of the model in the units asked for."""
        if units not in ("data", "model"):
            raise RequestError(f"units: got {units!r}; expected 'data' or 'model'")
        return {k: self.modalities[k].restore(x) for k, x in made.items()} if units == "data" else made

    def forward(self, batch: Batch, **options: Any) -> Loss:
        """`loss`, so that wrappers such as DistributedDataParallel see it."""
        return self.loss(batch, **options)

    def posterior(self, batch: Any, given: Names = None, *, empty: str = "error") -> Posterior:
        """q(z|x_given), the mixture that bounds and likelihoods use.

        Args:
            batch: rows.
            given: modalities to look at; None: all that each row has; (): none, which gives the prior.
            empty: rows with none of them: `error`, or the `prior`.

        Returns:
            rsample(n) (n, b, d), log_prob, mean, log_weight, evidence; mostly a `Mixture`, with loc and scale too.
        """
        with estimates.evaluation(self):
            return self.condition(self.conform(batch), given, empty).posterior

    def encode(self, batch: Any, given: Names = None, *, empty: str = "error") -> Tensor:
        """Posterior mean of each row from whatever it has, or from `given`, (b, d).

        The aggregator says which posterior: mopoe takes the product of what is given, so that this need not equal
        `posterior().mean`.
        """
        names = estimates.names_of(given, self.names)

        def means(rows: Batch) -> Tensor:
            return self.condition(rows, names, empty, inference=True).posterior.mean

        return estimates.answer(self, means, batch)

    def encode_subsets(
        self, batch: Any, subsets: Iterable[Iterable[str] | str] | None = None, *, empty: str = "error"
    ) -> dict[tuple[str, ...], Tensor]:
        """Posterior means given each of several sets of modalities, {set: (b, d)}; no modality is encoded twice.

        Args:
            batch: rows.
            subsets: sets of modalities; None: all non-empty ones, of which there are 2^m - 1.
            empty: rows with none of a set: `error`, or the mean of the `prior`.

        Example:
            >>> import torch, mvkit
            >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=4)
            >>> list(model.encode_subsets({"a": torch.zeros(5, 3), "b": torch.zeros(5, 2)}))
            [('a',), ('b',), ('a', 'b')]
        """
        sets = estimates.subsets_of(subsets, self.names)

        def means(rows: Batch) -> dict[tuple[str, ...], Tensor]:
            found = self.conditions(rows, Asked(sets, empty, inference=True))
            return {names: one.posterior.mean for names, one in zip(sets, found, strict=True)}

        return estimates.answer(self, means, batch)

    def private(self, batch: Any) -> dict[str, Tensor]:
        """Means of the private latents, {name: (b, p)}, zeros where unobserved."""

        def means(rows: Batch) -> dict[str, Tensor]:
            private = self.experts(rows).private
            shown = {name: rows.observed[:, [self.names.index(name)]] for name in private}
            return {name: torch.where(shown[name], loc, 0.0) for name, (loc, _) in private.items()}

        return estimates.answer(self, means, batch)

    def decode(
        self, z: Tensor, private: Mapping[str, Tensor] | None = None, *, units: str = "data"
    ) -> dict[str, Tensor]:
        """Decoder means {name: (..., *shape)} at latents z (..., d) and private latents {name: (..., p)}.

        Private latents that are not given are 0, the mean of their prior. Gradients flow only to latents that ask
        for them. `units`: `data`, undoing the modalities' transforms, in the shape of the user's data; or `model`.
        """
        z = as_tensor(z, "decode: z")
        if z.shape[-1:] != (self.latent_dim,):
            raise ShapeError(f"decode: z has shape {tuple(z.shape)}; expected (..., {self.latent_dim})")
        given = {name: self._private_given(name, w) for name, w in (private or {}).items()}
        asked = any(tensor.requires_grad for tensor in (z, *given.values()))
        z = z.to(self.like.dtype)
        with estimates.evaluation(self), torch.set_grad_enabled(torch.is_grad_enabled() and asked):
            return self.in_units({name: self.decode_one(name, z, given.get(name)) for name in self.names}, units)

    def _private_given(self, name: str, w: Tensor) -> Tensor:
        p = self._modality(name).private_dim
        if not p:
            raise RequestError(f"decode: modality {name!r} has no private latent; leave it out")
        w = as_tensor(w, f"decode: private latent of {name!r}")
        if w.shape[-1:] != (p,):
            raise ShapeError(f"decode: private latent of {name!r} has shape {tuple(w.shape)}; expected (..., {p})")
        return w.to(self.like.dtype)

    def _modality(self, name: str) -> Modality:
        if name not in self.modalities:
            raise RequestError(f"unknown modality {name!r}; {suggest(str(name), self.names)}")
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
        units: str = "data",
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
            units: see `decode`.
            generator: source of randomness.
        """
        names = estimates.names_of(to, self.names)
        for name in names:
            self._modality(name)
        known = estimates.names_of(given, self.names)
        plan = Translation(names, estimates.draws(n), latent, sample, private_source, generator)

        def generate(rows: Batch) -> dict[str, Tensor]:
            found = self.condition(rows, known, empty, inference=True, generator=generator)
            return self.in_units(self.generate(plan, found), units)

        return estimates.answer(self, generate, batch, dim=1)

    def sample(
        self,
        n: int,
        *,
        cluster: int | None = None,
        sampler: str | None = None,
        sample: bool = False,
        latents: bool = False,
        units: str = "data",
        generator: torch.Generator | None = None,
    ) -> Any:
        """Rows from the prior, {name: (n, *shape)}: decoder means, or draws with `sample`.

        Args:
            n: number of rows.
            cluster: draw z from this component of a mixture prior.
            sampler: draw z from a sampler that `mvkit.fit_sampler` fitted; None: from the prior.
            sample: draw from the likelihood as well.
            latents: return a pair (data, latents): z, private, cluster.
            units: see `decode`.
            generator: source of randomness.
        """
        n = estimates.draws(n)
        if cluster is not None and not 0 <= cluster < self._clusters("sample(cluster=…)"):
            raise RequestError(f"sample: no cluster {cluster}; expected 0 to {self.n_clusters - 1}")
        if cluster is not None and sampler is not None:
            raise RequestError(f"sample: a cluster is one of the prior's, not of sampler {sampler!r}; give one of them")
        with estimates.evaluation(self), torch.no_grad():
            if sampler is None:
                z, picked = self.prior_draws(n, cluster, generator)
            else:
                z, picked = samplers.fitted(self, sampler).sample(self, n, generator), None
            made, private = self.from_latents(z, sample=sample, generator=generator)
            made = self.in_units(made, units)
        return (made, Latents(z, private, picked)) if latents else made

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
            return torch.cat(list(self.weight_blocks(self.conform(batch), n, proposal, generator, None)))

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
        memory: int | None = None,
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
            memory: bytes that a block of decoded draws may take; n draws go block by block. None: 8 MB on the CPU,
                whose cache then holds them, 256 MB on accelerators.
            generator: source of randomness.

        Reference: Burda, Grosse and Salakhutdinov, 2016, https://arxiv.org/abs/1509.00519; Wu and Goodman, 2018,
        https://arxiv.org/abs/1802.05335 (conditionals).
        """
        names = estimates.names_of(given, self.names)
        wanted = estimates.names_of(of, tuple(k for k in self.names if k not in names))
        for name in (*wanted, *names):
            self._modality(name)
        overlap = [name for name in wanted if name in names]
        if overlap:
            raise RequestError(f"log_likelihood: {overlap[0]!r} is both in `of` and in `given`; take it out of one")
        estimate = estimates.Query(self, wanted, names, n, estimator, proposal, empty, memory, generator)
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
            return self.assign(rows, soft=soft, by_modality=by_modality)

        return estimates.answer(self, assign, batch)

    def _clusters(self, what: str) -> int:
        if self.n_clusters:
            return self.n_clusters
        reason = f"prior {type(self.spec.prior).__name__!r} has no components to assign rows to"
        raise RequestError(f"{what}: {reason}; make the model with a mixture prior, such as prior='mog'")
