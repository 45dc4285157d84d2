"""An adversary that tells which modality a code comes from, and encoders that make it useless.

Axes: b own rows, c rows of all processes, m modalities, n classes (the modalities), d latent.
"""

from __future__ import annotations

import itertools

import attrs
import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from mvkit.core.all_rows import all_rows
from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.loss import Loss, over_rows
from mvkit.core.modality import Sizes
from mvkit.errors import SpecError
from mvkit.parts.latent_model import LatentModel
from mvkit.parts.objectives.composite import auxiliary_loss
from mvkit.parts.objectives.objective import Objective
from mvkit.registry.fields import choice, factor
from mvkit.registry.spec import field, spec

FLOOR = 1e-4  # of a deviation, so that codes without spread stay finite


def widths(value: object) -> str | None:
    """A check: a list of positive widths."""
    fine = isinstance(value, tuple) and all(type(width) is int and width > 0 for width in value)
    return None if fine else "a list of positive widths"


@spec
class Adversary(Objective):
    """Adversarial alignment: a critic D tells the modality m of a code z_m from q_m(z|x_m).

    Its cross-entropy is the mean over modalities of -log D_m(z_m) over the rows that observe m, so
    that a modality that is seldom observed counts as much as the others. D sees codes that are
    standardised over the batch, hence no scale hides anything from it. Weights of rows multiply
    their own terms; a row of weight 0 is in no sum.

    Args:
        side: `tell`: D learns, encoders stand still (for a stage's opponent); `fool`: the encoders
            learn to make D useless, and D stands still; `both` at once, with one optimizer.
        alpha: how much fooling counts; the default is that of benchmarks/adversary.py.
        kl_weight: a further factor of it, for ramps.
        aim: of fooling: `uniform`, the cross-entropy of D to chance, or `minimax`, the negative
            cross-entropy: `both` with `minimax` is the reversal of gradients.
        codes: `means` of the unimodal posteriors, or `draws`.
        hidden: widths of the hidden layers of D.
        penalty: times half the mean of |∇ logit_m|², of the centred logit of the right class,
            is added to what D minimises in training; it keeps the game from running in circles.

    Example:
        >>> import mvkit
        >>> from mvkit.parts import Adversary
        >>> opponent = mvkit.Opponent(Adversary(side="tell"))
        >>> stage = mvkit.Stage(Adversary(side="fool"), opponent=opponent)
        >>> stage.opponent.objective.side
        'tell'

    Reference: Ganin et al., Domain-Adversarial Training of Neural Networks, 2016,
    https://arxiv.org/abs/1505.07818; Makhzani et al., Adversarial Autoencoders, 2015,
    https://arxiv.org/abs/1511.05644; the penalty: Mescheder, Geiger and Nowozin, 2018,
    https://arxiv.org/abs/1801.04406.
    """

    side: str = choice("both", "tell", "fool")
    alpha: float = factor(10.0)
    kl_weight: float = factor()
    aim: str = choice("uniform", "minimax")
    codes: str = choice("means", "draws")
    hidden: tuple[int, ...] = field(default=(64, 64), check=widths)
    penalty: float = factor(4.0)
    couples_rows = True

    @property
    def needs_opponent(self) -> bool:  # type: ignore[override]
        return self.side == "fool"

    def build(self, sizes: Sizes) -> Adversary:
        if len(sizes.names) < 2:
            raise SpecError("objective 'adversary' tells modalities apart; expected two at least")
        if not sizes.latent:
            raise SpecError(
                "objective 'adversary' looks at shared codes, and the model has latent_dim=0; "
                "expected a shared latent; in a stack, give it to the top level"
            )
        return self

    def modules(self, sizes: Sizes) -> nn.Module:
        """The critic: codes (…, d) to logits of their modality (…, n)."""
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise([sizes.latent, *self.hidden]):
            layers += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
        last = self.hidden[-1] if self.hidden else sizes.latent
        return nn.Sequential(*layers, nn.Linear(last, len(sizes.names)))

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        critic: nn.Module = model.trained(self)
        codes = self._codes(model, batch, experts)
        share, present = balanced(_counted(batch).to(codes))
        codes = standardised(codes, share)
        weight = self.alpha * self.kl_weight
        log_d = functional.log_softmax(critic(codes.detach()), -1)
        cross_entropy = -right(log_d)
        values = torch.zeros_like(cross_entropy)
        if self.side != "fool":
            values = cross_entropy + self._penalty(critic, codes)
        if self.side != "tell":
            values = values + weight * self._fooling(critic, codes, present)
        correct = log_d.argmax(-1) == torch.arange(log_d.shape[-1], device=log_d.device)
        return _loss(batch, share, values, cross_entropy.detach(), correct)

    def _codes(self, model: LatentModel, batch: Batch, experts: Experts) -> Tensor:
        """A code of each modality, (b, m, d); zeros where it is not observed."""
        codes = []
        for posterior in model.aggregator.unimodal(experts, batch).values():
            if self.codes == "means":
                codes.append(posterior.mean)
            else:
                codes.append(posterior.rsample(1, experts.generator)[0])
        observed = rearrange(batch.observed, "b m -> b m 1")
        return torch.where(observed, torch.stack(codes, 1), 0.0)

    def _penalty(self, critic: nn.Module, codes: Tensor) -> Tensor:
        """γ/2 |∇ (logit_m - mean logit)|² at each code, (b, m); zeros outside training."""
        if not self.penalty or not torch.is_grad_enabled():
            return codes.new_zeros(codes.shape[:2])
        codes = codes.detach().requires_grad_()
        logits = critic(codes)
        total = (right(logits) - logits.mean(-1)).sum()
        (gradient,) = torch.autograd.grad(total, codes, create_graph=True)
        return self.penalty / 2 * gradient.square().sum(-1)

    def _fooling(self, critic: nn.Module, codes: Tensor, present: Tensor) -> Tensor:
        """What encoders minimise of each code, (b, m); 0 where D is at chance."""
        constants = {name: value.detach() for name, value in critic.named_parameters()}
        log_d = functional.log_softmax(functional_call(critic, constants, (codes,)), -1)
        classes = present.sum().clamp(min=1)
        chance = classes.to(codes).log()
        if self.aim == "minimax":
            return right(log_d) + chance
        return -torch.where(present, log_d, 0.0).sum(-1) / classes - chance


