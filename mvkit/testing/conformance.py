"""The conformance suite: what every part of a kind must do, built in or from a package."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import attrs

from mvkit.errors import MvkitError, SpecError, check_whole_number, suggest, within
from mvkit.models.part_checks import Fault, expect
from mvkit.registry import plugins
from mvkit.registry.component import FUNCTION
from mvkit.registry.spec import as_part, to_dict
from mvkit.testing import (
    density_checks,
    given_checks,
    model_parts,
    objective_checks,
    other_parts,
    recipe_checks,
    refiner_checks,
    tiny_models,
)
from mvkit.testing.tiny_models import NAMES, Surroundings

COMPANIONS = ("aggregator", "prior", "objective", "family", "schedule", "likelihood", "network")
CITED = (
    "aggregator",
    "prior",
    "objective",
    "family",
    "likelihood",
    "missingness",
    "network",
    "optimizer",
    "refiner",
    "dataset",
    "recipe",
)


class ConformanceError(MvkitError, AssertionError):
    """A part that breaks a rule of its kind: where, what is wrong, what was expected.

    Example:
        >>> from mvkit.testing import ConformanceError
        >>> issubclass(ConformanceError, AssertionError)
        True
    """


def check_component(
    kind: str,
    name: str,
    *,
    skip: Iterable[str] = (),
    companions: Mapping[str, Any] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    latent_dim: int = 2,
    **options: Any,
) -> None:
    """Runs the conformance suite on a registered part; one line in a package's tests.

    For every kind `docs` and `json`. Parts of models (aggregator, prior, objective, family,
    likelihood, missingness, network), in tiny float64 models beside several built-in ones:
    `shapes` (with `finite` values, and `inputs` left alone), `masks` (all patterns), `fillers`
    (bit for bit), `gradients`, `save`, `determinism`, `rows`, `modalities` (both permuted),
    `precision`; of missingness `patterns` too, of objectives `coupling` (of rows, as they
    say). All other kinds: `contract`.

    Args:
        kind: one of `mvkit.registry.KINDS`.
        name: bare or qualified, `my-plugin/nsf`.
        skip: names of checks that do not apply; say why beside it.
        companions: parts by kind that the tiny models have, where the part does not go with the
            built-in ones: `{"aggregator": "moe"}`; `likelihood` and `network` are those of
            modality `a`.
        shapes: of their modalities `a` (which a likelihood or networks are tried with), `b` and
            `c` (classes on the last axis), where the part needs others.
        latent_dim: width of their shared latent.
        options: options of the part, where its defaults will not do; of a recipe, what it is
            called with.

    Raises:
        ConformanceError: at the first rule broken.
        SpecError: an unknown name, option or check, or companions that do not go with the part.

    Example:
        >>> from mvkit.testing import check_component
        >>> check_component("ramp", "cosine", epochs=5)
    """
    every = checks_of(kind)
    skipped = set(skip)
    for unknown in skipped - set(every):
        raise SpecError(
            f"check_component: no check {unknown!r} of {kind}s; {suggest(unknown, every)}"
        )
    part: Any
    if kind == FUNCTION:
        part = functools.partial(plugins.lookup(kind, name), **options)
    else:
        part = as_part(kind, {"name": name, **options})
    around = _surroundings(kind, companions or {}, shapes or {}, latent_dim)
    if companions and kind in model_parts.CHECKS:
        with tiny_models.surrounded(around):
            model_parts.tiny_model(kind, part, {})  # parts that do not go together say why
    for check, run in every.items():
        if check in skipped:
            continue
        try:
            with tiny_models.surrounded(around):
                run(kind, part)
        except Fault as fault:
            broken = fault.check or check
            raise ConformanceError(f"{kind} {name!r}, check {broken!r}: it {fault}") from None
        except Exception as error:
            reason = f"it raised {type(error).__name__}: {error}; expected it to run"
            raise ConformanceError(f"{kind} {name!r}, check {check!r}: {reason}") from error


CHECKS = (
    model_parts,
    other_parts,
    given_checks,
    recipe_checks,
    density_checks,
    objective_checks,
    refiner_checks,
)


def _surroundings(
    kind: str, companions: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], latent_dim: int
) -> Surroundings:
    """Checked companions, shapes and width."""
    with within("check_component"):
        for companion in companions:
            if companion not in COMPANIONS:
                raise SpecError(
                    f"no part {companion!r}; {suggest(companion, COMPANIONS)}", "companions"
                )
            if companion == kind:
                raise SpecError(
                    f"the {kind} is the part that is checked; leave it out", "companions"
                )
        parts = {}
        for companion, value in companions.items():
            with within(f"companions.{companion}"):
                parts[companion] = as_part(companion, value)
        for modality in shapes:
            if modality not in NAMES:
                raise SpecError(f"no modality {modality!r}; {suggest(modality, NAMES)}", "shapes")
        width = check_whole_number("check_component: latent_dim", latent_dim, 1)
    return Surroundings(parts, {name: tuple(shape) for name, shape in shapes.items()}, width)


def checks_of(kind: str) -> model_parts.Checks:
    """The checks of a kind, by name."""
    every: model_parts.Checks = {"docs": _docs}
    if kind != FUNCTION:  # functions are no data
        every["json"] = _json
    for module in CHECKS:
        every |= module.CHECKS.get(kind, {})
    return every


def _docs(kind: str, part: Any) -> None:
    """A docstring that names every option, with a reference where the kind has one."""
    documented = part.func if kind == FUNCTION else type(part)
    doc = inspect.getdoc(documented) if documented.__doc__ else None
    if not doc or doc.startswith("Method generated by attrs"):
        raise Fault("has no docstring; expected one that says what it is")
    expect(
        kind not in CITED or "Reference" in doc,
        "names no source in its docstring; expected 'Reference: authors, title, year, link'",
    )
    if kind == FUNCTION:
        return
    for attribute in attrs.fields_dict(cast(type[attrs.AttrsInstance], type(part))):
        expect(
            bool(re.search(rf"\b{attribute}\b", doc)),
            f"has an option {attribute!r} that its docstring does not name; expected all of them",
        )


def _json(kind: str, part: object) -> None:
    """A round trip through JSON and through the part's own name."""
    data = json.loads(json.dumps(to_dict(part), allow_nan=False))
    name = data.get("name")
    registered = plugins.name_of(None, type(part))
    expect(
        registered is not None and name == registered,
        f"is written as {name!r}; expected its registered name",
    )
    again = as_part(kind, data)
    expect(
        again == part and to_dict(again) == to_dict(part),
        f"comes back from JSON as {again!r}; expected {part!r}",
    )
    expect(
        as_part(kind, part) is part,
        "is made anew when given as an object; expected the very object",
    )
