"""What mvkit does on an accelerator, in eight minutes: tests, step times, rates, one table.

    python benchmarks/device_check.py                       # on CUDA; writes docs/benchmarks.md
    python benchmarks/device_check.py --device cpu --quick  # to its end on the CPU, in a small form

Every recipe's training step is timed as it is, operation by operation on dense batches (`eager`),
as one compiled program (`compiled`), and as one CUDA graph (`graphed`), beside the same networks
with nothing around them (`bare`) and a roofline: what the matrix products of the step take at the
rate measured on this device, or its traffic of weights at the measured bandwidth, whichever is
more. What there was no time for is listed as such.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import attrs
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mvkit
from mvkit import Modality, recipes
from mvkit.training.distributed import LossModule
from mvkit.training.step import Backend, EagerSteps, ProgramSteps, Steps

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- device check: begin -->", "<!-- device check: end -->"
MLP = {"name": "mlp", "hidden": [512, 512]}
TRAFFIC = 10  # times the weights: forward, backward, gradients, and what Adam reads and writes
COMPILED = ("mopoe", "jmvae", "cmvae")  # a minute each, where there is time


@attrs.frozen
class Sizes:
    """How much is measured.

    Args:
        batch, width: rows of a step, and numbers of a modality.
        network: of every modality.
        steps, repeats: steps timed in one go, and how often.
        draws: of a log-likelihood.
        side: of the square matrices of the roofline.
    """

    batch: int = 4096
    width: int = 784
    network: object = MLP
    steps: int = 20
    repeats: int = 5
    draws: int = 1000
    side: int = 4096


QUICK = Sizes(16, 6, "linear", 1, 1, 4, 64)


@attrs.define
class Table:
    """Rows of the report, and when it has to end."""

    ends: float
    rows: list[tuple[str, ...]] = attrs.field(factory=list)
    notes: list[str] = attrs.field(factory=list)

    def late(self, what: str) -> bool:
        """Whether there is no time left for something, which is noted then."""
        if time.monotonic() < self.ends:
            return False
        self.notes.append(f"Left out, for want of time: {what}.")
        return True


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device, sizes: Sizes) -> float:
    """Median seconds of a run, after three that warm up."""
    for _ in range(3):
        run()
    times = []
    for _ in range(sizes.repeats):
        synchronise(device)
        start = time.perf_counter()
        for _ in range(sizes.steps):
            run()
        synchronise(device)
        times.append((time.perf_counter() - start) / sizes.steps)
    return statistics.median(times)


def roofline(device: torch.device, sizes: Sizes) -> tuple[float, float]:
    """Operations per second of a float32 matrix product, and bytes per second of a copy."""
    a = torch.randn(sizes.side, sizes.side, device=device)
    rate = 2 * sizes.side**3 / seconds(lambda: a @ a, device, sizes)
    values = torch.zeros(sizes.side**2 * 4, device=device)
    target = torch.empty_like(values)
    traffic = 2 * values.numel() * values.element_size()
    return rate, traffic / seconds(lambda: target.copy_(values), device, sizes)


def model_of(name: str, sizes: Sizes) -> mvkit.MultimodalModel:
    """A recipe's model of three modalities (`meme`: of two)."""
    each = {}
    for key in ("a", "b") if name == "meme" else ("a", "b", "c"):
        each[key] = Modality((sizes.width,), encoder=sizes.network, decoder=sizes.network)
    options: dict[str, object] = {}
    if name == "cvae":
        options["covariates"] = {"age": mvkit.Covariate()}
    if name == "not_miwae":
        options["aggregator"] = "poe"
    latent = 64 if name == "masked" else 16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: mvkit.MultimodalModel = getattr(recipes, name)(
            each, latent_dim=latent, seed=0, **options
        )
    return model


