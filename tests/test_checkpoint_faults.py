"""Checkpoint files that somebody crafted, damaged or replaced: refused before they are believed."""

import os
import resource
import stat
import time

import pytest
import torch
from torch import nn

import mvkit
from mvkit import CheckpointError, Modality, Model, RequestError, spec
from mvkit.core import safe_file, stored_tensors
from mvkit.models import claimed_tensors
from mvkit.parts.networks import Network
from mvkit.registry import Component, declare

SHAPES = {"a": (3,), "b": (2, 2)}
SMALL = {"name": "mlp", "hidden": (4,)}


def small(**options):
    modalities = {
        name: Modality(shape, encoder=SMALL, decoder=SMALL) for name, shape in SHAPES.items()
    }
    return Model(modalities, latent_dim=2, seed=0, **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def resealed(path, change_header=None, change_tensors=None):
    """Writes a file again with another header or other tensors, under a checksum that fits."""
    header, tensors = safe_file.read(path)
    if change_header:
        change_header(header)
    if change_tensors:
        change_tensors(tensors)
    safe_file.write(path, header, tensors)


def refused_at_once(path, message, **options):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(CheckpointError, match=message):
        mvkit.load(path, **options)
    assert time.process_time() - start < 2  # a tenth of that where nothing else runs
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown < 300_000  # kB


def of_modality(option, value):
    def change(header):
        header["model"]["modalities"]["a"]["encoder"][option] = value

    return change


def of_part(kind, option, value):
    def change(header):
        header["model"][kind][option] = value

    return change


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({}, of_modality("hidden", [30_000, 30_000])),
        ({}, of_modality("hidden", [1000] * 3000)),
        ({"prior": "mog"}, of_part("prior", "components", 2**40)),
        ({"prior": "vamp"}, of_part("prior", "components", 2**33)),
        ({"aggregator": "mean_message"}, of_part("aggregator", "message_dim", 10**6)),
        ({}, lambda header: header["model"].update(latent_dim=10**9)),
    ],
)
def test_networks_that_a_header_claims_are_not_built(path, options, change):
    mvkit.save(small(**options), path)
    resealed(path, change)
    refused_at_once(path, "model.safetensors: ")


def test_the_difference_is_named(path):
    mvkit.save(small(), path)
    resealed(path, of_modality("hidden", [5]))
    with pytest.raises(
        CheckpointError,
        match=r"'encoders\.a\.0\.bias' has shape \(4,\) in the file and \(5,\) by its header",
    ):
        mvkit.load(path)
    mvkit.save(small(), path)
    resealed(path, None, lambda tensors: tensors.pop("encoders.a.0.bias"))
    with pytest.raises(CheckpointError, match=r"bias' is missing from the file"):
        mvkit.load(path)
    mvkit.save(small(), path)
    resealed(path, None, lambda tensors: tensors.update(more=torch.zeros(2)))
    with pytest.raises(CheckpointError, match=r"'more' is in the file, and its header does not"):
        mvkit.load(path)


def test_a_sampler_that_a_header_claims_is_not_built(path):
    vae = small().eval()
    mvkit.fit_sampler(vae, {"a": torch.randn(40, 3), "b": torch.randn(40, 2, 2)}, "gmm")
    mvkit.save(vae, path)
    mvkit.load(path)
    resealed(path, lambda header: header["model"]["samplers"][0].update(components=10**7))
    refused_at_once(path, "model.safetensors: ")


@pytest.mark.parametrize(
    ("make", "numbers"),
    [
        (lambda: torch.zeros(()), 1),
        (lambda: torch.zeros(2, 3), 6),
        (lambda: torch.rand((2, 3)), 6),
        (lambda: torch.randn(size=[2, 3]), 6),
        (lambda: torch.empty(torch.Size((4,))), 4),
        (lambda: torch.full((2, 5), fill_value=1.0), 10),
        (lambda: torch.eye(3), 9),
        (lambda: torch.eye(3, 2), 6),
        (lambda: torch.arange(7), 7),
        (lambda: torch.arange(2, 7), 5),
        (lambda: torch.arange(end=7), 7),
        (lambda: torch.tensor([1.0, 2.0]).repeat(3, 2), 12),
    ],
)
def test_what_is_made_is_counted(make, numbers):
    with claimed_tensors.Allowance({}, "file") as allowance:
        before = allowance.numbers
        assert make().numel() == numbers
        assert before - allowance.numbers == numbers


@spec
class LooksAtValues(Network):
    """Networks that cannot be built on torch's device `meta`."""

    width: int = 4

    def encoder(self, shape, width):
        assert bool(torch.ones(1) > 0)
        first = nn.Linear(shape[0], self.width)
        return nn.Sequential(first, nn.ReLU(), nn.Linear(self.width, width))

    def decoder(self, width, shape):
        return nn.Linear(width, shape[0])


