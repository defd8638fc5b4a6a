"""Image files and arrays: reading, cropping, converting, writing. Everything before the float conversion is 8-bit.

Resizing follows the ADM convention that the field's ImageNet numbers use: halve with a box filter while the shorter
side is at least twice the target, then bicubic to the target. Called by the sources, ``pipeline`` and the report.
"""

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from ifsq.data.images import DataError

RESIZE_KERNEL = "box halving, then bicubic (Pillow)"
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning),
)


def read_image(path: Path | str) -> UInt8[np.ndarray, "H W 3"]:
    """A file as RGB: EXIF orientation applied, transparency over white, 16-bit grey scaled to 8, first frame.

    Raises DataError naming the path when it cannot be read, or is so large that Pillow suspects a decompression bomb.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"image {path} cannot be read: {reason}") from error


def write_png(image: UInt8[np.ndarray, "H W 3"], path: Path) -> None:
    """Write an RGB image; its folder must exist."""
    Image.fromarray(image).save(path, format="PNG")


def center_crop(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Shorter side to ``size``, then the central square."""
    array = _shorter_side_to(image, size)
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


def random_crop(
    image: UInt8[np.ndarray, "H W 3"], size: int, below: Callable[[int], int]
) -> UInt8[np.ndarray, "size size 3"]:
    """Shorter side to a random length in [size, 1.25 size], then a square at a random place.

    below  ``below(n)`` draws an integer in 0 .. n - 1; called for the length, the row and the column
    """
    longest = -(-size * 5 // 4)
    array = _shorter_side_to(image, size + below(longest - size + 1))
    top, left = below(array.shape[0] - size + 1), below(array.shape[1] - size + 1)
    return array[top : top + size, left : left + size]


def to_float(images: UInt8[np.ndarray, "b H W 3"]) -> Float[Tensor, "b 3 H W"]:
    """Bytes -> float32 in [-1, 1], channels first."""
    writable = images if images.flags.writeable else images.copy()  # torch warns of arrays that Pillow owns
    floats = torch.from_numpy(writable).movedim(-1, 1).to(torch.float32, memory_format=torch.contiguous_format)
    return floats / 127.5 - 1


def to_uint8(images: Float[Tensor, "b 3 H W"]) -> UInt8[np.ndarray, "b H W 3"]:
    """Floats -> bytes on the CPU, rounded and clamped; the exact inverse of `to_float` on all 256 values."""
    scaled = (images.detach().float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.movedim(1, -1).contiguous().cpu().numpy()


def image_grid(images: UInt8[np.ndarray, "n H W 3"], columns: int, gap: int = 2) -> UInt8[np.ndarray, "H2 W2 3"]:
    """Images row by row on a white sheet, ``gap`` white pixels around each."""
    if len(images) == 0 or columns < 1:
        raise ValueError(f"{len(images)} images in {columns} columns: expected at least one of each")
    height, width = images.shape[1] + gap, images.shape[2] + gap
    rows = -(-len(images) // columns)
    sheet = np.full((rows * height + gap, columns * width + gap, 3), 255, dtype=np.uint8)
    for place, image in enumerate(images):
        top, left = place // columns * height + gap, place % columns * width + gap
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


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


def _shorter_side_to(image: np.ndarray, target: int) -> np.ndarray:
    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * target:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = target / min(picture.size)
    shape = (round(picture.width * scale), round(picture.height * scale))
    return np.asarray(picture.resize(shape, Image.Resampling.BICUBIC))
