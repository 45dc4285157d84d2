"""What test_ensemble_ranks.py runs by torchrun, and alone: copies from two seeds."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from helpers import model, rows

import mvkit
from mvkit.training.distributed import ProcessGroup

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    group = ProcessGroup.current()
    torch.set_num_threads(1)
    tiny = model("poe", "standard", "elbo")
    batch = rows(8)
    options = {"epochs": 2, "batch_size": 4, "seeds": [0, 3], "validation": rows(8, seed=1)}
    history = mvkit.fit(tiny, batch, checkpoint=folder / f"run{group.count}", **options)
    outcome = {"rows": history.rows, "weights": history.ensemble.state_dict()}
    torch.save({**outcome, "best": tiny.state_dict()}, folder / f"{group.count}-{group.rank}.pt")
