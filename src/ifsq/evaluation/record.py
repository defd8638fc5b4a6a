"""``evaluation.json`` and ``evaluations/step_N.json``: what was measured of a run, written whole and read strictly."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ifsq.config import InputError, build, read_json
from ifsq.data.image_sets import is_card
from ifsq.metrics.card import ProtocolCard
from ifsq.quantizers.usage import LevelUse
from ifsq.store.files import make_folder, write_text
from ifsq.store.run import Run


@dataclass(frozen=True)
class Evaluation:
    """The content of the file. What one kind of run has and the other has not is empty there.

    cards     a figure each, with its protocol
    step      of the checkpoint that was measured; None of a saved model
    weights   ``average`` or ``raw``: which of the two that a checkpoint holds
    seen      images that training had taken by that step, those it took again counted again; None where not counted
    flops     floating-point operations of training by that step, forward and backward; None where not counted
    levels    how several quantizers would use their levels, by name
    latent    ``mean`` and ``std`` of every dimension
    left_out  measurements that could not be taken, and why
    skipped   a line about each image that could not be read
    classes   names of those that were drawn
    shown     names of those on the sheets; of older files the first classes
    neighbours  how the nearest training images on their sheet were found; empty: there is no such sheet
    """

    cards: tuple[ProtocolCard, ...]
    step: int | None = None
    levels: dict[str, LevelUse] = field(default_factory=dict)
    latent: dict[str, tuple[float, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    weights: str = "average"
    seen: int | None = None
    flops: float | None = None
    neighbours: str = ""

    def __post_init__(self) -> None:
        if not self.cards:
            raise ValueError("cards []: expected at least one protocol card")

    @property
    def lacks(self) -> list[str]:
        """What could not be measured, a line each."""
        lines = [f"left out: {line}" for line in self.left_out]
        if self.skipped:
            lines.append(f"skipped: {len(self.skipped)} images; the first: {self.skipped[0]}")
        return lines


def write_evaluation(run: Run, evaluation: Evaluation, suffix: str = "", step: int | None = None) -> None:
    """Write the file, or that of a step; with ``suffix`` in its name where it was measured otherwise than usual.

    Raises InputError.
    """
    run.write_evaluation(_table(evaluation), suffix, step)


def check_cards(path: Path) -> None:
    """Raise InputError unless cards can be written there, under a name that is free or of older cards."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected the name of a file")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"{path}: cannot be written into {there}; expected a folder that can")
    if path.is_file() and is_card(path):
        raise InputError(f"{path}: says of what samples are; choose another name for the cards")
    if path.exists() and not _starts_as_json(path):
        raise InputError(f"{path}: is there and holds no cards; choose another name for them")


def _starts_as_json(path: Path) -> bool:
    """By the first byte: what is given by mistake may be an .npz of many images."""
    if not path.is_file():  # a pipe would wait
        return False
    try:
        with path.open("rb") as file:
            return file.read(1) == b"{"
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def write_cards(path: Path, evaluation: Evaluation) -> None:
    """Write an evaluation that is of no run, in the same form. Raises InputError."""
    make_folder(path.parent)
    write_text(path, json.dumps(_table(evaluation), indent=1) + "\n")


def read_cards(path: Path) -> Evaluation:
    """Read an evaluation by the path of its file. Raises InputError, as `read_evaluation`."""
    table = read_json(path)
    if not isinstance(table, dict) or not isinstance(table.get("cards"), list):
        raise InputError(f"{path}: holds no cards; expected what ifsq evaluate or an eval wrote")
    return _evaluation(table, path)


def read_evaluation(run: Run, step: int | None = None) -> Evaluation | None:
    """Read the file, or that of a step; None where there is none.

    Raises InputError naming what is missing, unknown or of another type.
    """
    path, table = run.evaluation_file(step), run.evaluation(step)
    return None if table is None else _evaluation(table, path)


def read_evaluations(run: Run) -> dict[int, Evaluation]:
    """The evaluations of a run by step, oldest first; empty where no step was evaluated. Raises InputError."""
    found = {step: read_evaluation(run, step) for step in run.evaluated}
    return {step: evaluation for step, evaluation in found.items() if evaluation is not None}


def _table(evaluation: Evaluation) -> dict[str, Any]:
    return asdict(evaluation) | {"cards": [card.to_dict() for card in evaluation.cards]}


def _evaluation(table: dict[str, Any], path: Path) -> Evaluation:
    for card in table["cards"]:
        if not isinstance(card, dict):
            raise InputError(f"{path}: cards: {str(card)[:80]!r}: expected a JSON object; evaluate the run again")
        try:
            ProtocolCard.check_fields(card)  # which fields there are; what they may hold, `build` says
        except ValueError as error:
            raise InputError(f"{path}: {error}; evaluate the run again") from error
        if not card["values"]:
            raise InputError(f"{path}: {card['metric']}: has no values; evaluate the run again")
    return build(Evaluation, table, str(path))
