"""What people read is run: README, tutorials, demo; public names are documented."""

import ast
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import mvkit
from mvkit.apps import cli

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("MVKIT_DATA", ROOT.parent / "shared" / "data"))
TUTORIALS = sorted((ROOT / "tutorials").glob("[0-9]*.py"))


def snippets(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.mark.parametrize(
    "page", ["README.md", "docs/gaps.md", "docs/runs.md", "docs/larger_than_memory.md"]
)
def test_snippets_of_pages_run(page, tmp_path, monkeypatch):
    """Those of cells are run by the tests of mvkit-omics."""
    monkeypatch.chdir(tmp_path)
    found = [s for s in snippets(ROOT / page) if "from mvkit_omics" not in s]
    assert found
    space = {}
    for snippet in found:
        exec(small(snippet), space)


def quick(command):
    """The words of a command of the page of tables, made short."""
    words = shlex.split(small(command).replace("--m 20", "--m 2"))[1:]
    short = {"impute": ["--set", "epochs=2"], "train": ["--set", "train.epochs=1"]}
    return [*words, *short.get(words[0], [])]


@pytest.mark.filterwarnings("default")  # of few cells to calibrate with
def test_page_of_tables_can_be_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "tables.md").read_text()
    blocks = re.findall(r"```(python|bash|toml)\n(.*?)```", text, re.DOTALL)
    assert {language for language, _ in blocks} == {"python", "bash", "toml"}
    space = {}
    for language, source in blocks:
        if language == "python":
            exec(small(source).replace("seed=0)", 'seed=0, choices={"epochs": 2})'), space)
        elif language == "toml":
            name = source.partition("# ")[2].partition(":")[0]
            Path(name).write_text(source)
            assert cli.main(quick(f"mvkit train {name}")) == 0
        else:
            for command in source.strip().splitlines():
                assert cli.main(quick(command)) == 0, command
    assert not space["filled"].isna().any().any()
    for written in (
        "out/draws/5/labs.csv",
        "paper/completed/2/clinic.csv",
        "paper/sets/clinic.csv",
        "explained/report.html",
        "embedding.csv",
        "runs/run/report.html",
    ):
        assert Path(written).is_file(), written


def guide_examples():
    """Those of docs/plugins.md that are no files of its package, by their heading or first words."""
    text = (ROOT / "docs" / "plugins.md").read_text()
    examples = []
    for match in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        if not match[1].startswith("# "):
            before = text[: match.start()].strip().splitlines()
            heading = [line for line in before if re.match(r"#+ |\*\*", line)][-1]
            examples.append(pytest.param(match[1], id=heading.strip("#* `").split("*")[0][:30]))
    return examples


