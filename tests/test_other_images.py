"""Images that a run was not trained on, measured and encoded: all that is named, any split, and how they are read."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ifsq import pipeline
from ifsq.cli import main
from ifsq.codes import CodeCache
from ifsq.config import InputError
from ifsq.data import Reading
from ifsq.evaluation import TokenizerEvaluation, judge, options
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig

SIZE = ("--size", "16")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """A saved tokenizer, which is no run, in the working directory."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    conv = ConvConfig(width=8, multipliers=(1,), blocks=1, patch=4, groups=4)
    Tokenizer(TokenizerConfig(conv, QuantizerConfig(levels=(5, 5)))).save_pretrained("tok")


def fill(*names):
    for number, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(name)


def measured(source, **asked):
    cards = pipeline.evaluate_tokenizer(
        Path("tok"), "cpu", None, TokenizerEvaluation(source=source, size=16, judge=False, **asked)
    )
    return cards[0].n, cards[0].reference


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main(list(arguments)) == 2
    *_, told = capsys.readouterr().err.splitlines()
    assert told.startswith("ifsq: ")
    return told


def test_all_of_a_folder_without_splits_is_measured():
    fill(*(f"pictures/{i}.png" for i in range(40)))
    assert measured("pictures") == (40, "pictures all")
    assert measured("pictures", split="train")[0] + measured("pictures", split="val")[0] == 40
    fill("one/picture.png")
    assert measured("one") == (1, "one all")


def test_of_a_source_with_splits_the_held_out_one_is_measured(capsys):
    fill(*(f"a/{split}/{i}.png" for split, n in (("train", 7), ("Validation", 3), ("test", 4)) for i in range(n)))
    assert measured("a") == (3, "a val")
    assert measured("a", split="validation") == (3, "a val")
    assert measured("a", split="test") == (4, "a test")
    fill(*(f"b/{split}/{i}.png" for split, n in (("train", 7), ("test", 4)) for i in range(n)))
    assert measured("b") == (4, "b test")
    fill(*(f"c/{split}/{i}.png" for split, n in (("train", 7), ("unlabeled", 5), ("test", 4)) for i in range(n)))
    assert measured("c", split="unlabeled") == (5, "c unlabeled")
    assert "a: has the splits train, val, test; expected gone" in refused(
        capsys, "tokenizer", "eval", "tok", "--data", "a", "--split", "gone", *SIZE
    )


def test_the_runs_own_images_are_measured_where_they_were_held_out(monkeypatch):
    fill(*(f"own/{i}.png" for i in range(40)))
    toml = (
        'out = "run"\n[data]\nsource = "own"\nsize = 16\n[tokenizer.conv]\nwidth = 8\nmultipliers = [1]\nblocks = 1\n'
    )
    toml += "patch = 4\ngroups = 4\n[tokenizer.quantizer]\nlevels = [5, 5]\n[train]\nsteps = 2\nbatch = 4\n"
    Path("run.toml").write_text(toml)
    assert main(["tokenizer", "train", "run.toml"]) == 0
    for more in ([], ["--data", "own"], ["--workers", "1"]):
        assert main(["tokenizer", "eval", "run", "--no-judge", *more]) == 0
        held_out = json.loads(Path("run/evaluation.json").read_text())["cards"][0]
        assert held_out["n"] < 10
        assert held_out["reference"] == "own val"
        Path("run/evaluation.json").unlink()
    fill(*(f"others/{i}.png" for i in range(12)))
    assert main(["tokenizer", "eval", "run", "--no-judge", "--data", "others"]) == 0
    assert not Path("run/evaluation.json").exists()
    (written,) = Path("run").glob("evaluation_all_*.json")
    assert json.loads(written.read_text())["cards"][0]["n"] == 12


def test_how_other_images_are_read_is_said_to_the_command(capsys):
    fill(*(f"mixed/{i}.png" for i in range(9)))
    Path("mixed/3.png").write_bytes(b"broken")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save("mixed/5.png")
    command = ["tokenizer", "eval", "tok", "--no-judge", "--data", "mixed", *SIZE]
    assert "mixed/3.png cannot be read" in refused(capsys, *command)
    assert "workers -1: expected at least 0" in refused(capsys, *command, "--workers", "-1")
    assert main([*command, "--broken", "skip", "--workers", "1"]) == 0
    (written,) = Path("tok").glob("evaluation_all_*.json")
    evaluation = json.loads(written.read_text())
    assert (evaluation["cards"][0]["n"], len(evaluation["skipped"])) == (8, 1)
    written.unlink()
    assert main([*command, "--broken", "skip", "--max-pixels", "1000"]) == 0
    (written,) = Path("tok").glob("evaluation_all_*.json")
    assert json.loads(written.read_text())["cards"][0]["n"] == 7
    encode = ["encode", "tok", "mixed", "codes", *SIZE]
    assert "mixed/3.png cannot be read" in refused(capsys, *encode)
    assert main([*encode, "--broken", "skip", "--max-pixels", "1000", "--workers", "1"]) == 0
    cache = CodeCache.open("codes")
    assert cache.count("train") + cache.count("val") == 7


