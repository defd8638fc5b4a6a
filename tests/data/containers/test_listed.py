"""Lists of images: every form gives the same pictures, and what is wrong is named by its line."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from ifsq.data import DataConfig, DataError, ImageSource, open_images, read_image, write_png
from ifsq.data.labels import NO_LABEL

NAMES = ("b/0.png", "a/with space.png", "a/2.JPG", "c d/3.png")
LABELS = ("dog", "cat", "cat", "a word")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_png(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8), tmp_path / name)
    return tmp_path


def opened(path: Path, split: str = "train", label_column: str = "") -> ImageSource:
    # A list of its own for validation: then training has them all, in their order.
    return open_images(DataConfig(str(path), 8, val_source=str(path), label_column=label_column), split)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


FORMS = {
    "spaces.txt": "".join(f"{n} {c}\n" for n, c in zip(NAMES, LABELS, strict=True)),
    "tabs.txt": "\n\n".join(f"{n}\t{c}" for n, c in zip(NAMES, LABELS, strict=True)),
    "bare.csv": "\r\n".join(f"{n},{c}" for n, c in zip(NAMES, LABELS, strict=True)),
    "named.csv": "\ufeffwidth,Label,path\n" + "".join(f'8,"{c}",{n}\n' for n, c in zip(NAMES, LABELS, strict=True)),
    "named.tsv": "file_name\tclass\n" + "".join(f"{n}\t{c}\n" for n, c in zip(NAMES, LABELS, strict=True)),
    "rows.jsonl": "".join(f'{{"file_name": "{n}", "label": "{c}"}}\n' for n, c in zip(NAMES, LABELS, strict=True)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_pictures_in_the_order_of_the_list(folder: Path, form: str) -> None:
    source = opened(write(folder / form, FORMS[form]))
    assert source.classes == ("a word", "cat", "dog")
    for index, (name, label) in enumerate(zip(NAMES, LABELS, strict=True)):
        image, number = source.load(index, 0)
        np.testing.assert_array_equal(image, read_image(folder / name))
        assert source.classes[number] == label
    assert source.fingerprint == opened(write(folder / "again.txt", FORMS["tabs.txt"])).fingerprint


def test_paths_may_be_absolute_and_labels_absent(folder: Path) -> None:
    source = opened(write(folder / "list.txt", "\n".join(str(folder / name) for name in NAMES)))
    assert source.classes == ("all",)
    assert [source.load(index, 0)[1] for index in range(4)] == [0] * 4


def test_integers_are_the_numbers_of_the_classes(folder: Path) -> None:
    source = opened(
        write(folder / "list.txt", "".join(f"{n} {k}\n" for n, k in zip(NAMES, ["0", "7", "003", "7"], strict=True)))
    )
    assert source.classes == tuple("01234567")
    assert [source.load(index, 0)[1] for index in range(4)] == [0, 7, 3, 7]


def test_names_decide_who_is_held_out_where_no_list_does(folder: Path) -> None:
    config = DataConfig(source=str(write(folder / "list.txt", FORMS["tabs.txt"])), size=8)
    train, val = open_images(config, "train"), open_images(config, "val")
    assert (len(train), len(val)) == (3, 1)
    assert train.classes == val.classes == ("a word", "cat", "dog")


def test_a_list_for_validation_uses_the_classes_of_training(folder: Path) -> None:
    write(folder / "train.txt", f"{NAMES[0]} dog\n{NAMES[1]} cat\n")
    write(folder / "val.txt", f"{NAMES[2]} dog\n{NAMES[3]} cow\n")
    config = DataConfig(source=str(folder / "train.txt"), size=8, val_source=str(folder / "val.txt"))
    with pytest.raises(DataError, match=r"val.txt: line 2: label 'cow': expected a class that .*train.txt has too"):
        open_images(config, "val")
    write(folder / "val.txt", f"{NAMES[2]} dog\n")
    assert open_images(config, "val").load(0, 0)[1] == 1
    write(folder / "val.txt", f"{NAMES[2]}\n")
    with pytest.raises(DataError, match=r"val.txt: has no classes, expected those of .*train.txt"):
        open_images(config, "val")


BAD = {
    "empty.txt": ("\n \n", "empty.txt: expected a list of images, found no path"),
    "gone.txt": ("b/0.png\nb/gone.png\n", "gone.txt: line 2: .*b/gone.png: expected an image, No such file"),
    "kind.txt": ("b/0.png\nb/notes.md\n", "kind.txt: line 2: 'b/notes.md': expected the path of an image"),
    "half.txt": ("b/0.png dog\n\nb/0.png\n", "half.txt: line 3: has no label, expected one on every line or on none"),
    "minus.txt": ("b/0.png -1\n", "minus.txt: label -1: expected integers from 0"),
    "great.txt": ("b/0.png 5000000\n", "great.txt: label 5000000: expected integers from 0 to 999999"),
    "header.csv": ("width,height\n8,8\n", "header.csv: line 1: 'width': expected the path of an image or a column"),
    "short.csv": ("b/0.png,dog\nb/0.png\n", "short.csv: line 2: 1 columns, expected as many"),
    "quote.csv": ('b/0.png,"dog\n', "quote.csv: line 1: unexpected end of data"),
    "no.jsonl": ("{}\nx\n", "no.jsonl: line 1: expected an object with a key 'path'"),
    "bad.jsonl": ("{", "bad.jsonl: line 1: cannot be read as JSON"),
    "float.jsonl": (
        '{"path": "b/0.png", "label": 0.5}',
        "float.jsonl: line 1: label 0.5: expected a word or an integer",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_one_line_with_its_place(folder: Path, name: str) -> None:
    text, message = BAD[name]
    with pytest.raises(DataError, match=message) as caught:
        opened(write(folder / name, text))
    assert "\n" not in str(caught.value)


def test_lists_that_are_missing_or_no_text_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"none.csv: expected a list of images, found nothing"):
        opened(folder / "none.csv")
    (folder / "latin.txt").write_bytes(b"caf\xe9.png")
    with pytest.raises(DataError, match=r"latin.txt: expected UTF-8, found other bytes at 3"):
        opened(folder / "latin.txt")


@pytest.mark.parametrize("column", ["labels", "Target", "class_id", "CLASS_NAME", "category", "cls"])
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_labels_are_found_under_their_usual_names(folder: Path, column: str, form: str) -> None:
    source = opened(write(folder / f"list.{form}", table(form, {"width": "8", column: None})))
    assert [source.classes[source.load(index, 0)[1]] for index in range(4)] == list(LABELS)


def table(form: str, columns: dict[str, str | None]) -> str:
    """A list of the four pictures; a column has one value, or with None the labels."""
    rows = [
        {"path": name} | {column: label if value is None else value for column, value in columns.items()}
        for name, label in zip(NAMES, LABELS, strict=True)
    ]
    if form == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows)
    between = {"csv": ",", "tsv": "\t"}[form]
    return "".join(f"{between.join(line)}\n" for line in (rows[0], *(row.values() for row in rows)))


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_a_label_that_may_be_one_is_asked_about_and_can_be_named(folder: Path, form: str) -> None:
    one = write(folder / f"one.{form}", table(form, {"caption": "a pet", "species": None}))
    two = write(folder / f"two.{form}", table(form, {"class_id": "1", "class_name": None, "caption": "a pet"}))
    with pytest.raises(DataError, match=rf"one.{form}: is the label 'species'\? Give data.label_column, 'none' for no"):
        opened(one)
    with pytest.raises(DataError, match=rf"two.{form}: is the label 'class_id' or 'class_name'\? Give data.label_col"):
        opened(two)
    assert opened(one, label_column="species").classes == ("a word", "cat", "dog")
    assert opened(two, label_column="Class_Name").classes == ("a word", "cat", "dog")
    assert opened(one, label_column="caption").classes == ("a pet",)
    assert opened(one, label_column="none").classes == ("all",)
    with pytest.raises(DataError, match=r"data.label_column 'genus': expected one of 'caption', 'species'"):
        opened(one, label_column="genus")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_columns_that_are_known_to_be_something_else_are_passed_over(folder: Path, form: str) -> None:
    list_of = write(folder / f"list.{form}", table(form, {"width": "8", "Caption": "a pet", "md5": "d41d"}))
    assert opened(list_of).classes == ("all",)


def test_objects_in_a_list_are_no_labels(folder: Path) -> None:
    text = "".join(f'{{"path": "{name}", "boxes": [[0, 0, 1, 1]], "exif": {{}}}}\n' for name in NAMES)
    assert opened(write(folder / "list.jsonl", text)).classes == ("all",)
    text = text.replace("boxes", "labels")
    with pytest.raises(DataError, match=r"line 1: label \[\[0, 0, 1, 1\]\]: expected a word or an integer"):
        opened(write(folder / "list.jsonl", text))


def test_lists_without_names_have_no_columns_to_choose_from(folder: Path) -> None:
    for form in ("tabs.txt", "bare.csv"):
        written = write(folder / form, FORMS[form])
        assert opened(written, label_column="none").classes == ("all",)
        with pytest.raises(DataError, match=rf"{form}: data.label_column 'species': .* has no columns"):
            opened(written, label_column="species")


def test_a_quoted_cell_after_a_space_is_a_cell(folder: Path) -> None:
    source = opened(write(folder / "list.csv", f'path, label\n{NAMES[0]}, "dog, big"\n{NAMES[1]}, cat\n'))
    assert source.classes == ("cat", "dog, big")


def test_validation_images_need_no_labels_where_these_do_not_matter(folder: Path) -> None:
    write(folder / "train.txt", f"{NAMES[0]} dog\n{NAMES[1]} cat\n")
    write(folder / "bare.txt", f"{NAMES[2]}\n{NAMES[3]}\n")
    write(folder / "other.txt", f"{NAMES[2]} cow\n{NAMES[3]} cat\n")
    for name, labels in (("bare", [NO_LABEL, NO_LABEL]), ("other", [NO_LABEL, 0])):
        config = DataConfig(str(folder / "train.txt"), 8, val_source=str(folder / f"{name}.txt"))
        source = open_images(config, "val", labels=False)
        assert [source.load(index, 0)[1] for index in range(2)] == labels
        with pytest.raises(DataError, match=r"expected a class|expected those of"):
            open_images(config, "val")


def test_pipes_and_devices_are_neither_lists_nor_images(folder: Path) -> None:
    os.mkfifo(folder / "list.txt")
    with pytest.raises(DataError, match=r"list.txt: expected a list of images, found no regular file"):
        opened(folder / "list.txt")
    os.mkfifo(folder / "pipe.png")
    (folder / "device.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "device.png"):
        with pytest.raises(DataError, match=rf"images.txt: line 1: .*{name}: expected an image, found no regular file"):
            opened(write(folder / "images.txt", f"{name}\n"))


@pytest.mark.parametrize("name", ["b/0.png\\n", "b/0\\u001b[31m.png", "b/0\\u2028.png", "b/0\\r.png", ""])
def test_a_path_that_would_spoil_a_message_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"list.jsonl: line 1: path '.*': expected UTF-8 on one line") as caught:
        opened(write(folder / "list.jsonl", f'{{"path": "{name}"}}\n'))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "line",
    [
        '{"path": "b/0\\u0000.png"}',
        '{"path": "b/0.png", "label": "\\ud800"}',
        '{"path": "b/0.png", "label": ' + "9" * 5000 + "}",
        '{"path": ' + "[" * 100_000,
        '{"path": 7}',
        "[]",
        '{"path": "b/0.png", "label": "' + "x" * 10**6 + '"}',
    ],
    ids=["NUL", "surrogate", "digits", "nesting", "number", "array", "length"],
)
def test_what_no_list_holds_is_refused_in_a_short_line(folder: Path, line: str) -> None:
    with pytest.raises(DataError, match=r"list.jsonl: line 2: ") as caught:
        opened(write(folder / "list.jsonl", f'{{"path": "b/0.png", "label": 1}}\n{line}\n'))
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()