@pytest.mark.parametrize("source", guide_examples())
@pytest.mark.filterwarnings("ignore")  # of the libraries around a model
def test_examples_of_the_guide_run(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for library in re.findall(r"^import (lightning|accelerate)$", source, re.MULTILINE):
        pytest.importorskip(library, reason=f"{library} is not installed")
    space = {"__name__": "guide"}
    exec(source, space)
    if "z" in space:
        assert bool(space["z"].isfinite().all())


def small(source):
    """A tutorial's or README's settings, cut down: two epochs, two trials, few rows."""
    source = re.sub(r'(epochs=|"epochs": |trials=)\d+', r"\g<1>2", source)
    source = re.sub(r"slice\(0, ([4-9]\d\d|\d{4,})\)", "slice(0, 300)", source)
    source = re.sub(r"data\.train\b(?!\.)", "data.train.batch.take(slice(0, 256))", source)
    source = re.sub(r"slice\(0, \d{4,}\)", "slice(0, 256)", source)
    source = source.replace("LatentFlow()", "LatentFlow(steps=20)")
    return re.sub(r"\bn=\d{3,}", "n=5", source)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_tutorials_run(path, tmp_path, monkeypatch):
    source = path.read_text()
    if "MVKIT_DATA" in source:
        folder = Path(os.environ.get("MVKIT_DATA", ROOT.parent / "shared" / "data")).resolve()
        for required in ("mnist", "fsdd", "sign_digits"):
            if not (folder / required).is_dir():
                pytest.skip(f"no folder {folder / required}; set MVKIT_DATA to where the data are")
        monkeypatch.setenv("MVKIT_DATA", str(folder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    modules = re.findall(r"^from (mvkit_\w+)", source, re.MULTILINE)
    for module in modules:
        pytest.importorskip(module, reason=f"needs plugins/{module.replace('_', '-')}")
    monkeypatch.setenv("MVKIT_PLUGINS", ",".join(modules).replace("_", "-"))
    for folder in re.findall(r'"MVKIT_DATA".*/ "(\w+)"', source):
        if not (DATA / folder).is_dir():
            pytest.skip(f"no folder {DATA / folder}; set MVKIT_DATA to where the data are")
    monkeypatch.setenv("MVKIT_DATA", str(DATA.absolute()))
    program = "import torch; torch.set_num_threads(1)\n" + small(source)
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=300)


def test_real_data_without_the_files_says_what_is_lacking(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MVKIT_DATA", "nowhere")
    program = [sys.executable, "-W", "error", ROOT / "tutorials" / "07_real_data.py"]
    done = subprocess.run(program, check=True, timeout=300, capture_output=True, text=True)
    assert done.stdout == (
        "nothing to do: there is no folder nowhere/mfeat; set MVKIT_DATA to the folder that has mfeat/mfeat-*.csv\n"
    )
    assert not list(tmp_path.iterdir())


def test_demo(tmp_path, capsys):
    assert (
        cli.main(["demo", "--folder", str(tmp_path / "new"), "--epochs", "1", "--rows", "256"])
        == 0
    )
    shown = capsys.readouterr().out
    for part in (
        "joint log-likelihood",
        "coherence given 4",
        "cluster accuracy",
        "demo.png",
        "mvkit.load(",
    ):
        assert part in shown
    assert (tmp_path / "new" / "demo.png").stat().st_size > 10_000
    model = mvkit.load(tmp_path / "new" / "model.safetensors")
    assert model.n_clusters == 10


def test_commands(tmp_path, capsys):
    assert cli.main(["list", "prior"]) == 0
    assert "learnable mog posterior_mixture standard" in capsys.readouterr().out
    mvkit.save(mvkit.Model({"a": (2,)}), tmp_path / "m")
    assert cli.main(["show", str(tmp_path / "m")]) == 0
    assert '"latent_dim": 10' in capsys.readouterr().out
    assert cli.main(["plugins"]) == 0
    assert "0 problems" in capsys.readouterr().out
    (tmp_path / "m").write_bytes(b"junk")
    assert cli.main(["show", str(tmp_path / "m")]) == 1
    assert "mvkit: " in capsys.readouterr().err


def test_public_names_are_documented():
    for name in mvkit.__all__:
        value = getattr(mvkit, name)
        assert inspect.getdoc(value), name


SOURCED = (
    "aggregator",
    "prior",
    "objective",
    "family",
    "likelihood",
    "network",
    "optimizer",
    "metric",
    "sampler",
    "refiner",
)


def test_parts_have_a_source():
    for kind in SOURCED:
        for name in mvkit.available(kind):
            doc = mvkit.plugins.lookup(kind, name).__doc__
            assert "Reference" in doc, name


def test_readme_names_every_built_in_part():
    text = (ROOT / "README.md").read_text()
    for kind in (*SOURCED, "schedule", "ramp", "transform"):
        for name in mvkit.available(kind):
            assert f"`{name}`" in text, (kind, name)


def test_house_style():
    """Files under 400 lines, functions under 40, no locals that name nothing."""
    for path in (ROOT / "mvkit").rglob("*.py"):
        source = path.read_text()
        assert len(source.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                assert node.id not in {"made", "found", "one", "told"}, (path, node.lineno)
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body:
                    assert node.body[-1].end_lineno - body[0].lineno < 40, (path, node.name)
    for line in (ROOT / "docs" / "architecture.md").read_text().splitlines():
        assert len(line) <= 120, line
