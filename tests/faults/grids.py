"""Row A10: a grid that is killed at random moments, and goes on: tokenizers of one rate, and nested ones at both."""

import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.cases import Found
from tests.faults.processes import LIMIT, found, start
from tests.faults.trial import wait_until
from tests.faults.world import copy

GRID = """
tokenizer = "tok.toml"
[axes]
tokenizer = ["fixed", "nested"]
bits = [2, 3]
[[left_out]]
when = { tokenizer = "fixed", bits = 3 }
[seeds]
training = [0, 1]
[[settings]]
when = { tokenizer = "nested" }
tokenizer.tokenizer.quantizer = { levels = [9, 9], nested_levels = [5, 9] }
[[settings]]
when = { tokenizer = "nested", bits = 2 }
codes.levels = 5
[evaluation.tokenizer]
judge = false
"""


def killed_grids(world: Path, place: Path, times: int = 6) -> Iterator[Found]:
    """SIGKILL at random moments; each loses the stage in progress alone, and the end is that of an unbroken grid."""
    draw = random.Random(0)
    folder = copy(world, place)
    (folder / "grid.toml").write_text(GRID)
    ended = start(folder, "bench grid.toml --out whole").end(LIMIT)
    done: dict[str, str] = {}
    wrong = ""
    for _ in range(times):
        run = start(folder, "bench grid.toml --out broken")
        wait_until(lambda: (folder / "broken/stages").is_dir(), run)
        time.sleep(draw.random())
        run.kill()
        now = _markers(folder / "broken")
        wrong = wrong or "a stage was done again" * any(now.get(name) != text for name, text in done.items())
        done = now
    ended = start(folder, "bench grid.toml --out broken").end(LIMIT)
    if not wrong and _figures(folder / "broken") != _figures(folder / "whole"):
        wrong = "other figures than unbroken"
    shutil.rmtree(folder)
    seen = found("A10", f"grid, {times} kills", ended, ("accepted",))
    yield seen if seen.bad or not wrong else Found("A10", seen.name, seen.kind, wrong, seen.detail)


def _markers(out: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in (out / "stages").glob("*.json")}


def _figures(out: Path) -> list[tuple[object, ...]]:
    rows = [json.loads(line) for line in (out / "measurements.jsonl").read_text().splitlines()]
    return [(row["cell"], row["seed"], row["metric"], row["value"], row["figure"], row["stage"]) for row in rows]
