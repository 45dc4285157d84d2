"""What happens to a run's files when it is killed, the disk is full, or files are altered.

`make chaos` and `make fuzz` do ten times as much as the suite does.
"""

import os
import random
import signal
import struct
import subprocess
import sys
import textwrap
import time
import warnings

import pytest
import torch
from helpers import model, rows

import mvkit
from mvkit import CheckpointError
from mvkit.core import safe_file
from mvkit.training.events import CheckpointSaved, RunStarted
from mvkit.training.run_folder import Folder

KILLS = int(os.environ.get("MVKIT_CHAOS", "20"))
MUTATIONS = int(os.environ.get("MVKIT_FUZZ", "1000"))


def train_until_killed(folder, pipe):
    """The child: tells every save through a pipe, and never returns."""

    def listen(event):
        if isinstance(event, RunStarted | CheckpointSaved):
            os.write(pipe, struct.pack("<q", event.step))

    options = {"epochs": 10**6, "batch_size": 4, "save_every": 0.05, "listeners": [listen]}
    mvkit.fit(model("mopoe", "mog"), rows(200), checkpoint=folder, **options)


def rest(pipe):
    with os.fdopen(pipe, "rb") as file:
        return file.read()


def test_a_killed_run_has_lost_nothing_it_told_of(tmp_path):
    chance = random.Random(0)
    announced = 0
    mvkit.fit(
        model("mopoe", "mog"), rows(8), epochs=1
    )  # what is imported on first use is there before we fork
    for _ in range(KILLS):
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads are idle while we fork
            child = os.fork()
        if not child:
            try:
                os.close(reader)
                train_until_killed(tmp_path, writer)
            finally:
                os._exit(1)
        os.close(writer)
        blob = os.read(reader, 8)  # it goes on from there
        time.sleep(chance.uniform(0.0, 0.4))
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        begun, *steps = (value for (value,) in struct.iter_unpack("<q", blob + rest(reader)))
        assert begun >= announced
        announced = max(steps, default=begun)
        folder = Folder(tmp_path, 3)
        with folder.alone():  # as the next run does
            assert not list(tmp_path.rglob("*.tmp"))
        for path in (tmp_path / "checkpoints").iterdir():
            mvkit.describe(path)  # every file that is there is whole
        state = folder.newest()
    assert state is not None
    assert announced > 0


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    tiny = model("moe", "mog", private=1)
    mvkit.save(tiny, path)
    return tiny, path


def mutated(blob, chance):
    """A blob altered in one of many ways."""
    blob = bytearray(blob)
    at = chance.randrange(len(blob))
    size = chance.randrange(1, 64)
    kind = chance.randrange(8)
    header = 8 + struct.unpack("<Q", blob[:8])[0]
    if kind == 0:
        blob[at] ^= 1 << chance.randrange(8)
    elif kind == 1:
        blob[at : at + size] = chance.randbytes(size)
    elif kind == 2:
        del blob[at:]
    elif kind == 3:
        del blob[at : at + size]
    elif kind == 4:
        blob[at:at] = chance.randbytes(size)
    elif kind == 5:
        lengths = [0, 1, 7, 2**31, 2**63, 2**64 - 1, chance.randrange(len(blob))]
        blob[:8] = struct.pack("<Q", chance.choice(lengths))
    elif kind == 6:
        at = chance.randrange(8, header)
        pieces = [b"{", b"[", b'"', b"9" * 20, b"\\", b"null", b"\x00"]
        blob[at : at + 1] = chance.choice(pieces)
    else:
        blob[at : at + size] = bytes(size)
    return bytes(blob)


def test_altered_files_are_refused_by_one_error(saved, tmp_path):
    tiny, path = saved
    blob = path.read_bytes()
    chance = random.Random(1)
    refused = 0
    other = tmp_path / "altered.safetensors"
    for _ in range(MUTATIONS):
        altered = mutated(blob, chance)
        other.write_bytes(altered)
        start = time.perf_counter()
        try:
            again = mvkit.load(other)
        except CheckpointError as error:
            refused += str(other) in str(error)
        else:
            assert altered == blob
            for name, value in again.state_dict().items():
                assert torch.equal(value, tiny.state_dict()[name]), name
            refused += 1
        assert time.perf_counter() - start < 2
    assert refused == MUTATIONS


