"""Events: sent to packages and callables; a package that raises cannot end a run."""

import pytest

from mvkit.errors import RequestError
from mvkit.registry import component, plugins
from mvkit.training.events import EpochFinished, Event, Listeners, RunFinished


@pytest.fixture(autouse=True)
def fresh():
    plugins.registry.cache_clear()
    yield
    plugins.registry.cache_clear()


class Loud:
    def __init__(self):
        self.heard = []

    @component.hookimpl
    def mvkit_event(self, event):
        self.heard.append(event)


class Broken(Loud):
    @component.hookimpl
    def mvkit_event(self, event):
        super().mvkit_event(event)
        raise OSError("no disk")


def test_packages_and_callables_hear_events():
    loud, own = Loud(), []
    plugins.registry().manager.register(loud, "loud")
    events = [Event(), RunFinished(None)]
    listeners = Listeners([own.append])
    for event in events:
        listeners.tell(event)
    assert loud.heard == own == events


def test_a_package_that_raises_is_reported_once_and_left_out():
    broken, loud = Broken(), Loud()
    plugins.registry().manager.register(broken, "broken")
    plugins.registry().manager.register(loud, "loud")
    listeners = Listeners()
    with pytest.warns(UserWarning, match="broken: its mvkit_event raised OSError: no disk"):
        listeners.tell(Event())
    listeners.tell(Event())
    assert (len(broken.heard), len(loud.heard)) == (1, 2)


def test_what_a_callable_raises_ends_the_run():
    def stop(event):
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        Listeners([stop]).tell(Event())


def test_a_metric_that_an_epoch_lacks_is_said_with_the_nearest():
    event = EpochFinished({"epoch": 1, "valid/bound": -2.5}, step=10)
    assert event.value("valid/bound", "search") == -2.5
    with pytest.raises(
        RequestError, match="^search: metric='valid/bond' is not in the history; did you mean"
    ):
        event.value("valid/bond", "search")