@pytest.mark.parametrize("width", [2**32, 10**8])
def test_parts_that_look_at_values_are_limited_too(path, width):
    declare(Component("network", "looks", "test_checkpoint_faults:LooksAtValues"))
    networks = {"encoder": "local/looks", "decoder": "local/looks"}
    vae = Model({"a": Modality((3,), **networks)}, latent_dim=2, seed=0).eval()
    mvkit.save(vae, path)
    x = {"a": torch.randn(2, 3)}
    assert torch.equal(mvkit.load(path).encode(x), vae.encode(x))
    resealed(path, of_modality("width", width))
    refused_at_once(path, "networks far larger than the tensors of the file")


def test_a_module_of_the_user_is_left_as_it_is(path):
    encoder = nn.Linear(3, 8)
    vae = Model({"a": Modality((3,), encoder=encoder, decoder=SMALL)}, latent_dim=4, seed=0)
    mvkit.save(vae, path)
    given = nn.Linear(3, 8)
    again = mvkit.load(path, encoders={"a": given})
    assert again.encoders["a"] is given
    assert torch.equal(given.weight, encoder.weight)
    resealed(path, lambda header: header["model"].update(latent_dim=10**9))
    refused_at_once(path, "model.safetensors: ", encoders={"a": nn.Linear(3, 8)})


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.float8_e4m3fn, torch.bool])
def test_tensors_of_another_kind_are_refused(path, dtype):
    mvkit.save(small(), path)
    name = "encoders.a.0.weight"
    resealed(path, None, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(CheckpointError, match=rf"{name}' is {dtype} in the file; expected"):
        mvkit.load(path)


def test_counts_are_no_floats(path):
    likelihood = {"name": "normal", "scale": "optimal"}
    mvkit.save(Model({"a": Modality((3,), likelihood)}, latent_dim=2, seed=0), path)
    name = next(name for name in safe_file.read(path)[1] if name.endswith("updates"))
    resealed(path, None, lambda tensors: tensors.update({name: torch.tensor(0.0)}))
    with pytest.raises(
        CheckpointError, match=r"is torch\.float32 in the file; expected torch\.int64"
    ):
        mvkit.load(path)


@pytest.mark.parametrize("dtype", ["complex64", "float8_e4m3fn", "int64", "nn", "float"])
def test_models_in_other_numbers_are_refused(path, dtype):
    mvkit.save(small(), path)
    resealed(path, lambda header: header.update(dtype=dtype))
    with pytest.raises(CheckpointError, match=f"a model in '{dtype}'; expected 'float64' or"):
        mvkit.load(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_point_model_comes_back(path, dtype):
    vae = small().to(dtype)
    mvkit.save(vae, path)
    again = mvkit.load(path)
    for name, values in vae.state_dict().items():
        assert again.state_dict()[name].dtype == values.dtype
        assert torch.equal(again.state_dict()[name], values)


def test_weights_that_are_nan_are_named(path):
    vae = small()
    with torch.no_grad():
        vae.decoders["b"].network[0].bias[0] = torch.nan
    mvkit.save(vae, path)
    with pytest.warns(UserWarning, match=r"decoders\.b\.network\.0\.bias hold NaN"):
        mvkit.load(path)


def test_header_and_tensors_are_of_one_file(path, tmp_path, monkeypatch):
    first, second = small(), small()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1)
    mvkit.save(first, path)
    mvkit.save(second, tmp_path / "second")
    parsed = safe_file._parsed

    def replaced_meanwhile(blob, where):
        os.replace(tmp_path / "second", path)
        return parsed(blob, where)

    monkeypatch.setattr(safe_file, "_parsed", replaced_meanwhile)
    again = mvkit.load(path)
    monkeypatch.undo()
    for name, values in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], values)
    assert not torch.equal(mvkit.load(path).encoders["a"][0].bias, first.encoders["a"][0].bias)


def test_what_is_loaded_does_not_write_into_the_file(path):
    mvkit.save(small(), path)
    before = path.read_bytes()
    again = mvkit.load(path)
    _, tensors = safe_file.read(path)
    with torch.no_grad():
        for values in (*again.parameters(), *tensors.values()):
            values.fill_(7)
    assert path.read_bytes() == before
    mvkit.load(path)


