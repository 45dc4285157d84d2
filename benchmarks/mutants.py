"""Mutants: small faults put into the core one by one, and which of them the tests notice.

`make mutants` tries a seeded sample of 100 in each module (up to three hours of one core);
`python benchmarks/mutants.py core/mixture --sample 1000` all of one. Works in a copy of the tree, so
that no fault stays behind. Writes `benchmarks/mutants.json` and prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "core/bounds": ["test_net", "test_objectives", "test_hierarchy"],
    "core/mixture": ["test_mixture", "test_products", "test_net", "test_parts"],
    "core/product_of_experts": ["test_products", "test_parts"],
    "core/decoding": ["test_net", "test_model", "test_objectives"],
    "core/terms": ["test_net", "test_objectives"],
    "core/loss": ["test_net", "test_objectives"],
}
# left out of the tests: the mean gradients of many thousand draws, which take a minute alone
SHORT = "not has_not and not iid_draws"
LIMIT = 60.0  # seconds that the tests of one mutant may take
CONFIGURATION = """
[cosmic-ray]
module-path = "mvkit/{module}.py"
timeout = {limit}
excluded-modules = []
test-command = "{command}"
[cosmic-ray.distributor]
name = "local"
"""
# left out: `|` of annotations, which nothing evaluates; decorators; operators that tensors lack
LEFT_OUT = ("_BitOr", "_BitXor", "_BitAnd", "Shift", "_Mod", "_FloorDiv", "RemoveDecorator")


def session(module: str, folder: Path) -> Path:
    """Lists the mutants of a module in a database."""
    tests = " ".join(f"tests/{name}.py" for name in TESTS[module])
    command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider -k '{SHORT}' {tests}"
    configuration = folder / "mutants.toml"
    text = CONFIGURATION.format(module=module, command=command, limit=LIMIT)
    configuration.write_text(text)
    database = folder / f"{module.replace('/', '-')}.sqlite"
    run("init", str(configuration), str(database), cwd=folder)
    return database


def run(*arguments: str, cwd: Path) -> None:
    """Runs cosmic-ray in the copy."""
    environment = {**os.environ, "PYTHONPATH": str(cwd), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "cosmic_ray.cli", *arguments]
    subprocess.run(program, cwd=cwd, env=environment, check=True, capture_output=True)


def thin(database: Path, sample: int) -> None:
    """Leaves out operators that tell nothing, and keeps a seeded sample of the others."""
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select job_id, operator_name from mutation_specs").fetchall()
        kept = [job for job, name in rows if not any(word in name for word in LEFT_OUT)]
        if len(kept) > sample:
            kept = random.Random(0).sample(kept, sample)
        for job, _ in rows:
            if job not in set(kept):
                connection.execute("delete from mutation_specs where job_id = ?", (job,))
                connection.execute("delete from work_items where job_id = ?", (job,))


def outcomes(database: Path) -> dict[str, object]:
    """How many mutants were tried and noticed, and where those are that were not."""
    with sqlite3.connect(database) as connection:
        rows = connection.execute(
            "select s.operator_name, s.start_pos_row, r.test_outcome, r.output, r.diff "
            "from mutation_specs s join work_results r on s.job_id = r.job_id"
        ).fetchall()
    survivors: list[str] = []
    slow = 0
    for operator, line, outcome, output, difference in rows:
        if "SURVIVED" in str(outcome):
            survivors.append(f"line {line}: {operator}\n{difference}")
        slow += "timeout" in str(output)[:20]
    noticed = len(rows) - len(survivors) - slow
    return {"tried": len(rows), "noticed": noticed, "too slow": slow, "survivors": survivors}


def main() -> None:
    """Tries the modules named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", default=list(TESTS))
    parser.add_argument("--sample", type=int, default=100)
    options = parser.parse_args()
    table: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "mvkit"
        ignore = shutil.ignore_patterns(".git", ".venv*", "*cache*")
        shutil.copytree(ROOT, folder, ignore=ignore)
        for module in options.modules:
            database = session(module, folder)
            thin(database, options.sample)
            run("baseline", str(folder / "mutants.toml"), cwd=folder)  # fails if the tests do
            run("exec", str(folder / "mutants.toml"), str(database), cwd=folder)
            table[module] = outcomes(database)
            counts = {name: table[module][name] for name in ("tried", "noticed", "too slow")}
            print(module, counts, flush=True)
    (ROOT / "benchmarks" / "mutants.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
