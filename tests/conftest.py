import os
import sys

import pytest
import torch

os.environ.setdefault("MVKIT_PLUGINS", "")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run tests that take minutes")


def pytest_configure():
    torch.set_num_threads(1)  # two workers on two cores, and the same sums every time


def pytest_collection_modifyitems(config, items):
    if not torch.cuda.is_available() and "MVKIT_TEST_DEVICE" not in os.environ:
        no_device = pytest.mark.skip(reason="no CUDA device here; run on one by make device-check")
        for item in items:
            if "device" in item.keywords:
                item.add_marker(no_device)
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="takes minutes; run with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def fresh():
    from mvkit.registry import plugins

    torch.manual_seed(0)
    yield
    plugins.registry.cache_clear()


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder on the path for distributions (see installs.py); what was imported from it is
    forgotten afterwards.
    """
    from mvkit.registry import plugins

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("MVKIT_PLUGINS", raising=False)
    plugins.registry.cache_clear()
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
