"""A folder of images: classes, splits, crops and every way it can be wrong."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ifsq.data import BrokenImageError, DataConfig, DataError, describe_images, open_images, read_image, write_png
from ifsq.data.containers.folder import images_below
from ifsq.data.encoded import EncodedImages


def fill(folder: Path, names: list[str], height: int = 20, width: int = 30) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(image).save(path)


def opened(
    folder: Path, split: str = "train", size: int = 16, flip: bool = False, crop: str = "center"
) -> EncodedImages:
    source = open_images(DataConfig(source=str(folder), size=size, flip=flip, crop=crop), split)
    assert isinstance(source, EncodedImages)
    return source


def test_subfolders_are_classes_and_deeper_ones_are_not(tmp_path: Path) -> None:
    fill(tmp_path, [f"{c}/{d}/{k}.png" for c in ("cat", "ant") for d in ("x", "y") for k in range(3)])
    source = opened(tmp_path)
    assert source.classes == ("ant", "cat")
    assert all(source.classes[source.load(i, 0)[1]] == name.split("/")[0] for i, name in enumerate(source.names))


def test_images_without_class_folders_are_one_class(tmp_path: Path) -> None:
    fill(tmp_path, [f"{k}.png" for k in range(4)])
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._0.png").write_bytes(b"what macOS leaves behind")
    train, val = opened(tmp_path), opened(tmp_path, "val")
    assert train.classes == val.classes == ("all",)
    assert sorted(train.names + val.names) == ["0.png", "1.png", "2.png", "3.png"]


def test_every_known_extension_is_read(tmp_path: Path) -> None:
    names = ["a.jpg", "b.jpeg", "c.png", "d.webp", "e.bmp", "f.gif", "g.tif", "h.tiff", "I.JPG", "J.PNG"]
    fill(tmp_path, names)
    both = [opened(tmp_path, split) for split in ("train", "val")]
    assert sorted(both[0].names + both[1].names) == sorted(names)
    assert all(source.load(i, 0)[0].shape == (16, 16, 3) for source in both for i in range(len(source)))


def test_names_decide_what_is_held_out(tmp_path: Path) -> None:
    fill(tmp_path, [f"{k}.png" for k in range(200)], 8, 8)
    train, val = set(opened(tmp_path).names), set(opened(tmp_path, "val").names)
    assert not train & val
    assert len(train | val) == 200
    assert 2 <= len(val) <= 20
    fill(tmp_path, [f"new{k}.png" for k in range(100)], 8, 8)
    assert train <= set(opened(tmp_path).names)
    assert val <= set(opened(tmp_path, "val").names)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_images_leave_one_held_out(tmp_path: Path, count: int) -> None:
    fill(tmp_path, [f"{k}.png" for k in range(count)])
    assert len(opened(tmp_path, "val")) == 1
    assert len(opened(tmp_path)) == count - 1


def test_train_and_val_folders_are_the_split(tmp_path: Path) -> None:
    fill(tmp_path, ["train/a/0.png", "train/b/0.png", "val/b/1.png"])
    train, val = opened(tmp_path), opened(tmp_path, "val")
    assert train.names == ["a/0.png", "b/0.png"]
    assert val.names == ["b/1.png"]
    assert train.classes == val.classes == ("a", "b")
    assert val.load(0, 0)[1] == 1
    fill(tmp_path, ["val/c/0.png"])
    with pytest.raises(DataError, match=r"val/c: expected a class that .*train has too"):
        opened(tmp_path, "val")


def test_center_crop_ignores_the_seed_and_random_crop_follows_it(tmp_path: Path) -> None:
    fill(tmp_path, ["0.png", "1.png", "2.png"], 40, 60)
    center, random = opened(tmp_path), opened(tmp_path, crop="random")
    assert len({center.load(0, seed)[0].tobytes() for seed in range(10)}) == 1
    drawn = [random.load(0, seed)[0].tobytes() for seed in range(10)]
    assert len(set(drawn)) > 5
    assert drawn[4] == random.load(0, 4)[0].tobytes()
    val = opened(tmp_path, "val", crop="random", flip=True)
    assert len({val.load(0, seed)[0].tobytes() for seed in range(10)}) == 1


def test_an_image_of_the_asked_size_is_untouched_but_for_the_flip(tmp_path: Path) -> None:
    fill(tmp_path, ["0.png", "1.png"], 16, 16)
    source = opened(tmp_path, flip=True)
    image = read_image(tmp_path / source.names[0])
    drawn = {source.load(0, seed)[0].tobytes() for seed in range(20)}
    assert drawn == {image.tobytes(), image[:, ::-1].tobytes()}


def test_fingerprint_follows_names_sizes_and_recipe_but_not_the_place(tmp_path: Path) -> None:
    fill(tmp_path / "one", ["a/0.png", "a/1.png", "b/2.png"])
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first = opened(tmp_path / "one").fingerprint
    assert opened(tmp_path / "two").fingerprint == first
    assert opened(tmp_path / "two", size=24).fingerprint != first
    assert opened(tmp_path / "two", crop="random").fingerprint != first
    name = opened(tmp_path / "two").names[0]
    (tmp_path / "two" / name).write_bytes((tmp_path / "two" / name).read_bytes() + b"\0")
    assert opened(tmp_path / "two").fingerprint != first


def test_a_broken_image_is_raised_never_replaced(tmp_path: Path) -> None:
    fill(tmp_path, ["a/0.png", "a/1.png", "a/2.png"])
    source = opened(tmp_path)
    (tmp_path / source.names[1]).write_bytes(b"broken")
    source.load(0, 0)
    with pytest.raises(DataError, match=rf"^image {tmp_path / source.names[1]} cannot be read: "):
        source.load(1, 0)


def test_a_name_that_is_no_utf_8_is_one_line(tmp_path: Path) -> None:
    fill(tmp_path, ["0.png", "1.png"], 8, 8)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(b"")
    with pytest.raises(DataError, match=r"name 'caf.udce9.png': expected UTF-8 on one line") as caught:
        opened(tmp_path)
    assert str(caught.value).isascii()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).rename(tmp_path / "nu\nl.png")
    with pytest.raises(DataError, match=r"name 'nu.nl.png': expected UTF-8 on one line"):
        opened(tmp_path)


def test_validation_images_may_lie_elsewhere(tmp_path: Path) -> None:
    fill(tmp_path / "here", ["a/0.png", "b/1.png"], 16, 16)
    fill(tmp_path / "there", ["b/2.png"], 16, 16)
    config = DataConfig(source=str(tmp_path / "here"), size=16, val_source=str(tmp_path / "there"))
    train, val = open_images(config, "train"), open_images(config, "val")
    assert len(train) == 2
    np.testing.assert_array_equal(val.load(0, 0)[0], read_image(tmp_path / "there/b/2.png"))
    assert val.classes[val.load(0, 0)[1]] == "b"


def test_a_picture_that_enlarging_would_blow_up_is_broken(tmp_path: Path) -> None:
    fill(tmp_path, ["0.png", "1.png"], 1, 600)
    config = DataConfig(source=str(tmp_path), size=64, max_pixels=64 * 64 * 500)
    with pytest.raises(BrokenImageError, match="600 x 1 pixels are too narrow for size 64"):
        open_images(config, "train").load(0, 0)


def test_what_is_too_narrow_for_a_rectangle_is_counted_by_the_side_that_grows_most(tmp_path: Path) -> None:
    fill(tmp_path, ["0.png", "1.png"], 1, 600)
    # The height grows 8 and 16 times, and the width with it; then the width grows 4 times and the height with it.
    for source, size, pixels in ((1, (8, 4000), 8 * 4800), (1, (16, 9), 16 * 9600), (2, (8, 2400), 8 * 2400)):
        fill(tmp_path, ["0.png", "1.png"], source, 600)
        config = DataConfig(source=str(tmp_path), size=size, max_pixels=pixels)
        assert open_images(config, "train").load(0, 0)[0].shape == (*size, 3)
        with pytest.raises(BrokenImageError, match=f"are too narrow for size {size[0]}x{size[1]}"):
            open_images(replace(config, max_pixels=pixels - 1), "train").load(0, 0)


def test_wrong_folders_are_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_png(np.zeros((8, 8, 3), dtype=np.uint8), tmp_path / "file.png")
    fill(tmp_path / "one", ["0.png"])
    fill(tmp_path / "mixed", ["0.png", "a/1.png"])
    wanted = {
        "missing": "missing: expected a folder of images, found nothing",
        "file.png": "file.png: expected a folder of images, found a file",
        "empty": "empty: expected images .*, found none",
        "one": "one: expected at least two images, .*found 1",
        "mixed": "mixed/0.png: lies beside class folders",
    }
    for name, message in wanted.items():
        with pytest.raises(DataError, match=message) as caught:
            opened(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["heic", "HEIC", "jxl", "svg", "cr2", "psd"])
def test_a_picture_that_is_not_read_is_named(tmp_path: Path, kind: str) -> None:
    fill(tmp_path, ["a/0.png", "a/1.png", "b/2.png"], 8, 8)
    for name in ("0.json", "0.txt", "0.npy", "notes"):
        (tmp_path / "a" / name).write_text("beside")
    (tmp_path / f"a/0.{kind}").write_text("another form of 0.png")
    assert opened(tmp_path).classes == ("a", "b")
    for name in ("5", "6"):
        (tmp_path / f"b/{name}.{kind}").write_text("alone")
    with pytest.raises(DataError, match=rf"^{tmp_path}/b/5.{kind} .and 1 more.: no picture that is read .* 'skip'$"):
        opened(tmp_path)
    with pytest.raises(DataError, match=rf"b/5.{kind} "):
        images_below(tmp_path)
    skipping = [open_images(DataConfig(str(tmp_path), 8, broken="skip"), split) for split in ("train", "val")]
    assert sum(map(len, skipping)) == 3
    told = describe_images(skipping[0], skipping[1])
    assert told.endswith(f"; not read and left out: 2, the first {tmp_path}/b/5.{kind}")


def test_a_split_of_pictures_that_are_not_read_is_no_silence(tmp_path: Path) -> None:
    fill(tmp_path, ["train/0.png", "train/1.png"], 8, 8)
    (tmp_path / "val").mkdir()
    (tmp_path / "val/2.heic").write_text("x")
    with pytest.raises(DataError, match=r"val/2.heic: no picture that is read"):
        opened(tmp_path, "val")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_pipes_and_devices_are_no_images(tmp_path: Path, make: Callable[[Path], None]) -> None:
    fill(tmp_path, ["0.png", "1.png"], 8, 8)
    make(tmp_path / "2.png")
    with pytest.raises(DataError, match=rf"^{tmp_path}/2.png: expected an image, found no regular file"):
        opened(tmp_path)


def test_class_folders_may_be_left_out_of_account(tmp_path: Path) -> None:
    fill(tmp_path / "dates", ["20230101/0.png", "20240101/1.png"], 8, 8)
    with pytest.raises(
        DataError, match=r"dates: label 20240101: expected integers from 0 to 999999, or words; or data.l"
    ):
        opened(tmp_path / "dates")
    assert open_images(DataConfig(str(tmp_path / "dates"), 8, label_column="none"), "train").classes == ("all",)
    with pytest.raises(DataError, match=r"data.label_column 'species': a folder has no columns"):
        open_images(DataConfig(str(tmp_path / "dates"), 8, label_column="species"), "train")
