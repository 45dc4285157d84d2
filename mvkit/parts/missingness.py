"""Why values are missing: models of p(s|x) beside those of x.

Axes: s samples, j drawn components, b rows, f features, d latent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from einops import einsum
from torch import Tensor, nn
from torch.nn import functional

from mvkit.core.missingness import Missingness
from mvkit.core.modality import Sizes
from mvkit.errors import SpecError
from mvkit.parts.objectives.objective import check_names
from mvkit.registry.fields import choice
from mvkit.registry.spec import field, names, number, one_of, spec

Modalities = tuple[str, ...] | None


def explained_modalities(listed: Modalities, sizes: Sizes) -> tuple[str, ...]:
    """The modalities that an option `modalities` lists, in the model's order; None: all.

    Raises:
        SpecError: a name of no modality, or an empty list.

    Example:
        >>> from mvkit.core import Modality, Sizes
        >>> from mvkit.parts import NormalFamily, explained_modalities
        >>> sizes = Sizes(2, NormalFamily(), {"a": Modality((3,)), "b": Modality((2,))}, None)
        >>> explained_modalities(["b"], sizes)
        ('b',)
    """
    if listed is None:
        return sizes.names
    check_names(listed, sizes.names, "modalities")
    if not listed:
        raise SpecError("lists none; expected one at least, or None for all", "modalities")
    return tuple(name for name in sizes.names if name in listed)


def log_prob_of_pattern(logits: Tensor, observed: Tensor) -> Tensor:
    """Log-probability of independent flags, summed over the values of a row, (s, j, b).

    Args:
        logits: of being observed, (s, j, b, *shape).
        observed: the flags, (b, *shape) bool.

    Example:
        >>> import torch
        >>> from mvkit.parts import log_prob_of_pattern
        >>> observed = torch.tensor([[True, False]])
        >>> log_prob_of_pattern(torch.zeros(1, 1, 1, 2), observed).exp().item()  # ½ · ½
        0.25
    """
    signed = torch.where(observed, logits, -logits)
    return functional.logsigmoid(signed).flatten(3).sum(-1)


class SelfMaskingModel(nn.Module, Missingness):
    """The live part of `SelfMasking`.

    Args:
        shapes: of the modalities whose gaps it explains, by name.
        sign: `free`, `high` or `low`.
        slope: a number, or `trained`.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], sign: str, slope: float | str
    ) -> None:
        super().__init__()
        self.modalities = tuple(shapes)
        self.sign = sign
        self.fixed = None if isinstance(slope, str) else slope
        self.raw = nn.ParameterDict()  # slopes, before they are given a sign
        self.threshold = nn.ParameterDict()
        for name, shape in shapes.items():
            self.threshold[name] = nn.Parameter(torch.zeros(shape))
            if self.fixed is None:
                self.raw[name] = nn.Parameter(torch.zeros(shape))

    def slope(self, name: str) -> Tensor | float:
        """How much an increase of 1 lowers the logit of being observed, (*shape) or a number."""
        direction = -1.0 if self.sign == "low" else 1.0
        if self.fixed is not None:
            return direction * self.fixed
        raw = self.raw[name]
        return raw if self.sign == "free" else direction * functional.softplus(raw)

    def log_prob(
        self, x: Mapping[str, Tensor], observed: Mapping[str, Tensor], z: Tensor
    ) -> Tensor:
        total = z.new_zeros(z.shape[:-1])
        for name, values in x.items():
            logits = self.slope(name) * (self.threshold[name] - values)
            total = total + log_prob_of_pattern(logits, observed[name])
        return total


