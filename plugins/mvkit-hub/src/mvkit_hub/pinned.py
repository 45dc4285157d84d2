"""References to one commit of a repository."""

from __future__ import annotations

import re

import attrs

from mvkit import RequestError
from mvkit_hub.failures import in_words

COMMIT = re.compile(r"[0-9a-f]{40}")  # a full id, which never means anything else later


@attrs.frozen
class Pinned:
    """One commit of a repository: whoever pulls it gets the same bytes, at any time.

    Args:
        repo: the repository, `user/name`.
        revision: the full id of the commit, 40 digits.
        sha256: of the file of the model, where it is known; `pull` then expects it.

    Example:
        >>> from mvkit_hub import Pinned
        >>> print(Pinned("ada/digits", "0123456789" * 4))
        ada/digits@0123456789012345678901234567890123456789
    """

    repo: str
    revision: str
    sha256: str | None = None

    def __attrs_post_init__(self) -> None:
        if COMMIT.fullmatch(self.revision) is None:
            raise RequestError(
                f"Pinned: revision {self.revision!r}; expected the full id of a commit, 40 digits "
                "of 0-9 and a-f; resolve(repo, revision) returns it"
            )

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"


def resolve(
    repo: str,
    revision: str | None = None,
    *,
    token: str | None = None,
    endpoint: str | None = None,
) -> Pinned:
    """The commit that a branch or a tag names now.

    Args:
        repo: the repository, `user/name`.
        revision: a branch, a tag or the id of a commit; None: the default branch. A full id is
            returned as it is, without asking the hub.
        token: of access; None: the one that `huggingface_hub` has stored, if any.
        endpoint: address of the hub; None: that of `huggingface_hub`.

    Raises:
        RequestError: no such repository or revision; the hub cannot be reached.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        return Pinned(repo, revision)
    from huggingface_hub import HfApi

    with in_words("resolve", repo, revision):
        info = HfApi(endpoint=endpoint, token=token).model_info(repo, revision=revision)
    if info.sha is None:
        raise RequestError(
            f"resolve: {repo!r}: the hub names no commit; expected one; push a model first"
        )
    return Pinned(repo, info.sha)
