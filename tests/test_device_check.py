"""The check of a device runs to its end on the CPU, in its small form."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "device_check.py"


@pytest.fixture
def check():
    if not SCRIPT.exists():
        pytest.skip("no folder benchmarks here: not a clone")
    spec = importlib.util.spec_from_file_location("device_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines_of(check, tmp_path, *arguments):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{check.BEGIN}\nold\n{check.END}\nafter\n")
    check.main(["--device", "cpu", "--quick", "--page", str(page), *arguments])
    text = page.read_text()
    assert text.startswith(f"before\n{check.BEGIN}\n")
    assert text.endswith(f"\n{check.END}\nafter\n")
    assert "old" not in text
    return text


def test_the_table_has_every_recipe_that_was_asked_for(check, tmp_path):
    text = lines_of(check, tmp_path, "--recipes", "mopoe", "telbo", "nexus", "masked")
    for name in ("mopoe", "telbo", "nexus", "masked"):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert all(cell.endswith(" ms") for cell in cells[1:5])
    assert "CPU, one thread; torch" in text
    assert "rows per second encoded" in text
    assert "TFLOP/s of float32 matrix products" in text


@pytest.mark.slow
def test_the_table_has_every_recipe(check, tmp_path):
    text = lines_of(check, tmp_path)
    assert text.count(" ms | ") > 20
    assert "want of time" not in text


def test_what_there_was_no_time_for_is_said(check, tmp_path):
    text = lines_of(check, tmp_path, "--budget", "0", "--recipes", "mopoe")
    assert "Left out, for want of time: mopoe." in text
    assert "| mopoe |" not in text


def test_without_markers_nothing_is_written(check, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a page\n")
    with pytest.raises(SystemExit, match="no markers .*device check: begin"):
        check.written("text", page)
    assert page.read_text() == "a page\n"


def test_a_device_that_is_not_there_is_refused(check, monkeypatch):
    monkeypatch.setattr(check.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device here.*--device cpu --quick"):
        check.main([])
