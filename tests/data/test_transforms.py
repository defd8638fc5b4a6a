"""Arrays of images: exact conversions, and the field's crops."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ifsq.data import DataError, image_grid, read_image, to_channels, to_float, to_uint8, write_png
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


def pillow_covering(image: np.ndarray, height: int, width: int) -> Image.Image:
    """ADM's resize for a rectangle: box halving while both sides allow it, then bicubic until it is just covered."""
    picture = Image.fromarray(image)
    while picture.width // width >= 2 and picture.height // height >= 2:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    decided_by_height = picture.width * height >= picture.height * width
    scale = height / picture.height if decided_by_height else width / picture.width  # a product, as ADM rounds it
    by_height, by_width = (round(picture.width * scale), height), (width, round(picture.height * scale))
    return picture.resize(by_height if decided_by_height else by_width, Image.Resampling.BICUBIC)


PICTURES = [(50, 70), (70, 50), (300, 90), (90, 300), (24, 40), (11, 9), (24, 24), (49, 81)]


@pytest.mark.parametrize(("height", "width"), PICTURES)
@pytest.mark.parametrize("size", [(24, 40), (40, 24), (8, 33)])
def test_a_rectangle_is_the_middle_of_the_picture_that_covers_it(
    height: int, width: int, size: tuple[int, int]
) -> None:
    whole = pillow_covering(noise(height, width), *size)
    assert whole.height == size[0] or whole.width == size[1]
    left, top = (whole.width - size[1]) // 2, (whole.height - size[0]) // 2
    expected = np.asarray(whole.crop((left, top, left + size[1], top + size[0])))
    np.testing.assert_array_equal(center_crop(noise(height, width), size), expected)


@pytest.mark.parametrize("size", [(24, 40), (40, 24)])
def test_random_rectangles_are_parts_of_pictures_up_to_a_quarter_larger(size: tuple[int, int]) -> None:
    image, heights = noise(90, 120), set()
    for seed in range(60):
        drawn = random_crop(image, size, random.Random(seed).randrange)
        draws = random.Random(seed)
        more = draws.randrange(size[0] // 4 + 1)
        whole = pillow_covering(image, size[0] + more, -(-size[1] * (size[0] + more) // size[0]))
        top, left = draws.randrange(whole.height - size[0] + 1), draws.randrange(whole.width - size[1] + 1)
        np.testing.assert_array_equal(drawn, np.asarray(whole.crop((left, top, left + size[1], top + size[0]))))
        heights.add(size[0] + more)
    assert (min(heights), max(heights)) == (size[0], size[0] * 5 // 4)


@pytest.mark.parametrize("crop", ["center", "random", "resized"])
def test_a_side_twice_is_a_square(crop: str) -> None:
    image = noise(90, 70)
    for seed in range(5):
        made = {
            "center": lambda size: center_crop(image, size),
            "random": lambda size, seed=seed: random_crop(image, size, random.Random(seed).randrange),
            "resized": lambda size, seed=seed: resized_crop(image, size, (0.1, 1.0), (0.5, 2.0), Draws(seed)),
        }[crop]
        np.testing.assert_array_equal(made(24), made((24, 24)))


def test_resized_crops_of_a_rectangle_are_stretched_no_more_than_those_of_a_square() -> None:
    rows, columns = np.mgrid[:240, :240].astype(np.uint8)
    image = np.stack([rows, columns, rows], axis=-1)
    stretched = []
    for seed in range(300):
        drawn = resized_crop(image, (12, 24), (0.05, 0.1), (0.8, 1.25), Draws(seed)).astype(int)
        assert drawn.shape == (12, 24, 3)
        down, across = (drawn[-1, -1, 0] - drawn[0, 0, 0]) / 11, (drawn[-1, -1, 1] - drawn[0, 0, 1]) / 23
        stretched.append(across / down)
    assert min(stretched) == pytest.approx(0.8, abs=0.06)
    assert max(stretched) == pytest.approx(1.25, abs=0.08)


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


def test_one_channel_is_pillows_luminance_and_is_written_grey(tmp_path: Path) -> None:
    grey = to_channels(noise(5, 7), 1)
    np.testing.assert_array_equal(grey[..., 0], np.asarray(Image.fromarray(noise(5, 7)).convert("L")))
    np.testing.assert_array_equal(to_channels(noise(5, 7), 3), noise(5, 7))
    write_png(grey, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == "L"
    np.testing.assert_array_equal(to_channels(read_image(tmp_path / "x.png"), 1), grey)
    for channels in (2, 4):  # Pillow would take them for transparency
        with pytest.raises(DataError, match=f"in_channels={channels}: expected 1 .luminance. or 3 .RGB."):
            write_png(np.zeros((2, 2, channels), np.uint8), tmp_path / "y.png")
        with pytest.raises(DataError, match=f"in_channels={channels}"):
            to_channels(noise(5, 7), channels)
    assert not (tmp_path / "y.png").exists()


@pytest.mark.parametrize("size", [16, (16, 24)])
def test_crops_of_one_channel_are_those_of_a_grey_picture(size: Any) -> None:
    grey = to_channels(noise(61, 83), 1)
    three = np.repeat(grey, 3, axis=2)
    for crop in (
        lambda image: center_crop(image, size),
        lambda image: random_crop(image, size, random.Random(3).randrange),
        lambda image: resized_crop(image, size, (0.2, 1.0), (0.5, 2.0), Draws(3)),
    ):
        assert crop(grey).shape[2] == 1
        np.testing.assert_array_equal(np.repeat(crop(grey), 3, axis=2), crop(three))


def test_grid_places_images_row_by_row() -> None:
    images = np.stack([np.full((2, 3, 3), value, dtype=np.uint8) for value in (10, 20, 30)])
    sheet = image_grid(images, columns=2, gap=1)
    assert sheet.shape == (7, 9, 3)
    np.testing.assert_array_equal(image_grid(images[..., :1], columns=2, gap=1), sheet[..., :1])
    assert [int(sheet[1, 1, 0]), int(sheet[1, 5, 0]), int(sheet[4, 1, 0]), int(sheet[4, 5, 0])] == [10, 20, 30, 255]
    with pytest.raises(ValueError, match="0 columns"):
        image_grid(images, columns=0)
