"""Steps: how the gradient of a batch is computed, operation by operation or by one program."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import attrs
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from mvkit.core.batch import Batch
from mvkit.core.loss import Loss
from mvkit.errors import RequestError
from mvkit.models.multimodal import MultimodalModel
from mvkit.parts.objectives.objective import ObjectiveLike
from mvkit.training.step_program import StepProgram, kind_of, tensors_of

Backend = Literal["traced", "inductor", "graph"]
Outputs = tuple[Tensor, list[Tensor], Tensor]
WARM_UP = 3  # runs before a graph is captured, as torch asks for


@attrs.frozen(eq=False)
class Step:
    """The loss of a batch, whose gradient can be added to the parameters'.

    Args:
        loss: of the batch, ().
        metrics, counts: as of `Loss`.
        trains: whether the objective has a gradient.
        add_gradient: adds its gradient, times a weight.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    counts: dict[str, Tensor]
    trains: bool
    add_gradient: Callable[[float | Tensor], None]


class Steps(Protocol):
    """What computes the loss of batches, and their gradients."""

    def __call__(
        self, batch: Batch, objective: ObjectiveLike, generator: torch.Generator
    ) -> Step: ...


@attrs.frozen(eq=False)
class EagerSteps:
    """Computes steps operation by operation.

    Args:
        module: returns the loss of a batch as a tuple; see `LossModule`.
    """

    module: nn.Module

    def __call__(self, batch: Batch, objective: ObjectiveLike, generator: torch.Generator) -> Step:
        loss, metrics, counts, trains = self.module(batch, objective, generator)

        def add_gradient(weight: float | Tensor) -> None:
            if loss.requires_grad:
                (loss * weight).backward()

        return Step(loss.detach(), metrics, counts, trains, add_gradient)


class ProgramSteps:
    """Computes steps of dense batches by programs, one for each kind of batch and objective.

    Args:
        model: the model to train.
        backend: `inductor`: programs are compiled by `torch.compile`; `graph`: captured in a CUDA
            graph; `traced`: run as they are.
        accumulates: whether gradients of several batches make one optimizer step.
    """

    def __init__(
        self, model: MultimodalModel, backend: Backend, *, accumulates: bool = False
    ) -> None:
        self.model = model
        self.backend = backend
        self.accumulates = accumulates
        self.parameters = dict(model.named_parameters())
        self.objective: ObjectiveLike | None = None
        self.generator: torch.Generator | None = None
        self.programs: dict[tuple[object, ...], tuple[StepProgram, Callable[..., Outputs]]] = {}

    def __call__(self, batch: Batch, objective: ObjectiveLike, generator: torch.Generator) -> Step:
        if objective != self.objective or generator is not self.generator:
            self.programs.clear()
            self.objective = objective
            self.generator = generator
        kind = kind_of(batch)
        if kind not in self.programs:
            self.programs[kind] = self._program(batch, objective, generator)
        program, run = self.programs[kind]
        with torch.no_grad():
            loss, gradients, table = run(
                program.parameters, program.buffers, tensors_of(batch), program.draws()
            )
        means, counts = table.unbind()
        metrics = dict(zip(program.metrics, means.unbind(), strict=True))
        every = dict(zip(program.metrics, counts.unbind(), strict=True))
        counted = {name: every[name] for name in program.counted}

        def add_gradient(weight: float | Tensor) -> None:
            self._add(program.names, gradients, weight)

        return Step(loss, metrics, counted, program.trains, add_gradient)

    def _program(
        self, batch: Batch, objective: ObjectiveLike, generator: torch.Generator
    ) -> tuple[StepProgram, Callable[..., Outputs]]:
        """The program of batches like one, and what runs it."""

        def loss_of(rows: Batch, source: torch.Generator) -> Loss:
            loss: Loss = self.model(rows, objective=objective, generator=source)
            return loss

        program = StepProgram.traced(self.model, loss_of, batch, generator)
        if self.backend == "inductor":
            return program, _compiled(program)
        if self.backend == "graph":
            return program, _Captured(program, batch)
        return program, program.graph

    def _add(self, names: Sequence[str], gradients: Sequence[Tensor], weight: object) -> None:
        """Adds gradients of named parameters, times a weight, to those that they have."""
        # those of a captured graph are written again by its next run
        if gradients and (self.accumulates or weight != 1):
            gradients = torch._foreach_mul(gradients, weight)  # type: ignore[call-overload]
        for name, gradient in zip(names, gradients, strict=True):
            parameter = self.parameters[name]
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad.add_(gradient)


def _compiled(program: StepProgram) -> Callable[..., Outputs]:
    """The program compiled when first run, by a compiler that must be there."""
    # layers such as Dropout draw what they would without a compiler
    compiled = torch.compile(
        program.graph, fullgraph=True, dynamic=False, options={"fallback_random": True}
    )

    def run(*arguments: Any) -> Outputs:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what torch itself compiles
                outputs: Outputs = compiled(*arguments)
        except TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            raise RequestError(
                f"fit: compile='step': torch.compile failed: {reason}; expected a working C++ "
                "compiler (g++ or clang++; Triton on CUDA); install one, or leave compile out"
            ) from error
        return outputs

    return run


class _Captured:
    """A program in a CUDA graph: one launch for all its operations.

    Args:
        program: the program.
        batch: the first batch that it is run for.
    """

    def __init__(self, program: StepProgram, batch: Batch) -> None:
        self.tensors = {place: x.clone() for place, x in tensors_of(batch).items()}
        self.draws = [draw.clone() for draw in program.draws()]
        arguments = (program.parameters, program.buffers, self.tensors, self.draws)
        buffers = {name: buffer.clone() for name, buffer in program.buffers.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(side):
            for _ in range(WARM_UP):
                program.graph(*arguments)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self.graph):
            self.outputs: Outputs = program.graph(*arguments)
        for name, buffer in program.buffers.items():
            buffer.copy_(buffers[name])

    def __call__(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        tensors: Mapping[str, Tensor],
        draws: Sequence[Tensor],
    ) -> Outputs:
        """The outputs of a run; the next one writes its gradients into the same memory."""
        _copy([*self.tensors.values(), *self.draws], [*tensors.values(), *draws])
        self.graph.replay()
        loss, gradients, table = self.outputs
        return loss.clone(), gradients, table.clone()


def _copy(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copies values into tensors of the same shapes, of one dtype in one go."""
    for dtype in {value.dtype for value in values}:
        places = [i for i, value in enumerate(values) if value.dtype == dtype]
        torch._foreach_copy_([into[i] for i in places], [values[i] for i in places])
