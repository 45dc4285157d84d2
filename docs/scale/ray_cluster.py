"""train.py in the workers of a Ray cluster: python ray_cluster.py --folder /shared/run."""

from __future__ import annotations

import sys
from pathlib import Path

from mvkit_ray import Cluster, run_script

TRAIN = Path(__file__).with_name("train.py")

if __name__ == "__main__":
    cluster = Cluster(workers=2, use_gpu=False, restarts=10)
    run_script(TRAIN, sys.argv[1:], cluster=cluster)
