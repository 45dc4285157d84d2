"""What test_sampler_runs.py runs, alone and by torchrun: trains models, fits samplers to them, and
writes what came of it.

Without noise, every number of processes does the same sums over the same batches.
"""

import sys
from pathlib import Path

import torch

import mvkit
from mvkit import Batch, recipes
from mvkit.testing import noise
from mvkit.training.distributed import ProcessGroup

SMALL = {"steps": 5, "batch": 16, "width": 8, "layers": 1, "integration": 4}
SAMPLERS = ("latent_flow", "latent_diffusion")


def quiet(site, shape, dtype, device):
    return torch.full(shape, 0.5 if site.startswith("choice") else 0.0, dtype=dtype, device=device)


def rows(b=9):
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(b, 2).bool()
    mask[::4, 0] = False
    mask[1::4, 1] = False
    data = {name: torch.randn(b, 3, generator=generator).double() for name in "ab"}
    return Batch(data, mask)


def trained(batch_size, **options):
    model = recipes.idmvae({"a": (3,), "b": (3,)}, 2, private_dim=2, seed=0, **options).double()
    with noise(quiet):
        mvkit.fit(model, rows(), epochs=2, batch_size=batch_size, progress=False)
    return model


def main(folder):
    torch.set_num_threads(1)
    ranks = ProcessGroup.current()
    model = trained(2)  # in which the other row is known without noise
    out = {
        "pairs": dict(model.state_dict()),
        "more": dict(trained(4, augmentation=0.0).state_dict()),
    }
    for name in SAMPLERS:
        mvkit.fit_sampler(model, rows(), {"name": name, **SMALL}, seed=1)
        out[name] = dict(model.samplers[f"mvkit-diffusion/{name}"].state_dict())
        generator = torch.Generator().manual_seed(0)
        out[f"draws of {name}"] = model.sample(4, sampler=name, generator=generator)
    torch.save(out, Path(folder) / f"{ranks.count}-{ranks.rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
