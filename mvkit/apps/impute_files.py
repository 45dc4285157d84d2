"""`mvkit impute`: files with gaps in, a folder of imputed files and all that goes with them out.

out/a.csv, b.parquet      the tables, filled; the same columns in the same order
out/draws/1/a.csv, …      filled at random
out/completed/1/a.csv, …  completed for multiple imputation, instead of draws
out/low/a.csv, high/…     ends of intervals; observed values where nothing was missing
out/sets/a.csv, …         what a cell of a category or of yes and no may be
out/coverage.csv          how intervals and sets did on cells hidden from training
out/embedding.csv         what each row became
out/model.safetensors     for `mvkit.load`, and `mvkit show`
out/choices.json          what was chosen; each can be given with --set and --kind
out/files.json            where the tables came from, for `mvkit explore`
out/report.html           how well hidden cells were recovered
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs

import mvkit
from mvkit.apps.embed_files import LAYOUTS, embed_files, write_layouts
from mvkit.apps.impute_options import choices_of, kinds_of, uncertainty_of
from mvkit.apps.imputed_folder import write_files
from mvkit.apps.init_file import common_ids, named_files
from mvkit.apps.pages import page_template
from mvkit.core.safe_file import write_whole
from mvkit.data.files import SEPARATORS
from mvkit.data.table_layout import TableLayout
from mvkit.errors import RequestError
from mvkit.models.checkpoint import save
from mvkit.models.imputed import Imputation
from mvkit.models.multimodal import MultimodalModel
from mvkit.tables.impute import impute_tables

if TYPE_CHECKING:
    from pandas import DataFrame

BETWEEN = " | "  # the values of a set


def impute_files(
    paths: Sequence[Path],
    output: Path,
    *,
    id: str | None = None,
    seed: int = 0,
    kinds: Sequence[str] = (),
    changes: Sequence[str] = (),
    **uncertainty: Any,
) -> Imputation:
    """Fills files with gaps and writes a folder; see the module's docstring.

    Args:
        paths: of CSV, TSV or Parquet files.
        output: the folder.
        id: the column of ids; None: with several files the one that looks like it.
        seed: of everything.
        kinds: `column=kind` of columns that are something else than they look like; of several
            files `file.column=kind`.
        changes: `choice=value`.
        uncertainty: `draws`, `m`, `refit`, `intervals` and `missingness` as they were typed; see
            `uncertainty_of`.

    Raises:
        DataError: as `mvkit.impute`.
        RequestError: files of one name, or an option that cannot be read.
        OSError: a file that cannot be read or written.
    """
    named = named_files(paths)
    if output.exists() and not output.is_dir():
        raise RequestError(f"{output}: a file; expected a folder to write; choose another with -o")
    options = uncertainty_of(**uncertainty)
    if id is None and len(named) > 1:
        id = common_ids(named, "impute")
    options |= {"kinds": kinds_of(kinds, named), "choices": choices_of(changes)}
    with warnings.catch_warnings():
        # the page and the command say it in their own words
        warnings.filterwarnings("ignore", message="impute: refit=False")
        imputation = impute_tables(named, id=id, seed=seed, **options)
    stated = _stated(options)
    imputation = attrs.evolve(imputation, choices={**imputation.choices, **stated})
    _write_tables(imputation, imputation.tables, named, output)
    drawn = output / ("completed" if "m" in stated else "draws")
    for number, tables in enumerate(imputation.draws, 1):
        _write_tables(imputation, tables, named, drawn / str(number))
    if "intervals" in stated:
        _write_intervals(imputation, named, id, output)
    save(cast(MultimodalModel, imputation.model), output / "model.safetensors")
    choices = json.dumps(dict(imputation.choices), indent=2)
    write_whole(output / "choices.json", f"{choices}\n".encode())
    write_layouts(imputation.layouts, output / LAYOUTS)
    write_files(named, id, output)
    embed_files(output, paths, output / "embedding.csv", id=id)
    write_whole(output / "report.html", page(imputation, named).encode())
    return imputation


def _stated(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of completed tables and intervals that were asked for, for choices.json."""
    stated = {key: options[key] for key in ("m", "intervals") if key in options}
    if "m" in options:
        stated["refit"] = options["refit"]
    return stated


