"""What a modality is, and what parts are told of their surroundings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import attrs
from torch import Tensor, nn

from mvkit.core.covariates import Side
from mvkit.core.family import Family
from mvkit.errors import SpecError
from mvkit.registry.spec import (
    field,
    flag,
    integer,
    names,
    number,
    one_of,
    part,
    parts,
    positional_spec,
)


def _shape(value: object) -> str | None:
    if isinstance(value, tuple) and value and all(type(n) is int and n > 0 for n in value):
        return None
    return "a tuple of positive integers, such as (1, 28, 28), or (1,) for single numbers"


def _name_or_none(value: object) -> str | None:
    return None if value is None or (isinstance(value, str) and value) else "a name, or None"


def _features(value: object) -> str | None:
    expected = names(value)
    if expected is None and isinstance(value, tuple) and len(set(value)) < len(value):
        return "names that differ"
    return expected


@positional_spec
class Modality:
    """One kind of measurement: its shape, its networks, its likelihood and its place in the model.

    Args:
        shape: shape of one row; class axis last for `categorical`.
        likelihood: p(x|z): a name, a spec or a dict.
        encoder: network of q(z|x): a name, a spec, a dict, or an `nn.Module` from (n, *shape) to
            (n, width).
        decoder: network of p(x|z): likewise, or an `nn.Module` from (n, d + p) to (n, *shape),
            with one more axis at the end if the likelihood takes several numbers per element.
        weight: factor λ of its log-likelihood in objectives.
        private_dim: width p of its private latent; 0: none.
        private_beta: factor of its private KL.
        cross_prior: scale of the auxiliary prior that replaces its private posterior where it is
            generated from other modalities: `learned`, or `fixed` at 1.
        features: names of the features, (k,) values in the user's units; columns of tables are
            then matched by name.
        transform: fitted transforms from the user's units to the model's, first to last (see
            `fit_transforms` of a dataset). `shape` is the shape after them. Likelihoods and bounds
            are densities in the model's units.
        indicator: let the encoder also see, along the first axis, which elements are observed, as
            ones and zeros.
        input: what the encoder sees of values that are at least 0: the `values`, or their `log1p`.
        exposure: how much a row was exposed to what is counted: the name of one of its covariates,
            whose values s are at least 0 (a rate times it is then expected, s exp(out)), or
            `total`, the sum of its observed counts (shares of it are then expected). None: none.

    Example:
        >>> import mvkit
        >>> mvkit.Modality((10,), "categorical").likelihood
        Categorical()
    """

    shape: tuple[int, ...] = field(check=_shape)
    likelihood: Any = part("likelihood", default="normal")
    encoder: Any = part("network", default="mlp", module=True, kw_only=True)
    decoder: Any = part("network", default="mlp", module=True, kw_only=True)
    weight: float = field(default=1.0, check=number(0.0), kw_only=True)
    private_dim: int = field(default=0, check=integer(), kw_only=True)
    private_beta: float = field(default=1.0, check=number(0.0), kw_only=True)
    cross_prior: str = field(default="learned", check=one_of("learned", "fixed"), kw_only=True)
    features: tuple[str, ...] = field(default=(), check=_features, kw_only=True)
    transform: tuple[Any, ...] = parts("transform", default=(), kw_only=True)
    indicator: bool = field(default=False, check=flag, kw_only=True)
    input: str = field(default="values", check=one_of("values", "log1p"), kw_only=True, quiet=True)
    exposure: str | None = field(default=None, check=_name_or_none, kw_only=True, quiet=True)

    def __attrs_post_init__(self) -> None:
        if self.features and self.raw_shape != (len(self.features),):
            raise SpecError(
                f"{len(self.features)} names for values of shape {self.raw_shape}; expected one "
                "for each",
                "features",
            )

    @property
    def numbers(self) -> int:
        """How many numbers a row holds, d_m."""
        return math.prod(self.shape)

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Shape of a row in the user's units."""
        shape = self.shape
        for step in reversed(self.transform):
            shape = step.before(shape)
        return shape

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of what the encoder sees of a row."""
        return (2 * self.shape[0], *self.shape[1:]) if self.indicator else self.shape

    @cached_property
    def draws_bits(self) -> bool:
        """Whether its values are probabilities of bits, which are drawn in training."""
        return any(step.drawn for step in self.transform)

    def restore(self, x: Tensor) -> Tensor:
        """Values in the user's units, (..., *shape) -> (..., *raw_shape)."""
        for step in reversed(self.transform):
            x = step.inverse(x)
        return x


