"""Run files: one TOML that says data, model and training, and gives the same numbers again.

    [data]                      # a dataset by name, and its options; or your own files
    name = "polydigits"
    missing = 0.3
    [model]                     # what `Model` takes, or a recipe and what it takes
    recipe = "mopoe"
    latent_dim = 16
    [model.modalities.m0]       # other options of a modality than the dataset's
    private_dim = 4
    [model.covariates]          # what the model is conditioned on; or covariates = ["site", "age"]
    site = {levels = ["A", "B"]}
    age = {}
    [train]                     # what `fit` takes
    epochs = 20
    samplers = ["gmm"]          # fitted afterwards, to the training rows

`mvkit train` writes the same file with every default beside the checkpoints.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import shlex
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from mvkit import recipes
from mvkit.apps.init_file import find_files
from mvkit.apps.run_samplers import fit_samplers, take_samplers
from mvkit.core.covariates import Covariate
from mvkit.core.devices import device_of
from mvkit.core.modality import Modality
from mvkit.core.safe_file import write_whole
from mvkit.data.datasets.catalogue import Splits, load_dataset
from mvkit.errors import MvkitError, SpecError, UnknownComponent, suggest
from mvkit.models.checkpoint import rebuilt
from mvkit.models.model import Model
from mvkit.models.multimodal import MultimodalModel
from mvkit.registry.plugins import available, error_context, remedy
from mvkit.registry.spec import as_part, to_dict
from mvkit.training.events import Event, RunStarted
from mvkit.training.fit import fit
from mvkit.training.history import History
from mvkit.training.interruption import resumed_by
from mvkit.training.stages import as_stages

TABLES = ("data", "model", "train")
LIMIT = 2**63  # of whole numbers
DEPTH = 100  # of tables in tables
FOLDER = "the folder of the run is given on the command line: --folder FOLDER"

Table = dict[str, Any]  # a table of TOML
Config = dict[str, Table]


def read(path: Path, changes: Sequence[str] = ()) -> Config:
    """A run file with some values changed.

    Args:
        path: the file.
        changes: `model.prior=mog`, `train.epochs=5`: a path, and a TOML value or plain text.

    Raises:
        SpecError: when the file is not TOML, has tables other than data, model and train, or a
            change cannot be read.
        OSError: when the file cannot be read.
    """
    config = _parsed(path)
    for change in changes:
        if change.count(".") > DEPTH:
            raise SpecError(f"--set {change[:60]}…: nested too deeply")
        _apply(config, change)
    for table, options in config.items():
        _check_table(table, options, path)
    _check_numbers(config, "")
    find_files(config.get("data", {}), path.parent)
    return {table: config.get(table, {}) for table in TABLES}


def _parsed(path: Path) -> Table:
    """A TOML file as plain data."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: no TOML: {error}{_line_of(path, str(error))}") from None
    except RecursionError:
        raise SpecError(f"{path}: no TOML: nested too deeply") from None


def _line_of(path: Path, reason: str) -> str:
    """The line that the TOML parser cannot read, and what lines look like; nothing without one."""
    place = re.search(r"at line (\d+)", reason)
    if place is None:
        return ""
    line = path.read_text("utf-8").split("\n")[int(place[1]) - 1]
    return (
        f": {line.strip()[:80]}; expected [TABLE] or OPTION = VALUE, each once, with text in "
        "quotes, and true or false in small letters"
    )


def _check_table(table: str, options: object, path: Path) -> None:
    """Raises SpecError for what is no table of a run file."""
    if table in TABLES and isinstance(options, dict):
        return
    if table in TABLES:
        raise SpecError(f"{path}: {table} = {options!r}; expected a table [{table}]")
    if isinstance(options, dict | list):
        raise SpecError(f"{path}: no table [{table}] is known; {suggest(table, TABLES)}")
    homes = [home for home, names in _options_by_table().items() if table in names]
    remedy = f"put it below [{homes[0]}]" if homes else "put it below one of them"
    raise SpecError(
        f"{path}: {table} = {options!r} is in no table; expected tables [data], [model] and "
        f"[train]; {remedy}"
    )


def _options_by_table() -> dict[str, set[str]]:
    """Names of options by the tables that they are known in."""
    return {
        "train": {"samplers", *inspect.signature(fit).parameters},
        "model": {"recipe", *inspect.signature(Model).parameters},
        "data": {"name", "rows", "missing"},
    }


