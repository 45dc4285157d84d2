"""Missingness: p(s|x, z), which values of a row are observed, given all its values.

Axes: s samples, j drawn components, b rows, d latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor


class Missingness(ABC):
    """Probability of what is observed and what is not, given the values themselves.

    Without one, a model takes values to be missing at random: whether a value is missing then says
    nothing about it beyond what the rest of the row says. With one, a model is of p(x_O, s), and
    what it imputes takes into account that it was missing.

    To implement one, write a spec whose `build(sizes)` returns an object with `log_prob`: a
    `torch.nn.Module` too, if it has parameters. Set `modalities` on it: those whose gaps it
    explains. Their likelihoods need draws with gradients, such as the normal's, unless
    `looks_at_values` is False: what is missing then depends on z alone, and `x` is empty. The
    probabilities of all patterns of observed and missing values of a row sum to 1, whatever the
    values.

    Example:
        >>> import mvkit
        >>> model = mvkit.Model({"a": (3,)}, missingness="self", seed=0)
        >>> isinstance(model.missingness, mvkit.Missingness), model.missingness.modalities
        (True, ('a',))
    """

    modalities: tuple[str, ...]
    looks_at_values = True

    @abstractmethod
    def log_prob(
        self, x: Mapping[str, Tensor], observed: Mapping[str, Tensor], z: Tensor
    ) -> Tensor:
        """Log-probability of the pattern of each row, in nats, (s, j, b).

        Args:
            x: complete values in the model's units, {name: (s, j, b, *shape)}: observed ones as
                they are, the same at every draw; missing ones drawn from the decoders at z.
                Modalities that a question hides, such as those that are not `given`, are absent.
            observed: which values are observed, {name: (b, *shape)} bool; none of a modality that
                a row lacks.
            z: shared latents, (s, j, b, d).
        """
