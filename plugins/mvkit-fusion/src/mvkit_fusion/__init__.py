"""Fusion of experts for mvkit. Imported at discovery, so it stays light."""

from mvkit.registry.component import Component, hookimpl


@hookimpl
def mvkit_components() -> list[Component]:
    """The parts of this package."""
    return [
        Component(
            "aggregator",
            "code",
            "mvkit_fusion.subsets:CoDE",
            "consensus of correlated experts over subsets",
        ),
        Component(
            "aggregator",
            "mwb",
            "mvkit_fusion.subsets:MWB",
            "mixture of Wasserstein barycentres over subsets",
        ),
        Component(
            "aggregator",
            "hoelder",
            "mvkit_fusion.hoelder:Hoelder",
            "Hölder pooling, α = 1/2, exact",
        ),
        Component(
            "aggregator",
            "hellinger",
            "mvkit_fusion.hoelder:Hellinger",
            "Hölder pooling, moment-matched",
        ),
        Component(
            "objective",
            "entropy",
            "mvkit_fusion.entropy:Entropy",
            "entropy of the component weights",
        ),
    ]
