"""Evaluation of tokenizers: against plain code on all images at once, by two processes, and what it refuses."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ifsq.bench.runs import Reported, refuse_unlike
from ifsq.cli import main
from ifsq.config import InputError
from ifsq.data import DataConfig, DataError, ImageBatch, iterate_once, open_images, to_float, to_uint8
from ifsq.evaluation import judge as judging
from ifsq.evaluation import tokenizer as measuring
from ifsq.evaluation.judge import JudgeNet, train_judge
from ifsq.evaluation.networks import Networks
from ifsq.evaluation.options import ImagesToMeasure
from ifsq.evaluation.protocol import sample_indices
from ifsq.evaluation.record import Evaluation
from ifsq.evaluation.sheets import Pairs, difference_sheet, pair_sheet, shown_pairs
from ifsq.evaluation.tokenizer import held_out_figures, measure_tokenizer
from ifsq.metrics import ProtocolCard, code_statistics, frechet_distance, ms_ssim, psnr, ssim
from ifsq.metrics.distribution import INCEPTION_2015
from ifsq.pretrained.inception import FIDInception
from ifsq.pretrained.lpips import LPIPS, OFFICIAL_NAME
from ifsq.quantizers import FSQ
from ifsq.store.run import Run
from ifsq.store.weights import weights_digest
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig
from ifsq.training.distributed import World, in_turn
from ifsq.training.log import Silent

SIZE = 24  # two scales of MS-SSIM
DATA = DataConfig("bundled:shapes", SIZE)
ALONE = World(0, 1, torch.device("cpu"))
CONV = ConvConfig(width=16, multipliers=(1, 1), blocks=1, patch=2, groups=4)


def make(**quantizer):
    torch.manual_seed(0)
    options = {"levels": (5, 5, 4), "groups": (1, 2), "cells": "equal"} | quantizer
    return Tokenizer(TokenizerConfig(CONV, QuantizerConfig(**options))).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return make()


@pytest.fixture(scope="module")
def images():
    return open_images(DATA, "val")


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    """A folder with a saved tokenizer, which is no run; the working directory of every test here."""
    folder = tmp_path_factory.mktemp("evaluation")
    tokenizer.save_pretrained(folder / "saved")
    return folder


@pytest.fixture(autouse=True)
def _inside(saved, monkeypatch):
    monkeypatch.chdir(saved)


def measure(tokenizer, images, indices, networks=None, data=None, world=None):
    on = ImagesToMeasure(images, data or DATA, "shapes", indices)
    return measure_tokenizer(tokenizer, on, networks or Networks(), world or ALONE, Silent())


def by_name(cards):
    return {card.metric: card for card in cards}


def read(path):
    return json.loads(Path(path).read_text())


def refused(capsys, *arguments):
    """The one line that an evaluation of the saved tokenizer refuses with."""
    capsys.readouterr()
    before = sorted(Path().rglob("*"))
    assert main(["tokenizer", "eval", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1, told
    assert sorted(Path().rglob("*")) == before
    return told


@torch.no_grad()
def test_streamed_figures_are_those_of_all_images_at_once(tokenizer, images):
    judge = JudgeNet(10).eval()
    indices = list(range(3, 153))  # more than pass together
    found = measure(tokenizer, images, indices, Networks(judge=judge))
    originals = next(iterate_once(images, 150, indices=indices)).images
    latents = tokenizer.latent(originals)
    encoded = tokenizer.encode(originals)
    again = to_float(to_uint8(tokenizer.decode(encoded.codes)))
    cards = by_name(found.cards)
    scores = {"PSNR, dB": psnr, "SSIM": ssim, "MS-SSIM of 2 scales": ms_ssim}
    for name, score in scores.items():
        each = score(originals, again).numpy()
        assert cards[name].values == pytest.approx({"mean": each.mean(), "std": each.std()}, rel=1e-9)
        assert cards[name].method
    distance = frechet_distance(judge.features(again), judge.features(originals))
    assert cards["rFD(judge)"].values["distance"] == pytest.approx(distance, rel=1e-5)
    assert cards["rFD(judge)"].features.startswith("judge ")
    use = code_statistics(encoded.digits, tokenizer.quantizer.levels, tokenizer.quantizer.groups)
    assert cards["level entropy / log2 L"].values["mean"] == use.mean_fraction
    assert cards["dead levels"].values == {"sum": sum(use.dead_levels), "of": 14}
    for number, group in enumerate(use.groups):
        assert cards[f"index perplexity of group {number}"].values["perplexity"] == group.perplexity
        assert cards[f"index use of group {number}"].values["share"] == group.fraction
    np.testing.assert_allclose(found.latent["mean"], latents.double().mean(dim=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found.latent["std"], latents.double().std(dim=(0, 2, 3)), rtol=1e-5)
    # An even level count leaves the paper's cells to tanh.
    assert list(found.levels) == ["FSQ (tanh)", "iFSQ, equal cells"]
    for name, bound, cells in (("FSQ (tanh)", "tanh", "paper"), ("iFSQ, equal cells", "ifsq", "equal")):
        digits = FSQ([5, 5, 4], bound=bound, cells=cells, channel_first=True)(latents).digits
        np.testing.assert_allclose(found.levels[name].share, digits.flatten().bincount().double() / digits.numel())
    assert {(card.n, card.size, card.dtype, card.crop) for card in found.cards} == {
        (150, SIZE, "float32", "the bundled recipe")
    }


def test_lpips_and_rfid_are_their_definitions(tokenizer, images, weights_files, golden):
    """From files by path, through the command. The networks are held to golden values in tests/pretrained."""
    paths = ["--lpips", str(weights_files["lpips_vgg"]), "--fid", str(weights_files["inception"])]
    few = ["--data", "bundled:shapes", "--size", str(SIZE), "--count", "4", "--no-judge"]
    assert main(["tokenizer", "eval", "saved", *few, *paths]) == 0
    (written,) = Path("saved").glob("evaluation_val_*_4.json")
    cards = {card["metric"]: ProtocolCard.from_dict(card) for card in read(written)["cards"]}
    originals = next(iterate_once(images, 4, indices=sorted(sample_indices(images, 4)))).images
    again = to_float(to_uint8(tokenizer.reconstruct(originals)))
    vectors = golden("lpips_vgg")
    heads = {key.removeprefix("lin/"): vectors.get_tensor(key) for key in vectors.keys() if key.startswith("lin/")}  # noqa: SIM118
    tables = [load_file(weights_files[name]) for name in ("lpips_vgg", "inception")]
    lpips, inception = LPIPS(tables[0], heads), FIDInception(tables[1], "formula")
    (name,) = [metric for metric in cards if metric.startswith("LPIPS")]
    assert name.startswith("LPIPS(lpips-")  # not the published weights, so not the published name
    each = lpips(originals, again).double().numpy()
    assert cards[name].values == pytest.approx({"mean": each.mean(), "std": each.std()}, rel=1e-5)
    (name,) = [metric for metric in cards if metric.startswith("rF")]
    assert name.startswith("rFD(inception-")
    parts = [torch.from_numpy(to_uint8(part)).movedim(-1, 1) for part in (again, originals)]
    features = [inception(part)["2048"] for part in parts]
    assert cards[name].values["distance"] == pytest.approx(frechet_distance(*features), rel=1e-4)
    assert cards[name].n == 4
    assert cards[name].reference == "bundled:shapes val, 4 drawn"


def test_one_image_is_measured_without_its_distance(capsys):
    assert main(["tokenizer", "eval", *SHAPES, str(SIZE), "--count", "1"]) == 0
    assert "left out: rFD(judge): 1 image, needs 2" in capsys.readouterr().err
    (written,) = Path("saved").glob("evaluation_val_*_1.json")
    assert [card["metric"] for card in read(written)["cards"]][:3] == ["PSNR, dB", "SSIM", "MS-SSIM of 2 scales"]
    assert read(written)["left_out"] == ["rFD(judge): 1 image, needs 2"]


@pytest.mark.slow
def test_two_processes_find_what_one_does(weights_files):
    """150 images in two batches, one smaller, over two processes: one set of files, the same figures."""
    options = [
        "--data",
        "bundled:shapes",
        "--size",
        str(SIZE),
        "--count",
        "150",
        "--lpips",
        str(weights_files["lpips_vgg"]),
    ]
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "ifsq"]
    done = subprocess.run(
        [*run, "tokenizer", "eval", "saved", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("PSNR, dB") == 1
    (written,) = Path("saved").glob("evaluation_val_*_150.json")
    two = read(written)
    assert main(["tokenizer", "eval", "saved", *options]) == 0
    one = read(written)
    assert [card["metric"] for card in two["cards"]] == [card["metric"] for card in one["cards"]]
    for mine, theirs in zip(one["cards"], two["cards"], strict=True):
        tolerance = 1e-9 if mine["metric"] == "rFD(judge)" else 1e-12
        assert theirs.pop("values") == pytest.approx(mine.pop("values"), rel=tolerance)
        assert theirs.pop("code_version")
        assert mine.pop("code_version")
        assert theirs == mine
        assert theirs["n"] == 150
    assert two["levels"] == one["levels"]
    for name in ("mean", "std"):
        assert two["latent"][name] == pytest.approx(one["latent"][name], rel=1e-12)


def test_published_weights_alone_give_the_published_names(weights_files, golden):
    inception = FIDInception(load_file(weights_files["inception"]), INCEPTION_2015)
    assert list(measuring.extractors_of(Networks(inception=inception))) == ["rFID"]
    vectors = golden("lpips_vgg")
    heads = {key.removeprefix("lin/"): vectors.get_tensor(key) for key in vectors.keys() if key.startswith("lin/")}  # noqa: SIM118
    backbone = load_file(weights_files["lpips_vgg"])
    names = [measuring._lpips_name(LPIPS(backbone, heads, name)) for name in (OFFICIAL_NAME, "lpips-12345678")]
    assert names == ["LPIPS", "LPIPS(lpips-12345678)"]


class Broken:
    """`iterate_once`, but the images that are named cannot be read: batches are smaller, or empty."""

    def __init__(self, *lost):
        self.lost = lost

    def __call__(self, source, batch, indices, workers=0):
        for at in range(0, len(indices), batch):
            part = indices[at : at + batch]
            kept = [index for index in part if index not in self.lost]
            read = next(iterate_once(source, batch, indices=kept or part))
            yield ImageBatch(read.images[: len(kept)], read.labels[: len(kept)])


def test_images_that_cannot_be_read_are_not_counted(tokenizer, images, monkeypatch):
    networks = Networks(judge=JudgeNet(10).eval())
    monkeypatch.setattr(measuring, "max_batch", lambda height, width: 2)
    whole = measure(tokenizer, images, [0, 3, 5, 6], networks)
    monkeypatch.setattr(measuring, "iterate_once", Broken(1, 2, 4))  # 2 and 4 are a whole batch
    found = measure(tokenizer, images, [0, 1, 2, 4, 3, 5, 6], networks)
    assert {card.n for card in found.cards} == {4}
    for mine, other in zip(found.cards, whole.cards, strict=True):
        assert mine.values == pytest.approx(other.values, rel=1e-6)
    monkeypatch.setattr(measuring, "iterate_once", Broken(0, 1, 2))
    with pytest.raises(DataError, match="shapes: 1 images could be read; expected one at least, two for distances"):
        measure(tokenizer, images, [0, 1, 2, 3], networks)
    with pytest.raises(DataError, match="shapes: 0 images could be read"):
        measure(tokenizer, images, [0, 1, 2])


@pytest.mark.parametrize("kind", ["kl", "ae"])
def test_continuous_codes_have_no_levels(kind, images):
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(CONV, QuantizerConfig(kind=kind, dim=3))).eval()
    found = measure(tokenizer, images, range(4))
    assert [card.metric for card in found.cards] == ["PSNR, dB", "SSIM", "MS-SSIM of 2 scales"]
    assert found.levels == {}
    assert len(found.latent["std"]) == tokenizer.quantizer.width


def test_small_images_say_that_ms_ssim_is_absent(tokenizer):
    small = DataConfig("bundled:shapes", 16)
    source = open_images(small, "val")
    found = measure(tokenizer, source, range(4), data=small)
    assert found.left_out == ("MS-SSIM: 16 pixels, needs 22",)
    assert not any("MS-SSIM" in card.metric for card in found.cards)


def test_large_images_pass_a_few_at_a_time():
    assert [measuring.max_batch(size, size) for size in (16, 32, 90, 128, 256, 512, 4096)] == [
        128,
        128,
        128,
        64,
        16,
        4,
        1,
    ]
    assert measuring.max_batch(256, 128) == measuring.max_batch(128, 256) == 32


def test_difference_sheet_shows_original_reconstruction_and_scaled_difference():
    originals = np.full((5, 32, 32, 3), 100, np.uint8)
    again = originals + np.uint8(10)
    again[4, :, :, 0] = 82
    drawn = difference_sheet(Pairs(originals, again))
    assert drawn.scale == 8  # 18 * 8 = 144, and 16 times would be cut off
    assert drawn.sheet.shape == (3 * 34 + 2, 5 * 34 + 2, 3)
    tiles = drawn.sheet[[10, 44, 78], 10]
    assert tiles.tolist() == [[100] * 3, [110] * 3, [80] * 3]
    assert drawn.sheet[78, 4 * 34 + 10].tolist() == [144, 80, 80]
    assert difference_sheet(Pairs(originals, originals)).scale == 64
    again[0] = 255
    assert difference_sheet(Pairs(originals, again)).scale == 1


def test_sheets_show_the_first_indices_and_large_images_in_fewer_columns(tokenizer, images):
    pairs = shown_pairs(tokenizer, images, torch.device("cpu"), [5, 2, 9])
    assert np.array_equal(pairs.originals[1], images.load(2, 0)[0])
    assert pair_sheet(pairs).shape == (2 * 26 + 2, 3 * 26 + 2, 3)
    large = np.zeros((9, 256, 256, 3), np.uint8)
    assert pair_sheet(Pairs(large, large)).shape == (4 * 258 + 2, 8 * 258 + 2, 3)
    wide = np.zeros((9, 32, 512, 3), np.uint8)
    assert pair_sheet(Pairs(wide, wide)).shape == (6 * 34 + 2, 4 * 514 + 2, 3)


def test_held_out_figures_are_of_so_many_images_drawn_over_the_source(tokenizer, images, monkeypatch):
    monkeypatch.setattr(measuring, "WATCHED", 9)
    batch = next(iterate_once(images, 9, indices=sample_indices(images, 9)))
    expected = psnr(batch.images, tokenizer.reconstruct(batch.images)).mean()
    alone = World(0, 1, torch.device("cpu"))
    assert held_out_figures(tokenizer, alone, images) == {"psnr": pytest.approx(float(expected), rel=1e-6)}


def test_two_judges_of_the_same_images_are_one(tmp_path, monkeypatch):
    """Whatever was drawn before: its figures compare between runs."""
    brief = dataclasses.replace(judging.JUDGE_TRAINING, steps=2, save_every=2)
    monkeypatch.setattr(judging, "JUDGE_TRAINING", brief)
    digests = set()
    for name in ("a", "b"):
        torch.manual_seed(len(digests))
        (tmp_path / name).mkdir()
        judge = train_judge(tmp_path / name, DataConfig("bundled:shapes", SIZE), 3, torch.device("cpu"), Silent())
        digests.add(weights_digest(judge))
    assert len(digests) == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_networks_are_loaded_by_the_first_process_before_the_others(rank, tokenizer):
    told = []

    class Recorded(World):
        def gather(self, value):
            told.append("meet")
            return [(None, None), value]

    def load():
        told.append("load")
        return tokenizer

    assert in_turn(Recorded(rank, 2, torch.device("cpu")), load) is tokenizer
    assert told == (["load", "meet"] if rank == 0 else ["meet", "load"])


class Second(World):
    """The second of two processes; the first has said ``heard``."""

    heard = None

    def gather(self, value):
        return [self.heard, value]


def test_what_one_process_refuses_all_refuse(tokenizer, images, monkeypatch):
    second = Second(1, 2, torch.device("cpu"))
    monkeypatch.setattr(Second, "heard", (None, InputError("no such weights")))
    with pytest.raises(InputError, match="no such weights"):
        in_turn(second, lambda: pytest.fail("must not be loaded here"))

    def broken(*_, **__):
        raise DataError("3.png cannot be read")

    monkeypatch.setattr(measuring, "iterate_once", broken)
    monkeypatch.setattr(Second, "heard", (None, None))
    with pytest.raises(DataError, match=r"3\.png cannot be read"):
        measure(tokenizer, images, [0], world=second)


SHAPES = ("saved", "--data", "bundled:shapes", "--size")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("saved",), "saved: is not a training run and has no images of its own; give --data and --size"),
        ((*SHAPES, "26"), "size 26: expected a multiple of the tokenizer's factor 4"),
        ((*SHAPES, "-4"), "size -4: expected at least 1"),
        ((*SHAPES, "24", "--count", "-1"), "count -1: expected at least 1"),
        ((*SHAPES, "24", "--count", "321"), "count 321: expected 1 to 320, the images that there are"),
        ((*SHAPES, "24", "--count", "1", "--fid"), "fid of 1 image: expected at least 2"),
        ((*SHAPES, "24", "--lpips", "gone.pth"), "gone.pth: no such file; expected the weights vgg16"),
        ((*SHAPES, "24", "--fid", "gone.pth"), "gone.pth: no such file; expected the weights pt_inception"),
        (("saved", "--data", "gone", "--size", "24"), "gone: expected a folder of images, found nothing"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(arguments, message, capsys):
    assert message in refused(capsys, *arguments)


def test_published_weights_offline_are_asked_for_in_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("IFSQ_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", offline)
    for option, file in (("--lpips", "vgg16-397923af.pth"), ("--fid", "pt_inception-2015-12-05-6726825d.pth")):
        assert f"{file}: not on this machine and not to be had from https://" in refused(capsys, *SHAPES, "24", option)


def offline(*_, **__):
    raise OSError("no network")


def test_tiny_images_have_no_lpips(capsys, tmp_path):
    from PIL import Image

    for number in range(3):
        Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8)).save(tmp_path / f"{number}.png")
    told = refused(capsys, "saved", "--data", str(tmp_path), "--size", "8", "--lpips")
    assert "lpips of images of 8 pixels: expected at least 16" in told


def run_with(folder, **changes):
    card = ProtocolCard("FD(judge)", {"distance": 1.0}, "shapes train", "ab", 40, 16, "center", "bicubic", "float32")
    return Reported(
        Run(Path(folder), folder, {"kind": folder}), [], Evaluation((dataclasses.replace(card, **changes),))
    )


def test_a_report_refuses_figures_that_do_not_compare():
    refuse_unlike([run_with("ar"), run_with("diffusion", sampler="euler", guidance=2.0, generator_hash="g")])
    refuse_unlike([run_with("ar", dtype="bf16 weights"), run_with("diffusion")])
    for changes, message in (({"n": 50}, "n 40 against 50"), ({"reference_hash": "cd"}, "'ab' against 'cd'")):
        with pytest.raises(InputError, match=f"ar and diffusion: .*{message}.*; evaluate both again"):
            refuse_unlike([run_with("ar"), run_with("diffusion", **changes)])


def test_a_report_refuses_a_tokenizer_that_is_not_behind_the_generators():
    own = {"tokenizer_hash": "t"}
    refuse_unlike([run_with("tokenizer", **own), run_with("ar", **own), run_with("diffusion", **own)])
    with pytest.raises(InputError, match="diffusion: was evaluated with another tokenizer than tokenizer"):
        refuse_unlike([run_with("tokenizer", **own), run_with("ar", **own), run_with("diffusion", tokenizer_hash="u")])
