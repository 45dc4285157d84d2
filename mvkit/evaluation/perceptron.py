"""A perceptron that is fitted on rows: a judge of classes, whose hidden layer has features.

Axes: b rows, f hidden units.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import attrs
import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from mvkit.core.raw_values import full_precision

if TYPE_CHECKING:
    from sklearn.neural_network import MLPClassifier


@attrs.frozen(eq=False)
class Perceptron:
    """A fitted classifier with one hidden layer.

    Args:
        network: scikit-learn's.
    """

    network: MLPClassifier

    def __call__(self, x: Tensor) -> NDArray[np.int64]:
        """Class indices (b,) of values (b, *shape)."""
        classes: NDArray[np.int64] = self.network.predict(_flat(x))
        return classes

    def hidden(self, x: Tensor) -> NDArray[np.float32]:
        """What the hidden layer says of values (b, *shape), (b, f): features of the classes."""
        weight, bias = self.network.coefs_[0], self.network.intercepts_[0]
        units: NDArray[np.float32] = np.maximum(_flat(x) @ weight + bias, 0)
        return units


def fit_perceptron(
    x: Tensor, labels: Tensor, *, hidden: int = 256, passes: int = 25, seed: int = 0
) -> Perceptron:
    """A perceptron with one hidden layer, from (b, *shape) to class indices (b,), fitted on rows.

    Args:
        x: values (b, *shape).
        labels: class indices (b,).
        hidden: width of the hidden layer.
        passes: passes over the rows, after which it stops whether or not it has converged.
        seed: of its weights and batches.
    """
    from sklearn.neural_network import MLPClassifier

    network = MLPClassifier((hidden,), max_iter=passes, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it may not have converged
        network.fit(_flat(x), labels.numpy())
    return Perceptron(network)


def _flat(x: Tensor) -> NDArray[np.float32]:
    return rearrange(full_precision(x), "b ... -> b (...)").cpu().numpy()
