"""Coherence: whether generated modalities show the class of the row that they were generated from.

Axes: n draws, b rows.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.evaluation.metric import EvaluationContext, Metric, Score, Scores, mean, scatter, subset
from mvkit.registry.spec import field, one_of, spec

Names = tuple[str, ...]
EVERY = 5  # modalities up to which all sets are taken


@spec
class Coherence(Metric):
    """Share of generated values that a classifier takes for the row's class; of samples, whether all modalities agree.

    Of a row, only sets that it observes wholly are given. The classifiers' accuracy on real values is reported beside.

    Args:
        sets: which modalities are given: `all` sets; `cyclic`, those that are neighbours in the model's order, M a
            number; None: all of them up to five modalities.
        latent: `draw` latents, or take their `mean`.
        sampler: what draws the latents of the samples; None: the prior, and each sampler that was fitted.

    Reference: Shi, Siddharth, Paige and Torr, Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep
    MultimodalModel Models, NeurIPS 2019, https://arxiv.org/abs/1911.03393.
    """

    sets: str | None = field(default=None, check=one_of(None, "all", "cyclic"))
    latent: str = field(default="draw", check=one_of("draw", "mean"))
    sampler: str | None = field(default=None)

    def incompatibility(self, study: EvaluationContext) -> str | None:
        """See `Metric.refusal`."""
        return (
            "one modality: there is no other to agree with"
            if len(study.model.names) < 2
            else study.unlabelled()
        )

    def rows(self, study: EvaluationContext) -> Batch:
        """See `Metric.rows`."""
        every = all(name in study.classifiers for name in study.model.names)
        return study.rows if every else study.held("coherence")

    def given(self, names: Names) -> list[Names]:
        """The sets of given modalities, those of one also for themselves."""
        m = len(names)
        if self.sets == "all" or (self.sets is None and m <= EVERY):
            return [given for n in range(1, m) for given in itertools.combinations(names, n)]
        starts = itertools.product(range(1, m), range(m))
        return [
            tuple(sorted((names[(i + j) % m] for j in range(n)), key=names.index))
            for n, i in starts
        ]

    def score(
        self, study: EvaluationContext, block: Batch, generator: torch.Generator
    ) -> dict[Any, Tensor]:
        """See `Metric.score`."""
        names = study.model.names
        labels = study.labels(block)
        found: dict[Any, Tensor] = {}
        for given in self.given(names):
            has = subset(block, given, names).cpu() & (labels >= 0)
            targets = [k for k in names if k not in given or len(given) == 1]
            if not has.any():
                found |= {
                    (given, k): torch.full((len(block),), torch.nan, dtype=torch.double)
                    for k in targets
                }
                continue
            rows = block.take(has.to(block.observed.device))
            made = study.translate(rows, targets, given, latent=self.latent, generator=generator)
            for name in targets:
                right = study.classify(name, made[name][0]) == labels[has]
                found[given, name] = scatter(right.double(), has)
        for name in names:
            has = subset(block, [name], names).cpu() & (labels >= 0)
            seen = (
                study.classify(name, block.data[name][has.to(block.observed.device)])
                if has.any()
                else labels[has]
            )
            found["classifier", name] = scatter((seen == labels[has]).double(), has)
        for sampler in self._samplers(study):
            samples = study.draw(len(block), sampler, generator)
            if samples is not None:
                seen = torch.stack([study.classify(name, x) for name, x in samples.items()])
                found["unconditional", sampler] = (seen == seen[0]).all(0).double()
        return found

    def _samplers(self, study: EvaluationContext) -> list[str]:
        return [self.sampler] if self.sampler else ["prior", *study.model.samplers]

    def summary(self, study: EvaluationContext, scores: Scores) -> list[Score]:
        """See `Metric.summary`; by number of given modalities, pooled over the sets and what is generated."""
        names = study.model.names
        by_set: dict[Names, list[Tensor]] = {given: [] for given in self.given(names)}
        own: list[Tensor] = []
        found = []
        pairs: Any = scores
        for (given, target), values in pairs.items():
            if given in by_set:
                (own if target in given else by_set[given]).append(values)
        for n in range(1, len(names)):
            pooled = torch.stack(
                [values for given, each in by_set.items() if len(given) == n for values in each]
            )
            found.append(mean("coherence", f"given {n}", pooled.nanmean(0), given=n))
        found.append(mean("coherence", "self", torch.stack(own).nanmean(0), given=1))
        for sampler in self._samplers(study):
            if ("unconditional", sampler) in scores:
                name = "unconditional" if sampler == "prior" else f"unconditional, {sampler}"
                found.append(mean("coherence", name, scores["unconditional", sampler], given=0))
        for given, each in by_set.items():
            name = f"given {', '.join(given)}"
            found.append(
                mean(
                    "coherence", name, torch.stack(each).nanmean(0), given=len(given), detail=True
                )
            )
        for name in names:
            found.append(
                mean("coherence", f"classifier of {name}, real values", scores["classifier", name])
            )
        return found
