"""Images: bundled pictures or a folder, as batches that are a pure function of (seed, step). A leaf room."""

from ifsq.data.images import DataConfig, DataError, ImageSource
from ifsq.data.sampler import ImageBatch, ImageBatches, StepSampler, iterate_once, sample_order
from ifsq.data.transforms import image_grid, read_image, to_float, to_uint8, write_png

__all__ = [
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
    from ifsq.data import bundled, folder

    makers: dict[str, type[bundled.Bundled]] = {
        "bundled:photos": bundled.Photos,
        "bundled:digits": bundled.Digits,
        "bundled:shapes": bundled.Shapes,
    }
    return makers[config.source](config, split) if config.source in makers else folder.FolderImages(config, split)
