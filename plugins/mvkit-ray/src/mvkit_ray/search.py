"""Searches over models and options of `mvkit.fit` by Ray Tune, a trial in each worker."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, Literal

import attrs
import torch
from ray import tune

import mvkit
from mvkit.errors import RequestError, SpecError, check_option, check_whole_number, suggest
from mvkit.training.events import EpochFinished, Event


@attrs.define
class Reports:
    """A listener of `fit` that reports every epoch to the trial of Tune that it runs in.

    Args:
        metric: what is judged, by its name in the history.

    Example:
        >>> from mvkit_ray import Reports
        >>> mvkit.fit(model, data, listeners=[Reports()])  # doctest: +SKIP
    """

    metric: str = "valid/bound"

    def __call__(self, event: Event) -> None:
        """Reports an epoch."""
        if not isinstance(event, EpochFinished):
            return
        event.value(self.metric, "search")  # says what there is, if it is not there
        tune.report(dict(event.row))


def search(
    space: Mapping[str, Mapping[str, Any]],
    data: object,
    *,
    validation: object,
    trials: int,
    metric: str = "valid/bound",
    mode: Literal["max", "min"] = "max",
    resources: Mapping[str, float] | None = None,
    settings: Mapping[str, Any] | None = None,
    storage: str | os.PathLike[str] | None = None,
) -> tune.ResultGrid:
    """Trains models whose options Tune chooses, several at a time.

    After each epoch its row of the history is reported, so that a scheduler may end a trial.
    Parts that do not go together are no failure: the trial has the metric NaN, and the reason
    under `refused`.

    Args:
        space: `{"model": …, "train": …}`: options of `Model` and of `mvkit.fit`, any of them a
            domain of Tune (`tune.choice`, `tune.loguniform`). `train.seed` is also that of the
            initial weights.
        data: what `mvkit.fit` takes, if it can be pickled; stored once for all trials.
        validation: likewise; trials are judged by it.
        trials: how many.
        metric: what is judged, by its name in the history.
        mode: `max` or `min`.
        resources: of a trial, such as `{"cpu": 2, "gpu": 0.5}`; None: one CPU.
        settings: further options of `ray.tune.TuneConfig`, such as `scheduler`, `search_alg`.
        storage: a folder that all machines see, for Tune's records; None: `~/ray_results`.

    Returns:
        Tune's results: `get_best_result().config`, `.metrics`, `get_dataframe()`.

    Raises:
        RequestError: `space` has other keys than model and train, or trials is below 1.
        SpecError: the parts go together in no trial.

    Example:
        >>> from ray import tune
        >>> from mvkit_ray import search
        >>> model = {"modalities": {"a": (3,)}, "prior": tune.choice(["standard", "mog"])}
        >>> train = {"epochs": 5, "lr": tune.loguniform(1e-4, 1e-2)}
        >>> space = {"model": model, "train": train}
        >>> search(space, data, validation=valid, trials=8)  # doctest: +SKIP
    """
    check_whole_number("search: trials", trials, 1)
    check_option("search: mode", mode, "max", "min")
    for key in space:
        if key not in ("model", "train"):
            raise RequestError(
                f"search: space has {key!r}; expected the keys model and train; "
                f"{suggest(key, ['model', 'train'])}"
            )
    trial = tune.with_parameters(_trial, data=data, validation=validation, metric=metric)
    tuner = tune.Tuner(
        tune.with_resources(trial, dict(resources or {"cpu": 1})),
        param_space={"model": {}, "train": {}, **space},
        tune_config=tune.TuneConfig(
            metric=metric, mode=mode, num_samples=trials, **(settings or {})
        ),
        run_config=tune.RunConfig(
            storage_path=None if storage is None else os.path.abspath(storage), verbose=0
        ),
    )
    results = tuner.fit()
    refusals = [(result.metrics or {}).get("refused") for result in results]
    if all(refusals):
        raise SpecError(f"every trial was refused, the last one since: {refusals[-1]}", "search")
    return results


def _trial(config: Mapping[str, Any], *, data: object, validation: object, metric: str) -> None:
    """A run of `fit` with the options of a trial."""
    torch.set_num_threads(1)
    train = config["train"]
    try:
        model = mvkit.Model(**config["model"], seed=train.get("seed", 0))
    except SpecError as error:
        tune.report({metric: math.nan, "refused": str(error)})
        return
    options = {"progress": False, **train}
    mvkit.fit(model, data, validation=validation, listeners=[Reports(metric)], **options)
