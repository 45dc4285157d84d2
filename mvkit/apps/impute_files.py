"""`mvkit impute`: files with gaps in, a folder of imputed files and all that goes with them out.

out/a.csv, b.parquet      the tables, filled; the same columns in the same order
out/draws/1/a.csv, …      filled at random, for multiple imputation
out/embedding.csv         what each row became
out/model.safetensors     for `mvkit.load`, and `mvkit show`
out/choices.json          what was chosen; each can be given with --set and --kind
out/report.html           how well hidden cells were recovered
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import mvkit
from mvkit.apps.embed_files import LAYOUTS, embed_files, write_layouts
from mvkit.apps.html_report import page_template
from mvkit.apps.init_file import named_files
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


def impute_files(
    paths: Sequence[Path],
    output: Path,
    *,
    id: str | None = None,
    draws: int = 5,
    seed: int = 0,
    kinds: Sequence[str] = (),
    changes: Sequence[str] = (),
) -> Imputation:
    """Fills files with gaps and writes a folder; see the module's docstring.

    Args:
        paths: of CSV, TSV or Parquet files.
        output: the folder.
        id: the column of ids; several files are aligned by it.
        draws: tables filled at random.
        seed: of everything.
        kinds: `column=kind` of columns that are something else than they look like; of several
            files `file.column=kind`.
        changes: `choice=value`.

    Raises:
        DataError: as `mvkit.impute`.
        RequestError: files of one name, or an option that cannot be read.
        OSError: a file that cannot be read or written.
    """
    named = named_files(paths)
    if output.exists() and not output.is_dir():
        raise RequestError(f"{output}: a file; expected a folder to write; choose another with -o")
    imputation = impute_tables(
        named, id=id, kinds=_kinds(kinds, named), choices=_choices(changes), draws=draws, seed=seed
    )
    _write_tables(imputation, imputation.tables, named, output)
    for number, tables in enumerate(imputation.draws, 1):
        _write_tables(imputation, tables, named, output / "draws" / str(number))
    save(cast(MultimodalModel, imputation.model), output / "model.safetensors")
    choices = json.dumps(dict(imputation.choices), indent=2)
    write_whole(output / "choices.json", f"{choices}\n".encode())
    write_layouts(imputation.layouts, output / LAYOUTS)
    embed_files(output, paths, output / "embedding.csv", id=id)
    write_whole(output / "report.html", page(imputation, named).encode())
    return imputation


def _kinds(texts: Sequence[str], named: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Kinds of columns by file, of texts such as `grade=ordered` or `labs.grade=ordered`."""
    kinds: dict[str, dict[str, str]] = {}
    for text in texts:
        column, equals, kind = text.rpartition("=")
        file, dot, rest = column.partition(".")
        if not equals or not column:
            raise RequestError(
                f"--kind {text}: expected COLUMN=KIND, such as --kind grade=ordered; of several "
                "files FILE.COLUMN=KIND"
            )
        if dot and file in named:
            column = rest
        elif len(named) == 1:
            file = next(iter(named))
        else:
            raise RequestError(
                f"--kind {text}: of which file? expected FILE.COLUMN=KIND, FILE being one of "
                f"{', '.join(named)}"
            )
        kinds.setdefault(file, {})[column] = kind
    return kinds


def _choices(changes: Sequence[str]) -> dict[str, object]:
    """Choices of texts such as `epochs=20`."""
    choices: dict[str, object] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        try:
            choices[name.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            equals = ""
        if not equals:
            raise RequestError(f"--set {change}: expected CHOICE=VALUE, such as --set epochs=20")
    return choices


def _write_tables(
    imputation: Imputation, tables: Mapping[str, Any], named: Mapping[str, Path], folder: Path
) -> None:
    """Writes tables as files of the same names and kinds as they came from."""
    for name, path in named.items():
        _write(folder / path.name, tables[name], {name: imputation.layouts[name]})


def _write(path: Path, table: DataFrame, layouts: Mapping[str, TableLayout]) -> None:
    """Writes one table; in text, whole numbers stand as such."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = next(suffix for suffix in path.suffixes if suffix in SEPARATORS)
    separator = SEPARATORS[suffix]
    if separator is None:
        table.to_parquet(path, index=False)
        return
    whole = {}
    for layout in layouts.values():
        for column in layout.columns:
            bits = column.kind == "bits" and table[column.name].dtype.kind == "f"
            if bits or (column.whole and table[column.name].dtype.kind == "f"):
                whole[column.name] = "Int64"
    table.astype(whole).to_csv(path, sep=separator, index=False)


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
        files=[str(path) for path in named.values()],
        version=mvkit.__version__,
    )
    return text
