"""Pictures that come with scikit-image and scikit-learn, and procedural shapes: real images without a download.

The files are read from the installed packages by path, so that neither package is imported and nothing is fetched.
Ten classes each. Every recipe is versioned: change the number when the pixels change. Made by `ifsq.data.open_images`.
"""

import math
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from ifsq.data.decode import read_image
from ifsq.data.draws import Draws
from ifsq.data.images import DataConfig, DataError, ImageSource, fingerprint
from ifsq.data.transforms import to_channels


class Bundled(ImageSource):
    """Base of the bundled sources; a subclass draws the picture, this one owns seeds, flips and channels."""

    def __init__(self, config: DataConfig, split: str, channels: int = 3) -> None:
        self.config, self.split, self.shape = config.for_split(split), split, (*config.sides, channels)

    def load(self, index: int, seed: int) -> tuple[UInt8[np.ndarray, "H W c"], int]:
        """See `ImageSource.load`."""
        draws = Draws(seed, index) if self.split == "train" else Draws(index)
        image, label = self._draw(index, draws)
        if self.config.flip and draws.below(2):
            image = image[:, ::-1]
        return np.ascontiguousarray(to_channels(image, self.shape[2])), label

    def _draw(self, index: int, draws: Draws) -> tuple[np.ndarray, int]:
        raise NotImplementedError


class Photo(NamedTuple):
    """A photograph, the part of it that is used (left, top, right, bottom), and the side whose third is held out.

    Frames leave out empty sky and margins; the sides are those whose third still shows what the class is.
    """

    name: str
    package: str
    file: str
    val_side: str
    frame: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


PHOTOS = (
    Photo("astronaut", "scikit-image", "astronaut.png", val_side="right"),
    Photo("cat", "scikit-image", "chelsea.png", val_side="left"),
    Photo("coffee", "scikit-image", "coffee.png", frame=(0.1, 0.0, 0.9, 1.0), val_side="left"),
    Photo("galaxies", "scikit-image", "hubble_deep_field.jpg", val_side="right"),
    Photo("tissue", "scikit-image", "ihc.png", val_side="right"),
    Photo("motorcycle", "scikit-image", "motorcycle_left.png", frame=(0.1, 0.1, 0.95, 0.95), val_side="left"),
    Photo("retina", "scikit-image", "retina.jpg", frame=(0.12, 0.12, 0.88, 0.88), val_side="right"),
    Photo("rocket", "scikit-image", "rocket.jpg", frame=(0.0, 0.25, 1.0, 1.0), val_side="left"),
    Photo("pagoda", "scikit-learn", "china.jpg", frame=(0.0, 0.1, 0.8, 1.0), val_side="left"),
    Photo("flower", "scikit-learn", "flower.jpg", frame=(0.1, 0.1, 0.85, 1.0), val_side="right"),
)
SCALES = tuple(0.16 * 2 ** (step / 4) for step in range(5))
"""Longer side of a crop as a part of the picture's shorter side: 0.16 to 0.32, evenly in the logarithm."""
CROPS_PER_PHOTO = {"train": 1024, "val": 64}


class Photos(Bundled):
    """Random crops of ten colour photographs; the class is the picture (index modulo 10).

    Validation crops come from a third of each picture that no training crop touches: the two parts are cut apart
    before any resizing. Each part is kept at five scales, so that a crop is a slice.
    """

    def __init__(self, config: DataConfig, split: str, channels: int = 3) -> None:
        super().__init__(config, split, channels)
        self.classes = tuple(photo.name for photo in PHOTOS)
        parts = [photo_part(read_photo(photo), photo, split) for photo in PHOTOS]
        self.pyramids = [_pyramid(part, short, config.sides) for part, short in parts]
        self.fingerprint = fingerprint(
            self.config,
            split,
            f"photos 1, {SCALES}, {CROPS_PER_PHOTO}",
            (part.tobytes() for part, _ in parts),
            channels,
        )

    def __len__(self) -> int:
        return CROPS_PER_PHOTO[self.split] * len(PHOTOS)

    def _draw(self, index: int, draws: Draws) -> tuple[np.ndarray, int]:
        label, (height, width) = index % len(PHOTOS), self.config.sides
        level = self.pyramids[label][draws.below(len(SCALES))]
        top, left = draws.below(level.shape[0] - height + 1), draws.below(level.shape[1] - width + 1)
        return level[top : top + height, left : left + width], label


