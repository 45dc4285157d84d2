"""Coherence: whether generated modalities show the class of the row that they were generated from.

Axes: n draws, b rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from mvkit.core.batch import Batch
from mvkit.evaluation.metric import (
    EvaluationContext,
    Metric,
    Score,
    Scores,
    mean,
    observes_all,
    scatter,
)
from mvkit.models.inference import subsets_of
from mvkit.registry.fields import choice
from mvkit.registry.spec import field, spec

Names = tuple[str, ...]
EVERY = 5  # modalities up to which all sets are taken


@spec
class Coherence(Metric):
    """Share of generated values whose class, by a classifier, is that of the row.

    Of samples: the share of those whose modalities all agree in their class. A row is scored on
    the sets of modalities that it observes wholly. The accuracy of the classifiers on real values
    is reported too.

    Args:
        sets: which modalities are given: `all` sets; `cyclic`: those that are neighbours in the
            model's order, m a number; None: all of them up to five modalities, else `cyclic`.
        latent: `draw` latents, or take their `mean`.
        sampler: what draws the latents of the samples; None: the prior, and each sampler that was
            fitted.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, seed=0)
        >>> rows = mvkit.Batch(
        ...     {"a": torch.randn(60, 3), "b": torch.randn(60, 2)},
        ...     extra={"label": torch.arange(60) % 2},
        ... )
        >>> report = mvkit.evaluate(model, rows, ["coherence"])
        >>> report.scores[0].name
        'given 1'

    Reference: Shi, Siddharth, Paige and Torr, Variational Mixture-of-Experts Autoencoders for
    Multi-Modal Deep Generative Models, NeurIPS 2019, https://arxiv.org/abs/1911.03393.
    """

    sets: str | None = choice(None, "all", "cyclic")
    latent: str = choice("draw", "mean")
    sampler: str | None = field(default=None)

    def incompatibility(self, context: EvaluationContext) -> str | None:
        if len(context.model.names) < 2:
            return "one modality: there is no other to agree with"
        return context.unlabelled()

    def rows(self, context: EvaluationContext) -> Batch:
        if all(name in context.classifiers for name in context.model.names):
            return context.rows
        return context.held("coherence")

    def given(self, names: Names) -> list[Names]:
        """The sets of given modalities."""
        m = len(names)
        if self.sets == "all" or (self.sets is None and m <= EVERY):
            return subsets_of(None, names)[:-1]
        sets = []
        for size in range(1, m):
            for start in range(m):
                neighbours = {(start + offset) % m for offset in range(size)}
                sets.append(tuple(names[i] for i in sorted(neighbours)))
        return sets

    def score(self, context: EvaluationContext, block: Batch, generator: Generator) -> Scores:
        names = context.model.names
        scores: Scores = {}
        for given in self.given(names):
            rows, known = _labelled(context, block, given)
            # given alone, a modality is also generated from itself
            targets = names if len(given) == 1 else context.others(*given)
            values = rows.data
            if len(rows):
                options = {"latent": self.latent, "generator": generator}
                samples = context.translate(rows, targets, given, **options)
                values = {name: x[0] for name, x in samples.items()}
            for name in targets:
                scores[given, name] = _correct(context, name, rows, values[name], known)
        for name in names:
            rows, known = _labelled(context, block, (name,))
            scores["classifier", name] = _correct(context, name, rows, rows.data[name], known)
        for sampler in self._samplers(context):
            draws = context.draw(len(block), sampler, generator)
            if draws is not None:
                classes = torch.stack([context.classify(name, x) for name, x in draws.items()])
                agree = (classes == classes[0]).all(0)
                scores["unconditional", sampler] = agree.double()
        return scores

    def _samplers(self, context: EvaluationContext) -> list[str]:
        return [self.sampler] if self.sampler else ["prior", *context.model.samplers]

    def summary(self, context: EvaluationContext, scores: Scores) -> Iterator[Score]:
        """Lines by number of given modalities, pooled over the sets and over what is generated."""
        names = context.model.names
        by_set = {}
        for given in self.given(names):
            by_set[given] = [scores[given, name] for name in context.others(*given)]
        for n in range(1, len(names)):
            pooled = [values for given, values in by_set.items() if len(given) == n]
            yield _pooled(f"given {n}", list(itertools.chain(*pooled)), given=n)
        yield _pooled("self", [scores[(name,), name] for name in names], given=1)
        for sampler in self._samplers(context):
            if ("unconditional", sampler) in scores:
                name = "unconditional" if sampler == "prior" else f"unconditional, {sampler}"
                yield mean("coherence", name, scores["unconditional", sampler], given=0)
        for given, values in by_set.items():
            yield _pooled(f"given {', '.join(given)}", values, given=len(given), detail=True)
        for name in names:
            line = f"classifier of {name}, real values"
            yield mean("coherence", line, scores["classifier", name])


def _labelled(context: EvaluationContext, block: Batch, given: Names) -> tuple[Batch, Tensor]:
    """The labelled rows that observe all of `given`, and which they are, (b,) bool on the CPU."""
    known = observes_all(block, given).cpu() & (context.labels(block) >= 0)
    return block.take(known.to(block.observed.device)), known


def _correct(
    context: EvaluationContext, name: str, rows: Batch, x: Tensor, known: Tensor
) -> Tensor:
    """Whether values x of the known rows show their class: 1 or 0, NaN in the other rows, (b,)."""
    labels = context.labels(rows)
    classes = context.classify(name, x) if len(rows) else labels
    return scatter((classes == labels).double(), known)


def _pooled(name: str, values: list[Tensor], given: int, *, detail: bool = False) -> Score:
    """The mean over rows of the mean over sets and generated modalities."""
    return mean("coherence", name, torch.stack(values).nanmean(0), given=given, detail=detail)
