"""Whatever is wrong with an installed package, mvkit starts, and names what it was.

Messages name the package, its version and its entry point.
"""

import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from installs import declares, install

import mvkit
from mvkit import SpecError, UnknownComponent
from mvkit.errors import PluginError
from mvkit.registry import discovery, plugins
from mvkit.registry.spec import as_part

ORIGIN = r"mvkit-broken 2\.5, entry point 'broken_plugin = broken_plugin'"
HOOK = "from mvkit.registry import Component, hookimpl\n@hookimpl\n"
GOOD = """
    from mvkit import spec
    from mvkit.parts.priors import DiagonalPrior

    @spec
    class Good:
        \"\"\"A prior.\"\"\"

        def build(self, sizes):
            return DiagonalPrior(sizes, learn_loc=True, learn_scale=False)
"""
DISCOVERY = {
    "import error": (
        "import nothing_of_this_name",
        "ModuleNotFoundError: No module named 'nothing_of_this_name'",
    ),
    "syntax error": ("def broken(:", "SyntaxError"),
    "SystemExit": ("raise SystemExit(3)", "SystemExit: 3"),
    "raising hook": (
        f"{HOOK}def mvkit_components():\n    raise RuntimeError('boom')",
        "RuntimeError: boom",
    ),
    "hook that stops midway": (
        f"{HOOK}def mvkit_components():\n    yield Component('prior', 'half', 'y:Z')\n"
        "    raise KeyError('boom')",
        "KeyError: 'boom'",
    ),
    "hook that exits": (f"{HOOK}def mvkit_components():\n    raise SystemExit", "SystemExit"),
    "hook that gives no list": (f"{HOOK}def mvkit_components():\n    return 3", "TypeError"),
    "wrong signature of the hook": (f"{HOOK}def mvkit_components(kinds):\n    return []", "kinds"),
    "wrong signature of a Component": (
        f"{HOOK}def mvkit_components():\n    return [Component('prior')]",
        "TypeError",
    ),
    "misspelt hook": (f"{HOOK}def mvkit_componnets():\n    return []", "mvkit_componnets"),
    "no hook": ("x = 1", "it implements no hook; decorate mvkit_components"),
    "partial registration": (
        declares(("prior", "half", "broken_plugin_parts:Good"), ("prior", "Bad-Name", "y:Z")),
        "prior 'Bad-Name': a name is made of",
    ),
    "unknown kind": (
        declares(("priors", "x", "y:Z")),
        "unknown kind 'priors' of 'x'; did you mean 'prior'",
    ),
    "newer API": (
        declares(("prior", "x", "y:Z", "", 9)),
        "prior 'x' needs component API 9, not 1; upgrade mvkit",
    ),
    "impossible API": (
        declares(("prior", "x", "y:Z", "", 0)),
        "api 0; expected a whole number from 1 on",
    ),
    "not a Component": (
        f"{HOOK}def mvkit_components():\n    return ['mog']",
        "declared 'mog'; expected a Component",
    ),
    "name that is no string": (declares(("prior", 3, "y:Z")), "expected a string as its name"),
    "target without a class": (
        declares(("prior", "x", "y")),
        "target 'y'; expected 'package.module:Class'",
    ),
    "duplicate name": (
        declares(("prior", "half", "broken_plugin_parts:Good"), ("prior", "half", "y:Z")),
        "declared prior 'half' twice; the first is taken",
    ),
    "slow import": (
        "import time\ntime.sleep(0.2)\n" + declares(("prior", "half", "y:Z")),
        r"took 0.\d s to import",
    ),
}
KEPT = ("partial registration", "duplicate name", "slow import")


@pytest.fixture(params=["lenient", "strict"])
def strict(request, monkeypatch):
    monkeypatch.setenv("MVKIT_PLUGINS_STRICT", str(int(request.param == "strict")))
    return request.param == "strict"


def host_works():
    mvkit.Model({"a": (2,)}, prior="mog").loss({"a": torch.zeros(3, 2)})
    made = mvkit.Model({"a": (2,)}, prior="mvkit-good/good")
    assert torch.isfinite(made.loss({"a": torch.zeros(3, 2)}).loss)