def _check_numbers(value: object, path: str) -> None:
    """Raises SpecError at a whole number that TOML and torch have no room for."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check_numbers(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, int) and not -LIMIT <= value < LIMIT:
        raise SpecError(f"got {value}; expected a whole number of at most 64 bits", path)


def _apply(config: Table, change: str) -> None:
    """Applies a change such as `model.prior=mog`."""
    at, equals, text = change.partition("=")
    *way, option = at.strip().split(".")
    if not equals or not way:
        raise SpecError(
            f"--set {change}: expected TABLE.OPTION=VALUE, such as --set train.epochs=5"
        )
    if way[0] not in TABLES:
        raise SpecError(f"--set {change}: no table [{way[0]}] is known; {suggest(way[0], TABLES)}")
    table = config
    for key in way:
        if isinstance(table.get(key), str):  # a part by its name, of which an option is set
            table[key] = {"name": table[key]}
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise SpecError(f"--set {change}: {key!r} holds {table!r}, which has no options")
    try:
        table[option] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        table[option] = text
    except RecursionError:
        raise SpecError(f"--set {change[:60]}…: nested too deeply") from None


@attrs.frozen(eq=False)
class Plan:
    """What a run file asks for: data, a fresh model, options of `fit`, samplers, and every
    default.
    """

    data: Splits
    model: MultimodalModel
    options: Table
    samplers: list[Any]
    config: Config

    @classmethod
    def of(cls, config: Config) -> Plan:
        """The plan of a run file.

        Raises:
            SpecError: with the path of what is wrong.
        """
        if "name" not in config["data"]:
            raise SpecError("expected the name of a dataset, such as name = 'polydigits'", "data")
        with _named("data"):
            source = as_part("dataset", config["data"])
            data = load_dataset(**config["data"])
        model, seed = _model(dict(config["model"]), data)
        train = dict(config["train"])
        samplers = take_samplers(train)
        options = _train_options(train)
        epochs = options["epochs"]
        if type(epochs) is not int or epochs < 1:
            raise SpecError(f"got {epochs!r}; expected an integer of at least 1", "train.epochs")
        with _named("train.stages"):
            stages = as_stages(options.get("stages"), model, epochs)
        full = {
            "data": to_dict(source),
            "model": {**model.header(), "seed": seed},
            "train": {**options, "stages": [to_dict(stage) for stage in stages]},
        }
        if samplers:
            full["train"]["samplers"] = [to_dict(sampler) for sampler in samplers]
        return cls(data, model, options, samplers, _without_none(full))

    def run(self, folder: Path, resume: str) -> History:
        """Trains, and keeps the run in a folder with the whole run file."""
        import tomli_w

        def write(event: Event) -> None:
            # by now, a run in the folder with other options has been refused
            if isinstance(event, RunStarted):
                write_whole(folder / "run.toml", tomli_w.dumps(self.config).encode())

        options = {**self.options, "checkpoint": folder, "resume": resume, "listeners": [write]}
        again = f"mvkit resume {shlex.quote(str(folder))}"
        token = resumed_by.set(again)
        try:
            history = fit(self.model, self.data.train, validation=self.data.valid, **options)
            fit_samplers(self.model, self.data.train, self.samplers, options["seed"] or 0, folder)
            return history
        except KeyboardInterrupt as error:
            if not str(error):  # nothing was saved since the last checkpoint
                raise
            raise KeyboardInterrupt(f"interrupted and saved; resume by: {again}") from None
        finally:
            resumed_by.reset(token)


def _model(options: Table, data: Splits) -> tuple[MultimodalModel, int]:
    """The model of a table [model], its weights drawn from its seed, and the seed."""
    seed = options.pop("seed", 0)
    if type(seed) is not int:
        raise SpecError(f"got {seed!r}; expected a whole number", "model.seed")
    if "name" in options:  # as a file with every default says it
        return _complete_model(options, seed), seed
    modalities = _modalities(options.pop("modalities", {}), data)
    if isinstance(options.get("covariates"), list):
        options["covariates"] = _declared(options["covariates"], data)
    make = _maker(options.pop("recipe", None))
    return _made(make, modalities, {"seed": seed, **options}), seed


def _modalities(changes: object, data: Splits) -> dict[str, Modality]:
    """The modalities of the data with other options."""
    where = "model.modalities"
    if not isinstance(changes, dict):
        raise SpecError(f"got {changes!r}; expected a table [{where}.NAME]", where)
    modalities = dict(data.modalities)
    for name, changed in changes.items():
        if name not in modalities:
            raise SpecError(f"no modality {name!r}; {suggest(name, modalities)}", where)
        path = f"{where}.{name}"
        if not isinstance(changed, dict):
            raise SpecError(f"got {changed!r}; expected a table [{path}]", path)
        with _named(path):
            modalities[name] = attrs.evolve(modalities[name], **changed)  # type: ignore[misc]
    return modalities


def _declared(names: list[object], data: Splits) -> dict[str, Covariate]:
    """The covariates of the data with some names, as the data declare them."""
    where = "model.covariates"
    known = data.covariates
    covariates = {}
    for name in names:
        if not isinstance(name, str):
            raise SpecError(
                f"got {name!r}; expected names of covariates of the data, or a table [{where}]",
                where,
            )
        if name not in known:
            raise SpecError(f"the data have no covariate {name!r}; {suggest(name, known)}", where)
        covariates[name] = known[name]
    return covariates


def _complete_model(options: Table, seed: int) -> MultimodalModel:
    """The model of a table [model] with every default."""
    name = options["name"]
    if name not in ("model", "stack"):
        raise SpecError(
            f"got {name!r}; expected 'model' or 'stack', as a run's own run.toml says it; leave "
            "it out where there is a recipe",
            "model.name",
        )
    with _named("model"):
        return rebuilt(options, seed)


@contextlib.contextmanager
def _named(table: str) -> Iterator[None]:
    """Inside, what Python says of options that cannot be taken becomes a SpecError.

    The paths of others start at the table.
    """
    try:
        yield
    except SpecError as error:
        first = error.path.partition(".")[0]
        parent, _, last = table.rpartition(".")
        if first in TABLES:
            raise
        raise error.within(parent if first == last else table) from None
    except MvkitError:
        raise
    except KeyError as error:
        raise SpecError(f"expected the option {error.args[0]!r} too", table) from error
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise SpecError(f"its options cannot be taken: {error}", table) from error


def _maker(recipe: object) -> Callable[..., MultimodalModel]:
    """A recipe by its name, or `Model`."""
    if recipe is None:
        return Model
    if not isinstance(recipe, str):
        known = suggest(str(recipe), available("recipe"))
        raise SpecError(f"no recipe {recipe!r}; {known}", "model.recipe")
    try:
        return recipes.get(recipe)
    except UnknownComponent:
        reason = f"no recipe {recipe!r}; {remedy('recipe', recipe)}"
        raise SpecError(reason, "model.recipe") from None
    except SpecError as error:
        raise error.within("model.recipe") from None


def _made(
    make: Callable[..., MultimodalModel], modalities: dict[str, Modality], options: Table
) -> MultimodalModel:
    """What a recipe, or `Model`, makes of modalities and options."""
    signature = inspect.signature(make)
    known = {*signature.parameters, *inspect.signature(Model).parameters}
    _check_options("model", options, known - {"options", "modalities"})
    with _named("model"):
        signature.bind(modalities, **options)
        with error_context(make, "when it was called"):
            model = _called(make, modalities, options)
    if not isinstance(model, MultimodalModel):
        raise SpecError(
            f"returned a {type(model).__name__}; expected a Model or a Stack", "model.recipe"
        )
    return model


def _called(
    make: Callable[..., MultimodalModel], modalities: dict[str, Modality], options: Table
) -> MultimodalModel:
    """What a recipe returns.

    Raises:
        SpecError: an option that the recipe sets itself.
    """
    try:
        return make(modalities, **options)
    except TypeError as error:
        twice = re.search(r"multiple values for keyword argument '(\w+)'", str(error))
        if twice is None or twice[1] not in options:
            raise
        reason = "the recipe sets it; take the recipe's own options, or Model"
        raise SpecError(reason, twice[1]) from None


def _train_options(given: Table) -> Table:
    """`fit`'s options with all defaults."""
    own = {"model", "data", "validation", "listeners", "resume", "progress"}
    defaults = {}
    for name, parameter in inspect.signature(fit).parameters.items():
        if name not in own:
            defaults[name] = parameter.default
    defaults["seed"] = None if "seeds" in given else 0
    _check_options("train", given, defaults.keys() - {"checkpoint"})
    if "device" in given:
        device_of(given["device"])
    if type(given.get("compile", False)) is not bool:
        raise SpecError(f"got {given['compile']!r}; expected true or false", "train.compile")
    return defaults | given


def _check_options(table: str, options: Iterable[str], known: Collection[str]) -> None:
    """Raises SpecError, which names table and option, at an option that is not known."""
    for name in options:
        if name not in known:
            reason = FOLDER if name == "checkpoint" else suggest(name, known)
            raise SpecError(f"unknown option; {reason}", f"{table}.{name}")


def _without_none(value: Any) -> Any:
    """Plain data without None, which TOML cannot write and which is the default everywhere."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
