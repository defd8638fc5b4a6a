"""Sets of images: what lies there at the end, that parts make it up, that nothing of somebody else's is touched."""

import json
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ifsq.config import InputError
from ifsq.data import DataConfig, open_images
from ifsq.data.image_sets import NpzFile, PngFolder, set_kind

NAMES = ("cat", "dog, wet")
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 12, 3), np.uint8)
LABELS = np.array([1, 0, 1, 0, 0, 1, 1])
CARD = {"kind": "samples", "count": 7}


def place_of(kind, folder):
    return kind(folder / ("set.npz" if kind is NpzFile else "set"), 7, (8, 12, 3))


def fill(place, parts=((0, 3), (3, 4), (4, 7))):
    place.begin(CARD)
    for first, stop in parts:
        place.write(first, IMAGES[first:stop])
    return place


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_part_without_room_is_refused_with_the_reason(tmp_path):
    place = place_of(NpzFile, tmp_path)
    place.begin(CARD)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(InputError, match=r"cannot be written: file too large"):
            place.write(0, IMAGES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not place.present().any()


@pytest.mark.parametrize("kind", [PngFolder, NpzFile])
def test_whatever_the_parts_the_bytes_are_the_same(kind, tmp_path):
    for name, parts in (("a", ((0, 3), (3, 4), (4, 7))), ("b", ((5, 7), (0, 5)))):
        (tmp_path / name).mkdir()
        place = fill(place_of(kind, tmp_path / name), parts)
        assert place.present().all()
        assert place.finished() is None
        place.finish(LABELS, NAMES, CARD)
        assert place.finished() == CARD
        assert not place.hidden.exists()
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_an_npz_is_that_of_adm(tmp_path):
    place = fill(place_of(NpzFile, tmp_path))
    place.finish(LABELS, NAMES, CARD)
    with np.load(place.out) as held:
        assert held.files == ["arr_0", "arr_1"]
        assert (held["arr_0"].dtype, held["arr_1"].dtype) == (np.uint8, np.int64)
        assert np.array_equal(held["arr_0"], IMAGES)
        assert np.array_equal(held["arr_1"], LABELS)
    with zipfile.ZipFile(place.out) as file:
        assert file.testzip() is None
        assert {member.compress_type for member in file.infolist()} == {zipfile.ZIP_STORED}
    assert json.loads((tmp_path / "set.json").read_text()) == CARD


def test_grey_images_have_three_channels_in_an_npz(tmp_path):
    place = NpzFile(tmp_path / "grey.npz", 7, (8, 12, 1))
    place.begin(CARD)
    place.write(0, IMAGES[..., :1])
    place.finish(LABELS, NAMES, CARD)
    with np.load(place.out) as held:
        assert np.array_equal(held["arr_0"], IMAGES[..., [0, 0, 0]])


def test_a_folder_is_a_data_source_whose_labels_are_the_generators(tmp_path):
    place = fill(place_of(PngFolder, tmp_path))
    place.finish(LABELS, NAMES, CARD)
    assert sorted(path.name for path in place.out.iterdir()) == [
        *(f"{number:06d}.png" for number in range(7)),
        "labels.csv",
        "samples.json",
    ]
    assert np.array_equal(np.asarray(Image.open(place.out / "000005.png")), IMAGES[5])
    listed = open_images(DataConfig(str(place.out / "labels.csv"), (8, 12)), "all")
    assert listed.labels == LABELS.tolist()
    assert [np.array_equal(listed.load(i, 0)[0], image) for i, image in enumerate(IMAGES)] == [True] * 7
    assert len(open_images(DataConfig(str(place.out), (8, 12)), "all")) == 7


@pytest.mark.parametrize("kind", [PngFolder, NpzFile])
def test_what_a_kill_leaves_is_gone_on_with(kind, tmp_path):
    place = fill(place_of(kind, tmp_path), ((2, 4),))
    (place.hidden / ".partial_000004.png_12").write_bytes(b"half")
    again = place_of(kind, tmp_path)
    assert again.finished() is None
    assert again.note() == CARD
    again.begin(CARD | {"more": 1})
    assert not (place.hidden / ".partial_000004.png_12").exists()
    assert again.present().tolist() == [False, False, True, True, False, False, False]
    again.drop()  # there are images: they stay
    assert again.present().sum() == 2


@pytest.mark.parametrize("kind", [PngFolder, NpzFile])
def test_killed_while_names_are_given_it_ends_the_same(kind, tmp_path, monkeypatch):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    fill(place_of(kind, tmp_path / "whole")).finish(LABELS, NAMES, CARD)
    place = fill(place_of(kind, tmp_path / "cut"))
    step = "move_content" if kind is PngFolder else "move"

    def killed(*given):  # of an npz: when it has its name, and before its card has one
        if kind is PngFolder:
            (place.hidden / "000003.png").rename(place.out / "000003.png")
        else:
            given[0].rename(given[1])
        raise KeyboardInterrupt

    monkeypatch.setattr(f"ifsq.data.image_sets.{step}", killed)
    with pytest.raises(KeyboardInterrupt):
        place.finish(LABELS, NAMES, CARD)
    monkeypatch.undo()
    assert place.finished() is None
    assert place.note() == CARD
    place.begin(CARD)
    assert place.present().all()
    place.finish(LABELS, NAMES, CARD)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_something_else_in_the_place_is_refused(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "000000.png").write_bytes(b"mine")
    (tmp_path / "old.npz").write_bytes(b"mine")
    (tmp_path / "other.json").write_text("{}")
    place = fill(place_of(PngFolder, tmp_path))
    place.finish(LABELS, NAMES, CARD)
    (place.out / "000002.png").unlink()
    for there, message in (
        (PngFolder(folder, 7, (8, 12, 3)), r"mine: is not empty and holds no samples \(000000.png\)"),
        (PngFolder(tmp_path / "old.npz", 7, (8, 12, 3)), "old.npz: is a file; expected a folder for the samples"),
        (NpzFile(tmp_path / "old.npz", 7, (8, 12, 3)), "old.npz: exists, and no old.json beside it says of what"),
        (NpzFile(tmp_path / "other.npz", 7, (8, 12, 3)), "other.json: is no card of samples"),
        (NpzFile(folder, 7, (8, 12, 3)), "mine: is a folder; expected the name of a file"),
        (place, "000002.png: is missing; remove .*set to sample again"),
    ):
        with pytest.raises(InputError, match=message):
            there.finished()


@pytest.mark.parametrize("harm", ["cut", "other"])
def test_a_damaged_part_is_named(harm, tmp_path):
    place = fill(place_of(NpzFile, tmp_path))
    part = place.hidden / "00000003.npy"
    if harm == "cut":
        part.write_bytes(part.read_bytes()[:-5])
    else:
        np.save(part, np.zeros((1, 8, 12, 3)))
    with pytest.raises(InputError, match=r"00000003.npy: .*; remove it, and its images are drawn again"):
        place.present()


def test_a_place_is_told_by_its_name(tmp_path):
    kinds = {"a.png": None, "a.PNG": None, "a.npz": NpzFile, "a": PngFolder, "ar_guidance_1.5": PngFolder}
    assert {name: set_kind(Path(name)) for name in kinds} == kinds
    for name in ("a.txt", "a.npy", "a.jpg"):
        with pytest.raises(
            InputError, match=rf"{name}: expected a name that ends in .png or .npz, or that of a folder"
        ):
            set_kind(Path(name))
    (tmp_path / "b.png").mkdir()
    with pytest.raises(InputError, match=r"b.png: is a folder; expected the name of a picture"):
        set_kind(tmp_path / "b.png")
