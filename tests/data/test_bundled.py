"""Bundled pictures: what is held out stays held out, and an image is a pure function of (index, seed)."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ifsq.data import DataConfig, DataError, ImageSource, bundled, open_images

NAMES = ("bundled:photos", "bundled:digits", "bundled:shapes")


def opened(name: str, split: str = "train", size: int = 32, flip: bool = False) -> ImageSource:
    return open_images(DataConfig(source=name, size=size, flip=flip), split)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("size", [16, 32, 128])
def test_images_are_bytes_of_the_asked_size(name: str, split: str, size: int) -> None:
    source = opened(name, split, size)
    for index in (0, len(source) // 2, len(source) - 1):
        image, label = source.load(index, 3)
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
        assert 0 <= label < len(source.classes) == 10
        assert image.max() > image.min()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(16, 48), (48, 16), (32, 256)])
def test_images_are_rectangles_where_these_are_asked(name: str, size: tuple[int, int]) -> None:
    for split in ("train", "val"):
        source = open_images(DataConfig(source=name, size=size), split)
        assert source.shape == (*size, 3)
        images = np.stack([source.load(index, 3)[0] for index in range(40)])
        assert images.shape[1:] == source.shape
        if name != "bundled:digits":  # these stay near the middle; the others fall on every row and column
            assert (images != images[:1]).any(axis=(0, 2, 3)).mean() > 0.8
            assert (images != images[:1]).any(axis=(0, 1, 3)).mean() > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_a_side_twice_is_a_square(name: str) -> None:
    said = [open_images(DataConfig(source=name, size=size), "train") for size in (32, (32, 32))]
    assert said[0].fingerprint == said[1].fingerprint
    for index in range(20):
        np.testing.assert_array_equal(said[0].load(index, 5)[0], said[1].load(index, 5)[0])


FINGERPRINTS = {
    "bundled:photos": "e07db999f5cd0ca0",
    "bundled:digits": "6505241312574432",
    "bundled:shapes": "f3bb80cf7508f359",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_fingerprints_of_squares_are_those_of_the_first_version(name: str) -> None:
    assert opened(name).fingerprint[:16] == FINGERPRINTS[name]


@pytest.mark.parametrize("name", NAMES)
def test_luminance_is_that_of_the_colours(name: str) -> None:
    colour, grey = (open_images(DataConfig(source=name, flip=True), "train", channels=channels) for channels in (3, 1))
    assert grey.shape == (32, 32, 1)
    assert grey.fingerprint != colour.fingerprint
    for index in range(10):
        (image, label), (one, told) = colour.load(index, index), grey.load(index, index)
        np.testing.assert_array_equal(one[..., 0], np.asarray(Image.fromarray(image).convert("L")))
        assert told == label
    with pytest.raises(DataError, match=r"in_channels=4: expected 1 .luminance. or 3"):
        open_images(DataConfig(source=name), "train", channels=4)


def test_a_photograph_is_stretched_in_no_rectangle() -> None:
    for size in ((16, 64), (64, 16)):
        source = open_images(DataConfig(source="bundled:photos", size=size), "val")
        assert isinstance(source, bundled.Photos)
        for photo, levels in zip(bundled.PHOTOS, source.pyramids, strict=True):
            part, _ = bundled.photo_part(bundled.read_photo(photo), photo, "val")
            for level in levels:
                assert level.shape[0] / level.shape[1] == pytest.approx(part.shape[0] / part.shape[1], rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_training_images_follow_the_seed_and_validation_images_do_not(name: str) -> None:
    train, again, val = opened(name, flip=True), opened(name, flip=True), opened(name, "val")
    draws = [train.load(11, seed)[0] for seed in range(8)]
    np.testing.assert_array_equal(draws[5], again.load(11, 5)[0])
    assert len({image.tobytes() for image in draws}) > 4
    assert len({val.load(11, seed)[0].tobytes() for seed in range(8)}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_half_of_the_training_images_are_mirrored_when_asked(name: str) -> None:
    plain, flipped = opened(name), opened(name, flip=True)
    mirrored = 0
    for seed in range(60):
        image, other = plain.load(7, seed)[0], flipped.load(7, seed)[0]
        mirrored += not np.array_equal(image, other)
        np.testing.assert_array_equal(other if np.array_equal(image, other) else other[:, ::-1], image)
    assert 15 < mirrored < 45


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", ["train", "val"])
def test_classes_are_balanced(name: str, split: str) -> None:
    source = opened(name, split)
    counts = np.bincount([source.load(index, 0)[1] for index in range(len(source))], minlength=10)
    assert counts.min() > 0.9 * counts.max()


@pytest.mark.parametrize("photo", bundled.PHOTOS, ids=lambda photo: photo.name)
def test_no_pixel_of_a_photograph_is_in_both_splits(photo: bundled.Photo) -> None:
    rows, columns = np.mgrid[:200, :240].astype(np.uint8)
    coordinates = np.stack([rows, columns, np.zeros_like(rows)], axis=-1)
    seen = {}
    for split in ("train", "val"):
        part, short = bundled.photo_part(coordinates, photo, split)
        seen[split] = {(int(r), int(c)) for r, c in part[..., :2].reshape(-1, 2)}
        assert part.shape[1] >= max(bundled.SCALES) * short  # the largest crop fits without stretching
    assert not seen["train"] & seen["val"]
    assert 0.3 < len(seen["val"]) / len(seen["train"] | seen["val"]) < 0.35


def test_crops_come_from_their_part_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # Training parts are painted black, held-out parts white: a crop that reached across would not be plain.
    def painted(photo: bundled.Photo) -> np.ndarray:
        image = np.full((400, 500, 3), 0, dtype=np.uint8)
        bundled.photo_part(image, photo, "val")[0][:] = 255
        return image

    monkeypatch.setattr(bundled, "read_photo", painted)
    for split, value in (("train", 0), ("val", 255)):
        source = opened("bundled:photos", split)
        assert all(np.all(source.load(index, 1)[0] == value) for index in range(400))


def test_every_scale_and_place_is_drawn() -> None:
    source = opened("bundled:photos")
    assert isinstance(source, bundled.Photos)
    shapes = [level.shape[0] for level in source.pyramids[0]]
    # 512 pixels high: a crop of 32 spans 0.16 to 0.32 of it.
    assert shapes == [round(32 / scale) for scale in bundled.SCALES]
    # Every pixel tells its level, row and column.
    source.pyramids[0] = [
        np.stack([np.full((60, 50), level), *np.mgrid[:60, :50]], axis=-1).astype(np.uint8) for level in range(5)
    ]
    corners = np.array([source.load(0, seed)[0][0, 0] for seed in range(1000)])
    assert [set(corners[:, axis].tolist()) for axis in range(3)] == [set(range(n)) for n in (5, 60 - 31, 50 - 31)]


def test_digits_are_whole_split_by_index_and_unlike_between_splits() -> None:
    train, val = opened("bundled:digits"), opened("bundled:digits", "val")
    assert isinstance(train, bundled.Digits)
    assert isinstance(val, bundled.Digits)
    assert len(train) + len(val) == 1797
    assert len(val) == pytest.approx(1797 / 5, abs=10)
    ink = {index: train.load(index, 0)[0].sum() for index in range(20)}
    for seed in range(20):
        for index, expected in ink.items():
            assert train.load(index, seed)[0].sum() == expected  # moving loses nothing
    assert not {d.tobytes() for d in train.digits} & {d.tobytes() for d in val.digits}


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    reference = load_digits()
    pixels, labels = bundled._read_digits()
    np.testing.assert_array_equal(pixels, reference.images)
    np.testing.assert_array_equal(labels, reference.target)


@pytest.mark.parametrize("name", NAMES)
def test_fingerprints_tell_apart_what_gives_other_pixels(name: str) -> None:
    sources = [opened(name), opened(name, "val"), opened(name, size=64), opened(name, flip=True)]
    assert len({source.fingerprint for source in sources}) == 4
    assert opened(name).fingerprint == sources[0].fingerprint
    # Validation ignores the flip, so the reference set of two runs is one.
    assert opened(name, "val", flip=True).fingerprint == sources[1].fingerprint


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "bundled:photo"}, "source='bundled:photo': expected one of bundled:photos"),
        ({"source": ""}, "source=''"),
        ({"size": 8}, "size=8: expected 16 to 256"),
        ({"source": "x", "size": 4}, "size=4: expected 8"),
        ({"source": "x", "size": (64, 4)}, r"size=\[64, 4\]: expected 8 to 4096 pixels for x"),
        ({"size": (16, 257)}, r"size=\[16, 257\]: expected 16 to 256 pixels for bundled:photos"),
        ({"crop": "centre"}, "crop='centre': expected one of center, random, five, resized"),
        ({"scale": (0.5, 0.2)}, r"scale=\[0.5, 0.2\]: expected 0 < least"),
        ({"scale": (0.5, 1.2)}, r"scale=\[0.5, 1.2\]"),
        ({"ratio": (0.0, 1.0)}, r"ratio=\[0.0, 1.0\]: expected 0 < least"),
        ({"broken": "replace"}, "broken='replace': expected one of refuse, skip"),
        ({"max_pixels": 0}, "max_pixels=0: expected 1 to 89478485"),
        ({"block": 0}, "block=0: expected at least one image"),
        ({"stream": True}, "stream=true: expected a source hf:NAME, found 'bundled:photos'"),
        ({"val_source": "x"}, "val_source='x': bundled images have their own"),
    ],
)
def test_a_bad_config_is_refused_by_name(fields: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        DataConfig(**fields)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(DataError, match="has the splits train and val; expected test"):
        opened("bundled:shapes", "test")


def test_a_package_without_the_file_is_named() -> None:
    with pytest.raises(DataError, match=r"data/none.png, which scikit-image .* does not carry"):
        bundled._packaged("scikit-image", "data/none.png")


def test_bundled_images_import_neither_package() -> None:
    code = (
        "import sys; from ifsq.data import DataConfig, open_images\n"
        f"for name in {NAMES}: open_images(DataConfig(source=name), 'val').load(0, 0)\n"
        "print([m for m in ('skimage', 'sklearn', 'torchmetrics', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
