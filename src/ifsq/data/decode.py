"""Image files, whatever their format, as arrays of bytes in RGB."""

import io
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError, features

from ifsq.data import deep
from ifsq.data.formats import EIGHT_BIT_EXTENSIONS, FORMATS
from ifsq.data.images import HUGE, BrokenImageError, DataError

DECODING = "decoding 2"
"""Version, for the fingerprint. The first, which was not named, floored 16 bits to 8."""

# All that Pillow was seen to raise of damaged files; RuntimeError comes of AVIF alone.
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError),
    *(RuntimeError, struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning),
)
_PNG = b"\x89PNG\r\n\x1a\n"
# What a build of Pillow may come without: how such files begin, and Pillow's name of the part.
_OPTIONAL = {
    "WEBP": (re.compile(rb"RIFF....WEBP", re.DOTALL), "webp"),
    "AVIF": (re.compile(rb"....ftypavi[fs]", re.DOTALL), "avif"),
    "JPEG2000": (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "jpg_2000"),
}
# EXIF's orientation, 2 to 8: whether rows become columns, then which axes run backwards.
_TURNS: dict[object, tuple[bool, slice, slice]] = {
    number: (number > 4, slice(None, None, down), slice(None, None, across))
    for number, down, across in ((2, 1, -1), (3, -1, -1), (4, -1, 1), (5, 1, 1), (6, 1, -1), (7, -1, -1), (8, -1, 1))
}


def read_image(path: Path | str, content: bytes | None = None, max_pixels: int = HUGE) -> UInt8[np.ndarray, "H W 3"]:
    """A file as RGB: upright as its EXIF says, transparency over white, 16 bits rounded to 8, first frame.

    content  the file's bytes, where it is not on disk; ``path`` then only names it

    What the file holds decides, not its name. Always decoded in full: a JPEG decoder that scales down while it reads is
    quicker but gives other pixels. Damaged metadata (EXIF, text, colour profiles) is passed over: it changes no pixel.
    Raises BrokenImageError naming the path when it is of no promised format (see ``formats``), cannot be decoded, has
    pixels without a known range (floats, signed integers, 32 bits) or has more than ``max_pixels``; these are counted
    before anything is decoded. Raises DataError when the file is missing, the disk does not give it, or this build of
    Pillow lacks its format: that says nothing about the image, and must not empty the batches silently.
    """
    try:
        with warnings.catch_warnings(), _opened(path, content) as file:
            warnings.simplefilter("ignore")  # of metadata that is passed over
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            _refuse_lacking(path, file)
            try:
                return _decode(file, max_pixels)
            except _UNREADABLE:
                bare = _without_metadata(file)
                if bare is None:
                    raise
                return _decode(bare, max_pixels)
    except DataError:
        raise
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        kind = DataError if isinstance(error, OSError) and error.errno else BrokenImageError
        raise kind(f"image {path} cannot be read: {reason}") from error


def decoding(names: list[str], broken: str) -> str:
    """What a fingerprint says of it: nothing where the names promise 8 bits a channel, as these are read as ever.

    Under ``skip`` always the version: it decides which images there are, as fewer are broken now.
    """
    if broken == "refuse" and all(name.lower().endswith(EIGHT_BIT_EXTENSIONS) for name in names):
        return ""
    return f", {DECODING}"


@contextmanager
def _opened(path: Path | str, content: bytes | None) -> Iterator[io.BufferedReader | io.BytesIO]:
    if content is not None:
        yield io.BytesIO(content)
        return
    if not stat.S_ISREG(mode := Path(path).stat().st_mode) and not stat.S_ISDIR(mode):
        raise ValueError("a pipe or device, expected a file")  # opening one may wait for ever
    with open(path, "rb") as file:
        yield file


def _refuse_lacking(path: Path | str, file: io.BufferedReader | io.BytesIO) -> None:
    head = file.read(16)
    for form, (signature, part) in _OPTIONAL.items():
        if signature.match(head) and not features.check(part):
            raise DataError(f"image {path} cannot be read: this build of Pillow ({PIL.__version__}) reads no {form}")


def _decode(file: io.BufferedReader | io.BytesIO, max_pixels: int) -> UInt8[np.ndarray, "H W 3"]:
    file.seek(0)
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"damaged, or no image that Pillow reads as {', '.join(FORMATS)}") from None
    with image:
        if image.width * image.height > max_pixels:
            raise ValueError(f"{image.width} x {image.height} pixels, expected at most {max_pixels}")
        bits = deep.bits_a_channel(image, file)
        pixels = _from_bytes(image) if bits <= 8 else deep.read(image, file, bits)
        across, down, right = _TURNS.get(_orientation(image), (False, slice(None), slice(None)))
    return np.ascontiguousarray((pixels.swapaxes(0, 1) if across else pixels)[down, right])


def _from_bytes(image: ImageFile.ImageFile) -> UInt8[np.ndarray, "H W 3"]:
    """RGB of a picture of 8 bits a channel or fewer."""
    scale = {"L;2": 85, "L;4": 17}.get(deep.raw_mode(image))
    image.load()
    if scale and "transparency" in image.info:  # Pillow widens the pixels, but not the grey that stands for nothing
        image.info["transparency"] *= scale
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for rows, box in deep.strips(image):
        strip = image.crop(box)
        if strip.has_transparency_data:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        pixels[rows] = np.asarray(strip.convert("RGB"))
    return pixels


def _orientation(image: Image.Image) -> object:
    """EXIF's; None where there is none or it is damaged, which says nothing about the pixels."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except _UNREADABLE:
        return None


def _without_metadata(file: io.BufferedReader | io.BytesIO) -> io.BufferedReader | io.BytesIO | None:
    """A PNG without the parts that say nothing about its pixels; None where it has none of them, or is no PNG.

    A reader may pass over these when they are damaged (PNG, 13.1); Pillow does not. EXIF that is whole stays.
    """
    file.seek(0)
    if file.read(len(_PNG)) != _PNG:
        return None
    content = memoryview(file.read())
    kept, at, name = [memoryview(_PNG)], 0, b""
    while at + 12 <= len(content) and name != b"IEND":
        length, name = struct.unpack_from(">I4s", content, at)
        chunk = content[at : at + 12 + length]
        critical, whole = not name[0] & 0x20, zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if critical or name == b"tRNS" or (name == b"eXIf" and whole):
            kept.append(chunk)
        at += len(chunk)
    return io.BytesIO(b"".join(kept)) if sum(map(len, kept)) < len(_PNG) + len(content) else None
