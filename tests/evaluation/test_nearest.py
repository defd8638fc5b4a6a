"""The nearest training images: found again when they are drawn, and beside their samples on the sheet."""

import numpy as np
import pytest

from ifsq.data import BrokenImageError, DataError, ImageSource
from ifsq.evaluation import nearest
from ifsq.evaluation.nearest import nearest_images
from ifsq.evaluation.sheets import neighbour_sheet


class Pictures(ImageSource):
    """Given images; those in ``lost`` cannot be read."""

    classes, fingerprint, broken = ("a",), "", "skip"

    def __init__(self, images, lost=(), block=0):
        self.images, self.lost, self.shape, self.block = images, lost, images.shape[1:], block

    def __len__(self):
        return len(self.images)

    def load(self, index, seed):
        if index in self.lost:
            raise BrokenImageError(f"{index} cannot be read: lost")
        return self.images[index], 0


def noise(count, side=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_it_is_the_one_of_least_distance():
    real, samples = noise(40), noise(5, seed=1)
    squares = (samples[:, None].astype(float) - real[None]).reshape(5, 40, -1) ** 2
    found = nearest_images(samples, Pictures(real))
    assert (found.images == real[squares.sum(axis=-1).argmin(axis=1)]).all()
    assert found.searched == "pixels, among 40 training images"
    near = np.clip(real[[7, 3]].astype(int) + 3, 0, 255).astype(np.uint8)
    assert (nearest_images(near, Pictures(real)).images == real[[7, 3]]).all()


def test_an_image_that_cannot_be_read_is_no_neighbour():
    real = noise(6)
    found = nearest_images(real[2:3], Pictures(real, lost=(2,)))
    assert (found.images[0] != real[2]).any()
    assert found.searched == "pixels, among 5 of 6 training images"
    with pytest.raises(DataError, match="none of the 6 training images to search could be read"):
        nearest_images(real[:1], Pictures(real, lost=range(6)))


def test_large_images_are_averaged_and_large_sets_drawn_from(monkeypatch):
    monkeypatch.setattr(nearest, "MOST_SEARCHED", 4)
    real = noise(9, side=64)
    for block in (0, 9):
        found = nearest_images(real[:1], Pictures(real, block=block))
        assert found.searched == "pixels averaged to 32 x 32, among 4 of 9 training images"
    assert (found.images[0] == real[0]).all(), "of a stream the first ones"


def test_the_sheet_has_each_sample_left_of_its_nearest():
    samples, near = np.zeros((3, 4, 4, 3), np.uint8), np.full((3, 4, 4, 3), 100, np.uint8)
    sheet = neighbour_sheet(samples, near, np.array([5, 5, 2]), [5, 2])
    assert sheet[4, [4, 10, 16, 22], 0].tolist() == [0, 100, 0, 100]
    assert sheet[10, [4, 10, 16, 22], 0].tolist() == [0, 100, 255, 255], "white where a class has fewer"
