"""push: a model, its card and its config to the hub, in one commit."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import mvkit
from mvkit import Ensemble, Report, RequestError
from mvkit_hub.card import AnyModel, Described, card_of
from mvkit_hub.config import CONFIG, WEIGHTS, config_of
from mvkit_hub.failures import in_words
from mvkit_hub.pinned import Pinned

CARD = "README.md"


def push(
    model: AnyModel | Ensemble,
    repo: str,
    *,
    report: Report | None = None,
    data: Described | None = None,
    license: str | None = None,
    private: bool = True,
    message: str = "Push a model of mvkit",
    token: str | None = None,
    endpoint: str | None = None,
) -> Pinned:
    """Writes a model to a repository of the hub, in one commit: all of it is there, or nothing.

    Three files: `model.safetensors`, which `mvkit.save` writes; `config.json`, with its header
    and its checksum; and the card, `README.md`. Files of an earlier push are replaced; earlier
    commits keep theirs.

    Args:
        model: the model, or the ensemble.
        repo: the repository, `user/name`; made if there is none.
        report: what `mvkit.evaluate` returned, for the card.
        data: the rows that the model was trained on, of which the card says how many there are
            and what is missing, and no value; or the words that the card says.
        license: an identifier of the hub, such as `apache-2.0`.
        private: whether a repository that is made here is private; others stay as they are.
        message: of the commit.
        token: of access; None: the one that `huggingface_hub` has stored.
        endpoint: address of the hub; None: that of `huggingface_hub`.

    Returns:
        The commit, for `pull`.

    Raises:
        RequestError: the hub refuses, or cannot be reached; a report of another kind.
        CheckpointError: a model that no file can hold.

    Example:
        pinned = push(model, "ada/digits", report=report, data=train, license="apache-2.0")
        model = pull(pinned)
    """
    if "/" not in repo:
        raise RequestError(f"push: {repo!r}; expected 'user/name'")
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / WEIGHTS
        mvkit.save(model, weights)
        header = mvkit.describe(weights)
        card = card_of(model, header, repo=repo, report=report, data=data, license=license)
        config = config_of(header, weights)
        texts = {CONFIG: json.dumps(config, indent=1, sort_keys=True) + "\n", CARD: card}
        with in_words("push", repo):
            commit = _committed(weights, texts, repo, private, message, token, endpoint)
    return Pinned(repo, commit, config["file"]["sha256"])


def _committed(
    weights: Path,
    texts: dict[str, str],
    repo: str,
    private: bool,
    message: str,
    token: str | None,
    endpoint: str | None,
) -> str:
    """The id of the commit that holds the files."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=endpoint, token=token)
    api.create_repo(repo, private=private, exist_ok=True)
    operations = [CommitOperationAdd(WEIGHTS, str(weights))]
    for name, text in texts.items():
        operations.append(CommitOperationAdd(name, text.encode()))
    return api.create_commit(repo, operations, commit_message=message).oid
