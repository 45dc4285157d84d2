"""The tutorials run, made short."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("MVKIT_DATA", ROOT.parent / "shared" / "data")).resolve()
TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.py"))


def short(source):
    """A tutorial with two epochs, and two splits of few pairs."""
    source = re.sub(r"\bepochs=\d+", "epochs=2", source)
    return re.sub(r"^splits = \d+", "splits = 2", source, flags=re.MULTILINE)


def run(path, folder, data):
    environment = {**os.environ, "MVKIT_DATA": str(data), "MPLBACKEND": "Agg"}
    program = "import torch; torch.set_num_threads(1)\n" + short(path.read_text())
    asked = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(
        asked, check=True, timeout=300, cwd=folder, env=environment, capture_output=True, text=True
    )
    return done.stdout


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_run(path, tmp_path):
    if "scanpy" in path.read_text():
        pytest.importorskip("scanpy", reason="needs mvkit-omics[scanpy]")
    (folder,) = re.findall(r'"MVKIT_DATA".*/ "(\w+)"', path.read_text())
    if not (DATA / folder).is_dir():
        pytest.skip(f"no folder {DATA / folder}; set MVKIT_DATA to where the data are")
    printed = run(path, tmp_path, DATA)
    assert "Pearson's r" in printed or "AUC, mvkit" in printed
    assert list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_without_the_files_a_tutorial_says_what_is_lacking(path, tmp_path):
    if "scanpy" in path.read_text():
        pytest.importorskip("scanpy", reason="needs mvkit-omics[scanpy]")
    printed = run(path, tmp_path, "nowhere")
    assert printed.startswith("nothing to do: there is no folder nowhere/")
    assert not list(tmp_path.iterdir())
