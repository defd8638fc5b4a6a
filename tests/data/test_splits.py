"""Which images are for training, whatever people call the rest: nothing of a test split is trained on."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifsq.data import DataConfig, DataError, open_images, splits_of, write_png
from ifsq.data.encoded import EncodedImages
from ifsq.data.splits import split_of, split_within


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IFSQ_CACHE", str(tmp_path_factory.mktemp("cache")))


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(np.zeros((8, 8, 3), dtype=np.uint8), path)
    return path


def fill(root: Path, *names: str) -> None:
    """Pictures of these names; a name that ends in .tar is a shard of three."""
    for name in names:
        path = root / name
        if path.suffix == ".tar":
            path.parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(path, "w") as tar:
                content = image(root / ".one.png").read_bytes()
                for number in range(3):
                    member = tarfile.TarInfo(f"{path.stem}_{number}.png")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        else:
            image(path)


def config_of(source: Any, **fields: Any) -> DataConfig:
    return DataConfig(source=str(source), size=8, **fields)


def names(source: Any, split: str = "train", **fields: Any) -> list[str]:
    images = open_images(config_of(source, **fields), split)
    assert isinstance(images, EncodedImages)
    return images.names


PAIRS = {
    ("train", "val"): "val",
    ("Train", "Val"): "val",
    ("TRAIN", "VALID"): "val",
    ("training", "Validation"): "val",
    ("train_images", "dev-images"): "val",
    ("train2017", "val2017"): "val",
    ("train", "test"): "test",
    ("Training", "Testing"): "test",
    ("trainset", "testset"): "test",
    ("seg_train", "seg_test"): "test",
    ("train", "eval"): "test",
}


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_folders_are_splits_whatever_their_case_and_ending(tmp_path: Path, pair: tuple[str, str]) -> None:
    fill(tmp_path, *(f"{folder}/{c}/{k}_{folder}.png" for folder in pair for c in "ab" for k in range(3)))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/all.json").write_text("{}")
    second = PAIRS[pair]
    assert splits_of(config_of(tmp_path)) == ("train", second)
    train, val = open_images(config_of(tmp_path), "train"), open_images(config_of(tmp_path), "val")
    assert train.classes == ("a", "b")
    # A test split is neither trained on nor held out: then a part of the training images is.
    assert len(train) + len(val) == (12 if second == "val" else 6)
    assert train.untouched == (() if second == "val" else ("test",))
    assert sorted(names(tmp_path, second)) == [f"{c}/{k}_{pair[1]}.png" for c in "ab" for k in range(3)]


@pytest.mark.parametrize(
    ("first", "second", "split"),
    [
        ("train/0.tar", "validation/0.tar", "val"),
        ("Train/0.tar", "VAL/0.tar", "val"),
        ("train/0.tar", "test/0.tar", "test"),
        ("set-train-0.tar", "set-test-0.tar", "test"),
        ("set_TRAIN_0.tar", "set_Valid_0.tar", "val"),
        ("train/0.tar", "val/x.png", "val"),
    ],
)
def test_shards_are_of_the_split_that_their_folder_or_name_says(
    tmp_path: Path, first: str, second: str, split: str
) -> None:
    fill(tmp_path, first, second)
    assert splits_of(config_of(tmp_path)) == ("train", split)
    assert not any(word in name.lower() for name in names(tmp_path) for word in ("test", "val"))
    assert len(names(tmp_path)) == (3 if split == "val" else 2)
    assert len(names(tmp_path, split)) == (1 if second.endswith(".png") else 3)


def test_a_pattern_follows_the_names_too_but_one_split_may_be_named(tmp_path: Path) -> None:
    fill(tmp_path, "a-train-0.tar", "a-test-0.tar")
    assert splits_of(config_of(tmp_path / "a-*.tar")) == ("train", "test")
    assert splits_of(config_of(tmp_path / "a-{train,test}-0.tar")) == ("train", "test")
    assert splits_of(config_of(tmp_path / "*-test-*.tar")) == ()
    assert len(names(tmp_path / "*-test-*.tar", "all")) == 3


ROWS = {
    "x.csv": "path,split\na.png,Train\nb.png,train\nc.png,TEST\nd.png,dev\n",
    "x.tsv": "Subset\tfile_name\ntrain\ta.png\ntrain\tb.png\ntesting\tc.png\nval\td.png\n",
    "x.jsonl": "".join(
        f'{{"path": "{name}.png", "split": "{split}"}}\n'
        for name, split in zip("abcd", ["train", "train", "test", "validation"], strict=True)
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_column_of_a_list_says_the_split(tmp_path: Path, name: str) -> None:
    fill(tmp_path, *(f"{letter}.png" for letter in "abcd"))
    (tmp_path / name).write_text(ROWS[name])
    assert splits_of(config_of(tmp_path / name)) == ("train", "val", "test")
    assert [names(tmp_path / name, split) for split in ("train", "val", "test")] == [
        ["a.png", "b.png"],
        ["d.png"],
        ["c.png"],
    ]


def test_a_column_that_says_other_things_is_no_split(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.png")
    (tmp_path / "x.csv").write_text("path,label,set\na.png,1,train\nb.png,0,spring\n")
    assert splits_of(config_of(tmp_path / "x.csv")) == ()
    (tmp_path / "x.csv").write_text("path,label,split\na.png,1,train\nb.png,0,\n")
    with pytest.raises(DataError, match=r"x.csv: line 3: split '': expected a word, as other lines have"):
        names(tmp_path / "x.csv")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("streamed", [False, True])
def test_splits_of_a_data_set_are_found_by_any_name(tmp_path: Path, streamed: bool) -> None:
    datasets = pytest.importorskip("datasets")
    content = image(tmp_path / "x.png").read_bytes()
    features = datasets.Features({"image": datasets.Image()})
    sizes = {"TRAIN": 4, "validation": 3, "dev": 2, "test": 5, "extra": 1}
    tables = {
        split: datasets.Dataset.from_dict({"image": [{"bytes": content, "path": None}] * size}, features=features)
        for split, size in sizes.items()
    }
    datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "set"))
    config = config_of(f"hf:{tmp_path / 'set'}", stream=streamed)
    found = splits_of(config)
    assert found[:3] == ("train", "val", "test")
    assert len(open_images(config, "train")) == 4
    assert {len(open_images(config, "val")), len(open_images(config, found[3]))} >= {2}
    assert len(open_images(config, "test")) == 5
    assert len(open_images(config, "extra")) == 1
    assert open_images(config, "train").untouched == found[2:]


def test_other_folders_beside_splits_are_splits_by_their_name(tmp_path: Path) -> None:
    fill(tmp_path, "train/0.png", "train/1.png", "test/2.png", "unlabeled/3.png")
    assert splits_of(config_of(tmp_path)) == ("train", "test", "unlabeled")
    assert names(tmp_path, "unlabeled") == ["3.png"]
    assert open_images(config_of(tmp_path), "train").untouched == ("test", "unlabeled")


def test_a_class_may_be_called_as_a_split_where_none_is_meant(tmp_path: Path) -> None:
    fill(tmp_path / "vehicles", "train/0.png", "bus/1.png")
    fill(tmp_path / "laboratory", "test tube/0.png", "bullet-train/1.png", "dev board/2.png", "cup/3.png")
    assert open_images(config_of(tmp_path / "vehicles"), "train").classes == ("bus", "train")
    assert len(open_images(config_of(tmp_path / "laboratory"), "train").classes) == 4


def test_a_lone_train_folder_is_the_whole(tmp_path: Path) -> None:
    fill(tmp_path, *(f"train/{c}/{k}.png" for c in "ab" for k in range(3)))
    assert splits_of(config_of(tmp_path)) == ()
    assert sorted(names(tmp_path) + names(tmp_path, "val")) == names(tmp_path, "all")
    assert names(tmp_path, "all") == [f"{c}/{k}.png" for c in "ab" for k in range(3)]


@pytest.mark.parametrize("split", ["val", "test", "validation"])
def test_a_source_of_one_split_is_opened_by_its_name_and_never_trained_on(tmp_path: Path, split: str) -> None:
    fill(tmp_path, f"{split}/a/0.png")
    own = "test" if split == "test" else "val"
    assert splits_of(config_of(tmp_path)) == (own,)
    assert names(tmp_path, split) == names(tmp_path, own) == names(tmp_path, "all") == ["a/0.png"]
    with pytest.raises(DataError, match=rf"has the splits {own}; expected train"):
        names(tmp_path)


def test_one_image_is_a_whole_but_cannot_be_split(tmp_path: Path) -> None:
    fill(tmp_path, "0.png")
    assert names(tmp_path, "all") == ["0.png"]
    with pytest.raises(DataError, match="expected at least two images, one to train on and one held out, found 1"):
        names(tmp_path)


def test_validation_images_elsewhere_are_their_val_or_all_of_them(tmp_path: Path) -> None:
    fill(tmp_path / "here", "train/0.png", "test/1.png")
    fill(tmp_path / "there", "train/2.png", "val/3.png")
    fill(tmp_path / "only", "test/4.png")
    fill(tmp_path / "none", "train/5.png", "test/6.png")
    both = {"source": tmp_path / "here", "val_source": str(tmp_path / "there")}
    assert (names(**both), names(split="val", **both), names(split="test", **both)) == (["0.png"], ["3.png"], ["1.png"])
    assert splits_of(config_of(**both)) == ("train", "val", "test")
    assert names(tmp_path / "here", "val", val_source=str(tmp_path / "only")) == ["4.png"]
    with pytest.raises(DataError, match=r"val_source .*none: has the splits train, test; expected val or no splits"):
        names(tmp_path / "here", "val", val_source=str(tmp_path / "none"))


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "a test folder beside classes": (("cat/0.png", "dog/1.png", "Test/2.png"), "holds Test beside cat"),
    "two folders of one split": (("train/0.png", "Training/1.png", "val/2.png"), "holds Training and train for the"),
    "domains": (("trainA/0.png", "trainB/1.png", "testA/2.png"), "holds trainA and trainB for the split train"),
    "images beside splits": (("train/0.png", "val/1.png", "2.png"), "2.png: lies beside the splits train and val"),
    "shards beside splits": (("train/0.tar", "val/1.tar", "2.tar"), "2.tar: lies beside the splits train and val"),
    "splits in classes": (("cat/train/0.png", "cat/test/1.png"), "cat holds train and test; expected splits above"),
    "splits below images": (("images/train/0.png", "images/val/1.png"), "images holds train and val; expected splits"),
    "some shards": (("set-test-0.tar", "extra.tar"), "set-test-0.tar says a split and .*extra.tar none"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_mix_splits_is_refused_in_a_line(tmp_path: Path, case: str) -> None:
    files, message = REFUSED[case]
    fill(tmp_path, *files)
    with pytest.raises(DataError, match=message) as caught:
        names(tmp_path)
    assert "\n" not in str(caught.value)


def test_splits_inside_of_one_shard_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, "set/train/a/0.png", "set/test/a/1.png")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "set", "set")
    with pytest.raises(DataError, match=r"x.tar: set holds train and test; expected splits above everything else"):
        names(tmp_path / "x.tar")


def test_an_empty_val_is_said_when_it_is_opened(tmp_path: Path) -> None:
    fill(tmp_path, "train/0.png", "train/1.png")
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match=r"val: expected images .*, found none"):
        names(tmp_path, "val")


def test_unknown_splits_are_named_beside_those_that_there_are(tmp_path: Path) -> None:
    fill(tmp_path, "a/train/0.png", "a/val/1.png", "b/0.png", "b/1.png")
    for source, message in (
        (tmp_path / "a", "has the splits train, val; expected spring"),
        (tmp_path / "b", "has no splits of its own; expected spring"),
        ("bundled:shapes", "has the splits train and val; expected spring"),
    ):
        with pytest.raises(DataError, match=message):
            open_images(DataConfig(source=str(source), size=16), "spring")
    with pytest.raises(DataError, match="has the splits train, val; expected all"):
        names(tmp_path / "a", "all")
    assert splits_of(DataConfig("bundled:shapes")) == ("train", "val")


@pytest.mark.parametrize("name", ["Train", "TRAINING", "train-set", "train 2017", "train_images", "trainA1"])
def test_words_of_training(name: str) -> None:
    assert split_within(name) == "train"
    assert split_of(name) == (None if name == "trainA1" else "train")


@pytest.mark.parametrize("name", ["train_val", "trains", "contest", "latest", "interval", "evaluations", "", "7"])
def test_words_that_say_no_split(name: str) -> None:
    assert split_of(name) is None
    assert split_within(name) is None


@pytest.mark.parametrize("make", [str, "hf:{}".format])
def test_a_source_may_begin_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[str], str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path / "set", "train/0.png", "validation/1.png", "test/2.png")
    if make is not str:
        pytest.importorskip("datasets")
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    assert len(open_images(config_of(make("~/set")), "train")) == 1
    assert len(open_images(config_of(make("~/set"), val_source=make("~/set")), "val")) == 1


def test_homes_of_nobody_are_refused_and_patterns_and_lists_may_begin_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path, "0.tar", "1.tar", "x.png")
    (tmp_path / "x.txt").write_text("x.png\n")
    assert len(names("~/{0,1}.tar", "all")) == 6
    assert names("~/x.txt", "all") == ["x.png"]
    with pytest.raises(DataError, match="~nobody-of-this-name/x: has no home folder ~nobody-of-this-name"):
        names("~nobody-of-this-name/x")
