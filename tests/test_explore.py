"""The command `mvkit explore`: what it serves, and the page in a browser."""

import contextlib
import http.client
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from devtools import chromium
from test_page import run  # noqa: F401, a fixture

import mvkit
from mvkit import Batch, Covariate, DataError, Modality, MultimodalDataset
from mvkit.apps import cli
from mvkit.apps.explorer import explore, server_of
from mvkit.apps.explorer_answers import Explorer

IDLE = "document.getElementById('results').getAttribute('aria-busy') === 'false'"
SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
WIDTHS = (1280, 390)


@contextlib.contextmanager
def served(folder):
    """The command in a process of its own; gives its port and the path of its page."""
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
            rf"explorer: http://127\.0\.0\.1:{port}(/[\w-]{{20,}}/) \(stop with Ctrl-C\)\n",
            process.stdout.readline(),
        )
        yield port, told[1]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def page_of(explorer):
    """The address of the page of an explorer in this process."""
    import threading

    with server_of(explorer, 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.address
        finally:
            server.shutdown()
            thread.join()


def ask(port, path, question):
    """What the page is told, from JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", path, json.dumps(question), headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def test_the_command_answers_for_the_models_test_rows(run):  # noqa: F811
    model = mvkit.load(run / "model.safetensors")
    rows = mvkit.load_dataset("few").test
    with served(run) as (port, path):
        status, answer = ask(port, f"{path}answer", {"row": "4", "given": ["left"], "seed": 3})
        assert status == 200
        shares = model.clusters(model.conform(rows[4]).hide(["left"]), soft=True)[0]
        np.testing.assert_allclose(answer["clusters"], shares, rtol=1e-4, atol=1e-6)
        again = ask(port, f"{path}answer", {"row": "4", "given": ["left"], "seed": 3})
        assert again == (200, answer)
        status, answer = ask(port, f"{path}row", {"row": "nobody"})
        assert (status, answer["error"]) == (
            400,
            "explore: no row 'nobody'; expected a number from 0 to 59",
        )
        status, answer = ask(port, f"{path}answer", {"number": 4, "given": ["middle"]})
        assert status == 400
        assert "no modality 'middle'" in answer["error"]
        for file in ("", "explorer.js", "drawing.js", "features.js", "explorer.css", "style.css"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", f"{path}{file}")
            assert connection.getresponse().status == 200, file
            connection.close()
        with socket.socket() as elsewhere:  # what listens on every address answers here too
            assert elsewhere.connect_ex(("127.0.0.2", port)) != 0


def test_the_page_says_what_there_is_to_choose(run):  # noqa: F811
    model = mvkit.load(run / "model.safetensors")
    about = Explorer(model, mvkit.load_dataset("few").test, title=run.name).description()
    assert about["title"] == "a<run>"
    assert about["rows"] == 60
    assert [view["kind"] for view in about["modalities"]] == ["picture", "picture"]
    assert about["latents"] == 3
    assert about["clusters"] == model.n_clusters
    assert about["samplers"] == about["covariates"] == about["refiners"] == []
    assert about["unrefined"] == "no refiner was trained: mvkit.fit_refiner"


@pytest.fixture(scope="module")
def named():
    """An explorer of pictures, of named numbers and of words, with covariates and gaps.

    Names look like HTML, which must not be taken for it.
    """
    b = 12
    generator = torch.Generator().manual_seed(0)
    data = {
        "<img onerror=alert(1) src=x>": torch.rand(b, 1, 8, 8, generator=generator),
        "blood": torch.randn(b, 60, generator=generator),
        "wave": torch.randn(b, 50, generator=generator),
    }
    data["blood"][1] = torch.nan
    data["blood"][2, 3] = torch.nan
    extra = {"id": [f"<b>p{i}" for i in range(b)], "label": [f"<u>{i}" for i in range(b)]}
    covariates = {"age": torch.linspace(20, 80, b), "<site>": ["<x>", "y"] * (b // 2)}
    features = tuple(f"<script>{i}</script>" for i in range(60))
    modalities = {name: Modality(tuple(x.shape[1:])) for name, x in data.items()}
    modalities["blood"] = Modality((60,), features=features)
    declared = {"age": Covariate(), "<site>": ("<x>", "y")}
    rows = MultimodalDataset(Batch(data, extra=extra, covariates=covariates), modalities)
    options = {"latent_dim": 2, "covariates": declared, "prior": "mog", "seed": 0}
    model = mvkit.Model(rows.modalities, **options).eval()
    mvkit.fit(model, rows, epochs=1, progress=False)
    return Explorer(model, rows, title="<title>")


def text_of(tab, selector):
    return tab.run(f"document.querySelector({selector!r}).textContent")


def choose(tab, selector, value):
    """Sets a control to a value, as a user does."""
    name = "input" if "shift" in selector else "change"
    script = f"(e => {{ e.value = {value!r}; e.dispatchEvent(new Event({name!r})); }})"
    tab.run(f"{script}(document.querySelector({selector!r}))")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_in_a_browser(named, width):
    with chromium() as tab, page_of(named) as address:
        tab.open(address, width)
        tab.until(IDLE)
        assert tab.run("document.title") == "<title> · mvkit explorer"
        assert text_of(tab, "#title") == "<title>"
        assert tab.run(SIDEWAYS) <= 0
        assert tab.run("window.innerWidth") == width
        lines = "document.querySelectorAll('#feature-table tbody tr').length"
        assert tab.run(lines) == 50
        tab.run("document.getElementById('all-features').click()")
        assert tab.run(lines) == 110
        choose(tab, "#shift", "1.5")
        tab.until(IDLE)
        assert tab.run(SIDEWAYS) <= 0
        assert tab.run("document.querySelectorAll('canvas').length") == 8
        assert tab.run("document.querySelectorAll('svg.chart').length") == 1
        assert tab.run("document.querySelectorAll('#cluster-bars .bar').length") > 0
        # the page of the explorer asks nobody else
        assert all(x.startswith((address, "data:")) for x in tab.addresses)
        assert tab.faults == []


def test_ticks_rows_and_choices_in_a_browser(named):
    with chromium() as tab, page_of(named) as address:
        tab.open(address, 1280)
        tab.until(IDLE)
        choose(tab, "#row", "<b>p1")
        tab.until(IDLE)
        assert text_of(tab, "#place") == "2 of 12 test rows · label <u>1"
        boxes = "[...document.querySelectorAll('#observed input')]"
        assert tab.run(f"{boxes}.map(box => box.disabled)") == [False, True, False]
        assert tab.run(f"{boxes}.map(box => box.checked)") == [True, False, True]
        tab.run("document.getElementById('next').click()")
        tab.until(IDLE)
        assert tab.run("document.getElementById('row').value") == "<b>p2"
        cell = "document.querySelectorAll('#feature-table tbody tr')[{}].children[{}]"
        features = named.answer({"number": 2})["modalities"]["blood"]
        assert tab.run(cell.format(3, 2) + ".textContent") == "–"
        assert tab.run(cell.format(3, 0) + ".firstChild.disabled")
        # one feature is hidden: what is imputed of it changes
        before = tab.run(cell.format(0, 3) + ".textContent")
        assert float(before) == pytest.approx(features["mean"][0], rel=1e-3)
        tab.run(cell.format(0, 0) + ".firstChild.click()")
        tab.until(IDLE)
        assert tab.run(cell.format(0, 3) + ".textContent") != before
        # what is unticked stays so in the next row
        tab.run(f"{boxes}[0].click()")
        tab.until(IDLE)
        assert "Imputed from blood, wave" in text_of(tab, "#status")
        tab.run("document.getElementById('next').click()")
        tab.until(IDLE)
        assert tab.run(f"{boxes}.map(box => box.checked)") == [False, True, True]
        assert "hidden, imputed" in text_of(tab, "#pictures h3")
        choose(tab, "#source", "cluster:1")
        tab.until(IDLE)
        assert text_of(tab, "#status").startswith("New rows, whatever is ticked")
        assert text_of(tab, ".covariate option") == "as it is: y"
        choose(tab, ".covariate select", "0")
        tab.until(IDLE)
        choose(tab, "#row", "nobody")
        tab.until("!document.getElementById('error').hidden")
        assert "no row 'nobody'" in text_of(tab, "#error")
        refused = (
            "Failed to load resource: the server responded with a status of 400 (Bad Request)"
        )
        assert tab.faults == [refused]


def test_the_table_of_features_sorts_in_a_browser(named):
    with chromium() as tab, page_of(named) as address:
        tab.open(address, 1280)
        tab.until(IDLE)
        column = "[...document.querySelectorAll('#feature-table tbody tr')].map(row => row.children[{}].textContent)"
        head = "document.querySelectorAll('#feature-table thead button')[{}]"
        tab.run("document.getElementById('all-features').click()")
        answer = named.answer({"number": 0})["modalities"]
        expected = sorted([*answer["blood"]["mean"], *answer["wave"]["mean"]])
        tab.run(head.format(3) + ".click()")
        shown = [float(text) for text in tab.run(column.format(3))]
        np.testing.assert_allclose(shown, expected, rtol=1e-3, atol=1e-6)
        tab.run(head.format(3) + ".click()")
        shown = [float(text) for text in tab.run(column.format(3))]
        np.testing.assert_allclose(shown, expected[::-1], rtol=1e-3, atol=1e-6)
        sort = "document.querySelector('#feature-table [aria-sort]').getAttribute('aria-sort')"
        assert tab.run(sort) == "descending"
        choose(tab, "#filter", "WAVE 4")
        tab.run("document.getElementById('filter').dispatchEvent(new Event('input'))")
        features = sorted(tab.run(column.format(1)), key=int)
        assert features == ["4", *[str(i) for i in range(40, 50)]]
        assert tab.faults == []


def test_a_server_that_is_gone_is_said_in_a_browser(named):
    with chromium() as tab:
        with page_of(named) as address:
            tab.open(address, 1280)
            tab.until(IDLE)
        choose(tab, "#seed", "2")
        tab.until("!document.getElementById('error').hidden")
        assert "is `mvkit explore` still running?" in text_of(tab, "#error")


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
