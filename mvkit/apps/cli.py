"""The command line: `mvkit --help` lists what there is."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from mvkit import available
from mvkit.errors import MvkitError
from mvkit.models.checkpoint import describe
from mvkit.registry import component, plugins

Run = Callable[[argparse.Namespace], None]
AddCommand = Callable[[str, Run, str], argparse.ArgumentParser]


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.run_command(options)
    except (MvkitError, OSError) as error:
        print(f"mvkit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"mvkit: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130  # as shells count Ctrl-C
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mvkit", description="Multimodal generative models from reusable parts."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Run, text: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=text, description=text)
        subparser.set_defaults(run_command=run)
        return subparser

    _commands_of_runs(command)
    _commands_of_results(command)
    _commands_of_packages(command)
    return parser


def _commands_of_runs(command: AddCommand) -> None:
    demo = command(
        "demo", _demo, "train on real, partially observed pictures and show what was learnt"
    )
    demo.add_argument(
        "--folder", type=Path, default=Path(), help="where to write demo.png and model.safetensors"
    )
    demo.add_argument("--epochs", type=int, default=35)
    demo.add_argument("--rows", type=int, default=10_000, help="training rows")
    train = command("train", _train, "train what a run file says; resumes the run if it was begun")
    train.add_argument(
        "file", type=Path, help="a TOML file with tables [data], [model] and [train]"
    )
    train.add_argument(
        "--set", action="append", default=[], metavar="TABLE.OPTION=VALUE", help="change an option"
    )
    train.add_argument(
        "--folder", type=Path, help="of the run; by default runs/ and the file's name"
    )
    resume = command("resume", _resume, "resume a run that was begun by `mvkit train`")
    resume.add_argument("run", type=Path, help="its folder")


def _commands_of_results(command: AddCommand) -> None:
    show = command("show", _show, "the header of a saved model or checkpoint")
    show.add_argument("file", type=Path)
    report = command(
        "report", _report, "measure a run's model and write a page that needs no network"
    )
    report.add_argument("run", type=Path, help="a folder with model.safetensors")
    report.add_argument(
        "-o", "--output", type=Path, help="the page; report.html in the run's folder by default"
    )
    report.add_argument("--data", help="a dataset by name, instead of what run.toml says")
    report.add_argument("--seed", type=int, default=0)
    explore = command(
        "explore", _explore, "serve a page on this machine to look around in a run's model"
    )
    explore.add_argument("run", type=Path, help="a folder with model.safetensors")
    explore.add_argument("--data", help="a dataset by name, instead of what run.toml says")
    explore.add_argument("--port", type=int, default=5006)
    explore.add_argument("--no-browser", action="store_true", help="only serve")


def _commands_of_packages(command: AddCommand) -> None:
    listing = command("list", _list, "registered parts")
    listing.add_argument("kind", nargs="?", help="one kind only")
    command("plugins", _plugins, "what went wrong while looking for packages")
    command("doctor", _doctor, "versions, packages, accelerators, and what is wrong with them")
    scaffold = command(
        "new-plugin", _new_plugin, "write a package with a part of your own, and its tests"
    )
    scaffold.add_argument("name", help="of the package, such as mvkit-sharp")
    scaffold.add_argument("--kind", default="aggregator", help="of the part (default: aggregator)")
    scaffold.add_argument(
        "--folder", type=Path, default=Path(), help="where the package's folder goes"
    )


def _demo(options: argparse.Namespace) -> None:
    from mvkit.apps.demo import run

    run(options.folder, epochs=options.epochs, rows=options.rows)


def _train(options: argparse.Namespace) -> None:
    from mvkit.apps.run_file import Plan, read

    folder = options.folder or Path("runs") / options.file.stem
    print(Plan.of(read(options.file, options.set)).run(folder, "auto"))
    print(f"run: {folder}")


def _resume(options: argparse.Namespace) -> None:
    from mvkit.apps.run_file import Plan, read

    print(Plan.of(read(options.run / "run.toml")).run(options.run, "must"))


def _show(options: argparse.Namespace) -> None:
    print(json.dumps(describe(options.file), indent=2))


def _list(options: argparse.Namespace) -> None:
    for kind in [options.kind] if options.kind else component.KINDS:
        print(f"{kind + ':':<12}{' '.join(available(kind))}")


def _report(options: argparse.Namespace) -> None:
    from mvkit.apps.html_report import write_page

    output = options.output or options.run / "report.html"
    print(write_page(options.run, output, data=options.data, seed=options.seed))
    print(f"\npage: {output}")


def _explore(options: argparse.Namespace) -> None:
    from mvkit.apps.explorer import explore

    explore(options.run, data=options.data, port=options.port, show=not options.no_browser)


def _plugins(options: argparse.Namespace) -> None:
    for problem in plugins.problems():
        print(problem)
    print(f"{len(plugins.problems())} problems")


def _doctor(options: argparse.Namespace) -> None:
    from mvkit.apps.doctor import report

    print("\n".join(report()))


def _new_plugin(options: argparse.Namespace) -> None:
    from mvkit.apps.new_plugin import new_plugin

    root = new_plugin(options.name, options.kind, options.folder)
    print(f"wrote {root}; next:")
    print(f"  pip install --editable '{root}[dev]' && pytest {root}")
