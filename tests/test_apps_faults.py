"""The command line, run files, the report and the explorer, asked in ways that nobody means."""

import http.client
import os
import subprocess
import sys

import pytest
import torch
from installs import install
from test_explore import served
from test_page import run  # noqa: F401, a fixture

import mvkit
from mvkit import DataError, Model, recipes
from mvkit.apps import cli, html_report
from mvkit.apps.explorer_answers import Explorer
from mvkit.apps.pages import Picture
from mvkit.apps.run_file import read

TEXT = """
[data]
name = "linear_gaussian"
rows = 60
[model]
recipe = "mopoe"
latent_dim = 2
[model.modalities.m0]
encoder = "linear"
[train]
epochs = 1
batch_size = 20
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(TEXT)
    return path


def refused(capsys, *arguments):
    """What the command line says of arguments that it refuses."""
    assert cli.main([str(argument) for argument in arguments]) == 1
    told = capsys.readouterr()
    assert told.err.startswith("mvkit: ")
    assert not told.out
    return told.err


DEEP = "[" * 3000 + "]" * 3000
HUGE = 10**20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (f"data.x={DEEP}", "nested too deeply"),
        (f"data{'.x' * 3000}=1", "nested too deeply"),
        (
            f"data.rows={HUGE}",
            f"data.rows: got {HUGE}; expected a whole number of at most 64 bits",
        ),
        (f"data.seed={-HUGE}", "data.seed: got -1000"),
        (f"model.latent_dim={HUGE}", "model.latent_dim: got 1000"),
        (f"train.epochs={HUGE}", "train.epochs: got 1000"),
        (f"model.modalities.m0.shape=[1, {HUGE}]", "model.modalities.m0.shape.1: got 1000"),
        (f"model.seed={HUGE}", "model.seed: got 1000"),
        ("model.seed=x", "model.seed: got 'x'; expected a whole number"),
        ("model.seed=1.5", "model.seed: got 1.5; expected a whole number"),
        ("model.seed=true", "model.seed: got True; expected a whole number"),
        (
            "model.modalities=5",
            "model.modalities: got 5; expected a table [model.modalities.NAME]",
        ),
        ("model.modalities.m0=5", "model.modalities.m0: got 5; expected a table"),
        ("model.modalities.m1=[1]", "model.modalities.m1: got [1]; expected a table"),
        ("model.recipe=['x']", "model.recipe: no recipe ['x']"),
        ("model.recipe={a=1}", "model.recipe: no recipe {'a': 1}"),
        ("model.recipe=5", "model.recipe: no recipe 5; known: 'cmvae', 'crmvae'"),
        ("model.recipe=_warmup", "model.recipe: no recipe '_warmup'"),
        ("model.recipe=_model", "model.recipe: no recipe '_model'"),
        ("model.recipe=_private", "model.recipe: no recipe '_private'"),
        ("model.name=model", "model: expected the option 'order' too"),
        ("model.name=stack", "model: expected the option 'levels' too"),
        ("model.name=5", "model.name: got 5; expected 'model' or 'stack'"),
        ("model.name=mopoe", "model.name: got 'mopoe'; expected 'model' or 'stack'"),
        ("model.objective=elbo", "objective: the recipe sets it"),
        ("model.aggregator=moe", "aggregator: the recipe sets it"),
        ("train.device=nonsense", "device='nonsense'; expected one of 'auto', 'cpu'"),
        ("train.device=5", "device='5'; expected one of 'auto', 'cpu'"),
        ("train.device=cuda:77", "device='cuda:77'; expected one of 'auto', 'cpu'"),
        ("train.compile=maybe", "train.compile: got 'maybe'; expected true or false"),
        ("train.compile=1", "train.compile: got 1; expected true or false"),
        (
            "train.checkpoint=here",
            "train.checkpoint: unknown option; the folder of the run is given",
        ),
    ],
)
def test_run_files_are_refused_with_a_reason(file, tmp_path, capsys, change, message):
    told = refused(capsys, "train", file, "--folder", tmp_path / "run", "--set", change)
    assert message in told
    assert len(told) < 400
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "change"),
    [
        ("telbo", "lambdas=5"),
        ("telbo", "share=many"),
        ("jmvae", "warmup=long"),
        ("mvae", "subsets=many"),
        ("cmvae", "clusters=many"),
        ("nexus", "bottom_dim={m0=3}"),
        ("nexus", "bottom_dim=wide"),
        ("nexus", "gammas=5"),
        ("mhvae", "levels=many"),
        ("mmvae", "samples=[]"),
        ("jmvae", "schedule=single"),
    ],
)
def test_options_of_recipes_are_refused_with_a_reason(file, tmp_path, capsys, recipe, change):
    changes = ("--set", f"model.recipe={recipe}", "--set", f"model.{change}")
    refused(capsys, "train", file, "--folder", tmp_path / "run", *changes)


@pytest.mark.parametrize("option", ["gammas", "bottom_dim"])
def test_nexus_names_modalities_that_are_there(option):
    given = {"a": 2, "bb": 2, "c": 2}
    with pytest.raises(mvkit.SpecError, match=f"{option}: no modality 'c'; "):
        recipes.nexus({"a": (3,), "bb": (2,)}, 2, **{option: given})


def test_every_recipe_is_offered_and_nothing_else(file, capsys, tmp_path):
    told = refused(capsys, "train", file, "--set", "model.recipe=7")
    public = [
        name
        for name, value in vars(recipes).items()
        if getattr(value, "__module__", "") == "mvkit.recipes" and name[0] != "_"
    ]
    assert told.count("'") == 2 * len(public)
    assert all(f"'{name}'" in told for name in public)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data = 5\n", "data = 5; expected a table [data]"),
        ("train = [1]\n", "train = [1]; expected a table [train]"),
        (f"[data]\nx = {DEEP}\n", "no TOML: nested too deeply"),
        ("[data]\nx = " + "{a=" * 3000 + "1" + "}" * 3000, "no TOML: nested too deeply"),
    ],
)
def test_files_that_are_no_run_files(tmp_path, text, message):
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(mvkit.SpecError) as told:
        read(tmp_path / "x.toml")
    assert message in str(told.value)


@pytest.mark.parametrize("port", ["99999", "-1", "0", "x", "5006.5", "²"])
def test_ports_that_are_none(run, port, capsys):  # noqa: F811
    with pytest.raises(SystemExit) as end:
        cli.main(["explore", str(run), "--port", port])
    assert end.value.code == 2
    assert "expected a whole number from 1 to 65535" in capsys.readouterr().err or port == "-1"


def folder_with(run, tmp_path, name, content):  # noqa: F811
    folder = tmp_path / "other"
    folder.mkdir()
    for source in run.iterdir():
        if source.is_file():
            (folder / source.name).write_bytes(source.read_bytes())
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"data = 5",
        b"[data]\n",
        b"[data]\nname = 5",
        DEEP.encode(),
        b"[data]\nname='few'\nnix=3",
    ],
)
def test_a_run_toml_that_does_not_say_its_data(run, tmp_path, capsys, content):  # noqa: F811
    folder = folder_with(run, tmp_path, "run.toml", content)
    assert len(refused(capsys, "report", folder)) < 600
    refused(capsys, "explore", folder, "--no-browser")


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\n", b"5\n", b"[1]\n", b'"x"\n', b'{"loss": "x"}\n', b"{}\n{\n", DEEP.encode()],
)
def test_a_history_that_is_none(run, tmp_path, content):  # noqa: F811
    folder = folder_with(run, tmp_path, "history.jsonl", content)
    with pytest.raises(DataError, match=r"history\.jsonl.*in JSON"):
        html_report.read_history(folder / "history.jsonl")
    (folder / "history.jsonl").write_text('{"loss": null, "epoch": 1}\n')
    assert html_report.read_history(folder / "history.jsonl") == [{"loss": None, "epoch": 1}]


def test_a_page_takes_the_place_of_a_page_only(run, tmp_path, capsys):  # noqa: F811
    weights = (run / "model.safetensors").read_bytes()
    told = refused(capsys, "report", run, "--data", "few", "-o", run / "model.safetensors")
    assert "another file, no page, is there already" in told
    assert (run / "model.safetensors").read_bytes() == weights
    link = tmp_path / "page.html"
    link.symlink_to(tmp_path / "precious")
    (tmp_path / "precious").write_text("keep me")
    with pytest.raises(DataError, match="no page, is there already"):
        html_report.write_page(run, link, data="few")
    (tmp_path / "precious").write_text("\n<!DOCTYPE html><p>old")
    html_report.write_page(run, link, data="few", metrics=["latents"])
    assert link.is_symlink()
    assert "<p>old" not in (tmp_path / "precious").read_text()


def test_links_that_lead_out_of_a_run(run, tmp_path, capsys):  # noqa: F811
    for name in ("model.safetensors", "run.toml"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
        (tmp_path / "outside").write_text("[data]\nname='few'\n")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "outside")
        for command in ("report", "explore"):
            assert "link that leads out of" in refused(capsys, command, folder)


def test_the_explorer_refuses_data_of_another_model(run, capsys):  # noqa: F811
    told = refused(capsys, "explore", run, "--data", "linear_gaussian", "--no-browser")
    assert "left" in told


def test_rows_that_observe_nothing_are_drawn_from_the_prior():
    vae = Model({"a": (3,)}, latent_dim=2, seed=0).eval()
    data = mvkit.MultimodalDataset.from_arrays({"a": torch.full((4, 3), torch.nan)})
    explorer = Explorer(vae, data)
    assert explorer.row({"number": 0})["observed"] == []
    cells = explorer.answer({"number": 0})["modalities"]["a"]
    assert cells["real"] == [None] * 3
    assert all(low < high for low, high in zip(cells["low"], cells["high"], strict=True))


def answer(port, path, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.putrequest("GET", path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    told = connection.getresponse()
    text = told.read().decode(errors="replace")
    connection.close()
    return told, text


def test_the_explorer_answers_its_own_page_alone(run):  # noqa: F811
    with served(run) as (port, path):
        for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}"):
            told, text = answer(port, path, Host=host)
            assert told.status == 200, host
            assert "explorer.js" in text
        # a name that was made to lead here, and what only looks like a name of this machine
        for host in (
            f"evil.com:{port}",
            f"localhost.evil.com:{port}",
            "localhost",
            f"127.0.0.1:{port + 1}",
            "",
        ):
            told, text = answer(port, path, Host=host)
            assert told.status in (400, 403), host
            assert "explorer.js" not in text
        # without the secret nothing is there, and nobody is told where it is
        for other in ("/", "/model.json", f"{path[:-2]}/", f"{path[:-1]}x/"):
            told, text = answer(port, other)
            assert told.status == 404, other
            assert path.strip("/") not in text + str(told.headers)


def test_a_port_in_use_is_said_before_an_address_is(run, capsys):  # noqa: F811
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        told = refused(capsys, "explore", run, "--data", "few", "--port", port, "--no-browser")
    assert "in use" in told


def command(*arguments, **options):
    program = "import sys; from mvkit.apps.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], **options)


def test_results_that_nobody_reads(file, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    process = command(
        "train", file, "--folder", tmp_path / "run", stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    _, told = process.communicate()
    assert process.returncode == 0, told
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_results_in_ascii(file, tmp_path, monkeypatch):
    model = Model({"ä²": (3,)}, latent_dim=2, seed=0)
    mvkit.save(model, tmp_path / "m.safetensors")
    code = "from mvkit.apps.cli import main, _say; import sys; code = main(['list', 'ramp']); _say('R²'); sys.exit(code)"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "MVKIT_PLUGINS": ""}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith(b"R\\xb2\n")


def test_ctrl_c_says_how_to_resume(file, tmp_path, capsys, monkeypatch):
    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("mvkit.apps.run_file.Plan.run", stopped)
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/00000001.safetensors").touch()
    assert cli.main(["train", str(file), "--folder", str(folder)]) == 130
    assert capsys.readouterr().err == f"mvkit: stopped; to resume: mvkit resume {folder}\n"


def test_resume_of_a_folder_without_checkpoints(file, capsys):
    told = refused(capsys, "resume", file.parent)
    assert "no checkpoint to resume from; begin the run with mvkit train FILE --folder" in told
    assert "resume='auto'" not in told


def test_names_of_modalities_that_are_no_formulas(tmp_path):
    names = ("a$x_{$", "x^2$$")
    vae = Model(dict.fromkeys(names, (1, 4, 4)), latent_dim=2, prior="mog", seed=0).eval()
    rows = {name: torch.rand(30, 1, 4, 4) for name in names}
    data = mvkit.MultimodalDataset.from_arrays(rows, label=[0, 1] * 15)
    from mvkit.data.datasets.catalogue import Splits
    from mvkit.evaluation.report import Report

    figures = html_report.pictures(
        vae, Splits(data.modalities, data, data, data), [{"loss": 1.0}], Report(()), 0
    )
    drawn = [title for title, figure in figures.items() if isinstance(figure, Picture)]
    assert len(drawn) >= 8


DECLARES = """
from mvkit.registry import Component, hookimpl
@hookimpl
def mvkit_components():
    return [Component("prior", "odd", "odd_parts:Odd", "odd")]
