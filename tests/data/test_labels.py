"""The number of a class is that of its label, whatever holds the files; and what is no label is said."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ifsq.data import DataConfig, DataError, ImageSource, open_images
from ifsq.data.labels import LONGEST_LABEL, label_text, number_classes, plain_label


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IFSQ_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def in_folders(root: Path, labels: list[str]) -> str:
    for number, label in enumerate(labels):
        place = root / "folders" / label / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture(number))
    return str(root / "folders")


def in_tar(root: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(root / "x.tar", "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(root / "x.tar")


def in_tar_folders(root: Path, labels: list[str]) -> str:
    return in_tar(root, {f"{label}/{number:02d}.png": picture(number) for number, label in enumerate(labels)})


def in_cls(root: Path, labels: list[str]) -> str:
    files = {}
    for number, label in enumerate(labels):
        files |= {f"{number:02d}.png": picture(number), f"{number:02d}.cls": label.encode()}
    return in_tar(root, files)


def in_json(root: Path, labels: list[str]) -> str:
    files = {}
    for number, label in enumerate(labels):
        files |= {f"{number:02d}.png": picture(number), f"{number:02d}.json": json.dumps({"label": label}).encode()}
    return in_tar(root, files)


def listed(root: Path, name: str, line: Callable[[str, str], str], labels: list[str]) -> str:
    for number in range(len(labels)):
        (root / f"{number:02d}.png").write_bytes(picture(number))
    (root / name).write_text("".join(line(f"{number:02d}.png", label) for number, label in enumerate(labels)))
    return str(root / name)


def in_csv(root: Path, labels: list[str]) -> str:
    return listed(root, "x.csv", "{},{}\n".format, labels)


def in_floats(root: Path, labels: list[str]) -> str:
    """As pandas writes a column of numbers some of which were missing."""
    return listed(root, "x.csv", "{},{}.0\n".format, labels)


def in_spaces(root: Path, labels: list[str]) -> str:
    return listed(root, "x.csv", "{}, {}\n".format, labels)


def in_jsonl(root: Path, labels: list[str]) -> str:
    return listed(root, "x.jsonl", lambda path, label: json.dumps({"path": path, "label": float(label)}) + "\n", labels)


def in_table(root: Path, labels: list[str]) -> str:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    image = [{"bytes": picture(number), "path": None} for number in range(len(labels))]
    table = datasets.Dataset.from_dict({"image": image, "label": [int(label) for label in labels]}, features=features)
    table.save_to_disk(str(root / "table"))
    return f"hf:{root / 'table'}"


def in_class_labels(root: Path, labels: list[str]) -> str:
    """As the library itself reads folders: their names sorted as text."""
    datasets = pytest.importorskip("datasets")
    names = sorted(set(labels))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    image = [{"bytes": picture(number), "path": None} for number in range(len(labels))]
    table = datasets.Dataset.from_dict(
        {"image": image, "label": [names.index(label) for label in labels]}, features=features
    )
    table.save_to_disk(str(root / "classes"))
    return f"hf:{root / 'classes'}"


def opened(source: str) -> ImageSource:
    return open_images(DataConfig(source=source, size=8, val_source=source), "train")


WITH_NUMBERS = (
    *(in_folders, in_tar_folders, in_cls, in_json, in_csv, in_floats, in_spaces, in_jsonl),
    *(in_table, in_class_labels),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("numbers", [range(12), (3, 7)], ids=["0 to 11", "3 and 7"])
@pytest.mark.parametrize("container", WITH_NUMBERS)
def test_a_number_is_the_number_of_its_class_in_every_container(
    tmp_path: Path, container: Callable[[Path, list[str]], str], numbers: range | tuple[int, ...]
) -> None:
    labels = [str(number) for number in numbers]
    source = opened(container(tmp_path, labels))
    assert source.classes == tuple(str(number) for number in range(max(numbers) + 1))
    # A picture is as bright as its place in `labels`; folders may be read in another order.
    seen = {int(image[0, 0, 0]): label for image, label in (source.load(index, 0) for index in range(len(labels)))}
    assert seen == dict(enumerate(numbers))


@pytest.mark.parametrize("container", [in_folders, in_tar_folders, in_cls, in_json, in_csv, in_spaces])
def test_words_are_numbered_as_they_sort(tmp_path: Path, container: Callable[[Path, list[str]], str]) -> None:
    source = opened(container(tmp_path, ["dog", "10", "9", "cat"]))
    assert source.classes == ("10", "9", "cat", "dog")


@pytest.mark.parametrize("written", ["7", "007", " 7", "7 ", "7.0", "7.", "+7", "07.000"])
def test_a_whole_number_may_be_written_in_many_ways(written: str) -> None:
    assert plain_label(written) == "7"


@pytest.mark.parametrize("word", ["7.5", "7e0", "0x7", "seven", "7 8", "", "٧", "1_0", "9" * 30])
def test_what_only_looks_like_a_number_is_a_word(word: str) -> None:
    assert plain_label(word) == word
    assert number_classes(["1", word], "here") == tuple(sorted(["1", word]))


@pytest.mark.parametrize("nothing", [None, "", "  \n"])
def test_nothing_is_no_label(nothing: str | None) -> None:
    assert label_text("here", nothing) is None


@pytest.mark.parametrize("value", [True, 0.5, float("nan"), [1], {"a": 1}, "two\nlines", "\ud800", "\0", "long" * 1000])
def test_what_is_no_label_is_refused_in_a_short_line(value: object) -> None:
    with pytest.raises(DataError, match=r"^here: label .*: expected ") as caught:
        label_text("here", value)
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < LONGEST_LABEL / 4


NULL = {
    "shard": lambda root: in_json_text(root, '{"label": null, "caption": "x"}'),
    "list": lambda root: listed(root, "x.jsonl", lambda path, _: f'{{"path": "{path}", "label": null}}\n', ["", ""]),
}


def in_json_text(root: Path, text: str) -> str:
    return in_tar(root, {"0.png": picture(0), "0.json": text.encode(), "1.png": picture(1), "1.json": text.encode()})


@pytest.mark.parametrize("container", NULL)
def test_null_is_no_label(tmp_path: Path, container: str) -> None:
    source = opened(NULL[container](tmp_path))
    assert source.classes == ("all",)
    assert [source.load(index, 0)[1] for index in range(2)] == [0, 0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["int64", "string", "class"])
def test_null_is_no_label_in_a_table_either(tmp_path: Path, kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    type_of = datasets.ClassLabel(names=["a", "b"]) if kind == "class" else datasets.Value(kind)
    features = datasets.Features({"image": datasets.Image(), "label": type_of})
    image = [{"bytes": picture(number), "path": None} for number in range(2)]
    for name, label in (("none", [None, None]), ("minus", [-1, -1])):
        if name == "minus" and kind != "class":
            continue
        datasets.Dataset.from_dict({"image": image, "label": label}, features=features).save_to_disk(tmp_path / name)
        assert opened(f"hf:{tmp_path / name}").classes == ("all",)
