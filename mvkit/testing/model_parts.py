"""Checks of parts of models, inside tiny float64 models with every pattern of gaps.

Axes: k components, b rows, m modalities, d latent.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, cast

import attrs
import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck

from mvkit.core.batch import Batch
from mvkit.core.decoder import Decoder
from mvkit.core.modality import Modality, Sizes
from mvkit.core.noise import seeded
from mvkit.errors import SpecError
from mvkit.models import part_checks, trial_values
from mvkit.models.model import Model
from mvkit.models.part_checks import Fault, expect
from mvkit.parts.networks import Network
from mvkit.registry.spec import as_part
from mvkit.testing import missingness_checks, tiny_models
from mvkit.testing.coupled_rows import check_coupling
from mvkit.testing.injected_noise import bound_noise, noise
from mvkit.testing.tiny_models import NAMES, Options, loss_and_gradients

Checks = dict[str, Callable[[str, Any], None]]  # by name; each takes the kind and the part
Pattern = tuple[bool, ...]
WHOLE_MODEL = ("aggregator", "prior", "objective", "family", "missingness")
PERMUTED = ("c", "a", "b")
SETTINGS: tuple[Options, ...] = (
    {},
    {"aggregator": "moe", "prior": "mog", "objective": {"name": "iwae", "samples": 2}},
    {"aggregator": "mopoe", "prior": "learnable"},
)
SHAPES = ((3,), (8,), (1, 8, 8))
ROWS = ((3,), (2,))  # shapes that likelihoods are tried with
PARAMETERS = {  # where a model keeps those of a part
    "network": ("encoders.a.", "decoders.a.network."),
    "likelihood": ("decoders.a.likelihood.",),
    "objective": ("objectives.",),
}


def tiny_model(kind: str, part: object, setting: Options, names: tuple[str, ...] = NAMES) -> Model:
    """A tiny model in float64 with the part in its place."""
    options = dict(setting)
    if kind in WHOLE_MODEL:
        options[kind] = part
    if kind == "missingness":  # which needs draws with gradients
        options["likelihood"] = "normal"
    return tiny_models.model(**options, private=1, names=names, first=first_options(kind, part))


def first_options(kind: str, part: object) -> Options:
    """Options of modality `a` that put a likelihood or networks in their place."""
    if kind == "likelihood":
        return {"shape": _shape_of_rows(part), "likelihood": part}
    if kind == "network":
        shape = _shape_for(cast(Network, part))
        return {"shape": shape, "encoder": part, "decoder": part}
    return {}


def _shape_of_rows(part: Any) -> tuple[int, ...]:
    """The first shape of rows that a likelihood can be built for; the first if there is none."""
    around = tiny_models.surroundings()
    if "a" in around.shapes:
        return around.shape("a")
    for shape in ROWS:
        with contextlib.suppress(SpecError):
            part.build(Sizes.alone(Modality(shape, part)))
            return shape
    return ROWS[0]


def _shape_for(part: Network) -> tuple[int, ...]:
    """The first shape that networks can be built for; the last if there is none."""
    around = tiny_models.surroundings()
    if "a" in around.shapes:
        return around.shape("a")
    for shape in SHAPES[:-1]:
        with contextlib.suppress(SpecError), torch.random.fork_rng(devices=[]):
            part.encoder(shape, 5)
            part.decoder(5, shape)
            return shape
    return SHAPES[-1]


def models(kind: str, part: object) -> Iterator[tuple[Options, Model]]:
    """The part beside built-in ones, except those that it refuses; one must be left.

    Companions that were asked for take their place, and there is one model alone.
    """
    refusals = []
    settings = ({},) if tiny_models.surroundings().companions else SETTINGS
    for setting in settings:
        try:
            model = tiny_model(kind, part, setting)
        except SpecError as error:
            refusals.append(error)
        else:
            yield setting, model
    if len(refusals) == len(settings):
        raise Fault(
            f"goes with no built-in parts: {refusals[-1]}; expected at least one combination"
        )


def rows(model: Model, pattern: Pattern | None = None, b: int = 8) -> Batch:
    """Rows with every pattern of observed modalities in turn, or with one pattern only."""
    batch = tiny_models.rows(b)
    likelihood = cast(Decoder, model.decoders["a"]).likelihood
    shape = (len(batch), *model.modalities["a"].shape)
    values = trial_values.supported_values(likelihood, shape, torch.float64)
    if values is None:
        raise Fault(
            "takes none of normal, uniform, count and one-hot values; expected one of them"
        )
    mask = batch.mask if pattern is None else torch.tensor([pattern] * len(batch))
    return attrs.evolve(batch, data={**batch.data, "a": values}, mask=mask)


def shapes(kind: str, part: Any) -> None:
    """The checks that a model makes of parts from packages, and a loss of the right shape."""
    modalities = tiny_models.modalities(1, first=first_options(kind, part))
    sizes = _sizes(kind, part, modalities)
    match kind:
        case "family":
            part_checks.family(part)
        case "network":
            part_checks.network(part, modalities["a"])
        case "likelihood":
            live = part.build(attrs.evolve(sizes, name="a"))
            part_checks.likelihood(live, modalities["a"].shape)
        case "aggregator":
            part_checks.aggregator(part.build(sizes), sizes)
        case "prior":
            part_checks.prior(part.build(sizes), sizes)
        case "missingness":
            part_checks.missingness(part.build(sizes), sizes)
    for _, model in models(kind, part):
        model.loss(rows(model))


def _sizes(kind: str, part: Any, modalities: dict[str, Modality]) -> Sizes:
    """What the part is told when it is built beside its companions."""
    around = tiny_models.surroundings()
    specs = {"family": "normal", **around.of_model, kind: part}
    family = as_part("family", specs["family"]).build(None)
    prior = as_part("prior", specs["prior"]) if "prior" in specs else None
    sizes = Sizes(around.latent_dim, family, modalities, prior)
    if prior is None or kind == "prior":
        return sizes
    return attrs.evolve(sizes, live_prior=prior.build(sizes))


def masks(kind: str, part: object) -> None:
    """Finite answers whatever is observed; no evidence, and no weight, from what is not."""
    for setting, model in models(kind, part):
        _check_masked(model, rows(model), "mixed patterns")
        if setting:
            continue
        for pattern in tiny_models.patterns(len(NAMES)):
            observed = ", ".join(itertools.compress(NAMES, pattern))
            _check_masked(model, rows(model, pattern), observed)


def _answers(model: Model, batch: Batch) -> dict[str, Tensor]:
    """What users ask of a model, by name."""
    loss = model.loss(batch).loss
    return {"loss": loss, "encode": model.encode(batch), **model.translate(batch)}


def _check_masked(model: Model, batch: Batch, observed: str) -> None:
    for name, values in _answers(model, batch).items():
        expect(
            torch.isfinite(values).all(),
            f"returned {name} that is not finite where rows observe {observed}; expected finite "
            "numbers",
        )
    posterior = model.posterior(batch)
    if posterior.evidence is None:
        return
    has_weight = rearrange(posterior.log_weight.detach() > -torch.inf, "k b -> k b 1")
    used = posterior.evidence & has_weight
    expect(
        not (used & ~batch.observed).any(),
        f"used modalities that rows lack where they observe {observed}; expected weight 0",
    )


def fillers(kind: str, part: object) -> None:
    """Whatever is stored in unobserved places changes no bit of loss, codes or gradients."""
    for _, model in models(kind, part):
        batch = rows(model)
        expected = _outcome(model, batch)
        for value in (torch.nan, torch.inf, 1e6):
            outcome = _outcome(model, tiny_models.fillers(batch, value))
            for name, values in expected.items():
                expect(
                    torch.equal(values, outcome[name]),
                    f"changed {name} where fillers are {value}; expected the same bits",
                )


def _outcome(model: Model, batch: Batch) -> dict[str, Tensor]:
    """Loss, codes and gradients by name; an empty tensor where a gradient is missing."""
    loss, gradients = loss_and_gradients(model, batch)
    outcome = {"loss": loss.loss, "codes": model.encode(batch)}
    for name, gradient in gradients.items():
        outcome[f"gradient of {name}"] = torch.empty(0) if gradient is None else gradient
    return outcome


def gradients(kind: str, part: object) -> None:
    """Every parameter of the part has a gradient, and every gradient of the model is finite."""
    own = PARAMETERS.get(kind, (f"{kind}.",))
    for _, model in models(kind, part):
        _, by_name = loss_and_gradients(model, rows(model))
        for name, gradient in by_name.items():
            expect(
                gradient is not None or not name.startswith(own),
                f"has a parameter {name} that no gradient reaches; expected one for each",
            )
            expect(
                gradient is None or torch.isfinite(gradient).all(),
                f"made the gradient of {name} not finite; expected finite numbers",
            )
        expect(
            any(gradient is not None and gradient.any() for gradient in by_name.values()),
            "returned a loss without gradient; expected one that trains something",
        )


def saved(kind: str, part: object) -> None:
    """A model with it comes back from a file: the same specs, weights and codes."""
    for _, model in models(kind, part):
        again = tiny_models.reloaded(model)
        expect(
            again.header() == model.header(),
            f"was loaded as {again.header()}; expected {model.header()}",
        )
        batch = rows(model)
        expect(
            torch.equal(model.encode(batch), again.encode(batch)),
            "returned other codes after save and load; expected the same bits; register tensors "
            "as buffers",
        )


def determinism(kind: str, part: object) -> None:
    """Weights follow the seed, draws the generator; the global generator is left alone."""
    for setting, model in models(kind, part):
        before = torch.get_rng_state()
        twin = tiny_model(kind, part, setting).state_dict()
        for name, weight in model.state_dict().items():
            expect(
                torch.equal(weight, twin[name]),
                f"drew {name} anew for the same seed; expected the same initial weights",
            )
        batch = rows(model)
        loss = model.loss(batch, generator=seeded(1)).loss
        expect(
            torch.equal(loss, model.loss(batch, generator=seeded(1)).loss),
            "returned two losses for one generator; expected all draws from `experts.generator`",
        )
        expect(
            torch.equal(before, torch.get_rng_state()),
            "drew from torch's global generator; expected the generator that it is given",
        )


def _close(values: Tensor, expected: Tensor) -> bool:
    return torch.allclose(values, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


def permuted_rows(kind: str, part: object) -> None:
    """Rows are independent: permuting them permutes the bounds; one alone keeps its code."""
    order = [3, 1, 7, 0, 5, 2, 6, 4]
    for _, model in models(kind, part):
        batch = rows(model)
        loss, _ = loss_and_gradients(model, batch)
        permuted, _ = loss_and_gradients(model, batch.take(order), ids=order)
        expect(
            _close(permuted.bound, loss.bound[order]),
            "returned other bounds when the batch was permuted; expected those of each row",
        )
        codes = model.encode(batch)
        alone = torch.cat([model.encode(batch.take([i])) for i in range(3)])
        expect(
            _close(alone, codes[:3]),
            "returned another code for a row alone than in a batch; expected independent rows",
        )


def permuted_modalities(kind: str, part: object) -> None:
    """Declaring the modalities in another order, with the same weights, changes no number."""
    columns = [NAMES.index(name) for name in PERMUTED]
    for setting, model in models(kind, part):
        permuted = tiny_model(kind, part, setting, PERMUTED)
        permuted.load_state_dict(model.state_dict())
        batch = rows(model)
        loss, _ = loss_and_gradients(model, batch)
        other, _ = loss_and_gradients(permuted, Batch(batch.data, batch.observed[:, columns]))
        expect(
            _close(other.bound, loss.bound),
            "returned other bounds for modalities declared in another order; expected the same",
        )


def precision(kind: str, part: object) -> None:
    """Results in the model's dtype; gradients (of the elbo) that finite differences confirm."""
    for setting, model in models(kind, part):
        batch = rows(model)
        if not setting and "objective" not in (kind, *tiny_models.surroundings().companions):
            _check_gradient(model, batch)
        for dtype in (torch.float64, torch.float32):
            model.to(dtype)
            for name, values in _answers(model, batch).items():
                expect(
                    values.dtype == dtype,
                    f"returned {name} in {values.dtype} in a model of {dtype}; expected {dtype}",
                )


