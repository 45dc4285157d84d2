"""The unchanged fit in workers of a Ray cluster on this machine, failures, restarts, and Tune."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import torch
from mvkit_ray import Cluster, fit, run_script, search
from ray import tune

import mvkit
from mvkit import Modality, RequestError, SpecError

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own
ROOT = Path(__file__).parent.parent.parent.parent
TRAIN = ROOT / "docs" / "scale" / "train.py"
TINY = {"name": "mlp", "hidden": [4]}
OPTIONS = {"epochs": 4, "batch_size": 16}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    here = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(here)  # workers import what is defined here
    memory = {"object_store_memory": 2 * 10**8}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, **memory)
    yield
    ray.shutdown()


def modalities():
    return {name: Modality((3,), encoder=TINY, decoder=TINY) for name in "ab"}


def model():
    return mvkit.Model(modalities(), latent_dim=2, seed=0)


def rows(seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(33, 1, generator=generator)
    return {name: z + 0.1 * torch.randn(33, 3, generator=generator) for name in "ab"}


class Killing(torch.utils.data.Dataset):
    """Rows, of which the second worker reads some and then is killed, or raises, once."""

    def __init__(self, marker, how):
        self.rows = rows()
        self.marker = Path(marker)
        self.how = how
        self.reads = 0

    def __len__(self):
        return 33

    def __getitem__(self, i):
        self.reads += 1
        second = torch.distributed.is_initialized() and torch.distributed.get_rank() == 1
        if second and self.reads > 110 and not self.marker.exists():
            if self.how == "dies":
                self.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("this row is broken")
        return {name: values[i] for name, values in self.rows.items()}


# fit in several workers


def test_workers_train_as_processes_of_torchrun_do(tmp_path):
    trained = model()
    history = fit(trained, rows(), cluster=Cluster(storage=tmp_path), validation=0.2, **OPTIONS)
    assert history["epoch"] == [1, 2, 3, 4]
    assert not trained.training
    program = tmp_path / "same.py"
    program.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import mvkit, torch\nfrom test_ray import OPTIONS, model, rows\ntrained = model()\n"
        "mvkit.fit(trained, rows(), validation=0.2, progress=False, **OPTIONS)\n"
        f"torch.save(trained.state_dict(), {str(tmp_path / 'weights.pt')!r})\n"
    )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([sys.executable, *torchrun, program], check=True, capture_output=True)
    for name, value in torch.load(tmp_path / "weights.pt").items():
        assert torch.equal(trained.state_dict()[name], value), name


def test_a_killed_worker_starts_again_and_the_run_ends_as_an_unbroken_one(tmp_path):
    whole, broken = model(), model()
    unbroken = Killing(__file__, "dies")
    fit(whole, unbroken, cluster=Cluster(storage=tmp_path), **OPTIONS)
    data = Killing(tmp_path / "killed", "dies")
    cluster = Cluster(storage=tmp_path, restarts=1)
    history = fit(broken, data, cluster=cluster, checkpoint=tmp_path / "run", **OPTIONS)
    assert (tmp_path / "killed").exists()
    assert len(history) == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(broken.state_dict()[name], value), name


def test_a_worker_that_raises_ends_the_run_with_its_error(tmp_path):
    data = Killing(tmp_path / "never", "raises")
    with pytest.raises(Exception, match="this row is broken"):
        fit(model(), data, cluster=Cluster(storage=tmp_path), **OPTIONS)


def test_a_script_runs_unchanged(tmp_path):
    arguments = [f"--folder={tmp_path / 'run'}", "--rows=200", "--epochs=2"]
    run_script(TRAIN, arguments, cluster=Cluster(storage=tmp_path))
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 2
    assert mvkit.load(tmp_path / "run" / "model.safetensors").names
    state = max((tmp_path / "run" / "checkpoints").iterdir())
    setting = mvkit.core.safe_file.read_header(state)["training"]["setting"]
    assert setting["processes"] == 2


def test_a_script_that_fails_is_an_error(tmp_path):
    script = tmp_path / "ends.py"
    script.write_text("import sys\nsys.exit('no data')\n")
    with pytest.raises(Exception, match=r"ends.py ended with 'no data'"):
        run_script(script, cluster=Cluster(storage=tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "Cluster: workers=0; expected a whole number of at least 1"),
        ({"restarts": -1}, "Cluster: restarts=-1; expected a whole number of at least 0"),
    ],
)
def test_options_of_a_cluster_are_checked(options, message):
    with pytest.raises(RequestError, match=message):
        Cluster(**options)


# searches


def space(**options):
    return {
        "model": {"modalities": modalities(), "latent_dim": 2, **options},
        "train": {"epochs": 2, "batch_size": 16, "lr": tune.grid_search([1e-3, 1e-2])},
    }


def test_tune_finds_the_better_rate_which_fit_alone_confirms(tmp_path):
    results = search(space(), rows(), validation=rows(1), trials=1, storage=tmp_path)
    assert len(results) == 2
    assert not results.errors
    bounds = {}
    for lr in (1e-3, 1e-2):
        torch.set_num_threads(1)
        train = {**space()["train"], "lr": lr}
        history = mvkit.fit(model(), rows(), validation=rows(1), progress=False, **train)
        bounds[lr] = history["valid/bound"][-1]
    best = results.get_best_result()
    assert best.config["train"]["lr"] == max(bounds, key=bounds.get)
    assert best.metrics["valid/bound"] == pytest.approx(max(bounds.values()), rel=1e-6)


def test_parts_that_do_not_go_together_are_no_failure(tmp_path):
    chosen = space(family=tune.grid_search(["normal", "laplace_softmax"]))
    chosen["train"]["lr"] = 1e-3
    results = search(chosen, rows(), validation=rows(1), trials=1, storage=tmp_path)
    refused = {each.config["model"]["family"]: each.metrics.get("refused") for each in results}
    assert refused["normal"] is None
    assert "closed product" in refused["laplace_softmax"]
    assert results.get_best_result().config["model"]["family"] == "normal"
    with pytest.raises(SpecError, match="search: every trial was refused, the last one since: .*"):
        search(
            space(family="laplace_softmax"), rows(), validation=rows(1), trials=1, storage=tmp_path
        )


def test_what_cannot_be_searched_is_refused(tmp_path):
    with pytest.raises(RequestError, match="space has 'modle'; expected the keys model and train"):
        search({"modle": {}}, rows(), validation=rows(1), trials=1)
    with pytest.raises(RequestError, match="search: trials=0"):
        search(space(), rows(), validation=rows(1), trials=0)
    results = search(
        space(), rows(), validation=rows(1), trials=1, metric="valid/bond", storage=tmp_path
    )
    assert "did you mean 'valid/bound'" in str(results.errors[0])
