"""Fitting samplers to the latents of a trained model.

Axes: b rows, d latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.data.dataset import Rows
from mvkit.errors import DataError, RequestError
from mvkit.models.multimodal import MultimodalModel, check_model
from mvkit.parts.samplers import Sampler
from mvkit.registry import plugins
from mvkit.registry.loading import live_part
from mvkit.registry.spec import as_part


class SamplerSpec(Protocol):
    """The options of a sampler."""

    def build(self, width: int, /) -> Sampler:
        """A sampler of latents of this width, not fitted yet."""
        ...


def fit_sampler(
    model: MultimodalModel,
    data: Rows,
    sampler: str | Mapping[str, object] | SamplerSpec = "gmm",
    *,
    seed: int = 0,
) -> Sampler:
    """Fits a sampler to latents of rows, for `model.sample(n, sampler="gmm")`.

    `mvkit.save` keeps it. It is fitted to one draw of the posterior per row, given all that the
    row has. The model holds one sampler of each name: another fit takes its place. Private latents
    keep their priors.

    Args:
        model: a trained model.
        data: rows, as a rule the training rows.
        sampler: a name, a spec or a dict (`mvkit.available("sampler")`).
        seed: of the draws and of the fit.

    Example:
        >>> import torch, mvkit
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, seed=0)
        >>> rows = {"a": torch.randn(50, 3), "b": torch.randn(50, 2)}
        >>> _ = mvkit.fit_sampler(model, rows, {"name": "gmm", "components": 3})
        >>> model.sample(4, sampler="gmm")["b"].shape
        torch.Size([4, 2])
    """
    check_model(model, "fit_sampler")
    if not model.latent_dim:
        raise RequestError(
            "fit_sampler: the model has no shared latent; only private ones, which keep their "
            "priors"
        )
    spec = as_part("sampler", sampler)
    seed = noise.whole_seed(seed)
    generator = noise.seeded(seed, model.like.device)

    def draw(rows: Batch) -> Tensor:
        posterior = model.posterior_given(rows, model.names, "error", inference=True)
        return posterior.rsample(1, generator)[0]

    z = model.in_blocks(draw, data)
    if not torch.isfinite(z).all():
        raise DataError(
            "fit_sampler: the model's latents are not finite; expected numbers; train it again"
        )
    with noise.global_seed(seed):  # of samplers with networks
        with plugins.error_context(type(spec), "when it was built"):
            live = live_part(spec, "sampler", (Sampler,), model.latent_dim)
        fitted = live.to(model.like)
        fitted.fit(z, seed)
    install(model, spec, fitted.eval())
    return cast(Sampler, fitted)


def install(model: MultimodalModel, spec: SamplerSpec, sampler: nn.Module) -> None:
    """Gives a model a sampler, fitted, or with its state still to be loaded."""
    sampler.requires_grad_(False)  # later training of the model leaves it alone
    model.samplers[str(plugins.name_of("sampler", type(spec)))] = sampler
