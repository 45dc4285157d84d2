"""Published figures that can be measured again: what they are, and where they are defined.

A clone has them in `benchmarks/figures.py`, beside the scripts that measure them; an installed
mvkit has neither. Any folder with such a file will do: `FIGURES`, a list.
"""

from __future__ import annotations

import math
import re
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import attrs

from mvkit.errors import RequestError, SpecError, suggest

FILE = "figures.py"
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
SHORT, LONG = 30.0, 180.0  # CPU minutes that a figure may take, and one that is marked as long


@attrs.frozen
class Figure:
    """A number that somebody published, and how it is measured here.

    Args:
        name: by which it is run: words of a-z and 0-9 with hyphens between them.
        by: whose figure it is, in a word or two.
        source: paper, table and address; of a figure that is quoted, also where it was read.
        protocol: what is done here, and what is done otherwise than there.
        published: the number.
        measure: returns the number from the folder of data and a seed.
        minutes: of CPU time that one seed may take: 30, or 180 where it is long.
        data: folders below that of data which it reads.
        packages: what it imports beside mvkit.
        long: whether it is run only where it is named.
        own: whether the number is one of this project's own, as nobody published one.

    Raises:
        SpecError: a name, a number or a time that cannot be.
    """

    name: str
    by: str
    source: str
    protocol: str
    published: float
    measure: Callable[[Path, int], float] = attrs.field(repr=False)
    minutes: float
    data: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    packages: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    long: bool = attrs.field(default=False, kw_only=True)
    own: bool = attrs.field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        where = f"figure {self.name!r}"
        if NAME.fullmatch(self.name) is None:
            raise SpecError(f"{where}: expected words of a-z and 0-9 with hyphens between them")
        for text in ("by", "source", "protocol"):
            if not getattr(self, text).strip():
                raise SpecError(f"{where}: nothing is said as its {text}; expected words")
        if not math.isfinite(self.published):
            raise SpecError(f"{where}: published={self.published}; expected a number")
        limit = LONG if self.long else SHORT
        if not 0 < self.minutes <= limit:
            raise SpecError(
                f"{where}: minutes={self.minutes:g}; expected at most {limit:g}"
                f"{'' if self.long else ', or long=True'}"
            )


def find_folder(folder: Path | None) -> Path:
    """The folder that has the figures: the one given, or `benchmarks` here or beside the package.

    Raises:
        RequestError: there is none.
    """
    beside = Path(__file__).resolve().parents[2] / "benchmarks"
    places = [Path("benchmarks"), beside] if folder is None else [folder]
    for place in places:
        if (place / FILE).is_file():
            return place.resolve()
    raise RequestError(
        f"bench: no {FILE} in {' or '.join(map(str, places))}; expected the folder benchmarks of "
        "a clone of mvkit; give --folder"
    )


def load_figures(folder: Path) -> dict[str, Figure]:
    """The figures of a folder by name, in its order.

    Raises:
        SpecError: the file has no list of figures, or two of one name.
    """
    with importing_from(folder):
        listed = runpy.run_path(str(folder / FILE)).get("FIGURES")
    if not isinstance(listed, Sequence) or not all(isinstance(item, Figure) for item in listed):
        raise SpecError(f"{folder / FILE}: FIGURES is no list of figures; expected one")
    figures: dict[str, Figure] = {}
    for figure in listed:
        if figure.name in figures:
            raise SpecError(f"{folder / FILE}: two figures are called {figure.name!r}; rename one")
        figures[figure.name] = figure
    return figures


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Inside, the scripts of a folder can be imported, as by a script among them."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def chosen(figures: dict[str, Figure], names: Iterable[str]) -> list[Figure]:
    """The figures of some names, each once; with stars and question marks, all that match.

    None are named: all that are not long. A pattern leaves out long ones, too.

    Raises:
        RequestError: a name that no figure has.
    """
    short = {name: figure for name, figure in figures.items() if not figure.long}
    picked: dict[str, Figure] = {}
    for name in names:
        if name in figures:
            picked[name] = figures[name]
            continue
        matching = {other: short[other] for other in short if fnmatch(other, name)}
        if not matching:
            raise RequestError(f"bench: no figure {name!r}; {suggest(name, figures)}")
        picked |= matching
    return list((picked or short).values())
