"""Pictures of latents, where a model has none that modalities share."""

import pytest
import torch

from mvkit import Modality, Model, RequestError, plots


@pytest.mark.parametrize("method", ["pca", "umap"])
def test_models_without_a_shared_latent_have_no_map_of_it(method):
    pytest.importorskip("matplotlib")
    modalities = {name: Modality((2,), private_dim=1) for name in "ab"}
    model = Model(modalities, latent_dim=0, seed=0)
    rows = {name: torch.zeros(3, 2) for name in "ab"}
    with pytest.raises(RequestError, match="latent_map: the model has latent_dim=0"):
        plots.latent_map(model, rows, method=method)
