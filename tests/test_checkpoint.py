"""Checkpoints: one file, all of it covered by its checksum, nothing half-written."""

import json
import os
import struct

import pytest
import torch
from helpers import TABLE, model, refused, rows
from torch import nn

import mvkit
from mvkit import CheckpointError, Modality, Model
from mvkit.core import safe_file

SHAPES = {"a": (3,), "b": (2, 2)}


@pytest.fixture
def saved(tmp_path):
    vae = Model(SHAPES, latent_dim=2, aggregator="moe", prior="mog", objective="dreg", seed=0)
    mvkit.save(vae, tmp_path / "model.safetensors")
    return vae, tmp_path / "model.safetensors"


@pytest.mark.parametrize(("aggregator", "prior", "objective", "family"), TABLE)
def test_every_combination_comes_back(aggregator, prior, objective, family, tmp_path):
    vae = refused(aggregator, prior, objective, family, private=1)
    if vae is None:
        return
    mvkit.save(vae, tmp_path / "m.safetensors")
    with torch.no_grad():
        again = load_quietly(tmp_path / "m.safetensors")
    assert again.spec == vae.spec
    assert not again.training
    for (name, own), other in zip(
        vae.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert own.dtype == other.dtype, name
        assert torch.equal(own, other), name
    batch = rows()
    assert torch.equal(vae.encode(batch), again.encode(batch))
    assert repr(vae) == repr(again)


def load_quietly(path, **options):
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*unimodal encoders")
        return mvkit.load(path, **options)


def test_the_header_is_readable_and_complete(saved):
    header = mvkit.describe(saved[1])
    assert header["format"] == 1
    assert header["model"]["prior"] == {
        "name": "mog",
        "components": 10,
        "learn_scale": False,
        "init": "uniform",
    }
    assert header["model"]["modalities"]["a"]["encoder"] == {
        "name": "mlp",
        "hidden": [512, 512],
        "activation": "relu",
    }
    assert header["model"]["private_from"] == "evidence"  # the aggregator's default, written out
    assert header["packages"] == {}


def test_the_order_of_the_modalities_comes_back(tmp_path):
    vae = model(names=("c", "a", "b"))
    mvkit.save(vae, tmp_path / "m")
    assert mvkit.load(tmp_path / "m").names == ("c", "a", "b")


def test_saving_twice_gives_the_same_bytes(saved, tmp_path):
    mvkit.save(saved[0], tmp_path / "again.safetensors")
    assert saved[1].read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_ordinary_permissions(saved):
    umask = os.umask(0)
    os.umask(umask)
    assert saved[1].stat().st_mode & 0o777 == 0o666 & ~umask


def test_truncated(saved):
    blob = saved[1].read_bytes()
    for length in (0, 5, 8, 200, len(blob) - 1):
        saved[1].write_bytes(blob[:length])
        with pytest.raises(CheckpointError, match="truncated"):
            mvkit.load(saved[1])
    saved[1].write_bytes(blob + b"x")
    with pytest.raises(CheckpointError):
        mvkit.load(saved[1])


def test_any_flipped_bit(tmp_path):
    nets = {"encoder": "linear", "decoder": "linear"}
    vae = Model({"a": Modality((1,), **nets)}, latent_dim=1, seed=0)
    path = tmp_path / "small.safetensors"
    mvkit.save(vae, path)
    blob = bytearray(path.read_bytes())
    for position in range(len(blob)):
        for bit in range(8):
            blob[position] ^= 1 << bit
            with pytest.raises(CheckpointError):
                safe_file._checked_header(bytes(blob), "file")
            blob[position] ^= 1 << bit
    path.write_bytes(blob)
    mvkit.load(path)


def test_altered(saved):
    blob = bytearray(saved[1].read_bytes())
    blob[-3] ^= 4
    saved[1].write_bytes(blob)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: altered since it was saved.*another copy"
    ):
        mvkit.load(saved[1])


def test_of_an_unknown_format(saved, monkeypatch):
    monkeypatch.setattr(safe_file, "FORMAT", 2)
    mvkit.save(saved[0], saved[1])
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 2, this mvkit reads 1; upgrade mvkit"):
        mvkit.load(saved[1])


