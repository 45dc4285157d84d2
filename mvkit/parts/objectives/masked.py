"""Prediction of observed cells that the encoders do not see.

Axes: b rows, m modalities.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mvkit.core import bounds, noise
from mvkit.core.batch import Batch
from mvkit.core.cells import cells_of, flat_cells, only_cells
from mvkit.core.experts import Experts
from mvkit.core.likelihood import TOTAL
from mvkit.core.loss import Loss, finish, row_metrics
from mvkit.core.modality import Sizes
from mvkit.errors import SpecError
from mvkit.parts.latent_model import LatentModel
from mvkit.parts.objectives.objective import Objective, check_names
from mvkit.registry.fields import choice, count, factor
from mvkit.registry.spec import factors, field, number, spec

Cells = dict[str, Tensor]


@spec
class Masked(Objective):
    """E_H E_q Σ_m λ_m log p(x_mH|z) - β KL(q ‖ p), q = q(z|x_O∖H): hidden cells from the others.

    In each row a random share of the observed cells is hidden from the encoders, and predicted by
    the decoders. A cell is an element of a modality, all classes of a categorical one. One cell at
    least stays visible. With `predict="all"` and a `kl_weight` of 1 it is a lower bound on
    log p(x_O), as `elbo` is.

    Args:
        kl_weight: β; 0: nothing but the predictions.
        samples: draws S of the posterior.
        low, high: the share of a row's cells that is hidden is uniform between these.
        predict: `hidden` cells alone, or `all` observed ones.
        weights: factors of λ by modality.

    Example:
        >>> import mvkit, torch
        >>> from mvkit.parts import Masked
        >>> model = mvkit.Model(
        ...     {"a": (3,), "b": (2,)}, latent_dim=2, objective=Masked(high=0.3), seed=0
        ... )
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.loss(rows).bound.shape
        torch.Size([4])

    Reference: Vincent, Larochelle, Bengio and Manzagol, Extracting and Composing Robust Features
    with Denoising Autoencoders, 2008, https://doi.org/10.1145/1390156.1390294; of tables Du, Melis
    and Wang, ReMasker: Imputing Tabular Data with Masked Autoencoding, 2024,
    https://arxiv.org/abs/2309.13793.
    """

    kl_weight: float = factor(0.0)
    samples: int = count(1)
    low: float = field(default=0.1, check=number(0.0, 1.0))
    high: float = field(default=0.5, check=number(0.0, 1.0))
    predict: str = choice("hidden", "all")
    weights: Mapping[str, float] = field(default={}, check=factors)

    def build(self, sizes: Sizes) -> Masked:
        check_names(self.weights, sizes.names, "weights")
        if self.low > self.high:
            raise SpecError(f"got {self.low}, above high={self.high}; lower it", "low")
        for name, modality in sizes.modalities.items():
            if modality.exposure == TOTAL:
                raise SpecError(
                    f"masked hides single counts, and the exposure {TOTAL!r} of {name!r} is the "
                    "sum of all; expected a named exposure, or none; take 'elbo' with it"
                )
        if sizes.missingness is not None:
            raise SpecError(
                "masked hides cells at random, and the model says why cells are missing; expected "
                "missingness=None; take 'elbo' or 'iwae' with it"
            )
        return self

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        hidden = self.hidden_cells(batch, experts)
        present = {name: cells_of(batch, name) for name in batch.data}
        visible = {name: present[name] & ~cells for name, cells in hidden.items()}
        seen = model.experts(
            only_cells(batch, visible), training=experts.training, generator=experts.generator
        )
        seen.forget_unseen()
        posterior = model.joint_posterior(seen.batch, seen)
        target = batch if self.predict == "all" else only_cells(batch, hidden)
        terms = model.terms(
            target,
            self.samples,
            experts=seen,
            posterior=posterior,
            draw=model.aggregator.defaults.draw,
        )
        value = bounds.elbo(
            terms,
            weights=model.likelihood_weights(self.weights),
            beta=self.kl_weight,
            private=model.private_betas,
        )
        with torch.no_grad():
            kl = bounds.kl(terms)
            report = bounds.likelihood(terms) - kl
        weight = batch.row_weight
        means = row_metrics(model.names, terms, kl, target.observed, posterior.active, weight)
        bound_name = model.bound_name if self.predict == "all" else "surrogate_bound"
        return finish(bound_name, value, report, posterior.active, means, weight)

    def hidden_cells(self, batch: Batch, experts: Experts) -> Cells:
        """Which observed cells of a conformed batch are hidden, by modality, (b, …) bool.

        The visible cell that each row keeps is that whose random number is largest.
        """
        present = {}
        for name in sorted(batch.data):  # whatever order they are declared in
            present[name] = flat_cells(cells_of(batch, name))
        every = torch.cat(list(present.values()), 1)
        shape = (every.shape[1] + 1, len(every))
        like = next(iter(batch.data.values()))
        uniform = noise.draw("choice/hidden", shape, like, generator=experts.generator).T
        share = self.low + (self.high - self.low) * uniform[:, -1:]
        scores = torch.where(every, uniform[:, :-1], -1.0)
        largest = torch.zeros_like(every).scatter(1, scores.argmax(1, keepdim=True), True)
        hidden = every & (scores < share) & ~largest
        widths = [cells.shape[1] for cells in present.values()]
        pieces = dict(zip(present, hidden.split(widths, 1), strict=True))
        return {name: pieces[name].reshape(cells_of(batch, name).shape) for name in batch.data}