"""
CANCELLED = """
from asyncio import CancelledError
from mvkit import spec
{top}
@spec
class Odd:
    power: float = 2.0
    def __attrs_post_init__(self):
        {made}
    def build(self, sizes):
        raise CancelledError("while it was built")
"""


@pytest.mark.parametrize(
    ("top", "made", "message"),
    [
        ("raise CancelledError('at import')", "pass", "could not be imported"),
        ("class Own(BaseException): pass\nraise Own('at import')", "pass", "Own: at import"),
        ("", "raise CancelledError('when made')", "failed when it was made: CancelledError"),
        ("", "pass", "failed when it was built: CancelledError"),
    ],
)
def test_whatever_a_part_raises_its_package_is_named(packages, top, made, message):
    install(packages, "mvkit-odd", "odd", DECLARES, CANCELLED.format(top=top, made=made))
    with pytest.raises(mvkit.SpecError, match=message) as told:
        Model({"a": (3,)}, prior="odd")
    assert "mvkit-odd 1.0" in str(told.value)


def test_ctrl_c_in_a_part_stays_what_it_is(packages):
    install(
        packages,
        "mvkit-odd",
        "odd",
        DECLARES,
        CANCELLED.format(top="raise KeyboardInterrupt", made="pass"),
    )
    with pytest.raises(KeyboardInterrupt):
        Model({"a": (3,)}, prior="odd")


@pytest.mark.parametrize("package", ["mvkit", "MVKit", "Mvkit", "Local"])
def test_names_that_pip_takes_for_those_of_mvkit(packages, package):
    install(packages, package, "odd", DECLARES)
    assert [problem.package for problem in mvkit.plugins.problems()] == [package]
    assert "is taken; rename the package" in str(mvkit.plugins.problems()[0])


@pytest.mark.parametrize("package", ["mvkit-odd", "mvkit_odd", "MVKit.odd", "mvkitx"])
def test_names_that_only_begin_like_it(packages, package):
    install(packages, package, "odd", DECLARES)
    assert not mvkit.plugins.problems()


TRAINS_AGAIN = """
import mvkit, torch
from mvkit.registry import hookimpl
heard = []
@hookimpl
def mvkit_event(event):
    heard.append(type(event).__name__)
    again = mvkit.Model({"a": (2,)}, latent_dim=1, seed=0)
    mvkit.fit(again, {"a": torch.zeros(4, 2)}, epochs=1)
