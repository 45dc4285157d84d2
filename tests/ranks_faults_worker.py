"""What test_ranks_faults.py runs by torchrun: processes that do not agree, which must not wait."""

import os
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from helpers import model, rows

import mvkit
from mvkit.training.distributed import ProcessGroup

RANK = ProcessGroup.current().rank


class Stream:
    """A loader of unknown length."""

    def __init__(self, batches, first=0):
        self.batches = batches
        self.first = first

    def __iter__(self):
        for number in range(self.batches):
            yield rows(4, seed=number or self.first)


CASES = {
    "lengths": lambda: (model(), rows(9 - 3 * RANK), {}),
    "batch sizes": lambda: (model(), rows(9), {"batch_size": 4 - 2 * RANK}),
    "values": lambda: (model(), rows(9, seed=RANK), {}),
    "validation": lambda: (model(), rows(9), {"validation": [None, rows(4)][RANK]}),
    "epochs": lambda: (model(), rows(9), {"epochs": 2 + RANK}),
    "models": lambda: (model(prior=["standard", "mog"][RANK]), rows(9), {}),
    "streams": lambda: (model(), Stream(3), {}),
    "first batches of streams": lambda: (model(), Stream(3, first=5 * RANK), {}),
    "lengths of streams": lambda: (model(), Stream(3 - RANK), {}),
    "folders": lambda: (model(), rows(9), {"resume": "must", "checkpoint": sys.argv[1]}),
}


def main(folder):
    torch.set_num_threads(1)
    lines = []
    for name, case in CASES.items():
        tiny, data, options = case()
        try:
            mvkit.fit(tiny, data, **{"epochs": 2, "batch_size": 4, **options})
            lines.append(f"{name}: trained")
        except mvkit.MvkitError as error:
            lines.append(f"{name}: {type(error).__name__}: {error}")
    unnamed = folder / f"{RANK}.part"
    unnamed.write_text("\n".join(lines))
    unnamed.rename(folder / f"{RANK}.txt")
    # both leave when both are done, without the end of threads that broken-off runs have left
    other = folder / f"{1 - RANK}.txt"
    end = time.monotonic() + 100
    while not other.exists() and time.monotonic() < end:
        time.sleep(0.05)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
