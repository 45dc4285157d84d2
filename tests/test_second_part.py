"""`mvkit new-plugin NAME --kind KIND --add PART` writes a further part into a package, or nothing."""

import ast
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

import mvkit
from mvkit import SpecError
from mvkit.apps import cli, new_plugin, second_part
from mvkit.registry import plugins


def installed(packages, root, monkeypatch):
    """What pip makes of a package."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    info = packages / "mvkit_sharp-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"{k} = {v}\n" for k, v in project["entry-points"]["mvkit"].items()]
    (info / "entry_points.txt").write_text("[mvkit]\n" + "".join(lines))
    monkeypatch.syspath_prepend(root / "src")
    plugins.registry.cache_clear()


def run_tests(path):
    loaded = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    for name, value in vars(module).items():
        if name.startswith("test_"):
            value()


def texts(root):
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("inside", [False, True], ids=["beside", "inside"])
def test_a_second_and_a_third_part(packages, monkeypatch, capsys, inside):
    new = ["new-plugin", "mvkit-sharp", "--folder", str(packages)]
    assert cli.main([*new, "--kind", "ramp"]) == 0
    root = packages / "mvkit-sharp"
    before = texts(root)
    if inside:
        monkeypatch.chdir(root)
        new = new[:2]
    assert cli.main([*new, "--kind", "optimizer", "--add", "soft"]) == 0
    assert "wrote the optimizer 'soft' into" in capsys.readouterr().out
    assert cli.main([*new, "--kind", "recipe", "--add", "softer_still"]) == 0
    after = texts(root)
    changed = [path.name for path in before if after[path] != before[path]]
    assert changed == ["__init__.py"]
    added = {str(path.relative_to(root)) for path in after.keys() - before.keys()}
    assert added == {
        "src/mvkit_sharp/soft.py",
        "src/mvkit_sharp/softer_still.py",
        "tests/test_soft.py",
        "tests/test_softer_still.py",
    }
    installed(packages, root, monkeypatch)
    assert plugins.problems() == []
    for kind, part in (("ramp", "sharp"), ("optimizer", "soft"), ("recipe", "softer_still")):
        assert part in mvkit.available(kind)
        run_tests(root / "tests" / f"test_{part}.py")


@pytest.mark.parametrize("kind", new_plugin.kinds())
def test_every_kind_may_be_added(tmp_path, kind):
    root = new_plugin.new_plugin("mvkit-sharp", "ramp", tmp_path)
    new_plugin.add_part("mvkit-sharp", kind, "soft", tmp_path)
    for path in root.rglob("*.py"):
        ast.parse(path.read_text())
        assert "@" not in path.read_text().replace("@spec", "").replace("@hookimpl", "")


OWN = '''"""Mine: äöü."""  # not to be lost

from mvkit.registry import Component, hookimpl  # first

VERSION = 3


@hookimpl
def mvkit_components():
    # a comment
    return [
        Component("ramp", "sharp", "mvkit_sharp.sharp:Sharp", "é"),  # it is sharp
        Component(kind="ramp", name="dull", target="mvkit_sharp.dull:Dull")  # no comma
        # the end
    ]


@hookimpl
def mvkit_event(event):
    pass
'''
NEW = 'Component("prior", "soft", "mvkit_sharp.soft:Soft")'


def test_what_the_author_wrote_stays():
    extended = second_part.with_component(OWN, NEW, Path("x"))
    assert extended.replace(f",\n        {NEW}", "") == OWN
    names = {"Component": lambda *a, **o: (a, o)}
    source = extended.replace("@hookimpl\n", "").replace("from mvkit", "# from mvkit")
    exec(source, names)
    assert len(names["mvkit_components"]()) == 3


@pytest.mark.parametrize(
    ("returned", "count"),
    [("[]", 1), ("[a]", 2), ("[a,]", 2), ("[\n    a, b,\n    ]", 3), ("[\n    a,\n    b]", 3)],
)
def test_lists_of_any_form(returned, count):
    head = "from mvkit.registry import Component\n\ndef mvkit_components():\n    return "
    extended = second_part.with_component(f"{head}{returned}\nx = 1\n", NEW, Path("x"))
    (function,) = (n for n in ast.parse(extended).body if isinstance(n, ast.FunctionDef))
    assert len(function.body[0].value.elts) == count
    assert extended.endswith("]\nx = 1\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def f(:", "no valid Python"),
        (
            "from mvkit.registry import Component\n",
            "expected a mvkit_components that returns a list",
        ),
        (
            OWN.replace("Component, hookimpl", "Component as C, hookimpl"),
            "imported from mvkit.reg",
        ),
        (
            OWN.replace("return [", "yield from ["),
            "x: add Component.*to what mvkit_components ret",
        ),
        (OWN.replace('"ramp", name="dull"', '"prior", name="soft"'), "declares the prior 'soft'"),
    ],
)
def test_declarations_that_only_their_author_can_extend(text, reason):
    with pytest.raises(SpecError, match=reason):
        second_part.with_component(text, NEW, Path("x"))


@pytest.mark.parametrize(
    ("name", "kind", "part", "reason"),
    [
        ("mvkit-sharp", "ramp", "sharp", "src/mvkit_sharp/sharp.py is there already; choose"),
        ("mvkit-sharp", "prior", "sharp", "src/mvkit_sharp/sharp.py is there already; choose"),
        ("mvkit-sharp", "ramp", "linear", "ramp 'linear' is built in; take another name"),
        ("mvkit-sharp", "ramp", "class", "'class' cannot name a part"),
        ("mvkit-sharp", "ramp", "Soft", "'Soft' cannot name a part"),
        ("mvkit-sharp", "ramp", "../up", "'../up' cannot name a part"),
        ("mvkit-sharp", "rampe", "soft", "no template of kind 'rampe'; did you mean 'ramp'"),
        ("mvkit-blunt", "ramp", "soft", "no package 'mvkit-blunt' in .*mvkit-blunt or"),
        ("Bad", "ramp", "soft", "got the name 'Bad'"),
    ],
)
def test_what_cannot_be_added_changes_nothing(tmp_path, capsys, name, kind, part, reason):
    new_plugin.new_plugin("mvkit-sharp", "ramp", tmp_path)
    before = texts(tmp_path)
    options = ["--kind", kind, "--add", part, "--folder", str(tmp_path)]
    assert cli.main(["new-plugin", name, *options]) == 1
    assert re.search(f"mvkit: new-plugin: .*{reason}", capsys.readouterr().err)
    assert texts(tmp_path) == before


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path, monkeypatch):
    new_plugin.new_plugin("mvkit-sharp", "ramp", tmp_path)
    before = texts(tmp_path)
    write = second_part.write_whole

    def full(path, content):
        if path.name == "__init__.py":
            raise OSError("no space left on device")
        write(path, content)

    monkeypatch.setattr(second_part, "write_whole", full)
    with pytest.raises(OSError, match="no space"):
        new_plugin.add_part("mvkit-sharp", "prior", "soft", tmp_path)
    assert texts(tmp_path) == before


def test_an_existing_folder_says_how_to_add_a_part(tmp_path):
    new_plugin.new_plugin("mvkit-sharp", "ramp", tmp_path)
    with pytest.raises(SpecError, match="is there already; .*second part.*--add PART"):
        new_plugin.new_plugin("mvkit-sharp", "prior", tmp_path)


def test_no_template_names_the_host_of_a_registry():
    for path in new_plugin.TEMPLATES.rglob("*"):
        if path.is_file():
            assert "pypi" + ".org" not in path.read_text()
