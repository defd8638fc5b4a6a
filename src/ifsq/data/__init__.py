"""Images, bundled or from files of any kind, as batches that are a pure function of (seed, step). A leaf room."""

from pathlib import Path
from typing import TYPE_CHECKING

from ifsq.data.decode import read_image
from ifsq.data.images import BrokenImageError, DataConfig, DataError, ImageSource
from ifsq.data.sampler import ImageBatch, ImageBatches, StepSampler, iterate_once, sample_order
from ifsq.data.transforms import image_grid, to_float, to_uint8, write_png

if TYPE_CHECKING:
    from ifsq.data.encoded import Catalogue

__all__ = [
    "BrokenImageError",
    "DataConfig",
    "DataError",
    "ImageBatch",
    "ImageBatches",
    "ImageSource",
    "StepSampler",
    "image_grid",
    "iterate_once",
    "open_images",
    "read_image",
    "sample_order",
    "to_float",
    "to_uint8",
    "write_png",
]


def open_images(config: DataConfig, split: str) -> ImageSource:
    """The ``train`` or ``val`` images that a config names. Raises DataError when there are none to read."""
    from ifsq.data import bundled, encoded

    makers: dict[str, type[bundled.Bundled]] = {
        "bundled:photos": bundled.Photos,
        "bundled:digits": bundled.Digits,
        "bundled:shapes": bundled.Shapes,
    }
    if config.source in makers:
        return makers[config.source](config, split)
    if config.stream:
        from ifsq.data import stream

        return stream.Stream(config, split)
    train, val = _catalogues(config.source)
    if config.val_source:
        first, second = _catalogues(config.val_source)
        val = second or first
    return encoded.EncodedImages(config, split, train, val)


def _catalogues(source: str) -> "tuple[Catalogue, Catalogue | None]":
    """What a source holds to train on, and to validate on where it says so itself."""
    from ifsq.data import folder, listed, shards

    if source.startswith("hf:"):
        from ifsq.data import hf

        rows, held_out = hf.open_splits(source)
        return hf.Table(source, rows), None if held_out is None else hf.Table(f"{source} val", held_out)
    path = Path(source)
    if path.suffix.lower() in listed.LISTS and not path.is_dir():
        return listed.Listed(path), None
    if shards.are_shards(source):
        train, val = shards.split_shards(source)
        return shards.Shards(source, train), shards.Shards(source, val) if val else None
    first, second = folder.split_folders(path)
    return folder.Folder(first), None if second is None else folder.Folder(second)
