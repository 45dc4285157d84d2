"""mvkit beside multivae: the same data, networks, seeds and budget, in turn, on one thread; a
table of ratios.

Beside both, the bare networks run once over the same rows: no library can be faster than they are.

    python benchmarks/peers.py           # an hour; writes peers.json and docs/benchmarks.md
    python benchmarks/peers.py --quick   # a smoke run of two small cases, which writes nothing
    python benchmarks/peers.py --render  # docs/benchmarks.md from peers.json

multivae is installed from PyPI into `.venv-peers`, beside the torch of this interpreter. Each side
runs in a process of its own (`peer_worker.py`) that times its own code; they take turns A B C A B
C …, and a ratio is one of medians. Peak memory is that of a fresh process after three steps.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch.nn import functional

import mvkit

ROOT = Path(__file__).parent.parent
PEER = "multivae==1.0.3"
RESULTS, PAGE = ROOT / "benchmarks" / "peers.json", ROOT / "docs" / "benchmarks.md"
SHOWN = {
    "step": "training step",
    "fused step": "the same, fused Adam in both",
    "train": "two epochs by the trainer",
    "likelihood": "joint log-likelihood, n=1000",
}
SHOWN |= {"encode": "encoding", "memory": "peak memory"}
# the least that is asked for: how many times faster, by measure, model and number of modalities
ASKED = {
    "step": {
        "mopoe 5": 2,
        "mopoe 8": 15,
        "mopoe 10": 100,
        "cmvae": 2,
        "jmvae": 1.15,
        "telbo": 1.15,
        "nexus": 1.15,
    },
    "likelihood": {"jmvae": 2.2, "cmvae": 2.2, "mopoe": 4.5},
    "encode": {"mopoe": 10, "nexus": 10, "jmvae": 3, "cmvae": 3},
}


INTRODUCTION = """\
The same data (polydigits: 64 numbers a modality, or the pictures enlarged to 784; beyond five modalities they come
again, of other rows), networks (two hidden layers of 512 units), seeds and budget; one thread, batches of 128 rows,
latent of 16. The sides run in turn; times are medians. A ratio above 1 means that mvkit is faster, or takes less
memory, than multivae. *Bare*: the same networks run once over the same rows with nothing around them, which bounds the
ratio that is possible. `refused`: the library has no way to do it; the reasons are below.

A training step takes the optimizer that each library's trainer takes by default: torch's fused Adam in mvkit, its plain
Adam in multivae; TELBO's is one of each stage. Encoding is from every set of modalities (TELBO: each alone, and all),
or, half missing, once from what a row has; multivae is then given the rows sorted by that.

