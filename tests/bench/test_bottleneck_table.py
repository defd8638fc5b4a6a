"""The grid of bottlenecks: equal bits, one folder a run, and a table of means and spreads checked by hand."""

import math
from dataclasses import replace

import pytest
import torch

from ifsq.bench.bottlenecks import BITS, DIM, JUDGED, Setting, grid, measure, measured, table
from ifsq.config import InputError
from ifsq.evaluation.record import Evaluation, write_evaluation
from ifsq.metrics import ProtocolCard
from ifsq.store.run import Run, write_config
from ifsq.tokenizer.model import Tokenizer

SEEDS = [0, 1]
CARD = ProtocolCard("", {}, "some val", "hash", 640, 32, "centre", "lanczos", "float32", code_version="1+abc")


def cards(psnr, distance, judge="judge abc"):
    return (
        replace(CARD, metric="PSNR, dB", values={"mean": psnr}),
        replace(CARD, metric=JUDGED, values={"distance": distance}, features=judge),
    )


def test_every_setting_has_a_folder_and_a_tokenizer(tmp_path):
    settings = grid(SEEDS)
    assert len({setting.folder for setting in settings}) == len(settings)
    for setting in settings:
        experiment = setting.experiment(tmp_path, 5)
        assert (experiment.train.seed, experiment.train.steps) == (setting.seed, 5)
        assert experiment.out == str(tmp_path / setting.folder)
        with torch.device("meta"):
            assert Tokenizer(experiment.tokenizer).quantizer.dim == DIM


def test_bits_are_equal(tmp_path):
    for setting in grid([0]):
        lattice = Tokenizer(setting.experiment(tmp_path, 1).tokenizer).quantizer.lattice
        if setting.bits == 0:
            assert (lattice, setting.position) == (None, "continuous")
            continue
        bits = math.log2(math.prod(lattice.levels))
        assert setting.position == f"{bits:.2f}"
        assert bits == pytest.approx(DIM * math.log2(2**setting.bits + 1), abs=0.4)
    assert {setting.bits for setting in grid([0])} == {0, *BITS}


def test_what_was_measured_is_read(tmp_path):
    setting = Setting("A B", 2, 1, {})
    assert measured(setting, tmp_path) == ()
    (tmp_path / "ab_2bit_s1").mkdir()
    write_config(tmp_path / "ab_2bit_s1", {"kind": "tokenizer"})
    write_evaluation(Run.open(tmp_path / "ab_2bit_s1"), Evaluation(cards(20.0, 1.0)))
    assert measured(setting, tmp_path) == cards(20.0, 1.0)


def test_the_table_is_of_means_and_spreads_over_seeds():
    settings = [setting for setting in grid(SEEDS) if setting.name in ("AE", "iFSQ")]
    found = {setting.folder: cards(20.0 + 2 * setting.seed, 1.0) for setting in settings if setting.bits < 3}
    found["ae_0bit_s1"] = ()  # not measured yet
    lines = table(settings, found, 7).splitlines()
    assert "7 steps" in lines[0]
    assert lines[2].endswith("| PSNR, dB | rFD(judge) |"), "a metric that nobody has got a column"
    assert lines[4:6] == [
        "| - | continuous | AE | 0 | 20.00 | 1.00 |",
        "| 2 | 9.29 | iFSQ | 0, 1 | 21.00 ± 1.41 | 1.00 ± 0.00 |",
    ]
    assert lines[6] == ""
    assert lines[7].startswith("some val, 640 images of 32 px, centre; features judge abc; float32; ifsq 1, torch")


def test_runs_of_several_judges_make_no_table():
    settings = grid([0])[:2]
    found = dict(
        zip((setting.folder for setting in settings), (cards(1.0, 1.0), cards(1.0, 1.0, "judge b")), strict=True)
    )
    with pytest.raises(InputError, match=r"judges \['judge abc', 'judge b'\]: expected one for all runs"):
        table(settings, found, 1)


@pytest.mark.usefixtures("quick_judge")
def test_a_setting_is_trained_and_measured_once(tmp_path):
    setting = next(setting for setting in grid([3]) if setting.name == "iFSQ, calibrated")
    found = measure(setting, tmp_path, 1)
    assert {"PSNR, dB", "SSIM", JUDGED, "level entropy / log2 L"} <= {card.metric for card in found}
    assert Run.open(tmp_path / setting.folder).step == 1
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / setting.folder).rglob("*")}
    assert measure(setting, tmp_path, 1) == found
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / setting.folder).rglob("*")} == before
