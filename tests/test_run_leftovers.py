"""Modules swapped after a model was made, initial weights and listeners of resumed runs, SIGTERM,
and what the command line says of mistakes.
"""

import copy
import shlex
import signal
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

import mvkit
from mvkit import CheckpointError, Modality, Model
from mvkit.apps import cli
from mvkit.testing.tiny_models import model as tiny_model

ROWS = {
    "a": torch.randn(12, 3, generator=torch.Generator().manual_seed(1)),
    "b": torch.ones(12, 2),
}


def small(**options):
    network = {"name": "mlp", "hidden": [4]}
    modalities = {
        "a": Modality((3,), encoder=network, decoder=network),
        "b": Modality((2,), encoder=network, decoder=network),
    }
    return Model(modalities, latent_dim=2, seed=0, **options)


def like(module):
    """A module of the same shapes with other weights."""
    twin = copy.deepcopy(module)
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    return twin


# swapped modules


def swap_encoder(model):
    model.encoders["a"] = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 4))


def swap_layers(model):
    model.encoders["a"][0] = nn.Linear(3, 9)
    model.encoders["a"][2] = nn.Linear(9, 4)


def swap_activation(model):
    model.encoders["a"][1] = nn.Tanh()


def add_to_encoder(model):
    model.encoders["a"].extra = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize("swap", [swap_encoder, swap_layers, swap_activation, add_to_encoder])
def test_a_swapped_encoder_is_saved_as_the_users(tmp_path, swap):
    model = small()
    swap(model)
    path = tmp_path / "m.safetensors"
    mvkit.save(model, path)
    header = mvkit.describe(path)["model"]["modalities"]
    name = type(model.encoders["a"]).__name__
    assert header["a"]["encoder"] == {"external": name}
    assert header["b"]["encoder"]["name"] == "mlp"
    with pytest.raises(CheckpointError, match=rf"modalities\.a\.encoder \({name}\).*load\("):
        mvkit.load(path)
    again = mvkit.load(path, encoders={"a": like(model.encoders["a"])})
    assert torch.equal(again.encode(ROWS), model.encode(ROWS))
    mvkit.save(again, tmp_path / "twice")
    assert mvkit.describe(tmp_path / "twice")["model"] == mvkit.describe(path)["model"]


def test_a_swapped_decoder_is_saved_as_the_users(tmp_path):
    model = small()
    model.decoders["b"].network = nn.Linear(2, 2)
    path = tmp_path / "m.safetensors"
    mvkit.save(model, path)
    with pytest.raises(CheckpointError, match=r"modalities\.b\.decoder \(Linear\)"):
        mvkit.load(path)
    again = mvkit.load(path, decoders={"b": nn.Linear(2, 2)})
    z = torch.ones(3, 2)
    assert torch.equal(again.decode(z)["b"], model.decode(z)["b"])


def test_a_given_module_that_was_swapped_is_the_new_one(tmp_path):
    given = Modality((3,), encoder=nn.Linear(3, 4))
    model = Model({"a": given}, latent_dim=2, seed=0)
    model.encoders["a"] = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4))
    path = tmp_path / "m.safetensors"
    mvkit.save(model, path)
    assert mvkit.describe(path)["model"]["modalities"]["a"]["encoder"] == {
        "external": "Sequential"
    }
    again = mvkit.load(path, encoders={"a": like(model.encoders["a"])})
    rows = {"a": ROWS["a"]}
    assert torch.equal(again.encode(rows), model.encode(rows))


def swap_whole_decoder(model):
    model.decoders["a"] = nn.Linear(2, 3)


def swap_prior(model):
    model.prior = small(prior="learnable").prior


def swap_components(model):
    model.prior = small(prior={"name": "mog", "components": 7}).prior