"""


@attrs.frozen
class Case:
    """A model on so many modalities of so many numbers; of incomplete rows, half of the modalities
    are there.
    """

    model: str
    m: int
    missing: bool = False
    width: int = 64

    def measures(self, quick: bool) -> dict[str, dict[str, Any]]:
        """What is measured, and on how much; what would take hours at many subsets is left out."""
        few = self.m > 5
        found: dict[str, dict[str, Any]] = {"step": {}}
        if not few:
            found["fused step"] = {}
            found["train"] = {"rows": 256 if quick else 1280}
        found["likelihood"] = {"rows": 4 if few or quick else 16, "n": 1000}
        if not few:
            found["encode"] = {"rows": 500 if quick else 10_000}
        return found

    def asked(self, measure: str) -> float:
        """The least ratio that is asked for."""
        known = {} if self.missing else ASKED.get(measure, {})
        return known.get(f"{self.model} {self.m}", known.get(self.model, 1.0))

    def __str__(self) -> str:
        size = "" if self.width == 64 else f", {self.width} numbers"
        return f"{self.model}, M={self.m}{size}" + (", half missing" if self.missing else "")


CASES = [
    *(Case("mopoe", m) for m in (2, 3, 5, 8, 10)),
    *(Case(model, 5) for model in ("jmvae", "telbo", "nexus", "cmvae")),
    *(Case(model, 5, missing=True) for model in ("mopoe", "jmvae", "telbo", "nexus", "cmvae")),
    *(Case(model, 5, width=784) for model in ("mopoe", "jmvae", "telbo", "nexus", "cmvae")),
]


class Worker:
    """A library in a process of its own."""

    def __init__(self, python: Path | str, library: str) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "MVKIT_PLUGINS": "",
        }
        command = [str(python), str(ROOT / "benchmarks" / "peer_worker.py"), library]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        self.versions = self._read()["versions"]

    def ask(self, do: str, **options: Any) -> dict[str, Any]:
        """The answer to a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **options}) + "\n")
        self.process.stdin.flush()
        return self._read()

    def make(self, case: Case) -> None:
        """A model of a case; raises if there is none, for every case has one."""
        found = self.ask("make", **attrs.asdict(case), seed=0)
        if "refused" in found:
            raise RuntimeError(f"{case}: {found['refused']}")

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended; run it by hand to see why")
        return dict(json.loads(line))

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def environment() -> Path:
    """The interpreter of `.venv-peers`, where multivae is installed beside this interpreter's own
    packages.
    """
    folder = ROOT / ".venv-peers"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        # the same torch for both, and no gigabytes of CUDA
        packages = sysconfig.get_path(
            "purelib", vars={"base": str(folder), "platbase": str(folder)}
        )
        shared = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (Path(packages) / "shared.pth").write_text(shared)
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--constraint",
        ROOT / "constraints.txt",
        PEER,
    ]
    subprocess.run(install, check=True)
    return python


def turns(
    workers: list[Worker], do: str, options: dict[str, Any], count: int, seconds: float
) -> list[dict[str, Any]]:
    """Answers in turn; each worker's medians, or why it refuses. Slow turns end early, after three
    at least.
    """
    kept: list[list[float]] = [[] for _ in workers]
    if do == "fused step":
        do = "step"
        for worker in workers:
            worker.ask("fuse")
    found = [worker.ask(do, **options) for worker in workers]  # warm-up
    able = [i for i, answer in enumerate(found) if "refused" not in answer]
    while (
        able
        and len(kept[able[0]]) < count
        and (len(kept[able[0]]) < 3 or sum(map(sum, kept)) < seconds)
    ):
        for i in able:
            found[i] = workers[i].ask(do, **options)
            kept[i].append(found[i]["seconds"])
    return [
        {**f, "seconds": statistics.median(k)} if k else f
        for f, k in zip(found, kept, strict=True)
    ]


def memory(case: Case, pythons: dict[str, Path | str]) -> list[dict[str, Any]]:
    """Peak memory of three steps, each library in a fresh process."""
    found = []
    for library, python in pythons.items():
        worker = Worker(python, library)
        worker.make(case)
        refusal = [
            answer for answer in (worker.ask("once") for _ in range(3)) if "refused" in answer
        ]
        found.append(refusal[0] if refusal else worker.ask("memory"))
        worker.close()
    return found


def measure(
    case: Case, workers: list[Worker], pythons: dict[str, Path | str], quick: bool, seconds: float
) -> list[dict[str, Any]]:
    """A row for each measure of a case."""
    for worker in workers:
        worker.make(case)
    count = 2 if quick else 15
    answers = {
        do: turns(workers, do, options, count, seconds)
        for do, options in case.measures(quick).items()
    }
    answers["memory"] = memory(case, pythons)
    made = []
    for do, found in answers.items():
        key = "peak MB" if do == "memory" else "seconds"
        ours, theirs = found[:2]
        ratio = theirs[key] / ours[key] if key in ours and key in theirs else None
        size = {} if do == "memory" else case.measures(quick)[do]
        row = {"case": str(case), "measure": do, **size, **dict(zip(pythons, found, strict=True))}
        made.append({**row, "ratio": ratio, "asked": case.asked(do)})
    return made


