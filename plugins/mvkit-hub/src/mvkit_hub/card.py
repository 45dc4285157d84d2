"""The card of a model, README.md: what it is, what it was trained on, how good it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from mvkit import Batch, Ensemble, Model, MultimodalDataset, Report, RequestError, Stack
from mvkit_hub.config import Config, modalities_of

AnyModel = Model | Stack
Described = MultimodalDataset | Batch | Mapping[str, Any] | str


def card_of(
    model: AnyModel | Ensemble,
    header: Config,
    *,
    repo: str,
    report: Report | None = None,
    data: Described | None = None,
    license: str | None = None,
) -> str:
    """The card as Markdown, after the YAML that the hub reads.

    Args:
        model: the model, or the ensemble.
        header: of its file, as `mvkit.describe` returns it.
        repo: the repository, `user/name`.
        report: what `mvkit.evaluate` returned.
        data: the rows of training, which are counted; or what is said of them.
        license: an identifier of the hub.

    Raises:
        RequestError: a report that is none.
    """
    sections = [
        _front_matter(header, license),
        f"# {repo.rpartition('/')[2]}",
        _how_to_pull(repo, header),
        _model_section(model, header),
    ]
    if data is not None:
        sections.append(_data_section(model, data))
    if report is not None:
        sections.append(_report_section(report))
    return "\n\n".join(sections) + "\n"


def _front_matter(header: Config, license: str | None) -> str:
    """What the hub reads: library, tags, license."""
    from huggingface_hub import ModelCardData

    tags = ["mvkit", "multimodal", header["model"]["name"]]
    data = ModelCardData(library_name="mvkit", tags=tags, license=license)
    return f"---\n{data.to_yaml()}\n---"


def _how_to_pull(repo: str, header: Config) -> str:
    """A line of what it is, and the lines that load it."""
    packages = ["mvkit-hub", f"mvkit=={header['mvkit']}"]
    for package, version in header["packages"].items():
        packages.append(f"{package}=={version}")
    needs = ""
    modules = list(_externals(header["model"]))
    if modules:
        listed = "\n".join(f"* `{path}`: `{name}`" for path, name in modules)
        needs = (
            "\n\nModules of its author's, whose code is in no file; give `pull` modules like them "
            f"(`modules={{path: module}}`):\n\n{listed}"
        )
    return (
        "A multimodal generative model, made with mvkit.\n\n"
        f"    pip install {' '.join(packages)}\n\n"
        "```python\nimport mvkit_hub\n\n"
        f'model = mvkit_hub.pull("{repo}")\n```{needs}'
    )


def _externals(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Modules of the user's in a header: their paths, as `mvkit.load` takes them, and classes."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        inner = f"{path}.{key}".lstrip(".")
        if isinstance(item, dict) and set(item) == {"external"}:
            yield inner, str(item["external"])
        else:
            yield from _externals(item, inner)


def _model_section(model: AnyModel | Ensemble, header: Config) -> str:
    """Modalities in a table, then all parts as the model prints them."""
    lines = ["| modality | shape | likelihood |", "|---|---|---|"]
    for name, modality in modalities_of(header["model"]).items():
        shape = " × ".join(map(str, modality["shape"]))
        lines.append(f"| {_cell(name)} | {shape} | {_cell(modality['likelihood']['name'])} |")
    table = "\n".join(lines)
    return f"## Model\n\n{table}\n\n```text\n{model!r}\n```"


def _data_section(model: AnyModel | Ensemble, data: Described) -> str:
    """How many rows, and what is missing in them: counts only."""
    if isinstance(data, str):
        return f"## Data\n\n{data}"
    shares = model.in_blocks(lambda batch: _shares(batch, model.names), data)["shares"]
    observed = shares > 0
    complete = int(observed.all(1).sum())
    lines = [
        f"{len(shares):,} rows, {complete:,} of them with all modalities.",
        "",
        "| modality | rows that have it | of their values, missing |",
        "|---|---:|---:|",
    ]
    for name, share, rows in zip(model.names, shares.T, observed.T, strict=True):
        missing = 1 - float(share[rows].mean()) if bool(rows.any()) else 0.0
        lines.append(f"| {_cell(name)} | {int(rows.sum()):,} | {missing:.1%} |")
    return "## Data\n\n" + "\n".join(lines)


def _shares(batch: Batch, names: Sequence[str]) -> dict[str, Tensor]:
    """Which share of the values of each modality a row has, (b, m); 0: it lacks the modality."""
    shares = batch.observed.double()
    for i, name in enumerate(names):
        elements = (batch.elements or {}).get(name)
        if elements is not None:
            shares[:, i] *= elements.double().flatten(1).mean(1)
    return {"shares": shares}


def _report_section(report: Report) -> str:
    """The report's table, what it notes, and of how many rows and which seed it is."""
    if not isinstance(report, Report):
        raise RequestError(
            f"push: report: got {type(report).__name__}; expected what mvkit.evaluate returns"
        )
    lines = [report.to_markdown()]
    facts = [f"{name} {report.about[name]}" for name in ("rows", "seed") if name in report.about]
    if facts:
        lines.append(f"By `mvkit.evaluate`: {', '.join(facts)}.")
    lines += [f"* {note}" for note in report.notes]
    return "## Report\n\n" + "\n\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
