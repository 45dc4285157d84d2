"""What is shipped: public names, types, wheel and sdist.

Then a package written from docs/plugins.md, installed by pip, from its tests to saved models.
"""

import os
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import zipfile
from pathlib import Path

import pytest
from installs import guide_package

import mvkit

ROOT = Path(__file__).parent.parent
NAMES = ROOT / "tests" / "public_names.txt"


def test_public_names_are_those_that_are_stored():
    """Every change is deliberate; `python tests/test_packaging.py` stores the names anew."""
    assert sorted(mvkit.__all__) == NAMES.read_text().split(), (
        "python tests/test_packaging.py stores them anew"
    )
    assert len(set(mvkit.__all__)) == len(mvkit.__all__)
    for name in mvkit.__all__:
        assert hasattr(mvkit, name)


def test_types_are_shipped():
    assert (Path(mvkit.__file__).parent / "py.typed").is_file()


def test_oldest_versions_are_those_that_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = [requirement.partition(",")[0] for requirement in project["dependencies"]]
    core = dict(requirement.split(">=") for requirement in lowest)
    declared = dict(core)
    for extra in project["optional-dependencies"].values():
        declared |= dict(requirement.split(">=") for requirement in extra if ">=" in requirement)
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert set(core) - set(pinned) == {
        "torch"
    }  # whose oldest wheels for the CPU are not on the index
    for name, version in pinned.items():
        assert name == "pyparsing" or version.startswith(declared[name]), (
            name
        )  # which matplotlib 3.8 goes with


def run(*command, cwd=None, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MVKIT", "PYTHONPATH"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and sdist, the wheel built from the sdist."""
    folder = tmp_path_factory.mktemp("built")
    environment = folder / "build"
    run(sys.executable, "-m", "venv", environment)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "build", "hatchling")
    run(python, "-m", "build", "--no-isolation", "--outdir", folder / "dist", ROOT)
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def clean(built, tmp_path_factory):
    """A clean environment with mvkit from its wheel, and what the demo needs."""
    environment = tmp_path_factory.mktemp("clean") / "venv"
    run(sys.executable, "-m", "venv", environment)
    wheel, constraints = f"{built[0]}[demo]", ROOT / "constraints.txt"
    run(
        environment / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--constraint",
        constraints,
        wheel,
    )
    return environment / "bin"


@pytest.mark.slow
def test_wheel_and_sdist_hold_everything(built):
    own = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "mvkit").rglob("*") if path.is_file()
    }
    own = {path for path in own if "__pycache__" not in path and not path.endswith("make.py")}
    with zipfile.ZipFile(built[0]) as wheel:
        assert own <= set(wheel.namelist())
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert (
        own | {"pyproject.toml", "README.md", "LICENSE", "docs/plugins.md", "tests/conftest.py"}
        <= names
    )


@pytest.mark.slow
def test_the_demo_runs_in_a_clean_environment(clean, tmp_path):
    shown = run(
        clean / "mvkit", "demo", "--epochs", "1", "--rows", "256", "--folder", "out", cwd=tmp_path
    )
    assert "demo.png" in shown
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_package_written_from_the_guide(clean, tmp_path):
    """Installed with pip, listed, trained on incomplete data, saved, loaded in a fresh process.

    Without it, loading says what to install.
    """
    root = guide_package(tmp_path / "mvkit-sharp")
    run(clean / "python", "-m", "pip", "install", "--quiet", root, "pytest")
    run(clean / "python", "-m", "pytest", "-q", root / "tests", cwd=root, MVKIT_PLUGINS_STRICT="1")
    listed = run(clean / "mvkit", "list")
    assert all(name in listed for name in ("geometric", "heavy", "counts"))
    assert run(clean / "mvkit", "plugins", MVKIT_PLUGINS_STRICT="1") == "0 problems\n"
    train = """
        import mvkit, torch
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(400, 2, generator=generator)
        noisy = z + 0.3 * torch.randn(400, 2, generator=generator)
        counts = torch.poisson(z.exp(), generator=generator)
        data = {"m": noisy, "n": counts}
        data["m"][::3] = torch.nan
        data["n"][1::3] = torch.nan
        shapes = {"m": (2,), "n": mvkit.Modality((2,), "counts")}
        model = mvkit.Model(shapes, latent_dim=2, aggregator="geometric", prior="heavy", seed=0)
        history = mvkit.fit(model, data, epochs=5, seed=0, lr=3e-3)
        assert history["loss"][-1] < history["loss"][0]
        mvkit.save(model, "model.safetensors")
        torch.save((data, model.encode(data)), "codes.pt")
    """
    load = """
        import mvkit, torch
        data, codes = torch.load("codes.pt")
        model = mvkit.load("model.safetensors")
        assert torch.equal(model.encode(data), codes)
        print(mvkit.describe("model.safetensors")["packages"])
    """
    miss = """
        import mvkit
        try:
            mvkit.load("model.safetensors")
        except mvkit.CheckpointError as error:
            print(error)
    """
    run(clean / "python", "-c", textwrap.dedent(train), cwd=tmp_path)
    assert (
        run(clean / "python", "-c", textwrap.dedent(load), cwd=tmp_path)
        == "{'mvkit-sharp': '0.1.0'}\n"
    )
    run(clean / "python", "-m", "pip", "uninstall", "--quiet", "--yes", "mvkit-sharp")
    assert "this checkpoint needs mvkit-sharp 0.1.0" in run(
        clean / "python", "-c", textwrap.dedent(miss), cwd=tmp_path
    )


@pytest.mark.slow
def test_a_new_package_passes_its_tests_once_pip_installed_it(clean, tmp_path):
    run(clean / "mvkit", "new-plugin", "mvkit-fresh", "--kind", "likelihood", cwd=tmp_path)
    root = tmp_path / "mvkit-fresh"
    run(clean / "python", "-m", "pip", "install", "--quiet", "--editable", f"{root}[dev]")
    assert "2 passed" in run(clean / "python", "-m", "pytest", "-q", cwd=root)
    assert "fresh" in run(clean / "mvkit", "list", "likelihood")


if __name__ == "__main__":
    NAMES.write_text("".join(f"{name}\n" for name in sorted(mvkit.__all__)))
