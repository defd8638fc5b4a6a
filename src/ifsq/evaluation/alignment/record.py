"""``alignment.json``: what was found of the layers of a run beside a teacher, written whole and read strictly."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ifsq.config import InputError, build, read_json
from ifsq.data.images import Reading
from ifsq.evaluation.record import check_cards
from ifsq.metrics.alignment import NEIGHBOURS
from ifsq.metrics.card import ProtocolCard
from ifsq.pretrained.efficientnet_lite import NAME as EFFICIENTNET
from ifsq.pretrained.teachers.config import TeacherConfig
from ifsq.store.files import make_folder, write_text
from ifsq.store.run import Run

MOST_IMAGES = 2000
"""Images that are measured where nobody says how many."""
USUAL = TeacherConfig(EFFICIENTNET, layer=4)
"""The teacher of an analysis unless somebody says otherwise: a stage that tells what is on an image. Generators are
aligned to another by default."""
LABELS = {"null": "the null class", "class": "their own classes"}
"""What a generator is told of an image's class, and how cards say it."""


@dataclass(frozen=True)
class AlignmentAnalysis:
    """What is asked of the layers of a run.

    teacher     whose features they are held against
    source      images, as ``data.source`` of an experiment; empty: those of the run
    split       ``val``, ``train``, any other that the source has, or ``all``. Empty: what is held out
    count       images drawn over the split, always the same; None: all, and at most `MOST_IMAGES`
    neighbours  k of CKNNA and of mutual neighbours
    times       of a generator that reads noise, 0 is noise and 1 data; empty for some
    layers      names of some; empty: all
    labels      what a generator is told: ``null``, as an image without a class, or ``class``, by which it knows what a
                probe asks for, so that none is fitted
    seed        of the noise
    reading     how images are read
    """

    teacher: TeacherConfig = USUAL
    source: str = ""
    split: str = ""
    count: int | None = None
    neighbours: int = NEIGHBOURS
    times: tuple[float, ...] = ()
    layers: tuple[str, ...] = ()
    labels: str = "null"
    seed: int = 0
    reading: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise InputError(f"count {self.count}: expected at least 1")
        if self.labels not in LABELS:
            raise InputError(f"labels {self.labels!r}: expected one of {', '.join(LABELS)}")
        if len(set(self.times)) < len(self.times) or len(set(self.layers)) < len(self.layers):
            raise InputError(f"times {self.times}, layers {self.layers}: expected each once")


@dataclass(frozen=True)
class LayerFigures:
    """What was found of a layer.

    step    of the checkpoint; None of a saved model
    layer   its name
    time    of the noise; None where there is none
    values  figures by name, see `ifsq.evaluation.alignment.measure.FIGURES`; None where one is not defined
    """

    step: int | None
    layer: str
    time: float | None
    values: dict[str, float | None]


@dataclass(frozen=True)
class LayerAlignment:
    """The content of the file.

    card            the protocol; it holds no values
    teacher         name of the teacher
    teacher_digest  see `ifsq.pretrained.teachers.face.Teacher`
    neighbours      k
    weights         ``average`` or ``raw``
    rows            a step, time and layer each
    beside          figures of the teacher itself
    hashes          of the weights of each step
    left_out        what was not measured, and why
    skipped         a line about each image that could not be read
    """

    card: ProtocolCard
    teacher: str
    teacher_digest: str
    neighbours: int
    weights: str = "average"
    rows: tuple[LayerFigures, ...] = ()
    beside: dict[str, float | None] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[int | None, ...]:
        """Those that were measured, in their order."""
        return tuple(dict.fromkeys(row.step for row in self.rows))

    @property
    def times(self) -> tuple[float | None, ...]:
        """Those at which it was looked, in their order."""
        return tuple(dict.fromkeys(row.time for row in self.rows))

    @property
    def layers(self) -> tuple[str, ...]:
        """Those that were looked at, in the order of the data."""
        return tuple(dict.fromkeys(row.layer for row in self.rows))

    def of_step(self, step: int | None) -> tuple[LayerFigures, ...]:
        """The rows of a step."""
        return tuple(row for row in self.rows if row.step == step)

    def known(
        self, other: "LayerAlignment | None", step: int | None, digest: str, wanted: Sequence[tuple[str, float | None]]
    ) -> tuple[LayerFigures, ...]:
        """What another analysis by the same protocol found of a step, if that had these weights; else nothing.

        wanted  layers and times, all of which it must have
        """
        if other is None or other.hashes.get(str(step)) != digest:
            return ()
        rows = {(row.layer, row.time): row for row in other.of_step(step)}
        found: dict[str, Any] = {"rows": (), "hashes": {}, "beside": {}, "left_out": (), "skipped": ()}
        alike = replace(other, **found) == replace(self, **found)
        return tuple(rows[one] for one in wanted) if alike and rows.keys() >= set(wanted) else ()

    def extended(self, rows: Sequence[LayerFigures], step: int | None, digest: str) -> "LayerAlignment":
        """With the rows of one more step, whose weights have this SHA-256."""
        return replace(self, rows=(*self.rows, *rows), hashes={**self.hashes, str(step): digest})


def file_of(run: Run, teacher: str, suffix: str) -> Path:
    """Where an analysis lies that nobody asked for elsewhere.

    suffix  of images other than the run's usual ones
    """
    name = "".join(c if c.isalnum() or c in "-._@" else "-" for c in teacher)
    return run.folder / f"alignment_{name}{suffix}.json"


def check_out(out: Path) -> None:
    """Raise InputError unless an analysis can be written there, under a name that is free or of an older one."""
    if out.suffix != ".json":
        raise InputError(f"{out}: expected a name that ends in .json; the curves get its name with .png")
    check_cards(out)
    read_alignment(out)


def read_alignment(path: Path) -> LayerAlignment | None:
    """What a file holds; None where there is none. Raises InputError for anything else in it."""
    if not path.exists():
        return None
    table = read_json(path)
    if not isinstance(table, dict) or not isinstance(table.get("rows"), list):
        raise InputError(f"{path}: is there and holds no alignment; choose another name")
    return build(LayerAlignment, table, str(path))


def write_alignment(path: Path, found: LayerAlignment) -> None:
    """Write the file, whole or not at all. Raises InputError."""
    make_folder(path.parent)
    write_text(path, json.dumps(asdict(found) | {"card": found.card.to_dict()}, indent=1) + "\n")