"""


def test_an_event_that_trains_again(packages, monkeypatch):
    install(packages, "mvkit-odd", "odd", TRAINS_AGAIN)
    vae = Model({"a": (2,)}, latent_dim=1, seed=0)
    alone = Model({"a": (2,)}, latent_dim=1, seed=0)
    rows = {"a": torch.ones(6, 2)}
    history = mvkit.fit(vae, rows, epochs=2)
    heard = sys.modules["odd"].heard
    assert heard.count("RunStarted") == heard.count("RunFinished") == 1
    assert heard.count("EpochFinished") == 2
    monkeypatch.setenv("MVKIT_PLUGINS", "")
    mvkit.plugins.registry.cache_clear()
    assert mvkit.fit(alone, rows, epochs=2).rows == history.rows
    assert torch.equal(vae.encode(rows), alone.encode(rows))


def test_an_event_that_is_cancelled(packages):
    code = "from asyncio import CancelledError\nfrom mvkit.registry import hookimpl\n@hookimpl\ndef mvkit_event(event):\n    raise CancelledError('now')\n"
    install(packages, "mvkit-odd", "odd", code)
    vae = Model({"a": (2,)}, latent_dim=1, seed=0)
    with pytest.warns(UserWarning, match="mvkit-odd.* raised CancelledError: now; it is disabled"):
        assert len(mvkit.fit(vae, {"a": torch.ones(6, 2)}, epochs=2).rows) == 2
