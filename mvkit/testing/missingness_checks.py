"""Checks of models of what is missing.

Axes: b rows.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from mvkit.core.modality import Sizes
from mvkit.models import trial_values
from mvkit.models.part_checks import expect
from mvkit.parts.families import Normal
from mvkit.testing import tiny_models


def _move(live: object) -> None:
    """Moves parameters away from where they start, which may be a special place."""
    parameters = live.parameters() if isinstance(live, nn.Module) else ()
    with torch.no_grad():
        for parameter in parameters:
            steps = torch.arange(1.0, parameter.numel() + 1)
            parameter.copy_(torch.sin(steps).reshape(parameter.shape))


def patterns(kind: str, part: Any) -> None:
    """Probabilities of all patterns of observed and missing values sum to 1."""
    modality = tiny_models.modalities(1, ("a",))
    live = part.build(Sizes(2, Normal(), modality, None))
    _move(live)
    z = trial_values.made_up_values((2, 1, 2, 2), torch.float32)[0]
    x = {"a": trial_values.made_up_values((2, 1, 2, 3), torch.float32)[0]}
    total = torch.zeros(2, 1, 2)
    for flags in itertools.product([True, False], repeat=3):
        observed = {"a": torch.tensor([flags, flags])}
        with torch.no_grad():
            total += live.log_prob(x, observed, z).exp()
    expect(
        torch.allclose(total, torch.ones(2, 1, 2), atol=1e-5),
        f"returned probabilities of all patterns that sum to {total.flatten().tolist()}; "
        "expected 1 for each row, whatever its values",
    )
