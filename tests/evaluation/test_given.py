"""Images that a person gives, as they are read, and what is refused of them."""

import numpy as np
import pytest
from PIL import Image

from ifsq.data import DataError
from ifsq.data.images import Reading
from ifsq.evaluation.given import AS_THEY_ARE, ArrayImages, open_source

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 16, 24, 3), np.uint8)


def written(folder, pixels=PIXELS):
    folder.mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number:02}.png")
    return folder


def of(images, numbers):
    return np.concatenate([part.images for part in images.parts([numbers])])


def test_a_file_and_a_folder_of_the_same_images_give_the_same(tmp_path):
    np.savez(tmp_path / "a.npz", PIXELS, np.arange(20) % 3)
    file, folder = ArrayImages(tmp_path / "a.npz"), open_source(str(written(tmp_path / "a")), "", 0, 0, Reading())
    assert len(file) == len(folder) == 20
    assert file.shape == folder.shape == (16, 24, 3)
    assert file.size == folder.size == (16, 24)
    assert file.crop == folder.crop == AS_THEY_ARE
    for numbers in ([0, 1, 2, 9], [19]):
        assert np.array_equal(of(file, numbers), PIXELS[numbers])
        assert np.array_equal(of(folder, numbers), PIXELS[numbers])
    assert next(file.parts([[4, 5]])).labels.tolist() == [1, 2]


def test_some_of_the_images_are_drawn_over_all_and_always_the_same(tmp_path):
    np.savez(tmp_path / "a.npz", PIXELS)
    file, folder = ArrayImages(tmp_path / "a.npz"), open_source(str(written(tmp_path / "a")), "", 0, 0, Reading())
    assert file.chosen(20) == list(range(20))  # in the order of the file, which is quick
    assert file.chosen(5) == sorted(folder.chosen(5))
    assert sorted(folder.chosen(20)) == list(range(20)) != folder.chosen(20)  # a folder is sorted by class


def test_sizes_are_brought_to_one_where_that_is_asked_for(tmp_path):
    folder = written(tmp_path / "a")
    Image.fromarray(PIXELS[0, :8]).save(folder / "99.png")
    images = open_source(str(folder), "", 0, 0, Reading())
    with pytest.raises(
        DataError, match=r"99\.png: is of 8x24 pixels, the first of 16x24; expected one size, or --size"
    ):
        of(images, range(21))
    images = open_source(str(folder), "", 16, 0, Reading())
    assert of(images, range(21)).shape == (21, 16, 16, 3)
    assert (images.size, images.crop) == (16, "center")


def test_what_has_no_size_of_its_own_takes_that_of_the_samples():
    assert open_source("bundled:digits", "", 0, 32, Reading()).size == 32
    with pytest.raises(DataError, match="bundled:digits: has no size of its own; give --size"):
        open_source("bundled:digits", "", 0, 0, Reading())


def test_a_broken_image_is_left_out_and_named(tmp_path):
    folder = written(tmp_path / "a")
    (folder / "00.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"00\.png cannot be read"):
        open_source(str(folder), "", 0, 0, Reading())
    images = open_source(str(folder), "", 0, 0, Reading(broken="skip"))
    parts = list(images.parts([[0, 1], [2, 3]]))
    assert [list(part.numbers) for part in parts] == [[1], [2, 3]]
    assert len(images.skipped) == 1
    assert "00.png" in images.skipped[0]


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"mu": np.ones(4)}, "holds mu; expected arr_0, images as uint8"),
        ({}, "holds no arrays; expected arr_0"),
        ({"arr_0": PIXELS.astype(np.float32)}, "arr_0: is of float32; expected uint8, 0 to 255"),
        ({"arr_0": PIXELS[0]}, r"arr_0: is of shape \(16, 24, 3\); expected \(n, H, W, 3\)"),
        ({"arr_0": PIXELS.transpose(0, 3, 1, 2).copy()}, r"arr_0: is of shape \(20, 3, 16, 24\)"),
        ({"arr_0": PIXELS[:0]}, r"arr_0: is of shape \(0, 16, 24, 3\)"),
        ({"arr_0": np.array([PIXELS[0], PIXELS[0, :9]], dtype=object)}, "arr_0: holds pickled objects"),
        ({"arr_0": PIXELS, "arr_1": np.arange(19)}, r"arr_1: is of shape \(19,\) and int64; expected an integer label"),
        ({"arr_0": PIXELS, "arr_1": np.ones(20)}, r"arr_1: is of shape \(20,\) and float64"),
        ({"arr_0": PIXELS, "arr_1": np.arange(20) - 3}, "arr_1: labels from -3 to 16; expected 0 and above"),
    ],
)
def test_other_files_are_refused_in_a_line(tmp_path, arrays, told):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=told) as refused:
        ArrayImages(tmp_path / "a.npz")
    assert "\n" not in str(refused.value)
    assert "a.npz" in str(refused.value)
