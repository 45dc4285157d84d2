"""evaluate: every metric that fits a model and its data, in one report.

Rows are put in an order that their contents decide, and are scored in blocks of fixed size, each
with noise of its own. So no number depends on the order of the data, nor on the batches that they
came in.

Axes: b rows, m modalities.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import attrs
import numpy as np
import torch
from torch import Tensor

from mvkit._version import __version__
from mvkit.core import noise
from mvkit.core.asked_by import asked_by
from mvkit.core.batch import Batch, conform
from mvkit.core.blocks import block_slices
from mvkit.data.dataset import Rows, as_batch
from mvkit.data.pipeline import Pipeline
from mvkit.errors import DataError, RequestError, suggest
from mvkit.evaluation.joined_rows import BLOCK, fingerprint, joined
from mvkit.evaluation.labels import Words, as_numbers, words_of
from mvkit.evaluation.metric import ROW, EvaluationContext, Function, Metric, Score
from mvkit.evaluation.report import Report
from mvkit.evaluation.source_rows import SourceRows
from mvkit.models.ensemble import Ensemble, check_models, members_of
from mvkit.models.far_covariates import warn_if_far
from mvkit.models.multimodal import MultimodalModel
from mvkit.models.refiners import Wanted, asked_refiners
from mvkit.models.source_blocks import is_source
from mvkit.registry import plugins
from mvkit.registry.spec import as_part

if TYPE_CHECKING:
    from tqdm.auto import tqdm

LABEL = "label"
CLASSIFIER = "classifier"  # whose hidden layer has features
MetricLike = str | Mapping[str, object] | Metric
Data = Rows | Pipeline | Iterable[Rows]
Functions = Mapping[str, Function]
AnyModel = MultimodalModel | Ensemble


def evaluate(
    model: AnyModel,
    data: Data,
    metrics: Sequence[MetricLike] | None = None,
    *,
    train: Data | None = None,
    classifiers: Functions | None = None,
    features: Functions | str | None = None,
    label: str = LABEL,
    sampler: str | None = None,
    refine: Wanted = False,
    seed: int = 0,
    progress: bool | None = None,
) -> Report:
    """Measures a model on rows, each on what it has.

    Errors are in the model's units, after transforms; classifiers and networks of features are
    given the user's. A metric that does not fit (no labels, no mixture prior, one modality) is
    named in the report's notes, and the others are computed. Likelihoods and calibration take at
    most 1,000 rows unless asked for more. The numbers depend on the rows and the seed, not on the
    order of the rows or how they are batched. Needs the extra `mvkit[evaluate]`.

    Args:
        model: a `Model` or `Stack`; or an `Ensemble`, measured as the mixture of its models, whose
            latents have no scores.
        data: what `fit` takes: a batch, a mapping of arrays, a dataset, a `Pipeline`, or an
            iterable of batches; or a `Source` such as shards, of which a block of rows is in
            memory at a time, but for those that a metric fits something to.
        metrics: names, dicts or specs of metrics (`mvkit.available("metric")`); None: all.
        train: rows to fit classifiers and probes on; None: one half of the rows, the other half is
            then scored.
        classifiers: {modality: function of (b, *shape) to scores (b, c) or class indices (b,)},
            for coherence; modalities without one get a perceptron that is fitted when it is
            needed.
        features: {modality: function of (b, *shape) to features (b, f)}, for the Fréchet distance
            and for precision and recall; or `classifier`: the hidden layers of perceptrons that
            are fitted to the labels.
        label: name of the labels in `Batch.extra`: whole numbers, NaN where there is none; or
            words, None where there is none, which are numbered in sorted order. -1 is a class.
        sampler: generate modalities from latents of a conditional sampler that
            `mvkit.fit_sampler` fitted, given what rows have (coherence, agreement,
            reconstruction, imputation, calibration, diversity, Fréchet distances, precision and
            recall); None: from the posterior.
        refine: modalities that are generated as draws of the refiners that `mvkit.fit_refiner`
            trained, wherever something is generated, in place of means; True: all.
        seed: of all randomness.
        progress: show a bar; None: on a terminal only.

    Raises:
        RequestError: a name of labels, a modality, a sampler, or a refiner, that is not there.
        DataError: no rows; what a model or classifier returns is not finite.
        ShapeError: a classifier or a network of features with a wrong output.
        SpecError: a metric that is not known, or an option that it cannot have.

    Example:
        >>> import torch, mvkit
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, seed=0)
        >>> rows = {"a": torch.randn(40, 3), "b": torch.randn(40, 2)}
        >>> report = mvkit.evaluate(model, rows, ["reconstruction", "probe"])
        >>> [score.name for score in report.scores[:3]]
        ['a, MSE', 'a, MAE', 'a, R²']
        >>> print(report.notes[0])
        probe: no labels: extra['label'] is not in the data
    """
    check_models(model, "evaluate")
    if isinstance(metrics, str | Mapping):
        raise RequestError(
            f"evaluate: metrics={metrics!r}; expected a list of metrics, such as [{metrics!r}]"
        )
    wanted = plugins.available("metric") if metrics is None else metrics
    chosen = [as_part("metric", metric) for metric in wanted]
    fits_features = features == CLASSIFIER
    networks: Any = None if fits_features else features
    for option, functions in {"classifiers": classifiers, "features": networks}.items():
        _check_functions(option, functions, model.names)
    seed = noise.whole_seed(seed)
    refined = _generators_of(model, sampler, refine)
    batch = _rows(model, data, "data")
    fitting = None if train is None else _rows(model, train, "train")
    _check_label(label, batch)
    batches = [batch] if fitting is None else [batch, fitting]
    words = words_of(*(part.extra[label] for part in batches if label in part.extra))
    rows, empty = _ordered(batch, seed, "data", label, words)
    if fitting is not None:
        fitting, _ = _ordered(fitting, seed, "train", label, words)
    by_modality = (classifiers or {}, networks or {})
    context = EvaluationContext(model, rows, fitting, label, *by_modality, seed)
    context = attrs.evolve(context, sampler=sampler, refined=refined, fits_features=fits_features)
    if empty:
        context.note(f"{empty:,} rows observe nothing and are left out")
    if rows.row_weight is not None:
        context.note("the rows have weights, which training looks at and scores do not")
    scores: list[Score] = []
    with _bar(progress) as bar, asked_by("evaluate"):
        for metric in chosen:
            scores += _measure(metric, context, bar)
    about = {"model": model.header(), "seed": seed, "rows": len(rows), "versions": _versions()}
    about |= {**_sampler_of(context), **_refined_by(context)}
    return Report(tuple(scores), tuple(context.notes), about)


def _generators_of(model: AnyModel, sampler: str | None, refine: Wanted) -> tuple[str, ...]:
    """The modalities that refiners are to draw, once samplers and refiners were found there."""
    refined: tuple[str, ...] = ()
    for member in members_of(model):
        if sampler is not None:
            member.conditional_sampler(sampler, "evaluate")
        refined = tuple(asked_refiners(member, refine, member.names, "evaluate"))
    return refined


def _versions() -> dict[str, str]:
    """Of what the numbers were computed by."""
    return {"mvkit": __version__, "torch": torch.__version__, "python": platform.python_version()}


def _sampler_of(context: EvaluationContext) -> dict[str, str]:
    """The sampler that modalities were generated by, for what a report says of itself; a note."""
    if context.sampler is None:
        return {}
    context.note(
        f"what is generated from other modalities has latents of sampler {context.sampler!r}"
    )
    return {"sampler": context.sampler}


def _refined_by(context: EvaluationContext) -> dict[str, list[str]]:
    """The modalities that refiners drew, for what a report says of itself; a note."""
    if not context.refined:
        return {}
    listed = ", ".join(map(repr, context.refined))
    context.note(f"what is generated of {listed} are draws of refiners")
    return {"refine": list(context.refined)}


def _check_functions(option: str, functions: object, names: Sequence[str]) -> None:
    """Raises RequestError unless they are None, or a dict of functions by modality."""
    if functions is None:
        return
    if not isinstance(functions, Mapping) or not all(map(callable, functions.values())):
        raise RequestError(
            f"evaluate: {option}={functions!r}; expected a dict such as {{{names[0]!r}: function}}"
        )
    for name in functions:
        if name not in names:
            raise RequestError(f"evaluate: unknown modality {name!r}; {suggest(str(name), names)}")


def _measure(metric: Metric, context: EvaluationContext, bar: tqdm) -> list[Score]:
    """The scores of a metric; none, and a note, if it does not fit."""
    name = str(plugins.name_of("metric", type(metric)))
    bar.set_description(name)
    try:
        reason = metric.incompatibility(context)
        if reason:
            raise RequestError(reason)
        rows = metric.rows(context)
        bar.reset(total=len(rows))
        pieces: dict[object, list[Tensor]] = {}
        with torch.no_grad():
            for part in block_slices(len(rows), BLOCK):
                block = rows.take(part).to(context.model.like.device)
                generator = context.generator(f"{metric!r}/{part.start}")
                for key, values in metric.score(context, block, generator).items():
                    pieces.setdefault(key, []).append(values.cpu())
                bar.update(len(block))
        scores = {key: torch.cat(values) for key, values in pieces.items()}
        return list(metric.summary(context, scores))
    except RequestError as error:
        context.note(f"{name}: {error}")
    except ModuleNotFoundError as error:
        context.note(
            f"{name}: needs {error.name}, which is not installed: pip install 'mvkit[evaluate]'"
        )
    return []


def _rows(model: AnyModel, data: Data, what: str) -> Batch:
    """Conformed rows in one batch; those of a source stay where they are."""
    source = data.rows if isinstance(data, Pipeline) else data
    if is_source(source):
        return cast(Batch, SourceRows.of(model, source))
    batches = _batches(model, data)
    if not batches:
        raise DataError(f"evaluate: {what} has no rows; expected one at least; check the split")
    return joined(batches)


def _check_label(label: str, rows: Batch) -> None:
    """Raises RequestError for a name of labels that are not there, unless nobody gave it."""
    if label != LABEL and label not in rows.extra:
        remedy = suggest(str(label), rows.extra)
        raise RequestError(f"evaluate: label={label!r} is not in the data's extra; {remedy}")


def _ordered(
    rows: Batch | SourceRows, seed: int, what: str, label: str, words: Words | None
) -> tuple[Batch, int]:
    """Rows that observe something, ordered by contents, and how many do not."""
    extra = {}
    for name, value in rows.extra.items():
        array = np.asarray(value)
        if name == label:
            extra[name] = as_numbers(value, words)
        elif array.dtype.kind in "biuf":
            extra[name] = torch.as_tensor(array)
    extra[ROW] = torch.arange(len(rows))
    if isinstance(rows, SourceRows):
        rows = rows.with_extra(extra)
        hashes = rows.fingerprint(seed)
    else:
        rows = attrs.evolve(rows, extra=extra)
        hashes = fingerprint(rows, seed)
    kept = rows.observed.any(1)
    order = np.argsort(hashes, kind="stable")
    order = order[kept.numpy()[order]]
    if not len(order):
        raise DataError(
            f"evaluate: {what} observes nothing in any row; expected one modality at least per row"
        )
    taken = rows.take(torch.from_numpy(order))
    return cast(Batch, taken), int((~kept).sum())  # metrics see no difference


def _batches(model: AnyModel, data: Data) -> list[Batch]:
    """Conformed batches on the CPU of whatever `fit` takes; empty ones are left out."""
    rows: Any = data.rows if isinstance(data, Pipeline) else data
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        rows = [rows]
    batches = [as_batch(part).to("cpu").map(_detached) for part in rows]
    conformed: list[Batch] = []
    for batch in batches:
        if len(batch):
            known = bool(conformed) or batch.schema is not None  # the first batch tells
            conformed.append(conform(batch, model.schema))
            warn_if_far(model.decoding.conditions, conformed[-1], conformed=known)
    return conformed


def _detached(x: Tensor) -> Tensor:
    """Values as numpy takes them, whatever computed them."""
    return x.detach().resolve_neg()


def _bar(progress: bool | None) -> tqdm:
    from tqdm.auto import tqdm

    hidden = not sys.stderr.isatty() if progress is None else not progress
    return tqdm(unit="row", disable=hidden)
