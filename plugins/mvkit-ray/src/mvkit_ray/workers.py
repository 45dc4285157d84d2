"""The unchanged `mvkit.fit`, or a whole script, in the workers of a Ray cluster."""

from __future__ import annotations

import math
import os
import pickle
import runpy
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

import mvkit
from mvkit.errors import check_whole_number
from mvkit.models.multimodal import check_model
from mvkit.training.distributed import patience
from mvkit.training.history import History

VALUE = "value.pkl"


@attrs.frozen
class Cluster:
    """What of a Ray cluster a run takes.

    Args:
        workers: processes, each of which takes its share of every batch.
        use_gpu: a GPU for each of them.
        resources: of each worker, such as `{"CPU": 4}`; None: one CPU, or one GPU.
        restarts: how often the workers are started again after one has failed. A run with
            `checkpoint=` goes on where it was; one without begins anew.
        storage: a folder that all machines see, for Ray's own records of the run; None:
            `~/ray_results`, which is enough on one machine.

    Raises:
        RequestError: `workers` is below 1, or `restarts` below 0.

    Example:
        >>> from mvkit_ray import Cluster
        >>> Cluster(workers=4, restarts=3).workers
        4
    """

    workers: int = 2
    use_gpu: bool = False
    resources: Mapping[str, float] | None = None
    restarts: int = 0
    storage: str | os.PathLike[str] | None = None

    def __attrs_post_init__(self) -> None:
        check_whole_number("Cluster: workers", self.workers, 1)
        check_whole_number("Cluster: restarts", self.restarts, 0)

    def run(self, function: Callable[..., Any], **options: Any) -> Any:
        """Calls a function in every worker; returns what it returns in the first.

        Args:
            function: called with the options, in all workers at once, as by torchrun.
            options: what it is called with; Ray stores them once and sends them to the workers.

        Raises:
            ray.train.TrainingFailedError: a worker failed, and no restart is left.
        """
        resources = None if self.resources is None else dict(self.resources)
        storage = None if self.storage is None else os.path.abspath(self.storage)
        stored = ray.put((function, options))
        trainer = TorchTrainer(
            _work,
            # in a list, since Ray would fetch what it finds in the mapping itself
            train_loop_config={"stored": [stored]},
            torch_config=TorchConfig(timeout_s=math.ceil(patience().total_seconds())),
            scaling_config=ScalingConfig(
                num_workers=self.workers, use_gpu=self.use_gpu, resources_per_worker=resources
            ),
            run_config=RunConfig(
                storage_path=storage, failure_config=FailureConfig(max_failures=self.restarts)
            ),
        )
        checkpoint = trainer.fit().checkpoint
        with checkpoint.as_directory() as folder:
            return pickle.loads((Path(folder) / VALUE).read_bytes())


def fit(
    model: mvkit.Model, data: object, *, cluster: Cluster | None = None, **options: Any
) -> History:
    """`mvkit.fit` in the workers of a Ray cluster; the model gets the weights that they end with.

    The numbers are those of the same run by torchrun with as many processes.

    Args:
        model: what to train; it stays on its device.
        data: what `mvkit.fit` takes, if it can be pickled. Every worker gets all of it, and takes
            its share; of what is larger than memory give shards in a folder that all see.
        cluster: what the run takes; None: two workers of one CPU.
        options: those of `mvkit.fit`. `checkpoint=` is a folder that all machines see.

    Returns:
        The history of the run.

    Raises:
        ray.train.TrainingFailedError: a worker failed, and no restart is left; its cause is the
            worker's own error.

    Example:
        >>> from mvkit_ray import Cluster, fit
        >>> fit(model, data, cluster=Cluster(workers=8), epochs=20)  # doctest: +SKIP
    """
    check_model(model, "fit")
    run = Cluster() if cluster is None else cluster
    settings = {"progress": False, **options}
    weights, history = run.run(_fit, model=model, data=data, settings=settings)
    model.load_state_dict(weights)
    model.eval()
    return history


def run_script(
    path: str | os.PathLike[str],
    arguments: Sequence[object] = (),
    *,
    cluster: Cluster | None = None,
) -> None:
    """Runs a script, such as a `train.py`, in the workers of a Ray cluster, as torchrun would.

    Args:
        path: of the script, on this machine; the workers get its text.
        arguments: of its command line.
        cluster: what the run takes; None: two workers of one CPU.

    Raises:
        ray.train.TrainingFailedError: it failed in a worker, and no restart is left.
        OSError: there is no such file.

    Example:
        >>> from mvkit_ray import run_script
        >>> run_script("train.py", ["--folder", "/shared/run"])  # doctest: +SKIP
    """
    run = Cluster() if cluster is None else cluster
    script = Path(path)
    options = {
        "name": script.name,
        "text": script.read_text(),
        "arguments": [*map(str, arguments)],
    }
    run.run(_run_text, **options)


def _work(config: Mapping[str, Any]) -> None:
    """What every worker does: the first one hands back what the function returns."""
    function, options = ray.get(config["stored"][0])
    value = function(**options)
    first = ray.train.get_context().get_world_rank() == 0
    with tempfile.TemporaryDirectory() as folder:
        if first:
            (Path(folder) / VALUE).write_bytes(pickle.dumps(value))
        checkpoint = ray.train.Checkpoint.from_directory(folder) if first else None
        ray.train.report({}, checkpoint=checkpoint)


def _fit(
    model: mvkit.Model, data: object, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], History]:
    history = mvkit.fit(model, data, **settings)
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    return weights, history


def _run_text(name: str, text: str, arguments: Sequence[str]) -> None:
    """Runs a script by its text, with a command line of its own."""
    before = sys.argv
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(text)
        sys.argv = [str(path), *arguments]
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"{name} ended with {end.code!r}") from end
        finally:
            sys.argv = before
