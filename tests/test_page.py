"""The report page: one file, whole in a browser, on a screen and on a phone, without a network."""

import json
import re

import attrs
import pytest
import torch
from screens import browser, set_width

import mvkit
from mvkit import Batch, DataError, Modality, MultimodalDataset, spec
from mvkit.apps import cli
from mvkit.apps.html_report import read_history, render, write_page
from mvkit.apps.pages import Picture
from mvkit.data.datasets.catalogue import Splits
from mvkit.evaluation.metric import Score
from mvkit.evaluation.report import Report
from mvkit.registry.component import Component
from mvkit.registry.plugins import declare

pytest.importorskip("matplotlib")
FIGURES = 12
METRICS = ["coherence", "clusters", "reconstruction"]


@spec
class Few:
    """Pictures of three classes, each a bright corner."""

    missing: float = 0.0

    def load(self):
        modalities = {
            name: Modality((1, 4, 4), {"name": "normal", "scale": 0.25})
            for name in ("left", "right")
        }
        return Splits(
            modalities, *(self._rows(modalities, b, seed) for seed, b in enumerate((120, 50, 60)))
        )

    def _rows(self, modalities, b, seed):
        generator = torch.Generator().manual_seed(seed)
        label = torch.randint(3, (b,), generator=generator)
        bright = torch.eye(16)[label].reshape(b, 1, 4, 4)
        data = {
            name: (bright + 0.1 * torch.rand(b, 1, 4, 4, generator=generator)) / 1.1
            for name in modalities
        }
        mask = torch.rand(b, 2, generator=generator) > self.missing
        mask[~mask.any(1)] = True
        return MultimodalDataset(Batch(data, mask, extra={"label": label}), modalities)


@pytest.fixture
def run(tmp_path):
    """What a run leaves: a model, its history and where its data come from."""
    declare(Component("dataset", "few", "test_page:Few"))
    folder = tmp_path / "a<run>"
    folder.mkdir()
    tiny = {"name": "mlp", "hidden": [8]}
    data = mvkit.load_dataset("few")
    made = {n: attrs.evolve(m, encoder=tiny, decoder=tiny) for n, m in data.modalities.items()}
    model = mvkit.Model(made, latent_dim=3, aggregator="mopoe", prior="mog", seed=0)
    history = mvkit.fit(model, data.train, validation=data.valid, epochs=2)
    mvkit.save(model, folder / "model.safetensors")
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history.rows))
    (folder / "run.toml").write_text('[data]\nname = "few"\nmissing = 0.3\n')
    return folder


def test_the_page_in_a_browser(run, tmp_path):
    page = tmp_path / "report.html"
    report = write_page(run, page, metrics=METRICS)
    driver = browser()
    try:
        for width in (1280, 360):
            set_width(driver, width)
            driver.get(page.as_uri())
            drawn = driver.execute_script(
                "return [...document.images].map(i => i.complete && i.naturalWidth)"
            )
            assert len(drawn) == FIGURES
            assert min(drawn) > 200
            over = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert driver.execute_script(over) <= 0
            assert driver.execute_script("return window.innerWidth") == width
            assert driver.get_log("browser") == []
            loaded = driver.execute_script(
                "return performance.getEntriesByType('resource').map(e => e.name)"
            )
            assert all(name.startswith("data:") for name in loaded)
        assert driver.title == "a<run> · mvkit"
        text = driver.find_element("tag name", "body").text
        assert f"{report['coherence/given 1']:.4g}" in text
        assert "60 test rows" in text
    finally:
        driver.quit()


def test_the_page_points_nowhere(run, tmp_path):
    write_page(run, tmp_path / "report.html", metrics=["clusters"])
    text = (tmp_path / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert "<script" not in text
    assert "url(" not in text


def test_what_cannot_be_drawn_is_said(run, tmp_path):
    (run / "history.jsonl").unlink()
    write_page(run, tmp_path / "report.html", metrics=["clusters"])
    text = (tmp_path / "report.html").read_text()
    assert text.count("<img") == FIGURES - 3
    assert "Loss and bound by epoch: not drawn: losses: the history is empty" in text
    assert "Coherence by number of modalities given: not drawn: coherence: report" in text


def test_names_are_escaped_and_details_are_folded():
    scores = (Score("probe", "<b>", 0.5, 0.1, 3), Score("probe", "more & more", 1.0, detail=True))
    text = render("<i>", Report(scores, ("<u>",)), {"<s>": Picture(b"", b""), "<q>": "<why>"})
    assert not re.search("<(b|i|u|s|q|why)>", text)
    assert "<summary>more</summary>" in text
    assert "more &amp; more" in text


def test_the_command(run, capsys, monkeypatch):
    monkeypatch.setattr(
        mvkit.plugins, "available", lambda kind, pattern="*": METRICS if kind == "metric" else []
    )
    assert cli.main(["report", str(run)]) == 0
    assert "coherence" in capsys.readouterr().out
    assert (run / "report.html").stat().st_size > 100_000
    assert cli.main(["report", str(run.parent / "nowhere")]) == 1
    assert (
        "no such folder; expected the folder of a run, with model.safetensors"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "run.toml does not say which data"),
        ("[model]\n", "expected a table \\[data\\] with a name; give --data NAME"),
        ("[data", "TOMLDecodeError"),
        ('[data]\nname = "fiew"\n', "unknown dataset 'fiew'; did you mean 'few'"),
    ],
)
def test_data_that_are_not_named(run, tmp_path, text, message):
    (run / "run.toml").unlink() if text is None else (run / "run.toml").write_text(text)
    with pytest.raises(mvkit.MvkitError, match=message):
        write_page(run, tmp_path / "report.html")


def test_data_by_name_take_the_place_of_the_runs(run, tmp_path):
    (run / "run.toml").unlink()
    assert (
        write_page(run, tmp_path / "report.html", data="few", metrics=["clusters"]).about["rows"]
        == 60
    )


def test_a_history_that_is_cut(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"loss": 1.0}\n{"loss": ')
    with pytest.raises(DataError, match="line 2: .*expected a row of the history, in JSON"):
        read_history(path)