def resealed(path, target, change):
    """A copy whose header was changed by somebody who knows how checksums are made."""
    header, tensors = safe_file.read(path)
    change(header)
    del header["format"], header["sha256"]
    safe_file.write(target, header, tensors)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.pop("model"),
        lambda h: h.update(model=3),
        lambda h: h["model"].pop("name"),
        lambda h: h["model"].pop("order"),
        lambda h: h["model"].update(order=["x"]),
        lambda h: h["model"].update(modalities=[]),
        lambda h: h["model"].update(latent_dim=3),
        lambda h: h["model"].update(latent_dim="os.system"),
        lambda h: h["model"].update(surprise=1),
        lambda h: h["model"]["prior"].update(name="nonesuch"),
        lambda h: h["model"]["prior"].update(components=None),
        lambda h: h.update(dtype="load"),
        lambda h: h.update(packages=[1]),
        lambda h: h["model"]["modalities"]["a"].update(shape=[-1]),
    ],
)
def test_headers_of_another_shape_are_refused(saved, tmp_path, change):
    resealed(saved[1], tmp_path / "model.safetensors", change)
    with pytest.raises(CheckpointError):
        mvkit.load(tmp_path / "model.safetensors")


def run(code, *arguments):
    code = "import sys; sys.path.insert(0, 'tests')\n" + textwrap.dedent(code)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_loading_executes_nothing_and_asks_nobody(saved):
    run(
        """
        import mvkit, torch
        from helpers import model
        path = sys.argv[1]
        model("moe", "mog", private=1)  # what is imported on first use is imported now
        events = []
        sys.addaudithook(lambda name, arguments: events.append((name, arguments)) if watching else None)
        watching = True
        mvkit.load(path)
        watching = False
        bad = ("exec", "compile", "import", "socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.spawn",
               "pickle.", "marshal.", "ctypes.", "urllib.")
        calls = [(name, str(arguments)[:200]) for name, arguments in events if name.startswith(bad)]
        assert not calls, calls
        assert any(name == "open" for name, _ in events)  # the hook hears
        """,
        saved[1],
    )


def test_loading_needs_twice_the_file_at_most(tmp_path):
    path = tmp_path / "large.safetensors"
    wide = {"name": "mlp", "hidden": [2048, 2048]}
    modality = mvkit.Modality((64,), encoder=wide, decoder=wide)
    mvkit.save(mvkit.Model({"a": modality}), path)
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    (tmp_path / "altered.safetensors").write_bytes(blob)
    code = """
        import resource, mvkit
        from mvkit import CheckpointError
        mvkit.Model({"a": (2,)}, seed=0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            mvkit.load(sys.argv[1])
        except CheckpointError:
            pass
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    size = path.stat().st_size / 1024
    assert size > 30_000
    for name in ("large", "altered"):
        assert int(run(code, tmp_path / f"{name}.safetensors")) < 2 * size + 5_000  # kB


def test_a_full_disk_is_an_error_and_nothing_is_claimed(tmp_path):
    code = """
        import resource, signal, mvkit, torch
        from mvkit.training.events import CheckpointSaved, RunStarted
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # as a full disk, for files beyond that size
        heard = []
        try:
            mvkit.fit(mvkit.Model({"a": (3,)}), {"a": torch.rand(8, 3)}, epochs=1, checkpoint=sys.argv[1],
                      listeners=[heard.append])
        except OSError as error:
            assert not any(isinstance(event, CheckpointSaved) for event in heard)
            assert heard[-1].error.startswith("OSError"), heard[-1].error
        else:
            raise AssertionError("nothing was refused")
    """
    run(code, tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())
    assert not (tmp_path / "model.safetensors").exists()


def test_a_real_small_disk(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small tmpfs here")
    try:
        large = mvkit.Model({"a": (3,)})
        with pytest.raises(OSError, match="No space left"):
            mvkit.fit(large, {"a": torch.rand(8, 3)}, epochs=1, checkpoint=tmp_path)
        assert not [p for p in tmp_path.rglob("*") if p.suffix in (".safetensors", ".tmp")]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_folder_that_nobody_may_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        mvkit.fit(model(), rows(), epochs=1, checkpoint=tmp_path / "file" / "run")
    if os.geteuid() == 0:
        return  # root may write everywhere
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        mvkit.fit(model(), rows(), epochs=1, checkpoint=tmp_path / "run")
