"""Normalizing-flow parts for mvkit. Imported at discovery, so it stays light."""

from mvkit.registry.component import Component, hookimpl


@hookimpl
def mvkit_components() -> list[Component]:
    """The parts of this package."""
    return [
        Component("prior", "nsf", "mvkit_flows.priors:NSF", "neural spline flow"),
        Component("prior", "maf", "mvkit_flows.priors:MAF", "masked autoregressive flow"),
        Component(
            "aggregator",
            "joint_flow",
            "mvkit_flows.joint_flow:JointFlow",
            "joint encoder with unimodal flows",
        ),
        Component(
            "sampler", "flow", "mvkit_flows.samplers:Flow", "neural spline flow, fitted to latents"
        ),
    ]
