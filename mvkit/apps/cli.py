"""The command line: `mvkit --help` lists what there is."""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from mvkit import available
from mvkit.apps.bench_command import declare_bench
from mvkit.errors import MvkitError, RequestError
from mvkit.models.checkpoint import describe
from mvkit.registry import component, plugins
from mvkit.registry.part_records import part_records

Run = Callable[[argparse.Namespace], None]
# the extra that brings each library
EXTRAS = {
    "PIL": "data",
    "jinja2": "evaluate",
    "matplotlib": "plots",
    "pandas": "tables",
    "polars": "tables",
    "pyarrow": "tables",
    "scipy": "evaluate",
    "sklearn": "evaluate",
    "torchmetrics": "evaluate",
}
IMPROPER = (
    "--no-refit: all {m} completed tables come from one model, as if its weights were known: "
    "standard errors pooled from them are too small; leave --no-refit out, or do not pool them"
)
AddCommand = Callable[[str, Run, str], argparse.ArgumentParser]


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns its exit status."""
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # such as R² where there is ASCII only
            stream.reconfigure(errors="backslashreplace")
    try:
        options.run_command(options)
    except (MvkitError, OSError) as error:
        print(f"mvkit: {_reason(error)}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"mvkit: {options.command}: {_what_to_install(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        # of a run that was saved, the message says so
        reason = str(error) or f"stopped{_how_to_resume(options)}"
        print(f"mvkit: {reason}", file=sys.stderr)
        return 130
    return 0


def _what_to_install(error: ModuleNotFoundError) -> str:
    """The extra that brings a library; raises the error again if none does."""
    library = (error.name or "").partition(".")[0]
    if library not in EXTRAS:
        raise error
    return f"needs {library}, which is not installed: pip install 'mvkit[{EXTRAS[library]}]'"


def _reason(error: Exception) -> str:
    """What went wrong; of files, in words, without the number of the error."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}; check the path"
    return str(error)


def _how_to_resume(options: argparse.Namespace) -> str:
    """What goes on with a run that was stopped; nothing for other commands."""
    if options.command not in ("train", "resume"):
        return ""
    folder = _folder_of(options) if options.command == "train" else options.run
    if not _has_checkpoints(folder):
        return "; nothing was saved yet"
    return f"; to resume: mvkit resume {shlex.quote(str(folder))}"


def _has_checkpoints(folder: Path) -> bool:
    """Whether a run in the folder can be resumed."""
    files = "checkpoints/*.safetensors"
    return any(folder.glob(files)) or any(folder.glob(f"seed-*/{files}"))


def _folder_of(options: argparse.Namespace) -> Path:
    """Where `mvkit train` keeps the run."""
    folder: Path = options.folder or Path("runs") / options.file.stem
    return folder