@pytest.mark.parametrize(("code", "reason"), DISCOVERY.values(), ids=DISCOVERY)
def test_at_discovery(packages, monkeypatch, strict, request, code, reason):
    monkeypatch.setattr(discovery, "SLOW", 0.15)
    install(packages, "mvkit-broken", "broken_plugin", code, GOOD, version="2.5")
    install(
        packages,
        "mvkit-good",
        "good_plugin",
        declares(("prior", "good", "good_plugin_parts:Good")),
        GOOD,
    )
    mvkit.Model({"a": (2,)}, prior="mog")  # built-ins never ask
    if strict:
        with pytest.raises(
            PluginError, match=f"plugins: {ORIGIN}: .*unset MVKIT_PLUGINS_STRICT"
        ) as raised:
            mvkit.available("prior")
        assert raised.match(reason)
    else:
        assert "good" in mvkit.available("prior")
    (problem,) = [problem for problem in plugins.problems() if "broken" in str(problem)]
    assert (problem.package, problem.version) == ("mvkit-broken", "2.5")
    assert problem.entry_point == "broken_plugin = broken_plugin"
    with pytest.raises(UnknownComponent, match=f"note that {ORIGIN}"):
        as_part("prior", "nosuch")
    assert ("half" in mvkit.available("prior")) == any(kind in request.node.name for kind in KEPT)
    host_works()


def test_metadata_that_cannot_be_read(packages, strict):
    """The list that `importlib.metadata.entry_points` makes fails as a whole for one such file."""
    info = install(packages, "mvkit-broken", "broken_plugin", "", version="2.5")
    (info / "entry_points.txt").write_text("[mvkit]\nnonsense\n")
    install(
        packages,
        "mvkit-good",
        "good_plugin",
        declares(("prior", "good", "good_plugin_parts:Good")),
        GOOD,
    )
    reason = r"mvkit-broken 2\.5: its metadata cannot be read: TypeError"
    if strict:
        with pytest.raises(PluginError, match=reason):
            mvkit.available("prior")
    assert any(problem.package == "mvkit-broken" for problem in plugins.problems())
    host_works()


@pytest.mark.parametrize("package", ["mvkit", "local"])
def test_a_package_under_a_name_of_mvkits_own(packages, strict, package):
    code = declares(("prior", "mog", "broken_plugin_parts:Good"))
    install(packages, package, "broken_plugin", code, GOOD, version="2.5")
    install(
        packages,
        "mvkit-good",
        "good_plugin",
        declares(("prior", "good", "good_plugin_parts:Good")),
        GOOD,
    )
    if strict:
        with pytest.raises(
            PluginError, match=rf"{package} 2\.5, entry point .*the name '{package}' is taken"
        ):
            mvkit.available("prior")
    assert type(as_part("prior", "mog")).__module__ == "mvkit.parts.priors"
    assert any("is taken; rename the package" in str(problem) for problem in plugins.problems())
    host_works()


def test_two_entry_points_of_one_package(packages):
    info = install(
        packages,
        "mvkit-good",
        "good_plugin",
        declares(("prior", "good", "good_plugin_parts:Good")),
        GOOD,
    )
    (packages / "other.py").write_text("raise ValueError('no')")
    (info / "entry_points.txt").write_text(
        "[mvkit]\na = good_plugin\nb = other\nc = good_plugin\n"
    )
    shown = "; ".join(map(str, plugins.problems()))
    assert "mvkit-good 1.0, entry point 'b = other': failed: ValueError: no" in shown
    assert "entry point 'c = good_plugin'" in shown
    host_works()


def part(body, base="", imports=""):
    """A module with a part `Broken`."""
    head = "import torch\nimport mvkit\nfrom mvkit import spec\nfrom torch import nn\n" + imports
    body = textwrap.indent(textwrap.dedent(body), "    ")
    return f'{head}\n@spec\nclass Broken{base}:\n    """A part."""\n\n{body}\n'


def aggregator(forward):
    imports = "from mvkit.parts import product_of_observed\nimport attrs\n"
    body = f"""
        def build(self, sizes):
            return self

        def forward(self, experts, batch):
            found = product_of_observed(experts, batch.observed, 1.0)
            {forward}
    """
    return part(body, "(mvkit.Aggregator)", imports)


def prior(forward):
    body = f"""
        def build(self, sizes):
            made = nn.Module()
            made.forward = self.forward
            return made

        def forward(self, posterior=None):
            {forward}
    """
    return part(body)


def likelihood(log_prob):
    body = f"""
        def build(self, sizes):
            return self

        def mean(self, out):
            return out

        def sample(self, out, generator=None):
            return out

        def log_prob(self, out, x, context):
            {log_prob}
    """
    return part(body, "(mvkit.Likelihood)")


