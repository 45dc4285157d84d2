"""Agreement: whether modalities that are generated at once show the same class.

Axes: n draws, b rows, t generated modalities, c classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Generator, Tensor

from mvkit.core.batch import Batch
from mvkit.errors import SpecError, suggest
from mvkit.evaluation.metric import (
    EvaluationContext,
    Metric,
    Score,
    Scores,
    mean,
    observes_all,
    scatter,
)
from mvkit.registry.fields import count
from mvkit.registry.spec import field, spec

Names = tuple[str, ...]


def _names(value: object) -> str | None:
    """A check: names of modalities, or None."""
    fine = isinstance(value, tuple) and all(isinstance(name, str) for name in value)
    return None if fine or value is None else "a list of names, or None"


def _sets(value: object) -> str | None:
    """A check: lists of names of modalities, or None."""
    if value is None:
        return None
    sets = value if isinstance(value, tuple) else (None,)
    if all(isinstance(names, tuple) and _names(names) is None for names in sets):
        return None
    return "a list of lists of names, such as [['m0'], ['m0', 'm1']], or None"


@spec
class Agreement(Metric):
    """Share of draws whose generated modalities all show one class, whichever it is.

    It asks for more than coherence where the given modalities leave a class open: all that is
    generated must choose the same. Such a class is an attribute of its own, as in
    `polydigits(attribute="quadrant")`: `evaluate(label="quadrant")`. Beside it are the agreement
    by chance, of modalities that choose each on its own as often as these do; and how often two
    draws of a row are alike, which is 1 / c where c classes are as likely, and 1 of a model that
    always chooses the same.

    Args:
        given: lists of names, each a set of given modalities, of which an empty one leaves all to
            the prior; None: each alone.
        to: what is generated; None: all that are not given.
        n: draws of each row.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,), "b": (3,), "c": (3,)}, latent_dim=2, seed=0)
        >>> values = {name: torch.randn(60, 3) for name in model.names}
        >>> rows = mvkit.Batch(values, extra={"label": torch.arange(60) % 2})
        >>> mvkit.evaluate(model, rows, ["agreement"]).scores[0].name
        'given a'

    Reference: Shi, Siddharth, Paige and Torr, Variational Mixture-of-Experts Autoencoders for
    Multi-Modal Deep Generative Models, NeurIPS 2019, https://arxiv.org/abs/1911.03393 (joint
    coherence; here of what is generated from others).
    """

    given: tuple[Names, ...] | None = field(default=None, check=_sets)
    to: Names | None = field(default=None, check=_names)
    n: int = count(2)

    def incompatibility(self, context: EvaluationContext) -> str | None:
        names = context.model.names
        for option, several in {"given": self.given or (), "to": (self.to or (),)}.items():
            for name in itertools.chain(*several):
                if name not in names:
                    text = f"unknown modality {name!r}; {suggest(str(name), names)}"
                    raise SpecError(text, option)
        if not self._sets(context):
            return "needs two modalities at least that are generated from others"
        return None if self._judged(context) else context.unlabelled()

    def _sets(self, context: EvaluationContext) -> dict[Names, Names]:
        """What is generated, by what is given; two modalities at least."""
        sets = {}
        for given in self.given or [(name,) for name in context.model.names]:
            others = context.others(*given)
            targets = tuple(name for name in others if self.to is None or name in self.to)
            if len(targets) > 1:
                sets[given] = targets
        return sets

    def _judged(self, context: EvaluationContext) -> bool:
        """Whether the user has a classifier of all that is generated."""
        targets = set(itertools.chain(*self._sets(context).values()))
        return targets <= set(context.classifiers)

    def rows(self, context: EvaluationContext) -> Batch:
        return context.rows if self._judged(context) else context.held("agreement")

    def score(self, context: EvaluationContext, block: Batch, generator: Generator) -> Scores:
        scores: Scores = {}
        for given, targets in self._sets(context).items():
            known = observes_all(block, given).cpu()
            rows = block.take(known.to(block.observed.device))
            classes = torch.zeros(len(targets), self.n, 0, dtype=torch.long)
            if len(rows):
                samples = context.translate(rows, targets, given, n=self.n, generator=generator)
                classes = _classes(context, samples)
            agree = (classes == classes[0]).all(0)
            scores[given, "agree"] = scatter(agree.double().mean(0), known)
            scores[given, "alike"] = scatter(_alike(classes), known)
            by_row = rearrange(classes.double(), "t n b -> b t n")
            scores[given, "classes"] = scatter(by_row, known)
        return scores

    def summary(self, context: EvaluationContext, scores: Scores) -> Iterator[Score]:
        for given in self._sets(context):
            count_given = len(given)
            title = f"given {', '.join(given) or 'nothing'}"
            yield mean("agreement", title, scores[given, "agree"], given=count_given)
            classes = scores[given, "classes"]
            known = ~classes.isnan().flatten(1).any(1)
            chance = _by_chance(classes[known].long())
            rows = int(known.sum())
            yield Score("agreement", f"{title}, by chance", chance, rows=rows, given=count_given)
            if self.n > 1:
                line = f"{title}, two draws alike"
                yield mean("agreement", line, scores[given, "alike"], given=count_given)


def _classes(context: EvaluationContext, samples: dict[str, Tensor]) -> Tensor:
    """The classes that draws {name: (n, b, *shape)} show, (t, n, b)."""
    shown = []
    for name, x in samples.items():
        flat = context.classify(name, rearrange(x, "n b ... -> (n b) ..."))
        shown.append(rearrange(flat, "(n b) -> n b", n=len(x)))
    return torch.stack(shown)


def _alike(classes: Tensor) -> Tensor:
    """Share of pairs of draws (t, n, b) that show one class, (b,)."""
    if classes.shape[1] < 2:
        return torch.full(classes.shape[2:], torch.nan, dtype=torch.float64)
    pairs = itertools.combinations(classes.unbind(1), 2)
    return torch.stack([(x == y).double().mean(0) for x, y in pairs]).mean(0)


def _by_chance(classes: Tensor) -> float:
    """Σ_c ∏_t p_t(c), of the shares p_t of each target's classes (b, t, n); NaN without rows."""
    if not len(classes):
        return torch.nan
    flat = rearrange(classes, "b t n -> t (b n)") + 1  # -1, no known class, is one like any other
    c = int(flat.max()) + 1
    counts = torch.stack([torch.bincount(x, minlength=c) for x in flat])
    return float((counts.double() / flat.shape[1]).prod(0).sum())
