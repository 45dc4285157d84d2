import os

import pytest
import torch

os.environ.setdefault("MVKIT_PLUGINS", "")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run tests that take minutes")


def pytest_configure():
    torch.set_num_threads(1)  # two workers on two cores, and the same sums every time


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="takes minutes; run with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def fresh():
    from mvkit import plugins

    torch.manual_seed(0)
    yield
    plugins.registry.cache_clear()
