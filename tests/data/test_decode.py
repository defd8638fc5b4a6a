"""Image files of every promised format as arrays, and one line for what cannot be read."""

import io
import os
import stat
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from ifsq.data import BrokenImageError, DataConfig, DataError, decode, deep, open_images, read_image, write_png
from ifsq.data.formats import EXTENSIONS, EXTENSIONS_OF, FORMATS


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["x.png", "x.eps", "x.ps"])
def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Pillow hands PostScript to the program gs of the search path; any file may hold it, whatever its name."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / name).write_bytes(POSTSCRIPT)
    for content in (None, POSTSCRIPT):
        with pytest.raises(BrokenImageError, match=f"{name} cannot be read: "):
            read_image(tmp_path / name, content)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("other", ["ICO", "ICNS", "TGA", "PCX", "SGI", "DDS", "IM", "BLP", "QOI"])
def test_no_format_is_read_that_is_not_promised(tmp_path: Path, other: str) -> None:
    picture = Image.new("P" if other == "BLP" else "RGB", (32, 32))
    picture.save(tmp_path / "x.png", other)
    with Image.open(tmp_path / "x.png") as opened:
        assert opened.format == other  # Pillow itself would read it
    with pytest.raises(BrokenImageError, match=r"x.png cannot be read: "):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("form", FORMATS)
def test_what_a_file_holds_decides_not_its_name(tmp_path: Path, form: str) -> None:
    flat = Image.new("RGB", (16, 16), (10, 200, 30))
    for extension in (*EXTENSIONS, ".PNG", ".JPEG", ".Tif", ".dat"):
        flat.save(tmp_path / f"x{extension}", form)
        image = read_image(tmp_path / f"x{extension}").astype(int)
        assert image.shape == (16, 16, 3)
        assert abs(image - [10, 200, 30]).max() <= (
            0 if form in ("PNG", "BMP", "GIF", "TIFF", "PPM", "JPEG2000") else 4
        )
        np.testing.assert_array_equal(read_image("x", (tmp_path / f"x{extension}").read_bytes()), image)


def test_every_ending_belongs_to_the_format_that_pillow_says() -> None:
    known = Image.registered_extensions()
    assert {e: f for f, endings in EXTENSIONS_OF.items() for e in endings} == {
        e: known.get(e, "PPM") for e in EXTENSIONS
    }


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(10))
def test_a_camera_that_was_turned(form: str, orientation: int) -> None:
    """Against Pillow's own turning of the picture; 0 and 9 are no orientations."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(noise(4, 6)).save(file, form, exif=exif)
    with Image.open(file) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    np.testing.assert_array_equal(read_image("x", file.getvalue()), expected)


def chunk(name: bytes, content: bytes, damage: int = 0) -> bytes:
    """A part of a PNG file; with damage, its checksum is wrong."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content) ^ damage)


def with_chunks(*chunks: bytes, last: bool = False) -> bytes:
    """A grey PNG of level 90 with parts after its header, or before its end."""
    file = io.BytesIO()
    Image.new("RGB", (4, 6), (90, 90, 90)).save(file, "PNG")
    whole = file.getvalue()
    place = len(whole) - 12 if last else 33
    return whole[:place] + b"".join(chunks) + whole[place:]


LONG = zlib.compress(bytes(2 << 20))  # longer than Pillow lets a text be
METADATA = {
    "EXIF": chunk(b"eXIf", b"not exif"),
    "EXIF as text": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  10\nzz"),
    "checksum of EXIF": chunk(b"eXIf", b"MM\0*", damage=1),
    "checksum of a text": chunk(b"tEXt", b"Title\0picture", damage=1),
    "compressed text": chunk(b"zTXt", b"Title\0\0no zlib"),
    "long text": chunk(b"zTXt", b"Title\0\0" + LONG),
    "compression that is none": chunk(b"zTXt", b"Title\0\7x"),
    "international text": chunk(b"iTXt", b"Title\0\1\0\0\0no zlib"),
    "long colour profile": chunk(b"iCCP", b"x\0\0" + LONG),
    "size of a pixel": chunk(b"pHYs", b"x"),
    "gamma": chunk(b"gAMA", b""),
    "animation": chunk(b"acTL", b"x"),
    "unknown": chunk(b"zzZz", b"x", damage=1),
    "many": b"".join(chunk(b"tEXt", b"k%d\0" % k + bytes(1 << 20)) for k in range(66)),
}


