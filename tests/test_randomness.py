"""Every draw and every seed comes from `mvkit.core.noise`; exceptions are listed with reasons."""

import ast
from pathlib import Path

import torch
from helpers import model, rows

import mvkit

ROOT = Path(mvkit.__file__).parent
SOURCES = {
    "_standard_gamma",
    "bernoulli",
    "default_rng",
    "exponential_",
    "manual_seed",
    "multinomial",
    "normal",
    "normal_",
    "poisson",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "random",  # numpy's, or the module; torch.random holds generators, it draws nothing
    "random_",
    "randperm",
    "uniform_",
}
ALLOWED = {
    "core/noise.py": "the one place",
    "core/noise_by_row.py": "noise by row, which noise.draw makes; seeds itself anew by block",
    "parts/families.py": "standard noise of a family, which noise.draw calls",
    "parts/likelihoods/location_scale.py": "samplers that noise.draw calls",
    "parts/likelihoods/positive.py": "likewise",
    "parts/likelihoods/counts.py": "likewise",
    "parts/likelihoods/negative_binomial.py": "likewise",
    "parts/refiners.py": "likewise",
    "parts/samplers.py": "a sampler that noise.draw calls",
    "parts/conditional_gmm.py": "likewise",
    "parts/conditional_samplers.py": "likewise",
    "training/fingerprint.py": "puts the states of global generators back",
    "models/claimed_tensors.py": "names functions that make tensors, and calls none",
    "training/step_noise.py": "seeds torch's global generators, for dropout of users' networks",
    "models/trial_values.py": "values that parts are tried on; a generator of their own",
    "data/datasets/catalogue.py": "the truth of linear_gaussian; a generator of its own",
    "data/datasets/polydigits/make.py": "made the images of polydigits, once",
    "testing/injected_noise.py": "noise in the place of every draw",
    "testing/tiny_models.py": "rows of checks; a generator of their own",
    "testing/density_checks.py": "outputs and parameters of checks; a generator of their own",
    "testing/objective_checks.py": "rows and weights of checks; a generator of their own",
    "testing/given_checks.py": "likewise",
    "testing/other_parts.py": "latents of a check; a generator of their own",
    "testing/sampler_checks.py": "likewise",
    "testing/refiner_checks.py": "likewise",
}


def sources_of(path):
    """Names of random functions that a file uses, outside strings and comments."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node) != "torch.random":
            names.add(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.name for alias in node.names}
    return names & SOURCES


def test_randomness_comes_from_one_module():
    used = {}
    for path in ROOT.rglob("*.py"):
        sources = sources_of(path)
        if sources:
            used[str(path.relative_to(ROOT))] = sources
    stray = {name: sources for name, sources in used.items() if name not in ALLOWED}
    assert not stray, f"draw through mvkit.core.noise, or say in ALLOWED why not: {stray}"
    assert [name for name in ALLOWED if name not in used] == []


def test_every_draw_of_a_sampled_translation_has_a_site():
    sites = set()

    def source(site, shape, dtype, device):
        sites.add(site)
        return torch.full(shape, 0.5, dtype=dtype)

    state = torch.random.get_rng_state()
    with mvkit.testing.noise(source):
        model("poe", private=1).translate(rows(missing=False), n=2, sample=True)
    assert sites == {"z", "w/a", "w/b", "w/c", "x"}
    assert torch.equal(state, torch.random.get_rng_state())
