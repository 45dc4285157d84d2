"""Search: trials of a base configuration with some fields replaced, each a run of `mvkit.fit`."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import attrs
import optuna
from optuna.trial import BaseTrial, TrialState

import mvkit
from mvkit.errors import NonFiniteError, RequestError, SpecError, suggest
from mvkit.models.build import ModelSpec
from mvkit.registry.spec import to_dict
from mvkit.training.events import EpochFinished, Event, Listener
from mvkit.training.history import History
from mvkit_optuna.space import Domain, Nowhere, replaced

# parameters of `fit` that are not part of a configuration
OWN = ("model", "data", "validation", "listeners", "progress", "checkpoint", "resume")
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

Parameters = Mapping[str, object] | BaseTrial
Configuration = Mapping[str, Any]  # `model`, a spec, and `train`, options of `fit`


class Search:
    """A search over a configuration: `model.…` as `Model` takes it, `train.…` as `mvkit.fit` does.

    A field of a part that is itself searched (`model.prior.components` beside `model.prior`) is
    asked for only in trials whose part has it. Parts that do not go together are refused by the
    model; such a trial counts as pruned.

    Args:
        space: domains by path.
        base: everything else: `{"model": {"modalities": …}, "train": {"epochs": 20}}`.
            `train.seed` is also that of the initial weights.
        metric: what is judged, by its name in the history; of the epoch whose weights are kept.
        direction: `maximize` or `minimize`.

    Raises:
        SpecError: a path that leads to no field, with those that there are; a value that its field
            does not take.

    Example:
        >>> from mvkit_optuna import Choice, Int, Search
        >>> prior = Choice("standard", "mog")
        >>> space = {"model.prior": prior, "model.prior.components": Int(2, 20)}
        >>> search = Search(space, {"model": {"modalities": {"a": (3,)}}})
        >>> search.configuration({"model.prior": "standard"})["model"].prior
        Standard()
    """

    def __init__(
        self,
        space: Mapping[str, Domain],
        base: Configuration,
        *,
        metric: str = "valid/bound",
        direction: Literal["maximize", "minimize"] = "maximize",
    ) -> None:
        parts_first = sorted(space, key=lambda path: path.count("."))
        self.space = {path: space[path] for path in parts_first}
        self.base = _complete(base)
        self.metric = metric
        self.direction = direction
        for path in self.space:
            self._check(path)

    def configuration(self, parameters: Parameters) -> Configuration:
        """The whole configuration of a trial, or of one's parameters."""
        if isinstance(parameters, Mapping):
            parameters = optuna.trial.FixedTrial(dict(parameters))
        configuration = self.base
        for path, domain in self.space.items():
            if _leads(configuration, path):
                value = domain.suggest(parameters, path)
                configuration = replaced(configuration, path, value)
        return configuration

    def fit(
        self,
        parameters: Parameters,
        data: object,
        *,
        validation: object,
        listeners: Iterable[Listener] = (),
    ) -> tuple[mvkit.Model, History]:
        """A model with these parameters, trained; `study.best_params` gives the best trial's."""
        # a copy, so that the user's own networks begin anew in each trial
        configuration = copy.deepcopy(self.configuration(parameters))
        train = configuration["train"]
        options = attrs.asdict(configuration["model"], recurse=False)
        model = mvkit.Model(**options, seed=train["seed"])
        history = mvkit.fit(
            model, data, validation=validation, listeners=listeners, progress=False, **train
        )
        return model, history

    def run(
        self,
        data: object,
        *,
        validation: object,
        trials: int,
        storage: str | os.PathLike[str] | None = None,
        name: str = "mvkit",
        pruner: optuna.pruners.BasePruner | None = None,
        seed: int = 0,
    ) -> optuna.Study:
        """Resumes the study until `trials` are finished, counting those already in the storage.

        Args:
            data: what `fit` takes.
            validation: likewise; trials are judged by it.
            trials: how many in all.
            storage: an SQLite file, or any URL that optuna takes; None: memory.
            name: of the study in the storage.
            pruner: stops hopeless trials; None: optuna's median pruner.
            seed: of the sampler.

        Returns:
            optuna's study: `best_params`, `best_value`, `trials_dataframe()`.

        Raises:
            RequestError: the storage holds a study of another search under this name.
            SpecError: the parts go together in no trial.
        """
        if storage is not None:
            storage = os.fspath(storage)
            if "://" not in storage:
                storage = f"sqlite:///{storage}"
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction=self.direction,
            pruner=pruner,
            load_if_exists=True,
        )
        self._recognise(study, name)
        # with the seed alone, a study that is resumed would repeat the draws it began with
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
        if len(_finished(study)) < trials:
            enough = optuna.study.MaxTrialsCallback(trials, states=FINISHED)
            study.optimize(
                lambda trial: self._judge(trial, data, validation),
                callbacks=[enough],
                catch=(NonFiniteError,),
            )
        refusals = [trial.user_attrs.get("refused") for trial in _finished(study)]
        if all(refusals):
            raise SpecError(
                f"every trial was refused, the last one since: {refusals[-1]}", "search"
            )
        return study

    def _judge(self, trial: optuna.Trial, data: object, validation: object) -> float:
        """The metric of a trial, in the epoch whose weights are kept."""
        pruning = Pruning(trial, self.metric)
        try:
            _, history = self.fit(trial, data, validation=validation, listeners=[pruning])
        except SpecError as error:
            trial.set_user_attr("refused", str(error))
            raise optuna.TrialPruned(str(error)) from error
        last_stage = history.rows[-1]["stage"]
        rows = [row for row in history.rows if row["stage"] == last_stage]
        best = min(rows, key=lambda row: row["valid/loss"])
        return best[self.metric]

    def _check(self, path: str) -> None:
        """Raises SpecError unless some choice of the parts above has the field, and it fits.

        Every combination of those parts is tried, and every value at the end of the domain.
        """
        above = [other for other in self.space if path.startswith(f"{other}.")]
        choices = itertools.product(*(self.space[part].examples() for part in above))
        missing: SpecError | None = None
        fits = False
        for choice in choices:
            configuration = self.base
            try:
                for part, value in zip(above, choice, strict=True):
                    configuration = replaced(configuration, part, value)
                for example in self.space[path].examples():
                    replaced(configuration, path, example)
                fits = True
            except Nowhere as error:
                missing = error
            except SpecError as error:
                raise error.within("search") from None
        if missing and not fits:
            raise missing.within("search")

    def _recognise(self, study: optuna.Study, name: str) -> None:
        """Stores in a new study what it searches, and refuses another's."""
        domains = {}
        for path, domain in self.space.items():
            domains[path] = [type(domain).__name__, *map(to_dict, domain.examples())]
        own = {"space": domains, "base": to_dict(self.base), "metric": self.metric}
        own = json.loads(json.dumps(own, default=repr))
        known = study.user_attrs.get("search", own)
        for key, value in own.items():
            if known[key] != value:
                raise RequestError(
                    f"search: study {name!r} was begun with another {key}: {known[key]!r}, "
                    f"not {value!r}; take another name or storage"
                )
        study.set_user_attr("search", own)


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=FINISHED)


