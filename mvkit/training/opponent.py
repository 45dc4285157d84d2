"""Opponents: what is trained against the objective of a stage, with an optimizer of its own."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

from torch import nn

from mvkit.errors import SpecError
from mvkit.models.added_levels import PREFIX
from mvkit.models.multimodal import MultimodalModel
from mvkit.models.objective_modules import every_objective
from mvkit.parts.objectives.objective import ObjectiveLike
from mvkit.registry.spec import field, integer, names, one_of, part, positional_spec
from mvkit.training.freezing import selected
from mvkit.training.optimizers import OptimizerSpec

OptimizerLike = str | Mapping[str, object] | OptimizerSpec


@positional_spec
class Opponent:
    """Parameters that minimise an objective of their own, before each step of a stage.

    The stage's own step sees them frozen. Typical is a critic: it learns to tell codes apart,
    while the stage trains encoders that make it useless. It sees the batches of a step of the
    stage together, and takes part in no schedule, ramp, average or patience of the stage.

    Args:
        objective: what the opponent minimises.
        trainable: globs over parameter names, as of a stage; None: the trained modules of its
            objective, `objectives.<key>.*`.
        optimizer: `adam`, `adamw`, `sgd`, or a spec.
        steps: optimizer steps before each step of the stage, on its batches.

    Example:
        >>> import mvkit
        >>> from mvkit.parts import Adversary
        >>> stage = mvkit.Stage(
        ...     Adversary(side="fool"), opponent=mvkit.Opponent(Adversary(side="tell"))
        ... )
        >>> stage.opponent.steps
        1

    Reference: Goodfellow et al., Generative Adversarial Nets, 2014,
    https://arxiv.org/abs/1406.2661 (algorithm 1).
    """

    objective: ObjectiveLike = part("objective")
    trainable: Sequence[str] | None = field(default=None, check=one_of(None, other=names))
    optimizer: OptimizerLike = part("optimizer", default="adam", kw_only=True)
    steps: int = field(default=1, check=integer(1), kw_only=True)

    def parameters(self, model: MultimodalModel) -> dict[str, nn.Parameter]:
        """What the opponent trains, by name.

        Raises:
            SpecError: globs that match nothing, or name a level.
        """
        globs = self._globs(model) if self.trainable is None else self.trainable
        for glob in globs:
            if PREFIX in glob:
                raise SpecError(
                    f"{glob!r} names a level, which only a stage trains alone; expected names of "
                    "parameters",
                    "trainable",
                )
        chosen = selected(model, globs)
        if not chosen:
            raise SpecError(f"{globs} has no parameters; expected some", "trainable")
        return {name: parameter for parameter, name in chosen.items()}

    def _globs(self, model: MultimodalModel) -> list[str]:
        """Globs of the trained modules of the objective, at whatever level of the model."""
        parameters = [name for name, _ in model.named_parameters()]
        globs = []
        for objective in every_objective(model.build_objective(self.objective)):
            glob = f"*objectives.{objective.key}.*"
            if fnmatch.filter(parameters, glob):
                globs.append(glob)
        if not globs:
            raise SpecError(
                "got None, and the opponent's objective has no trained modules; expected globs "
                "over the names of the parameters that it trains",
                "trainable",
            )
        return globs


def as_opponent(value: object) -> Opponent | None:
    """An opponent, from one or from a dict of its options; None stays None."""
    if value is None or isinstance(value, Opponent):
        return value
    if isinstance(value, Mapping):
        return Opponent(**value)
    raise SpecError(f"got {value!r}; expected an Opponent, or a dict of its options")
