"""Public paths for authors of packages; `mvkit.parts` exports every built-in part."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mvkit
import mvkit.core
import mvkit.parts
from mvkit.registry import plugins
from mvkit.registry.builtin_parts import mvkit_components
from mvkit.registry.spec import as_part, to_dict

ROOT = Path(__file__).parent.parent
SHARED = {
    ("family", "normal"): "NormalFamily",
    ("ramp", "linear"): "LinearRamp",
    ("sampler", "prior"): "PriorSampler",
    ("metric", "likelihood"): "LikelihoodMetric",
}
PARTS = [(part.kind, part.name) for part in mvkit_components() if part.kind != "recipe"]


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_every_built_in_part_is_exported(kind, name):
    cls = plugins.lookup(kind, name)
    exported = SHARED.get((kind, name), cls.__name__)
    assert getattr(mvkit.parts, exported) is cls
    assert exported in dir(mvkit.parts)


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_an_object_of_every_built_in_part_is_recognised(kind, name):
    """The table names the module that defines the class: an object made without it is found."""
    cls = plugins.lookup(kind, name)
    plugins.registry.cache_clear()
    assert plugins.name_of(kind, cls) == name


def test_no_two_parts_are_exported_under_one_name():
    names = [SHARED.get(part, plugins.lookup(*part).__name__) for part in PARTS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "name",
    ["Aggregator", "Family", "Likelihood", "Network", "Objective", "Prior", "Sampler"]
    + ["Metric", "Ramp", "Schedule", "Transform"],
)
def test_abstract_classes_are_exported(name):
    cls = getattr(mvkit.parts, name)
    assert cls.__abstractmethods__
    assert getattr(mvkit, name, cls) is cls


def test_the_object_of_the_readme():
    from mvkit.parts import MoG

    model = mvkit.Model({"a": (2,)}, latent_dim=3, prior=MoG(components=20))
    assert to_dict(model.spec.prior)["components"] == 20
    assert as_part("prior", {"name": "mog", "components": 20}) == MoG(components=20)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match=r"module 'mvkit\.parts' has no attribute 'Mog'"):
        _ = mvkit.parts.Mog


def test_importing_parts_alone_imports_nothing_heavy():
    program = (
        "import sys, torch; before = set(sys.modules); import mvkit.core, mvkit.parts;"
        "extra = set(sys.modules) - before;"
        "print(sorted({'sklearn', 'matplotlib', 'pandas', 'scipy', 'PIL', 'jinja2'} & extra))"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


PUBLIC = {
    "mvkit.registry": "Component KINDS available declare factors field flag hookimpl integer "
    "is_spec names number numbers one_of part parts spec to_dict",
    "mvkit.core": "Batch Context Decoding Draws Experts Family Likelihood Loss Metrics Mixture "
    "Modality Posterior RowContext Sizes Terms bounds equal_weights finish noise row_metrics",
    "mvkit.apps.cli": "main",
    "mvkit.data.chunked_rows": "ChunkedRows Chunks",
    "mvkit.parts": "ConditionalSampler Defaults LatentModel Splits check_product product_of_observed raw_experts",
}


@pytest.mark.parametrize("package", PUBLIC)
def test_public_paths_stay(package):
    """`docs/plugins.md` promises them."""
    module = importlib.import_module(package)
    for name in PUBLIC[package].split():
        assert getattr(module, name) is not None


PATHS = {*PUBLIC, "mvkit", "mvkit.evaluation.metric", "mvkit.testing", "mvkit.training.events"}
PAGES = ["docs/plugins.md", "tutorials/11_plugin.py"]
PAGES += [path.relative_to(ROOT) for path in (ROOT / "mvkit/apps/templates").rglob("*.txt")]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_pages_for_authors_import_from_public_paths_alone(page):
    text = (ROOT / page).read_text()
    for path, names in re.findall(r"^from (mvkit[\w.]*) import (.+)$", text, re.MULTILINE):
        assert path in PATHS
        module = importlib.import_module(path)
        for name in names.split(", "):
            assert hasattr(module, name), (path, name)
