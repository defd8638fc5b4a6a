"""Several crops of every training image, for a cache of codes: fixed ones, or random ones that a seed decides."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ifsq.data.draws import mix
from ifsq.data.images import BUNDLED, MOST_RANGE, DataConfig, DataError, ImageSource
from ifsq.data.sources import open_images
from ifsq.data.workers import Items

KINDS = ("ten", "random")
USUAL_RANGE = {"ten": 1.1, "random": DataConfig.crop_range}
MOST_CROPS = 1024
FIVE = 5


@dataclass(frozen=True)
class Crops:
    """Which crops of a training image are taken.

    kind    ``ten``: the middle and the corners of a picture, each mirrored too, as LlamaGen has them; ``random``
    count   ``random``: how many
    ranges  how much more than the size the picture covers, as a factor, see ``DataConfig.crop_range``. ``ten``: five
            parts at each, LlamaGen's are 1.1 and 1.05; ``random``: crop k has the k-th of them, and so on around. Empty
            for 1.1 and 1.25
    seed    ``random``: crop k of image i is decided by (seed, i, k)
    """

    kind: str
    count: int = 0
    ranges: tuple[float, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"crops {self.kind!r}: expected ten or a number")
        if not self.ranges:
            object.__setattr__(self, "ranges", (USUAL_RANGE[self.kind],))
        if self.kind == "ten" and not self.count:
            object.__setattr__(self, "count", FIVE * len(self.ranges))
        if wrong := [value for value in self.ranges if not 1 <= value <= MOST_RANGE]:
            raise DataError(f"crop range {wrong[0]:g}: expected 1 to {MOST_RANGE:g}")
        if len(set(self.ranges)) < len(self.ranges):
            raise DataError(f"crop ranges {self.ranges}: expected each once")
        if not 1 <= self.count <= MOST_CROPS:
            raise DataError(f"crops {self.count}: expected ten, or a number of 1 to {MOST_CROPS}")
        if self.kind == "ten" and self.count != FIVE * len(self.ranges):
            raise DataError(f"ten crops and {self.count}: expected {FIVE} of each range, and their mirror images")
        if not 0 <= self.seed < 2**63:
            raise DataError(f"seed {self.seed}: expected 0 to 2**63 - 1")

    def sources(self, data: DataConfig, channels: int) -> tuple[ImageSource, ...]:
        """The training images, cropped so, a source for every range. Raises DataError."""
        if data.source in BUNDLED and (self.kind == "ten" or self.ranges != (USUAL_RANGE["random"],)):
            raise DataError(f"crops of {data.source}: it has a recipe of its own; expected a number of random ones")
        crop = "five" if self.kind == "ten" else "random"
        return tuple(
            open_images(replace(data, crop=crop, crop_range=value), "train", channels=channels) for value in self.ranges
        )

    def numbers(self, turn: int) -> range:
        """Which of the crops come from the source of range number ``turn``."""
        if self.kind == "ten":
            return range(turn * FIVE, (turn + 1) * FIVE)
        return range(turn, self.count, len(self.ranges))

    def items(self, turn: int, images: Sequence[int]) -> Items:
        """Pairs of image and seed for the crops of these images that come from the source of range number ``turn``."""
        numbers = self.numbers(turn)
        if self.kind == "ten":
            return [(index, number % FIVE) for index in images for number in numbers]
        return [(index, mix(self.seed, index, number)) for index in images for number in numbers]
