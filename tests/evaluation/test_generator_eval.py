"""`generator eval` of images whose classes are neither all there nor all alike."""

import contextlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ifsq.bench.report import write_report
from ifsq.bench.runs import Reported, refuse_unlike
from ifsq.cli import main
from ifsq.config import InputError
from ifsq.evaluation import generator, judge
from ifsq.evaluation.record import read_evaluation, read_evaluations, write_evaluation
from ifsq.generators.ar import ARGenerator
from ifsq.store import run as store
from ifsq.store.run import Run
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig

GENERATOR = """
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
log_every = 1
save_every = 1
"""
NAMES = [str(label) for label in range(31)]


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """Forty images of the classes 0 and 30 alone, nine to one, and a generator of their codes."""
    folder = tmp_path_factory.mktemp("gaps")
    lines = ["path,label"]
    for number in range(40):
        label = 30 if number % 10 == 9 else 0
        shade = np.random.default_rng(number).integers(100, 150, (16, 16, 3), np.uint8)
        Image.fromarray(shade + (90 if label else 0)).save(folder / f"{number:02}.png")
        lines.append(f"{number:02}.png,{label}")
    (folder / "list.csv").write_text("\n".join(lines))
    torch.manual_seed(0)
    conv = ConvConfig(width=8, multipliers=(1,), blocks=1, patch=4, groups=4)
    Tokenizer(TokenizerConfig(conv, QuantizerConfig(levels=(5, 5)))).save_pretrained(folder / "tokenizer")
    (folder / "ar.toml").write_text(GENERATOR)
    return folder


@pytest.fixture(autouse=True)
def _inside(road, monkeypatch):
    monkeypatch.chdir(road)
    monkeypatch.setattr(judge, "JUDGE_TRAINING", replace(judge.JUDGE_TRAINING, steps=3, batch=8, save_every=3))


def cards_of(run):
    evaluation = json.loads(Path(run, "evaluation.json").read_text())
    return evaluation, {card["metric"]: card for card in evaluation["cards"]}


def size_of(picture):
    with Image.open(picture) as image:
        return image.size


def test_samples_are_of_the_classes_that_occur_and_in_their_proportions(monkeypatch):
    assert main(["encode", "tokenizer", "list.csv", "codes", "--size", "16"]) == 0
    assert main(["generator", "train", "ar.toml"]) == 0
    asked = []
    drawn = ARGenerator.sample

    def sample(self, labels, sampling, **options):
        asked.append(labels)
        return drawn(self, labels, sampling, **options)

    monkeypatch.setattr(ARGenerator, "sample", sample)
    for arguments, counts in ((["10"], {0: 9, 30: 1}), (["10", "--balanced"], {0: 5, 30: 5}), (["2"], {0: 2})):
        asked.clear()
        assert main(["generator", "eval", "ar", "--samples", *arguments, "--features"]) == 0
        expected = [counts.get(label, 0) for label in range(max(counts) + 1)]
        of_generator, of_twin = torch.cat(asked).chunk(2)
        assert of_generator.bincount().tolist() == of_twin.bincount().tolist() == expected
        evaluation, cards = cards_of("ar")
        assert evaluation["shown"] == [NAMES[label] for label in counts]
        assert set(evaluation["classes"]) == {"0", "30"}
        law = "every class of the reference alike" if "--balanced" in arguments else "in the reference's proportions"
        for metric, card in cards.items():
            drawn_for = metric in ("FD(judge)", "class agreement", "FD(judge), untrained generator")
            assert card["labels"] == (law if drawn_for else "")
        assert size_of("ar/samples/classes.png")[1] == size_of("ar/samples/real.png")[1] == len(counts) * 18 + 2
    write_report([Path("ar")], Path("ar.html"))


def test_generators_asked_for_other_classes_do_not_stand_on_one_page():
    evaluation = read_evaluation(Run.open("ar"))
    first, *rest = evaluation.cards
    other = replace(evaluation, cards=(replace(first, labels=""), *rest))  # of a card that is older than this
    runs = [
        Reported(Run(Path(name), name, {"kind": "ar"}), [], held) for name, held in (("a", evaluation), ("b", other))
    ]
    with pytest.raises(InputError, match=r"a and b: FD.judge.: cards do not compare: labels"):
        refuse_unlike(runs)


def test_all_steps_are_measured_against_what_was_looked_at_once(monkeypatch, capsys):
    for name in ("evaluation.json", "samples/classes.png"):
        Path("ar", name).unlink(missing_ok=True)
    shutil.rmtree("ar/evaluations", ignore_errors=True)
    looked, collect = [], generator.collect
    monkeypatch.setattr(generator, "collect", lambda *given: looked.append(type(given[1]).__name__) or collect(*given))
    command = ["generator", "eval", "ar", "--samples", "6", "--features", "pixels"]
    assert main([*command, "--step", "all", "--no-twin"]) == 0
    assert looked == ["DrawnImages", "ReconstructedImages", "DrawnImages"]
    found = read_evaluations(Run.open("ar"))
    assert [(step, one.step, one.seen, one.weights) for step, one in found.items()] == [
        (1, 1, 4, "average"),
        (2, 2, 8, "average"),
    ]
    assert found[2].flops == 2 * found[1].flops > 0
    assert found[2] == read_evaluation(Run.open("ar"))
    pixels = [f"{name}(pixels)" for name in ("FD", "KD", "precision", "recall", "density", "coverage")]
    metrics = ["FD(judge)", "class agreement", *pixels, "bits per image"]
    alone = [f"{name}, tokenizer alone" for name in ("FD(judge)", *pixels)]
    for one in found.values():
        assert [card.metric for card in one.cards] == [*metrics, *alone]
    assert found[1].cards[0].generator_hash != found[2].cards[0].generator_hash
    assert found[1].cards[len(metrics) :] == found[2].cards[len(metrics) :]
    table = capsys.readouterr().out
    assert re.search(
        r"step +FD.judge. +class agreement +FD.pixels. +KD.pixels. +bits per image *\n +1 .*\n +2 ", table
    ), table
    sheet = Path("ar/samples/classes.png").stat().st_mtime_ns
    assert main([*command, "--step", "1", "--weights", "raw"]) == 0
    raw = json.loads(Path("ar/evaluations/step_1_raw.json").read_text())
    assert (raw["weights"], raw["step"]) == ("raw", 1)
    assert read_evaluations(Run.open("ar")) == found
    assert Path("ar/samples/classes.png").stat().st_mtime_ns == sheet


