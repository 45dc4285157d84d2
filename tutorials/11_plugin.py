# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A package with a part of your own
#
# mvkit looks for parts in installed packages. This tutorial writes such a package, with a new
# aggregator. It is tested by the suite that every built-in part passes, trained on data of which
# half is missing, saved and loaded. `mvkit new-plugin mvkit-sharpest --kind aggregator` writes all
# files of a package for you; `docs/plugins.md` is the reference.

# %%
import importlib
import os
import sys
from pathlib import Path

import torch

import mvkit
from mvkit.testing import check_component

# only this package, whatever else is installed here
os.environ["MVKIT_PLUGINS"] = "mvkit-sharpest"
root = Path("mvkit-sharpest")
source = root / "src" / "mvkit_sharpest"
source.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## What is in it
# The project file names a module under the entry-point group `mvkit`. That module declares the
# parts. It imports nothing heavy, because it is imported whenever somebody lists parts.

# %%
(root / "pyproject.toml").write_text("""
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "mvkit-sharpest"
version = "0.1.0"
dependencies = ["mvkit"]

[project.entry-points.mvkit]
sharpest = "mvkit_sharpest"
""")

(source / "__init__.py").write_text("""
from mvkit.registry import Component, hookimpl


@hookimpl
def mvkit_components():
    target = "mvkit_sharpest.sharpest:Sharpest"
    return [Component("aggregator", "sharpest", target, "the surest expert")]
""")

# %% [markdown]
# ## The part
# In each dimension, the posterior is the expert with the smallest scale. Unobserved experts must
# not change it, and rows that observe nothing must stay finite: they get N(0, 1).

# %%
(source / "sharpest.py").write_text('''
import torch
from einops import rearrange

import mvkit
from mvkit import spec


@spec
class Sharpest(mvkit.Aggregator):
    """The surest expert of each dimension.

    Reference: this tutorial.
    """

    def build(self, sizes):
        return self

    def forward(self, experts, batch):
        observed = rearrange(batch.observed, "b m -> m b 1")
        best = torch.where(observed, experts.scale, torch.inf).argmin(0, keepdim=True)
        has_evidence = rearrange(batch.observed.any(1), "b -> 1 b 1")
        loc = torch.where(has_evidence, experts.loc.gather(0, best), 0.0)
        scale = torch.where(has_evidence, experts.scale.gather(0, best), 1.0)
        log_weight = loc.new_zeros(loc.shape[:2])  # one component, of weight 1
        evidence = rearrange(batch.observed, "b m -> 1 b m")
        return mvkit.Mixture(experts.family, loc, scale, log_weight, evidence)
''')

# %% [markdown]
# ## Installed
# In a shell: `pip install --editable mvkit-sharpest`. So that this page runs anywhere, the two
# files that pip would write are written by hand.

# %%
info = source.parent / "mvkit_sharpest-0.1.0.dist-info"
info.mkdir(exist_ok=True)
(info / "METADATA").write_text("Metadata-Version: 2.1\nName: mvkit-sharpest\nVersion: 0.1.0\n")
(info / "entry_points.txt").write_text("[mvkit]\nsharpest = mvkit_sharpest\n")
sys.path.insert(0, str(source.parent.resolve()))
importlib.invalidate_caches()
mvkit.plugins.registry.cache_clear()  # this session has looked for packages before
print(mvkit.available("aggregator"), mvkit.plugins.problems())

# %% [markdown]
# ## Tested
# One line runs the conformance suite: shapes, every pattern of gaps, fillers bit for bit,
# gradients, save and load, seeds, permutations, precision. Put it into a test of the package.

# %%
check_component("aggregator", "mvkit-sharpest/sharpest")

# %% [markdown]
# ## Used
# By its name, like any other part, and with any other part.

# %%
data = mvkit.load_dataset("polydigits", missing=0.5)
rows = data.test.batch.take(slice(0, 100))
for aggregator in ("poe", "sharpest"):
    model = mvkit.Model(data.modalities, latent_dim=16, aggregator=aggregator, prior="mog", seed=0)
    mvkit.fit(model, data.train, validation=data.valid, epochs=5, seed=0)
    print(
        f"{aggregator:<10}",
        model.log_likelihood(rows, n=200, generator=torch.Generator().manual_seed(0)).mean(),
    )

# %% [markdown]
# ## Saved
# The file names the package and its version. Where it is missing, the error says what to install.

# %%
mvkit.save(model, "model.safetensors")
print(mvkit.describe("model.safetensors")["packages"])
assert torch.equal(mvkit.load("model.safetensors").encode(rows), model.encode(rows))

os.environ["MVKIT_PLUGINS"] = ""  # as if it were not installed
mvkit.plugins.registry.cache_clear()
try:
    mvkit.load("model.safetensors")
except mvkit.CheckpointError as error:
    print(error)
