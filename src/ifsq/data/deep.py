"""Pictures of more than 8 bits a channel, brought to 8 by rounding: value v of 0 ... m becomes round(255 v / m).

Pillow reads one such channel as it is, without a word on TIFF's white zero and 12 bits, or on integers with signs; of
several channels it gives the upper bytes. These pictures are read once more for the lower ones. What has no known
range, or cannot be had in full, is refused.
"""

import io
import re
import sys
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    SAMPLEFORMAT,
    TiffImageFile,
)

Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""

_TOP = 65535
PIXELS_AT_ONCE = 1 << 20
_TWO_BYTES = re.compile(r"(RGB|RGBX|RGBA);16([BLN])")  # Pillow's names of layouts; the last letter is the byte order
_CODESTREAM = re.compile(rb"\xff\x4f\xff\x51.{36}(..)", re.DOTALL)  # how JPEG 2000's begins; the number of channels
_HEADER = 1 << 20  # bytes in which it must begin: a colour profile may come before


def bits_a_channel(image: ImageFile.ImageFile, file: io.BufferedReader | io.BytesIO) -> int:
    """8 or 16, of a picture not loaded yet. Raises ValueError where the range is not known: signs, floats, 32 bits."""
    bits = 16 if image.mode.startswith("I") or ";16" in raw_mode(image) else 8
    unsigned = image.mode != "F"
    if isinstance(image, TiffImageFile):
        bits = max(image.tag_v2.get(BITSPERSAMPLE, (1,)))
        unsigned = set(image.tag_v2.get(SAMPLEFORMAT, (1,))) == {1}
    elif image.format == "JPEG2000":
        bits = _bits_of_codestream(file)
    if not unsigned or bits > 16:
        raise ValueError("floats, integers with signs or of 32 bits have no known range, expected 8 or 16 bits from 0")
    return bits


def read(image: ImageFile.ImageFile, file: io.BufferedReader | io.BytesIO, bits: int) -> UInt8[np.ndarray, "H W 3"]:
    """Such a picture as RGB, transparency over white. Raises ValueError when its channels cannot be had in full."""
    if image.mode.startswith("I"):
        return _grey(image, bits)
    raw = raw_mode(image)
    planes = isinstance(image, TiffImageFile) and image.tag_v2.get(PLANAR_CONFIGURATION) == 2
    layout = None if planes else _TWO_BYTES.fullmatch(raw)  # of planes Pillow gives the upper bytes, whatever is asked
    if raw == "LA;16B":  # upper and lower byte of each channel: read as if they were four channels
        image.tile = _read_as(image, "RGBA")
        return _colour(image, lambda box: _joined(*(_cut(image, box)[..., byte::2] for byte in (0, 1))))
    if layout is None:
        raise ValueError(f"{image.mode} of {bits} bits a channel ({image.format}) cannot be read in full")
    image.load()
    with Image.open(file, formats=(image.format or "",)) as again:
        other = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}[layout[2]]
        again.tile = _read_as(again, f"{layout[1]};16{other}")
        return _colour(image, lambda box: _joined(_cut(image, box), _cut(again, box)))


def raw_mode(image: ImageFile.ImageFile) -> str:
    """Pillow's name of how the pixels lie in a file that is not loaded yet; "" where its decoder needs none."""
    arguments = image.tile[0].args if image.tile else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def strips(image: Image.Image) -> Iterator[tuple[slice, Box]]:
    """Parts of a picture that bound the memory which its conversion takes: their rows, and the box to crop."""
    height = max(1, PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, height):
        bottom = min(top + height, image.height)
        yield slice(top, bottom), (0, top, image.width, bottom)


def _grey(image: ImageFile.ImageFile, bits: int) -> UInt8[np.ndarray, "H W 3"]:
    table = _rounding(bits)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:
        table = table[::-1]  # zero is white
    shift = 16 - bits if image.format == "JPEG2000" else 0  # Pillow widens its values to 16 bits
    image.load()
    clear = image.info.get("transparency")
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for rows, box in strips(image):
        values = _cut(image, box) >> shift
        pixels[rows] = np.where(values == clear, np.uint8(255), table[values])[..., None]
    return pixels


def _colour(image: Image.Image, values_in: Callable[[Box], UInt16[np.ndarray, "h w c"]]) -> UInt8[np.ndarray, "H W 3"]:
    """8-bit RGB of a picture of 16 bits a channel: grey with alpha, RGB with and without."""
    table = _rounding(16)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for rows, box in strips(image):
        values = values_in(box)
        if values.shape[-1] == 3:
            clear = (values == image.info.get("transparency", -1)).all(axis=-1, keepdims=True)
            pixels[rows] = np.where(clear, np.uint8(255), table[values])
        else:
            colour, alpha = values[..., :-1].astype(np.uint64), values[..., -1:].astype(np.uint64)
            over_white = colour * alpha + _TOP * (_TOP - alpha)
            pixels[rows] = (over_white + _TOP * 257 // 2) // (_TOP * 257)
    return pixels


def _rounding(bits: int) -> UInt8[np.ndarray, "n"]:
    """The byte of every value."""
    top = 2**bits - 1
    return ((np.arange(top + 1) * 510 + top) // (2 * top)).astype(np.uint8)


def _cut(image: Image.Image, box: Box) -> np.ndarray:
    """A part in the machine's byte order."""
    part = np.asarray(image.crop(box))
    return part.astype(part.dtype.newbyteorder("="), copy=False)


def _joined(upper: UInt8[np.ndarray, "h w c"], lower: UInt8[np.ndarray, "h w c"]) -> UInt16[np.ndarray, "h w c"]:
    return upper.astype(np.uint16) << 8 | lower


def _read_as(image: ImageFile.ImageFile, raw: str) -> list[ImageFile._Tile]:
    """The image's parts, to be read as if their pixels lay so."""
    return [tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in image.tile]


def _bits_of_codestream(file: io.BufferedReader | io.BytesIO) -> int:
    file.seek(0)
    head = file.read(_HEADER)
    begin = _CODESTREAM.search(head)
    if begin is None:
        raise ValueError("holds no JPEG 2000 codestream")
    depths = head[begin.end() : begin.end() + 3 * int.from_bytes(begin[1], "big") : 3]
    return max((depth & 127) + 1 for depth in depths)  # the upper bit is the sign
