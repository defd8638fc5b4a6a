"""Images as they are: of one size, neither resized nor cropped."""

from dataclasses import replace

import numpy as np
from jaxtyping import UInt8

from ifsq.data.decode import read_image
from ifsq.data.encoded import EncodedImages
from ifsq.data.images import BrokenImageError, DataConfig, DataError, ImageSource, size_text
from ifsq.data.sources import open_images
from ifsq.data.transforms import to_channels


class Unresized(ImageSource):
    """The images of a source; one of another size than the first is refused.

    images  the source, brought to the size of its first image, which `open_unresized` finds
    """

    def __init__(self, images: EncodedImages) -> None:
        self.images, self.shape, self.broken = images, images.shape, images.broken
        self.classes, self.labels, self.unread = images.classes, images.labels, images.unread
        self.fingerprint = f"{images.fingerprint} uncropped"  # where sizes differ, the others crop and this refuses

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int, seed: int) -> tuple[UInt8[np.ndarray, "H W c"], int]:
        """See `ImageSource.load`. Raises DataError for an image of another size."""
        picture = _picture(self.images, index)
        if picture.shape[:2] != self.shape[:2]:
            raise DataError(
                f"image {_where(self.images, index)}: is of {size_text(picture.shape[:2])} pixels, the first of"
                f" {size_text(self.shape[:2])}; expected one size, or --size to bring all to it"
            )
        return to_channels(picture, self.shape[2]), self.images.labels[index]

    def name(self, index: int) -> str:
        """See `ImageSource.name`."""
        return self.images.name(index)


def open_unresized(config: DataConfig, split: str) -> Unresized:
    """The images of a split, labelled or not, at the size of the first that can be read.

    config  its size plays no part

    Raises DataError where the source has no size of its own: bundled images and streams.
    """
    images = open_images(config, split, labels=False)
    if not isinstance(images, EncodedImages):
        raise DataError(f"{config.source}: has no size of its own; give --size")
    for index in range(len(images)):
        try:
            size = _picture(images, index).shape[:2]
        except BrokenImageError:
            if config.broken == "refuse":
                raise
        else:
            found = open_images(replace(config, size=size), split, labels=False)
            assert isinstance(found, EncodedImages)
            return Unresized(found)
    raise DataError(f"{config.source}: none of {len(images)} images can be read")


def _picture(images: EncodedImages, index: int) -> UInt8[np.ndarray, "H W 3"]:
    file = images.catalogue.read(images.kept[index])
    path, content = (_where(images, index), file) if isinstance(file, bytes) else (file, None)
    return read_image(path, content, images.config.max_pixels)


def _where(images: EncodedImages, index: int) -> str:
    return images.catalogue.where(images.kept[index])
