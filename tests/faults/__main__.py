"""The table of faults, made again: ``python -m tests.faults [ROW ...] [--short]``. ``make faults`` runs all of it.

Rows: A2 A2b A3 A4 A4b A4c A5 A6 A7 A8 A9 A10 A11 B1 B2 B3 B3b B3c B4 B5 C1 C2 C3 C4 C5 C6. Exit code 1 where an
attempt ended in a traceback, a hang, too much memory or a crash, said more than a line, or was silently wrong.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from tests.faults import checkpoints, damage, features, grids, inputs, manifests, pairs, processes, surroundings, world
from tests.faults.cases import Case, Found

COLUMNS = ("accepted", "refused", "stopped", "traceback", "untidy", "hang", "memory", "crash")
GOLDEN = Path(os.environ.get("IFSQ_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden"))
SCENES: dict[str, tuple[Callable[[Path, Path], Iterator[Found]], ...]] = {
    "A2": (surroundings.full_disks,),
    "A2b": (surroundings.full_disk_under_a_picture,),
    "A3": (surroundings.without_permission,),
    "A4": (processes.killed_readers,),
    "A4b": (processes.other_errors,),
    "A4c": (processes.frozen_reader,),
    "A5": (processes.killed_ranks, processes.torchruns, processes.errors_of_one_rank, processes.frozen_rank),
    "A6": (pairs.two_trainings,),
    "A7": (pairs.other_pairs,),
    "A8": (processes.killed_samplings,),
    "A9": (features.killed_writers,),
    "A10": (grids.killed_grids,),
    "A11": (surroundings.places,),
}
"""What needs a moment, and so runs one after another."""
SHORT: dict[str, Callable[[Path, Path], Iterator[Found]]] = {
    "A2": lambda where, place: surroundings.full_disks(where, place, surroundings.WRITERS[3:8:2], (4096,)),
    "A2b": surroundings.full_disk_under_a_picture,
    "A3": lambda where, place: surroundings.without_permission(
        where, place, surroundings.WRITERS[:4:3], surroundings.READERS[:1]
    ),
    "A4": lambda where, place: processes.killed_readers(where, place, 1),
    "A5": lambda where, place: processes.killed_ranks(where, place, 1),
}
SHORT_EVERY = {
    "B1": 97,
    "B3": 5,
    "B3b": 8,
    "B3c": 13,
    "B4": 47,
    "B5": 41,
    "B2": 997,
    "C1": 37,
    "C2": 19,
    "C3": 37,
    "C4": 61,
    "C5": 29,
    "C6": 99,
}
"""The short form: one scene of a kind, and every n-th attempt of those that damage files."""
DAMAGED = ("B1", "B3", "B3b", "B3c", "B4", "B5", *inputs.ROWS)


def cases(row: str, where: Path, made: dict[str, str]) -> Iterable[Case]:
    """The attempts of a row that are independent of each other."""
    if row == "B1":
        return damage.cases(where, made)
    if row == "B3":
        return checkpoints.exchanged(made)
    if row == "B3b":
        return checkpoints.states(where, made)
    if row == "B3c":
        return checkpoints.weights(where)
    if row in inputs.ROWS:
        return inputs.ROWS[row](where)
    if row == "B5":
        return features.cases(where, made)
    return (*manifests.manifests(where, made), *manifests.shards(where, made), *manifests.hidden(where))


def undamaged(where: Path) -> dict[str, str]:
    """What each command of `damage.TARGETS` makes of the world as it is."""
    made = {}
    for target in damage.TARGETS:
        if target.made and target.line not in made and (where / target.file).exists():
            folder = world.copy(where, where.with_name("undamaged"))
            world.command(folder, target.line)
            made[target.line] = damage.result(folder, target.made)
            shutil.rmtree(folder)
    return made


def attempt_all(chosen: list[Case], where: Path, jobs: int) -> list[Found]:
    """Attempts that are independent of each other, shared by so many processes."""
    _chosen[:] = chosen  # forked processes find it: what a case does cannot be sent
    with ProcessPoolExecutor(jobs, get_context("fork")) as pool:
        parts = list(pool.map(_share, range(jobs), [jobs] * jobs, [where] * jobs))
    return [one for part in parts for one in part]


def run(rows: Iterable[str], every: int = 1, jobs: int = 1, short: bool = False) -> list[Found]:
    """All attempts of the rows, or every n-th of those that damage files; ``short``: a sample of each row."""
    import_everything()
    found: list[Found] = []
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(scratch) / "world"
        os.environ["IFSQ_CACHE"] = str(Path(scratch) / "cache")
        world.make(where, GOLDEN if GOLDEN.is_dir() else None)
        rows = [row for row in rows if not short or row in SHORT or row in SHORT_EVERY]
        made = undamaged(where) if set(rows) & set(DAMAGED) else {}
        for row in rows:
            began = time.monotonic()
            if row in SCENES:
                for scene in (SHORT[row],) if short else SCENES[row]:
                    found += scene(where, Path(scratch) / "scene")
            else:
                step = SHORT_EVERY[row] if short else every
                found += attempt_all(list(islice(cases(row, where, made), step // 2, None, step)), where, jobs)
            print(f"{row}: {time.monotonic() - began:.0f} s", file=sys.stderr)
            print(table([one for one in found if one.row.startswith(row)]), file=sys.stderr, flush=True)
    return found


_chosen: list[Case] = []


def _share(share: int, shares: int, where: Path) -> list[Found]:
    place = where.with_name(f"attempt_{share}")
    return [case.attempt(where, place) for case in _chosen[share::shares]]


def import_everything() -> None:
    """What the commands import, so that a forked one need not; nothing here computes, or its threads would be lost."""
    import torch

    torch.set_num_threads(1)
    import ifsq.bench.demo
    import ifsq.bench.grid.command
    import ifsq.bench.report
    import ifsq.interop.official.tokenizer
    import ifsq.pipeline  # noqa: F401


def table(found: list[Found]) -> str:
    """Markdown: a line a row of the table."""
    lines = [f"| row | tried | {' | '.join(COLUMNS)} | silently wrong |", "|---" * (len(COLUMNS) + 3) + "|"]
    for row in dict.fromkeys(one.row for one in found):
        of_row = [one for one in found if one.row == row]
        kinds = Counter(one.kind for one in of_row)
        counts = " | ".join(str(kinds[kind]) for kind in COLUMNS)
        lines.append(f"| {row} | {len(of_row)} | {counts} | {sum(bool(one.wrong) for one in of_row)} |")
    return "\n".join(lines)


def main() -> int:
    """Run what was asked for; prints the table and every fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("rows", nargs="*", default=[*SCENES, *DAMAGED])
    parser.add_argument("--every", type=int, default=1, help="of the damaged files, every n-th attempt")
    parser.add_argument("--short", action="store_true", help="a sample of each row")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    found = run(options.rows, options.every, options.jobs, options.short)
    bad = [one for one in found if one.bad]
    for one in bad:
        print(f"{one.row}: {one.name}: {one.kind}: {one.wrong or one.detail}"[:400])
    print(table(found))
    if options.out is not None:
        options.out.write_text(table(found) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
