"""A second part for an existing package: `mvkit new-plugin NAME --kind prior --add PART`."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

from mvkit.core.safe_file import write_whole
from mvkit.errors import SpecError, within

HOOK = "mvkit_components"
INDENT = "    "


def package_folder(name: str, folder: Path) -> Path:
    """The folder of an existing package: below `folder`, or `folder` itself.

    Raises:
        SpecError: neither has a pyproject.toml of that name and the module of declarations.
    """
    for root in (folder / name, folder):
        if _name_in(root / "pyproject.toml") == name and declarations(root, name).is_file():
            return root
    raise SpecError(
        f"no package {name!r} in {folder / name} or {folder}; expected its pyproject.toml and "
        f"{declarations(Path(), name)}; give --folder, or leave --add out to write a new one"
    )


def declarations(root: Path, name: str) -> Path:
    """The module of a package that declares its parts."""
    return root / "src" / name.replace("-", "_") / "__init__.py"


def _name_in(pyproject: Path) -> str | None:
    """The name of the project; None if there is none to be read."""
    try:
        project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {})
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return None
    name = project.get("name") if isinstance(project, dict) else None
    return name if isinstance(name, str) else None


def write_part(root: Path, files: dict[Path, str], declared: Path, component: str) -> None:
    """Writes the files of a part and declares it; all or nothing.

    Args:
        root: folder of the package.
        files: texts by path, none of which may exist.
        declared: the module of declarations.
        component: `Component(…)`, in Python.

    Raises:
        SpecError: a file exists, the part is declared already, or nobody can tell where to
            declare it.
    """
    with within("new-plugin"):
        for path in files:
            if path.exists():
                raise SpecError(f"{path} is there already; choose another name, or remove it")
        text = with_component(declared.read_text(encoding="utf-8"), component, declared)
    written: list[Path] = []
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            written.append(path)
            write_whole(path, content.encode())
        write_whole(declared, text.encode())
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def with_component(text: str, component: str, path: Path) -> str:
    """The text of a module of declarations with one component more, the rest as it was.

    Raises:
        SpecError: it declares the part already, or its hook returns no list of components.
    """
    by_hand = f"{path}: add {component} to what {HOOK} returns, and run again"
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise SpecError(f"{path}: no valid Python: {error}; mend it, and run again") from None
    wanted = _kind_and_name(ast.parse(component, mode="eval").body)
    for node in ast.walk(tree):
        if _kind_and_name(node) == wanted:
            kind, name = wanted or ("", "")
            raise SpecError(f"{path} declares the {kind} {name!r} already; choose another name")
    elements = _returned_list(tree)
    if elements is None or not _imports_component(tree):
        raise SpecError(
            f"{path}: expected a {HOOK} that returns a list of Component(…), imported from "
            f"mvkit.registry; {by_hand}"
        )
    return _inserted(text, elements, component)


def _kind_and_name(node: ast.AST) -> tuple[str, str] | None:
    """What a call of `Component` declares; None of anything else."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return None
    values = {f"{i}": value for i, value in enumerate(node.args)}
    values |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
    kind = values.get("0", values.get("kind"))
    name = values.get("1", values.get("name"))
    if not isinstance(kind, ast.Constant) or not isinstance(name, ast.Constant):
        return None
    return str(kind.value), str(name.value)


def _returned_list(tree: ast.Module) -> ast.List | None:
    """The list that the hook returns last."""
    lists = None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == HOOK:
            last = node.body[-1]
            if isinstance(last, ast.Return) and isinstance(last.value, ast.List):
                lists = last.value
    return lists


def _imports_component(tree: ast.Module) -> bool:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name == "Component" and alias.asname is None:
                    return True
    return False


def _inserted(text: str, elements: ast.List, component: str) -> str:
    """The text with a component at the end of a list."""
    source = text.encode()  # columns count bytes
    start = _position(source, elements.lineno, elements.col_offset)
    end = _position(source, elements.end_lineno or 0, elements.end_col_offset or 0)
    line = source.splitlines()[elements.lineno - 1].decode()
    margin = line[: len(line) - len(line.lstrip())]
    if elements.lineno != elements.end_lineno and elements.elts:
        last = elements.elts[-1]
        at = _position(source, last.end_lineno or 0, last.end_col_offset or 0)
        addition = f",\n{margin}{INDENT}{component}".encode()
        return (source[:at] + addition + source[at:]).decode()
    inside = source[start + 1 : end - 1].decode().strip().rstrip(",")
    items = [inside, component] if inside else [component]
    lines = "".join(f"{margin}{INDENT}{item},\n" for item in items)
    rewritten = f"[\n{lines}{margin}]"
    return (source[:start] + rewritten.encode() + source[end:]).decode()


def _position(source: bytes, line: int, column: int) -> int:
    """Where a line, counted from 1, and a column are in the text."""
    before = source.splitlines(keepends=True)[: line - 1]
    return sum(map(len, before)) + column
