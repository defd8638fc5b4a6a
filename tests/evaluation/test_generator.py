"""What generators are asked for and measured on: images that batches do not change."""

import copy
import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from ifsq.codes import CodeSet, CodeSpec
from ifsq.data import DataConfig, open_images, to_float, write_png
from ifsq.evaluation import generator, samples
from ifsq.evaluation.collect import Look, collect
from ifsq.evaluation.generator import measure_likelihood, suffix_of
from ifsq.evaluation.given import DrawnImages, ReconstructedImages, SourceImages
from ifsq.evaluation.judge import JudgeFeatures, JudgeNet
from ifsq.evaluation.labels import labels_balanced, labels_like
from ifsq.evaluation.samples import draw_images
from ifsq.evaluation.sheets import class_sheet, real_sheet, shown_pairs
from ifsq.generators.ar import ARConfig, ARGenerator, ARSampling
from ifsq.generators.diffusion import DiffusionSampling
from ifsq.generators.masked import MaskedConfig, MaskedGenerator
from ifsq.generators.masked.bound import BoundOptions
from ifsq.metrics import ProtocolCard
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig
from ifsq.training.distributed import World

ALONE = World(0, 1, torch.device("cpu"))
SPEC = CodeSpec((5, 5), (2,), "little", "paper", (2, 2))


@pytest.fixture
def pair():
    """A generator of two classes and a tokenizer of its codes, with weights that make images differ."""
    torch.manual_seed(0)
    model = ARGenerator(ARConfig(1, 16, 2, mlp_multiple_of=16), SPEC, 2)
    torch.nn.init.normal_(model.head.output[0].weight)
    conv = ConvConfig(width=8, multipliers=(1, 1), blocks=1, groups=4)
    return model, Tokenizer(TokenizerConfig(conv, QuantizerConfig(levels=(5, 5)))).eval()


def test_images_of_a_seed_are_the_same_in_batches_of_any_size(pair, monkeypatch):
    labels = torch.arange(11) % 2
    whole = draw_images(*pair, labels, 5, ARSampling(2.0))
    assert len(np.unique(whole.reshape(11, -1), axis=0)) > 8
    for size in (1, 4):
        monkeypatch.setattr(samples, "max_batch", lambda *sides, size=size: size)
        drawn = draw_images(*pair, labels, 5, ARSampling(2.0))
        assert np.abs(drawn.astype(int) - whole).max() <= 1  # convolutions of other batches round otherwise
    assert np.abs(draw_images(*pair, labels[:3], 5, ARSampling(2.0)).astype(int) - whole[:3]).max() <= 1


class Together(World):
    """One of several processes that meet through a list: the last to come gets all that was gathered."""

    def gather(self, value):
        SHARES.append(value)
        return copy.deepcopy(SHARES)


SHARES: list = []


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_the_images_and_count_as_one(pair, size):
    torch.manual_seed(0)
    look = Look(JudgeFeatures(JudgeNet(2)), agreement=True)
    images = DrawnImages(*pair, torch.arange(50) % 2, 5, ARSampling(2.0))

    def seen(world):
        return collect([look], images, range(50), world, keep={0, 9, 49})

    whole = seen(ALONE)
    SHARES.clear()
    for rank in range(size):
        merged = seen(Together(rank, size, torch.device("cpu")))
    mine, theirs = (found.seen[0] for found in (merged, whole))
    assert (mine.n, mine.right) == (theirs.n, theirs.right) == (50, theirs.right)
    assert [part.n for part in mine.parts("features")] == [17, 17, 16]
    for name in ("mean", "covariance"):
        assert torch.equal(*(getattr(seen.statistics("features"), name) for seen in (mine, theirs)))
    assert sorted(merged.kept) == sorted(whole.kept) == [0, 9, 49]
    assert all(np.array_equal(merged.kept[number], image) for number, image in whole.kept.items())


def test_the_judge_sees_as_it_was_trained(pair):
    torch.manual_seed(0)
    judge = JudgeNet(3)
    images = torch.randint(256, (4, 3, 16, 20), dtype=torch.uint8)
    seen = JudgeFeatures(judge)(images, ("features", "scores"))
    floats = to_float(images.movedim(1, -1))
    assert torch.equal(seen["features"], judge.features(floats))
    assert torch.equal(seen["scores"], judge.logits(floats))