def photo_part(image: UInt8[np.ndarray, "H W 3"], photo: Photo, split: str) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
    """The pixels of a photograph that a split may use, and the shorter side of its frame in pixels."""
    height, width = image.shape[:2]
    left, top, right, bottom = photo.frame
    frame = image[round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
    width = frame.shape[1]
    first, second = np.split(frame, [width // 3 if photo.val_side == "left" else width - width // 3], axis=1)
    part = first if (photo.val_side == "left") == (split == "val") else second
    return part, min(frame.shape[:2])


def read_photo(photo: Photo) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of a photograph. Raises DataError where its package is not installed."""
    folder = {"scikit-image": "data", "scikit-learn": "datasets/images"}[photo.package]
    return read_image(_packaged(photo.package, f"{folder}/{photo.file}"))


class Digits(Bundled):
    """Scikit-learn's 1797 handwritten digits, white on black; every fifth image of a class is held out.

    The 8 x 8 originals fill the middle three quarters of the shorter side, bicubic, and move by up to a sixteenth of it
    either way, so that a digit is always whole. In validation the move depends on the index alone.
    """

    def __init__(self, config: DataConfig, split: str, channels: int = 3) -> None:
        super().__init__(config, split, channels)
        self.classes = tuple("0123456789")
        pixels, labels = _read_digits()
        place_in_class = np.zeros_like(labels)
        for label in range(10):
            place_in_class[labels == label] = np.arange((labels == label).sum())
        keep = (place_in_class % 5 == 4) == (split == "val")
        self.labels: list[int] = labels[keep].tolist()
        side = min(config.sides) * 3 // 4
        self.digits = np.stack([_enlarge(digit, side) for digit in pixels[keep]])
        contents = (pixels[keep].tobytes(), labels[keep].tobytes())
        self.fingerprint = fingerprint(self.config, split, "digits 1", contents, channels)

    def __len__(self) -> int:
        return len(self.labels)

    def _draw(self, index: int, draws: Draws) -> tuple[np.ndarray, int]:
        digit, sides = self.digits[index], self.config.sides
        side, reach = digit.shape[0], min(sides) // 16
        top, left = ((length - side) // 2 + draws.below(2 * reach + 1) - reach for length in sides)
        image = np.zeros((*sides, 3), dtype=np.uint8)
        image[top : top + side, left : left + side] = digit[..., None]
        return image, self.labels[index]


def _ring(points: int, inner: float = 1.0) -> list[tuple[float, float]]:
    """Corners on the unit circle, the first at the top, every second one pulled in to ``inner``."""
    turns = [2 * math.pi * corner / points for corner in range(points)]
    radii = [inner if corner % 2 else 1.0 for corner in range(points)]
    return [(radius * math.sin(turn), -radius * math.cos(turn)) for radius, turn in zip(radii, turns, strict=True)]


_BAR = [(-1.0, -0.3), (1.0, -0.3), (1.0, 0.3), (-1.0, 0.3)]
_SQUARE = [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
# Polygons to fill, and the part of the first one's radius that is left hollow.
OUTLINES: dict[str, tuple[list[list[tuple[float, float]]], float]] = {
    "circle": ([_ring(40)], 0.0),
    "ring": ([_ring(40)], 0.6),
    "square": ([_SQUARE], 0.0),
    "frame": ([_SQUARE], 0.6),
    "triangle": ([_ring(3)], 0.0),
    "diamond": ([[(0.0, -1.0), (0.6, 0.0), (0.0, 1.0), (-0.6, 0.0)]], 0.0),
    "star": ([_ring(10, inner=0.4)], 0.0),
    "bar": ([_BAR], 0.0),
    "cross": ([_BAR, [(y, x) for x, y in _BAR]], 0.0),
    "arrow": ([[(-1.0, -0.3), (0.0, -0.3), (0.0, -0.9), (1.0, 0.0), (0.0, 0.9), (0.0, 0.3), (-1.0, 0.3)]], 0.0),
}
SHAPES_PER_CLASS = {"train": 512, "val": 32}


class Shapes(Bundled):
    """One coloured shape on a plain ground, at a random place and size; the class is the outline (index modulo 10)."""

    def __init__(self, config: DataConfig, split: str, channels: int = 3) -> None:
        super().__init__(config, split, channels)
        self.classes = tuple(OUTLINES)
        self.fingerprint = fingerprint(self.config, split, f"shapes 1, {OUTLINES}, {SHAPES_PER_CLASS}", (), channels)

    def __len__(self) -> int:
        return SHAPES_PER_CLASS[self.split] * len(OUTLINES)

    def _draw(self, index: int, draws: Draws) -> tuple[np.ndarray, int]:
        label, (height, width) = index % len(OUTLINES), self.config.sides
        polygons, hollow = OUTLINES[self.classes[label]]
        ground, colour = _two_colours(draws)
        radius = min(height, width) * (0.22 + 0.2 * draws.uniform())
        middle = [radius + (length - 2 * radius) * draws.uniform() for length in (width, height)]
        canvas = Image.new("RGB", (4 * width, 4 * height), ground)
        brush = ImageDraw.Draw(canvas)
        for polygon in polygons:
            brush.polygon(_place(polygon, middle, radius), fill=colour)
        if hollow:
            brush.polygon(_place(polygons[0], middle, radius * hollow), fill=ground)
        return np.asarray(canvas.reduce(4)), label


def _place(polygon: list[tuple[float, float]], middle: list[float], radius: float) -> list[tuple[float, float]]:
    """Corners in pixels of the four times enlarged canvas."""
    return [(4 * (middle[0] + radius * x), 4 * (middle[1] + radius * y)) for x, y in polygon]


def _two_colours(draws: Draws) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A dark ground and a light colour, or the other way round."""
    dark = tuple(draws.below(96) for _ in range(3))
    light = tuple(128 + draws.below(128) for _ in range(3))
    return (dark, light) if draws.below(2) else (light, dark)


def _packaged(package: str, path: str) -> Path:
    """A file inside an installed package, found without importing the package."""
    module = {"scikit-image": "skimage", "scikit-learn": "sklearn"}[package]
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"bundled images need {package}, which is not installed")
    file = Path(spec.submodule_search_locations[0]) / path
    if not file.is_file():
        raise DataError(f"bundled images need {path}, which {package} {version(package)} does not carry")
    return file


def _pyramid(part: np.ndarray, short: int, sides: tuple[int, int]) -> list[np.ndarray]:
    """The part resized so that the longer of ``sides`` spans each of `SCALES`, antialiased."""
    picture, levels = Image.fromarray(part), []
    for scale in SCALES:
        factor = max(sides) / (scale * short)
        shape = (max(sides[1], round(picture.width * factor)), max(sides[0], round(picture.height * factor)))
        levels.append(np.asarray(picture.resize(shape, Image.Resampling.BICUBIC)))
    return levels


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels (1797, 8, 8) in 0 .. 16 and labels (1797,)."""
    table = np.loadtxt(_packaged("scikit-learn", "datasets/data/digits.csv.gz"), delimiter=",", dtype=np.int64)
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1]


def _enlarge(digit: np.ndarray, side: int) -> np.ndarray:
    picture = Image.fromarray((digit * 255 // 16).astype(np.uint8))
    return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))
