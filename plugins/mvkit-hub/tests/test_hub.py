"""push and pull against a hub of our own in a thread: one commit, pinned, checked; no network."""

import hashlib
import io
import json
import os
import pickle
import re
import socket

import pytest
import torch

os.environ["HF_HUB_DISABLE_XET"] = "1"  # large files by LFS, which the hub of the tests speaks
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import mvkit_hub
from hub_server import TOKEN, serving
from mvkit_hub import Pinned, pull, push, resolve
from mvkit_hub.card import card_of

import mvkit
from mvkit import CheckpointError, RequestError
from mvkit.core import safe_file
from mvkit.evaluation.metric import Score

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")
REPO = "ada/digits"
# of huggingface_hub, which sends large files by an argument of httpx2 that has another name now
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub():
    with serving() as hub:
        yield hub


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """Neither a token nor a cache of whoever runs the tests."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)


def small(seed=0, **options):
    networks = dict.fromkeys(("encoder", "decoder"), {"name": "mlp", "hidden": [5]})
    modalities = {
        "photo": mvkit.Modality((3, 2), **networks),
        "word": mvkit.Modality((4,), "categorical", **networks),
    }
    return mvkit.Model(modalities, latent_dim=2, seed=seed, **options).eval()


def rows(n=5):
    photo = torch.arange(n * 6.0).reshape(n, 3, 2) + 7001.25
    photo[1] = torch.nan
    photo[2, 0, 0] = torch.nan
    return {"photo": photo, "word": torch.eye(4)[torch.arange(n) % 4]}


def pushed(hub, model=None, **options):
    return push(model or small(), REPO, token=TOKEN, endpoint=hub.address, **options)


def pulled(hub, repo=REPO, revision=None, **options):
    return pull(repo, revision, token=TOKEN, endpoint=hub.address, **options)


def same_weights(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def text(hub, name):
    return hub.files(REPO)[name].decode()


# what is pushed


def test_a_push_is_one_commit_of_three_files(hub):
    pinned = pushed(hub, message="first model")
    assert [sha for sha, _ in hub.repos[REPO]["commits"]] == [pinned.revision]
    assert set(hub.files(REPO)) == {"README.md", "config.json", "model.safetensors"}
    assert hub.messages == ["first model"]
    assert str(pinned) == f"{REPO}@{pinned.revision}"


def test_the_file_is_what_save_writes(hub, tmp_path):
    model = small()
    pushed(hub, model)
    mvkit.save(model, tmp_path / "model")
    assert hub.files(REPO)["model.safetensors"] == (tmp_path / "model").read_bytes()


def test_the_config_has_spec_versions_modalities_and_checksum(hub):
    model = small()
    pinned = pushed(hub, model)
    config = json.loads(text(hub, "config.json"))
    stored = hub.files(REPO)["model.safetensors"]
    assert config["model"] == json.loads(json.dumps(model.header()))
    assert config["mvkit"] == mvkit.__version__
    assert config["modalities"]["word"] == {"shape": [4], "likelihood": {"name": "categorical"}}
    digest = hashlib.sha256(stored).hexdigest()
    assert config["file"] == {"name": "model.safetensors", "bytes": len(stored), "sha256": digest}
    assert pinned.sha256 == digest


@pytest.mark.parametrize("private", [True, False])
def test_a_new_repository_is_private_unless_asked_otherwise(hub, private):
    pushed(hub, **({} if private else {"private": False}))
    assert hub.repos[REPO]["private"] is private


def test_a_second_push_is_a_second_commit_and_leaves_the_first(hub):
    first, second = small(0), small(1)
    one, two = pushed(hub, first), pushed(hub, second)
    assert one.revision != two.revision
    assert same_weights(pulled(hub, one), first)
    assert same_weights(pulled(hub, two), second)


def test_a_commit_that_is_refused_leaves_nothing(hub):
    hub.refuses["/commit/"] = 403
    with pytest.raises(
        RequestError, match=r"push: 'ada/digits': the hub refused: .*403.*not today"
    ):
        pushed(hub)
    assert hub.files(REPO) == {}


def test_a_large_file_that_fails_leaves_no_commit(hub):
    hub.refuses["PUT /lfs/"] = 403
    with pytest.raises(
        RequestError,
        match=r"push: 'ada/digits': .*'model\.safetensors'.*403.*nothing was committed",
    ):
        pushed(hub)
    assert hub.files(REPO) == {}


def test_a_license_that_the_hub_does_not_know_leaves_nothing(hub):
    with pytest.raises(
        RequestError, match='"license" must be one of.*nothing was committed; check'
    ):
        pushed(hub, license="mine")
    assert hub.files(REPO) == {}


def test_a_model_that_no_file_can_hold_is_refused_before_the_hub_is_asked(hub):
    model = small()
    model.aggregator = torch.nn.Linear(1, 1)
    with pytest.raises(CheckpointError):
        pushed(hub, model)
    assert hub.asked == []


def test_a_push_without_a_token_is_refused_in_words(hub):
    with pytest.raises(RequestError, match="push: 'ada/digits': the hub refused: .*401"):
        push(small(), REPO, endpoint=hub.address)


@pytest.mark.parametrize("repo", ["digits", "ada/../digits", "ada/digits/more"])
def test_a_name_that_cannot_be_is_refused(hub, repo):
    with pytest.raises(RequestError, match=r"push: .*expected 'user/name'"):
        push(small(), repo, token=TOKEN, endpoint=hub.address)
    assert hub.repos == {}


# the card


def test_the_card_says_what_the_model_is(hub):
    model = small(aggregator="moe")
    pushed(hub, model, license="apache-2.0")
    front, body = text(hub, "README.md").removeprefix("---\n").split("\n---\n", 1)
    assert front.splitlines() == [
        "library_name: mvkit",
        "license: apache-2.0",
        "tags:",
        "- mvkit",
        "- multimodal",
        "- model",
    ]
    assert "# digits" in body
    assert 'mvkit_hub.pull("ada/digits")' in body
    assert "| photo | 3 × 2 | normal |" in body
    assert repr(model) in body
    assert "## Data" not in body
    assert "## Report" not in body


def test_a_card_without_a_license_names_none(hub):
    pushed(hub)
    assert "license" not in text(hub, "README.md")


@pytest.mark.parametrize("kind", ["mapping", "dataset", "shards", "batch"])
def test_the_card_counts_rows_and_gaps_and_shows_no_value(hub, kind, tmp_path):
    data = rows()
    if kind == "batch":
        data = mvkit.Batch(data)
    elif kind != "mapping":
        modalities = {"word": "categorical"}
        data = mvkit.MultimodalDataset.from_arrays(data, modalities=modalities)
    if kind == "shards":
        data.save(tmp_path / "rows", rows_per_shard=2)
        data = mvkit.MultimodalDataset.open(tmp_path / "rows")
    pushed(hub, data=data)
    card = text(hub, "README.md")
    assert "5 rows, 4 of them with all modalities." in card
    assert "| photo | 4 | 4.2% |" in card  # one of the 24 values of four rows
    assert "| word | 5 | 0.0% |" in card
    assert re.search(r"70\d\d", card) is None


def test_the_card_takes_words_about_the_data(hub):
    pushed(hub, data="Digits of the post office.")
    assert "## Data\n\nDigits of the post office." in text(hub, "README.md")


def test_the_card_shows_the_report(hub):
    scores = (
        Score("probe", "accuracy | all", 0.91, 0.01, 900),
        Score("probe", "hidden", 0.123, 0.1, 9, detail=True),
    )
    report = mvkit.Report(scores, ("clusters: no labels",), {"rows": 900, "seed": 3})
    pushed(hub, report=report)
    card = text(hub, "README.md")
    assert "| probe | accuracy \\| all | 0.91 | 0.01 | 900 |" in card
    assert "0.123" not in card
    assert "rows 900, seed 3" in card
    assert "* clusters: no labels" in card


def test_a_report_of_another_kind_is_refused(hub):
    with pytest.raises(RequestError, match=r"push: report: got dict; expected what mvkit\.eval"):
        pushed(hub, report={"accuracy": 1.0})
    assert hub.asked == []


def test_the_card_names_modules_of_the_users():
    modalities = {"a": mvkit.Modality((3,), encoder=torch.nn.Linear(3, 4))}
    model = mvkit.Model(modalities, latent_dim=2, seed=0)
    header = {"model": model.header(), "mvkit": "0.1.0", "packages": {"mvkit-flows": "0.2"}}
    card = card_of(model, header, repo=REPO)
    assert "* `modalities.a.encoder`: `Linear`" in card
    assert "pip install mvkit-hub mvkit==0.1.0 mvkit-flows==0.2" in card


# what is pulled


def kinds():
    yield "model", small(prior="mog")
    yield "private", small(aggregator="mopoe")
    bottom = mvkit.Model(
        {"a": mvkit.Modality((3,), private_dim=2), "b": mvkit.Modality((2,), private_dim=2)},
        latent_dim=0,
        seed=0,
    )
    top = mvkit.Model({"a": (2,), "b": (2,)}, latent_dim=2, seed=0)
    yield "stack", mvkit.Stack([bottom, top])
    yield "ensemble", mvkit.Ensemble([small(0), small(1)], seeds=[0, 1])
    yield "double", small().double()


@pytest.mark.parametrize("kind", ["model", "private", "stack", "ensemble", "double"])
def test_a_model_comes_back_with_its_bits(hub, kind):
    model = dict(kinds())[kind]
    back = pulled(hub, pushed(hub, model))
    assert type(back) is type(model)
    assert same_weights(back, model)
    assert back.header() == model.header()
    assert not back.training


def test_only_the_config_and_the_weights_are_downloaded(hub):
    pinned = pushed(hub)
    hub.asked.clear()
    pulled(hub, pinned)
    names = {path.rsplit("/", 1)[1] for _, path in hub.asked if "/resolve/" in path}
    assert names == {"config.json", "model.safetensors"}
    assert all(pinned.revision in path for _, path in hub.asked if "/resolve/" in path)


def test_a_name_is_pinned_and_the_commit_said(hub):
    pinned = pushed(hub)
    with pytest.warns(UserWarning, match=f"default branch is now at commit {pinned.revision}"):
        pulled(hub)
    hub.repos[REPO]["tags"]["v1"] = pinned.revision
    later = pushed(hub, small(1))
    with pytest.warns(
        UserWarning, match=f"'v1' is now at commit {pinned.revision}; give revision"
    ):
        assert same_weights(pulled(hub, revision="v1"), small(0))
    assert resolve(REPO, token=TOKEN, endpoint=hub.address) == Pinned(REPO, later.revision)


def test_a_full_commit_id_is_pinned_without_a_warning(hub):
    pinned = pushed(hub)
    pushed(hub, small(1))
    assert same_weights(pulled(hub, revision=pinned.revision), small(0))


def test_a_branch_that_moves_meanwhile_gives_files_of_one_commit(hub):
    pushed(hub)
    other = hub.files(REPO) | {"model.safetensors": b"of another commit"}
    hub.then["config.json"] = lambda: hub.commit(REPO, other)
    with pytest.warns(UserWarning, match="is now at commit"):
        assert same_weights(pulled(hub), small(0))
    assert len(hub.repos[REPO]["commits"]) == 2


def test_a_pinned_model_is_read_from_the_cache_without_the_hub(tmp_path):
    with serving() as hub:
        pinned = pushed(hub)
        pulled(hub, pinned, cache=tmp_path / "mine")
        address = hub.address
    model = pull(pinned, cache=tmp_path / "mine", endpoint=address)
    assert same_weights(model, small())
    model = pull(REPO, pinned.revision, cache=tmp_path / "mine", endpoint=address)
    assert same_weights(model, small())


def test_users_modules_are_given_as_to_load(hub):
    encoder = torch.nn.Linear(3, 4)
    model = mvkit.Model({"a": mvkit.Modality((3,), encoder=encoder)}, latent_dim=2, seed=0)
    pinned = pushed(hub, model)
    assert same_weights(pulled(hub, pinned, encoders={"a": torch.nn.Linear(3, 4)}), model)
    with pytest.raises(CheckpointError, match="modules of the user's, whose code no file holds"):
        pulled(hub, pinned)


# what is refused


def closed_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # between tries
    for call in (
        lambda: pull(REPO, endpoint=closed_address()),
        lambda: pull(REPO, "0" * 40, endpoint=closed_address()),
        lambda: push(small(), REPO, token=TOKEN, endpoint=closed_address()),
    ):
        with pytest.raises(RequestError, match="'ada/digits': the hub cannot be reached"):
            call()


def test_offline_mode_is_said(hub, monkeypatch):
    pinned = pushed(hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    try:
        with pytest.raises(RequestError, match="the hub cannot be reached"):
            pulled(hub)
        with pytest.raises(RequestError, match="the hub cannot be reached"):
            pulled(hub, pinned)
    finally:
        monkeypatch.undo()
        huggingface_hub.close_session()


def test_no_such_repository(hub):
    for revision in (None, "0" * 40):
        with pytest.raises(RequestError, match="'ada/digits': no such repository, or a private"):
            pulled(hub, revision=revision)


def test_a_private_repository_without_a_token(hub):
    pinned = pushed(hub)
    with pytest.raises(RequestError, match=r"no such repository, or a private.*token=…"):
        pull(pinned, endpoint=hub.address)


@pytest.mark.parametrize("revision", ["v9", "0" * 40])
def test_no_such_revision(hub, revision):
    pushed(hub)
    with pytest.raises(RequestError, match=f"no revision '{revision}'; expected a branch, a tag"):
        pulled(hub, revision=revision)


def test_two_revisions_are_refused(hub):
    pinned = pushed(hub)
    with pytest.raises(RequestError, match="expected one of them; leave revision out"):
        pulled(hub, pinned, "main")


def test_a_short_id_is_no_pin():
    with pytest.raises(RequestError, match="revision 'abc'; expected the full id of a commit"):
        Pinned(REPO, "abc")


def altered(content):
    middle = len(content) - 5
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_a_file_with_another_checksum_is_refused_before_it_is_read(hub, monkeypatch):
    pushed(hub)
    stored = hub.files(REPO)["model.safetensors"]
    sha = hub.commit(REPO, {"model.safetensors": altered(stored)})
    monkeypatch.setattr(mvkit, "load", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors has the SHA-256 .*; expected"):
        pulled(hub, revision=sha)


def test_a_cached_file_that_was_altered_is_refused_and_named(hub, tmp_path):
    pinned = pushed(hub)
    pulled(hub, pinned, cache=tmp_path)
    (path,) = tmp_path.glob("models--ada--digits/snapshots/*/model.safetensors")
    path.resolve().write_bytes(altered(path.read_bytes()))
    with pytest.raises(CheckpointError, match=f"remove {re.escape(str(path.resolve()))} and pull"):
        pulled(hub, pinned, cache=tmp_path)


def test_what_push_returned_expects_its_own_file(hub):
    pinned = pushed(hub)
    other = Pinned(REPO, pinned.revision, sha256="0" * 64)
    with pytest.raises(CheckpointError, match=f"expected {'0' * 64}"):
        pulled(hub, other)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": b"x"}, "it has no config.json: no model of mvkit"),
        ({"config.json": b'{"model_type": "bert"}'}, "does not name the library 'mvkit'"),
        ({"config.json": b"[1]"}, "does not name the library 'mvkit'"),
        ({"config.json": b"{"}, "config.json is no JSON"),
        ({"config.json": b'{"library_name": "mvkit", "format": 2}'}, "has format 2; expected 1"),
        ({"config.json": b'{"library_name": "mvkit", "format": 1}'}, "no checksum of the file"),
        (
            {"config.json": b'{"library_name": "mvkit", "format": 1, "file": {"sha256": "0"}}'},
            "it has no model.safetensors: no model of mvkit",
        ),
    ],
)
def test_what_is_no_model_of_mvkit_is_refused(hub, files, message):
    sha = hub.commit(REPO, files)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        pulled(hub, revision=sha)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_nothing_is_executed(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps(Evil())
    pushed(hub)
    config = json.loads(text(hub, "config.json"))
    config["file"]["sha256"] = hashlib.sha256(content).hexdigest()
    config["auto_map"] = {"AutoModel": "evil.Evil"}
    files = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": content,
        "evil.py": b"open('evil', 'w')",
    }
    sha = hub.commit(REPO, files)
    with pytest.raises(CheckpointError):
        pulled(hub, revision=sha)
    assert not (tmp_path / "evil").exists()
    assert not any("evil" in path for _, path in hub.asked)


def test_a_package_that_is_not_here_is_named(hub):
    pushed(hub)
    stored = hub.files(REPO)["model.safetensors"]
    header, weights = safe_file.read(stored)
    header["packages"] = {"mvkit-far": "1.2"}
    file = io.BytesIO()
    safe_file.write(file, header, weights)
    config = json.loads(text(hub, "config.json"))
    config["file"]["sha256"] = hashlib.sha256(file.getvalue()).hexdigest()
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": file.getvalue()}
    sha = hub.commit(REPO, files)
    with pytest.raises(
        CheckpointError, match=r"needs mvkit-far 1\.2.*pip install mvkit-far==1\.2"
    ):
        pulled(hub, revision=sha)


def test_the_public_names():
    assert mvkit_hub.__all__ == sorted(mvkit_hub.__all__)
