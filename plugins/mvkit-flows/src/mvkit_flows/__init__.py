"""Normalizing-flow parts for mvkit. Imported at discovery, so it stays light."""

from mvkit.registry import Component, hookimpl

NSF = Component("prior", "nsf", "mvkit_flows.priors:NSF", "neural spline flow")
MAF = Component("prior", "maf", "mvkit_flows.priors:MAF", "masked autoregressive flow")
JOINT_FLOW = Component(
    "aggregator",
    "joint_flow",
    "mvkit_flows.joint_flow:JointFlow",
    "joint encoder with unimodal flows",
)
FLOW = Component(
    "sampler", "flow", "mvkit_flows.samplers:Flow", "neural spline flow, fitted to latents"
)


@hookimpl
def mvkit_components() -> list[Component]:
    """The parts of this package."""
    return [NSF, MAF, JOINT_FLOW, FLOW]
