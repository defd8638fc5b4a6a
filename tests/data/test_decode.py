"""Image files of every promised format as arrays, and one line for what cannot be read."""

import os
import stat
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ifsq.data import BrokenImageError, DataError, read_image, write_png
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


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the stored rows are columns, from the right
    Image.fromarray(noise(4, 6)).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), np.rot90(noise(4, 6), -1))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "I"])
def test_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "x.tif"
    grey = Image.new("L", (4, 4), 255)
    white = Image.new(mode, (4, 4), 65535) if mode.startswith("I") else grey.convert("RGB").convert(mode)
    white.save(path)
    image = read_image(path)
    assert image.shape == (4, 4, 3)
    assert image.dtype == np.uint8
    assert image.min() == 255


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 257 * 100, dtype=np.uint16)).save(tmp_path / "x.png")
    assert np.all(read_image(tmp_path / "x.png") == 100)


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    pixels = np.array([[[200, 0, 0, 0], [200, 0, 0, 255]]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").tolist() == [[[255, 255, 255], [200, 0, 0]]]


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
