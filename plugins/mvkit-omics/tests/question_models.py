"""Small models of cells that questions are asked of."""

import torch

from mvkit import Batch, Covariate, Modality, Model

BATCHES = ("p1", "p2", "p3")
GENES = ("g0", "g1", "g2", "g3", "g4")
PROTEINS = ("a", "b", "c")


def cells(n=30, seed=0, *, gaps=True):
    """Cells with RNA and proteins; every third lacks proteins, every fifth RNA."""
    generator = torch.Generator().manual_seed(seed)
    rna = torch.poisson(torch.full((n, 5), 6.0), generator=generator).double()
    protein = torch.poisson(torch.full((n, 3), 9.0), generator=generator).double()
    mask = torch.ones(n, 2, dtype=torch.bool)
    if gaps:
        mask[::3, 1] = False
        mask[1::5, 0] = False
        mask[~mask.any(1), 0] = True
    batches = [BATCHES[i % 3] for i in range(n)]
    extra = {
        "id": [f"cell{i}" for i in range(n)],
        "kind": ["T" if i % 2 else "B" for i in range(n)],
    }
    return Batch(
        {"rna": rna, "protein": protein},
        mask,
        extra=extra,
        covariates={"batch": batches},
        order=("rna", "protein"),
    )


def model_of(seed=0, **options):
    """RNA as shares of a total, proteins with a background by batch, linear decoders."""
    protein = {"name": "foreground_background", "by": "feature_and_level", "level": "batch"}
    modalities = {
        "rna": Modality(
            (5,),
            {"name": "negative_binomial", "by": "feature"},
            exposure="total",
            input="log1p",
            decoder="linear",
            features=GENES,
        ),
        "protein": Modality((3,), protein, input="log1p", decoder="linear", features=PROTEINS),
    }
    options = {"latent_dim": 2, "covariates": {"batch": Covariate(BATCHES)}} | options
    model = Model(modalities, seed=seed, **options).double()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.decoders.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).double())
    return model
