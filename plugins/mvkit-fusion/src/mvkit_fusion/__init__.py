"""Fusion of experts for mvkit. Imported at discovery, so it stays light."""

from mvkit.registry import Component, hookimpl

CODE = Component(
    "aggregator",
    "code",
    "mvkit_fusion.subsets:CoDE",
    "consensus of correlated experts over subsets",
)
MWB = Component(
    "aggregator",
    "mwb",
    "mvkit_fusion.subsets:MWB",
    "mixture of Wasserstein barycentres over subsets",
)
HOELDER = Component(
    "aggregator", "hoelder", "mvkit_fusion.hoelder:Hoelder", "Hölder pooling, α = 1/2, exact"
)
HELLINGER = Component(
    "aggregator", "hellinger", "mvkit_fusion.hoelder:Hellinger", "Hölder pooling, moment-matched"
)
ENTROPY = Component(
    "objective", "entropy", "mvkit_fusion.entropy:Entropy", "entropy of the component weights"
)

RECIPES = [
    Component("recipe", "codevae", "mvkit_fusion.recipes:codevae", "CoDE-VAE, correlated experts"),
    Component("recipe", "helvae", "mvkit_fusion.recipes:helvae", "HELVAE, Hölder's moments"),
    Component("recipe", "mwb", "mvkit_fusion.recipes:mwb", "MWB-VAE, barycentres over subsets"),
]


@hookimpl
def mvkit_components() -> list[Component]:
    """The parts of this package."""
    return [CODE, MWB, HOELDER, HELLINGER, ENTROPY, *RECIPES]
