"""What a person asks of an evaluation of a tokenizer. Made by ``cli``, followed by ``pipeline``."""

from dataclasses import dataclass, field

from ifsq.config import InputError
from ifsq.data.images import Reading, Size, height_width, size_text
from ifsq.pretrained.lpips import SMALLEST

OFFICIAL = "official"


@dataclass(frozen=True)
class TokenizerEvaluation:
    """Which images, and which measures beside those that cost nothing.

    source  images, as ``data.source`` of an experiment; empty: what the tokenizer was trained on
    split   ``val``, ``train``, any other that the source has, or ``all``; none is flipped or cropped at random. Empty:
            ``val``; of another source than the tokenizer's its ``val``, else its ``test``, or all of it without splits
    size    pixels a side, or height and width; 0: what the tokenizer was trained on
    count   this many images, drawn over the split, always the same; 0: all of them
    judge   the Fréchet distance on the features of the judge, which is trained beside the run when it is not there yet
    lpips   LPIPS: ``official`` for the published weights, found on this machine or fetched; the path of VGG16 weights
            for these; empty: not measured
    fid     rFID: ``official`` or the path of Inception weights; empty: not measured
    reading how the images are read
    """

    source: str = ""
    split: str = ""
    size: Size = 0
    count: int = 0
    judge: bool = True
    lpips: str = ""
    fid: str = ""
    reading: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        for name, least in (("size", min(height_width(self.size))), ("count", self.count)):
            if least < 0:
                raise InputError(f"{name} {least}: expected at least 1")

    def check(self, size: Size, images: int) -> None:
        """Refuse what these images do not allow. Raises InputError."""
        if self.count > images:
            raise InputError(f"count {self.count}: expected 1 to {images}, the images that there are")
        if self.lpips and min(height_width(size)) < SMALLEST:
            raise InputError(f"lpips of images of {size_text(size)} pixels: expected at least {SMALLEST}")
        if self.fid and (self.count or images) < 2:
            raise InputError("fid of 1 image: expected at least 2")
