"""`mvkit new-plugin` writes packages that pass their own tests at once, for every kind."""

import importlib.util
import re
import tomllib

import pytest

from mvkit import SpecError
from mvkit.apps import cli, new_plugin
from mvkit.registry import component, plugins

KINDS = {
    "aggregator",
    "prior",
    "objective",
    "family",
    "likelihood",
    "missingness",
    "network",
    "schedule",
    "ramp",
    "optimizer",
    "dataset",
    "transform",
    "sampler",
    "refiner",
    "metric",
}


def test_there_is_a_template_of_every_kind():
    assert set(new_plugin.kinds()) >= KINDS
    assert set(new_plugin.kinds()) <= set(component.KINDS)


@pytest.mark.parametrize("kind", new_plugin.kinds())
def test_a_new_package_passes_its_own_tests(packages, monkeypatch, capsys, kind):
    assert (
        cli.main(["new-plugin", f"mvkit-own-{kind}", "--kind", kind, "--folder", str(packages)])
        == 0
    )
    root = packages / f"mvkit-own-{kind}"
    assert f"wrote {root}; next:" in capsys.readouterr().out
    project = tomllib.loads((root / "pyproject.toml").read_text())
    info = (
        packages / f"mvkit_own_{kind}-0.1.0.dist-info"
    )  # what pip makes of it; test_packaging has pip do it
    info.mkdir()
    (info / "METADATA").write_text(
        f"Name: {project['project']['name']}\nVersion: {project['project']['version']}\n"
    )
    points = project["project"]["entry-points"]["mvkit"]
    (info / "entry_points.txt").write_text(
        "[mvkit]\n" + "".join(f"{k} = {v}\n" for k, v in points.items())
    )
    monkeypatch.syspath_prepend(root / "src")
    plugins.registry.cache_clear()
    assert plugins.problems() == []
    (test,) = (root / "tests").glob("test_*.py")
    loaded = importlib.util.spec_from_file_location(test.stem, test)
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    functions = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert len(functions) == 2
    for function in functions:
        function()
    for path in root.rglob("*.*"):
        if path.is_file() and path.suffix != ".pyc":
            assert not re.search("@(name|package|part|kind|Class|mvkit)@", path.read_text()), path


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("Bad Name", "prior", "got the name 'Bad Name'; expected a-z, 0-9 and single hyphens"),
        ("../up", "prior", "got the name '../up'"),
        ("a--b", "prior", "got the name 'a--b'"),
        ("mvkit", "prior", "the name 'mvkit' is taken by Python or a library"),
        ("json", "prior", "the name 'json' is taken by Python"),
        ("mvkit-class", "prior", "'class' cannot name a part"),
        ("mvkit-3d", "prior", "'3d' cannot name a part"),
        ("mvkit-mog", "prior", "prior 'mog' is built in; take another name than 'mvkit-mog'"),
        ("mvkit-sharp", "priors", "no template of kind 'priors'; did you mean 'prior'"),
    ],
)
def test_names_that_cannot_be(tmp_path, capsys, name, kind, reason):
    assert cli.main(["new-plugin", name, "--kind", kind, "--folder", str(tmp_path)]) == 1
    assert f"mvkit: new-plugin: {reason}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "mvkit-sharp").mkdir()
    with pytest.raises(
        SpecError, match="mvkit-sharp is there already; choose another name, or remove it"
    ):
        new_plugin.new_plugin("mvkit-sharp", "prior", tmp_path)
    assert not list((tmp_path / "mvkit-sharp").iterdir())
