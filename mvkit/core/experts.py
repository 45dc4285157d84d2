"""Unimodal evidence: what the encoders make of the observed rows of a batch.

Axes: b rows, n of these rows, m modalities, w encoder width, d latent, p private latent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import cached_property

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mvkit.core.batch import Batch
from mvkit.core.batch_checks import check_conformed
from mvkit.core.family import Family
from mvkit.core.modality import Modality
from mvkit.core.noise import Generator
from mvkit.core.posterior import Posterior
from mvkit.core.product_of_experts import SomeExperts
from mvkit.errors import RequestError, ShapeError


class Experts:
    """Encoder outputs for a batch, computed when first asked for and then kept.

    A part that never looks (the joint encoder on complete rows) costs nothing. Unobserved rows
    hold zeros.

    Args:
        encoders: modality to network, rows in, `width + 2 p` numbers out.
        modalities: what they encode.
        batch: a conformed batch.
        family: what turns raw numbers into scales.
        width: numbers for the aggregator, w.
        training: whether parts behave as in training (dropout, subsets drawn).
        context: what encoders see of the covariates, (b, c); None: nothing.
        generator: source of randomness of everything computed from these experts.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, aggregator="moe", seed=0)
        >>> batch = model.conform({"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)})
        >>> model.experts(batch).loc.shape  # (m, b, d)
        torch.Size([2, 4, 2])
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        modalities: Mapping[str, Modality],
        batch: Batch,
        *,
        family: Family,
        width: int,
        training: bool,
        context: Tensor | None = None,
        generator: Generator = None,
    ) -> None:
        check_conformed(batch, "experts")
        self.encoders = encoders
        self.modalities = modalities
        self.batch = batch
        self.family = family
        self.width = width
        self.training = training
        self.context = context
        self.generator = generator
        self.dtype = next(iter(batch.data.values())).dtype
        self._encoded: dict[str, Tensor] = {}
        self._joint_posterior: Posterior | None = None

    def given(self, batch: Batch) -> Experts:
        """The experts of a batch that `hide` made of this one's; no modality is encoded twice."""
        experts = self._of(batch, self.context)
        experts._encoded = self._encoded
        return experts

    def part(self, kept: Tensor) -> Experts:
        """The experts of a part of what rows have, (b, m) bool; no modality is encoded twice."""
        experts = self._of(self.batch.keeping(kept), self.context)
        for m, (name, output) in enumerate(self.outputs.items()):
            experts._encoded[name] = torch.where(kept[:, m : m + 1], output, 0.0)
        return experts

    def take(self, index: Tensor) -> Experts:
        """The experts of the rows at `index` (n,) alone."""
        return self._of(self.batch.take(index), self.context_of(index))

    def context_of(self, index: Tensor | None) -> Tensor | None:
        """What encoders see of the covariates of the rows at `index` (n,), (n, c); None: all."""
        if self.context is None or index is None:
            return self.context
        return self.context.index_select(0, index)

    def _of(self, batch: Batch, context: Tensor | None) -> Experts:
        return Experts(
            self.encoders,
            self.modalities,
            batch,
            family=self.family,
            width=self.width,
            training=self.training,
            context=context,
            generator=self.generator,
        )

    def joint_posterior(self, fuse: Callable[[Experts, Batch], Posterior]) -> Posterior:
        """The posterior that an aggregator makes of them, computed once."""
        if self._joint_posterior is None:
            self._joint_posterior = fuse(self, self.batch)
        return self._joint_posterior

    @property
    def encodes_all_rows(self) -> bool:
        """Whether every row is encoded anyway, by earlier terms or for private latents."""
        private = any(modality.private_dim for modality in self.modalities.values())
        return bool(self._encoded) or private

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        """Everything the encoders emit, {name: (b, w + 2 p)}."""
        return self._outputs(self.modalities)

    def _outputs(self, names: Iterable[str]) -> dict[str, Tensor]:
        """What some encoders emit; zeros for modalities that nobody looks at."""
        computed = self.batch.computed()
        outputs = {}
        for name in names:
            total = self.width + 2 * self.modalities[name].private_dim
            if name not in computed:
                outputs[name] = self.batch.data[name].new_zeros(len(self.batch.observed), total)
                continue
            if name not in self._encoded:
                self._encoded[name] = self._encode(name, computed[name], total)
            outputs[name] = self._encoded[name]
        return outputs

    def _encode(self, name: str, rows: Tensor | None, total: int) -> Tensor:
        """What an encoder emits, (b, total), zeros but at indices `rows` (n,); None: all rows."""
        x = self.batch.data[name]
        modality = self.modalities[name]
        log1p = modality.input == "log1p"
        if modality.indicator or log1p:
            inputs = self.batch.inputs(name, rows, indicator=modality.indicator, log1p=log1p)
        else:
            inputs = x if rows is None else x.index_select(0, rows)
        lacking = not self.batch.seen_by_all(name)
        if rows is None and lacking:
            check_rows_apart(self.encoders[name], f"encoders.{name}")
        output = on_rows(self.encoders[name], inputs, self.context_of(rows))
        n = inputs.shape[0]  # len() would fix the number of rows of an export
        if output.ndim != 2 or output.shape[0] != n or output.shape[1] != total:
            raise ShapeError(
                f"encoders.{name}: emitted {tuple(output.shape)} for {tuple(inputs.shape)}; "
                f"expected {(len(inputs), total)}: {self.width} numbers for the aggregator and "
                f"{total - self.width} for the private latent"
            )
        if rows is not None:
            return output.new_zeros(len(x), total).index_copy(0, rows, output)
        if lacking:
            i = list(self.batch.data).index(name)
            return torch.where(self.batch.observed[:, i : i + 1], output, 0.0)
        return output

    @cached_property
    def stats(self) -> Tensor:
        """The numbers for the aggregator, (m, b, w)."""
        return torch.stack([output[:, : self.width] for output in self.outputs.values()])

    @cached_property
    def _located(self) -> tuple[Tensor, Tensor]:
        loc, raw = self.stats.chunk(2, dim=-1)
        return loc, self.family.scale(raw)

    @property
    def loc(self) -> Tensor:
        """Locations of the unimodal experts, (m, b, d)."""
        return self._located[0]

    @property
    def scale(self) -> Tensor:
        """Scales of the unimodal experts, (m, b, d)."""
        return self._located[1]

    @property
    def shown(self) -> list[int]:
        """Indices of the modalities that are not hidden."""
        hidden = self.batch.hidden
        return [i for i, name in enumerate(self.modalities) if name not in hidden]

    def only(self, which: list[int]) -> SomeExperts:
        """The experts at `which`, without stacking the others."""
        names = list(self.modalities)
        outputs = self._outputs([names[i] for i in which])
        stats = torch.stack([output[:, : self.width] for output in outputs.values()])
        loc, raw = stats.chunk(2, dim=-1)
        return SomeExperts(loc, self.family.scale(raw))

    @cached_property
    def private(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Private experts q(w_m|x_m): {name: (loc (b, p), scale (b, p))}."""
        experts = {}
        for name, modality in self.modalities.items():
            if modality.private_dim:
                loc, raw = self.outputs[name][:, self.width :].chunk(2, dim=-1)
                experts[name] = (loc, self.family.scale(raw))
        return experts

    def forget_unseen(self) -> None:
        """Makes private experts the prior N(0, I) in rows that do not observe their modality.

        For objectives that reconstruct what the encoders do not see; elsewhere nobody looks there.
        """
        for i, (name, (loc, scale)) in enumerate(self.private.items()):
            seen = rearrange(self.batch.observed[:, i], "b -> b 1")
            self.private[name] = (torch.where(seen, loc, 0.0), torch.where(seen, scale, 1.0))


_network_dtype: ContextVar[torch.dtype | None] = ContextVar("network_dtype", default=None)


@contextlib.contextmanager
def low_precision(dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, networks compute in `dtype` under autocast.

    Their outputs are cast back, so that densities keep their own dtype.
    """
    token = _network_dtype.set(dtype)
    try:
        yield
    finally:
        _network_dtype.reset(token)


def on_rows(module: nn.Module, rows: Tensor, context: Tensor | None = None) -> Tensor:
    """The output of a module for rows (n, *shape), n = 0 too, and their context (n, c).

    Without rows it sees a row of zeros, which is cut off and contributes no gradient. Batch norm,
    which needs two rows at least to train on, takes its running statistics for fewer.

    Example:
        >>> import torch
        >>> from mvkit.core import on_rows
        >>> on_rows(torch.nn.Linear(3, 2), torch.zeros(0, 3)).shape
        torch.Size([0, 2])
    """
    shown = [values for values in (rows, context) if values is not None]
    n = rows.shape[0]  # len() would fix the number of rows of an export
    if not n:
        shown = [values.new_zeros(1, *values.shape[1:]) for values in shown]
    few = module.training and n < 2
    with _running_statistics(module) if few else contextlib.nullcontext():
        output = _output(module, shown)
    return output if n else output[:0]


def _output(module: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """What a module emits for one row or more, (n, *shape), in their dtype."""
    dtype = _network_dtype.get()
    if dtype is None:
        output: Tensor = module(*inputs)
        return output
    rows = inputs[0]
    with torch.autocast(rows.device.type, dtype):
        output = module(*inputs)
    return output.to(rows.dtype)


def check_rows_apart(module: nn.Module, where: str) -> None:
    """Raises RequestError if a module takes statistics over rows, of which some are not there.

    Args:
        module: what computes all rows of a dense batch.
        where: its name, which begins the message.
    """
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.training:
            raise RequestError(
                f"{where}: {type(layer).__name__} takes statistics over all rows of a batch, and "
                "rows of a dense batch may lack this modality; expected layers that see rows one "
                "by one; take another normalisation, such as LayerNorm, or a batch that is not "
                "dense"
            )


@contextlib.contextmanager
def _running_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, batch norm uses its running statistics, and leaves them as they are."""
    training = []
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.training:
            training.append(layer.train(False))
    try:
        yield
    finally:
        for layer in training:
            layer.train()