@attrs.define
class Pruning:
    """A listener that reports a metric to a trial each epoch, and prunes the run if told to."""

    trial: optuna.Trial
    metric: str
    epochs: int = 0

    def __call__(self, event: Event) -> None:
        """Reports an epoch."""
        if not isinstance(event, EpochFinished):
            return
        value = event.value(self.metric, "search")
        self.epochs += 1
        self.trial.report(value, self.epochs)
        if self.trial.should_prune():
            raise optuna.TrialPruned(f"after {self.epochs} epochs, at {self.metric} {value:.4g}")


def _complete(base: Configuration) -> Configuration:
    """The base configuration with all defaults."""
    parameters = inspect.signature(mvkit.fit).parameters
    train = {name: option.default for name, option in parameters.items() if name not in OWN}
    configuration: Configuration = {"model": None, "train": train}
    for name in base:
        if name not in configuration:
            raise SpecError(f"no {name!r} here; {suggest(name, configuration)}", "base")
    for name, value in base.get("train", {}).items():
        configuration = replaced(configuration, f"train.{name}", value)
    try:
        model = ModelSpec(**base.get("model", {}))
    except SpecError as error:
        raise error.within("base.model") from None
    return {**configuration, "model": model}


def _leads(configuration: Configuration, path: str) -> bool:
    """Whether a path leads to a field."""
    try:
        replaced(configuration, path, None)
    except Nowhere:
        return False
    except SpecError:  # the field is there; None is no value for it
        pass
    return True