NORMAL = "torch.distributions.Normal(torch.zeros(10), torch.ones(10))"
DIAGONAL = f"torch.distributions.Independent({NORMAL}, 1)"
USE = {
    "module that cannot be imported": (
        "prior",
        "import nothing_of_this_name",
        "could not be imported.*ModuleNotFound",
    ),
    "missing optional dependency": (
        "prior",
        "import zukko",
        "No module named 'zukko'; install what it lacks",
    ),
    "module that exits": (
        "prior",
        "raise SystemExit('bye')",
        "could not be imported.*SystemExit: bye",
    ),
    "no such class": ("prior", "x = 1", "could not be imported.*AttributeError"),
    "not a class": ("prior", "Broken = 3", "is no class made by @mvkit.spec, but 3"),
    "plain class": ("prior", "class Broken: pass", "is no class made by @mvkit.spec"),
    "raising constructor": (
        "prior",
        part("def __attrs_post_init__(self):\n    raise RuntimeError('boom')"),
        "failed when it was made: RuntimeError: boom; update that package",
    ),
    "exiting constructor": (
        "prior",
        part("def __attrs_post_init__(self):\n    raise SystemExit"),
        "SystemExit",
    ),
    "raising build": (
        "prior",
        part("def build(self, sizes):\n    return sizes.nosuch"),
        "was built: Attribute",
    ),
    "no build": ("prior", part("x: int = 1"), "when it was built: AttributeError"),
    "wrong signature of build": (
        "aggregator",
        part("def build(self):\n    return self"),
        "built: TypeError",
    ),
    "build of something else": (
        "aggregator",
        part("def build(self, sizes):\n    return 3"),
        "expected a Aggregator",
    ),
    "abstract": ("aggregator", part("x: int = 1", "(mvkit.Aggregator)"), "abstract"),
    "wrong signature of forward": (
        "aggregator",
        part(
            "def build(self, sizes):\n    return self\ndef forward(self):\n    pass",
            "(mvkit.Aggregator)",
        ),
        "in a trial on three rows: TypeError",
    ),
    "raising forward": (
        "aggregator",
        aggregator("raise ValueError('odd')"),
        "three rows: ValueError: odd",
    ),
    "wrong output": (
        "aggregator",
        aggregator("return found.loc"),
        "Tensor in forward; expected a mvkit.Mixture",
    ),
    "wrong output shape": (
        "aggregator",
        aggregator("return attrs.evolve(found, loc=found.loc[0])"),
        r"loc in forward of shape \(3, 10\); expected a tensor of shape \(3, 3, 10\)",
    ),
    "NaN output": (
        "aggregator",
        aggregator("return attrs.evolve(found, loc=found.loc / 0)"),
        "that is not finite",
    ),
    "scales below zero": (
        "aggregator",
        aggregator("return attrs.evolve(found, scale=-found.scale)"),
        "0 or less",
    ),
    "weights that do not sum to one": (
        "aggregator",
        aggregator("return attrs.evolve(found, log_weight=found.log_weight - 1)"),
        "whose weights sum to .*expected 1",
    ),
    "mutates its input": (
        "aggregator",
        aggregator("experts.loc.add_(1); return found"),
        "changed its input",
    ),
    "mutates the mask": (
        "aggregator",
        aggregator("batch.mask.fill_(True); return found"),
        "changed .*: mask",
    ),
    "density of the wrong shape": (
        "prior",
        prior(f"return {NORMAL}"),
        r"log_prob of z \(2, 3, d\) of shape \(2, 3, 10\); expected a tensor of shape \(2, 3\)",
    ),
    "density that is NaN": (
        "prior",
        prior(f"p = {DIAGONAL}; p.log_prob = lambda z: z.sum(-1) / 0; return p"),
        "finite",
    ),
    "summed likelihood": (
        "likelihood",
        likelihood("return -(out - x).square().sum(-1)"),
        r"of shape \(2, 3\)",
    ),
    "likelihood that is NaN": (
        "likelihood",
        likelihood("return out * torch.nan"),
        "log_prob that is not finite",
    ),
    "likelihood that mutates": (
        "likelihood",
        likelihood("return -out.sub_(x).square()"),
        "changed its input.*: out",
    ),
    "network of the wrong width": (
        "network",
        part(
            "def encoder(self, shape, width):\n    return nn.Linear(shape[0], width + 1)\n"
            "def decoder(self, width, shape):\n    return nn.Linear(width, shape[0])"
        ),
        r"rows of its encoder of shape \(3, 6\); expected a tensor of shape \(3, 5\)",
    ),
    "family with scales of zero": (
        "family",
        part(
            "def scale(self, raw):\n    return raw * 0",
            "(NormalFamily)",
            "from mvkit.parts import NormalFamily\n",
        ),
        "a scale of 0 or less; expected positive",
    ),
    "objective that is no Objective": (
        "objective",
        part("def build(self, sizes):\n    return self"),
        "a Objective",
    ),
}


