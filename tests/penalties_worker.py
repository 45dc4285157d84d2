"""What test_penalties.py runs, alone and by torchrun: trains models with penalties, with shares of
a batch that are empty, and writes what came of them.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from helpers import rows
from ranks_worker import quiet
from test_penalties import shrunk

import mvkit
from mvkit.training.distributed import ProcessGroup


def main(folder):
    torch.set_num_threads(1)
    out = {}
    for name, stages in {
        "steps": None,
        "accumulated": [mvkit.Stage(None, 2, accumulate=2)],
    }.items():
        tiny = shrunk()
        with mvkit.testing.noise(quiet):
            settings = {"batch_size": 4, "epochs": 2, "stages": stages, "progress": False}
            history = mvkit.fit(tiny, rows(9), validation=rows(3, seed=1), **settings)
        out[name] = {"history": history.rows, "weights": tiny.state_dict()}
    ranks = ProcessGroup.current()
    torch.save(out, folder / f"{ranks.count}-{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
