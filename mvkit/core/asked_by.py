"""Which function a user called: messages name it, not the one that it calls in turn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_function: ContextVar[str | None] = ContextVar("mvkit_asked_by", default=None)


@contextlib.contextmanager
def asked_by(name: str) -> Iterator[None]:
    """Inside, `asker` names this function, or the one outside of it that said so first."""
    token = _function.set(asker(name))
    try:
        yield
    finally:
        _function.reset(token)


def asker(name: str) -> str:
    """The function that the user called: the outermost of `asked_by`, else `name`."""
    return _function.get() or name
