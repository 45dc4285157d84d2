"""The schedule of models of cells."""

from __future__ import annotations

from collections.abc import Mapping

from mvkit import Stage, field, spec
from mvkit.models.multimodal import MultimodalModel
from mvkit.parts import AdamW, LinearRamp, Schedule
from mvkit.registry import number, one_of
from mvkit.registry.fields import count, factor
from mvkit.training.optimizers import rates


@spec
class Warmup(Schedule):  # type: ignore[misc]
    """One stage by AdamW, in whose first epochs the factor of the KL grows from 0 to 1.

    Args:
        epochs: how many these are; 0: none.
        weight_decay: decoupled decay of the parameters. It also shrinks the weights of batches
            that lack a modality, which nothing else trains.
        lr: learning rate; None: that of `fit`.
        clip: largest norm of all gradients together; None: any.
        of: the path of what grows, from the objective's field.
        groups: learning rates of parameters by globs over their names, as of `adam`. Where there
            are few batches, dispersions want a larger one, `{"decoders.*.likelihood.*": 0.02}`:
            a step moves their logarithms by no more than the rate.

    Reference: Sønderby et al., Ladder Variational Autoencoders, 2016,
    https://arxiv.org/abs/1602.02282 (warm-up).
    """

    epochs: int = count(20, 0)
    weight_decay: float = factor(0.01)
    lr: float | None = field(default=None, check=one_of(None, other=number(above=0.0)))
    clip: float | None = field(default=None, check=one_of(None, other=number(above=0.0)))
    of: str = field(default="kl_weight", check=lambda v: None if isinstance(v, str) else "a path")
    groups: Mapping[str, float] = rates()

    def stages(self, model: MultimodalModel, epochs: int) -> list[Stage]:
        decay = self.weight_decay
        optimizer = AdamW(lr=self.lr, weight_decay=decay, groups=dict(self.groups))
        ramps = {self.of: LinearRamp(0.0, 1.0, self.epochs)} if self.epochs else {}
        return [Stage(None, epochs, optimizer=optimizer, ramps=ramps, clip=self.clip)]
