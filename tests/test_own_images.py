"""The road over somebody's own images, as they lie: what is said of them, and labels that are needed or not."""

from pathlib import Path

import numpy as np
import pytest

from ifsq.cli import main
from ifsq.data import describe_counts, write_png

TOKENIZER = """
out = "tokenizer"
[data]
source = "{source}"
size = 16
{more}
[tokenizer.conv]
width = 8
multipliers = [1]
blocks = 1
patch = 4
groups = 4
[tokenizer.quantizer]
levels = [5, 5]
[train]
steps = 2
batch = 4
"""
AR = """
out = "ar"
tokenizer = "tokenizer"
codes = "codes"
[ar]
depth = 1
width = 16
heads = 2
mlp_multiple_of = 16
[train]
steps = 2
batch = 4
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fill(*names: str) -> None:
    for number, name in enumerate(names):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(np.full((16, 16, 3), 20 * number % 256, dtype=np.uint8), path)


def train(source: str, more: str = "") -> None:
    Path("tokenizer.toml").write_text(TOKENIZER.format(source=source, more=more))
    assert main(["tokenizer", "train", "tokenizer.toml"]) == 0


def told(capsys: pytest.CaptureFixture[str], what: str) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"{what}: ")]


def test_every_run_says_how_many_images_in_how_many_classes(capsys: pytest.CaptureFixture[str]) -> None:
    fill(*(f"set/Train/{k}/{i}.png" for k in (0, 3, 30) for i in range(4)), "set/VAL/3/x.png", "set/Test/0/y.png")
    train("set")
    line = "12 images in 3 classes of 31 to train on, 1 held out"
    assert told(capsys, "data") == [f"data: {line}; split test left alone"]
    assert main(["encode", "tokenizer", "set", "codes"]) == 0
    assert told(capsys, "data") == [f"data: {line}; split test left alone"]
    Path("ar.toml").write_text(AR)
    assert main(["generator", "train", "ar.toml"]) == 0
    assert told(capsys, "codes") == [f"codes: {line}"]


def test_labels_in_a_column_that_is_named_reach_the_codes(capsys: pytest.CaptureFixture[str]) -> None:
    fill(*(f"{k}.png" for k in range(40)))
    rows = "".join(f"{k}.png,{'ab'[k % 2]}\n" for k in range(40))
    Path("list.csv").write_text(f"path,species\n{rows}")
    Path("tokenizer.toml").write_text(TOKENIZER.format(source="list.csv", more=""))
    assert main(["tokenizer", "train", "tokenizer.toml"]) == 2
    assert capsys.readouterr().err.endswith("is the label 'species'? Give data.label_column, 'none' for no labels\n")
    train("list.csv", 'label_column = "species"')
    assert main(["encode", "tokenizer", "list.csv", "codes"]) == 0
    lines = told(capsys, "data")
    assert len(set(lines)) == 1
    assert " in 2 classes " in lines[0]


def test_a_tokenizer_needs_no_labels_of_validation_images_and_a_generator_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fill(*(f"set/{c}/{k}.png" for c in "ab" for k in range(4)), "bare/0.png", "bare/1.png")
    train("set", 'val_source = "bare"')
    assert told(capsys, "data") == ["data: 8 images in 2 classes to train on, 2 held out"]
    assert main(["encode", "tokenizer", "set", "codes"]) == 2
    assert capsys.readouterr().err == "ifsq: bare: has no classes, expected those of set\n"


def test_counts_are_said_in_words() -> None:
    assert describe_counts(1, None, ("all",), 0) == "1 image without labels to train on, 0 held out"
    assert describe_counts(2, [0, 0], ("a",), 3) == "2 images in 1 class to train on, 3 held out"
    assert describe_counts(2, None, ("a", "b"), 3) == "2 images in 2 classes to train on, 3 held out"
