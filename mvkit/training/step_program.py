"""Programs of a step: loss and gradients of a dense batch as one graph of tensor operations.

Axes: b rows.

A step of one kind of batch is traced once, forward and backward. Noise is drawn beside the graph,
by the generator and in the order of a step that is not traced, so that losses are the same to
rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from mvkit.core.batch import Batch
from mvkit.core.loss import Loss
from mvkit.errors import RequestError

Call = tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]
LossOf = Callable[[Batch, torch.Generator], Loss]
FIELDS = ("data", "elements", "extra", "covariates", "exposure")


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch by place, such as `data/a`."""
    tensors = {"mask": batch.observed}
    if batch.row_weight is not None:
        tensors["row_weight"] = batch.row_weight
    for field in FIELDS:
        for name, value in (getattr(batch, field) or {}).items():
            if isinstance(value, Tensor):
                tensors[f"{field}/{name}"] = value
    return tensors


def with_tensors(batch: Batch, tensors: Mapping[str, Tensor]) -> Batch:
    """The batch with other tensors by place, and nothing else known of its rows."""
    changed: dict[str, Any] = {"mask": tensors["mask"], "row_weight": tensors.get("row_weight")}
    for field in FIELDS:
        prefix = f"{field}/"
        values = {
            place.removeprefix(prefix): value
            for place, value in tensors.items()
            if place.startswith(prefix)
        }
        changed[field] = values if field != "elements" else values or None
    return attrs.evolve(batch, **changed)


def kind_of(batch: Batch) -> tuple[object, ...]:
    """What decides the graph of a step: shapes, and what is known of a batch without a look."""
    shapes = [(place, x.shape, x.dtype, x.device) for place, x in tensors_of(batch).items()]
    return (*shapes, batch.may_lack, batch.hidden, batch.complete)


class _Draws(TorchDispatchMode):
    """Notes each operation that draws by a generator, or hands out draws in its place.

    Args:
        given: the draws, in their order; None: operations draw, and are noted in `calls`.
    """

    def __init__(self, given: Sequence[Tensor] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.given = None if given is None else list(given)
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values())):
            return func(*args, **kwargs)
        if self.given is not None:
            return self.given.pop(0)
        if any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
            raise RequestError(
                f"fit: compile='step': {func} draws by values that the step computes; expected "
                "noise of a fixed law, such as that of the family 'normal', which is drawn beside "
                "a compiled step; take compile=True, or leave it out"
            )
        self.calls.append((func, args, kwargs))
        return func(*args, **kwargs)


@attrs.frozen(eq=False)
class StepProgram:
    """The graph of a step, which is called with parameters, buffers, a batch and noise.

    Args:
        graph: from tensors to the loss (), gradients, and the table of metrics (2, n).
        calls: what draws its noise.
        parameters, buffers: of the model, by name, which the graph reads and, buffers, writes.
        names: of the parameters that have a gradient.
        metrics: names of the metrics; `counted`: of those with a count of their own.
        trains: whether the objective has a gradient.
    """

    graph: GraphModule
    calls: list[Call]
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    names: list[str]
    metrics: list[str]
    counted: list[str]
    trains: bool

    @classmethod
    def traced(
        cls, model: nn.Module, loss_of: LossOf, batch: Batch, generator: torch.Generator
    ) -> StepProgram:
        """The program of a model's loss of batches like one, whose state it leaves as it is.

        Args:
            model: in training mode.
            loss_of: the loss of a batch, by this model.
            batch: one of the batches; its shapes are those of the program.
            generator: source of the noise.
        """
        parameters = dict(model.named_parameters())
        buffers = dict(model.named_buffers())
        values = {name: parameter.detach() for name, parameter in parameters.items()}
        trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
        template = attrs.evolve(batch, extra={})
        facts: dict[str, Any] = {}

        def step(
            values: dict[str, Tensor],
            buffers: dict[str, Tensor],
            tensors: dict[str, Tensor],
            draws: list[Tensor],
        ) -> tuple[Tensor, list[Tensor], Tensor]:
            leaves = {}
            for name, value in values.items():
                leaves[name] = value.detach().requires_grad_(name in trained)
            rows = with_tensors(template, tensors)
            with _swapped(model, leaves | buffers), _Draws(draws):
                loss = loss_of(rows, generator)
            return _outputs(loss, leaves, trained, facts)

        tensors = tensors_of(batch)
        with _put_back(buffers, generator):
            with _Draws() as recorded, torch.no_grad():
                loss_of(with_tensors(template, tensors), generator)
            draws = [func(*args, **kwargs) for func, args, kwargs in recorded.calls]
            graph = make_fx(step)(values, buffers, tensors, draws)
        return cls(graph, recorded.calls, values, buffers, **facts)

    def draws(self) -> list[Tensor]:
        """The noise of a step, drawn as a step that is not traced does."""
        return [func(*args, **kwargs) for func, args, kwargs in self.calls]


@contextlib.contextmanager
def _swapped(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, a model has other parameters and buffers, by name, wherever it holds them.

    `torch.func.functional_call` does not put back those of a module that stands in two places.
    """
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    other = {id(value): values[name] for name, value in own.items()}
    places = []
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            places += [(held, key, value) for key, value in held.items() if value is not None]
    for held, key, value in places:
        held[key] = other[id(value)]  # type: ignore[assignment]
    try:
        yield
    finally:
        for held, key, value in places:
            held[key] = value  # type: ignore[assignment]


def _outputs(
    loss: Loss, leaves: Mapping[str, Tensor], trained: Sequence[str], facts: dict[str, Any]
) -> tuple[Tensor, list[Tensor], Tensor]:
    """What a graph returns: the loss, its gradients, and metrics above counts, (2, n).

    Args:
        loss: of the batch.
        leaves: parameters by name.
        trained: those with a gradient, if the loss depends on them.
        facts: gets what else is known of the outputs.
    """
    wanted = [leaves[name] for name in trained]
    gradients: Sequence[Tensor | None] = [None] * len(wanted)
    if loss.loss.requires_grad:
        gradients = torch.autograd.grad(loss.loss, wanted, allow_unused=True)
    by_name = zip(trained, gradients, strict=True)
    some = {name: gradient for name, gradient in by_name if gradient is not None}
    means = [value.detach().double() for value in loss.metrics.values()]
    counts = []
    for name, mean in zip(loss.metrics, means, strict=True):
        count = loss.counts.get(name)
        counts.append(torch.zeros_like(mean) if count is None else count.double())
    facts["names"] = list(some)
    facts["metrics"] = list(loss.metrics)
    facts["counted"] = [name for name in loss.metrics if name in loss.counts]
    facts["trains"] = loss.loss.requires_grad and loss.trains
    table = torch.stack([torch.stack(means), torch.stack(counts)])
    return loss.loss.detach(), list(some.values()), table


@contextlib.contextmanager
def _put_back(buffers: Mapping[str, Tensor], generator: torch.Generator) -> Iterator[None]:
    """Puts back buffers and generators, as they were before what is inside."""
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    state = generator.get_state()
    device = generator.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    generator.set_state(state)
    for name, buffer in buffers.items():
        buffer.copy_(before[name])