@spec
class SelfMasking:
    """Self-masking: each value decides whether it is missing itself, by feature.

    Logit P(observed) = -slope · (x - threshold), with a trained threshold of each feature, in the
    units that the model sees: standardise first. If the sign is not given, the data may fit either
    sign nearly as well; where it is known, say it.

    Args:
        sign: which values go missing: the `high` ones (a positive slope), the `low` ones, or
            `free`: as the data say.
        slope: `trained`, by feature; or a number for all features, for analyses of how much
            results depend on it: at least 0 where the sign is given, and 0 means at random.
        modalities: those whose gaps are explained; None: all. Their likelihoods need draws with
            gradients: `normal`, `laplace`, `student_t` or `lognormal`.

    Example:
        >>> import torch, mvkit
        >>> missingness = {"name": "self", "sign": "high"}
        >>> model = mvkit.Model({"a": (2,)}, latent_dim=1, missingness=missingness, seed=0)
        >>> model.loss({"a": torch.tensor([[0.3, float("nan")]])}).metrics["log_ps"].shape
        torch.Size([])

    Reference: Ipsen, Mattei and Frellsen, not-MIWAE: Deep Generative Modelling with Missing not at
    Random Data, 2021, https://arxiv.org/abs/2006.12871.
    """

    sign: str = choice("free", "high", "low")
    slope: float | str = field(default="trained", check=one_of("trained", other=number()))
    modalities: Modalities = field(default=None, check=one_of(None, other=names))

    def build(self, sizes: Sizes) -> SelfMaskingModel:
        """The live part, whose slopes start at 0, or at softplus(0) where the sign is given."""
        if self.sign != "free" and not isinstance(self.slope, str) and self.slope < 0:
            raise SpecError(
                f"got {self.slope} with sign={self.sign!r}; expected at least 0, or sign='free'",
                "slope",
            )
        chosen = explained_modalities(self.modalities, sizes)
        shapes = {name: sizes.modalities[name].shape for name in chosen}
        return SelfMaskingModel(shapes, self.sign, self.slope)


class LogisticMaskingModel(nn.Module, Missingness):
    """The live part of `LogisticMasking`.

    Args:
        shapes: of the modalities whose gaps it explains, by name.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.modalities = tuple(shapes)
        self.weight = nn.ParameterDict()
        self.bias = nn.ParameterDict()
        for name, shape in shapes.items():
            features = math.prod(shape)
            self.weight[name] = nn.Parameter(torch.zeros(features, features))
            self.bias[name] = nn.Parameter(torch.zeros(features))

    def log_prob(
        self, x: Mapping[str, Tensor], observed: Mapping[str, Tensor], z: Tensor
    ) -> Tensor:
        total = z.new_zeros(z.shape[:-1])
        for name, values in x.items():
            weight = cast(Tensor, self.weight[name])
            logits = einsum(values.flatten(3), weight, "s j b g, f g -> s j b f")
            flags = observed[name].flatten(1)
            total = total + log_prob_of_pattern(logits + self.bias[name], flags)
        return total


@spec
class LogisticMasking:
    """Logistic regressions: all values of a modality decide whether each of them is missing.

    Logit P(x_f observed) = bias_f + Σ_g weight_fg x_g, over all features g of the modality, f
    included. It has as many weights as there are pairs of features: for tables, not for pictures.

    Args:
        modalities: those whose gaps are explained; None: all. Their likelihoods need draws with
            gradients: `normal`, `laplace`, `student_t` or `lognormal`.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,)}, missingness="logistic", seed=0)
        >>> model.loss({"a": torch.tensor([[0.5, torch.nan, 1.0]])}).bound.shape
        torch.Size([1])

    Reference: Ipsen, Mattei and Frellsen, not-MIWAE: Deep Generative Modelling with Missing not at
    Random Data, 2021, https://arxiv.org/abs/2006.12871 (its `agnostic` model).
    """

    modalities: Modalities = field(default=None, check=one_of(None, other=names))

    def build(self, sizes: Sizes) -> LogisticMaskingModel:
        """The live part, whose weights start at 0: missing at random, one half of all."""
        chosen = explained_modalities(self.modalities, sizes)
        return LogisticMaskingModel({name: sizes.modalities[name].shape for name in chosen})
