"""What goes wrong between here and the hub, in mvkit's words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mvkit import RequestError

UNREACHABLE = (
    "expected a connection, or files in the cache; pull a revision that was pulled before by the "
    "id of its commit, or try again"
)
REMEDY = "expected a token that may do this: give token=…, or try again"


@contextlib.contextmanager
def in_words(where: str, repo: str, revision: str | None = None) -> Iterator[None]:
    """Inside, errors of `huggingface_hub` become a RequestError that says what to do.

    Args:
        where: the function that was called: `push`, `pull`, `resolve`.
        repo: the repository, `user/name`.
        revision: the revision that was asked for, if one was.
    """
    from httpx2 import HTTPError
    from huggingface_hub import errors

    start = f"{where}: {repo!r}"
    try:
        yield
    except errors.HFValidationError as error:
        raise RequestError(f"{start}: {error}; expected 'user/name'") from error
    except errors.HfHubHTTPError as error:
        raise RequestError(f"{start}: {_refusal(error, revision)}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, HTTPError) as error:
        reason = f"the hub cannot be reached ({_first_line(error)}); {UNREACHABLE}"
        raise RequestError(f"{start}: {reason}") from error
    except RuntimeError as error:  # a large file that was not taken
        reason = f"{_on_a_line(error)} ({_on_a_line(error.__cause__)})"
        raise RequestError(f"{start}: {reason}; nothing was committed; {REMEDY}") from error
    except ValueError as error:  # a card that the hub does not take
        reason = f"{_on_a_line(error)}; nothing was committed; check license=…"
        raise RequestError(f"{start}: {reason}") from error


def _refusal(error: Exception, revision: str | None) -> str:
    """What the hub's answer means, and what to do."""
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            return (
                "access is granted by its owners; expected a token of a user who has it; ask on "
                "the page of the repository, then give token=…"
            )
        case errors.RepositoryNotFoundError():
            return (
                "no such repository, or a private one that this token cannot see; expected "
                "'user/name' of a model; check its spelling, or give token=…"
            )
        case errors.RevisionNotFoundError():
            return f"no revision {revision!r}; expected a branch, a tag or the id of a commit"
    return f"the hub refused: {_on_a_line(error)}; {REMEDY}"


def _on_a_line(error: BaseException | None) -> str:
    return " ".join(str(error).split())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
