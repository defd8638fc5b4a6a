"""Image files, whatever their format, as arrays of bytes in RGB."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from ifsq.data.formats import FORMATS
from ifsq.data.images import HUGE, BrokenImageError, DataError

_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning),
)


def read_image(path: Path | str, content: bytes | None = None, max_pixels: int = HUGE) -> UInt8[np.ndarray, "H W 3"]:
    """A file as RGB: EXIF orientation applied, transparency over white, 16-bit grey scaled to 8, first frame.

    content  the file's bytes, where it is not on disk; ``path`` then only names it

    Always decoded in full: a JPEG decoder that scales down while it reads is quicker but gives other pixels.
    Raises BrokenImageError naming the path when it cannot be decoded or has more than ``max_pixels``; these are
    counted before anything is decoded. Raises DataError when the file is missing or the disk does not give it: that
    says nothing about the image, and a disk that is gone must not empty the batches silently.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path if content is None else io.BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise ValueError(f"{image.width} x {image.height} pixels, expected at most {max_pixels}")
                return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        kind = DataError if isinstance(error, OSError) and error.errno else BrokenImageError
        raise kind(f"image {path} cannot be read: {reason}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("float pixels have no known range, expected 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray((grey // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
