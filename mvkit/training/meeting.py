"""How the processes of one attempt of an elastic run meet, in a store that outlives them.

torchrun keeps one store while it starts killed workers again, and gloo and nccl leave addresses in
it by which the next attempt would wait for processes that are gone. Neither torchrun's number of
restarts tells attempts apart, since each node counts its own. So the first process gives every
attempt a name, and answers nobody but those who ask it now.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from mvkit.errors import RankError

PAUSE = 0.02  # seconds between two looks at the store


def outlives_workers() -> bool:
    """Whether the store belongs to torchrun, and so to all attempts."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def store_of_attempt(limit: timedelta) -> tuple[Store, int, int]:
    """A store that this attempt alone has, the number of this process, and how many there are.

    Args:
        limit: how long a process waits for the others.

    Raises:
        RankError: some of them did not come in time.
    """
    store, rank, count = next(rendezvous("env://", timeout=limit))
    store.set_timeout(limit)
    meeting = PrefixStore("mvkit/meeting", store)
    name = welcome(meeting, count, limit) if rank == 0 else ask(meeting, rank)
    return PrefixStore(f"mvkit/{name}", store), rank, count


def welcome(store: Store, count: int, limit: timedelta) -> str:
    """Names an attempt, as its first process, and tells every other one; returns the name.

    A question that an earlier attempt left is answered too, but only who asks now says thanks.

    Args:
        store: of all attempts.
        count: how many processes there are.
        limit: how long to wait for them.

    Raises:
        RankError: some of them did not come in time.
    """
    name = uuid.uuid4().hex
    answered: dict[int, bytes] = {}
    absent = set(range(1, count))
    end = time.monotonic() + limit.total_seconds()
    while absent:
        for rank in sorted(absent):
            if store.check([f"thanks/{name}/{rank}"]):
                absent.remove(rank)
            elif store.check([f"question/{rank}"]):
                question = store.get(f"question/{rank}")
                if answered.get(rank) != question:
                    answered[rank] = question
                    store.set(f"answer/{question.decode()}", name)
        if absent and time.monotonic() > end:
            raise RankError(
                f"fit: process 0 waited {limit.total_seconds():g} seconds for process "
                f"{', '.join(map(str, sorted(absent)))} of {count}; expected all of them to call "
                "fit; see their logs, and set MVKIT_RANKS_TIMEOUT to more seconds if they are "
                "merely slow to start"
            )
        time.sleep(PAUSE)
    return name


def ask(store: Store, rank: int) -> str:
    """Asks the first process for the name of the attempt, which it returns.

    Args:
        store: of all attempts.
        rank: the number of this process.
    """
    question = uuid.uuid4().hex
    store.set(f"question/{rank}", question)
    name = store.get(f"answer/{question}").decode()
    store.set(f"thanks/{name}/{rank}", "")
    return name
