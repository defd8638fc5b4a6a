"""Tar shards: the pictures, order and labels of their files; and everything that can be wrong with them."""

import gc
import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from ifsq.data import DataConfig, DataError, describe_images, formats, open_images, read_image
from ifsq.data.containers import shards, tar_index
from ifsq.data.encoded import EncodedImages


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


def opened(source: str, split: str = "train", **fields: object) -> EncodedImages:
    images = open_images(DataConfig(source=source, size=8, **{"val_source": source} | fields), split)
    assert isinstance(images, EncodedImages)
    return images


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

    def counted(path: Path, *rest: Any) -> tar_index.Index:
        scanned.append(path.name)
        return scan(path, *rest)

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
    "bad json": ({"0.png": b"", "0.json": b"{"}, "0.json: cannot be read as JSON"),
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
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IFSQ_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"file/shards: index of shards cannot be written .*; set IFSQ_CACHE"):
        opened(pattern)


DAMAGED_INDEXES: dict[str, Callable[[Any], Any]] = {
    "a list": lambda index: [index],
    "no samples": lambda index: {"stamp": index["stamp"]},
    "samples of another form": lambda index: index | {"samples": [1, 2]},
    "samples without labels": lambda index: index | {"samples": [sample[:3] for sample in index["samples"]]},
    "labels of another form": lambda index: index | {"samples": [[*sample[:3], 7] for sample in index["samples"]]},
    "places beyond the file": lambda index: index | {"samples": [["x.png", 10**9, 10, {}]]},
    "places before it": lambda index: index | {"samples": [["x.png", -5, 10, {}]]},
    "a place without end": lambda index: index | {"samples": [["x.png", float("inf"), 10, {}]]},
    "another size": lambda index: (
        index | {"samples": [[name, at, n - 1, told] for name, at, n, told in index["samples"]]}
    ),
    "another label": lambda index: index | {"samples": [[*sample[:3], {".cls": "7"}] for sample in index["samples"]]},
    "null": lambda _: None,
}