@pytest.mark.parametrize(("kind", "code", "reason"), USE.values(), ids=USE)
def test_in_use(packages, strict, kind, code, reason):
    install(
        packages,
        "mvkit-good",
        "good_plugin",
        declares(("prior", "good", "good_plugin_parts:Good")),
        GOOD,
    )
    declared = declares((kind, "broken", "broken_plugin_parts:Broken"))
    install(packages, "mvkit-broken", "broken_plugin", declared, code, version="2.5")
    field = {"likelihood": "likelihood", "network": "encoder"}.get(kind)
    shapes, options = (
        ({"a": {"shape": (2,), field: "broken"}}, {}) if field else ({"a": (2,)}, {kind: "broken"})
    )
    with pytest.raises(SpecError, match=rf"{kind} 'mvkit-broken/broken' \({ORIGIN}\)") as raised:
        mvkit.Model(shapes, **options)
    assert raised.match(reason)
    host_works()


def test_an_objective_of_the_wrong_shape(packages, strict):
    code = part(
        "def forward(self, model, batch, experts):\n"
        "    return mvkit.Loss(torch.ones(2), torch.ones(2), {})",
        "(mvkit.Objective)",
    )
    declared = declares(("objective", "broken", "broken_plugin_parts:Broken"))
    install(packages, "mvkit-broken", "broken_plugin", declared, code, version="2.5")
    made = mvkit.Model({"a": (2,)}, objective="broken")
    with pytest.raises(
        mvkit.ShapeError, match=rf"{ORIGIN}\): returned loss \(2,\) and bound \(2,\); expected"
    ):
        made.loss({"a": torch.zeros(3, 2)})


def test_a_broken_part_leaves_the_others_of_its_package(packages):
    code = GOOD + "\n    Alias = Good\n"
    declared = declares(
        ("prior", "lost", "nothing_here:Lost"), ("prior", "good", "good_plugin_parts:Alias")
    )
    install(packages, "mvkit-good", "good_plugin", declared, code)
    host_works()
    import good_plugin_parts

    plugins.registry.cache_clear()
    assert plugins.name_of("prior", good_plugin_parts.Good) == "mvkit-good/good"


def test_uninstalled_after_a_model_was_saved(packages, strict):
    info = install(
        packages,
        "mvkit-good",
        "good_plugin",
        declares(("prior", "good", "good_plugin_parts:Good")),
        GOOD,
    )
    mvkit.save(mvkit.Model({"a": (2,)}, prior="good"), packages / "m")
    shutil.rmtree(info)
    plugins.registry.cache_clear()
    with pytest.raises(
        mvkit.CheckpointError, match=r"needs mvkit-good 1\.0, .*pip install mvkit-good==1\.0"
    ):
        mvkit.load(packages / "m")
    mvkit.Model({"a": (2,)}, prior="mog").loss({"a": torch.zeros(3, 2)})


def test_numbers_that_stop_being_numbers_in_training(packages, strict):
    code = aggregator("return attrs.evolve(found, loc=found.loc / (0 if experts.training else 1))")
    declared = declares(("aggregator", "broken", "broken_plugin_parts:Broken"))
    install(packages, "mvkit-broken", "broken_plugin", declared, code, version="2.5")
    made = mvkit.Model({"a": (2,)}, aggregator="broken", seed=0)
    with pytest.raises(mvkit.DataError, match="not finite"):
        mvkit.fit(made, {"a": torch.ones(4, 2)}, epochs=1)


def test_the_host_starts_whatever_is_installed(packages):
    """All at once in a fresh process, lenient and strict; built-ins and the good one work."""
    for i, (code, _) in enumerate(DISCOVERY.values()):
        install(packages, f"mvkit-broken-{i}", f"broken_{i}", code.replace("0.2", "1.1"))
    install(
        packages,
        "mvkit-good",
        "good_plugin",
        declares(("prior", "good", "good_plugin_parts:Good")),
        GOOD,
    )
    program = f"""
        import os, sys, time
        start = time.perf_counter()
        import mvkit
        mvkit.Model({{"a": (2,)}}, prior="mog")
        assert not any(name.startswith("broken_") for name in sys.modules)
        os.environ["MVKIT_PLUGINS_STRICT"] = "1"
        for strict in (True, False):
            try:
                mvkit.available("prior")
                assert not strict
            except mvkit.errors.PluginError as error:
                assert strict
                for i in range({len(DISCOVERY)}):
                    assert f"mvkit-broken-{{i}} 1.0, entry point" in str(error)
            mvkit.Model({{"a": (2,)}}, prior="good")
            os.environ["MVKIT_PLUGINS_STRICT"] = ""
            mvkit.plugins.registry.cache_clear()
        print("started")
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MVKIT")}
    environment["PYTHONPATH"] = os.pathsep.join([str(packages), *filter(None, sys.path)])
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=120
    )
    assert done.stdout == "started\n", done.stderr
