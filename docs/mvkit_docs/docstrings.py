"""Docstrings, which are plain text with backticks, as reStructuredText for Sphinx."""

from __future__ import annotations

import re

from mvkit_docs.formulas import mark

SECTION = re.compile(r"\s*(Args|Returns|Raises|Example|Examples|Yields|Attributes|Note):\s*$")


def as_rst(docstring: str) -> str:
    """A docstring's text in reStructuredText; its sections stay for napoleon."""
    blocks = re.split(r"(\n\s*\n)", docstring)
    return "".join(_block(block) for block in blocks)


def _block(block: str) -> str:
    lines = block.splitlines(keepends=True)
    if not block.strip():
        return block
    rows = [line for line in lines if line.lstrip().startswith("|")]
    if len(rows) > 1:
        start = lines.index(rows[0])
        return _prose("".join(lines[:start])) + "\n" + _table("".join(lines[start:]))
    for index, line in enumerate(lines):
        if line.lstrip().startswith(">>>"):
            return _prose("".join(lines[:index])) + "".join(lines[index:])
    return _prose(block)


def _prose(text: str) -> str:
    """Words with code between backticks, which may go over the end of a line."""
    pieces = re.split(r"(``.+?``|`[^`]+`)", text, flags=re.DOTALL)
    converted = []
    for index, piece in enumerate(pieces):
        if index % 2:
            code = " ".join(piece.strip("`").split())
            before = pieces[index - 1]
            glue = r"\ " if re.search(r"[\w.]\Z", before) else ""
            follows = r"\ " if re.match(r"\w", pieces[index + 1]) else ""
            converted.append(f"{glue}``{code}``{follows}")
        else:
            lines = piece.split("\n")
            converted.append("\n".join(_line(line) for line in lines))
    return "".join(converted)


def _line(line: str) -> str:
    if SECTION.match(line) or not line.strip():
        return line
    bullet = re.match(r"(\s*\* )(.*)", line, re.DOTALL)
    if bullet:
        return bullet[1] + mark(bullet[2])
    name = re.match(r"(\s*[\w, *]+:)( .*)", line)  # of an argument
    if name and not re.match(r"\s*Reference", line):
        return name[1] + mark(name[2])
    return re.sub(r"^(\s*)(References?):", r"\1**\2:**", mark(line))


def _table(text: str) -> str:
    """A Markdown table as a list table."""
    rows = [line.strip().strip("|").split("|") for line in text.strip().splitlines()]
    indent = re.match(r"\s*", text)
    margin = indent[0].strip("\n") if indent else ""
    lines = [f"{margin}.. list-table::", f"{margin}   :header-rows: 1", ""]
    for row in rows:
        if not set("".join(row)) <= set("-: "):
            cells = [_prose(cell.strip()) for cell in row]
            lines.append(f"{margin}   * - {cells[0]}")
            lines.extend(f"{margin}     - {cell}" for cell in cells[1:])
    return "\n".join(lines) + "\n"
