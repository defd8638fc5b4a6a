"""Data sets of Hugging Face's library, on disk and streamed: pictures, labels, splits, and what is wrong with them."""

import io
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ifsq.data import DataConfig, DataError, ImageBatches, ImageSource, StepSampler, open_images, read_image, stream
from ifsq.data.containers.hf_files import _own, file_of
from ifsq.data.labels import NO_LABEL

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own
FEATURES = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])}


def picture(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def rows(count: int, features: dict = FEATURES, **columns: Any) -> Any:
    table = {
        "image": [{"bytes": picture(k), "path": None} for k in range(count)],
        "label": [k % 2 for k in range(count)],
    }
    return datasets.Dataset.from_dict(table | columns, features=datasets.Features(features))


@pytest.fixture(autouse=True)
def _copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.fixture(params=["saved", "parquet", "images"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Seven training and three validation pictures, as the library keeps them in several ways."""
    place, train, val = tmp_path / request.param, rows(7), rows(3)
    if request.param == "saved":
        datasets.DatasetDict({"train": train, "validation": val}).save_to_disk(str(place))
    elif request.param == "parquet":
        train.to_parquet(place / "data/train-0.parquet")
        val.to_parquet(place / "data/validation-0.parquet")
    else:
        for split, count in (("train", 7), ("validation", 3)):
            for k in range(count):
                name = place / split / ("dog", "cat")[k % 2] / f"{k}.png"
                name.parent.mkdir(parents=True, exist_ok=True)
                name.write_bytes(picture(k))
    return f"hf:{place}"


def opened(source: str, split: str = "train", streamed: bool = False, **fields: Any) -> ImageSource:
    return open_images(DataConfig(source=source, size=8, stream=streamed, block=4, **fields), split)


@pytest.mark.parametrize("streamed", [False, True])
def test_rows_are_the_pictures_with_their_classes(folder: str, streamed: bool) -> None:
    for split, count in (("train", 7), ("val", 3)):
        source = opened(folder, split, streamed)
        assert len(source) == count
        got = {source.load(k, 0)[0].tobytes(): source.classes[source.load(k, 0)[1]] for k in range(count)}
        expected = {read_image("x", picture(k)).tobytes(): ("dog", "cat")[k % 2] for k in range(count)}
        assert got == expected


def test_fingerprints_follow_the_bytes_not_the_place(tmp_path: Path) -> None:
    def saved(name: str, data: Any) -> str:
        data.save_to_disk(str(tmp_path / name))
        return opened(f"hf:{tmp_path / name}", val_source=f"hf:{tmp_path / name}").fingerprint

    assert saved("a", rows(4)) == saved("b", rows(4))
    other = [{"bytes": picture(k) + b"\0", "path": None} for k in range(4)]
    assert (
        len(
            {
                saved("c", rows(4)),
                saved("d", rows(4, image=other)),
                saved("e", rows(4, label=[1] * 4)),
                saved("f", rows(5)),
            }
        )
        == 4
    )


def test_rows_decide_who_is_held_out_where_there_is_one_split(tmp_path: Path) -> None:
    rows(9).save_to_disk(str(tmp_path / "a"))
    train, val = opened(f"hf:{tmp_path}/a"), opened(f"hf:{tmp_path}/a", "val")
    assert (len(train), len(val)) == (8, 1)
    with pytest.raises(DataError, match=r"a: has no split val; a stream cannot be split, give val_source"):
        opened(f"hf:{tmp_path}/a", "val", streamed=True)
    assert len(opened(f"hf:{tmp_path}/a", "val", streamed=True, val_source=f"hf:{tmp_path}/a")) == 9


def test_words_and_integers_are_classes_too(tmp_path: Path) -> None:
    words = rows(3, FEATURES | {"label": datasets.Value("string")}, label=["b", "a", "b"])
    words.save_to_disk(str(tmp_path / "words"))
    source = opened(f"hf:{tmp_path}/words", val_source=f"hf:{tmp_path}/words")
    assert [source.classes[source.load(k, 0)[1]] for k in range(3)] == ["b", "a", "b"]
    with pytest.raises(DataError, match=r"column label states no classes; a stream needs a ClassLabel"):
        opened(f"hf:{tmp_path}/words", streamed=True)


def test_a_stream_goes_on_restarts_and_ends_with_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.DatasetDict({"train": rows(10)}).save_to_disk(str(tmp_path / "a"))
    source, table = opened(f"hf:{tmp_path}/a", streamed=True), rows(10)
    for index in (3, 1, 9, 4, 0):
        expected = np.asarray(table[index]["image"])
        np.testing.assert_array_equal(source.load(index, 0)[0], expected)
    assert isinstance(source, stream.Stream)
    source.length = 20
    with pytest.raises(DataError, match="the stream ends before row 12"):
        source.load(12, 0)


def test_a_forked_process_starts_a_pass_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.DatasetDict({"train": rows(10)}).save_to_disk(str(tmp_path / "a"))
    source = opened(f"hf:{tmp_path}/a", streamed=True)
    assert isinstance(source, stream.Stream)
    first = source._reading()
    assert source._reading() is first
    monkeypatch.setattr(stream.os, "getpid", lambda: -1)
    assert source._reading() is not first


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_decodes_only_its_own_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    datasets.DatasetDict({"train": rows(12)}).save_to_disk(str(tmp_path / "a"))
    source, decoded, decode = opened(f"hf:{tmp_path}/a", streamed=True), [], stream.to_shape

    def counted(file: bytes, name: str, *rest: Any) -> Any:
        decoded.append(name.rsplit(" ", 1)[1])
        return decode(file, name, *rest)

    monkeypatch.setattr(stream, "to_shape", counted)
    sampler = StepSampler(12, 6, 0, rank, 2)
    for _ in zip(range(2), ImageBatches(source, sampler), strict=False):
        pass
    order = [index for step in range(2) for index, _ in sampler.in_blocks(4).items(step)]
    assert decoded == [str(index) for index in order]


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    bad = {
        "no image": (rows(2).remove_columns("image"), "has the columns label; expected one of type Image"),
        "half": (rows(2, label=[0, -1]), "row 1: has no label, expected one on every row or on none"),
        "float": (
            rows(2, FEATURES | {"label": datasets.Value("float32")}, label=[0.5, 1]),
            "row 0: label 0.5: expected a word or an integer",
        ),
        "hole": (rows(2, image=[None, {"bytes": picture(0), "path": None}]), "row 0: expected an image, found none"),
        "splits": (datasets.DatasetDict({"test": rows(2)}), "has the splits test; expected train"),
    }
    for name, (data, message) in bad.items():
        data.save_to_disk(str(tmp_path / name))
        with pytest.raises(DataError, match=message) as caught:
            opened(f"hf:{tmp_path / name}")
        assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    for gone in (tmp_path / "gone", tmp_path / "empty"):
        with pytest.raises(DataError, match=rf"^hf:{gone}: cannot be read: ") as caught:
            opened(f"hf:{gone}")
        assert "\n" not in str(caught.value)


def test_a_broken_picture_names_its_row(tmp_path: Path) -> None:
    image = [{"bytes": content, "path": None} for content in (picture(0), b"broken")]
    datasets.DatasetDict({"train": rows(2, image=image), "val": rows(2)}).save_to_disk(str(tmp_path / "a"))
    for streamed in (False, True):
        with pytest.raises(DataError, match=rf"^image hf:{tmp_path}/a: row 1 cannot be read: "):
            opened(f"hf:{tmp_path}/a", streamed=streamed).load(1, 0)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[tuple[dict[str, str], socket.socket]]:
    """Ways to name a picture that is no part of a data set, and a server that nobody should call."""
    (tmp_path / "private.png").write_bytes(picture(0))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        yield (
            {
                "ftp": f"ftp://{address}/x.png",
                "http": f"http://{address}/x.png",
                "archive": f"zip://x.png::ftp://{address}/x.zip",
                "file": (tmp_path / "private.png").as_uri(),
                "absolute": str(tmp_path / "private.png"),
                "above": f"{tmp_path}/set/../private.png",
                "relative": os.path.relpath(tmp_path / "private.png"),
                "other repository": "hf://datasets/somebody/else@main/x.png",
            },
            server,
        )


def write_rows(path: Path, image: list[dict[str, Any]]) -> None:
    """A table as somebody else would make it; the library's own ``to_parquet`` reads what its rows name."""
    path.parent.mkdir(exist_ok=True)
    schema = datasets.Features(FEATURES).arrow_schema
    pq.write_table(pa.Table.from_pydict({"image": image, "label": [0] * len(image)}, schema=schema), path)


KINDS = ("ftp", "http", "archive", "file", "absolute", "above", "relative", "other repository")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_names_nothing_outside_of_its_data_set(
    tmp_path: Path, elsewhere: tuple[dict[str, str], socket.socket], kind: str, streamed: bool
) -> None:
    named, server = elsewhere
    image = [{"bytes": picture(0), "path": None}, {"bytes": None, "path": named[kind]}]
    write_rows(tmp_path / "set/train.parquet", image)
    with pytest.raises(DataError, match=r"set: row 1: names '.*: expected a file of the data set itself") as caught:
        opened(f"hf:{tmp_path}/set", streamed=streamed, val_source=f"hf:{tmp_path}/set").load(1, 0)
    assert "\n" not in str(caught.value)
    with pytest.raises(TimeoutError):
        server.accept()


def test_a_row_may_name_a_file_of_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/x.png").write_bytes(picture(5))
    os.mkfifo(tmp_path / "set/pipe.png")
    write_rows(tmp_path / "set/train.parquet", [{"bytes": None, "path": str(tmp_path / "set/x.png")}])
    source = f"hf:{tmp_path}/set"
    np.testing.assert_array_equal(opened(source, val_source=source).load(0, 0)[0], read_image("x", picture(5)))
    (tmp_path / "link").symlink_to(tmp_path / "set")
    for name in (source, f"hf:{tmp_path}/link"):
        read = file_of("x", {"bytes": None, "path": f"{name.removeprefix('hf:')}/x.png"}, name)
        assert isinstance(read, Path)
        assert read.read_bytes() == picture(5)
    with pytest.raises(DataError, match=r"pipe.png: expected an image, found no regular file"):
        file_of("x", {"bytes": None, "path": f"{tmp_path}/set/pipe.png"}, source)


def test_a_repository_is_its_own_place() -> None:
    def named(path: str) -> str:
        return _own("x", path, "hf:owner/name")

    for path in ("hf://datasets/owner/name@main/x.png", "zip://a/x.png::hf://datasets/owner/name@12ab/x.zip"):
        assert named(path) == path
    for path in (
        "hf://datasets/owner/names@main/x.png",
        "hf://datasets/owner/name@main/../../../other/set/x.png",
        "http://x::hf://datasets/owner/name@main/x.png",
        "/etc/hostname",
    ):
        with pytest.raises(DataError, match="expected a file of the data set itself"):
            named(path)


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/x.parquet", "../other/*.png"])
def test_the_card_of_a_folder_names_only_its_own_files(tmp_path: Path, place: str) -> None:
    for name in ("set/0.png", "other/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(picture(0))
    (tmp_path / "set/README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {place}\n---\n"
    )
    with pytest.raises(DataError, match=r"README.md names the address '|: names '.*: expected a file of the data set"):
        opened(f"hf:{tmp_path}/set")


GUESSED = {
    "other case": (["Train/a/0.png", "Test/a/1.png"], "takes Test/a/1.png for an image of train"),
    "a class that is called train": (["train/0.png", "bus/1.png"], "leaves out 1 images, the first bus/1.png"),
    "a class with test in its name": (["test_tube/0.png", "mug/1.png"], "leaves out 1 images, the first mug/1.png"),
    "a file with train in its name": (["a/train_0.png", "a/dog.png"], "leaves out 1 images, the first a/dog.png"),
    "a class of both": (["train/test_tube/0.png", "train/mug/1.png"], "takes train/test_tube/0.png for an image of"),
}


@pytest.mark.parametrize("case", GUESSED)
@pytest.mark.parametrize("streamed", [False, True])
def test_splits_that_the_library_guesses_wrong_are_refused(tmp_path: Path, case: str, streamed: bool) -> None:
    names, message = GUESSED[case]
    for name in names:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(picture(0))
    with pytest.raises(DataError, match=rf"{message}.*give {tmp_path}/set without hf:") as caught:
        opened(f"hf:{tmp_path}/set", streamed=streamed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_link_to_a_folder_is_the_folder(tmp_path: Path, streamed: bool) -> None:
    for number in range(3):
        (tmp_path / f"set/{'ab'[number % 2]}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"set/{'ab'[number % 2]}/{number}.png").write_bytes(picture(number))
    (tmp_path / "link").symlink_to(tmp_path / "set")
    read = opened(f"hf:{tmp_path}/link", streamed=streamed, val_source=f"hf:{tmp_path}/link")
    assert (len(read), read.classes) == (3, ("a", "b"))


def test_the_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for streamed in (False, True):
        with pytest.raises(DataError, match=r"hf:x: needs the package datasets, .*pip install 'ifsq\[hf\]'"):
            opened("hf:x", streamed=streamed)


TWO = {
    "image": datasets.Image(),
    "fine_label": datasets.ClassLabel(names=["dog", "cat"]),
    "coarse_label": datasets.ClassLabel(names=["pet"]),
}


@pytest.mark.parametrize("streamed", [False, True])
def test_of_two_columns_of_classes_one_is_asked_for(tmp_path: Path, streamed: bool) -> None:
    columns = {"fine_label": [0, 1, 0, 1], "coarse_label": [0] * 4}
    image = [{"bytes": picture(k), "path": None} for k in range(4)]
    table = datasets.Dataset.from_dict({"image": image} | columns, features=datasets.Features(TWO))
    table.save_to_disk(str(tmp_path / "a"))
    with pytest.raises(DataError, match=r"a: is the label 'fine_label' or 'coarse_label'\? Give data.label_column"):
        opened(f"hf:{tmp_path}/a", streamed=streamed)
    whole = {"val_source": f"hf:{tmp_path}/a", "streamed": streamed}
    fine = opened(f"hf:{tmp_path}/a", label_column="fine_label", **whole)
    assert [fine.classes[fine.load(k, 0)[1]] for k in range(4)] == ["dog", "cat"] * 2
    assert opened(f"hf:{tmp_path}/a", label_column="coarse_label", **whole).classes == ("pet",)
    assert opened(f"hf:{tmp_path}/a", label_column="none", **whole).classes == ("all",)


def test_words_under_another_name_are_asked_about_and_captions_are_not(tmp_path: Path) -> None:
    text, image = datasets.Value("string"), [{"bytes": picture(k), "path": None} for k in range(2)]
    for name, asked in (("species", True), ("text", False)):
        features = datasets.Features({"image": datasets.Image(), name: text})
        table = datasets.Dataset.from_dict({"image": image, name: ["a", "b"]}, features=features)
        table.save_to_disk(str(tmp_path / name))
        if asked:
            with pytest.raises(DataError, match=rf"is the label '{name}'\?"):
                opened(f"hf:{tmp_path / name}")
        else:
            assert opened(f"hf:{tmp_path / name}").classes == ("all",)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_split_without_labels_is_refused_where_they_matter_only(tmp_path: Path, streamed: bool) -> None:
    datasets.DatasetDict({"train": rows(3), "test": rows(2, label=[-1, -1])}).save_to_disk(str(tmp_path / "a"))
    config = DataConfig(f"hf:{tmp_path}/a", 8, stream=streamed)
    bare = open_images(config, "test", labels=False)
    assert [bare.load(k, 0)[1] for k in range(2)] == [NO_LABEL] * 2
    with pytest.raises(DataError, match=r"has no label|has no classes"):
        open_images(config, "test").load(0, 0)
