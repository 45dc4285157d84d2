"""Help for tests: the conformance suite of parts, and noise that the test chooses."""

from mvkit.testing.conformance import ConformanceError, check_component
from mvkit.testing.injected_noise import bound_noise, noise

__all__ = ["ConformanceError", "bound_noise", "check_component", "noise"]