def rows_of(model: mvkit.MultimodalModel, b: int, width: int) -> mvkit.Batch:
    """Rows that lack a fifth of their modalities, with what covariates ask for."""
    generator = torch.Generator().manual_seed(0)
    data = {name: torch.randn(b, width, generator=generator) for name in model.names}
    mask = torch.rand(b, len(model.names), generator=generator) > 0.2
    mask[:, 0] = True
    age = torch.rand(b, generator=generator).double()
    return mvkit.Batch(data, mask, extra={"age": age})


def networks_of(model: nn.Module) -> list[nn.Module]:
    """The encoders and the decoders' networks of all levels."""
    networks: list[nn.Module] = []
    for path, module in model.named_modules():
        parent, _, _ = path.rpartition(".")
        if parent.endswith("encoders"):
            networks.append(module)
        elif parent.endswith("decoders"):
            networks.append(module.network)
    return networks


def bare_step(model: mvkit.MultimodalModel, step: Callable[[], None]) -> Callable[[], None]:
    """The networks alone, called as a step calls them: squared outputs, backward, fused Adam."""
    calls: list[tuple[nn.Module, list[torch.Tensor]]] = []

    def note(network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        calls.append((network, [x.detach() for x in inputs]))

    hooks = [network.register_forward_pre_hook(note) for network in networks_of(model)]
    step()
    for hook in hooks:
        hook.remove()
    optimizer = torch.optim.Adam(model.parameters(), 0.0, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        means = [network(*inputs).square().mean() for network, inputs in calls]
        torch.stack(means).sum().backward()
        optimizer.step()

    return run


def step_of(
    model: mvkit.MultimodalModel, steps: Steps, batch: mvkit.Batch, device: torch.device
) -> Callable[[], None]:
    """A training step: noise, loss, gradients, fused Adam."""
    optimizer = torch.optim.Adam(model.parameters(), 0.0, fused=True)
    generator = torch.Generator(device).manual_seed(0)
    objective = model.spec.objective

    def run() -> None:
        optimizer.zero_grad()
        steps(batch, objective, generator).add_gradient(1.0)
        optimizer.step()

    return run


def floor_of(run: Callable[[], None], model: nn.Module, rate: float, bandwidth: float) -> float:
    """Seconds that a step takes at least, by its matrix products or by its traffic."""
    with FlopCounterMode(display=False) as counter:
        run()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return max(counter.get_total_flops() / rate, TRAFFIC * weights / bandwidth)


def recipe_row(
    name: str, device: torch.device, sizes: Sizes, speed: tuple[float, float], table: Table
) -> tuple[str, ...]:
    """The times of a recipe's step, and its ratios, as cells."""
    model = model_of(name, sizes).to(device).train()
    batch = model.conform(rows_of(model, sizes.batch, sizes.width)).to(device).dense()
    eager = step_of(model, EagerSteps(LossModule(model, connected=False)), batch, device)
    at_least = floor_of(eager, model, *speed)
    times = {"eager": seconds(eager, device, sizes)}
    backends: list[tuple[str, Backend]] = [("program", "traced")]
    if device.type == "cuda":
        backends.append(("graphed", "graph"))
    if name in COMPILED and sizes != QUICK and not table.late(f"{name} compiled"):
        backends.append(("compiled", "inductor"))
    for title, backend in backends:
        run = step_of(model, ProgramSteps(model, backend), batch, device)
        times[title] = seconds(run, device, sizes)
    bare = seconds(bare_step(model, eager), device, sizes)
    best = min(times.values())
    cells = [name, milliseconds(at_least), milliseconds(bare)]
    for title in ("eager", "program", "compiled", "graphed"):
        cells.append(milliseconds(times[title]) if title in times else "—")
    return (*cells, f"{times['eager'] / best:.2g}", f"{best / at_least:.3g}")


def milliseconds(value: float) -> str:
    return f"{1e3 * value:.3g} ms"


def rates(name: str, device: torch.device, sizes: Sizes) -> str:
    """How many rows a second are encoded, and scored with many draws."""
    model = model_of(name, sizes).to(device).eval()
    rows = rows_of(model, sizes.batch, sizes.width)
    encoded = seconds(lambda: model.encode(rows), device, attrs.evolve(sizes, steps=1))
    few = rows.take(slice(0, 64))
    scored = seconds(
        lambda: model.log_likelihood(few, n=sizes.draws), device, attrs.evolve(sizes, steps=1)
    )
    return (
        f"{name}: {len(rows) / encoded:,.0f} rows per second encoded; "
        f"{len(few) / scored:,.0f} rows per second scored with {sizes.draws} draws."
    )


def tests(device: torch.device) -> str:
    """What the tests marked `device` came to."""
    if device.type != "cuda":
        return "Tests marked `device`: left out, since they need CUDA."
    command = [sys.executable, "-m", "pytest", "-q", "-m", "device", "tests", "-p", "no:xdist"]
    run = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    print(run.stdout[-4000:])
    lines = run.stdout.strip().splitlines() or ["no output"]
    return f"Tests marked `device`: {lines[-1].strip('= ')}."


def name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, CPU, one thread"


def report(
    device: torch.device, sizes: Sizes, budget: float, chosen: list[str] | None = None
) -> str:
    """The whole check as markdown."""
    table = Table(time.monotonic() + budget)
    table.notes.append(tests(device))
    speed = roofline(device, sizes)
    every = mvkit.available("recipe")
    own = [name for name in every if getattr(recipes, name).__module__ == "mvkit.recipes"]
    names = chosen or own
    for name in names:
        if table.late(f"{name}"):
            continue
        try:
            table.rows.append(recipe_row(name, device, sizes, speed, table))
        except mvkit.UnknownComponent as error:
            table.notes.append(f"{name}: {error}.")
        print(*(table.rows[-1] if table.rows else ()), flush=True)
    for name in names[:2] if chosen else ("mopoe", "jmvae"):
        if not table.late(f"rates of {name}"):
            table.notes.append(rates(name, device, sizes))
    return page(device, sizes, speed, table)


def page(device: torch.device, sizes: Sizes, speed: tuple[float, float], table: Table) -> str:
    titles = ("recipe", "roofline", "bare", "eager", "program", "compiled", "graphed")
    titles = (*titles, "eager / best", "best / roofline")
    lines = [
        f"{name_of(device)}; torch {torch.__version__}, mvkit {mvkit.__version__}; batches of "
        f"{sizes.batch:,} rows with gaps, {sizes.width} numbers a modality. Measured: "
        f"{speed[0] / 1e12:.3g} TFLOP/s of float32 matrix products, {speed[1] / 1e9:.4g} GB/s. "
        "Written by `python benchmarks/device_check.py`.",
        "",
        "| " + " | ".join(titles) + " |",
        "|" + "---|" * len(titles),
        *("| " + " | ".join(row) + " |" for row in table.rows),
        "",
        *(f"* {note}" for note in table.notes),
    ]
    return "\n".join(lines)


def written(text: str, path: Path) -> None:
    """Puts a report between its markers on a page."""
    whole = path.read_text()
    if BEGIN not in whole or END not in whole:
        raise SystemExit(f"{path}: no markers {BEGIN} and {END}; expected both; add them")
    before, rest = whole.split(BEGIN)
    _, after = rest.split(END)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny models, one step each")
    parser.add_argument("--budget", type=float, default=420.0, help="seconds")
    parser.add_argument("--page", type=Path, help="where the table goes; docs/benchmarks.md")
    parser.add_argument("--recipes", nargs="*", help="some recipes; all")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; expected one; take --device cpu --quick to try")
    torch.set_num_threads(1)
    sizes = QUICK if options.quick else Sizes()
    text = report(device, sizes, options.budget, options.recipes)
    print(text)
    path = options.page or (None if options.quick else PAGE)
    if path is not None:
        written(text, path)


if __name__ == "__main__":
    main()