@pytest.mark.parametrize("case", METADATA)
@pytest.mark.parametrize("last", [False, True])
def test_damaged_metadata_is_no_damaged_picture(case: str, last: bool) -> None:
    image = read_image("x", with_chunks(METADATA[case], last=last))
    assert image.shape == (6, 4, 3)
    assert np.all(image == 90)


def test_whole_exif_beside_damaged_metadata_is_obeyed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    assert read_image("x", with_chunks(METADATA["checksum of a text"], whole)).shape == (4, 6, 3)


@pytest.mark.parametrize(
    "part", [chunk(b"tRNS", bytes(6), damage=1), chunk(b"tRNS", b""), chunk(b"ZZZZ", b"", damage=1)]
)
def test_damage_to_what_decides_pixels_is_a_damaged_picture(part: bytes) -> None:
    with pytest.raises(BrokenImageError, match="image x cannot be read: "):
        read_image("x", with_chunks(part))
    whole = with_chunks(METADATA["checksum of a text"])
    with pytest.raises(BrokenImageError, match="image x cannot be read: "):
        read_image("x", whole[: len(whole) // 2])


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"not exif", b"Exif\0\0none", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0II*\0\x08\0\0\0\5\0"]
)
def test_damaged_exif_of_other_formats(form: str, exif: bytes) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 6)).save(file, form, exif=exif)
    assert read_image("x", file.getvalue()).shape == (6, 4, 3)  # and no warning, which would be an error here


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_grey_that_stands_for_nothing_is_white(bits: int) -> None:
    """PNG counts it in the file's own bits; Pillow compares it with pixels that it has widened to 8."""
    levels = np.arange(16) % 2**bits
    row = int("".join(f"{level:0{bits}b}" for level in levels), 2).to_bytes(2 * bits, "big")
    for clear in range(min(2**bits, 16)):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 1, bits, 0, 0, 0, 0))
        parts = header, chunk(b"tRNS", struct.pack(">H", clear)), chunk(b"IDAT", zlib.compress(b"\0" + row))
        image = read_image("x", b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b""))
        expected = np.where(levels == clear, 255, levels * 255 // (2**bits - 1))
        np.testing.assert_array_equal(image[0, :, 0], expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_picture_in_strips_is_that_in_one_piece(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 5, 4), dtype=np.uint8), "RGBA")
    picture.convert("L" if mode == "I;16" else mode).convert(mode).save(file, "TIFF" if mode == "CMYK" else "PNG")
    whole = read_image("x", file.getvalue())
    monkeypatch.setattr(deep, "PIXELS_AT_ONCE", 11)
    np.testing.assert_array_equal(read_image("x", file.getvalue()), whole)


