"""Whether `import mvkit` costs more with 50 packages of parts installed than with none: medians of
pairs in turn.

python benchmarks/plugins.py [pairs]
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

PACKAGES = 50
BOUND = 1.05
PROGRAM = "import time, torch; start = time.perf_counter(); import mvkit; print(time.perf_counter() - start)"
DECLARE = """
from mvkit.registry import Component, hookimpl


@hookimpl
def mvkit_components():
    return [Component("prior", "part_{i}", "pack_{i}.part:Part")]
"""


def install(folder: Path) -> None:
    """Packages with metadata and an entry point each, as pip leaves them."""
    for i in range(PACKAGES):
        info = folder / f"mvkit_pack_{i}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: mvkit-pack-{i}\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(f"[mvkit]\npack_{i} = pack_{i}\n")
        (folder / f"pack_{i}.py").write_text(DECLARE.format(i=i))


def seconds(program: str, path: str) -> float:
    """What a fresh process prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MVKIT")}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [path, str(Path(__file__).parent.parent)])
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def main(pairs: int) -> None:
    """Prints medians, their ratio, and what the first listing costs."""
    with tempfile.TemporaryDirectory() as full, tempfile.TemporaryDirectory() as empty:
        install(Path(full))
        times = [(seconds(PROGRAM, empty), seconds(PROGRAM, full)) for _ in range(pairs)]
        without, within = (median(column) for column in zip(*times, strict=True))
        ratio = median(one / other for other, one in times)
        listing = PROGRAM.replace(
            "import mvkit;", "import mvkit; start = time.perf_counter(); mvkit.available('prior');"
        )
        listed = median(seconds(listing, full) for _ in range(3))
    print(
        f"import mvkit: {without:.3f} s without, {within:.3f} s with {PACKAGES} packages; median ratio {ratio:.3f}"
    )
    print(
        f"bound {BOUND}: {'met' if ratio <= BOUND else 'missed'}; first listing of {PACKAGES} packages: {listed:.3f} s"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
