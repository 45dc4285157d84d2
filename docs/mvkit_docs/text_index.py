"""`llms.txt`: the pages and the public objects as a plain text, for programs that read."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

from mvkit.registry.component import KINDS
from mvkit_docs.public_objects import TITLES, public_objects
from mvkit_docs.tutorial_pages import tutorials

SUMMARY = """# mvkit

> Multimodal generative models put together from reusable parts, for data with gaps: Python and
> PyTorch. A model is encoders, an aggregator, a prior, decoders with likelihoods, and an
> objective; each is named by a string or built from its class. NaN means missing, zero never does.

Install: pip install mvkit. Every part as data: mvkit list --json. Paths below are from the root of
this site, and those of pages (`.html`) are files (`.md`) in `docs/` of the repository.
"""
PAGES = (
    "start/tables",
    "start/cells",
    "start/research",
    "which_model",
    "concepts",
    "gaps",
    "tables",
    "runs",
    "scale",
    "larger_than_memory",
    "plugins",
    "models",
    "benchmarks",
    "architecture",
    "migrating",
    "cite",
)
LENGTH = 160


def text_index(folder: Path) -> str:
    """The text, from the sources of the pages in a folder, the tutorials and the registry."""
    lines = [SUMMARY, "## Pages\n"]
    for name in PAGES:
        heading, first = _heading(folder / f"{name}.md")
        lines.append(f"- [{heading}]({name}.html): {first}")
    lines.append("- [Parts](parts.html): every registered part, its options and its source")
    lines.append("\n## Tutorials\n")
    for each in tutorials():
        lines.append(f"- [{each.title}](tutorials/{each.path.stem}.html): {each.relative}")
    groups = [*TITLES, *KINDS]
    objects = sorted(public_objects(), key=lambda each: groups.index(each.group))
    for group, members in groupby(objects, key=lambda each: each.group):
        lines.append(f"\n## API: {TITLES.get(group, group)}\n")
        for each in members:
            part = f" ({each.part})" if each.part else ""
            summary = _short(each.summary)
            lines.append(f"- [{each.name}](api/{each.name}.html){part}: {summary}")
    return "\n".join(lines) + "\n"


def _heading(path: Path) -> tuple[str, str]:
    """The title of a page, and its first sentence."""
    text = path.read_text()
    heading = re.search(r"^# (.+)$", text, re.MULTILINE)
    if heading is None:
        return path.stem, ""
    first = text[heading.end() :].strip().partition("\n\n")[0]
    return heading[1], _short(re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", " ".join(first.split())))


def _short(text: str) -> str:
    """A text's first sentence, or its beginning."""
    sentence = re.split(r"(?<=[.:]) ", text)[0]
    return sentence if len(sentence) <= LENGTH else f"{sentence[: LENGTH - 1]}…"


if __name__ == "__main__":
    docs = Path(__file__).parent.parent
    (docs / "llms.txt").write_text(text_index(docs))
