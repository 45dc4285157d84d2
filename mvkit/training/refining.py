"""Which refiners a stage trains, and on which weights of the model."""

from __future__ import annotations

from mvkit.models.multimodal import MultimodalModel
from mvkit.models.objective_modules import every_objective
from mvkit.models.refiners import note_weights
from mvkit.parts.objectives.refining import Refine
from mvkit.training.stages import Stage


def note_refined(model: MultimodalModel, stage: Stage) -> None:
    """Notes in a model the weights that the refiners of a stage are trained on, if it has some.

    Called before the stage, for what it saves on its way, and after it.

    Args:
        model: the model.
        stage: the stage.
    """
    objective = model.build_objective(stage.objective or model.spec.objective)
    names: set[str] = set()
    for part in every_objective(objective):
        if isinstance(part, Refine):
            names.update(part.refiners or model.refiners)
    if not names:
        return
    with stage.training(model) as trained:
        parameters = set(trained)
        for name in names:
            if parameters.intersection(model.refiners[name].parameters()):
                note_weights(model, [name])