def _write_tables(
    imputation: Imputation, tables: Mapping[str, Any], named: Mapping[str, Path], folder: Path
) -> None:
    """Writes tables as files of the same names and kinds as they came from."""
    for name, path in named.items():
        _write(folder / path.name, tables[name], imputation.layouts[name])


def _write(path: Path, table: DataFrame, layout: TableLayout) -> None:
    """Writes one table; in text, whole numbers stand as such."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = next(suffix for suffix in path.suffixes if suffix in SEPARATORS)
    separator = SEPARATORS[suffix]
    if separator is None:
        table.to_parquet(path, index=False)
        return
    whole = {}
    for column in layout.columns:
        if column.name not in table.columns or table[column.name].dtype.kind != "f":
            continue
        known = table[column.name].dropna()
        if column.whole or (not column.numeric and (known == known.round()).all()):
            whole[column.name] = "Int64"
    table.astype(whole).to_csv(path, sep=separator, index=False)


def _write_intervals(
    imputation: Imputation, named: Mapping[str, Path], id: str | None, output: Path
) -> None:
    """Writes the ends of intervals, the sets, and how they did.

    Files that would have no column but that of ids are not written.
    """
    for name, path in named.items():
        tables = {"low": imputation.low[name], "high": imputation.high[name]}
        tables["sets"] = _sets(imputation, name, id)
        for folder, table in tables.items():
            if set(map(str, table.columns)) - {id}:
                _write(output / folder / path.name, table, imputation.layouts[name])
    coverage = imputation.coverage.to_csv(index=False)
    write_whole(output / "coverage.csv", coverage.encode())


def _sets(imputation: Imputation, name: str, id: str | None) -> DataFrame:
    """The sets of a table as texts such as `A | B`, and the ids before them."""
    from pandas.api.types import infer_dtype

    sets = imputation.sets[name]
    filled = imputation.tables[name]
    texts = {}
    for column in sets.columns:
        words = {0: "False", 1: "True"} if infer_dtype(filled[column]) == "boolean" else {}
        texts[column] = [_joined(cell, words) for cell in sets[column]]
    table = sets.assign(**texts)
    return table if id is None else table.reset_index(names=id)


def _joined(cell: tuple[object, ...], words: Mapping[Any, str]) -> str:
    """The values of a set, of yes and no in the words of the file."""
    return BETWEEN.join(words.get(value, str(value)) for value in cell)


def page(imputation: Imputation, named: Mapping[str, Path]) -> str:
    """The report as one HTML page that needs no network."""
    template = page_template("impute.html.jinja")
    choices = {key: value for key, value in imputation.choices.items() if key != "kinds"}
    layouts = {}
    for name, layout in imputation.layouts.items():
        layouts[named[name].name] = [(column.name, column.kind) for column in layout.columns]
    text: str = template.render(
        report=imputation.report,
        choices=choices,
        layouts=layouts,
        coverage=_coverage(imputation),
        files=[str(path) for path in named.values()],
        version=mvkit.__version__,
    )
    return text


def _coverage(imputation: Imputation) -> list[dict[str, Any]]:
    """How intervals and sets did, a line for each column; none were asked for: no line."""
    if imputation.coverage is None:
        return []
    files: dict[str, str] = {}
    for name, layout in imputation.layouts.items():
        prefix = f"{name}." if len(imputation.layouts) > 1 else ""
        files |= dict.fromkeys(layout.groups, prefix)
    lines: list[dict[str, Any]] = imputation.coverage.to_dict("records")
    for line in lines:
        line["column"] = f"{files[line['modality']]}{line['column']}"
    return lines
