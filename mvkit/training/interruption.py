"""Ctrl-C during a run that keeps a folder: the step is finished and saved before it ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interruption:
    """Notes the first Ctrl-C; a second one raises KeyboardInterrupt at once, wherever it lands.

    Attributes:
        noted: whether there was one.
    """

    def __init__(self) -> None:
        self.noted = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, Ctrl-C is noted; not in other threads, nor where the user handles it already."""
        in_main = threading.current_thread() is threading.main_thread()
        if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.noted:
            signal.default_int_handler(number, frame)
        self.noted = True
