"""evaluate: every metric that fits a model and its data, in one report.

Rows are put in an order of their own contents and go through in blocks of fixed size, each with noise of its own. So
no number depends on the order of the data, nor on the batches that they came in.

Axes: b rows, m modalities.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from mvkit._version import __version__
from mvkit.core.batch import Batch, conform
from mvkit.data.dataset import as_batch
from mvkit.data.pipeline import Pipeline
from mvkit.errors import DataError, RequestError, suggest
from mvkit.evaluation.metric import ROW, EvaluationContext, Metric, Score
from mvkit.evaluation.report import Report
from mvkit.models.multimodal import MultimodalModel, check_model
from mvkit.registry import plugins
from mvkit.registry.spec import as_part

BLOCK = 512  # rows; noise is drawn a block at a time, so this is part of what a number means


def evaluate(
    model: MultimodalModel,
    data: Any,
    metrics: Sequence[Any] | None = None,
    *,
    train: Any = None,
    classifiers: Mapping[str, Callable[[Tensor], Any]] | None = None,
    features: Mapping[str, Callable[[Tensor], Any]] | None = None,
    label: str = "label",
    seed: int = 0,
    progress: bool | None = None,
) -> Report:
    """Measures a model on rows, each on what it has.

    Errors are in the model's units, after transforms; classifiers and networks of features are given the user's.
    A metric that does not fit (no labels, no mixture prior, one modality) says so in the report, which goes on with
    the rest. Likelihoods and calibration take at most 1,000 rows unless asked. The numbers depend on the rows and the
    seed, not on the order of the rows or how they are batched. Needs the extra `mvkit[evaluate]`.

    Args:
        model: a `Model` or `Stack`.
        data: what `fit` takes: a batch, a mapping of arrays, a dataset, a `Pipeline`, or an iterable of batches.
        metrics: names, dicts or specs of metrics (`mvkit.available("metric")`); None: all.
        train: rows to fit classifiers and probes on; None: one half of the rows, the other half is then scored.
        classifiers: {modality: function of (b, *shape) to scores (b, c) or class indices (b,)}, for coherence;
            modalities without one get a perceptron fitted on the spot.
        features: {modality: function of (b, *shape) to features (b, f)}, for the Fréchet distance.
        label: name of the labels in `Batch.extra`, whole numbers, -1 or NaN where there is none.
        seed: of all randomness.
        progress: show a bar; None: on a terminal only.

    Raises:
        DataError: no rows; what a model or classifier gives is not finite.
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
    check_model(model, "evaluate")
    if isinstance(metrics, str | Mapping):
        raise RequestError(
            f"evaluate: metrics={metrics!r}; expected a list of metrics, such as [{metrics!r}]"
        )
    chosen = [
        as_part("metric", one)
        for one in (plugins.available("metric") if metrics is None else metrics)
    ]
    classifiers = _functions("classifiers", classifiers, model.names)
    features = _functions("features", features, model.names)
    rows, lost = _ordered(model, data, seed, "data")
    fitting = None if train is None else _ordered(model, train, seed, "train")[0]
    study = EvaluationContext(model, rows, fitting, label, classifiers, features, seed)
    if lost:
        study.note(f"{lost:,} rows observe nothing and are left out")
    scores: list[Score] = []
    with _bar(progress) as bar:
        for metric in chosen:
            scores += _measured(metric, study, bar)
    about = {"model": model.header(), "seed": seed, "rows": len(rows)}
    versions = {
        "mvkit": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return Report(tuple(scores), tuple(study.notes), about | {"versions": versions})


def _functions(what: str, given: Any, names: Sequence[str]) -> dict[str, Callable[[Tensor], Any]]:
    """The user's functions by modality; none for None."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(map(callable, given.values())):
        raise RequestError(
            f"evaluate: {what}={given!r}; expected a dict such as {{{names[0]!r}: function}}"
        )
    for name in given:
        if name not in names:
            raise RequestError(f"evaluate: unknown modality {name!r}; {suggest(str(name), names)}")
    return dict(given)


def _measured(metric: Metric, study: EvaluationContext, bar: Any) -> list[Score]:
    """The scores of a metric; none, and a note, if it does not fit."""
    name = str(plugins.name_of("metric", type(metric)))
    bar.set_description(name)
    try:
        reason = metric.incompatibility(study)
        if reason:
            raise RequestError(reason)
        rows = metric.rows(study)
        bar.reset(total=len(rows))
        pieces: dict[Any, list[Tensor]] = {}
        with torch.no_grad():
            for start in range(0, len(rows), BLOCK):
                block = rows.take(slice(start, start + BLOCK)).to(study.model.like.device)
                generator = study.generator(f"{metric!r}/{start}")
                for key, value in metric.score(study, block, generator).items():
                    pieces.setdefault(key, []).append(value.cpu())
                bar.update(len(block))
        return metric.summary(study, {key: torch.cat(values) for key, values in pieces.items()})
    except RequestError as error:
        study.note(f"{name}: {error}")
    except ModuleNotFoundError as error:
        study.note(
            f"{name}: needs {error.name}, which is not installed: pip install 'mvkit[evaluate]'"
        )
    return []


def _ordered(model: MultimodalModel, data: Any, seed: int, what: str) -> tuple[Batch, int]:
    """Conformed rows that observe something, in an order of their contents, and how many do not."""
    batches = _batches(model, data)
    if not sum(map(len, batches)):
        raise DataError(f"evaluate: {what} has no rows; expected one at least; check the split")
    rows = _joined(batches)
    extra = {
        name: torch.as_tensor(np.asarray(value))
        for name, value in rows.extra.items()
        if _numeric(value)
    }
    rows = attrs.evolve(rows, extra={**extra, ROW: torch.arange(len(rows))})
    kept = rows.observed.any(1)
    order = np.argsort(fingerprint(rows, seed), kind="stable")
    order = order[kept.numpy()[order]]
    if not len(order):
        raise DataError(
            f"evaluate: {what} observes nothing in any row; expected one modality at least a row"
        )
    return rows.take(torch.from_numpy(order)), int((~kept).sum())


def _batches(model: MultimodalModel, data: Any) -> list[Batch]:
    """Conformed batches on the CPU of whatever `fit` takes; empty ones are left out."""
    if isinstance(data, Pipeline):
        data = data.rows
    single = isinstance(data, Mapping) or not isinstance(data, Iterable)
    batches = [as_batch(one).to("cpu") for one in ([data] if single else data)]
    return [conform(batch, model.schema) for batch in batches if len(batch)]


def _joined(batches: list[Batch]) -> Batch:
    """Batches as one, its rows in their order."""
    if len(batches) == 1:
        return batches[0]
    names = {name for batch in batches for name in batch.elements or {}}
    elements = {}
    for name in names:
        like = next(batch.elements[name] for batch in batches if name in (batch.elements or {}))  # type: ignore[index]
        full = [
            (batch.elements or {}).get(name, like.new_ones(len(batch), *like.shape[1:]))
            for batch in batches
        ]
        elements[name] = torch.cat(full)
    data = {name: torch.cat([batch.data[name] for batch in batches]) for name in batches[0].data}
    extra = {
        name: np.concatenate([np.asarray(batch.extra[name]) for batch in batches])
        for name in batches[0].extra
        if all(name in batch.extra for batch in batches)
    }
    mask = torch.cat([batch.observed for batch in batches])
    joined = Batch(data, mask, elements or None, extra, schema=batches[0].schema)
    return joined.take(slice(None))  # notes which rows observe what


def fingerprint(rows: Batch, seed: int) -> Any:
    """A number for each row that its contents and the seed decide, (b,) uint64: a random hash, linear modulo 2^64."""
    generator = torch.Generator().manual_seed(seed)
    total = np.zeros(len(rows), dtype=np.uint64)
    extra = [value for name, value in sorted(rows.extra.items()) if name != ROW]
    for value in (rows.observed, *rows.data.values(), *(rows.elements or {}).values(), *extra):
        flat = np.ascontiguousarray(value.reshape(len(rows), -1).numpy())
        words = flat.view(f"u{flat.dtype.itemsize}")
        factors = torch.randint(
            -(2**63), 2**63 - 1, (words.shape[1],), generator=generator
        ).numpy()
        odd = factors.view(np.uint64) | np.uint64(1)
        for start in range(
            0, len(rows), BLOCK
        ):  # as 64 bits, all rows at once would be several times the data
            total[start : start + BLOCK] += words[start : start + BLOCK].astype(np.uint64) @ odd
    return total


def _numeric(value: Any) -> bool:
    return isinstance(value, Tensor) or np.asarray(value).dtype.kind in "biuf"


def _bar(progress: bool | None) -> Any:
    from tqdm.auto import tqdm

    hidden = not sys.stderr.isatty() if progress is None else not progress
    return tqdm(unit="row", disable=hidden)
