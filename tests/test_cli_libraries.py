"""Commands that need a library that is not installed say which extra brings it."""

import sys
import tomllib
from pathlib import Path

import pytest

from mvkit.apps import cli

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}


@pytest.mark.parametrize(
    ("library", "command"),
    [
        ("pandas", ["impute", "a.csv"]),
        ("pandas", ["init", "a.csv"]),
        ("pandas", ["embed", "folder", "a.csv"]),
    ],
)
def test_a_library_that_is_not_installed(library, command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("age,smokes\n41,yes\n,no\n")
    monkeypatch.setitem(sys.modules, library, None)
    assert cli.main(command) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    if command[0] != "embed":  # which has no folder to read either
        assert said == (
            f"mvkit: {command[0]}: needs pandas, which is not installed: "
            "pip install 'mvkit[tables]'\n"
        )


def test_other_modules_that_are_missing_are_faults():
    error = ModuleNotFoundError("No module named 'nowhere'", name="nowhere")
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        cli._what_to_install(error)


def test_each_extra_brings_the_library():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for library, extra in cli.EXTRAS.items():
        wanted = extras["optional-dependencies"][extra]
        distribution = DISTRIBUTIONS.get(library, library)
        assert any(line.startswith(distribution) for line in wanted), library