def test_no_checkpoint_at_all(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint of mvkit"):
        mvkit.load(tmp_path / "other.safetensors")
    for junk in (
        b"hello, world, this is text",
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 2**63) + b"{}",
    ):
        (tmp_path / "junk").write_bytes(junk)
        with pytest.raises(CheckpointError):
            mvkit.load(tmp_path / "junk")


def test_needing_an_absent_plugin(saved, monkeypatch):
    monkeypatch.setattr(
        "mvkit.models.checkpoint._packages", lambda spec: {"mvkit-flowprior": "0.1.0"}
    )
    mvkit.save(saved[0], saved[1])
    with pytest.raises(
        CheckpointError,
        match=r"needs mvkit-flowprior 0\.1\.0.*pip install mvkit-flowprior==0\.1\.0",
    ):
        mvkit.load(saved[1])


def test_external_modules(tmp_path):
    torch.manual_seed(1)
    encoder, decoder = nn.Linear(3, 8), nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    vae = Model({"a": Modality((3,), encoder=encoder, decoder=decoder), "b": (2,)}, latent_dim=4)
    path = tmp_path / "external.safetensors"
    mvkit.save(vae, path)
    assert mvkit.describe(path)["model"]["modalities"]["a"]["encoder"] == {"external": "Linear"}
    with pytest.raises(
        CheckpointError,
        match=r"modalities\.a\.encoder \(Linear\).*encoders=\{'a': …\}, decoders=\{'a': …\}",
    ):
        mvkit.load(path)
    with pytest.raises(CheckpointError, match="cannot be built again"):
        mvkit.load(
            path, encoders={"a": nn.Linear(2, 8)}, decoders={"a": nn.Sequential(nn.Linear(4, 3))}
        )
    fresh = {"a": nn.Sequential(nn.Linear(4, 3), nn.Tanh())}
    again = mvkit.load(path, encoders={"a": nn.Linear(3, 8)}, decoders=fresh)
    x = {"a": torch.randn(2, 3)}
    assert torch.equal(vae.eval().encode(x), again.encode(x))
    assert "external Linear" in repr(again)


def test_external_modules_of_aggregators(tmp_path):
    head = nn.Linear(8, 8)
    vae = Model(
        SHAPES, latent_dim=4, aggregator={"name": "mean_message", "message_dim": 8, "head": head}
    )
    mvkit.save(vae, tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"modules=\{'aggregator\.head': …\}"):
        mvkit.load(tmp_path / "m")
    mvkit.load(tmp_path / "m", modules={"aggregator.head": nn.Linear(8, 8)})
    trunk = nn.Linear(3, 6)
    joint = Model(
        {"a": (3,)}, aggregator={"name": "joint", "trunks": {"a": trunk}}, objective="jmvae"
    )
    mvkit.save(joint, tmp_path / "j")
    mvkit.load(tmp_path / "j", modules={"aggregator.trunks.a": nn.Linear(3, 6)})


def test_a_module_that_two_modalities_share(tmp_path):
    shared = nn.Linear(3, 8)
    vae = Model({k: Modality((3,), encoder=shared) for k in ("a", "b")}, latent_dim=4)
    mvkit.save(vae, tmp_path / "m")
    again = nn.Linear(3, 8)
    mvkit.load(tmp_path / "m", encoders={"a": again, "b": again})
    assert torch.equal(again.weight, shared.weight)


def test_a_failed_write_leaves_nothing(saved, monkeypatch):
    before = saved[1].read_bytes()

    def fail(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        mvkit.save(saved[0], saved[1])
    assert saved[1].read_bytes() == before
    assert [p.name for p in saved[1].parent.iterdir()] == ["model.safetensors"]


def test_no_pickle(saved, monkeypatch):
    import pickle

    def refuse(*arguments, **options):
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "dump", "dumps", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    mvkit.save(saved[0], saved[1])
    mvkit.load(saved[1])


def test_modules_with_buffers_and_dtypes(tmp_path):
    vae = Model({"a": Modality((3,), {"name": "normal", "scale": "optimal"})}, seed=0).double()
    vae.loss(mvkit.Batch({"a": torch.randn(4, 3)}))
    mvkit.save(vae, tmp_path / "m")
    again = mvkit.load(tmp_path / "m")
    assert torch.equal(
        vae.decoders["a"].likelihood.scale.running, again.decoders["a"].likelihood.scale.running
    )
    assert json.loads(json.dumps(mvkit.describe(tmp_path / "m")))["dtype"] == "float64"
    assert model() is not None
