"""The explorer: its pictures, and the page in a browser."""

import contextlib
import http.client
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_page import browser, run  # noqa: F401, a fixture

import mvkit
from mvkit import DataError, RequestError
from mvkit.apps import cli
from mvkit.apps.explorer import explore, imputed, moved, responsibilities

pytest.importorskip("matplotlib")
NAMES = ("left", "right")
FIND = """
const found = [];
const walk = node => {
  if (node.matches && node.matches(arguments[0])) found.push(node);
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.children) walk(child);
};
walk(document.documentElement);
return found;
"""


@pytest.fixture
def made(run):  # noqa: F811
    model = mvkit.load(run / "model.safetensors")
    return model, model.conform(mvkit.load_dataset("few").test.batch.take([4]))


def test_what_is_hidden_is_imputed_from_the_rest(made):
    model, row = made
    axes = imputed(model, row, ["left"])
    expected = model.translate(row, to=["right"], given=["left"], latent="mean")["right"][0, 0, 0]
    np.testing.assert_allclose(axes[1, 1].images[0].get_array(), expected.clamp(0, 1), rtol=1e-5)
    np.testing.assert_allclose(
        axes[0, 1].images[0].get_array(), row.data["right"][0, 0], rtol=1e-6
    )
    assert [axes[0, i].get_title() for i in range(2)] == ["left (given)", "right"]


def test_intervals_hold_most_draws(made):
    model, row = made
    axes = imputed(model, row, ["left"])
    low, high = (torch.as_tensor(np.asarray(axes[i, 1].images[0].get_array())) for i in (4, 5))
    generator = torch.Generator().manual_seed(9)
    draws = model.translate(
        row, to=["right"], given=["left"], n=2000, sample=True, generator=generator
    )["right"]
    inside = (draws[:, 0, 0].clamp(0, 1) >= low) & (draws[:, 0, 0].clamp(0, 1) <= high)
    assert 0.75 < inside.double().mean() < 0.99  # pictures are clipped to what a screen can show


def test_responsibilities_are_those_of_what_is_given(made):
    model, row = made
    heights = [bar.get_height() for bar in responsibilities(model, row, ["right"]).patches]
    np.testing.assert_allclose(
        heights, model.clusters(row.hide(["right"]), soft=True)[0], rtol=1e-6
    )


def test_moving_a_latent_changes_all_modalities(made):
    model, row = made
    axes = moved(model, row, NAMES, 1, 2.0)
    z = model.encode(row)[0] + torch.tensor([0.0, 2.0, 0.0])
    for i, (name, value) in enumerate(model.decode(z).items()):
        np.testing.assert_allclose(
            axes[1, i].images[0].get_array(), value[0].clamp(0, 1), rtol=1e-4, atol=1e-6
        )
        assert not np.allclose(
            axes[1, i].images[0].get_array(), axes[0, i].images[0].get_array()
        ), name


@contextlib.contextmanager
def served(folder):
    """The command in a process of its own; gives its port and the path of its page."""
    pytest.importorskip("panel", reason="needs panel: pip install 'mvkit[explore]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from mvkit.registry import Component, declare\n"
        "declare(Component('dataset', 'few', 'test_page:Few'))\n"
        f"from mvkit.apps.cli import main; main(['explore', {str(folder)!r}, '--port', '{port}', '--no-browser'])"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        told = re.fullmatch(
            rf"explorer: http://127\.0\.0\.1:{port}(/[\w-]{{20,}}) \(stop with Ctrl-C\)\n",
            process.stdout.readline(),
        )
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield port, told[1]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def until(value, tries=600):
    """The first true value of a function, asked again until there is one; the page may change
    under an answer.
    """
    from selenium.common.exceptions import StaleElementReferenceException

    for _ in range(tries):
        with contextlib.suppress(StaleElementReferenceException):
            found = value()
            if found:
                return found
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def test_the_explorer_in_a_browser(run):  # noqa: F811
    with served(run) as (port, path):
        driver = browser()
        try:
            driver.set_window_size(1100, 900)
            driver.get(f"http://127.0.0.1:{port}{path}")

            def sources():
                return [one.get_attribute("src") for one in driver.execute_script(FIND, "img")]

            first = until(lambda: (found := sources()) and len(found) == 3 and found)

            def boxes():
                return driver.execute_script(FIND, "input[type=checkbox]")

            def click(i):
                boxes()[i].click()
                return True

            assert until(lambda: [box.is_selected() for box in boxes()]) == [True, True]
            until(lambda: click(0))
            # without the left picture the imputed one, the clusters and the mean are others
            second = until(
                lambda: (
                    (found := sources()) and all(a != b for a, b in zip(found, first)) and found
                )
            )
            until(lambda: click(1))  # nothing is given: the prior; no clusters
            until(lambda: driver.execute_script(FIND, ".alert"))
            until(lambda: sources() != second)
            severe = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
            assert not severe, severe
        finally:
            driver.quit()


def test_the_explorer_serves_the_page_alone(run):  # noqa: F811
    with served(run) as (port, path):
        with socket.socket() as elsewhere:  # what listens on every address answers here too
            assert elsewhere.connect_ex(("127.0.0.2", port)) != 0
        up = "/../../../../../etc/passwd"
        files = (up, f"/static{up}", "/model.safetensors", "/run.toml")
        for file in (*files, *(f"{path}{file}" for file in files)):
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", file)
            answer = connection.getresponse()
            assert answer.status in (403, 404), file
            assert b"root:" not in answer.read()
            connection.close()


def test_a_model_outside_the_run_is_refused(run, tmp_path, capsys):  # noqa: F811
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").symlink_to(run / "model.safetensors")
    assert cli.main(["explore", str(other), "--data", "few"]) == 1
    assert "or a link that leads out of it" in capsys.readouterr().err
    with pytest.raises(
        DataError, match="no such folder; expected the folder of a run, with model.safetensors"
    ):
        explore(tmp_path / "none")


def test_panel_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "panel", None)
    with pytest.raises(
        RequestError, match=r"panel is not installed: pip install 'mvkit\[explore\]'"
    ):
        explore(tmp_path)
