"""Teachers that are ranked without a generator: the figures, their order, their cards, and what is refused."""

import os
from itertools import pairwise

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from tests.ports import free_port
from torch import nn

from ifsq import pipeline
from ifsq.cli import main
from ifsq.data import DataConfig, iterate_once, open_images
from ifsq.evaluation.protocol import sample_indices
from ifsq.evaluation.record import read_cards
from ifsq.evaluation.score import TeacherScoring
from ifsq.metrics.spatial import local_distant_similarity
from ifsq.pretrained.teachers import ModuleTeacher, TeacherConfig, open_teacher, opening, register_teacher

LINE = ["--data", "bundled:photos", "--size", "32", "--grid", "4", "--count", "20", "--device", "cpu"]


def blurred(config):
    """Colours of ever larger surroundings, by the layer."""
    return ModuleTeacher(nn.Identity(), lambda _, x: F.avg_pool2d(x, 8) + 0.1 * config.layer, 3, "blurred",
                         about=config.layer)  # fmt: skip


def chequered(config):
    """The opposite of its neighbours everywhere: the worst that there is."""
    sign = 1.0 - 2 * ((torch.arange(4)[:, None] + torch.arange(4)) % 2)
    return ModuleTeacher(nn.Identity(), lambda _, x: sign.expand(len(x), 3, 4, 4), 3, "chequered")


def broken(config):
    return ModuleTeacher(nn.Identity(), lambda _, x: F.avg_pool2d(x, 8) / 0, 3, "broken")


@pytest.fixture(autouse=True)
def _mine(monkeypatch):
    monkeypatch.setattr(opening, "_LOADERS", dict(opening._LOADERS))
    for one in (blurred, chequered, broken):
        register_teacher(one.__name__, one)


def asked(*teachers, **options):
    return TeacherScoring(teachers, "bundled:photos", size=32, grid=(4, 4), **{"count": 20, **options})


def test_the_figures_are_those_of_the_images_and_the_best_is_first():
    configs = TeacherConfig("chequered"), TeacherConfig("blurred"), TeacherConfig("blurred", layer=2)
    scored = pipeline.score_teachers(asked(*configs), device="cpu")
    assert scored[-1].name == "chequered"
    assert {one.name for one in scored} == {"chequered", "blurred", "blurred, layer 2"}
    images = open_images(DataConfig("bundled:photos", 32), "val", labels=False)
    (read,) = iterate_once(images, 99, indices=sorted(sample_indices(images, 20)))
    by_name = dict(zip(("chequered", "blurred", "blurred, layer 2"), configs, strict=True))
    expected = {
        name: local_distant_similarity(open_teacher(config).features(read.images, (4, 4)), (4, 4))
        for name, config in by_name.items()
    }
    best = expected[scored[0].name]
    for one in scored:
        torch.testing.assert_close(one.figures.lds, expected[one.name])
        behind = best - expected[one.name]
        assert one.below == pytest.approx((float(behind.mean()), float(behind.std()) / 20**0.5))
        card = one.cards[0]
        assert (card.metric, card.n, card.size) == (f"LDS({one.name})", 20, 32)
        assert card.values["lds"] == pytest.approx(float(expected[one.name].mean()))
        error = float(expected[one.name].std()) / 20**0.5
        assert card.values["high"] - card.values["lds"] == pytest.approx(1.96 * error)
    assert all(a.cards[0].values["lds"] >= b.cards[0].values["lds"] for a, b in pairwise(scored))
    assert scored[0].cards[1].metric == f"probe({scored[0].name})"


def test_the_command_prints_a_table_and_writes_cards(tmp_path, capsys):
    out = tmp_path / "scores.json"
    line = ["teacher", "score", "chequered", "blurred", "--layer", "0", "2", *LINE, "--out", str(out)]
    assert main(line) == 0
    told = capsys.readouterr().out
    assert "bundled:photos val, 20 drawn: 20 images" in told.replace("\n", " ")
    assert told.index("blurred") < told.index("chequered")
    assert [card.metric for card in read_cards(out).cards].count("LDS(blurred, layer 2)") == 1
    assert main(["compare", str(out), str(out)]) == 0
    assert "LDS(chequered" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["chequered", "chequered", *LINE], "teachers chequered; chequered: expected at least one, each once"),
        (["nowhere", *LINE], "teacher 'nowhere': no such folder; expected one, a repository owner/name, or one of"),
        (["self", *LINE], "teacher 'self': no such folder"),
        (["broken", *LINE], "spatial structure: features that are not finite"),
        (["chequered", *LINE, "--grid", "1"], "grid 1x1: expected 2x2 to 64x64 tokens"),
        (["chequered", *LINE, "--grid", "65"], "grid 65x65: expected 2x2 to 64x64 tokens"),
        (["chequered", *LINE, "--grid", "1x2"], "grid 1x2: expected 2x2 to 64x64 tokens"),
        (["chequered", *LINE, "--count", "1"], "count 1: expected at least 2"),
        (["chequered", *LINE, "--count", "1000000"], "count 1000000: expected 2 to"),
        (["chequered", *LINE, "--size", "8"], "size=8: expected 16 to 256 pixels for bundled:photos"),
        (["chequered", *LINE, "--split", "odd"], "odd"),
        (["chequered", *LINE, "--layer", "-1"], "layer=-1: expected 1 for the first"),
        (["chequered", *LINE, "--workers", "-1"], "workers -1: expected at least 0"),
        (["chequered", *LINE, "--out", "."], "is a folder; expected the name of a file"),
        (["chequered"], "the following arguments are required: --data"),
        (["chequered", "--data", ""], "'': expected a name"),
        (["chequered", "--data", "nowhere"], "nowhere"),
    ],
)
def test_what_is_refused(line, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["teacher", "score", *line])
    except SystemExit as end:  # of argparse
        code = end.code
    said = capsys.readouterr().err
    assert code == 2
    assert told in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def _two(rank, port, out):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    register_teacher("blurred", blurred)
    pipeline.score_teachers(asked(TeacherConfig("blurred"), count=21), out, "cpu")


@pytest.mark.slow
def test_two_processes_share_the_images(tmp_path):
    mp.spawn(_two, (free_port(), tmp_path / "two.json"), nprocs=2)
    pipeline.score_teachers(asked(TeacherConfig("blurred"), count=21), tmp_path / "one.json", "cpu")
    one, two = (read_cards(tmp_path / f"{name}.json").cards for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a.values == pytest.approx(b.values)
        assert (a.n, a.reference_hash, a.features) == (b.n, b.reference_hash, b.features)
