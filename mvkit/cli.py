"""The command line: `mvkit --help` lists what there is."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mvkit import available, plugins
from mvkit.checkpoint import describe
from mvkit.errors import MvkitError


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="mvkit", description="Multimodal generative models from reusable parts.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="train on real, partially observed pictures and show what was learnt")
    demo.add_argument("--folder", type=Path, default=Path(), help="where to write demo.png and model.safetensors")
    demo.add_argument("--epochs", type=int, default=35)
    demo.add_argument("--rows", type=int, default=10_000, help="training rows")
    listing = commands.add_parser("list", help="registered parts")
    listing.add_argument("kind", nargs="?", help="one kind only")
    show = commands.add_parser("show", help="the header of a saved model")
    show.add_argument("file", type=Path)
    report = commands.add_parser("report", help="measure a run's model and write a page that needs no network")
    report.add_argument("run", type=Path, help="a folder with model.safetensors")
    report.add_argument("-o", "--output", type=Path, help="the page; report.html in the run's folder by default")
    report.add_argument("--data", help="a dataset by name, instead of what run.toml says")
    report.add_argument("--seed", type=int, default=0)
    explore = commands.add_parser("explore", help="serve a page on this machine to look around in a run's model")
    explore.add_argument("run", type=Path, help="a folder with model.safetensors")
    explore.add_argument("--data", help="a dataset by name, instead of what run.toml says")
    explore.add_argument("--port", type=int, default=5006)
    explore.add_argument("--no-browser", action="store_true", help="only serve")
    commands.add_parser("plugins", help="what went wrong while looking for packages")
    scaffold = commands.add_parser("new-plugin", help="write a package with a part of your own, and its tests")
    scaffold.add_argument("name", help="of the package, such as mvkit-sharp")
    scaffold.add_argument("--kind", default="aggregator", help="of the part (default: aggregator)")
    scaffold.add_argument("--folder", type=Path, default=Path(), help="where the package's folder goes")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except (MvkitError, OSError) as error:
        print(f"mvkit: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    if options.command == "demo":
        from mvkit.demo import run

        run(options.folder, epochs=options.epochs, rows=options.rows)
    elif options.command == "list":
        for kind in [options.kind] if options.kind else plugins.KINDS:
            print(f"{kind + ':':<12}{' '.join(available(kind))}")
    elif options.command == "show":
        print(json.dumps(describe(options.file), indent=2))
    elif options.command == "new-plugin":
        from mvkit.scaffold import new_plugin

        print(f"wrote {(root := new_plugin(options.name, options.kind, options.folder))}; next:")
        print(f"  pip install --editable '{root}[dev]' && pytest {root}")
    elif options.command == "report":
        from mvkit.page import write_page

        output = options.output or options.run / "report.html"
        print(write_page(options.run, output, data=options.data, seed=options.seed))
        print(f"\npage: {output}")
    elif options.command == "explore":
        from mvkit.explore import explore

        explore(options.run, data=options.data, port=options.port, show=not options.no_browser)
    else:
        for problem in plugins.problems():
            print(problem)
        print(f"{len(plugins.problems())} problems")
    return 0
