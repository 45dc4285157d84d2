"""Files that are made anew only where they change, so that Sphinx reads only what is new."""

from __future__ import annotations

from pathlib import Path


def write_if_changed(path: Path, text: str) -> None:
    """Writes a file unless it has this text already."""
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)