def test_pipes_and_devices_are_no_images(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    for path in (tmp_path / "x.png", Path("/dev/zero")):
        with pytest.raises(BrokenImageError, match=f"image {path} cannot be read: a pipe or device, expected a file"):
            read_image(path)


@pytest.mark.parametrize(("form", "part"), [("AVIF", "avif"), ("JPEG2000", "jpg_2000"), ("WEBP", "webp")])
def test_a_format_that_pillow_was_built_without(form: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, form)
    monkeypatch.setattr(features, "check", lambda name: name != part)
    with pytest.raises(
        DataError, match=rf"image x cannot be read: this build of Pillow \([\d.]+\) reads no {form}"
    ) as told:
        read_image("x", file.getvalue())
    assert type(told.value) is DataError  # not an image that may be skipped


def test_the_fingerprint_says_how_pixels_were_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not where names promise 8 bits, whose pixels no version has changed."""
    for extension in ("jpg", "png", "tif", "ppm"):
        (tmp_path / extension).mkdir()
        for k in range(3):
            Image.new("L", (16, 16), k).save(tmp_path / extension / f"{k}.{extension}")

    def told() -> dict[tuple[str, str], str]:
        configs = [(e, b) for e in ("jpg", "png", "tif", "ppm") for b in ("refuse", "skip")]
        opened = {(e, b): DataConfig(source=str(tmp_path / e), size=16, broken=b) for e, b in configs}
        return {key: open_images(config, "train").fingerprint for key, config in opened.items()}

    before = told()
    monkeypatch.setattr(decode, "DECODING", "another")
    assert [key for key, value in told().items() if value == before[key]] == [("jpg", "refuse")]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "I"])
def test_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.ppm" if mode == "I" else "x.tif")  # a TIFF of this mode has signs
    grey = Image.new("L", (4, 4), 255)
    white = Image.new(mode, (4, 4), 65535) if mode.startswith("I") else grey.convert("RGB").convert(mode)
    white.save(path)
    image = read_image(path)
    assert image.shape == (4, 4, 3)
    assert image.dtype == np.uint8
    assert image.min() == 255


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    pixels = np.array([[[200, 0, 0, 0], [200, 0, 0, 255]]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").tolist() == [[[255, 255, 255], [200, 0, 0]]]


@pytest.mark.parametrize("form", FORMATS)
def test_half_a_file_of_any_format_is_a_broken_image(form: str) -> None:
    file = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(file, form)
    content = file.getvalue()
    cuts = [content[: len(content) // 2], content[:20], content[: len(content) * 9 // 10]]
    if form == "AVIF":
        head, mark, pixels = content.partition(b"mdat")
        cuts.append(head + mark + bytes(len(pixels)))  # which Pillow tells by a RuntimeError
    for cut in cuts:
        with pytest.raises(BrokenImageError, match=r"^image x cannot be read: ") as told:
            read_image("x", cut)
        assert "\n" not in str(told.value)


def broken(tmp_path: Path) -> dict[str, Path]:
    write_png(noise(64, 64), tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    Image.fromarray(noise(64, 64)).save(tmp_path / "whole.jpg")
    files = {
        "empty.png": b"",
        "text.jpg": b"no image at all",
        "cut.png": whole[: len(whole) // 2],
        "cut.jpg": (tmp_path / "whole.jpg").read_bytes()[:800],
        "bits.png": whole[:60] + bytes(40) + whole[100:],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "folder.png").mkdir()
    return {name: tmp_path / name for name in (*files, "float.tif", "folder.png", "absent.png")}


@pytest.mark.parametrize(
    "name", ["empty.png", "text.jpg", "cut.png", "cut.jpg", "bits.png", "float.tif", "folder.png", "absent.png"]
)
def test_what_cannot_be_read_is_one_line_with_its_name(tmp_path: Path, name: str) -> None:
    path = broken(tmp_path)[name]
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"image {path} cannot be read: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [200, 90])
def test_a_suspected_bomb_is_one_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    write_png(noise(16, 16), tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # 256 pixels: a warning above it, an error above twice it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as outside of the tests, where warnings are no errors
        with pytest.raises(DataError, match=r"x.png cannot be read: .*256 pixels"):
            read_image(tmp_path / "x.png")


def test_pixels_are_counted_before_they_are_decoded(tmp_path: Path) -> None:
    write_png(noise(16, 16), tmp_path / "x.png")
    read_image(tmp_path / "x.png", max_pixels=256)
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:60])  # the header alone
    with pytest.raises(DataError, match=r"x.png cannot be read: 16 x 16 pixels, expected at most 255"):
        read_image(tmp_path / "x.png", max_pixels=255)


def test_bytes_are_read_as_their_file_is(tmp_path: Path) -> None:
    Image.fromarray(noise(9, 5)).save(tmp_path / "x.jpg")
    content = (tmp_path / "x.jpg").read_bytes()
    np.testing.assert_array_equal(read_image("name", content), read_image(tmp_path / "x.jpg"))
    with pytest.raises(DataError, match=r"^image shard.tar: x.jpg cannot be read: "):
        read_image("shard.tar: x.jpg", content[:100])


def test_a_missing_file_is_no_broken_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file") as caught:
        read_image(tmp_path / "absent.png")
    assert type(caught.value) is DataError
    (tmp_path / "broken.png").write_bytes(b"broken")
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "broken.png")
    assert type(caught.value) is not DataError