def test_any_split_becomes_codes(capsys):
    fill(
        *(
            f"set/{split}/{k}/{i}.png"
            for split, n in (("train", 4), ("val", 2), ("test", 3))
            for k in "ab"
            for i in range(n)
        )
    )
    assert main(["encode", "tok", "set", "tested", *SIZE, "--split", "testing"]) == 0
    told = capsys.readouterr()
    assert "data: 6 images in 2 classes of test" in told.err
    assert "codes: tested, 6 of test" in told.out
    cache = CodeCache.open("tested")
    assert (cache.splits, cache.count("test"), cache.classes) == (("test",), 6, ("a", "b"))
    assert cache.read("test").labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert main(["analyze", "codes", "tested", "--split", "test"]) == 0
    assert main(["encode", "tok", "set", "three", *SIZE, "--split", "train", "val", "test"]) == 0
    assert [CodeCache.open("three").count(split) for split in ("train", "val", "test")] == [8, 4, 6]
    assert "holds another code cache" in refused(capsys, "encode", "tok", "set", "three", *SIZE)


def test_a_folder_of_one_image_becomes_codes(capsys):
    fill("one/picture.png")
    assert "expected at least two images" in refused(capsys, "encode", "tok", "one", "codes", *SIZE)
    assert main(["encode", "tok", "one", "codes", *SIZE, "--split", "all"]) == 0
    assert CodeCache.open("codes").read("all").content.shape == (1, 4, 4, 2)


def test_validation_images_may_lie_elsewhere():
    fill(*(f"some/{k}/{i}.png" for k in "ab" for i in range(4)), *(f"more/{k}/{i}.png" for k in "ab" for i in range(3)))
    assert main(["encode", "tok", "some", "codes", *SIZE, "--val-source", "more"]) == 0
    cache = CodeCache.open("codes")
    assert (cache.count("train"), cache.count("val")) == (8, 6)
    assert measured("some", reading=Reading(val_source="more")) == (6, "more val")  # the card names what was measured


@pytest.mark.parametrize("nothing", [("--data", ""), ("--split", ""), ("--size", "0")])
def test_nothing_is_not_taken_for_the_default(nothing, capsys):
    fill(*(f"{i}.png" for i in range(3)))
    asked = {"--data": ".", "--size": "16"} | {nothing[0]: nothing[1]}
    with pytest.raises(SystemExit, match="2"):
        main(["tokenizer", "eval", "tok", *(word for pair in asked.items() for word in pair)])
    assert f"argument {nothing[0]}: {nothing[1]!r}: expected" in capsys.readouterr().err


def test_labels_may_lie_in_a_column_that_is_named(capsys):
    fill(*(f"{i}.png" for i in range(30)))
    Path("list.csv").write_text("path,a,b\n" + "".join(f"{i}.png,x,{'pq'[i % 2]}\n" for i in range(30)))
    assert main(["encode", "tok", "list.csv", "codes", *SIZE, "--label-column", "b"]) == 0
    assert CodeCache.open("codes").classes == ("p", "q")


@pytest.mark.parametrize("kind", ["kl", "ae"])
def test_latents_of_one_split_have_no_statistics_of_training(kind):
    conv = ConvConfig(width=8, multipliers=(1,), blocks=1, patch=4, groups=4)
    Tokenizer(TokenizerConfig(conv, QuantizerConfig(kind=kind))).save_pretrained(kind)
    fill(*(f"pictures/{i}.png" for i in range(3)))
    cache = pipeline.encode(Path(kind), "pictures", Path("codes"), 16, splits=["all"])
    assert cache.read("all").content.shape == (3, 4, 4, 4)
    assert cache.statistics == {}


def test_a_judge_is_found_for_images_without_any_to_train_on(monkeypatch):
    monkeypatch.setattr(judge, "JUDGE_TRAINING", replace(judge.JUDGE_TRAINING, steps=2, batch=4, save_every=2))
    fill(*(f"set/{split}/{k}/{i}.png" for split in ("test",) for k in "ab" for i in range(3)))
    assert main(["tokenizer", "eval", "tok", "--data", "set", *SIZE]) == 0
    (written,) = Path("tok").glob("evaluation_test_*.json")
    assert "rFD(judge)" in {card["metric"] for card in json.loads(written.read_text())["cards"]}


def test_a_source_whose_splits_say_nothing_of_measuring_is_asked_about(monkeypatch):
    fill(*(f"set/{i}.png" for i in range(3)))
    monkeypatch.setattr(options, "splits_of", lambda data: ("train", "extra"))
    with pytest.raises(InputError, match="set: has the splits train, extra; say with --split which to measure"):
        measured("set")