def test_bits_of_held_out_codes_are_counted_for_either_kind(capsys):
    network = "[diffusion]\ndepth = 1\nwidth = 16\nheads = 2\npatch = 1\n"
    text = GENERATOR.replace('"ar"', '"diffusion"').replace("mlp_multiple_of = 16\n", "")
    Path("diffusion.toml").write_text(text.replace("[ar]\ndepth = 1\nwidth = 16\nheads = 2\n", network))
    assert main(["generator", "train", "diffusion.toml"]) == 0
    assert main(["generator", "likelihood", "ar", "--images", "3"]) == 0
    options = ["--likelihood.steps", "2", "--likelihood.trace", "hutchinson", "--likelihood.probes", "2"]
    assert main(["generator", "likelihood", "diffusion", "--images", "3", "--seed", "4", *options]) == 0
    assert "bits per image, upper bound" in capsys.readouterr().out
    exact, bound = (
        json.loads(Path(run, "evaluations/step_2_likelihood.json").read_text())["cards"] for run in ("ar", "diffusion")
    )
    assert (exact[0]["metric"], exact[0]["n"], exact[0]["function_evaluations"]) == ("bits per image", 3, 1)
    assert (bound[0]["metric"], bound[0]["seed"]) == ("bits per image, upper bound", 4)
    assert bound[0]["sampler"] == "rk4, steps 2, timestep_shift 4"
    assert bound[0]["function_evaluations"] == 8
    told = r"path's noise of 1 half cells within the cells, read at t = 0\.\d+; Hutchinson's estimator, 2 probes"
    assert re.fullmatch(told, bound[0]["method"])
    assert bound[0]["values"]["error of the trace"] > 0
    assert bound[0]["reference_hash"] == exact[0]["reference_hash"]
    assert read_evaluations(Run.open("diffusion")) == {}
    for run, arguments, line in (
        ("ar", options, "a generator of kind ar: its likelihood is exact and has no options"),
        ("diffusion", ["--likelihood.probes", "0"], "likelihood: probes=0: expected at least 1"),
        ("diffusion", ["--images", "0"], "images 0: expected at least 1"),
        ("diffusion", ["--likelihood.step", "2"], "likelihood: step: unknown key; did you mean 'steps'?"),
        ("diffusion", ["--sampling.steps", "2"], "'--sampling.steps': no such argument of"),
    ):
        assert main(["generator", "likelihood", run, *arguments]) == 2
        assert line in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--step", "1", "7"], "ar/checkpoints: step 7 is not kept; expected one of 1, 2"),
        (["--step", "last"], "'last': expected the number of a step, or all"),
        (["--features", "nothing"], "features 'nothing': expected one of inception, "),
    ],
)
def test_what_cannot_be_measured_is_refused(options, told, capsys):
    with contextlib.suppress(SystemExit):
        assert main(["generator", "eval", "ar", "--samples", "6", *options]) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_a_run_without_a_checkpoint_has_nothing_to_measure(tmp_path, capsys):
    shutil.copy("ar/config.json", tmp_path)
    for options in ([], ["--step", "all"]):
        assert main(["generator", "eval", str(tmp_path), *options]) == 2
        assert "holds no checkpoint yet; train it first" in capsys.readouterr().err


def test_evaluations_of_steps_are_read_in_their_order(tmp_path):
    run = Run(tmp_path, "run", {"kind": "ar"})
    held = read_evaluation(Run.open("ar"))
    assert read_evaluations(run) == {}
    for step in (20, 3):
        write_evaluation(run, replace(held, step=step, seen=4 * step, flops=1.5e9, weights="raw"), step=step)
    found = read_evaluations(run)
    assert [(step, one.seen, one.weights) for step, one in found.items()] == [(3, 12, "raw"), (20, 80, "raw")]
    assert found[3].cards == held.cards
    assert (held.weights, read_evaluation(run, 4)) == ("average", None)


def test_a_run_is_opened_once_in_an_evaluation(monkeypatch):
    read, opened = store.read_config, []
    monkeypatch.setattr(store, "read_config", lambda folder: opened.append(folder.name) or read(folder))
    for command in (
        ["generator", "eval", "ar", "--samples", "2", "--features"],
        ["tokenizer", "eval", "tokenizer", "--no-judge"],
    ):
        more = ["--data", "bundled:shapes", "--size", "16", "--count", "2"] if command[0] == "tokenizer" else []
        opened.clear()
        assert main([*command, *more]) == 0
        assert opened.count(command[2]) == 1