def add_parameter(model):
    model.temperature = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    ("swap", "path"),
    [
        (swap_whole_decoder, r"decoders\.a was.*model\.decoders\['a'\]\.network"),
        (swap_prior, r"prior.* was.*Model\(…, prior=…\)"),
        (swap_components, r"prior.* was.*Model\(…, prior=…\)"),
        (add_parameter, "temperature was.*nothing when the model was made"),
    ],
)
def test_what_no_file_can_hold_is_refused_by_name(tmp_path, swap, path):
    model = small(prior={"name": "mog", "components": 3})
    swap(model)
    with pytest.raises(CheckpointError, match=f"save: {path}"):
        mvkit.save(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_run_with_a_folder_refuses_before_it_trains(tmp_path):
    model = small()
    add_parameter(model)
    seen = []
    with pytest.raises(CheckpointError, match="save: temperature was changed"):
        mvkit.fit(model, ROWS, epochs=2, checkpoint=tmp_path, listeners=[seen.append])
    assert seen == []


def test_a_run_with_a_swapped_encoder_resumes(tmp_path):
    def fresh():
        model = small()
        torch.manual_seed(3)
        swap_encoder(model)
        return model

    whole = fresh()
    mvkit.fit(whole, ROWS, epochs=3, progress=False)
    first, second = fresh(), fresh()
    mvkit.fit(first, ROWS, epochs=1, progress=False, checkpoint=tmp_path)
    mvkit.fit(second, ROWS, epochs=3, progress=False, checkpoint=tmp_path)
    assert torch.equal(second.encode(ROWS), whole.encode(ROWS))
    other = small()
    with pytest.raises(mvkit.RequestError, match="another model: .*encoder"):
        mvkit.fit(other, ROWS, epochs=4, progress=False, checkpoint=tmp_path)


def test_swaps_in_a_stack(tmp_path):
    def stack():
        return mvkit.recipes.nexus({"a": (3,), "b": (2,)}, seed=0)

    model = stack()
    bottom = model.bottom
    width = bottom.encoders["a"](torch.zeros(1, 3)).shape[1]
    bottom.encoders["a"] = nn.Linear(3, width)
    mvkit.save(model, tmp_path / "m")
    given = {"levels.0.modalities.a.encoder": nn.Linear(3, width)}
    again = mvkit.load(tmp_path / "m", modules=given)
    assert torch.equal(again.encode(ROWS), model.encode(ROWS))
    model = stack()
    model.prior = copy.deepcopy(model.prior)
    model.top.temperature = nn.Parameter(torch.ones(1))
    with pytest.raises(CheckpointError, match="save: (prior|temperature)"):
        mvkit.save(model, tmp_path / "other")


def test_what_changes_lawfully_is_saved(tmp_path):
    data = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    model = Model({"a": (3,)}, latent_dim=2, prior={"name": "mog", "components": 4}, seed=0)
    pruned = mvkit.prune_clusters(model, {"a": data}).model
    mvkit.fit_sampler(pruned, {"a": data}, {"name": "gmm", "components": 2})
    pruned.double()
    pruned.requires_grad_(False)
    copied = copy.deepcopy(pruned)
    for number, kept in enumerate((pruned, copied)):
        mvkit.save(kept, tmp_path / str(number))
        again = mvkit.load(tmp_path / str(number))
        assert torch.equal(again.prior.logits, pruned.prior.logits)
        assert not kept.changes()


@pytest.mark.parametrize("aggregator", ["poe", "mopoe", "joint", "set", "mean_message", "gpoe"])
@pytest.mark.parametrize("prior", ["standard", "learnable", "mog", "vamp"])
def test_training_changes_nothing_that_a_file_lacks(tmp_path, aggregator, prior):
    from helpers import rows

    model = tiny_model(aggregator, prior, private=1)
    mvkit.fit(model, rows(), epochs=1, progress=False)
    assert model.changes() == {}
    mvkit.save(model, tmp_path / "m")


# initial weights and listeners of a run that resumes


def pretrained(seed=7, **options):
    """A model made with a seed, into which other weights were loaded."""
    model = small(**options)
    other = Model(model.modalities, latent_dim=2, seed=seed, **options)
    model.load_state_dict(other.state_dict())
    return model


def trained(model, folder, epochs=2, **options):
    return mvkit.fit(model, ROWS, epochs=epochs, progress=False, checkpoint=folder, **options)


def test_a_run_that_began_with_other_weights_than_its_seeds(tmp_path):
    whole = pretrained()
    trained(whole, tmp_path / "whole", epochs=4)
    trained(pretrained(), tmp_path / "run")
    for stranger in (small(), pretrained(seed=8)):
        with pytest.raises(mvkit.RequestError, match="begun with other initial weights.*sha256"):
            trained(stranger, tmp_path / "run", epochs=4)
    resumed = pretrained()
    trained(resumed, tmp_path / "run", epochs=3)
    trained(pretrained(), tmp_path / "run", epochs=4)  # what is compared is kept
    with pytest.raises(mvkit.RequestError, match="begun with other initial weights"):
        trained(small(), tmp_path / "run", epochs=4)


def test_one_changed_number_is_another_beginning(tmp_path):
    model = pretrained()
    trained(model, tmp_path)
    changed = pretrained()
    with torch.no_grad():
        changed.decoders["b"].network[0].bias[1] += 1e-6
    with pytest.raises(mvkit.RequestError, match="begun with other initial weights"):
        trained(changed, tmp_path, epochs=3)


def test_the_same_model_goes_on_in_the_same_process(tmp_path):
    model, whole = pretrained(), pretrained()
    trained(model, tmp_path / "run")
    trained(model, tmp_path / "run", epochs=4)
    trained(whole, tmp_path / "whole", epochs=4)
    assert torch.equal(model.encode(ROWS), whole.encode(ROWS))


def test_weights_of_a_seed_or_of_none_are_not_compared(tmp_path):
    trained(small(), tmp_path / "seeded")
    trained(small(), tmp_path / "seeded", epochs=3)
    folder = tmp_path / "pretrained"
    trained(pretrained(), folder)
    trained(mvkit.load(folder / "model.safetensors"), folder, epochs=3)


def test_a_scale_that_data_place_is_no_change(tmp_path):
    def model():
        modality = Modality((3,), {"name": "normal", "scale": "trained"})
        return Model({"a": modality}, latent_dim=2, seed=0)

    rows = {"a": 5 * ROWS["a"]}
    folder = tmp_path / "run"
    mvkit.fit(model(), rows, epochs=1, checkpoint=folder, progress=False)
    checkpoint = next((folder / "checkpoints").iterdir())
    assert "initial_weights" not in mvkit.describe(checkpoint)["training"]["begun_with"]
    mvkit.fit(model(), rows, epochs=2, checkpoint=folder, progress=False)


def test_weights_of_a_stack_are_compared(tmp_path):
    def stack():
        return mvkit.recipes.nexus({"a": (3,), "b": (2,)}, seed=0)

    changed = stack()
    with torch.no_grad():
        next(changed.top.parameters()).add_(1)
    trained(changed, tmp_path / "run", epochs=2)
    with pytest.raises(mvkit.RequestError, match="begun with other initial weights"):
        trained(stack(), tmp_path / "run", epochs=3)
    trained(stack(), tmp_path / "other", epochs=2)
    trained(stack(), tmp_path / "other", epochs=3)


class Counter:
    def __call__(self, event):
        pass


class Pruner(Counter):
    pass


def test_listeners_that_differ_are_noted(tmp_path):
    trained(small(), tmp_path, epochs=1, listeners=[Counter()])
    again = trained(small(), tmp_path, epochs=2, listeners=[Counter(), print_nothing])
    assert not any("listeners" in note for note in again.notes)
    third = trained(small(), tmp_path, epochs=3, listeners=[Counter(), Pruner()])
    changed = "resumed after batch 2: listeners: ['Counter'], then ['Counter', 'Pruner']"
    assert changed in third.notes
    last = trained(small(), tmp_path, epochs=4)
    dropped = "resumed after batch 3: listeners: ['Counter', 'Pruner'], then []"
    assert [note for note in last.notes if "listeners" in note] == [changed, dropped]


def print_nothing(event):
    """A function, which has no class of its own."""


# SIGTERM, and how to go on

ENDED = """
import signal
import mvkit, torch
from mvkit.training.events import CheckpointSaved, RunFinished

signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
PREPARE
model = mvkit.Model({"a": (3,)}, latent_dim=2, seed=0)
rows = {"a": torch.randn(40, 3, generator=torch.Generator().manual_seed(0))}
seen = []

def listen(event):
    seen.append(event)
    if isinstance(event, CheckpointSaved) and event.step == 4:
        SEND
    if isinstance(event, RunFinished):
        print("finished:", event.error, flush=True)

mvkit.fit(model, rows, epochs=3, batch_size=10, checkpoint=FOLDER, progress=False,
          save_every=1e9, listeners=[listen], OPTIONS)
print("went on", signal.getsignal(signal.SIGTERM), flush=True)
"""
TEXT = {"capture_output": True, "text": True}
RAISE_NOTED = "run.interruption._note_end(signal.SIGTERM, None)"
RAISE = "signal.raise_signal(signal.SIGTERM)"


def ended(folder, send=RAISE, prepare="", options=""):
    """The process of a run to which signals are sent after its first epoch."""
    code = ENDED.replace("SEND", send).replace("PREPARE", prepare).replace("OPTIONS", options)
    code = code.replace("FOLDER", repr(None if folder is None else str(folder)))
    return subprocess.run([sys.executable, "-c", code], check=False, **TEXT)


def test_sigterm_saves_and_ends_the_process_as_usual(tmp_path):
    done = ended(tmp_path / "run")
    assert done.returncode == -signal.SIGTERM
    assert "went on" not in done.stdout
    assert "finished: KeyboardInterrupt" in done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert line == (
        "fit: interrupted and saved after batch 4; to resume, call fit again with "
        f"checkpoint={str(tmp_path / 'run')!r}"
    )
    assert (tmp_path / "run/checkpoints/00000004.safetensors").is_file()
    resumed = ended(tmp_path / "run", send="pass")
    assert resumed.returncode == 0, resumed.stderr
    assert f"went on {signal.SIG_DFL}" in resumed.stdout
    whole = ended(tmp_path / "whole", send="pass")
    assert whole.returncode == 0
    first, second = (
        mvkit.load(tmp_path / name / "model.safetensors") for name in ("run", "whole")
    )
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_sigterm_after_the_last_step_ends_the_process_too(tmp_path):
    prepare = (
        "from mvkit.training.run import Run\nfinish = Run.finish\n"
        f"Run.finish = lambda run: (finish(run), {RAISE_NOTED})"
    )
    done = ended(tmp_path / "run", send="pass", prepare=prepare)
    assert done.returncode == -signal.SIGTERM
    assert done.stderr == "fit: SIGTERM came late; the run was finished and saved\n"
    assert (tmp_path / "run/model.safetensors").is_file()


def test_a_second_sigterm_ends_the_process_at_once(tmp_path):
    done = ended(tmp_path / "run", send=f"{RAISE}; {RAISE}")
    assert done.returncode == -signal.SIGTERM
    assert "finished" not in done.stdout
    assert not (tmp_path / "run/checkpoints/00000005.safetensors").exists()


def test_sigterm_without_a_folder_is_as_ever():
    code = "isinstance(event, mvkit.training.events.EpochFinished) and (" + RAISE + ")"
    prepare = "import mvkit.training.events"
    script = ENDED.replace(
        "if isinstance(event, CheckpointSaved) and event.step == 4:", "if True:"
    )
    script = script.replace("SEND", code).replace("PREPARE", prepare)
    script = script.replace("FOLDER", "None").replace("OPTIONS", "")
    done = subprocess.run([sys.executable, "-c", script], check=False, **TEXT)
    assert done.returncode == -signal.SIGTERM
    assert "finished" not in done.stdout
    assert done.stderr == ""


def test_a_users_handler_of_sigterm_stays(tmp_path):
    prepare = "signal.signal(signal.SIGTERM, lambda number, frame: print('mine', flush=True))"
    done = ended(tmp_path / "run", prepare=prepare)
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout
    assert "finished: None" in done.stdout


def test_a_process_that_a_run_forked_dies_of_sigterm(tmp_path):
    send = (
        "import os, time; child = os.fork()\n"
        "        if child == 0: time.sleep(30); os._exit(7)\n"
        "        time.sleep(0.5); os.kill(child, signal.SIGTERM); "
        "print('child', os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)"
    )
    done = ended(tmp_path / "run", send=send)
    assert done.returncode == 0, done.stderr
    assert f"child {int(signal.SIGTERM)}" in done.stdout


def test_sigterm_in_another_thread_is_as_ever(tmp_path):
    handlers = []

    def run():
        trained(small(), tmp_path, listeners=[lambda event: handlers.append(handler())])

    def handler():
        return signal.getsignal(signal.SIGTERM)

    before = handler()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert set(handlers) == {before}


def test_how_to_resume_a_run_that_may_not_resume(tmp_path):
    send = "signal.raise_signal(signal.SIGTERM)"
    done = ended(tmp_path / "run", send=send, options="resume='never'")
    assert done.stderr.strip().endswith(
        f"call fit again with checkpoint={str(tmp_path / 'run')!r} and resume='auto'"
    )


def run_file(folder, text=None):
    file = folder / "plan.toml"
    file.write_text(
        text
        or '[data]\nname = "linear_gaussian"\nrows = 40\n[model]\nlatent_dim = 2\n'
        "[train]\nepochs = 2\nbatch_size = 10\n"
    )
    return file


def test_sigterm_on_the_command_line_says_how_to_resume(tmp_path):
    file = run_file(tmp_path)
    folder = tmp_path / "a run"
    code = f"""
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
from mvkit.training.run_folder import Folder
save = Folder.save
def saved(self, *arguments, **options):
    path = save(self, *arguments, **options)
    signal.raise_signal(signal.SIGTERM)
    return path
if "stop" in sys.argv:
    Folder.save = saved
from mvkit.apps import cli
sys.exit(cli.main(["train", {str(file)!r}, "--folder", {str(folder)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code, "stop"], check=False, **TEXT)
    assert done.returncode == -signal.SIGTERM
    (line,) = done.stderr.strip().splitlines()
    assert line.endswith(f"; to resume, mvkit resume '{folder}'")
    words = shlex.split(line.partition("; to resume, mvkit ")[2])
    assert cli.main(words) == 0


def test_a_stop_before_anything_was_saved_promises_nothing(tmp_path, monkeypatch, capsys):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("mvkit.apps.run_file.Plan.run", stop)
    folder = tmp_path / "run"
    assert cli.main(["train", str(run_file(tmp_path)), "--folder", str(folder)]) == 130
    assert capsys.readouterr().err.strip() == "mvkit: stopped; nothing was saved yet"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/00000001.safetensors").touch()
    assert cli.main(["train", str(run_file(tmp_path)), "--folder", str(folder)]) == 130
    assert capsys.readouterr().err.strip() == f"mvkit: stopped; to resume: mvkit resume {folder}"


def test_a_run_without_a_good_checkpoint_is_begun_by_what_there_is(tmp_path, capsys):
    with pytest.raises(mvkit.RequestError, match="no good checkpoint.*take resume='auto'"):
        trained(small(), tmp_path / "own", resume="must")
    folder = tmp_path / "run"
    assert cli.main(["train", str(run_file(tmp_path)), "--folder", str(folder)]) == 0
    for path in (folder / "checkpoints").iterdir():
        path.rename(path.with_name("mine.safetensors"))
    capsys.readouterr()
    assert cli.main(["resume", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "mvkit train" in said
    assert "resume='" not in said


# what the command line says of mistakes

PLAN = (
    '[data]\nname = "linear_gaussian"\nrows = 40\n[model]\nlatent_dim = 2\n[train]\nepochs = 1\n'
)


def said(capsys, *arguments):
    """What a command that fails says, in one line."""
    assert cli.main(list(map(str, arguments))) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            "data.row=3",
            "data.row: unknown option of dataset 'linear_gaussian'; did you mean 'rows'",
        ),
        ("data.rows=ten", "data.rows: got 'ten'; expected an integer of at least 10"),
        ("data.name=linear", "data: unknown dataset 'linear'; did you mean 'linear_gaussian'?"),
        ("data.dims=abc", "data.dims: got 'abc'; expected a list of positive whole numbers"),
        ("data.dims=3", "data.dims: got 3; expected a list of positive whole numbers"),
        ("data.dims=[0, 2]", "data.dims: got (0, 2); expected a list of positive whole numbers"),
        ("model.modalities.m0.weigth=2", "model.modalities.m0.weigth: unknown option of Modality"),
        ("model.modalities.m0.likelihood=gauss", "model.modalities.m0.likelihood: unknown"),
        ("model.prior=mogg", "model.prior: unknown prior 'mogg'; did you mean 'mog'?"),
        ("model.latent_dim=two", "model.latent_dim: got 'two'; expected an integer"),
        ("train.epochs=ten", "train.epochs: got 'ten'; expected an integer of at least 1"),
        ("train.epochs=true", "train.epochs: got True; expected an integer of at least 1"),
        ("train.stages=joint", "train.stages: unknown schedule 'joint'"),
        ("train.stages=[1]", "train.stages: got 1; expected a Stage, or a dict"),
        ("train.stages=[{epoch=1}]", "train.stages.epoch: unknown option of Stage; did you mean"),
        ("train.epoch=3", "train.epoch: unknown option; did you mean 'epochs'?"),
    ],
)
def test_options_are_named_by_their_tables(tmp_path, capsys, change, expected):
    file = run_file(tmp_path, PLAN)
    line = said(capsys, "train", file, "--folder", tmp_path / "run", "--set", change)
    assert line.startswith(f"mvkit: {expected}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[data]\nname = polydigits\n",
            "line 2, column 8): name = polydigits; expected [TABLE] or",
        ),
        (f"{PLAN}compile = True\n", "compile = True; expected [TABLE] or OPTION = VALUE"),
        (f"{PLAN}epochs = 3\n", "epochs = 3; expected [TABLE] or OPTION = VALUE, each once"),
        (f"{PLAN}[data]\n", "[data]; expected [TABLE] or OPTION = VALUE, each once"),
        (f"epochs = 3\n{PLAN}", "epochs = 3 is in no table; expected tables [data], [model]"),
        (f"latent_dim = 3\n{PLAN}", "put it below [model]"),
        (f"nothing = 3\n{PLAN}", "put it below one of them"),
        (f"{PLAN}[[train]]\n", "[[train]]; expected [TABLE] or OPTION = VALUE, each once"),
        (PLAN.replace("[train]", "[training]"), "no table [training] is known; did you mean 'tr"),
    ],
)
def test_run_files_that_are_no_run_files(tmp_path, capsys, text, expected):
    file = run_file(tmp_path, text)
    line = said(capsys, "train", file, "--folder", tmp_path / "run")
    assert line.startswith(f"mvkit: {file}: ")
    assert expected in line


def test_paths_that_lead_nowhere(tmp_path, capsys):
    nothing = tmp_path / "nothing"
    file = run_file(tmp_path, PLAN)
    missing = f"mvkit: {nothing}: No such file or directory; check the path"
    assert said(capsys, "train", nothing) == missing
    assert said(capsys, "show", nothing) == missing
    assert said(capsys, "train", tmp_path) == f"mvkit: {tmp_path}: Is a directory; check the path"
    assert "a folder; expected a file, such as" in said(capsys, "show", tmp_path)
    for path in (nothing, file):
        assert f"{path}: no such folder; expected the folder of a run" in said(
            capsys, "report", path
        )
    for path in (nothing, file, tmp_path):
        line = said(capsys, "resume", path)
        assert line.startswith(f"mvkit: {path}: no folder with a run.toml")
    line = said(capsys, "train", file, "--folder", file)
    assert line == f"mvkit: {file}/checkpoints: Not a directory; check the path"


def test_reports_of_runs_that_do_not_say_what_they_are(tmp_path, capsys):
    file = run_file(tmp_path, PLAN)
    folder = tmp_path / "run"
    assert cli.main(["train", str(file), "--folder", str(folder)]) == 0
    capsys.readouterr()
    line = said(capsys, "report", folder, "-o", tmp_path)
    assert f"{tmp_path}: a folder; expected the name of a file, such as" in line
    plan = folder / "run.toml"
    plan.write_text(plan.read_text().replace("rows = 40", "rows = 'many'"))
    assert said(capsys, "report", folder) == (
        f"mvkit: {plan}: data.rows: got 'many'; expected an integer of at least 10"
    )
    plan.write_text("[data]\nname = 3\n")
    assert f"{plan}: data: got {{'name': 3}}; expected a 'name'" in said(capsys, "report", folder)


def test_kinds_that_are_not_there(capsys):
    assert "unknown kind 'priors'; did you mean 'prior'?" in said(capsys, "list", "priors")
    with pytest.raises(SystemExit) as ended:
        cli.main(["describe"])
    assert ended.value.code == 2
    assert "invalid choice: 'describe'" in capsys.readouterr().err
