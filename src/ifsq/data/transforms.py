"""Arrays of images: cropping, converting, writing. Everything before the float conversion is 8-bit.

Resizing follows the ADM convention that the field's ImageNet numbers use: halve with a box filter while both sides are
at least twice the target's, then bicubic to the least size that covers the target.
"""

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ifsq.config import InputError
from ifsq.data.draws import Draws
from ifsq.data.images import Size, check_channels, height_width
from ifsq.store.files import write_bytes

RESIZE_KERNEL = "box halving, then bicubic (Pillow)"


def write_png(image: UInt8[np.ndarray, "H W c"], path: Path) -> None:
    """Write an RGB image, or a grey one of one channel, whole or not at all; its folder must exist.

    Raises InputError, also for any other number of channels.
    """
    write_bytes(path, png_bytes(image))


def png_bytes(image: UInt8[np.ndarray, "H W c"]) -> bytes:
    """The file of an RGB or grey image. Raises InputError for any other number of channels."""
    check_channels(image.shape[2])
    content = io.BytesIO()
    _picture(image).save(content, format="PNG")
    return content.getvalue()


def check_png(path: Path) -> None:
    """Raise InputError unless a PNG can have this name."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: expected a name that ends in .png")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected the name of a picture")


def to_channels(image: UInt8[np.ndarray, "H W 3"], channels: int) -> UInt8[np.ndarray, "H W c"]:
    """The RGB picture as it is, or its luminance, Pillow's ``L``. Raises DataError unless ``channels`` is 3 or 1."""
    check_channels(channels)
    return image if channels == 3 else _pixels(Image.fromarray(image).convert("L"))


def center_crop(image: UInt8[np.ndarray, "H W c"], size: Size) -> UInt8[np.ndarray, "h w c"]:
    """The least picture that covers ``size``, then its middle."""
    height, width = height_width(size)
    array = _covering(image, height, width)
    top, left = (array.shape[0] - height) // 2, (array.shape[1] - width) // 2
    return array[top : top + height, left : left + width]


def random_crop(
    image: UInt8[np.ndarray, "H W c"], size: Size, below: Callable[[int], int], most: float = 1.25
) -> UInt8[np.ndarray, "h w c"]:
    """The least picture that covers a random size, 1 to ``most`` times ``size``, then a part at a random place.

    below  ``below(n)`` draws an integer in 0 .. n - 1; called for the random height, the row and the column
    """
    height, width = height_width(size)
    longest = math.ceil(round(height * most, 6))
    drawn = height + below(longest - height + 1)
    array = _covering(image, drawn, -(-width * drawn // height))
    top, left = below(array.shape[0] - height + 1), below(array.shape[1] - width + 1)
    return array[top : top + height, left : left + width]


def five_crop(image: UInt8[np.ndarray, "H W c"], size: Size, number: int, cover: float) -> UInt8[np.ndarray, "h w c"]:
    """The middle (``number`` 0) or a corner (1 to 4, row by row) of the `center_crop` of ``cover`` times ``size``.

    With their mirror images the ten crops that LlamaGen extracts codes of, at a ``cover`` of 1.1 and of 1.05.
    """
    height, width = height_width(size)
    array = center_crop(image, (int(height * cover), int(width * cover)))
    down, across = array.shape[0] - height, array.shape[1] - width
    top, left = (
        (round(down / 2), round(across / 2)) if number == 0 else ((number - 1) // 2 * down, (number - 1) % 2 * across)
    )
    return array[top : top + height, left : left + width]


def resized_crop(
    image: UInt8[np.ndarray, "H W c"], size: Size, scale: tuple[float, float], ratio: tuple[float, float], draws: Draws
) -> UInt8[np.ndarray, "h w c"]:
    """A part of random area and shape at a random place, stretched to ``size``: torchvision's RandomResizedCrop.

    scale  least and greatest area of the part, as a fraction of the picture's; uniform in between
    ratio  least and greatest width over height in units of those of ``size``; uniform in the logarithm. (There they
           are the part's own: for a rectangle every part would be stretched.)

    As there, bilinear with antialiasing, and after ten parts that do not fit the largest central one that obeys
    ``ratio``. The parts are cut out before they are resized, so that no pixel from beside them is mixed in.
    """
    down, across = height_width(size)
    shape = across / down
    left, top, width, height = _part(image.shape[1], image.shape[0], scale, (ratio[0] * shape, ratio[1] * shape), draws)
    part = _picture(image[top : top + height, left : left + width])
    return _pixels(part.resize((across, down), Image.Resampling.BILINEAR))


def _part(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], draws: Draws
) -> tuple[int, int, int, int]:
    """Left, top, width and height of the part that `resized_crop` keeps."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * draws.uniform())
        shape = math.exp(low + (high - low) * draws.uniform())
        across, down = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < across <= width and 0 < down <= height:
            top = draws.below(height - down + 1)
            return draws.below(width - across + 1), top, across, down
    across = min(width, max(1, round(height * ratio[1])))
    down = min(height, max(1, round(width / ratio[0])))
    return (width - across) // 2, (height - down) // 2, across, down


def to_float(images: UInt8[np.ndarray, "b H W c"] | UInt8[Tensor, "b H W c"]) -> Float[Tensor, "b c H W"]:
    """Bytes -> float32 in [-1, 1], channels first; a tensor's stay on its device."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images if images.flags.writeable else images.copy())  # torch warns of Pillow's arrays
    floats = images.movedim(-1, 1).to(torch.float32, memory_format=torch.contiguous_format)
    # A plain number would be a multiplication with its rounded inverse on CUDA: other bits than on the CPU.
    return floats / torch.full((), 127.5, device=images.device) - 1


def to_uint8(images: Float[Tensor, "b c H W"]) -> UInt8[np.ndarray, "b H W c"]:
    """Floats -> bytes on the CPU, rounded and clamped; the exact inverse of `to_float` on all 256 values."""
    scaled = (images.detach().float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.movedim(1, -1).contiguous().cpu().numpy()


def image_grid(images: UInt8[np.ndarray, "n H W c"], columns: int, gap: int = 2) -> UInt8[np.ndarray, "H2 W2 c"]:
    """Images row by row on a white sheet, ``gap`` white pixels around each."""
    if len(images) == 0 or columns < 1:
        raise ValueError(f"{len(images)} images in {columns} columns: expected at least one of each")
    height, width = images.shape[1] + gap, images.shape[2] + gap
    rows = -(-len(images) // columns)
    sheet = np.full((rows * height + gap, columns * width + gap, images.shape[3]), 255, dtype=np.uint8)
    for place, image in enumerate(images):
        top, left = place // columns * height + gap, place % columns * width + gap
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def _covering(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The whole picture at the least size that is nowhere below the target."""
    picture = _picture(image)
    while picture.height >= 2 * height and picture.width >= 2 * width:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = max(height / picture.height, width / picture.width)
    shape = (round(picture.width * scale), round(picture.height * scale))
    return _pixels(picture.resize(shape, Image.Resampling.BICUBIC))


def _picture(image: np.ndarray) -> Image.Image:
    """Pillow's picture of an array, in whose shape one channel is no axis."""
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def _pixels(picture: Image.Image) -> np.ndarray:
    """The inverse."""
    array = np.asarray(picture)
    return array if array.ndim == 3 else array[..., None]
