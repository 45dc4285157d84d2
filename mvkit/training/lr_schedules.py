"""Learning-rate schedules by the names of torch: alone, one after the other, or all at once."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, SequentialLR

from mvkit.errors import SpecError, suggest, within

ScheduleLike = str | Mapping[str, object] | None
HOLDERS = {"SequentialLR", "ChainedScheduler"}  # of other schedules
RATES = ("base_lr", "max_lr")  # options that set the rate of every group anew


def lr_schedule(value: object) -> str | None:
    """A check: a learning-rate schedule of torch by name, whose arguments are plain data."""
    if value is None:
        return None
    expected = (
        "None, or a class of torch.optim.lr_scheduler by name, alone or in a dict with its options"
    )
    options = {"name": value} if isinstance(value, str) else value
    if not isinstance(options, dict) or options.get("every", "epoch") not in ("epoch", "step"):
        return f"{expected}; 'every' is 'epoch' or 'step'"
    name = str(options.get("name", ""))
    known = set(lr_scheduler.__all__) - {"LRScheduler"}  # the base class
    if name not in known:
        return f"{expected}; {suggest(name, known)}"
    if name in HOLDERS:
        _check_held(options.get("schedulers"))
    if name == "SequentialLR":
        _check_milestones(options.get("milestones"), len(options["schedulers"]))
    return None


def _check_held(schedules: object) -> None:
    """Raises SpecError unless these are schedules that another can hold."""
    if not isinstance(schedules, tuple) or not schedules:
        raise SpecError(
            f"got {schedules!r}; expected a list of schedules, each by name or as a dict with its "
            "options",
            "schedulers",
        )
    # the loss of an epoch reaches no schedule inside another; nor does torch nest them well
    known = set(lr_scheduler.__all__) - {"LRScheduler", "ReduceLROnPlateau"} - HOLDERS
    for i, schedule in enumerate(schedules):
        options = {"name": schedule} if isinstance(schedule, str) else schedule
        name = str(options.get("name", "")) if isinstance(options, dict) else ""
        if name not in known:
            raise SpecError(
                f"got {schedule!r}; expected a class of torch.optim.lr_scheduler that needs no "
                f"loss and holds no others; {suggest(name, known)}",
                f"schedulers.{i}",
            )
        if "every" in options:
            raise SpecError(
                f"got 'every' in {name}; expected it beside 'schedulers', since they step "
                "together; move it there",
                f"schedulers.{i}",
            )


def _check_milestones(milestones: object, schedules: int) -> None:
    """Raises SpecError unless there is a rising milestone between any two schedules."""
    fine = isinstance(milestones, tuple) and len(milestones) == schedules - 1
    before = 0
    for milestone in cast(tuple[object, ...], milestones) if fine else ():
        fine = fine and type(milestone) is int and milestone > before
        before = milestone if type(milestone) is int else before
    if not fine:
        raise SpecError(
            f"got {milestones!r} for {schedules} schedules; expected {schedules - 1} rising whole "
            "numbers, the epochs (or steps) after which the next one takes over",
            "milestones",
        )


def scheduler_of(schedule: ScheduleLike, optimizer: Optimizer) -> LRScheduler | None:
    """The learning-rate schedule of an optimizer; None without one.

    Raises:
        SpecError: options that the schedule does not take.
    """
    if schedule is None:
        return None
    options: dict[str, Any] = {"name": schedule} if isinstance(schedule, str) else dict(schedule)
    options.pop("every", None)
    name = str(options.pop("name"))
    schedulers: list[LRScheduler] = []
    for i, held in enumerate(options.get("schedulers", ())):
        with within(f"schedulers.{i}"):
            schedulers.append(cast(LRScheduler, scheduler_of(held, optimizer)))
    schedule_class: Callable[..., LRScheduler] = getattr(lr_scheduler, name)
    try:
        if name == "ChainedScheduler":
            options["schedulers"] = schedulers
            return schedule_class(**options)
        if name == "SequentialLR":
            options["schedulers"] = schedulers
            options["milestones"] = list(options["milestones"])
        return schedule_class(optimizer, **options)
    except (TypeError, ValueError) as error:
        raise SpecError(f"{name}: {error}") from None


def check_rates(schedule: ScheduleLike, groups: Sequence[str]) -> None:
    """Raises SpecError if a schedule gives several groups of parameters one rate.

    Args:
        schedule: the schedule.
        groups: what the groups are called, in the optimizer's order.
    """
    if not isinstance(schedule, Mapping) or len(groups) < 2:
        return
    held = cast(Sequence[ScheduleLike], schedule.get("schedulers", ()))
    for i, inner in enumerate(held):
        with within(f"schedulers.{i}"):
            check_rates(inner, groups)
    for option in RATES:
        rate = schedule.get(option)
        if isinstance(rate, int | float):
            raise SpecError(
                f"got {rate!r}, which would be the rate of all groups; expected a list of "
                f"{len(groups)} numbers, for {', '.join(groups)}",
                option,
            )


def unreached(schedule: ScheduleLike, steps: int | None) -> list[int]:
    """Milestones of a schedule that a stage of so many steps of it does not reach."""
    if not isinstance(schedule, Mapping) or schedule["name"] != "SequentialLR" or steps is None:
        return []
    milestones = cast(Sequence[int], schedule.get("milestones", ()))
    return [milestone for milestone in milestones if milestone >= steps]


def pieces(scheduler: LRScheduler, steps: int | None) -> Iterator[tuple[LRScheduler, int | None]]:
    """Schedules without others inside, each with the steps that it takes; None: unknown.

    Args:
        scheduler: a fresh schedule.
        steps: of the stage.
    """
    if isinstance(scheduler, ChainedScheduler):
        for held in scheduler._schedulers:
            yield held, steps
    elif isinstance(scheduler, SequentialLR):
        milestones = scheduler._milestones
        spans = itertools.pairwise([0, *milestones])
        lengths: list[int | None] = [end - start - 1 for start, end in spans]
        last = milestones[-1] if milestones else 0
        lengths.append(None if steps is None else max(steps - last, 0))
        yield from zip(scheduler._schedulers, lengths, strict=True)
    else:
        yield scheduler, steps


def step_schedule(scheduler: LRScheduler, where: str) -> None:
    """Steps a learning-rate schedule; raises SpecError, which says where, after its end."""
    try:
        with warnings.catch_warnings():
            # said of a schedule that resumes at the end of an epoch, and of skipped steps
            warnings.filterwarnings("ignore", "Detected call of .lr_scheduler.step", UserWarning)
            # said by older torch of what its own SequentialLR does
            warnings.filterwarnings("ignore", "The epoch parameter in", UserWarning)
            scheduler.step()
    except ValueError as error:
        name = type(scheduler).__name__
        raise SpecError(
            f"{where}: {name} ended before its stage: {error}; make it longer, or give the stage "
            "fewer epochs or steps",
            "lr_schedule",
        ) from None
