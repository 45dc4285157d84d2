"""save and load with bytes and binary file objects: the bytes of the file, and nothing half-written."""

import io
import pickle
import tempfile

import pytest
import torch
from helpers import model, rows

import mvkit
from mvkit import CheckpointError, Ensemble, RequestError


def saved(own):
    file = io.BytesIO()
    mvkit.save(own, file)
    return file.getvalue()


def same_weights(own, other):
    assert own.state_dict().keys() == other.state_dict().keys()
    for name, value in own.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_a_file_object_gets_the_bytes_of_the_file(tmp_path):
    own = model("mopoe", "mog", private=1)
    mvkit.save(own, tmp_path / "model.safetensors")
    assert saved(own) == (tmp_path / "model.safetensors").read_bytes()
    with open(tmp_path / "other", "wb") as file:
        mvkit.save(own, file)
    assert (tmp_path / "other").read_bytes() == saved(own)
    same_weights(mvkit.load(tmp_path / "other"), own)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
def test_bytes_and_file_objects_are_loaded(kind):
    own = model("mopoe", "mog", private=1)
    blob = saved(own)
    again = mvkit.load(kind(blob))
    same_weights(again, own)
    batch = rows(5)
    assert torch.equal(again.encode(batch), own.encode(batch))
    assert mvkit.describe(kind(blob))["model"] == own.header()


def test_files_of_the_operating_system_are_loaded(tmp_path):
    own = model()
    path = tmp_path / "model.safetensors"
    mvkit.save(own, path)
    with open(path, "rb") as file:
        same_weights(mvkit.load(file), own)
    with open(path, "rb", buffering=0) as file:
        same_weights(mvkit.load(file), own)
    with tempfile.NamedTemporaryFile() as file:
        mvkit.save(own, file)
        file.seek(0)
        same_weights(mvkit.load(file), own)


def test_several_models_follow_one_another_in_a_file_object():
    first, second = model(seed=1), model(seed=2)
    file = io.BytesIO()
    mvkit.save(first, file)
    place = file.tell()
    mvkit.save(second, file)
    same_weights(mvkit.load(file.getvalue()[:place]), first)
    file.seek(place)
    same_weights(mvkit.load(file), second)


def test_weights_do_not_share_memory_with_the_bytes():
    own = model()
    blob = bytearray(saved(own))
    again = mvkit.load(blob)
    blob[-64:] = bytes(64)
    same_weights(again, own)
    before = bytes(blob)
    with torch.no_grad():
        next(again.parameters()).add_(1.0)
    assert bytes(blob) == before


def test_an_ensemble_is_bytes_too():
    both = Ensemble([model(seed=1), model(seed=2)], [1, 2])
    again = mvkit.load(pickle.loads(pickle.dumps(saved(both))))
    assert again.seeds == (1, 2)
    same_weights(again, both)


@pytest.mark.parametrize("at", [0, 1, 100, -1])
def test_bytes_that_were_altered_are_refused(at):
    blob = bytearray(saved(model()))
    blob[at] ^= 1
    with pytest.raises(CheckpointError, match="bytes: .*take another copy"):
        mvkit.load(bytes(blob))


@pytest.mark.parametrize("length", [0, 7, 8, 500, -1])
def test_bytes_that_were_cut_are_refused(length):
    with pytest.raises(CheckpointError, match="BytesIO: .*take another copy"):
        mvkit.load(io.BytesIO(saved(model())[:length]))


class Full(io.BytesIO):
    """A file object that takes two writes and no more."""

    writes = 0

    def write(self, part):
        self.writes += 1
        if self.writes > 2:
            raise OSError("the disk is full")
        return super().write(part)


def test_nothing_is_half_written_where_writing_fails():
    file = Full(b"before")
    file.seek(0, io.SEEK_END)
    with pytest.raises(OSError, match="the disk is full"):
        mvkit.save(model(), file)
    assert file.writes == 3
    assert file.getvalue() == b"before"
    assert file.tell() == 6


def test_nothing_is_written_of_a_model_that_cannot_be_saved():
    own = model()
    own.register_parameter("extra", torch.nn.Parameter(torch.zeros(())))
    own.prior = torch.nn.Linear(1, 1)
    file = io.BytesIO()
    with pytest.raises(CheckpointError):
        mvkit.save(own, file)
    assert file.getvalue() == b""


@pytest.mark.parametrize("target", [io.StringIO(), 3, None, b"path"])
def test_what_takes_no_bytes_is_refused(target):
    name = type(target).__name__
    with pytest.raises(RequestError, match=f"save: got {name}; expected a path, or a file object"):
        mvkit.save(model(), target)


@pytest.mark.parametrize("source", [io.StringIO("text"), 3, None])
def test_what_has_no_bytes_is_refused(source):
    name = type(source).__name__
    with pytest.raises(RequestError, match=f"load: got {name}; expected a path, bytes, or a file"):
        mvkit.load(source)


def test_an_ensemble_in_place_of_a_model_says_so():
    from mvkit.models.checkpoint import load_model

    with pytest.raises(
        CheckpointError, match="bytes: an ensemble of 1 models; expected one model"
    ):
        load_model(saved(Ensemble([model()])))