@attrs.frozen
class Sizes:
    """All that a part is told of its surroundings when it is built.

    Args:
        latent: width d of the shared latent.
        family: the location-scale family of the experts.
        modalities: the modalities in the model's order.
        prior: the spec of the prior.
        live_prior: the prior itself, for the parts that are built after it.
        name: the modality that a likelihood or its decoder is built for; empty for other parts.
        contexts: how many numbers of the covariates each side sees: `encoders`, `decoders` and
            the `prior`.
        levels: how many levels each covariate has, by name; 0 of numbers.
        missingness: the spec of what explains why values are missing; None: nothing does.

    Example:
        >>> from mvkit.core import Modality, Sizes
        >>> from mvkit.parts import NormalFamily
        >>> sizes = Sizes(2, NormalFamily(), {"a": Modality((3,)), "b": Modality((2,))}, None)
        >>> sizes.latent, sizes.names
        (2, ('a', 'b'))
    """

    latent: int
    family: Family
    modalities: dict[str, Modality]
    prior: object
    live_prior: Any = None
    name: str = ""
    contexts: Mapping[str, int] = attrs.field(factory=dict)
    levels: Mapping[str, int] = attrs.field(factory=dict)
    missingness: object = None

    @classmethod
    def alone(cls, modality: Modality) -> Sizes:
        """What a likelihood is told that is looked at outside a model."""
        nothing: Any = None
        return cls(0, nothing, {"x": modality}, nothing, name="x")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a row of the modality that a likelihood is built for."""
        return self.modalities[self.name].shape

    def context(self, side: Side) -> int:
        """How many numbers of the covariates a side sees."""
        return self.contexts.get(side, 0)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the modalities in order."""
        return tuple(self.modalities)

    @property
    def canonical(self) -> tuple[int, ...]:
        """Positions of the modalities sorted by name, whatever order they are declared in."""
        return tuple(sorted(range(len(self.names)), key=self.names.__getitem__))


def as_modalities(value: object) -> dict[str, Modality]:
    """A mapping from name to shape, dict or `Modality`, as checked modalities."""
    if not isinstance(value, Mapping) or not value:
        raise SpecError(
            f"got {value!r}; expected a mapping from name to shape or Modality, one at least",
            "modalities",
        )
    modalities = {}
    modules = nn.ModuleDict()
    for name, item in value.items():
        # names become module names, which may hold no dot and no name of torch's own
        if not isinstance(name, str) or not name or "." in name or hasattr(modules, name):
            raise SpecError(
                f"a modality cannot be called {name!r}: dots and attributes of torch modules are "
                "taken; rename it",
                "modalities",
            )
        try:
            modalities[name] = _as_modality(item)
        except SpecError as error:
            raise error.within(f"modalities.{name}") from None
    return modalities


def _as_modality(value: Any) -> Modality:
    if isinstance(value, Modality):
        return value
    return Modality(**value) if isinstance(value, Mapping) else Modality(value)


class PartSpec(Protocol):
    """The options of a part, from which it is built.

    Example:
        >>> from mvkit.core import Modality, PartSpec, Sizes
        >>> from mvkit.parts import NormalFamily, PoE
        >>> options: PartSpec = PoE()
        >>> options.build(Sizes(2, NormalFamily(), {"a": Modality((3,))}, None))
        PoE(prior_expert=True)
    """

    def build(self, sizes: Sizes, /) -> object:
        """The live part."""
        ...


class ScheduleSpec(Protocol):
    """The options of a schedule, which is its own live part."""

    def stages(self, model: Any, epochs: int, /) -> Sequence[object]:
        """The stages of a model, `epochs` long in all."""
        ...


ScheduleLike = str | Mapping[str, object] | ScheduleSpec
PartLike = str | Mapping[str, object] | PartSpec  # a name, a dict with `name`, or a spec
ModalityLike = Modality | Mapping[str, object] | tuple[int, ...]