@pytest.mark.parametrize("how", [*DAMAGED_INDEXES, "no JSON", "half", "deep", "a long number", "other bytes", "empty"])
def test_a_damaged_index_is_made_anew(tmp_path: Path, how: str) -> None:
    pattern = pair(tmp_path)
    expected = opened(pattern).fingerprint
    for index in tar_index.cache_folder().iterdir():
        text = index.read_text()
        as_text = {"no JSON": "{", "half": text[: len(text) // 2], "deep": "[" * 10**5, "a long number": "9" * 5000}
        if how in DAMAGED_INDEXES:
            index.write_text(json.dumps(DAMAGED_INDEXES[how](json.loads(text))))
        else:
            index.write_bytes(as_text.get(how, "").encode() or {"other bytes": b"\xff\xfe", "empty": b""}[how])
    assert opened(pattern).fingerprint == expected
    assert all(len(json.loads(index.read_text())["samples"]) == 3 for index in tar_index.cache_folder().iterdir())


def test_a_shard_that_was_replaced_is_read_anew_whatever_its_times_say(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", {"0.png": picture(0), "0.cls": b"1", "1.png": picture(1), "1.cls": b"2"})
    before, state = opened(str(path)), path.stat()
    other = pack(tmp_path / "y.tar", {"0.png": picture(0), "0.cls": b"2", "1.png": picture(1), "1.cls": b"1"})
    shutil.copystat(path, other)
    os.replace(other, path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    after = opened(str(path))
    assert [before.load(k, 0)[1] for k in range(2)] == [1, 2]
    assert [after.load(k, 0)[1] for k in range(2)] == [2, 1]


def named(folder: Path, *files: str) -> list[str]:
    """What is read of a shard with these files; labels hold their names up to the last dot."""
    content = {name: picture(0) if formats.is_image(name) else name.rpartition(".")[0].encode() for name in files}
    source = opened(str(pack(folder / "x.tar", content)))
    return [
        f"{name.removeprefix('x.tar/')}={source.classes[k]}"
        for name, k in zip(source.names, source.labels, strict=True)
    ]


def test_a_name_may_have_dots(tmp_path: Path) -> None:
    assert named(tmp_path, "photo 1.0.png", "photo 1.0.cls", "photo 1.1.png", "photo 1.1.cls") == [
        "photo 1.0.png=photo 1.0",
        "photo 1.1.png=photo 1.1",
    ]
    assert named(tmp_path, "a.png", "a.cls", "2020.01.02/IMG.2.jpg", "2020.01.02/IMG.2.cls") == [
        "a.png=a",
        "2020.01.02/IMG.2.jpg=2020.01.02/IMG.2",
    ]
    assert named(tmp_path, "photo.png", "photo.1.png", "photo.1.cls", "photo.cls") == [
        "photo.png=photo",
        "photo.1.png=photo.1",
    ]
    people = ["mr.smith.png", "mr.jones.jpg", "st.peter.png"]
    assert named(tmp_path, *people) == [f"{name}=all" for name in people]


def test_other_images_of_a_sample_are_its_fields(tmp_path: Path) -> None:
    assert named(tmp_path, "0.seg.png", "0.png", "0.cls", "1.png", "1.cls", "1.depth.left.png") == [
        "0.png=0",
        "1.png=1",
    ]
    assert named(tmp_path, "0.rgb.png", "0.cls", "1.cls", "1.rgb.png") == ["0.rgb.png=0", "1.rgb.png=1"]
    with pytest.raises(DataError, match=r"0.input.png and 0.target.png: two images of the sample 0; expected one, or"):
        named(tmp_path, "0.input.png", "0.target.png", "1.input.png", "1.target.png")


def test_a_picture_that_is_not_read_is_named_and_sidecars_are_not(tmp_path: Path) -> None:
    quiet = {"0.txt": b"a caption", "0.npy": b"x", "0.pth": b"x", "0.heic": b"beside", "meta.json": b"{}"}
    files = {"0.png": picture(0), "1.png": picture(1)} | quiet
    assert len(opened(str(pack(tmp_path / "x.tar", files)))) == 2
    path = pack(tmp_path / "y.tar", files | {"2.HEIC": b"x", "3.svg": b"x"})
    with pytest.raises(DataError, match=rf"^{path}: 2.HEIC \(and 1 more\): no picture that is read \(jpg, .*'skip'$"):
        opened(str(path))
    skipping = opened(str(path), broken="skip")
    assert len(skipping) == 2
    assert describe_images(skipping, skipping).endswith(f"; not read and left out: 2, the first {path}: 2.HEIC")


OTHER_LABELS: dict[str, tuple[dict[str, bytes], list[str]]] = {
    "label": ({"0.label": b"dog\n", "1.label": b"cat"}, ["dog", "cat"]),
    "cls.txt": ({"0.cls.txt": b"1", "1.cls.txt": b"0"}, ["1", "0"]),
    "category": ({"0.json": b'{"category": "dog"}', "1.json": b'{"category": "cat", "w": 1}'}, ["dog", "cat"]),
}


@pytest.mark.parametrize("kind", OTHER_LABELS)
def test_labels_under_another_usual_name_are_found(tmp_path: Path, kind: str) -> None:
    files, labels = OTHER_LABELS[kind]
    path = str(pack(tmp_path / "x.tar", files | {"0.png": picture(0), "1.png": picture(1)}))
    for column in ("", kind):
        source = opened(path, label_column=column)
        assert [source.classes[source.load(index, 0)[1]] for index in range(2)] == labels


UNCLEAR: dict[str, tuple[bytes, str, str]] = {
    "two": (b'{"class_name": "cat", "class_id": 3}', "'class_name' or 'class_id'", "class_id"),
    "one that may be none": (b'{"fine_target": "cat", "class": null, "w": 3}', "'fine_target'", "fine_target"),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_what_may_be_a_label_is_asked_about(tmp_path: Path, case: str) -> None:
    text, candidates, column = UNCLEAR[case]
    images = {"0.png": picture(0), "1.png": picture(1)}
    path = str(pack(tmp_path / "x.tar", images | {"0.json": text, "1.json": text}))
    with pytest.raises(DataError, match=rf"x.tar: is the label {candidates}\? Give data.label_column, 'none' for no"):
        opened(path)
    assert opened(path, label_column=column).classes == (tuple("0123") if column == "class_id" else ("cat",))
    assert opened(path, label_column="none").classes == ("all",)
    with pytest.raises(DataError, match=r"data.label_column 'genus': expected a file or a key of a .json file"):
        opened(path, label_column="genus")


def test_folders_and_other_labels_are_asked_about(tmp_path: Path) -> None:
    files = {
        f"{c}/{k}.{e}": picture(0) if e == "png" else b'{"class_name": "x"}'
        for c in "ab"
        for k in "01"
        for e in ("png", "json")
    }
    path = str(pack(tmp_path / "x.tar", files))
    with pytest.raises(DataError, match=r"is the label 'class_name' or 'folder'\?"):
        opened(path)
    assert opened(path, label_column="folder").classes == ("a", "b")
    assert opened(path, label_column="class_name").classes == ("x",)


def test_captions_and_addresses_are_no_labels(tmp_path: Path) -> None:
    text = b'{"caption": "a cat", "url": "x", "key": "0", "status": "success", "width": 3, "exif": "{}", "sha256": "0"}'
    files = {"0.png": picture(0), "0.json": text, "0.txt": b"a cat", "1.png": picture(1), "1.json": text, "1.txt": b"x"}
    assert opened(str(pack(tmp_path / "x.tar", files))).classes == ("all",)


def test_a_label_of_another_size_than_labels_have_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for name, size in (("0.cls", tar_index.LARGEST_LABEL), ("0.json", tar_index.LARGEST_JSON)):
        path = pack(tmp_path / "x.tar", {"0.png": picture(0), name: b" " * (size + 1), "1.png": picture(1)})
        with pytest.raises(DataError, match=rf"x.tar: {name}: {size + 1} bytes: expected a label in at most {size}"):
            opened(str(path))
    alone = {"0.png": picture(0), "1.png": picture(1), "all.json": b" " * (tar_index.LARGEST_JSON + 1)}
    assert len(opened(str(pack(tmp_path / "x.tar", alone)))) == 2


@pytest.mark.parametrize("size", [-1, -(2**40), 2**31, 2**60, 2**63 - 1, 2**64, 2**90])
@pytest.mark.parametrize("name", ["0.png", "0.cls", "0.json", "other"])
def test_a_size_that_cannot_be_is_damage(tmp_path: Path, size: int, name: str) -> None:
    path = pack(tmp_path / "x.tar", {name: b"some content", "z.png": picture(0)})
    content = bytearray(path.read_bytes())
    content[124:136] = (size % 256**12).to_bytes(12, "big") if size < 0 else (256**11 * 128 + size).to_bytes(12, "big")
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^{path}: damaged") as caught:
        opened(str(path))
    assert len(str(caught.value)) < 300


def test_a_file_with_holes_is_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", {"0.png": picture(0)})
    member = tarfile.TarInfo("1.png")
    member.pax_headers = {"GNU.sparse.map": "0,512", "GNU.sparse.size": "1024"}
    member.size = 512
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member, io.BytesIO(b"\0" * 512))
    with pytest.raises(DataError, match=r"x.tar: '1.png': is stored with holes"):
        opened(str(path))


@pytest.mark.parametrize("name", ["b.tar.gz", "b.TGZ", "b.tar.zst", "b.tar.bz2"])
@pytest.mark.parametrize("folder", ["", "train"])
def test_compressed_shards_beside_plain_ones_are_named(tmp_path: Path, name: str, folder: str) -> None:
    pack(tmp_path / folder / "a.tar", {"0.png": picture(0), "1.png": picture(1)})
    (tmp_path / folder / name).write_bytes(b"x")
    with pytest.raises(DataError, match=rf"{name}: expected uncompressed .tar files"):
        opened(str(tmp_path))


@pytest.mark.parametrize(
    "pattern", ["{0..999999999}.tar", "{0..999}-{0..999}-{0..999}.tar", "{1..99999999999999999999}.tar"]
)
def test_a_pattern_of_too_many_shards_is_refused_before_it_is_written_out(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(DataError, match=r"expected at most 1000000|expected {first..last}"):
        opened(str(tmp_path / pattern))


def test_a_pipe_is_no_shard(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(DataError, match=r"x.tar: expected a tar shard, found no regular file"):
        opened(str(tmp_path / "x.tar"))
