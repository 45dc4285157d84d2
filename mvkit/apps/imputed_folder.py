"""What `mvkit impute` notes of where its rows came from, and how they are read again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from mvkit.apps.embed_files import layouts_of
from mvkit.apps.html_report import FILES
from mvkit.core.safe_file import write_whole
from mvkit.data.dataset import MultimodalDataset
from mvkit.data.files import read_files
from mvkit.errors import DataError
from mvkit.tables.rows import MixedRows


def write_files(named: Mapping[str, Path], id: str | None, folder: Path) -> None:
    """Notes the files that a folder's tables came from, as paths from the folder.

    Args:
        named: paths by name.
        id: the column of ids; None: the file has none.
        folder: what `mvkit impute` writes.
    """
    files = {name: os.path.relpath(path, folder) for name, path in named.items()}
    text = json.dumps({"files": files, "id": id}, indent=2)
    write_whole(folder / FILES, f"{text}\n".encode())


def rows_of_files(folder: Path) -> MultimodalDataset:
    """The rows that `mvkit impute` filled, with their gaps, read from their files again.

    Raises:
        DataError: a note that cannot be read, a file that is there no more, or has other columns.
    """
    note = folder / FILES
    try:
        plain = json.loads(note.read_text("utf-8"))
        files = {str(name): folder / str(path) for name, path in plain["files"].items()}
        id = plain["id"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{note}: {type(error).__name__}: {error}; expected files by name, and the column of "
            "ids, as mvkit impute writes them; impute again"
        ) from None
    for path in files.values():
        if not path.is_file():
            raise DataError(
                f"{note}: no file {os.path.normpath(path)}; expected the files that were imputed; "
                f"put them back, or correct their paths in {FILES}"
            )
    return MixedRows.of(read_files(files, id), layouts_of(folder)).data
