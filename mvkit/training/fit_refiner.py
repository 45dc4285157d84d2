"""fit_refiner: trains refiners of a trained model, in a stage of their own."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterable, Mapping
from typing import Any

from mvkit.errors import DataError, RequestError
from mvkit.models.inference import Names, names_of
from mvkit.models.multimodal import MultimodalModel, check_model
from mvkit.models.refiners import STACK, sizes_for
from mvkit.models.stack import Stack
from mvkit.parts.objectives.refining import Refine
from mvkit.registry.spec import as_part
from mvkit.training.fit import fit
from mvkit.training.history import History
from mvkit.training.stages import Stage


def fit_refiner(
    model: MultimodalModel,
    data: object,
    refiner: Any = "energy",
    modalities: Names = None,
    *,
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    **options: Any,
) -> History:
    """Trains refiners: what draws modalities sharply from what the decoders of a model say.

    A refiner is trained on reconstructions and translations of rows, which may have gaps: latents
    are drawn given random parts of what each row has. The rest of the model stays as it is, and so
    do likelihoods. `model.translate(…, refine=True)`, `model.sample(n, refine=True)`,
    `mvkit.impute(…, refine=True)` and `mvkit.evaluate(…, refine=True)` use them; `mvkit.save`
    keeps them. A model has one for each modality: another fit takes its place. When the weights of
    the model change afterwards, using the refiner warns.

    To train refiners on, or as part of a plan: `mvkit.fit(model, data, stages=[Stage("refine",
    trainable=["refiners.*"])])`.

    Args:
        model: a trained model.
        data: rows, as `fit` takes them, as a rule the training rows.
        refiner: a name, a spec or a dict (`mvkit.available("refiner")`), or {modality: one of
            these}.
        modalities: to refine; None: those of `refiner`, or all that can be refined.
        epochs: of training.
        batch_size: rows per step.
        lr: learning rate.
        seed: of initial weights, the order of rows and all noise.
        options: others of `fit`, such as `validation`, `checkpoint` and `progress`.

    Raises:
        RequestError: a `Stack`, a modality that is not there, or whose values are classes or
            counts.
        SpecError: a refiner that is not known, or cannot be built.
        DataError: a modality that no row has.

    Example:
        >>> import torch, mvkit
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, seed=0)
        >>> rows = {"a": torch.randn(50, 3), "b": torch.randn(50, 2)}
        >>> _ = mvkit.fit_refiner(model, rows, epochs=1, progress=False)
        >>> model.translate({"a": rows["a"]}, to="b", refine=True)["b"].shape
        torch.Size([1, 50, 2])
    """
    check_model(model, "fit_refiner")
    if isinstance(model, Stack):
        raise RequestError(f"fit_refiner: {STACK}")
    if "stages" in options:
        raise RequestError(
            "fit_refiner: stages: it has one of its own; expected none; for others call "
            'mvkit.fit(model, data, stages=[Stage("refine", trainable=["refiners.*"])])'
        )
    specs = _specs(model, refiner, modalities)
    before = dict(model.refiners.items()), dict(model.refined_to)
    for name in specs:
        if name in model.refiners:
            del model.refiners[name]
    trainable = [f"refiners.{glob.escape(name)}.*" for name in specs]
    stage = Stage(Refine(refiners=specs), epochs, trainable)
    rates: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed}
    try:
        history = fit(model, data, stages=[stage], **rates, **options)
        _check_seen(history, specs)
        return history
    except BaseException:  # the model has the refiners that it had
        model.refiners.clear()
        model.refiners.update(before[0])
        model.refined_to = before[1]
        raise


def _check_seen(history: History, names: Iterable[str]) -> None:
    """Raises DataError if no row of any epoch had one of the modalities."""
    for name in names:
        if all(math.isnan(value) for value in history[f"refine/{name}"]):
            raise DataError(
                f"fit_refiner: no row has {name!r}, so that its refiner learnt nothing; expected "
                "some; give rows that have it, or leave it out: modalities=[…]"
            )


def _specs(model: MultimodalModel, refiner: Any, modalities: Names) -> dict[str, Any]:
    """The refiner of each modality."""
    by_modality = isinstance(refiner, Mapping) and "name" not in refiner
    if by_modality:
        every = names_of(modalities, tuple(refiner))
    elif modalities is None:
        every = _refinable(model)
    else:
        every = names_of(modalities, model.names)
    specs = {}
    for name in every:
        sizes_for(model, name)  # which says what cannot be
        if by_modality and name not in refiner:
            raise RequestError(
                f"fit_refiner: no refiner is given for {name!r}; expected {{modality: refiner}} "
                "with each of modalities="
            )
        specs[name] = as_part("refiner", refiner[name] if by_modality else refiner)
    if not specs:
        raise RequestError("fit_refiner: no modality to refine; expected one at least")
    return specs


def _refinable(model: MultimodalModel) -> tuple[str, ...]:
    """All modalities that can be refined.

    Raises:
        RequestError: there is none.
    """
    names = []
    for name in model.names:
        try:
            sizes_for(model, name)
        except RequestError as error:
            refusal = error
            continue
        names.append(name)
    if not names:
        raise refusal
    return tuple(names)
