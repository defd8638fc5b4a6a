"""The experiment of a teacher that is trained here."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ifsq import config
from ifsq.data.images import DataConfig
from ifsq.pretrained.teachers.trained import PatchNetConfig
from ifsq.training.config import TrainConfig

MOST_POINTS = 4096
"""Places of an image: more than its patches add nothing, and they are all in memory together."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """Two views of an image, and what the features of the same places in both are to be: alike, and unlike each other
    (Barlow Twins, arXiv:2103.03230, at matched places as in VICRegL, arXiv:2210.01571).

    smallest    side of a view at least, of the image's: 0.5 to 1
    colour      how far brightness, contrast and channels are changed, 0 to 1
    noise       standard deviation of noise on images in [-1, 1]
    points      places a pair of views that are compared
    expansion   width of the projectors in units of the network's
    redundancy  weight of correlations between unlike features, beside 1 for likeness
    whole       weight of the whole image's mean features beside those of places, 0 to 1
    """

    smallest: float = 0.5
    colour: float = 0.4
    noise: float = 0.05
    points: int = 16
    expansion: int = 4
    redundancy: float = 0.02
    whole: float = 0.5

    def __post_init__(self) -> None:
        if not 0.5 <= self.smallest <= 1:
            raise ValueError(f"smallest={self.smallest}: expected 0.5 to 1, so that two views have places in common")
        if not 0 <= self.colour < 1 or not 0 <= self.whole <= 1:
            raise ValueError(f"colour={self.colour}, whole={self.whole}: expected numbers from 0 to 1, colour below 1")
        for name in ("noise", "redundancy"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected no negative number")
        if not 1 <= self.points <= MOST_POINTS:
            raise ValueError(f"points={self.points}: expected 1 to {MOST_POINTS}")
        if self.expansion < 1:
            raise ValueError(f"expansion={self.expansion}: expected at least 1")


@dataclass(frozen=True)
class TeacherExperiment:
    """One teacher run.

    out        folder of the run
    data       its images, see `DataConfig`; their labels are not looked at
    network    the teacher, see `PatchNetConfig`
    objective  what it is trained with, see `ObjectiveConfig`
    train      the training, see `TrainConfig`
    """

    out: str
    data: DataConfig
    network: PatchNetConfig = field(default_factory=PatchNetConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if min(self.data.sides) < 4 * self.network.patch:
            raise ValueError(
                f"network.patch={self.network.patch} of images of {min(self.data.sides)} pixels: expected at least four"
                " patches a side"
            )
        for name in ("sample_every", "evaluate_every"):
            if every := getattr(self.train, name):
                raise ValueError(f"train.{name}={every} of a teacher, which draws nothing: expected 0")
        self.check_parts(1)
        if self.train.engine.sharding == "shard":
            raise ValueError("train.engine.sharding='shard' of a teacher, which is small: expected replicate")

    def check_parts(self, processes: int) -> None:
        """Raise InputError unless every part of a batch has two images, of so many processes."""
        parts = self.train.engine.accumulate * processes
        if self.train.batch < 2 * parts:
            raise config.InputError(
                f"train.batch={self.train.batch} in {parts} parts: expected at least 2 images in each, whose features"
                " are held against each other"
            )


def load_teacher_experiment(path: Path, overrides: Iterable[str] = ()) -> TeacherExperiment:
    """Read an experiment file. Raises InputError in one line for whatever is wrong with it."""
    table = config.merge(config.read_toml(path), config.parse_overrides(overrides, TeacherExperiment))
    return config.build(TeacherExperiment, table, str(path))
