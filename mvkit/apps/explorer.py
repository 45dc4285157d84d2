"""The explorer: a page on this machine, to pick a row, untick what is observed and move latents.

The page is plain HTML and JavaScript, `templates/explorer.*`, and asks for JSON; see
`mvkit.apps.explorer_answers` for what it is told, `mvkit.apps.explorer_server` for who is.
"""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from mvkit.apps.embed_files import layouts_of
from mvkit.apps.explorer_answers import Explorer
from mvkit.apps.explorer_server import Content, ExplorerServer
from mvkit.apps.html_report import folder_of, is_imputed, run_data, weights_of
from mvkit.apps.imputed_folder import rows_of_files
from mvkit.apps.pages import style_sheet
from mvkit.data.table_layout import TableLayout
from mvkit.errors import DataError
from mvkit.models.checkpoint import load_model

PAGE = {
    "": ("explorer.html", "text/html; charset=utf-8"),
    "explorer.css": ("explorer.css", "text/css; charset=utf-8"),
    "explorer.js": ("explorer.js", "text/javascript; charset=utf-8"),
    "drawing.js": ("drawing.js", "text/javascript; charset=utf-8"),
    "features.js": ("features.js", "text/javascript; charset=utf-8"),
}


def explore(run: Path, *, data: str | None = None, port: int = 5006, show: bool = True) -> None:
    """Serves the explorer of a run on the loopback address until it is stopped.

    The address of the page has a secret in it, so that nobody else on this machine can read it.

    Args:
        run: a folder with `model.safetensors`, and `run.toml` or `data`; or one that `mvkit
            impute` wrote, of which all rows are shown.
        data: name of a dataset, instead of what `run.toml` says.
        port: of the page.
        show: open a browser.

    Raises:
        DataError: a model that is not in the folder, be it by a link, or data that are not named.
        OSError: the port is in use.
    """
    model = load_model(weights_of(run))
    folder = folder_of(run)
    if data is None and is_imputed(folder):
        rows = rows_of_files(folder)
    else:
        rows = run_data(folder, data).test
    layouts = _layouts(folder) if data is None else {}
    explorer = Explorer(model, rows, title=folder.resolve().name, layouts=layouts)
    with server_of(explorer, port) as server:
        print(f"explorer: {server.address} (stop with Ctrl-C)", flush=True)
        if show:
            threading.Thread(target=webbrowser.open, args=(server.address,), daemon=True).start()
        server.serve_forever()


def server_of(explorer: Explorer, port: int) -> ExplorerServer:
    """A server of the page of an explorer, which listens from now on.

    Args:
        explorer: what answers.
        port: of the page; 0: any that is free.

    Raises:
        OSError: the port is in use.
    """
    folder = files("mvkit.apps").joinpath("templates")
    content = {}
    for name, (file, media_type) in PAGE.items():
        content[name] = Content(media_type, folder.joinpath(file).read_bytes())
    content["style.css"] = Content("text/css; charset=utf-8", style_sheet().encode())
    content["model.json"] = Content.of_json(explorer.description())
    return ExplorerServer(port, content, {"row": explorer.row, "answer": explorer.answer})


def _layouts(folder: Path) -> Mapping[str, TableLayout]:
    """The layouts of the tables of a run; none where it is on other data."""
    try:
        return layouts_of(folder)
    except DataError:
        return {}
