"""Rows A6 and A7: the same folder twice at once."""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.cases import Found
from tests.faults.processes import LIMIT, found, many, moving, start
from tests.faults.trial import wait_until
from tests.faults.world import copy, weights_of

TRAIN = "tokenizer train tok.toml --out twice --train.steps 400 --train.save_every 20"


def two_trainings(world: Path, place: Path, times: int = 10) -> Iterator[Found]:
    """Row A6: the second is refused, the first ends with the bits and the log of one that was alone."""
    alone = copy(world, place)
    start(alone, TRAIN).end(LIMIT)
    bits, log = weights_of(alone / "twice/checkpoints/step_400"), _steps(alone)
    shutil.rmtree(alone)
    draw = random.Random(0)
    for number in range(times):
        folder = copy(world, place)
        first = start(folder, TRAIN, "first")
        if number:
            wait_until(moving(folder, "twice", 1), first)
            time.sleep(draw.random() * 1.5)
        ends = {}
        second = start(folder, TRAIN, "second")
        for name, one in (("second", second), ("first", first)):
            ends[name] = one.end(LIMIT)
        if number:
            yield found("A6", "second of two trainings", ends["second"], ("refused",))
            yield found("A6", "first of two trainings", ends["first"], ("accepted",))
        else:  # started together: one of them
            kinds = sorted(end.kind for end in ends.values())
            wrong = "" if kinds == ["accepted", "refused"] else f"{kinds}, expected one to train and one to be refused"
            yield Found("A6", "two trainings at once", kinds[-1], wrong, ends["second"].line)
        same = weights_of(folder / "twice/checkpoints/step_400") == bits and _steps(folder) == log
        yield Found("A6", "what the first wrote", "accepted", "" if same else "other bits, or another log")
        shutil.rmtree(folder)


def other_pairs(world: Path, place: Path) -> Iterator[Found]:
    """Row A7: two encodes, two evaluations that train one judge, two exports."""
    for number in range(8):
        yield from _pair(world, place, "encode tok images out", 0.3 * number, crowd=True)
    for number in range(3):
        yield from _pair(world, place, "tokenizer eval lone/tok", 0.7 * number, lone=True)
    for number in range(3):
        yield from _pair(world, place, "export pretrained tok --out new", 0.2 * number)


def _pair(
    world: Path, place: Path, line: str, delay: float, crowd: bool = False, lone: bool = False
) -> Iterator[Found]:
    folder = copy(world, place)
    if crowd:
        many(folder, 1500)
    if lone:  # a run without a judge beside it
        shutil.copytree(folder / "tok", folder / "lone/tok")
    first = start(folder, line, "first")
    time.sleep(delay)
    second = start(folder, line, "second")
    ends = [first.end(2 * LIMIT), second.end(2 * LIMIT)]
    shutil.rmtree(folder)
    for which, end in zip(("first", "second"), ends, strict=True):
        yield found("A7", f"{line}, {which}", end, ("accepted", "refused"))
    if "accepted" not in (ends[0].kind, ends[1].kind):
        yield Found("A7", line, "refused", "neither of the two did its work", ends[0].line)


def _steps(folder: Path) -> list[bytes]:
    """The beginning of each row of a log: its step."""
    return [row.partition(b",")[0] for row in (folder / "twice/metrics.jsonl").read_bytes().splitlines()]
