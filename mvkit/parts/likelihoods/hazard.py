"""Likelihood of times to an event, some of them censored.

Axes: r repeats of a row (samples and drawn components), n rows, t bins of time.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from mvkit.core import noise
from mvkit.core.likelihood import ALONE, Context, Likelihood
from mvkit.core.modality import Sizes
from mvkit.errors import SpecError
from mvkit.registry.spec import field, integer, spec


class HazardLikelihood(nn.Module, Likelihood):
    """Hazards in bins of time; rows are (time, event).

    Args:
        bins: how many there are.
    """

    starts = True
    support = (
        "a time of at least 0 and whether the event was seen then (1) or not until then (0), both "
        "or neither; mark both as missing where one is unknown"
    )
    edges: Tensor

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.params = bins
        self.register_buffer("edges", self._even(bins))

    @staticmethod
    def _even(bins: int) -> Tensor:
        return torch.linspace(0, 1, bins + 1)

    def log_prob(self, out: Tensor, x: Tensor, context: Context) -> Tensor:
        logits = out[..., 0, :]
        time, event = x.unbind(-1)
        bins = self._bin_of(time)
        before = _at(self._log_survival(logits), bins)
        own = _at(logits, bins.clamp(max=self.params - 1))
        inside = functional.logsigmoid(torch.where(event > 0, own, -own))
        log_p = before + torch.where(bins < self.params, inside, 0.0)
        if context.elements is not None:
            log_p = torch.where(context.elements.all(-1), log_p, 0.0)
        return torch.stack([log_p, torch.zeros_like(log_p)], -1)

    def mean(self, out: Tensor, context: Context = ALONE) -> Tensor:
        """Restricted mean time and probability of an event before the last edge."""
        log_survival = self._log_survival(out[..., 0, :])
        survival = log_survival.exp()
        halves = 0.5 * (survival[..., :-1] + survival[..., 1:])
        time = (self.edges.diff() * halves).sum(-1)
        return torch.stack([time, -torch.expm1(log_survival[..., -1])], -1)

    def sample(self, out: Tensor, context: Context = ALONE) -> Tensor:
        """Times that are even within their bin, with 1; or the last edge, with 0."""
        survival = self._log_survival(out[..., 0, :]).exp()
        uniform = noise.draw("x", survival.shape[:-1], out, generator=context.generator)
        level = rearrange(uniform, "... -> ... 1")
        bins = (survival[..., 1:] > level).sum(-1)
        event = bins < self.params
        bins = bins.clamp(max=self.params - 1)
        above = _at(survival, bins)
        smallest = torch.finfo(out.dtype).tiny
        share = (above - uniform) / (above - _at(survival, bins + 1)).clamp(min=smallest)
        start, end = self.edges[bins], self.edges[bins + 1]
        time = start + share.clamp(0, 1) * (end - start)
        return torch.stack([torch.where(event, time, self.edges[-1]), event.to(out.dtype)], -1)

    def survival(self, out: Tensor) -> Tensor:
        """Probability that nothing has happened by the end of each bin, (..., n, t).

        Args:
            out: what the decoder emits, (..., n, 2, t).
        """
        return self._log_survival(out[..., 0, :])[..., 1:].exp()

    def _bin_of(self, time: Tensor) -> Tensor:
        """The bin (start, end] of times (n,); t beyond the last edge."""
        return (self.edges[1:] < rearrange(time, "... -> ... 1")).sum(-1)

    @staticmethod
    def _log_survival(logits: Tensor) -> Tensor:
        """Log-probability to survive the first 0 … t bins, (..., n, t) -> (..., n, t + 1)."""
        return functional.pad(functional.logsigmoid(-logits).cumsum(-1), (1, 0))

    def out_of_support(self, x: Tensor) -> Tensor:
        time, event = x.unbind(-1)
        alone = torch.isnan(time) != torch.isnan(event)
        no_time = ~(torch.isfinite(time) & (time >= 0)) | alone
        no_event = ~((event == 0) | (event == 1)) | alone
        return torch.stack([no_time, no_event], -1)

    def outcomes(self, shape: tuple[int, ...]) -> Tensor:
        """An event in each bin, and none until the last edge."""
        times = 0.5 * (self.edges[1:] + self.edges[:-1])
        beyond = self.edges[-1:] + 1
        events = torch.ones_like(times)
        times = torch.cat([times, beyond])
        return torch.stack([times, functional.pad(events, (0, 1))], -1)

    def start(self, x: Tensor, observed: Tensor) -> None:
        """Edges are placed at quantiles of the times of events, the first at 0."""
        if not torch.equal(self.edges, self._even(self.params).to(self.edges)):
            return
        time, event = x.unbind(-1)
        seen = observed.all(-1)
        events = time[seen & (event > 0)]
        times = events if len(events) else time[seen]
        if not (times > 0).any():
            return
        shares = torch.linspace(0, 1, self.params + 1, dtype=torch.float64, device=x.device)
        edges = torch.quantile(times.double(), shares)
        edges[0] = 0.0
        self.edges.copy_(edges)

    def first_outputs(self, mean: Tensor, spread: Tensor) -> Tensor:
        """Decoders start where an event is as probable in each bin as beyond the last."""
        left = torch.arange(self.params, 0, -1, dtype=mean.dtype, device=mean.device)
        return torch.stack([-left.log(), torch.zeros_like(left)])


def _at(values: Tensor, bins: Tensor) -> Tensor:
    """Of values (..., n, t), those of the bins (n,) or (..., n), shaped (..., n)."""
    place = rearrange(bins, "... -> ... 1").expand(*values.shape[:-1], 1)
    return rearrange(values.gather(-1, place), "... 1 -> ...")


@spec
class Hazard:
    """Survival likelihood of rows (time, event), shape (2,), by hazards h_j in bins of time.

    An event (1) in bin T has probability h_T Π_{j<T} (1 - h_j); a row that was censored (0) in
    it, Π_{j≤T} (1 - h_j): it survived the bin. All later times count as beyond the last edge.
    Densities being elementwise, the first element holds the whole term and the second 0; rows
    need both or neither. Edges are placed by the training data at quantiles of the times of
    events, and are even on [0, 1] before that, as they stay in training on streams. The mean is
    the mean time restricted to the last edge, times being even within a bin, and the probability
    of an event by then. `survival(out)` of the live likelihood is the curve.

    Args:
        bins: how many there are, 2 at least. Decoders emit logits (2, bins), of which the first
            row counts.

    Example:
        >>> import mvkit
        >>> survival = mvkit.Modality((2,), {"name": "hazard", "bins": 8})
        >>> model = mvkit.Model({"survival": survival}, latent_dim=2, seed=0)
        >>> model.log_likelihood({"survival": [[0.3, 1.0], [0.7, 0.0]]}, n=5).shape
        torch.Size([2])

    Reference: Gensheimer and Narasimhan, A Scalable Discrete-Time Survival Model for Neural
    Networks, 2019, https://doi.org/10.7717/peerj.6257.
    """

    bins: int = field(default=20, check=integer(2))

    def build(self, sizes: Sizes) -> HazardLikelihood:
        """The likelihood with its edges."""
        if sizes.shape != (2,):
            raise SpecError(
                f"rows of shape {sizes.shape} with a hazard likelihood; expected (2,): the time, "
                "and 1 if the event was seen then, 0 if not until then; give each kind of event "
                "a modality of its own",
                "shape",
            )
        return HazardLikelihood(self.bins)
