"""Teachers ranked before any generator is trained: by how much their features say about where a patch lies."""

import math
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from ifsq.config import InputError
from ifsq.data import DataConfig, open_images, split_called
from ifsq.data.images import ImageSource, Reading, Size
from ifsq.evaluation.options import held_out_of
from ifsq.evaluation.protocol import images_card, name_of, sample_indices
from ifsq.evaluation.record import Evaluation
from ifsq.evaluation.teacher import WATCHED, Features, TeacherFigures, measure_teacher
from ifsq.generators.repa.encode import named
from ifsq.metrics import ProtocolCard
from ifsq.metrics.spatial import far_from
from ifsq.pretrained.teachers import ImageTeacher, TeacherConfig, open_teacher
from ifsq.training.distributed import World, in_turn
from ifsq.training.log import Reporter

LARGEST = 64
"""Tokens a side: all pairs of patches are compared."""
WITHIN = 1.96
"""Standard errors on either side of a mean that a range of 95 % takes in."""


@dataclass(frozen=True)
class TeacherScoring:
    """Which teachers, on which images.

    teachers  see `open_teacher`
    source    images, as ``data.source`` of an experiment
    split     of them; empty: ``val``, else ``test``, or all of a source without splits
    size      pixels a side, or height and width, that images are cropped to before teachers see them
    grid      rows and columns of tokens, as of the generator that is to be aligned
    count     images drawn over the split, always the same; None: all, and at most `WATCHED`
    reading   how the images are read
    """

    teachers: tuple[TeacherConfig, ...]
    source: str
    split: str = ""
    size: Size = 256
    grid: tuple[int, int] = (16, 16)
    count: int | None = None
    reading: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        if not self.teachers or len(set(self.teachers)) < len(self.teachers):
            names = "; ".join(map(named, self.teachers)) or "none"
            raise InputError(f"teachers {names}: expected at least one, each once")
        if self.count is not None and self.count < 2:
            raise InputError(f"count {self.count}: expected at least 2")
        rows, columns = self.grid
        if not 1 <= min(self.grid) <= max(self.grid) <= LARGEST or far_from(self.grid) > rows + columns - 2:
            raise InputError(f"grid {rows}x{columns}: expected 2x2 to {LARGEST}x{LARGEST} tokens")


@dataclass(frozen=True)
class Scored:
    """A teacher and what was found of it.

    name   of it, with options that are not usual
    width  numbers in a feature
    below  how far the mean of its LDS lies below the best one's, and the standard error of that, image by image
    cards  ``LDS(name)``, and ``probe(name)`` of images with classes
    """

    name: str
    width: int
    figures: TeacherFigures
    below: tuple[float, float]
    cards: tuple[ProtocolCard, ...]


def measure_teachers(asked: TeacherScoring, world: World, reporter: Reporter) -> tuple[list[Scored], Evaluation]:
    """The teachers, best LDS first, and their cards in this order. All processes share the images.

    Raises InputError in every process, before anything is measured where a teacher cannot be opened.
    """
    data = DataConfig(asked.source, asked.size, **asked.reading.options())
    split = split_called(data, asked.split) if asked.split else held_out_of(data)
    images = open_images(data, split, labels=False)
    if asked.count is not None and asked.count > len(images):
        raise InputError(f"count {asked.count}: expected 2 to {len(images)}, the images that there are")
    indices = sample_indices(images, asked.count or WATCHED)
    teachers = [in_turn(world, lambda one=one: open_teacher(one)) for one in asked.teachers]  # type: ignore[misc]
    found = [_look(one, teacher, images, indices, asked, world, reporter)
             for one, teacher in zip(asked.teachers, teachers, strict=True)]  # fmt: skip
    name = name_of(data, split) + (f", {len(indices)} drawn" if len(indices) < len(images) else "")
    blank = images_card(data, name, images.fingerprint, len(found[0].lds))
    order = sorted(range(len(found)), key=lambda i: -float(found[i].lds.mean()))
    scored = [_scored(asked, i, teachers[i], found[i], found[order[0]].lds, blank) for i in order]
    return scored, Evaluation(tuple(card for one in scored for card in one.cards), skipped=found[0].skipped)


def _look(
    config: TeacherConfig, teacher: ImageTeacher, images: ImageSource, indices: list[int], asked: TeacherScoring,
    world: World, reporter: Reporter,
) -> TeacherFigures:  # fmt: skip
    reporter.start(f"structure of {named(config)}", 0, len(indices))
    teacher.to(world.device)
    found = measure_teacher(
        _features(teacher, asked.grid),
        asked.grid,
        images,
        indices,
        world,
        asked.reading.workers or 0,
        lambda done: reporter.advance(min(done * world.size, len(indices)), {}),
    )
    teacher.cpu()
    reporter.finish({})
    return found


def _features(teacher: ImageTeacher, grid: tuple[int, int]) -> Features:
    def features(pictures: Float[Tensor, "b c H W"]) -> Float[Tensor, "b t f"]:
        try:
            return teacher.features(pictures, grid)
        except ValueError as error:
            raise InputError(f"teacher {error}") from error

    return features


def _scored(
    asked: TeacherScoring, number: int, teacher: ImageTeacher, found: TeacherFigures, best: Float[Tensor, "n"],
    blank: ProtocolCard,
) -> Scored:  # fmt: skip
    name, (rows, columns) = named(asked.teachers[number]), asked.grid
    card = replace(blank, features=f"{teacher.name} ({teacher.digest[:12]})")
    mean, error = _mean(found.lds)
    distance = f"patches of {rows}x{columns}; distant ones are at least {far_from(asked.grid)} apart"
    cards = [replace(card, metric=f"LDS({name})", values=_range("lds", mean, error), method=distance)]
    if found.probe is not None:
        values = {**_range("accuracy", found.probe.accuracy, found.probe.error), "chance": found.probe.chance}
        method = f"ridge regression on means over {rows}x{columns} patches"
        cards.append(replace(card, metric=f"probe({name})", values=values, method=method))
    return Scored(name, teacher.width, found, _mean(best - found.lds), tuple(cards))


def _mean(values: Float[Tensor, "n"]) -> tuple[float, float]:
    """Mean and its standard error; 0 of a single value."""
    return float(values.mean()), float(values.std(correction=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _range(name: str, value: float, error: float) -> dict[str, float]:
    return {name: value, "low": value - WITHIN * error, "high": value + WITHIN * error}
