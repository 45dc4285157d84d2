"""What test_recipe_doors.py runs, alone and by torchrun: trains every recipe and writes its weights.

Without noise, every number of processes does the same sums over the same batches; the last batch
has one row, so that the second process has none.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_recipe_doors import CASES, in_double

import mvkit
from mvkit.training.distributed import ProcessGroup

QUIET = {"progress": False, "device": "cpu"}


def quiet(site, shape, dtype, device):
    return torch.full(shape, 0.5 if site.startswith("choice") else 0.0, dtype=dtype, device=device)


def main(folder):
    torch.set_num_threads(1)
    ranks = ProcessGroup.current()
    weights = {}
    for name, (make, rows) in CASES.items():
        model = make().double()
        data = in_double(rows()).take(slice(0, 13))
        with mvkit.testing.noise(quiet):
            mvkit.fit(model, data, epochs=2, batch_size=4, **QUIET)
        weights[name] = model.state_dict()
    torch.save(weights, folder / f"{ranks.count}-{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