def _check_gradient(model: Model, batch: Batch) -> None:
    """Compares gradients with central differences, where rounding to float32 shows."""
    with noise(bound_noise(range(len(batch)), NAMES)):
        try:
            gradcheck(
                lambda *_: model.loss(batch).loss,
                tuple(model.parameters()),
                check_undefined_grad=False,
                fast_mode=True,
            )
        except GradcheckError as error:
            raise Fault(
                f"has other gradients than by differences in float64: {error}; expected the same; "
                "keep the dtype of what comes in, and check custom gradients"
            ) from None


def coupling(kind: str, part: object) -> None:
    """Rows are coupled if the objective says so, and then across the shares of processes."""
    for setting, model in models(kind, part):
        if not setting:  # components that are drawn depend on the rows beside
            check_coupling(model, rows(model))


_EVERY: Checks = {
    "shapes": shapes,
    "masks": masks,
    "determinism": determinism,
    "gradients": gradients,
    "fillers": fillers,
    "save": saved,
    "rows": permuted_rows,
    "modalities": permuted_modalities,
    "precision": precision,
}
CHECKS = dict.fromkeys((*WHOLE_MODEL, "likelihood", "network"), _EVERY)
CHECKS["missingness"] = {**_EVERY, "patterns": missingness_checks.patterns}
CHECKS["objective"] = {**_EVERY, "coupling": coupling}
