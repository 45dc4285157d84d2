"""Attempts of an elastic run: whatever an earlier one left in the store, all of the next meet."""

import threading
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from mvkit.errors import RankError
from mvkit.training.meeting import ask, welcome

LIMIT = timedelta(seconds=20)


def attempt(store, count, late=()):
    """The names that the processes of an attempt agree on; those in `late` come last."""
    names = {}

    def come(rank):
        names[rank] = welcome(store, count, LIMIT) if rank == 0 else ask(store, rank)

    on_time = [rank for rank in range(count) if rank not in late]
    threads = [threading.Thread(target=come, args=[rank]) for rank in (*on_time, *late)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [names[rank] for rank in range(count)]


@pytest.fixture
def store():
    store = HashStore()
    store.set_timeout(LIMIT)
    return store


@pytest.mark.parametrize("late", [(), (0,), (1, 2)])
def test_all_processes_of_an_attempt_agree_and_attempts_differ(store, late):
    attempts = [attempt(store, 4, late) for _ in range(3)]
    for names in attempts:
        assert len(set(names)) == 1
    assert len({names[0] for names in attempts}) == 3


def test_questions_of_killed_processes_lead_nobody_astray(store):
    store.set("question/1", "asked by one that is gone")
    store.set("answer/asked by one that is gone", "an old name")
    names = attempt(store, 3, late=(1,))
    assert len(set(names)) == 1
    assert names[0] != "an old name"


def test_one_process_meets_nobody(store):
    assert len(welcome(store, 1, LIMIT)) == 32


def test_who_did_not_come_is_named(store):
    store.set("question/2", "asked by one that is gone")
    with pytest.raises(RankError, match="waited 0.1 seconds for process 1, 2 of 3; expected all"):
        welcome(store, 3, timedelta(seconds=0.1))