def test_the_likelihood_is_in_the_order_of_the_codes_whoever_measures(pair, monkeypatch):
    monkeypatch.setattr(generator, "AT_ONCE", 4)
    model = pair[0]
    codes = CodeSet(SPEC, torch.randint(5, (18, *SPEC.shape), dtype=torch.uint8), torch.arange(18) % 2)
    blank = ProtocolCard("", {}, "r", "h", 0, 16, "", "", "")
    whole = measure_likelihood(model, codes, blank, ALONE)
    SHARES.clear()
    for rank in range(2):
        shared = measure_likelihood(model, codes, blank, Together(rank, 2, torch.device("cpu")))
    assert shared == whole
    assert whole[0].n == 18


def test_a_bound_says_how_it_was_found_and_how_sure_it_is():
    """Beside samples of another seed: not theirs is on the card, but the bound's own."""
    torch.manual_seed(0)
    model = MaskedGenerator(MaskedConfig(1, 16, 2, mlp_multiple_of=16), SPEC, 2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    codes = CodeSet(SPEC, torch.randint(5, (6, *SPEC.shape), dtype=torch.uint8), torch.arange(6) % 2)
    samples = ProtocolCard("", {}, "r", "h", 0, 16, "", "", "", seed=5, sampler="rounds 8", function_evaluations=16)
    (card,) = measure_likelihood(model, codes, samples, ALONE)
    found = model.bound(codes.batch(torch.arange(6)), BoundOptions())
    assert (card.metric, card.seed, card.n) == ("bits per image, upper bound", 0, 6)
    assert (card.sampler, card.function_evaluations) == ("draws 32", 32)
    assert card.method == "all orders, one digit a step"
    assert card.values["mean"] == pytest.approx(float(found.nats.mean()) / math.log(2))
    error = float(found.error.square().sum().sqrt()) / 6 / math.log(2)
    assert card.values["error of the draws"] == pytest.approx(error)


def test_files_are_named_by_what_is_not_as_usual():
    usual = DiffusionSampling(1.5, 25)
    assert suffix_of(usual, usual) == ""
    other = DiffusionSampling(3.0, 25, "heun", guidance_interval=(0.1, 0.9))
    assert suffix_of(other, usual) == "_guidance_3.0_solver_heun_guidance_interval_0.1-0.9"
    assert suffix_of(usual, usual, average=False) == "_raw"
    times, folder = tuple(i / 32 for i in range(33)), "runs/weak"
    for one in (DiffusionSampling(1.5, 25, times=times), DiffusionSampling(1.5, 25, guide=folder)):
        told = suffix_of(one, usual)
        assert re.fullmatch(r"_(times|guide)_[0-9a-f]{8}", told)
        assert told != suffix_of(DiffusionSampling(1.5, 25, times=times[:5] + times[6:]), usual)


def test_labels_are_in_the_proportions_of_the_reference():
    reference = torch.tensor([4] * 90 + [7] * 10)
    drawn = labels_like(reference, 100)
    assert drawn.bincount().tolist() == [0, 0, 0, 0, 90, 0, 0, 10]
    assert labels_balanced(reference, 5).tolist() == [4, 7, 4, 7, 4]
    assert labels_like(reference, 1).tolist() == [4]


def test_labels_of_like_classes_come_round_in_turn():
    assert labels_like(torch.arange(5).repeat(3), 12).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert labels_balanced(torch.tensor([9, 2, 2, 5]), 4).tolist() == [2, 5, 9, 2]


@pytest.mark.parametrize("n", [1, 2, 7, 30, 299, 2000])
@pytest.mark.parametrize("classes", [1, 2, 30, 300])
def test_every_beginning_of_the_labels_is_representative(classes, n):
    """No class is further from its share than one image, at the end and on the way; the end is the nearest there is."""
    rng = np.random.default_rng(classes)
    counts = np.ceil(rng.pareto(1.0, classes)).astype(int).clip(1, 2000)
    reference = torch.from_numpy(np.repeat(np.arange(classes), counts))
    drawn = labels_like(reference, n).numpy()
    shares = counts / counts.sum()
    seen = np.cumsum(drawn[:, None] == np.arange(classes), axis=0)
    assert np.abs(seen[-1] - n * shares).max() < 1
    nearest = np.floor(n * shares)
    nearest[np.argsort(nearest - n * shares)[: int(n - nearest.sum())]] += 1
    assert np.abs(seen[-1] - n * shares).sum() == pytest.approx(np.abs(nearest - n * shares).sum())
    expected = np.outer(np.arange(1, n + 1), seen[-1] / n)
    assert (seen - expected).max() < 1  # no class comes early
    for group in (shares < np.median(shares), shares >= np.median(shares)):  # nor do all rare ones come late
        assert np.abs(seen[:, group].sum(1) - expected[:, group].sum(1)).max() < 1 + group.sum() / 3


def test_labels_like_none_are_refused():
    for reference, n in ((torch.arange(0), 3), (torch.arange(3), 0)):
        with pytest.raises(ValueError, match="expected at least one"):
            labels_like(reference, n)


def test_a_sheet_has_a_row_for_each_class_that_was_drawn():
    images = np.arange(7, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    sheet = class_sheet(images, np.array([30, 0, 30, 30, 5, 30, 0]), [0, 30])
    rows = [[sheet[2 + 4 * row, 2 + 4 * column, 0] for column in range(4)] for row in range(2)]
    assert rows == [[1, 6, 255, 255], [0, 2, 3, 5]]


def test_a_batch_of_broken_images_alone_ends_no_evaluation(pair, tmp_path):
    for number in range(4):
        write_png(np.full((16, 16, 3), 60 * number, np.uint8), tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    data = DataConfig(str(tmp_path), 16, broken="skip")

    def again():
        return ReconstructedImages(SourceImages(open_images(data, "all"), "pictures", data), pair[1])

    parts = list(again().parts([[0], [1], [2], [3]]))
    assert [(len(part.images), len(part.labels)) for part in parts] == [(1, 1), (0, 0), (1, 1), (1, 1)]
    found = collect([Look(JudgeFeatures(JudgeNet(2)))], again(), range(4), ALONE)
    assert found.seen[0].n == found.seen[0].statistics("features").n == 3
    assert len(found.skipped) == 1
    for number in (0, 2, 3):
        (tmp_path / f"{number}.png").write_bytes(b"no picture")
    assert collect([Look(JudgeFeatures(JudgeNet(2)))], again(), range(4), ALONE).seen[0].n == 0


@pytest.fixture
def evaluate(road, tmp_path):
    """``evaluate(2)``: what a command of its own, of so many processes, finds of the road's generator."""

    def act(processes):
        place = tmp_path / str(processes)
        shutil.copytree(road, place, ignore=shutil.ignore_patterns("judge_*"))
        many = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"] if processes > 1 else []
        command = [sys.executable, *many, "-m", "ifsq", "generator", "eval", "ar", "--samples", "150", "--features"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads((place / "ar/evaluation.json").read_text()), (place / "ar/samples/classes.png").read_bytes()

    return act


def test_two_processes_find_what_one_does(evaluate):
    (one, sheet), (two, same) = evaluate(1), evaluate(2)
    assert [card["metric"] for card in two["cards"]] == [card["metric"] for card in one["cards"]]
    assert len(one["cards"]) == 5
    for mine, theirs in zip(one["cards"], two["cards"], strict=True):
        assert theirs.pop("values") == pytest.approx(mine.pop("values"), rel=1e-6)
        assert theirs == mine
    assert {**one, "cards": []} == {**two, "cards": []}
    assert sheet == same


def test_a_sheet_of_real_images_decodes_no_other_classes(tmp_path, monkeypatch):
    for number in range(9):
        folder = tmp_path / "abc"[number // 3]
        folder.mkdir(exist_ok=True)
        write_png(np.full((16, 16, 3), 20 * number, np.uint8), folder / f"{number}.png")
    images = open_images(DataConfig(str(tmp_path), 16), "all")
    seen, load = [], images.load
    monkeypatch.setattr(images, "load", lambda index, seed: seen.append(index) or load(index, seed))
    sheet = real_sheet(images, {2: 2})
    assert seen == [6, 7]
    assert sheet[2, [2, 20], 0].tolist() == [120, 140]


def test_a_stream_is_read_from_front_to_back(pair, tmp_path, monkeypatch):
    for number in range(12):
        write_png(np.full((16, 16, 3), 20 * number, np.uint8), tmp_path / f"{number:02}.png")
    images = open_images(DataConfig(str(tmp_path), 16), "all")
    seen, load = [], images.load
    monkeypatch.setattr(images, "load", lambda index, seed: seen.append(index) or load(index, seed))
    for block in (0, 4):
        images.block = block
        again = ReconstructedImages(SourceImages(images, "pictures"), pair[1])
        drawn = again.chosen(12)
        assert (drawn == sorted(drawn)) == bool(block)
        for read in (
            lambda again=again, drawn=drawn: list(again.parts([drawn])),
            lambda drawn=drawn: shown_pairs(pair[1], images, torch.device("cpu"), drawn),
        ):
            seen.clear()
            read()
            assert seen == drawn[: len(seen)]