def right(values: Tensor) -> Tensor:
    """The value of each code's own class, (b, m, m) -> (b, m)."""
    return torch.diagonal(values, dim1=1, dim2=2)


def balanced(counted: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of codes, (b, m), by which all modalities count alike, and which there are, (m,).

    Their sum over all rows is the number of rows that count.

    Args:
        counted: which codes count, (b, m), ones and zeros.
    """
    everything, _ = all_rows(counted)
    totals = everything.sum(0)
    present = totals > 0
    rows = everything.amax(1).sum()  # those of weight 0 are as if absent
    factor = rows / (present.sum() * torch.where(present, totals, 1.0))
    return torch.where(present, counted * factor, 0.0), present


def standardised(codes: Tensor, share: Tensor) -> Tensor:
    """Codes (b, m, d) with mean 0 and deviation 1 of each latent over all rows and modalities,
    by their shares (b, m); the gradient does not pass through these numbers.
    """
    everything, _ = all_rows(codes.detach())
    shares, _ = all_rows(share)
    shares = shares / shares.sum().clamp(min=1)
    mean: Tensor = einsum(shares, everything, "c m, c m d -> d")
    variance: Tensor = einsum(shares, (everything - mean).square(), "c m, c m d -> d")
    return (codes - mean) / (variance.sqrt() + FLOOR)


def _counted(batch: Batch) -> Tensor:
    """The codes that count, (b, m) bool: those of observed modalities, in rows with weight."""
    counted = batch.observed
    if batch.row_weight is not None:
        counted = counted & rearrange(batch.row_weight > 0, "b -> b 1")
    return counted


def _loss(
    batch: Batch, share: Tensor, values: Tensor, cross_entropy: Tensor, correct: Tensor
) -> Loss:
    """The loss of values (b, m) of codes, with the share of each; and how well D tells."""
    active = (share > 0).any(1)
    means = []
    for of_codes in (cross_entropy, correct.to(cross_entropy)):
        of_rows = torch.where(share > 0, share * of_codes, 0.0).sum(1)
        means.append(of_rows)
    weight = batch.row_weight
    reported = auxiliary_loss("cross_entropy", means[0], -1.0, torch.ones_like(active), weight)
    accuracy = auxiliary_loss("told", means[1], -1.0, torch.ones_like(active), weight)
    loss = over_rows(torch.where(share > 0, share * values, 0.0).sum(1), weight)
    metrics = {**reported.metrics, "told": accuracy.metrics["told"], "loss": loss.detach()}
    counts = {**reported.counts, **accuracy.counts}
    return attrs.evolve(reported, loss=loss, metrics=metrics, counts=counts)
