"""Tar shards: the pictures, order and labels of their files; and everything that can be wrong with them."""

import gc
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from ifsq.data import DataConfig, DataError, ImageSource, open_images, read_image, shards, tar_index


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IFSQ_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pack(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def pair(folder: Path) -> str:
    """Two shards of three pictures each."""
    for shard in range(2):
        files = {}
        for k in range(3):
            files |= {f"{k}.cls": b"%d" % k, f"{k}.png": picture(3 * shard + k)}
        pack(folder / f"s-{shard:02d}.tar", files)
    return str(folder / "s-{00..01}.tar")


def opened(source: str, split: str = "train", **fields: object) -> ImageSource:
    return open_images(DataConfig(source=source, size=8, **{"val_source": source} | fields), split)


@pytest.mark.filterwarnings("ignore")
def test_shards_of_webdataset_are_read_as_it_reads_them(tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "s-%03d.tar"), maxcount=4, verbose=0) as writer:
        for k in range(10):
            writer.write({"__key__": f"{k:04d}", "png": picture(k), "cls": 3 * k % 7, "seg.png": picture(99)})
    pattern = str(tmp_path / "s-{000..002}.tar")
    theirs = list(webdataset.WebDataset(pattern, shardshuffle=False).decode("rgb8").to_tuple("png", "cls"))
    gc.collect()  # it leaves its files open
    source = opened(pattern)
    assert len(source) == len(theirs) == 10
    for index in (9, 0, 4, 5, 3, 1, 2, 8, 7, 6):  # any order
        image, label = source.load(index, 0)
        np.testing.assert_array_equal(image, theirs[index][0])
        assert int(source.classes[label]) == theirs[index][1]


def test_patterns_globs_and_folders_name_the_same_images(tmp_path: Path) -> None:
    pattern = pair(tmp_path)
    sources = [opened(s) for s in (pattern, str(tmp_path / "s-*.tar"), str(tmp_path), str(tmp_path / "s-0{0,1}.tar"))]
    assert len({source.fingerprint for source in sources}) == 1
    for source in sources:
        for index in range(6):
            np.testing.assert_array_equal(source.load(index, 0)[0], read_image("x", picture(index)))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{8..11}.tar", ["8.tar", "9.tar", "10.tar", "11.tar"]),
        ("{b,a}-{00..01}.tar", ["b-00.tar", "b-01.tar", "a-00.tar", "a-01.tar"]),
    ],
)
def test_braces_are_expanded_in_their_order(pattern: str, names: list[str]) -> None:
    assert [str(path) for path in shards.expand(pattern)] == names


