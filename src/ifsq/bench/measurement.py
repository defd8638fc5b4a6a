"""One figure that a grid measured, as a JSON line of ``measurements.jsonl``: what the report and the verdicts read."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ifsq.bench.figures import LARGEST
from ifsq.config import InputError, build, parse_json
from ifsq.metrics.card import ProtocolCard
from ifsq.store.files import append_text, write_text

MEASUREMENTS = "measurements.jsonl"
"""Name of the file in a grid's folder."""


@dataclass(frozen=True)
class Measurement:
    """A figure of a cell of the grid, measured once.

    cell           value of each axis that the figure depends on, seeds apart: ``{"tokenizer": "ifsq", "bits": 4}`` of a
                   tokenizer, with ``"generator"`` and more of a generator
    seed           of the training
    sampling_seed  of the images drawn; None where nothing is drawn
    step           of the checkpoint that was measured; None of a model that has none
    flops          floating-point operations of training up to that step, forward and backward; None where not counted
    metric, value  names on the card, as ``FD(judge)`` and ``distance``
    figure         the number
    card           the whole protocol card, see `ProtocolCard`
    stage          content address of the stage that was measured
    run            its folder, relative to the grid's
    command        what measures this alone
    evaluation     folder of the stage that measured it, relative to the grid's; empty in older files
    """

    cell: dict[str, str | int | float]
    seed: int
    sampling_seed: int | None
    step: int | None
    flops: float | None
    metric: str
    value: str
    figure: float
    card: dict[str, Any]
    stage: str
    run: str
    command: str
    evaluation: str = ""

    def __post_init__(self) -> None:
        if not abs(self.figure) < LARGEST:
            raise ValueError(f"figure={self.figure}: expected a finite number")
        ProtocolCard.check_fields(self.card)
        values = self.card["values"]
        if not isinstance(values, dict) or not all(type(value) in (int, float) for value in values.values()):
            raise ValueError("card.values: expected numbers by name")
        held = (self.card["metric"], self.card["values"].get(self.value))
        if held != (self.metric, self.figure):
            raise ValueError(f"card: {held[0]}, {self.value} {held[1]}; expected {self.metric}, {self.figure}")

    @property
    def key(self) -> tuple[Any, ...]:
        """What no two measurements of a grid have in common."""
        cell = tuple(sorted(self.cell.items()))
        return cell, self.seed, self.sampling_seed, self.step, self.metric, self.value, self.stage


def newest(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Those at the newest step at which their cell was measured by their metric, all seeds of it at the same step.

    Of what was measured again by another stage the last line stands.
    """
    steps: dict[tuple[Any, ...], int] = {}
    last: dict[tuple[Any, ...], Measurement] = {}
    for one in measurements:
        of = (tuple(sorted(one.cell.items())), one.metric, one.value)
        steps[of] = max(steps.get(of, -1), one.step or 0)
        last[(*of, one.step or 0, one.seed, one.sampling_seed)] = one
    return [one for (*of, step, _, _), one in last.items() if step == steps[tuple(of)]]


def by_seed(measurements: Iterable[Measurement]) -> dict[int, tuple[float, ...]]:
    """Figures by training seed, in the order of these; of each seed one a sampling seed."""
    found: dict[int, list[float]] = {}
    for one in measurements:
        found.setdefault(one.seed, []).append(one.figure)
    return {seed: tuple(found[seed]) for seed in sorted(found)}


def append_measurement(path: Path, measurement: Measurement) -> None:
    """Add a line at the end of the file, which need not be there yet. Raises InputError."""
    append_text(path, _line(measurement))


def write_measurements(path: Path, measurements: Iterable[Measurement]) -> None:
    """Write the file with these alone, whole or not at all; its folder must exist. Raises InputError."""
    write_text(path, "".join(map(_line, measurements)))


def read_measurements(path: Path) -> list[Measurement]:
    """All complete lines of the file; a last line cut short by a kill is left out.

    Raises InputError where there is no such file, and naming the first line that is damaged, incomplete, of other
    fields or types, or that says what an earlier one says.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: {'is no regular file' if path.exists() else 'no such file'}; expected what bench wrote"
        )
    found: dict[tuple[Any, ...], Measurement] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        where = f"{path}: line {number}"
        try:
            table = parse_json(line.decode(), where)
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: is damaged: {error}") from error
        if not isinstance(table, dict):
            raise InputError(f"{where}: expected a JSON object, got {str(table)[:80]}")
        measurement = build(Measurement, table, where)
        if measurement.key in found:
            raise InputError(f"{where}: measures again what an earlier line did; remove one of them")
        found[measurement.key] = measurement
    return list(found.values())


def _line(measurement: Measurement) -> str:
    return json.dumps(asdict(measurement), allow_nan=False) + "\n"
