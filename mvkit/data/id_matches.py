"""How the ids of several modalities match: what cannot be meant is refused, what is odd is told.

Ids are any hashable objects, hence plain Python.
"""

from __future__ import annotations

import collections
import itertools
import re
import unicodedata
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence

from mvkit.errors import DataError

Ids = Sequence[Hashable]
Names = Sequence[str]
Owners = collections.Counter[Hashable]  # how many modalities have an id

SHARE = 0.5  # of the ids of a table that should be in another
EXAMPLES = 3
_BETWEEN = re.compile(r"[\W_]+")  # what stands between the parts of an id


def check_matches(
    ids: Mapping[str, Ids], columns: Mapping[str, Names], *, disjoint: bool, stacklevel: int = 2
) -> None:
    """Checks the ids of all modalities against each other.

    Warns of a table that looks transposed, and, unless they may be `disjoint`, of ids that match
    in part or but for case and punctuation.

    Args:
        ids: by modality, no id twice.
        columns: names of the columns of those modalities that have some.
        disjoint: whether a modality may share no id with any other.
        stacklevel: of warnings, as seen from the caller.

    Raises:
        DataError: ids that no other modality has, or that only look alike.
    """
    owners = collections.Counter(itertools.chain.from_iterable(ids.values()))
    sentences = _transposed(ids, columns, owners)
    if not disjoint:
        near = _near_matches(ids, owners)
        _check_overlap(ids, owners, [*sentences, *near])
        _check_lookalikes(ids)
        sentences += _partial(ids, owners) + near
    for sentence in sentences:
        warnings.warn(sentence, stacklevel=stacklevel + 1)


def transposed_shape(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The end of a message about lengths that differ, if some columns are as many as others' rows.

    Args:
        shapes: of the values of each modality, rows first.
    """
    for name, shape in shapes.items():
        if len(shape) != 2:
            continue
        rows, columns = shape
        for other, (length, *_) in shapes.items():
            if other != name and length == columns != rows:
                return (
                    f"; {name!r} has {columns} columns, as many as {other!r} has rows, so that "
                    "one of them looks transposed: give .T of it"
                )
    return ""


def _transposed(ids: Mapping[str, Ids], columns: Mapping[str, Names], owners: Owners) -> list[str]:
    """Sentences about tables whose columns, not whose rows, are called as rows of others are."""
    sentences = []
    for name, names in columns.items():
        own = set(ids[name])
        strangers = [column for column in names if column in owners and column not in own]
        matched = sum(owners[id] > 1 for id in own)
        if len(strangers) >= max(2, SHARE * len(names)) and matched < SHARE * len(own):
            sentences.append(
                f"data[{name!r}]: {len(strangers)} of its {len(names)} columns, such as "
                f"{strangers[0]!r}, are ids of other modalities, and {matched} of its {len(own)} "
                "rows are; it looks transposed; give table.T"
            )
    return sentences


def _check_overlap(ids: Mapping[str, Ids], owners: Owners, hints: Iterable[str]) -> None:
    for name, own in ids.items():
        others = [other for other in ids if other != name]
        if others and own and all(owners[id] == 1 for id in own):
            mine = own[0]
            theirs = next(iter(ids[others[0]]), None)
            more = "".join(f"; {hint}" for hint in hints)
            raise DataError(
                f"data[{name!r}]: none of its ids, such as {mine!r} ({type(mine).__name__}), is "
                f"in another modality, such as {theirs!r} ({type(theirs).__name__}) of "
                f"{others[0]!r}; make them alike, or say disjoint=True{more}"
            )


def _check_lookalikes(ids: Mapping[str, Ids]) -> None:
    """Raises DataError for ids that differ by nothing that one sees, so would be two rows."""
    seen: dict[str, tuple[str, str]] = {}
    for name, own in ids.items():
        for id in own:
            if not isinstance(id, str):
                continue
            plain = id.strip()
            if not plain.isascii():
                plain = unicodedata.normalize("NFC", plain)
            other, place = seen.setdefault(plain, (id, name))
            if other != id:
                raise DataError(
                    f"data[{name!r}]: id {id!r} ({id!a}) looks like {other!r} "
                    f"({other!a}) of {place!r}, and differs by spaces or the encoding of "
                    "accents; make them alike (str.strip, unicodedata.normalize), or say "
                    "disjoint=True"
                )


def _partial(ids: Mapping[str, Ids], owners: Owners) -> list[str]:
    """Sentences about modalities of which few ids are in any other."""
    sentences: dict[str, None] = {}  # keys: what is true of a pair is said once
    for name, own in ids.items():
        matched = sum(owners[id] > 1 for id in own)
        if matched >= SHARE * len(own):
            continue
        partner = _best_partner(name, ids)
        if partner is None:
            continue
        smaller, larger = sorted(sorted((name, partner)), key=lambda modality: len(ids[modality]))
        here, there = set(ids[smaller]), set(ids[larger])
        shared = len(here & there)
        if shared < SHARE * len(here):
            sentence = (
                f"data[{smaller!r}]: {shared} of its {len(here)} ids are in {larger!r}; only "
                f"{smaller!r} has {_examples(ids[smaller], there)}, only {larger!r} has "
                f"{_examples(ids[larger], here)}; make the ids alike, or say disjoint=True if "
                "few rows have both"
            )
            sentences[sentence] = None
    return list(sentences)


def _best_partner(name: str, ids: Mapping[str, Ids]) -> str | None:
    """The modality that shares most with one, as shares of the smaller of the two."""
    own = set(ids[name])
    shares = {}
    for other, theirs in ids.items():
        size = min(len(theirs), len(own))
        if other != name and size:
            shares[other] = len(own.intersection(theirs)) / size
    return max(shares, key=shares.__getitem__) if shares else None


def _examples(ids: Ids, others: set[Hashable]) -> str:
    """Some ids that are not among others."""
    alone = (id for id in ids if id not in others)
    return ", ".join(map(repr, itertools.islice(alone, EXAMPLES))) or "no other"


def _near_matches(ids: Mapping[str, Ids], owners: Owners) -> list[str]:
    """A sentence about ids of two modalities that only case and punctuation keep apart."""
    holders: dict[str, tuple[str, str]] = {}
    pairs = []
    for name, own in ids.items():
        for id in own:
            if not isinstance(id, str) or owners[id] > 1:
                continue
            other, place = holders.setdefault(_plain(id), (id, name))
            if place != name:
                pairs.append((other, place, id, name))
    if not pairs:
        return []
    first, place, second, name = pairs[0]
    return [
        f"data[{name!r}]: {len(pairs)} ids differ from those of others by case or punctuation "
        f"only, such as {second!r} and {first!r} of {place!r}, and are other rows; make them "
        "alike (str.lower, str.replace), or say disjoint=True"
    ]


def _plain(id: str) -> str:
    """An id without case, and with one mark for all that stands between its parts."""
    return _BETWEEN.sub("-", id.strip().casefold())
