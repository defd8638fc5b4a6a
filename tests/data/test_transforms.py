"""Image files and arrays: exact conversions, the field's crops, and one line for what cannot be read."""

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ifsq.data import DataError, image_grid, read_image, to_float, to_uint8, write_png
from ifsq.data.draws import Draws
from ifsq.data.transforms import center_crop, random_crop, resized_crop


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_every_byte_survives_the_float_and_back() -> None:
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    floats = to_float(images)
    assert floats.min() == -1
    assert floats.max() == 1
    assert floats.is_contiguous()
    np.testing.assert_array_equal(to_uint8(floats), images)


def test_to_uint8_rounds_and_clamps_also_half_precision() -> None:
    values = torch.tensor([-1.5, -1.0, 0.002, 1.0, 9.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert to_uint8(values)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert to_uint8(values.bfloat16())[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_channels_go_first() -> None:
    images = noise(4, 5)[None]
    torch.testing.assert_close(to_float(images)[0, 2, 3, 1], torch.tensor(images[0, 3, 1, 2] / 127.5 - 1).float())


def test_crops_are_those_of_adm(golden: Callable[[str], Any]) -> None:
    vectors = golden("metrics")
    for k in range(5):
        image = vectors.get_tensor(f"crop/in{k}").numpy()
        np.testing.assert_array_equal(center_crop(image, 64), vectors.get_tensor(f"crop/center64_{k}").numpy())
        drawn = random_crop(image, 64, random.Random(123 + k).randrange)
        np.testing.assert_array_equal(drawn, vectors.get_tensor(f"crop/random64_seed{123 + k}_{k}").numpy())


def torchvision_part(height: int, width: int, scale: tuple, ratio: tuple, draws: Draws) -> tuple[int, int, int, int]:
    """RandomResizedCrop.get_params as its documentation and source state it: top, left, height, width."""
    for _ in range(10):
        target_area = height * width * (scale[0] + draws.uniform() * (scale[1] - scale[0]))
        log_ratio = np.log(ratio)
        aspect = float(np.exp(log_ratio[0] + draws.uniform() * (log_ratio[1] - log_ratio[0])))
        w, h = round((target_area * aspect) ** 0.5), round((target_area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return draws.below(height - h + 1), draws.below(width - w + 1), h, w
    w, h = width, height
    if width / height < min(ratio):
        h = round(w / min(ratio))
    elif width / height > max(ratio):
        w = round(h * max(ratio))
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(("height", "width"), [(50, 70), (70, 50), (8, 200), (200, 8), (3, 3)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0), (0.3, 0.3)])
def test_resized_crops_are_those_of_torchvision(height: int, width: int, scale: tuple) -> None:
    image, ratio = noise(height, width), (3 / 4, 4 / 3)
    for seed in range(20):
        top, left, h, w = torchvision_part(height, width, scale, ratio, Draws(seed))
        part = Image.fromarray(image).crop((left, top, left + w, top + h)).resize((16, 16), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(resized_crop(image, 16, scale, ratio, Draws(seed)), np.asarray(part))


def test_resized_crops_fill_the_ranges_that_are_asked() -> None:
    rows, columns = np.mgrid[:200, :200].astype(np.uint8)
    image = np.stack([rows, columns, rows], axis=-1)
    drawn = [resized_crop(image, 8, (0.1, 0.4), (0.5, 2.0), Draws(seed)).astype(int) for seed in range(400)]
    sides = np.array([[crop[-1, -1, axis] - crop[0, 0, axis] for axis in (0, 1)] for crop in drawn]) * 8 / 7
    area, shape = sides.prod(axis=1) / 200**2, sides[:, 1] / sides[:, 0]
    assert area.min() == pytest.approx(0.1, abs=0.02)
    assert area.max() == pytest.approx(0.4, abs=0.03)
    assert area.mean() == pytest.approx(0.25, abs=0.02)
    assert np.log(shape).min() == pytest.approx(-np.log(2), abs=0.05)
    assert np.log(shape).max() == pytest.approx(np.log(2), abs=0.05)
    assert abs(np.log(shape).mean()) < 0.06


def test_a_written_image_is_read_back_exactly(tmp_path: Path) -> None:
    write_png(noise(5, 7), tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), noise(5, 7))


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


def test_grid_places_images_row_by_row() -> None:
    images = np.stack([np.full((2, 3, 3), value, dtype=np.uint8) for value in (10, 20, 30)])
    sheet = image_grid(images, columns=2, gap=1)
    assert sheet.shape == (7, 9, 3)
    assert [int(sheet[1, 1, 0]), int(sheet[1, 5, 0]), int(sheet[4, 1, 0]), int(sheet[4, 5, 0])] == [10, 20, 30, 255]
    with pytest.raises(ValueError, match="0 columns"):
        image_grid(images, columns=0)


def test_a_missing_file_is_no_broken_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file") as caught:
        read_image(tmp_path / "absent.png")
    assert type(caught.value) is DataError
    (tmp_path / "broken.png").write_bytes(b"broken")
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "broken.png")
    assert type(caught.value) is not DataError