def _say(text: object) -> None:
    """Prints a result; that nobody reads it is no failure of what was done."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # for what Python still flushes at its end


def _say_warning(message: Warning | str, *where: object, **options: object) -> None:
    """Prints a warning as a line of the command, without the place in the code."""
    print(f"mvkit: warning: {message}", file=sys.stderr)


def _port(text: str) -> int:
    """A number of a port."""
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number from 1 to 65535")
    return int(text)


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
    _commands_of_files(command)
    _command_of_embeddings(command)
    _commands_of_results(command)
    _commands_of_packages(command)
    declare_bench(command)
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


def _commands_of_files(command: AddCommand) -> None:
    beginning = command("init", _init, "write a commented run file for tables; it runs as it is")
    beginning.add_argument("files", type=Path, nargs="+", help=".csv, .tsv or .parquet")
    beginning.add_argument("--id", help="the column of ids, by which several files are aligned")
    beginning.add_argument("-o", "--output", type=Path, default=Path("run.toml"))
    filling = command(
        "impute", _impute, "fill the gaps of tables; no model and no option is needed"
    )
    filling.add_argument("files", type=Path, nargs="+", help=".csv, .tsv or .parquet")
    filling.add_argument("--id", help="the column of ids, by which several files are aligned")
    filling.add_argument(
        "-o", "--output", type=Path, default=Path("imputed"), help="the folder to write"
    )
    filling.add_argument("--seed", type=int, default=0)
    filling.add_argument(
        "--kind",
        action="append",
        default=[],
        metavar="COLUMN=KIND",
        help="what a column holds, where it is not what it looks like",
    )
    filling.add_argument(
        "--set", action="append", default=[], metavar="CHOICE=VALUE", help="see choices.json"
    )
    _options_of_uncertainty(filling)


def _options_of_uncertainty(filling: argparse.ArgumentParser) -> None:
    """Options of `mvkit impute` on how sure the filling is, which it reads itself."""
    filling.add_argument(
        "--draws", metavar="N", help="tables filled at random (5, or none beside --m)"
    )
    filling.add_argument(
        "--m",
        metavar="N",
        help="complete the tables N times for multiple imputation, each time by a model that is "
        "trained on a bootstrap of the rows",
    )
    filling.add_argument(
        "--no-refit",
        dest="refit",
        action="store_false",
        help="with --m: one model for all, which is quick, and improper",
    )
    filling.add_argument(
        "--intervals", metavar="SHARE", help="such as 0.9: intervals that hold 90 %% of the values"
    )
    filling.add_argument(
        "--missingness",
        metavar="NAME",
        help="why numbers are missing, if not at random; `self`: because of what they are",
    )


def _command_of_embeddings(command: AddCommand) -> None:
    embedding = command("embed", _embed, "what a trained model makes of each row of tables")
    embedding.add_argument(
        "folder", type=Path, help="of a run on your own files, or that mvkit impute wrote"
    )
    embedding.add_argument("files", type=Path, nargs="+", help="called as those of training")
    embedding.add_argument("--id", help="the column of ids, by which several files are aligned")
    embedding.add_argument("-o", "--output", type=Path, default=Path("embedding.csv"))


def _commands_of_results(command: AddCommand) -> None:
    show = command("show", _show, "the header of a saved model or checkpoint")
    show.add_argument("file", type=Path)
    report = command(
        "report", _report, "measure a run's model and write a page that needs no network"
    )
    report.add_argument(
        "run", type=Path, help="a folder with model.safetensors, or the file of a model in it"
    )
    report.add_argument(
        "-o", "--output", type=Path, help="the page; report.html in the run's folder by default"
    )
    report.add_argument("--data", help="a dataset by name, instead of what run.toml says")
    report.add_argument("--sampler", help="generate from latents of this fitted sampler")
    report.add_argument(
        "--refine", nargs="+", default=False, help="modalities that are drawn by their refiners"
    )
    report.add_argument("--seed", type=int, default=0)
    explore = command(
        "explore", _explore, "serve a page on this machine to look around in a run's model"
    )
    explore.add_argument("run", type=Path, help="a folder with model.safetensors")
    explore.add_argument("--data", help="a dataset by name, instead of what run.toml says")
    explore.add_argument("--port", type=_port, default=5006)
    explore.add_argument("--no-browser", action="store_true", help="only serve")


def _commands_of_packages(command: AddCommand) -> None:
    listing = command("list", _list, "registered parts")
    listing.add_argument("kind", nargs="?", help="one kind only")
    listing.add_argument(
        "--json", action="store_true", help="with packages, options, defaults and references"
    )
    command("plugins", _plugins, "what went wrong while looking for packages")
    command("doctor", _doctor, "versions, packages, accelerators, and what is wrong with them")
    scaffold = command(
        "new-plugin", _new_plugin, "write a package with a part of your own, and its tests"
    )
    scaffold.add_argument("name", help="of the package, such as mvkit-sharp")
    scaffold.add_argument("--kind", default="aggregator", help="of the part (default: aggregator)")
    scaffold.add_argument(
        "--add", metavar="PART", help="write a further part of that name into the existing package"
    )
    scaffold.add_argument(
        "--folder", type=Path, default=Path(), help="where the package's folder goes"
    )


def _demo(options: argparse.Namespace) -> None:
    from mvkit.apps.demo import run

    run(options.folder, epochs=options.epochs, rows=options.rows)


def _train(options: argparse.Namespace) -> None:
    from mvkit.apps.run_file import Plan, read

    folder = _folder_of(options)
    _say(Plan.of(read(options.file, options.set)).run(folder, "auto"))
    _say(f"run: {folder}")


def _resume(options: argparse.Namespace) -> None:
    from mvkit.apps.run_file import Plan, read

    run_file = options.run / "run.toml"
    if not run_file.is_file():
        raise RequestError(
            f"{options.run}: no folder with a run.toml, which mvkit train writes; expected the "
            "folder of a run that it began; check the path, or begin one with mvkit train FILE"
        )
    plan = Plan.of(read(run_file))
    if not _has_checkpoints(options.run):
        raise RequestError(
            f"{options.run}: no checkpoint to resume from; begin the run with mvkit train FILE "
            f"--folder {shlex.quote(str(options.run))}"
        )
    _say(plan.run(options.run, "must"))


def _init(options: argparse.Namespace) -> None:
    from mvkit.apps.init_file import write_run_file

    write_run_file(options.files, options.output, id=options.id)
    _say(f"wrote {options.output}; next:\n  mvkit train {shlex.quote(str(options.output))}")


def _impute(options: argparse.Namespace) -> None:
    from mvkit.apps.impute_files import impute_files

    names = ("id", "seed", "draws", "m", "refit", "intervals", "missingness")
    chosen = {key: getattr(options, key) for key in names}
    with warnings.catch_warnings():
        warnings.showwarning = _say_warning
        imputation = impute_files(
            options.files, options.output, kinds=options.kind, changes=options.set, **chosen
        )
    _say(imputation.report)
    if not options.refit:
        _say(f"\n{IMPROPER.format(m=options.m)}")
    _say(f"\nfolder: {options.output}")


def _embed(options: argparse.Namespace) -> None:
    from mvkit.apps.embed_files import embed_files

    z = embed_files(options.folder, options.files, options.output, id=options.id)
    _say(f"{len(z):,} rows of {z.shape[1] - 1} numbers: {options.output}")


def _show(options: argparse.Namespace) -> None:
    if options.file.is_dir():
        raise RequestError(
            f"{options.file}: a folder; expected a file, such as "
            f"{options.file / 'model.safetensors'}"
        )
    _say(json.dumps(describe(options.file), indent=2))


def _list(options: argparse.Namespace) -> None:
    if options.json:
        _say(json.dumps(part_records(options.kind), indent=2, ensure_ascii=False))
        return
    for kind in [options.kind] if options.kind else component.KINDS:
        print(f"{kind + ':':<13}{' '.join(available(kind))}")


def _report(options: argparse.Namespace) -> None:
    from mvkit.apps.html_report import folder_of, write_page

    output = options.output or folder_of(options.run) / "report.html"
    chosen = {key: getattr(options, key) for key in ("data", "sampler", "refine", "seed")}
    _say(write_page(options.run, output, **chosen))
    _say(f"\npage: {output}")


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
    from mvkit.apps.new_plugin import add_part, new_plugin

    if options.add is not None:
        root = add_part(options.name, options.kind, options.add, options.folder)
        print(f"wrote the {options.kind} {options.add!r} into {root}; next:")
        print(f"  pytest {root}")
        return
    root = new_plugin(options.name, options.kind, options.folder)
    print(f"wrote {root}; next:")
    print(f"  pip install --editable '{root}[dev]' && pytest {root}")
