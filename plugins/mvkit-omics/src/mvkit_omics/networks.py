"""Networks that see some of the latents.

Axes: n rows, d latent.
"""

from __future__ import annotations

from torch import Tensor, nn

from mvkit import Network, SpecError, field, spec
from mvkit.parts import MLP
from mvkit.registry.fields import count


@spec
class LastLatents(Network):
    """Fully connected networks, whose decoder sees the last latents u of z = (c, u) alone.

    So x is independent of c given u: what such a modality knows about, say the batch of a cell,
    gathers in u.

    Args:
        dims: how many latents u has.
        hidden: widths of the hidden layers, as of `mlp`.
        activation: likewise.

    Reference: He et al., Mosaic integration and knowledge transfer of single-cell multimodal data
    with MIDAS, 2024, https://doi.org/10.1038/s41587-023-02040-y.
    """

    dims: int = count(2)
    hidden: tuple[int, ...] = field(default=(16, 16))
    activation: str = field(default="relu")

    def __attrs_post_init__(self) -> None:
        self._network()  # which checks its options

    def _network(self) -> MLP:
        return MLP(hidden=self.hidden, activation=self.activation)

    def encoder(self, shape: tuple[int, ...], width: int, context: int = 0) -> nn.Module:
        return self._network().encoder(shape, width, context)

    def decoder(self, width: int, shape: tuple[int, ...], context: int = 0) -> nn.Module:
        """A module from (n, width) to (n, *shape) that looks at the last columns.

        Raises:
            SpecError: there are fewer latents.
        """
        if width < self.dims:
            raise SpecError(
                f"got {self.dims} of {width} latents; expected no more than there are", "dims"
            )
        return OfLast(self._network().decoder(self.dims, shape, context), self.dims)


class OfLast(nn.Module):
    """A network that is given the last columns of its rows.

    Args:
        network: what sees them.
        dims: how many there are.
    """

    def __init__(self, network: nn.Module, dims: int) -> None:
        super().__init__()
        self.network = network
        self.dims = dims

    def forward(self, rows: Tensor, *context: Tensor) -> Tensor:
        """Rows (n, d) and, where there is one, their context (n, c) to outputs (n, ...)."""
        output: Tensor = self.network(rows[:, -self.dims :], *context)
        return output
