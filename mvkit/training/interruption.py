"""Ctrl-C and SIGTERM during a run that keeps a folder: the step is finished and saved before it
ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | signal.Handlers
# what resumes a run, where it is not a call of fit
resumed_by: ContextVar[str | None] = ContextVar("mvkit_resumed_by", default=None)


class Interruption:
    """Notes the first Ctrl-C or SIGTERM; a second one takes effect at once, wherever it lands.

    Attributes:
        noted: whether there was one.
        terminated: whether it was SIGTERM, of which the process ends when the run is saved.
    """

    def __init__(self) -> None:
        self.noted = False
        self.terminated = False
        self._process = os.getpid()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, both are noted; not in other threads, nor where the user handles them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with (
            self._handled(signal.SIGINT, signal.default_int_handler, self._note),
            self._handled(signal.SIGTERM, signal.SIG_DFL, self._note_end),
        ):
            yield

    @contextlib.contextmanager
    def _handled(self, number: int, usual: Handler, ours: Handler) -> Iterator[None]:
        """Inside, a signal is handled by us, if its handler is the usual one."""
        if signal.getsignal(number) is not usual:
            yield
            return
        signal.signal(number, ours)
        try:
            yield
        finally:
            signal.signal(number, usual)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.noted:
            signal.default_int_handler(number, frame)
        self.noted = True

    def _note_end(self, number: int, frame: FrameType | None) -> None:
        # a process that the user forked has this handler, and nobody who looks at what it notes
        if self.terminated or os.getpid() != self._process:
            _die(number)
        self.noted = True
        self.terminated = True

    @contextlib.contextmanager
    def fatal_in_the_end(self) -> Iterator[None]:
        """On exit, the process ends as of SIGTERM, if there was one, after a line that says so."""
        try:
            yield
        except KeyboardInterrupt as error:
            self._end_process(str(error))
            raise
        self._end_process("fit: SIGTERM came late; the run was finished and saved")

    def _end_process(self, message: str) -> None:
        if self.terminated:
            print(message, file=sys.stderr, flush=True)
            _die(signal.SIGTERM)


def _die(number: int) -> None:
    """Lets a signal do what it usually does."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
