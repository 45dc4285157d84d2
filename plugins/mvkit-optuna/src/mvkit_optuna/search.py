"""Search: trials of a base configuration with some fields replaced, each a run of `mvkit.fit`."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import optuna

import mvkit
from mvkit.errors import NonFiniteError, RequestError, SpecError, suggest
from mvkit.models.build import ModelSpec
from mvkit.registry.spec import to_dict
from mvkit.training.events import EpochFinished, Event, Listener
from mvkit.training.history import History
from mvkit_optuna.space import Domain, Nowhere, replaced

OWN = (
    "model",
    "data",
    "validation",
    "listeners",
    "progress",
    "checkpoint",
    "resume",
)  # not the configuration's
FINISHED = (
    optuna.trial.TrialState.COMPLETE,
    optuna.trial.TrialState.PRUNED,
    optuna.trial.TrialState.FAIL,
)


class Search:
    """A search over the fields of a configuration: `model.…` as `Model` takes them, `train.…` as `mvkit.fit` does.

    A field of a part that is itself searched (`model.prior.components` beside `model.prior`) is asked for only in
    trials whose part has it. Parts that do not go together are refused by the model; such a trial counts as pruned.

    Args:
        space: domains by path.
        base: everything else: `{"model": {"modalities": …}, "train": {"epochs": 20}}`. `train.seed` is also that of the
            initial weights.
        metric: what is judged, by its name in the history; of the epoch whose weights are kept.
        direction: `maximize` or `minimize`.

    Raises:
        SpecError: a path that leads to no field, with those that there are; a value that its field does not take.

    Example:
        >>> from mvkit_optuna import Choice, Int, Search
        >>> space = {"model.prior": Choice("standard", "mog"), "model.prior.components": Int(2, 20)}
        >>> search = Search(space, {"model": {"modalities": {"a": (3,)}}})
        >>> search.configuration({"model.prior": "standard"})["model"].prior
        Standard()
    """

    def __init__(
        self,
        space: Mapping[str, Domain],
        base: Mapping[str, Any],
        *,
        metric: str = "valid/bound",
        direction: str = "maximize",
    ) -> None:
        self.space = dict(
            sorted(space.items(), key=lambda item: item[0].count("."))
        )  # parts before their fields
        self.base, self.metric, self.direction = _base(base), metric, direction
        for path in self.space:
            self._check(path)

    def configuration(
        self, parameters: Mapping[str, Any] | optuna.trial.BaseTrial
    ) -> dict[str, Any]:
        """The whole configuration, `model` (a spec) and `train`, of a trial or of one's parameters."""
        if isinstance(parameters, Mapping):
            parameters = optuna.trial.FixedTrial(dict(parameters))
        made = self.base
        for path, domain in self.space.items():
            if _leads(made, path):
                made = replaced(made, path, domain.suggest(parameters, path))
        return made

    def fit(
        self,
        parameters: Mapping[str, Any] | optuna.trial.BaseTrial,
        data: Any,
        *,
        validation: Any,
        listeners: Iterable[Listener] = (),
    ) -> tuple[mvkit.Model, History]:
        """A model with these parameters, trained; of `study.best_params` the very model of the best trial."""
        found = copy.deepcopy(
            self.configuration(parameters)
        )  # networks of the user's own begin anew in each trial
        spec, train = found["model"], found["train"]
        options: Any = {a.name: getattr(spec, a.name) for a in attrs.fields(ModelSpec)}
        model = mvkit.Model(**options, seed=train["seed"])
        history = mvkit.fit(
            model, data, validation=validation, listeners=listeners, progress=False, **train
        )
        return model, history

    def run(
        self,
        data: Any,
        *,
        validation: Any,
        trials: int,
        storage: str | os.PathLike[str] | None = None,
        name: str = "mvkit",
        pruner: optuna.pruners.BasePruner | None = None,
        seed: int = 0,
    ) -> optuna.EvaluationContext:
        """Goes on with the study until so many trials are over, those of earlier calls on the same storage counted.

        Args:
            data: what `fit` takes.
            validation: likewise; trials are judged by it.
            trials: how many in all.
            storage: an SQLite file, or any URL that optuna takes; None: memory.
            name: of the study in the storage.
            pruner: stops trials that will not do; None: optuna's median pruner.
            seed: of the sampler.

        Returns:
            optuna's study: `best_params`, `best_value`, `trials_dataframe()`.

        Raises:
            RequestError: the storage holds a study of another search under this name.
            SpecError: the parts go together in no trial.
        """
        if storage is not None and "://" not in str(storage):
            storage = f"sqlite:///{os.fspath(storage)}"
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction=self.direction,
            pruner=pruner,
            load_if_exists=True,
        )
        self._recognise(study, name)
        # a seed alone would make a study that goes on repeat the draws it began with
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))

        def objective(trial: optuna.Trial) -> float:
            return self._judge(trial, data, validation)

        if len(study.get_trials(deepcopy=False, states=FINISHED)) < trials:
            enough = optuna.study.MaxTrialsCallback(trials, states=FINISHED)
            study.optimize(objective, callbacks=[enough], catch=(NonFiniteError,))
        refused = [
            trial.user_attrs.get("refused")
            for trial in study.get_trials(deepcopy=False, states=FINISHED)
        ]
        if all(refused):
            raise SpecError(
                f"every trial was refused, the last one since: {refused[-1]}", "search"
            )
        return study

    def _judge(self, trial: optuna.Trial, data: Any, validation: Any) -> float:
        try:
            _, history = self.fit(
                trial, data, validation=validation, listeners=[Pruning(trial, self.metric)]
            )
        except SpecError as error:
            trial.set_user_attr("refused", str(error))
            raise optuna.TrialPruned(str(error)) from error
        last = [row for row in history.rows if row["stage"] == history.rows[-1]["stage"]]
        return min(last, key=lambda row: row["valid/loss"])[self.metric]

    def _check(self, path: str) -> None:
        """Raises SpecError unless, with some choice of the parts on its way, the path leads to a field that takes it.

        Every combination of those parts is tried, and every value at the end of the domain.
        """
        above = [other for other in self.space if path.startswith(f"{other}.")]
        wrong: SpecError | None = None
        found = False
        for chosen in itertools.product(*(self.space[other].examples() for other in above)):
            made = self.base
            try:
                for other, value in zip(above, chosen, strict=True):
                    made = replaced(made, other, value)
                for example in self.space[path].examples():
                    replaced(made, path, example)
                found = True
            except Nowhere as error:
                wrong = error
            except SpecError as error:
                raise error.within("search") from None
        if wrong and not found:
            raise wrong.within("search")

    def _recognise(self, study: optuna.EvaluationContext, name: str) -> None:
        """Notes in a new study what it searches, and refuses another's."""
        domains = {
            path: [type(d).__name__, *map(to_dict, d.examples())] for path, d in self.space.items()
        }
        own = {"space": domains, "base": to_dict(self.base), "metric": self.metric}
        own = json.loads(json.dumps(own, default=repr))
        known = study.user_attrs.setdefault("search", own)
        for key, value in own.items():
            if known[key] != value:
                raise RequestError(
                    f"search: study {name!r} was begun with another {key}: {known[key]!r}, not {value!r}; take another "
                    "name or storage"
                )
        study.set_user_attr("search", own)