LABELS = {
    "cls": ({"x/1.png": b"", "x/1.cls": b"dog", "y/2.png": b"", "y/2.cls": b"cat\n"}, ["dog", "cat"]),
    "json": ({"1.png": b"", "1.json": b'{"label": 1}', "2.jpeg": b"", "2.json": b'{"cls": 0, "w": 3}'}, ["1", "0"]),
    "folder": ({"./set/dog/1.png": b"", "./set/cat/2.WEBP": b"", "./set/cat/.2.png": b""}, ["dog", "cat"]),
    "none": ({"1.png": b"", "2.png": b"", "2.txt": b"a caption"}, ["all", "all"]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_come_from_cls_json_or_folder(tmp_path: Path, kind: str) -> None:
    files, labels = LABELS[kind]
    source = opened(str(pack(tmp_path / "x.tar", {name: part or picture(0) for name, part in files.items()})))
    assert [source.classes[source.load(index, 0)[1]] for index in range(2)] == labels


@pytest.mark.parametrize("names", [("train/0.tar", "val/0.tar"), ("in-train-0.tar", "in-validation-0.tar")])
def test_folders_and_names_are_the_splits(tmp_path: Path, names: tuple[str, str]) -> None:
    pack(tmp_path / names[0], {"a/0.png": picture(0), "b/1.png": picture(1)})
    pack(tmp_path / names[1], {"b/2.png": picture(2)})
    train, val = opened(str(tmp_path), val_source=""), opened(str(tmp_path), "val", val_source="")
    assert len(train) == 2
    np.testing.assert_array_equal(val.load(0, 0)[0], read_image("x", picture(2)))
    assert val.classes[val.load(0, 0)[1]] == "b"


def test_names_decide_who_is_held_out_where_nothing_else_does(tmp_path: Path) -> None:
    pattern = pair(tmp_path)
    train, val = opened(pattern, val_source=""), opened(pattern, "val", val_source="")
    assert (len(train), len(val)) == (5, 1)
    assert train.classes == val.classes == ("0", "1", "2")


def test_a_shard_is_scanned_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, scanned, scan = pair(tmp_path), [], tar_index._scan

    def counted(path: Path) -> list[tar_index.Sample]:
        scanned.append(path.name)
        return scan(path)

    monkeypatch.setattr(tar_index, "_scan", counted)
    first = opened(pattern)
    assert opened(pattern).fingerprint == first.fingerprint
    assert scanned == ["s-00.tar", "s-01.tar"]
    pack(tmp_path / "s-01.tar", {"0.png": picture(7), "0.cls": b"1"})
    assert len(opened(pattern)) == 4
    assert scanned[2:] == ["s-01.tar"]
    os.utime(tmp_path / "s-00.tar", ns=(0, 0))  # the same size, touched
    opened(pattern)
    assert scanned[3:] == ["s-00.tar"]
    assert not list(tar_index.cache_folder().glob("*.partial"))


def test_handles_are_few_and_no_pickle_takes_them_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "OPEN_AT_ONCE", 2)
    for k in range(4):
        pack(tmp_path / f"{k}.tar", {"x.png": picture(k)})
    catalogue = shards.Shards("x", [tmp_path / f"{k}.tar" for k in range(4)])
    for k in (0, 1, 2, 3, 0):
        assert catalogue.read(k) == picture(k)
        assert len(catalogue._files.open) <= 2
    again = pickle.loads(pickle.dumps(catalogue))  # noqa: S301 - our own bytes
    assert not again._files.open
    assert again.read(2) == picture(2)


def damaged(path: Path) -> dict[str, bytes]:
    """A shard of two samples, harmed in ways that Python's reader would take for its end."""
    whole = pack(path, {"0.png": picture(0), "1.png": picture(1)}).read_bytes()
    header = whole.index(b"1.png")
    return {
        "cut in a file": whole[: header + 600],
        "cut between files": whole[:header],
        "flipped bit in a header": whole[: header + 3] + bytes([whole[header + 3] ^ 1]) + whole[header + 4 :],
        "empty": b"",
        "no tar": b"x" * 2000,
        "compressed": b"\x1f\x8b" + whole,
    }


@pytest.mark.parametrize(
    "how", ["cut in a file", "cut between files", "flipped bit in a header", "empty", "no tar", "compressed"]
)
def test_a_damaged_shard_is_refused_by_name(tmp_path: Path, how: str) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(damaged(path)[how])
    with pytest.raises(DataError, match=rf"^{path}: damaged") as caught:
        opened(str(path))
    assert "\n" not in str(caught.value)


def test_a_broken_picture_in_a_shard_is_named(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", {"0.png": picture(0), "1.png": b"broken"})
    with pytest.raises(DataError, match=rf"^image {path}: 1.png cannot be read: "):
        opened(str(path)).load(1, 0)


WRONG = {
    "two images": ({"0.png": b"", "0.jpg": b""}, "0.jpg: a second image of the sample 0.png"),
    "half labelled": ({"0.png": b"", "0.cls": b"1", "1.png": b""}, "1.png: has no .cls file, as other samples have"),
    "no image": ({"0.txt": b"x"}, r"expected images \(jpg, .*\) in it, found none"),
    "bad json": ({"0.png": b"", "0.json": b"{"}, "0.json: expected a label: "),
    "a list for label": ({"0.png": b"", "0.json": b'{"label": [1]}'}, r"0.json: label \[1\]: expected a word"),
    "label is no text": ({"0.png": b"", "0.cls": b"\xff"}, "0.cls: expected a label: "),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_samples_are_one_line(tmp_path: Path, what: str) -> None:
    files, message = WRONG[what]
    with pytest.raises(DataError, match=message) as caught:
        opened(str(pack(tmp_path / "x.tar", files)))
    assert "\n" not in str(caught.value)


def test_wrong_places_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair(tmp_path / "one")
    (tmp_path / "one" / "x.png").write_bytes(picture(0))
    wanted = {
        "gone.tar": "gone.tar: expected a tar shard, No such file",
        "gone-*.tar": "expected tar shards, found none",
        "one/s-{00..02}.tar": "s-02.tar: expected a tar shard, No such file",
        "{1..0}.tar": "1..0.: expected the last to be no smaller",
        "{0}.tar": "expected {first..last} or {one,another}",
        "{0.tar": "expected every brace to be closed",
        "x.tar.gz": "expected uncompressed .tar files",
        "one": "x.png: lies beside tar shards",
    }
    for name, message in wanted.items():
        with pytest.raises(DataError, match=message) as caught:
            opened(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = pair(tmp_path)
    opened(pattern)
    for index in tar_index.cache_folder().iterdir():
        assert len(json.loads(index.read_text())["samples"]) == 3
        index.write_text("{")
    with pytest.raises(DataError, match=r"index of a shard cannot be read .*; remove it"):
        opened(pattern)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IFSQ_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"file/shards: index of shards cannot be written .*; set IFSQ_CACHE"):
        opened(pattern)
