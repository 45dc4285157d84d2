"""What the modalities of cells are: genes, proteins, peaks, and how recipes fill them in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs

from mvkit import Covariate, Model, SpecError
from mvkit.core import Modality
from mvkit.core.covariates import as_covariates
from mvkit.errors import suggest
from mvkit.parts import MLP, Bernoulli, ForegroundBackground, NegativeBinomial

Names = str | Sequence[str] | None
Hidden = Sequence[int] | None

BATCH = "batch"
PROTEINS = ("adt", "prot", "protein", "proteins")
PEAKS = ("atac", "peaks")
BY_BATCH = "feature_and_level"


def members(
    option: str, given: Names, modalities: Collection[str], usual: Collection[str]
) -> tuple[str, ...]:
    """The modalities that play a role.

    Args:
        option: what the role is called.
        given: their names; None: those that are called as is usual, in letters of any case.
        modalities: all names.
        usual: the usual names.

    Raises:
        SpecError: no such modality.
    """
    if given is None:
        return tuple(name for name in modalities if name.lower() in usual)
    names = (given,) if isinstance(given, str) else tuple(given)
    for name in names:
        if name not in modalities:
            raise SpecError(f"no modality {name!r}; {suggest(str(name), modalities)}", option)
    return names


def batch_of(batch: str | None, options: Mapping[str, Any]) -> str | None:
    """The covariate of batches: the one named, or the one called `batch` if there is one.

    Args:
        batch: its name; None: not given.
        options: of the model, `covariates` among them.

    Raises:
        SpecError: no covariate of that name has levels.
    """
    covariates = as_covariates(options.get("covariates") or {})
    with_levels = [name for name, covariate in covariates.items() if covariate.levels]
    if batch is None:
        return BATCH if BATCH in with_levels else None
    if batch not in with_levels:
        raise SpecError(
            f"no covariate {batch!r} with levels; expected one of {with_levels}; hand them over "
            "as covariates=dataset.covariates",
            "batch",
        )
    return batch


def blind_encoders(batch: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a model whose encoders do not see the batch, unless they say where it goes.

    Args:
        batch: its covariate; None: there is none.
        options: of the model, `covariates` among them.
    """
    if batch is None:
        return dict(options)
    covariates = dict(as_covariates(options["covariates"]))
    if covariates[batch].into == Covariate().into:
        covariates[batch] = attrs.evolve(covariates[batch], into=("decoders",))  # type: ignore[misc]
    return {**options, "covariates": covariates}


def negative_binomial(
    dispersion: str, batch: str | None, *, zero_inflated: bool = False
) -> NegativeBinomial:
    """The likelihood of counts of genes, with dispersions by feature, batch or cell.

    Training starts at the means of the data, where there are dispersions to place.

    Raises:
        SpecError: dispersions by batch without batches.
    """
    start = "ones" if dispersion == "decoded" else "data"
    options: dict[str, Any] = {"zero_inflated": zero_inflated, "start": start}
    if dispersion != BY_BATCH:
        return NegativeBinomial(by=dispersion, **options)
    if batch is None:
        raise SpecError(
            f"got {dispersion!r} without batches; expected a covariate of batches, or 'feature'",
            "dispersion",
        )
    return NegativeBinomial(by=dispersion, level=batch, **options)


def foreground_background(batch: str | None) -> ForegroundBackground:
    """The likelihood of proteins, with a background for each, or for each and each batch."""
    if batch is None:
        return ForegroundBackground()
    return ForegroundBackground(by=BY_BATCH, level=batch)


def counts(
    modality: Modality, likelihood: object, library: str | None, hidden: Hidden
) -> Modality:
    """A modality of counts, whose encoder sees log1p of them."""
    filled = with_networks(modality, hidden)
    return attrs.evolve(filled, likelihood=likelihood, exposure=library, input="log1p")  # type: ignore[misc]


def bits(modality: Modality, hidden: Hidden) -> Modality:
    """A modality of open and closed peaks."""
    filled = with_networks(modality, hidden)
    return attrs.evolve(filled, likelihood=Bernoulli(), exposure=None, input="values")  # type: ignore[misc]


def genes_and_peaks(
    modalities: Mapping[str, Modality],
    peaks: Names,
    likelihood: object,
    library: str | None,
    hidden: Hidden,
) -> dict[str, Modality]:
    """Modalities of which those in `peaks` are bits, and the others counts."""
    are_peaks = members("peaks", peaks, modalities, PEAKS)
    each = {}
    for name, modality in modalities.items():
        if name in are_peaks:
            each[name] = bits(modality, hidden)
        else:
            each[name] = counts(modality, likelihood, library, hidden)
    return each


def with_networks(modality: Modality, hidden: Hidden) -> Modality:
    """A modality whose networks, where they are left at their default, have these widths."""
    if hidden is None:
        return modality
    network = MLP(hidden=tuple(hidden))
    default = MLP()
    encoder = network if modality.encoder == default else modality.encoder
    decoder = network if modality.decoder == default else modality.decoder
    return attrs.evolve(modality, encoder=encoder, decoder=decoder)  # type: ignore[misc]


def model_of(
    options: Mapping[str, Any], modalities: dict[str, Modality], latent_dim: int, **own: Any
) -> Model:
    """A model with a recipe's own options and those of the user, which may not be the same.

    A schedule of the user's takes the place of the recipe's.

    Raises:
        SpecError: an option that the recipe sets.
    """
    for name in own:
        if name in options and name != "schedule":
            raise SpecError("the recipe sets it; take the recipe's own options, or Model", name)
    return Model(modalities, latent_dim=latent_dim, **{**own, **options})