@attrs.define
class Pruning:
    """A listener that reports a metric of each epoch to a trial, and ends the run if the pruner says so."""

    trial: optuna.Trial
    metric: str
    epochs: int = 0

    def __call__(self, event: Event) -> None:
        """Hears of an epoch."""
        if not isinstance(event, EpochFinished):
            return
        if self.metric not in event.row:
            raise RequestError(
                f"search: metric={self.metric!r} is not in the history; {suggest(self.metric, event.row)}"
            )
        self.epochs += 1
        self.trial.report(event.row[self.metric], self.epochs)
        if self.trial.should_prune():
            raise optuna.TrialPruned(
                f"after {self.epochs} epochs, at {self.metric} {event.row[self.metric]:.4g}"
            )


def _base(base: Mapping[str, Any]) -> dict[str, Any]:
    """The base configuration with all defaults."""
    signature = inspect.signature(mvkit.fit).parameters
    known = {"model": None, "train": {n: p.default for n, p in signature.items() if n not in OWN}}
    for name in base:
        if name not in known:
            raise SpecError(f"no {name!r} here; {suggest(name, known)}", "base")
    for name, value in base.get("train", {}).items():
        known = replaced(known, f"train.{name}", value)
    try:
        return {**known, "model": ModelSpec(**base.get("model", {}))}
    except SpecError as error:
        raise error.within("base.model") from None


def _leads(value: Any, path: str) -> bool:
    try:
        replaced(value, path, None)
    except Nowhere:
        return False
    except SpecError:  # the field is there; None is no value for it
        pass
    return True
