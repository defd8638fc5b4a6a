"""What a grid's shared stages save: `ifsq bench` against the same cells one by one through the verbs.

    python benchmarks/grid_sharing.py bits --out DIR --axes.bits [4] --seeds.training [0]

The grid runs first, two stages at a time, a thread each. Then each cell with a generator is done by itself, by
``ifsq tokenizer train``, ``tokenizer eval``, ``encode``, ``generator train`` and ``generator eval``, with all cores, in
folders side by side, so that the judge is trained once. Last, ``--same N`` cells are done so again with one thread, as
the grid has them, and every figure must be the grid's own, to the last bit.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ifsq.bench.grid.cells import told
from ifsq.bench.grid.command import grid_file
from ifsq.bench.grid.plan import Figures, Plan, plan_grid
from ifsq.bench.measurement import MEASUREMENTS, read_measurements
from ifsq.config import to_dict
from ifsq.evaluation.record import read_cards
from ifsq.store.run import EVALUATION


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("grid", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--same", type=int, default=2, metavar="N")
    options, overrides = parser.parse_known_args()
    file, grid = grid_file(options.grid), options.out / "grid"
    shared = timed(["bench", str(options.grid), "--out", str(grid), "--jobs", "2", *overrides], threads=1)
    print(f"grid: {shared:.0f} s", flush=True)
    plan = plan_grid(file, grid, overrides)
    cells = [one for one in plan.figures if "generator" in one.cell and one.sampling_seed is not None]
    alone = 0.0
    for one in cells:
        took = by_itself(plan, one, options.out / "alone" / name(one), None)
        alone += took
        print(f"{told(one.cell)}, seed {one.seed}: {took:.1f} s", flush=True)
    print(f"{len(cells)} cells, grid {shared:.0f} s, one by one {alone:.0f} s: {shared / alone:.3f}")
    for one in cells[:: max(1, len(cells) // max(1, options.same))][: options.same]:
        folder = options.out / "same" / name(one)
        by_itself(plan, one, folder, 1)
        found, expected = figures_in(folder), figures_of(grid, one)
        unlike = {key: (found.get(key), figure) for key, figure in expected.items() if found.get(key) != figure}
        print(f"{told(one.cell)}, seed {one.seed}: {len(expected)} figures, {len(unlike)} unlike {unlike or ''}")


def by_itself(plan: Plan, one: Figures, folder: Path, threads: int | None) -> float:
    """Seconds that a cell takes through the verbs."""
    generator: Any = plan.stages[one.of].work
    tokenizer: Any = next(
        plan.stages[need].work for need in plan.stages[one.of].needs if plan.stages[need].kind == "tokenizer"
    )
    asked = plan.grid.evaluation.generator
    folder.parent.mkdir(parents=True, exist_ok=True)
    places = {part: place_of(folder, part) for part in ("tokenizer", "codes", "generator")}
    files = {part: folder.with_name(f"{folder.name}_{part}.toml") for part in ("tokenizer", "generator")}
    write(files["tokenizer"], {**to_dict(tokenizer.experiment), "out": str(places["tokenizer"])})
    over = {"tokenizer": str(places["tokenizer"]), "codes": str(places["codes"]), "out": str(places["generator"])}
    write(files["generator"], {**to_dict(generator.experiment), **over})
    lines = [
        ["tokenizer", "train", str(files["tokenizer"])],
        ["tokenizer", "eval", str(places["tokenizer"])],
        ["encode", str(places["tokenizer"]), tokenizer.experiment.data.source, str(places["codes"])],
        ["generator", "train", str(files["generator"])],
        ["generator", "eval", str(places["generator"]), "--samples", str(asked.samples), "--no-twin"],
    ]
    drawing: Any = plan.stages[one.stage].work
    lines[-1] += ["--seed", str(drawing.asked.seed), "--features", *asked.features]
    return sum(timed(line, threads) for line in lines)


def place_of(folder: Path, part: str) -> Path:
    """Where a part of a cell is done: beside those of all other cells."""
    return folder.with_name(f"{folder.name}_{part}")


def timed(line: list[str], threads: int | None) -> float:
    """Seconds that a command takes, which must end well."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "ifsq", *line], check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def figures_in(folder: Path) -> dict[tuple[str, str], float]:
    """By metric and value, of both runs of a cell."""
    cards = [
        card for part in ("tokenizer", "generator") for card in read_cards(place_of(folder, part) / EVALUATION).cards
    ]
    return {(card.metric, value): figure for card in cards for value, figure in card.values.items()}


def figures_of(grid: Path, one: Figures) -> dict[tuple[str, str], float]:
    """The same, as the grid measured them."""
    return {
        (each.metric, each.value): each.figure
        for each in read_measurements(grid / MEASUREMENTS)
        if each.seed == one.seed and each.cell.items() <= one.cell.items()
    }


def name(one: Figures) -> str:
    """A folder for a cell and its seed."""
    return f"{told(one.cell)} {one.seed}".replace(" ", "_")


def write(file: Path, table: dict[str, Any]) -> None:
    """An experiment as TOML: what is None is left out."""
    file.write_text("".join(lines_of(table, "")))


def lines_of(table: dict[str, Any], prefix: str) -> list[str]:
    """Of a table: its values, then the tables in it."""
    values = {key: value for key, value in table.items() if value is not None and not isinstance(value, dict)}
    lines = [f"[{prefix}]\n"] if prefix and values else []
    lines += [f"{key} = {json.dumps(value)}\n" for key, value in values.items()]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += lines_of(value, f"{prefix}.{key}" if prefix else key)
    return lines


if __name__ == "__main__":
    main()
