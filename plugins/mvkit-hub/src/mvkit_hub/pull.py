"""pull: a model from the hub, of one commit, checked before it is read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

import mvkit
from mvkit import CheckpointError, Ensemble, Model, RequestError, Stack
from mvkit_hub.config import CONFIG, WEIGHTS, read_config, sha256_of
from mvkit_hub.failures import in_words
from mvkit_hub.pinned import COMMIT, Pinned, resolve

Modules = Mapping[str, nn.Module] | None


def pull(
    repo: str | Pinned,
    revision: str | None = None,
    *,
    encoders: Modules = None,
    decoders: Modules = None,
    modules: Modules = None,
    device: str | torch.device = "cpu",
    token: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    endpoint: str | None = None,
) -> Model | Stack | Ensemble:
    """Reads a model of the hub, in evaluation mode.

    Two files of one commit are downloaded, config.json and the model's own, and the second is
    compared with the checksum in the first. Nothing of the repository is executed: the file holds
    a JSON header and numbers. Parts come from packages that are installed here; what is missing
    is named.

    Args:
        repo: the repository, `user/name`; or what `push` and `resolve` return.
        revision: a branch, a tag or the id of a commit; None: the default branch. Unless it is a
            full id, which commit it names now is said in a warning. By a full id, files that are
            in the cache are read without the hub.
        encoders: the user's own modules, as `mvkit.load` takes them.
        decoders: likewise.
        modules: likewise.
        device: where to put the model; `auto`: an accelerator if there is one.
        token: of access; None: the one that `huggingface_hub` has stored, if any.
        cache: a folder for what was downloaded; None: that of `huggingface_hub`.
        endpoint: address of the hub; None: that of `huggingface_hub`.

    Raises:
        RequestError: no such repository or revision; the hub cannot be reached.
        CheckpointError: no model of mvkit; another checksum; or as `mvkit.load`.
    """
    pinned = _pinned(repo, revision, token, endpoint)
    folder = None if cache is None else Path(cache)
    text = _file(pinned, CONFIG, token, folder, endpoint).read_text(encoding="utf-8")
    config = read_config(text, f"pull: {pinned}")
    path = _file(pinned, WEIGHTS, token, folder, endpoint)
    for expected in (config["file"]["sha256"], pinned.sha256):
        _check_sum(path, expected, f"pull: {pinned}")
    return mvkit.load(path, encoders=encoders, decoders=decoders, modules=modules, device=device)


def _pinned(
    repo: str | Pinned, revision: str | None, token: str | None, endpoint: str | None
) -> Pinned:
    """The commit that is asked for; a warning says which, if only a name was given."""
    if isinstance(repo, Pinned):
        if revision not in (None, repo.revision):
            raise RequestError(
                f"pull: {repo} and revision={revision!r}; expected one of them; leave revision out"
            )
        return repo
    pinned = resolve(repo, revision, token=token, endpoint=endpoint)
    if revision is None or COMMIT.fullmatch(revision) is None:
        branch = "the default branch" if revision is None else repr(revision)
        warnings.warn(
            f"pull: {repo!r}: {branch} is now at commit {pinned.revision}; give "
            f"revision={pinned.revision!r} to get the same model at any time",
            stacklevel=3,
        )
    return pinned


def _file(
    pinned: Pinned, name: str, token: str | None, cache: Path | None, endpoint: str | None
) -> Path:
    """Where a file of the commit lies, downloaded if it was not yet.

    Raises:
        CheckpointError: the commit has no such file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        with in_words("pull", pinned.repo, pinned.revision):
            path = hf_hub_download(
                pinned.repo,
                name,
                revision=pinned.revision,
                cache_dir=cache,
                token=token,
                endpoint=endpoint,
            )
    except RequestError as error:
        if isinstance(error.__cause__, RemoteEntryNotFoundError):
            raise CheckpointError(
                f"pull: {pinned}: it has no {name}: no model of mvkit; expected what "
                "mvkit_hub.push writes; check the name of the repository"
            ) from error
        raise
    return Path(path)


def _check_sum(path: Path, expected: str | None, where: str) -> None:
    """Raises CheckpointError unless the file has the checksum, where one is expected."""
    if expected is None:
        return
    actual = sha256_of(path)
    if actual != expected:
        raise CheckpointError(
            f"{where}: {WEIGHTS} has the SHA-256 {actual}; expected {expected}; remove "
            f"{path.resolve()} and pull again; if that does not help, the repository is damaged"
        )
