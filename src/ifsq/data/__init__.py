"""Images, bundled or from files of any kind, as batches that are a pure function of (seed, step). A leaf room."""

from ifsq.data.decode import read_image
from ifsq.data.images import BrokenImageError, DataConfig, DataError, ImageSource, Reading
from ifsq.data.sampler import ImageBatch, ImageBatches, StepSampler, iterate_once, sample_order
from ifsq.data.sources import describe_counts, describe_images, describe_splits, open_images, split_called, splits_of
from ifsq.data.transforms import check_png, image_grid, to_channels, to_float, to_uint8, write_png

__all__ = [
    "BrokenImageError",
    "DataConfig",
    "DataError",
    "ImageBatch",
    "ImageBatches",
    "ImageSource",
    "Reading",
    "StepSampler",
    "check_png",
    "describe_counts",
    "describe_images",
    "describe_splits",
    "image_grid",
    "iterate_once",
    "open_images",
    "read_image",
    "sample_order",
    "split_called",
    "splits_of",
    "to_channels",
    "to_float",
    "to_uint8",
    "write_png",
]