def machine() -> str:
    """The processor, its cores, the system and Python."""
    lines = (
        Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    )
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return (
        f"{name}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    )


def _shown(answer: dict[str, Any]) -> str:
    if "refused" in answer:
        return "refused"
    if not answer:
        return "—"
    if "peak MB" in answer:
        return f"{answer['peak MB']:,.0f} MB"
    seconds = answer["seconds"]
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def write_page(results: dict[str, Any]) -> None:
    """Writes `docs/benchmarks.md` anew, but for the sections of other benchmarks at its end."""
    _, heading, others = PAGE.read_text().partition("\n## ")
    PAGE.write_text(page(results) + heading + others)


def page(results: dict[str, Any]) -> str:
    """What this script writes of `docs/benchmarks.md`."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        "# Benchmarks: beside multivae",
        "",
        f"{results['machine']}; {versions}. Written by `python benchmarks/peers.py`.",
        "",
        *INTRODUCTION.splitlines(),
        "| case | what | bare | mvkit | multivae | ratio | asked |",
        "|---|---|---|---|---|---|---|",
    ]
    reasons: dict[str, None] = {}
    place = {str(case): i for i, case in enumerate(CASES)}
    for row in sorted(results["rows"], key=lambda row: place.get(row["case"], 0)):
        ratio = "—" if row["ratio"] is None else f"{row['ratio']:.3g}"
        what = SHOWN[row["measure"]] + (f", {row['rows']:,} rows" if "rows" in row else "")
        bare = {} if "refused" in row["bare"] else row["bare"]
        cells = [
            row["case"],
            what,
            _shown(bare),
            _shown(row["mvkit"]),
            _shown(row["multivae"]),
            ratio,
        ]
        lines.append(f"| {' | '.join(cells)} | {row['asked']:g} |")
        for library in ("mvkit", "multivae"):
            reason = row[library].get("refused")
            if reason:
                text = " ".join(reason.split())
                text = text if len(text) <= 100 else f"{text[:100]}…"
                reasons[f"* {library}, {row['case']}, {what}: {text}"] = None
    return "\n".join([*lines, "", *reasons]).rstrip() + "\n"


def pictures(folder: Path) -> Path:
    """The folder of polydigits (m, n, width) that all sides read, as they are and enlarged to 28 ×
    28.
    """
    batch = mvkit.load_dataset("polydigits").train.batch
    small = torch.stack([x.float() for x in batch.data.values()])
    large = torch.stack([functional.interpolate(x, (28, 28), mode="bilinear") for x in small])
    for x in (small.flatten(2), large.flatten(2)):
        np.save(folder / f"{x.shape[-1]}.npy", x.numpy())
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="two small cases, few repetitions; writes nothing"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="CASE",
        help="cases such as 'mopoe, M=5'; the others keep their rows",
    )
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="after which a measure takes no more turns"
    )
    parser.add_argument(
        "--render", action="store_true", help="only write the page from the results there are"
    )
    options = parser.parse_args()
    if options.render:
        write_page(json.loads(RESULTS.read_text()))
        return
    pythons: dict[str, Path | str] = {
        "mvkit": sys.executable,
        "multivae": environment(),
        "bare": sys.executable,
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PEERS_DATA"] = str(pictures(Path(folder)))
        run(options, pythons)


def run(options: argparse.Namespace, pythons: dict[str, Path | str]) -> None:
    """All cases that are asked for, their rows written as they come."""
    workers = [Worker(python, library) for library, python in pythons.items()]
    versions = workers[0].versions | workers[1].versions
    results: dict[str, Any] = {"machine": machine(), "versions": versions, "rows": []}
    cases = [Case("mopoe", 3), Case("jmvae", 2, missing=True)] if options.quick else CASES
    if options.only:
        cases = [case for case in cases if str(case) in options.only]
        old = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
        results["rows"] = [row for row in old if row["case"] not in options.only]
    for case in cases:
        results["rows"] += measure(
            case, workers, pythons, options.quick, 10.0 if options.quick else options.seconds
        )
        if not options.quick:  # a case may take an hour; what is done is kept
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            write_page(results)
        print(f"{case} done", file=sys.stderr)
    for worker in workers:
        worker.close()
    print(page(results))


if __name__ == "__main__":
    main()
