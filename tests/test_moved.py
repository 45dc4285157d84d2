"""Every path and name that `docs/plugins.md` and the packages of `plugins/` imported from version
0.1 still works.
"""

import importlib
import re
import subprocess
import sys

import pytest

import mvkit
from mvkit._moved import MOVED

IMPORTED = [
    ("aggregators", "Aggregator"),
    ("aggregators", "Defaults"),
    ("aggregators", "MoEAggregator"),
    ("aggregators", "random_subsets"),
    ("aggregators", "raw_experts"),
    ("aggregators", "refuse_product"),
    ("assembly", "ModelSpec"),
    ("batch", "Batch"),
    ("bounds", "elbo"),
    ("builtins", "ELSEWHERE"),
    ("events", "CheckpointSaved"),
    ("events", "EpochFinished"),
    ("events", "Event"),
    ("events", "Listener"),
    ("events", "Listeners"),
    ("events", "NonFinite"),
    ("events", "RunFinished"),
    ("events", "RunStarted"),
    ("events", "StageStarted"),
    ("experts", "Experts"),
    ("families", "Normal"),
    ("generation", "sampled"),
    ("history", "History"),
    ("joint", "Joint"),
    ("losses", "Loss"),
    ("losses", "finish"),
    ("mixture", "Mixture"),
    ("mixture", "equal_weights"),
    ("modality", "Sizes"),
    ("noise", "draw"),
    ("objectives", "Objective"),
    ("posterior", "Draws"),
    ("posterior", "Posterior"),
    ("priors", "Prior"),
    ("samplers", "Sampler"),
    ("spec", "field"),
    ("spec", "flag"),
    ("spec", "integer"),
    ("spec", "is_spec"),
    ("spec", "names"),
    ("spec", "number"),
    ("spec", "one_of"),
    ("spec", "part"),
    ("spec", "parts"),
    ("spec", "to_dict"),
    ("stages", "Ramp"),
    ("stages", "Schedule"),
]


@pytest.mark.parametrize(("module", "name"), IMPORTED)
def test_old_paths_say_the_new_one(module, name):
    old = importlib.import_module(f"mvkit.{module}")
    with pytest.warns(
        DeprecationWarning, match=rf"mvkit\.{module}\.{name} is now mvkit\."
    ) as record:
        value = getattr(old, name)
    path = re.search(r"is now ([\w.]+);", str(record[0].message)).group(1)
    new_module, _, new_name = path.rpartition(".")
    assert getattr(importlib.import_module(new_module), new_name) is value


@pytest.mark.parametrize("module", MOVED)
def test_every_entry_of_the_table_leads_somewhere(module):
    for path in MOVED[module]:
        importlib.import_module(f"mvkit.{path}")


def test_unknown_names_are_attribute_errors():
    with pytest.raises(ImportError, match="cannot import name 'Nothing' from 'mvkit.mixture'"):
        from mvkit.mixture import Nothing  # noqa: F401


def test_the_module_of_declarations_and_the_decorator_work_in_a_fresh_process():
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from mvkit.plugins import Component, hookimpl\n"
        "from mvkit.spec import field, number\n"
        "import mvkit\n"
        "from mvkit import spec\n"
        "@spec\n"
        "class A:\n"
        "    x: float = field(default=1.0, check=number(0.0))\n"
        "@mvkit.spec\n"
        "class B:\n"
        "    y: int = 2\n"
        "assert A(x=2.0).x == 2.0 and B().y == 2\n"
        "assert mvkit.spec.__module__ == 'mvkit.registry.spec'\n"
        "mvkit.plugins.declare(Component('ramp', 'instant', 'mvkit.training.annealing:Linear'))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_old_name_of_the_schema():
    model = mvkit.Model({"a": (2,)}, latent_dim=1)
    with pytest.warns(DeprecationWarning, match="model.layout is now model.schema"):
        assert model.layout == model.schema
