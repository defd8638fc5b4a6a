"""What a person asks of an evaluation of a tokenizer, and which images that means."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ifsq.config import InputError
from ifsq.data import ImageSource, open_images, split_called, splits_of
from ifsq.data.images import DataConfig, Reading, Size, height_width, size_text
from ifsq.evaluation.protocol import name_of, sample_indices
from ifsq.pretrained.lpips import SMALLEST
from ifsq.sources import check_size
from ifsq.store.run import Run
from ifsq.tokenizer.model import Tokenizer

OFFICIAL = "official"


@dataclass(frozen=True)
class TokenizerEvaluation:
    """Which images, and which measures beside those that cost nothing.

    source   images, as ``data.source`` of an experiment; empty: what the tokenizer was trained on
    split    ``val``, ``train``, any other that the source has, or ``all``; none is flipped or cropped at random. Empty:
             ``val``; of another source than the tokenizer's its ``val``, else its ``test``, or all of it without splits
    size     pixels a side, or height and width; 0: what the tokenizer was trained on
    count    this many images, drawn over the split, always the same; 0: all of them
    judge    the Fréchet distance on the features of the judge, which is trained beside the run when it is not there yet
    lpips    LPIPS: ``official`` for the published weights, found on this machine or fetched; the path of VGG16 weights
             for these; empty: not measured
    fid      rFID: ``official`` or the path of Inception weights; empty: not measured
    levels   one of the tokenizer's nested levels; 0: those that it was saved with
    reading  how the images are read
    """

    source: str = ""
    split: str = ""
    size: Size = 0
    count: int = 0
    judge: bool = True
    lpips: str = ""
    fid: str = ""
    levels: int = 0
    reading: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        for name, least in (("size", min(height_width(self.size))), ("count", self.count), ("levels", self.levels)):
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


@dataclass(frozen=True)
class ImagesToMeasure:
    """Images that a tokenizer is measured on.

    images   their source
    data     how they were made, for the cards
    name     what the cards call them
    indices  which of them, each once; the first ones are shown
    suffix   of the names of files about them; empty for all held-out images of a run, of which the report speaks
    """

    images: ImageSource
    data: DataConfig
    name: str
    indices: Sequence[int]
    suffix: str = ""


def images_to_measure(run: Run, options: TokenizerEvaluation, tokenizer: Tokenizer) -> ImagesToMeasure:
    """What the options ask for; by default the held-out images of the run. Raises InputError."""
    own = run.experiment(DataConfig, "data") if run.trained else None
    if own is None and not (options.source and options.size):
        raise InputError(f"{run.name}: is not a training run and has no images of its own; give --data and --size")
    data, split, images = chosen_images(own, options, tokenizer.factor, tokenizer.channels)
    usual = own is not None and split == "val" and data == _data_to_measure(own, TokenizerEvaluation(), 1)
    suffix = "" if usual and not options.count else f"_{split}_{images.fingerprint[:8]}"
    name = name_of(data, split)
    if options.count:
        name, suffix = f"{name}, {options.count} drawn", f"{suffix}_{options.count}"
    if options.levels:
        suffix = f"{suffix}_levels_{options.levels}"
    return ImagesToMeasure(images, data, name, sample_indices(images, options.count or len(images)), suffix)


def chosen_images(
    own: DataConfig | None, options: TokenizerEvaluation, factor: int, channels: int
) -> tuple[DataConfig, str, ImageSource]:
    """How the images are made that are asked for, their split, and themselves.

    own               images that the tokenizer was trained on; None: not known, and the options say all
    factor, channels  of the tokenizer

    Raises InputError for what is not there, and for what these images do not allow.
    """
    data = _data_to_measure(own, options, factor)
    split = _split_to_measure(own, options, data)
    images = open_images(data, split, labels=False, channels=channels)
    options.check(data.size, len(images))
    return data, split, images


def _data_to_measure(own: DataConfig | None, options: TokenizerEvaluation, factor: int) -> DataConfig:
    """The images that are asked for, by default the tokenizer's own; nothing about them is left to chance."""
    base = DataConfig(options.source, options.size) if own is None else own
    size = options.size or base.size
    check_size(size, factor)
    if options.source and options.source != base.source:
        base = DataConfig(options.source, size, broken=base.broken, max_pixels=base.max_pixels)
    return replace(base, size=size, flip=False, crop="center", **options.reading.options())


def _split_to_measure(own: DataConfig | None, options: TokenizerEvaluation, data: DataConfig) -> str:
    """The split that is asked for; by default what is held out, or all of a source that somebody names as a whole."""
    if options.split:
        return split_called(data, options.split)
    if not options.source or (own is not None and options.source == own.source):
        return "val"
    return held_out_of(data)


def held_out_of(data: DataConfig) -> str:
    """What of a source that somebody names is not to train on: its ``val``, else its ``test``, or all without splits.

    Raises InputError where it has others.
    """
    splits = splits_of(data)
    for split in ("val", "test"):
        if split in splits:
            return split
    if splits:
        raise InputError(f"{data.source}: has the splits {', '.join(splits)}; say with --split which to measure")
    return "all"
