"""What test_sampler_doors.py runs, alone and by torchrun: fits a sampler and refiners to a model,
and places a mixture, and writes what came of them.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from helpers import model, rows
from ranks_worker import quiet

import mvkit
from mvkit.parts import GMM
from mvkit.training.distributed import ProcessGroup

QUIET = {"progress": False, "device": "cpu", "batch_size": 4}


def main(folder):
    torch.set_num_threads(1)
    ranks = ProcessGroup.current()
    out = {}

    tiny = model("mopoe", private=1)
    mvkit.fit_sampler(tiny, rows(20), GMM(components=2, floor=0.1, conditional=True))
    generator = torch.Generator().manual_seed(0)
    out["sampler"] = tiny.translate(rows(5), sampler="gmm", generator=generator)

    tiny = model("mopoe", private=1)
    with mvkit.testing.noise(quiet):  # the last batch has one row: the second process has none
        mvkit.fit_refiner(tiny, rows(9), {"name": "energy", "hidden": 8}, epochs=2, **QUIET)
    out["refiner"] = tiny.refiners.state_dict()

    tiny = model("moe", {"name": "mog", "components": 2}, schedule="warmup_then_mixture")
    with mvkit.testing.noise(quiet):
        for _ in range(2):
            mvkit.fit(tiny, rows(9), epochs=2, **QUIET)
    out["mixture"] = tiny.state_dict()
    torch.save(out, folder / f"{ranks.count}-{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
