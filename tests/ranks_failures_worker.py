"""What test_ranks_failures.py runs as process 0 or 1 of two: one of them fails in some way."""

import os
import signal
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from helpers import model, rows

import mvkit

FAILS = os.environ.get("RANK") == os.environ.get("FAILING", "nobody")


class Failing(torch.utils.data.Dataset):
    """Rows, of which the process that fails reads some before."""

    def __init__(self, how):
        self.how = how
        self.rows = rows(12).data
        self.reads = 0

    def __len__(self):
        return 64

    def __getitem__(self, i):
        self.reads += 1
        if FAILS and self.reads > 200:  # fingerprints read 128 first
            if self.how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "raises":
                raise ValueError("this row is broken")
            time.sleep(1000)
        return {name: values[i % 12] for name, values in self.rows.items()}


def main(how):
    torch.set_num_threads(1)
    if how == "never comes" and FAILS:
        time.sleep(1000)
    tiny = model()
    print("begins", flush=True)
    try:
        mvkit.fit(tiny, Failing(how), epochs=1000, batch_size=16, progress=False)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        raise


if __name__ == "__main__":
    main(sys.argv[1])
