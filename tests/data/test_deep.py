"""More than 8 bits a channel, against arithmetic on arrays: rounded, or refused in a line."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from ifsq.data import BrokenImageError, read_image

RNG = np.random.default_rng(0)
REFUSED = "floats, integers with signs or of 32 bits have no known range, expected 8 or 16 bits from 0"


def rounded(values: np.ndarray, top: int = 65535) -> np.ndarray:
    """The nearest byte, three times; it is never halfway between two, as top is odd."""
    bytes_ = np.rint(values.astype(np.float64) * 255 / top)
    return np.repeat(bytes_[..., None], 3, axis=-1) if values.ndim == 2 else bytes_


def over_white(values: np.ndarray) -> np.ndarray:
    """Channels of 16 bits, the last of them alpha."""
    parts = values.astype(np.float64) / 65535
    return np.rint((parts[..., :-1] * parts[..., -1:] + 1 - parts[..., -1:]) * 255) + np.zeros(3)


def png(values: np.ndarray, colour: int, clear: np.ndarray | None = None) -> bytes:
    """A PNG of 16 bits a channel, each row the difference to the one above."""
    height, width, _ = values.shape
    rows = np.frombuffer(values.astype(">u2").tobytes(), np.uint8).reshape(height, -1)
    filtered = np.diff(rows, axis=0, prepend=np.uint8(0))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))]
    parts += [] if clear is None else [(b"tRNS", clear.astype(">u2").tobytes())]
    parts += [(b"IDAT", zlib.compress(b"".join(b"\2" + row.tobytes() for row in filtered))), (b"IEND", b"")]
    packed = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def tiff(values: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, metadata=None, **options)
    return file.getvalue()


def ppm(values: np.ndarray, top: int, plain: bool = False) -> bytes:
    height, width, channels = values.shape
    magic = {(1, False): "P5", (3, False): "P6", (1, True): "P2", (3, True): "P3"}[channels, plain]
    content = (
        " ".join(map(str, values.flatten())).encode()
        if plain
        else values.astype(">u2" if top > 255 else "u1").tobytes()
    )
    return f"{magic}\n{width} {height}\n{top}\n".encode() + content


@pytest.mark.parametrize(
    "form", ["PNG", "little TIFF", "big TIFF", "packed TIFF", "white zero", "PPM", "plain PPM", "JPEG 2000"]
)
def test_every_value_of_16_bits_is_rounded(form: str, tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    if form == "JPEG 2000":
        Image.fromarray(values).save(tmp_path / "x", "JPEG2000", irreversible=False)
    else:
        content = {
            "PNG": lambda: png(values[..., None], 0),
            "little TIFF": lambda: tiff(values, byteorder="<"),
            "big TIFF": lambda: tiff(values, byteorder=">"),
            "packed TIFF": lambda: tiff(values, compression="zlib"),
            "white zero": lambda: tiff(values, byteorder="<", photometric="miniswhite"),
            "PPM": lambda: ppm(values[..., None], 65535),
            "plain PPM": lambda: ppm(values[..., None], 65535, plain=True),
        }[form]()
        (tmp_path / "x").write_bytes(content)
    expected = rounded(65535 - values if form == "white zero" else values)
    np.testing.assert_array_equal(read_image(tmp_path / "x"), expected)
    np.testing.assert_array_equal(read_image("x", (tmp_path / "x").read_bytes()), expected)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_and_alpha_of_16_bits_in_png(channels: int) -> None:
    """Pillow gives the upper bytes: 255 of 65535 would be 0."""
    values = RNG.integers(0, 65536, (40, 30, channels))
    values[:8, :8] = RNG.integers(0, 2, (8, 8, 1)) * 65535  # quite clear and opaque ones too
    expected = rounded(values) if channels == 3 else over_white(values)
    np.testing.assert_array_equal(read_image("x", png(values, {2: 4, 3: 2, 4: 6}[channels])), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_colour_that_stands_for_nothing_is_known_in_all_of_its_bits(channels: int) -> None:
    values = RNG.integers(0, 65536, (6, 5, channels))
    values[1, 1], values[2, 2] = values[0, 0], values[0, 0] ^ 1
    expected = np.broadcast_to(rounded(values), (6, 5, 3)).copy()
    expected[0, 0] = expected[1, 1] = 255
    content = png(values, {1: 0, 3: 2}[channels], clear=values[0, 0])
    np.testing.assert_array_equal(read_image("x", content), expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [None, "zlib"])
@pytest.mark.parametrize("extra", [None, "unassalpha", "unspecified"])
def test_colours_of_16_bits_in_tiff(order: str, packed: str | None, extra: str | None) -> None:
    values = RNG.integers(0, 65536, (9, 7, 4 if extra else 3)).astype(np.uint16)
    extras = [extra] if extra else None
    content = tiff(values, byteorder=order, compression=packed, photometric="rgb", extrasamples=extras)
    expected = over_white(values) if extra == "unassalpha" else rounded(values[..., :3])
    np.testing.assert_array_equal(read_image("x", content), expected)


def test_twelve_bits_in_tiff() -> None:
    """tifffile packs none without help: two values are three bytes."""
    values = np.arange(4096).reshape(64, 64)
    first, second = values.reshape(-1, 2).T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8)
    tags = {256: 64, 257: 64, 258: 12, 259: 1, 262: 1, 273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: 64, 279: packed.size}
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in tags.items())
    content = b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 0) + packed.tobytes()
    np.testing.assert_array_equal(read_image("x", content), rounded(values, 4095))


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "u4", "f4"])
@pytest.mark.parametrize("packed", [None, "zlib"])
def test_numbers_without_a_known_range_are_refused(kind: str, packed: str | None) -> None:
    with pytest.raises(BrokenImageError, match=f"^image x cannot be read: {REFUSED}$"):
        read_image("x", tiff(np.ones((4, 4), kind), byteorder="<", compression=packed))


def test_a_float_ppm_is_refused() -> None:
    with pytest.raises(BrokenImageError, match=REFUSED):
        read_image("x", b"Pf\n2 1\n-1.0\n" + np.ones(2, "<f4").tobytes())


def test_what_pillow_gives_the_upper_bytes_of_is_refused(tmp_path: Path) -> None:
    planes = RNG.integers(0, 65536, (3, 4, 4)).astype(np.uint16)
    alpha = np.moveaxis(np.concatenate([planes, planes[:1]]), 0, -1).copy()
    files = {
        "planes": tiff(planes, photometric="rgb", planarconfig="separate"),
        "packed planes": tiff(planes, photometric="rgb", planarconfig="separate", compression="zlib"),
        "inks": tiff(alpha, photometric="separated"),
        "multiplied by alpha": tiff(alpha, photometric="rgb", extrasamples=["assocalpha"]),
    }
    Image.new("RGB", (4, 4)).save(tmp_path / "x.j2k")
    stream = bytearray((tmp_path / "x.j2k").read_bytes())
    stream[42] = 15  # the header's bits of the first channel, less one
    for content in (*files.values(), bytes(stream)):
        with pytest.raises(BrokenImageError, match=r"of 16 bits a channel \((TIFF|JPEG2000)\) cannot be read in full"):
            read_image("x", content)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("top", [1, 3, 100, 255, 256, 1023, 65535])
def test_any_greatest_value_of_a_ppm(channels: int, plain: bool, top: int) -> None:
    values = RNG.integers(0, top + 1, (5, 6, channels))
    exact = np.broadcast_to(values * 255 / top, (5, 6, 3))
    assert np.abs(read_image("x", ppm(values, top, plain)) - exact).max() < 0.503  # Pillow rounds to 16 bits first