def test_every_kind_of_tensor_is_read(path):
    tensors = {
        name: torch.arange(6).to(dtype).reshape(2, 3)
        for name, dtype in stored_tensors.DTYPES.items()
    }
    tensors |= {"single": torch.tensor(3), "empty": torch.zeros(0, 4)}
    safe_file.write(path, {}, tensors)
    _, again = safe_file.read(path)
    assert again.keys() == tensors.keys()
    for name, values in tensors.items():
        assert again[name].dtype == values.dtype
        assert again[name].shape == values.shape
        assert bytes(again[name].reshape(-1).view(torch.uint8)) == bytes(
            values.reshape(-1).view(torch.uint8)
        )


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [3]},
        {"shape": [2**62, 2**62]},
        {"shape": [-2]},
        {"shape": [2.0]},
        {"shape": [True]},
        {"shape": None},
        {"shape": [0, 2**80]},
        {"dtype": "F4"},
        {"dtype": None},
        {"dtype": "F64"},
        {"data_offsets": [4, 8]},
        {"data_offsets": [8, 0]},
        {"data_offsets": [0, "8"]},
        {"data_offsets": [0.0, 8.0]},
        {"data_offsets": [0, 16]},
        {"data_offsets": [0]},
        {"data_offsets": None},
    ],
)
def test_tensors_that_do_not_fit_the_bytes(change):
    assert stored_tensors.tensors_of(bytearray(8), 0, {"x": ENTRY})["x"].tolist() == [0, 0]
    with pytest.raises(ValueError, match="'x'"):
        stored_tensors.tensors_of(bytearray(8), 0, {"x": {**ENTRY, **change}})


def test_a_key_that_is_there_twice(path):
    mvkit.save(small(), path)
    blob = path.read_bytes()
    twice = rb"{\"dtype\": \"float32\", \"dtype\": "
    assert rb"{\"dtype\": " in blob
    path.write_bytes(blob.replace(rb"{\"dtype\": ", twice, 1))
    with pytest.raises(CheckpointError):
        mvkit.load(path)
    with pytest.raises(ValueError, match="twice"):
        safe_file._without_repeats([("a", 1), ("a", 1)])


def test_a_format_is_a_whole_number(path, monkeypatch):
    for other in (True, 1.0, "1"):
        monkeypatch.setattr(safe_file, "FORMAT", other)
        mvkit.save(small(), path)
        monkeypatch.undo()
        with pytest.raises(CheckpointError, match=f"format {other!r}, this mvkit reads 1"):
            mvkit.load(path)


def test_of_another_version_both_are_named(path, monkeypatch):
    mvkit.save(small(), path)
    resealed(path, lambda header: header.update(mvkit="99.1"))
    mvkit.load(path)  # reads as well as any
    resealed(path, lambda header: header["model"].update(flux=3))
    both = rf"written by mvkit '99\.1'; this is mvkit '{mvkit.__version__}'"
    with pytest.raises(CheckpointError, match=both):
        mvkit.load(path)
    monkeypatch.setattr(safe_file, "FORMAT", 2)
    resealed_header = {"mvkit": "99.1"}
    safe_file.write(path, resealed_header, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=rf"format 2, this mvkit reads 1.*{both}"):
        mvkit.load(path)


def test_a_package_that_no_package_can_be_called(path):
    mvkit.save(small(), path)
    resealed(path, lambda header: header.update(packages={"numpy; rm -rf /": "1"}))
    with pytest.raises(CheckpointError, match=r"package 'numpy; rm -rf /'.*no package can be"):
        mvkit.load(path)
    resealed(path, lambda header: header.update(packages={"\x1b[31mred": "1"}))
    with pytest.raises(CheckpointError, match=r"'\\x1b\[31mred'"):
        mvkit.load(path)


def test_a_pipe_is_refused_and_not_waited_for(path):
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="a pipe or a device; expected a file"):
        mvkit.load(path)
    with pytest.raises(CheckpointError, match="a pipe or a device"):
        mvkit.describe("/dev/zero")
    with pytest.raises(OSError, match="a pipe or a device, which cannot be replaced"):
        mvkit.save(small(), path)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_permissions_are_kept(path, mode):
    mvkit.save(small(), path)
    path.chmod(mode)
    mvkit.save(small(), path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    safe_file.write_whole(path, b"text")
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_links_are_kept(path, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    target = store / "weights"
    path.symlink_to(target)
    mvkit.save(small(), path)  # the target is made
    assert path.is_symlink()
    assert mvkit.load(target).names == ("a", "b")
    again = tmp_path / "again"
    again.symlink_to(path)
    safe_file.write_whole(again, b"text")
    assert again.is_symlink()
    assert path.is_symlink()
    assert target.read_bytes() == b"text"
    assert [file.name for file in store.iterdir()] == ["weights"]
    path.unlink()
    path.symlink_to(tmp_path / "none" / "weights")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        mvkit.save(small(), path)
    assert path.is_symlink()


@pytest.mark.parametrize("name", ["x" * 245, "x" * 255, "ü" * 127, "m" * 199 + "ü" * 28])
def test_names_may_be_as_long_as_the_system_takes(tmp_path, name):
    mvkit.save(small(), tmp_path / name)
    mvkit.load(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "", 5.5, None])
def test_a_device_that_is_not_there(path, device):
    mvkit.save(small(), path)
    with pytest.raises(
        RequestError, match=f"device={str(device)!r}; expected one of 'auto', 'cpu'"
    ):
        mvkit.load(path, device=device)
