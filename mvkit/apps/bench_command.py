"""The command `mvkit bench`: its options, and what it prints."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from mvkit.errors import RequestError

DATA = "MVKIT_DATA"  # the variable that names the folder of data
LINES = "figures.jsonl"

Run = Callable[[argparse.Namespace], None]
AddCommand = Callable[[str, Run, str], argparse.ArgumentParser]


def declare_bench(command: AddCommand) -> None:
    """Adds the command."""
    bench = command("bench", run_bench, "measure published figures again, into one table")
    bench.add_argument(
        "what",
        choices=["list", "run", "table"],
        help="`list` says what there is, `run` measures what has not been, `table` shows it",
    )
    bench.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="of figures; with * and ? all that match; none: all that are not long",
    )
    bench.add_argument("--seeds", type=int, nargs="+", default=[0])
    bench.add_argument("--data", type=Path, help=f"the folder of data; by default {DATA} says it")
    bench.add_argument("--folder", type=Path, help="with figures.py; by default benchmarks")
    bench.add_argument("--out", type=Path, help=f"lines; by default {LINES} in that folder")


def run_bench(options: argparse.Namespace) -> None:
    """Lists, measures or shows figures.

    Raises:
        RequestError: no folder of figures, no such figure, or some that could not be measured.
    """
    from mvkit.apps import bench, figures

    folder = figures.find_folder(options.folder)
    known = figures.load_figures(folder)
    data = options.data
    if data is None and os.environ.get(DATA):
        data = Path(os.environ[DATA])
    file: Path = options.out or folder / LINES
    picked = figures.chosen(known, options.names)
    if options.what == "list":
        everything = picked if options.names else known.values()
        print(bench.listing(everything, data))
        return
    failed: list[str] = []
    if options.what == "run":
        with figures.importing_from(folder):
            failed = bench.run_figures(picked, options.seeds, file, data, _say)
    shown = picked if options.names else known.values()
    print(bench.table(shown, bench.read_lines(file)))
    if failed:
        raise RequestError(f"bench: could not be measured: {', '.join(failed)}; see above")


def _say(text: str) -> None:
    print(text, flush=True)
