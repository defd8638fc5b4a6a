"""Projectors of REPA: out of a run into an official file, in again, and into a run that begins there."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from ifsq import pipeline
from ifsq.cli import main
from ifsq.config import InputError, build
from ifsq.experiment import ARExperiment, DiffusionExperiment
from ifsq.generators.repa import Alignment, AlignmentConfig
from ifsq.generators.repa.kept import ASIDE, begin_with_projectors, kept_projectors
from ifsq.interop.official.projectors import depth_told, projector_arguments
from ifsq.pretrained.teachers import TeacherConfig
from ifsq.store import checkpoints
from ifsq.store.run import Run
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World
from ifsq.training.warm_start import Start

ALONE = World(0, 1, torch.device("cpu"))
KINDS = {
    "ar": (ARExperiment, {"width": 16, "heads": 2, "mlp_multiple_of": 16, "rope_class": "zero"}),
    "diffusion": (DiffusionExperiment, {"width": 16, "heads": 2, "patch": 2}),
}
ALIGNED = {"teachers": [{"source": "self"}], "depth": 2, "weight": 0.5, "hidden": 24}


def trained(road, out, kind, alignment, **train):
    cls, model = KINDS[kind]
    train = {"steps": 2, "batch": 4, "log_every": 1, "optim": {"warmup": 0}} | train
    table = {"tokenizer": str(road / "tok"), "codes": str(road / "codes"), kind: {"depth": 3, **model}}
    given = {} if alignment is None else {"alignment": alignment}
    return pipeline.train_generator(build(cls, {"out": str(out), "train": train, **table, **given}, "test"), "cpu")


def companion_of(run):
    return checkpoints.at(checkpoints.steps_in(run / "checkpoints")[-1][1]).load("companion")


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("kind", KINDS)
def test_from_our_run_to_an_official_file_and_into_another_run(kind, road, tmp_path, capsys):
    run = trained(road, tmp_path / "run", kind, ALIGNED)
    ours = companion_of(run)
    assert main(["export", "official", str(run), "--out", str(tmp_path / "x.pt")]) == 0
    assert "projectors of REPA: 6 tensors behind 2 blocks" in capsys.readouterr().out
    saved = torch.load(tmp_path / "x.pt", weights_only=True)
    for place, prefix in (("ema", ""), ("model", "module." if kind == "diffusion" else "")):
        assert_same({name: saved[place][prefix + name] for name in ours}, ours)
    said = {"z_dims": [16], "projector_dim": 24, "encoder_depth": 2}
    assert said.items() <= saved["config"]["model"].items()
    imported = tmp_path / "imported"
    line = ["import", "official", str(tmp_path / "x.pt"), "--tokenizer", str(road / "tok"), "--heads", "2"]
    line += ["--statistics", str(tmp_path / "x.latents_stats.pt")] if kind == "diffusion" else []
    assert main([*line, "--out", str(imported)]) == 0
    assert_same(load_file(imported / ASIDE), ours)
    still = {"steps": 1, "optim": {"warmup": 0, "lr": 1e-30}}
    begun = trained(road, tmp_path / "begun", kind, ALIGNED, init=str(imported), **still)
    assert_same(companion_of(begun), ours)
    assert Run.open(begun).config["init"]["taken"]["projectors"] == 6
    again = trained(road, tmp_path / "again", kind, ALIGNED, init=str(run), **still)  # one of ours has them too
    assert_same(companion_of(again), ours)
    other = trained(road, tmp_path / "other", kind, {**ALIGNED, "depth": 1}, init=str(run), **still)
    assert Run.open(other).config["init"]["fresh"]["projectors"] == 6
    assert not torch.equal(companion_of(other)["projectors.0.0.weight"], ours["projectors.0.0.weight"])


def test_without_projectors_the_official_file_says_so(road, tmp_path, capsys):
    plain = trained(road, tmp_path / "plain", "diffusion", None)
    conv = {name: value for name, value in ALIGNED.items() if name != "hidden"} | {"projector": "conv"}
    aligned = trained(road, tmp_path / "conv", "diffusion", conv)
    normed = trained(road, tmp_path / "normed", "diffusion", {**ALIGNED, "spatial_norm": 1.0}, steps=1)
    for run, told in (
        (plain, ""),
        (aligned, "projectors: left out, the official classes have none but three linear"),
        (normed, "projectors: left out, the official trainer has no token='predicted', spatial_norm=1.0"),
    ):
        assert main(["export", "official", str(run), "--out", str(tmp_path / f"{run.name}.pt")]) == 0
        assert told in capsys.readouterr().out.replace("\n", " ")
        saved = torch.load(tmp_path / f"{run.name}.pt", weights_only=True)
        assert not any(name.startswith("projectors.") for name in saved["ema"])
        assert saved["config"]["model"]["z_dims"] is None


def aligned(depth=1, hidden=48, features=24):
    config = AlignmentConfig((TeacherConfig("one"),), depth, 0.5, hidden=hidden)
    return Alignment(config, 64, (4, 4), (features,))


def begun(folder, companion, **train):
    start = Start({"taken": {"layers": 4}, "fresh": {}, "left": {}}, ("init: x",))
    return begin_with_projectors(start, companion, TrainConfig(init=str(folder), **train), ALONE)


@pytest.fixture
def imported(golden_folder, tmp_path):
    file, run = golden_folder / "ckpt_llamagen_tiny.pt", tmp_path / "imported"
    assert main(["import", "official", str(file), "--out", str(run)]) == 0
    return run


def test_those_of_an_official_file_are_taken_where_they_fit(imported):
    companion, there = aligned(), load_file(imported / ASIDE)
    found = begun(imported, companion)
    assert_same(companion.state_dict(), there)
    assert found.record["taken"] == {"layers": 4, "projectors": 6}
    assert found.notes[1:] == (f"init: projectors of {imported}: took 6",)
    named = Start({"taken": {}, "fresh": {}, "left": {}})
    for start, given, options in (
        (Start(), companion, {}),
        (named, None, {}),
        (named, companion, {"init_parts": ("a",)}),
    ):
        config = TrainConfig(init=str(imported), **options)
        assert begin_with_projectors(start, given, config, ALONE) == start
    (imported / ASIDE).unlink()
    assert begun(imported, aligned()).notes == ("init: x",)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"depth": 2}, "depth 1, asked for 2"),
        ({"hidden": 64}, "tensor 'projectors.0.0.bias' of (48,), asked for (64,)"),
        ({"features": 8}, "tensor 'projectors.0.4.bias' of (24,), asked for (8,)"),
    ],
)
def test_others_start_fresh_and_a_line_says_why(asked, told, imported):
    companion = aligned(**asked)
    before = {name: value.clone() for name, value in companion.state_dict().items()}
    found = begun(imported, companion)
    assert found.notes[1:] == (f"init: projectors start fresh: those of {imported} have {told}",)
    assert found.record["fresh"] == {"projectors": 6}
    assert_same(companion.state_dict(), before)


def test_of_another_teacher_or_meaning_they_start_fresh(road, tmp_path):
    run = trained(road, tmp_path / "run", "ar", ALIGNED)
    for config, told in (
        (
            AlignmentConfig((TeacherConfig("self", layer=3),), 2, 0.5, hidden=24),
            "teachers self, asked for self, layer 3",
        ),
        (AlignmentConfig((TeacherConfig("self"),), 2, 0.5, hidden=24, token="read"), "token predicted, asked for read"),
    ):
        found = begun(run, Alignment(config, 16, (4, 4), (16,)))
        assert found.notes[1] == f"init: projectors start fresh: those of {run} have {told}"


def test_damaged_ones_are_refused_and_older_ones_are_read(imported):
    file = imported / ASIDE
    content, there = bytearray(file.read_bytes()), load_file(file)
    content[-2] ^= 16
    file.write_bytes(content)
    for verb in (lambda: begun(imported, aligned()), lambda: kept_projectors(Run.open(imported))):
        with pytest.raises(InputError, match=r"projectors\.safetensors: is damaged or was changed"):
            verb()
    save_file(there, file)
    older = kept_projectors(Run.open(imported))
    assert (older.depth, older.tensors.keys()) == (None, there.keys())
    assert begun(imported, aligned(depth=2)).record["taken"]["projectors"] == 6  # nothing tells their depth


def test_what_an_official_config_says_of_projectors():
    assert depth_told({"ema": {}}, "x") is None
    assert depth_told({"config": {"model": {}}}, "x") == 8
    assert depth_told({"config": {"model": {"encoder_depth": 0}}}, "x") == 0
    for wrong, told in (
        (-1, "expected a number of blocks"),
        (1.5, "expected a number of blocks"),
        ("4", "expected a n"),
    ):
        with pytest.raises(InputError, match=f"x: config: encoder_depth: .*{told}"):
            depth_told({"config": {"model": {"encoder_depth": wrong}}}, "x")
    several = Alignment(replace(aligned().config, hidden=5), 4, (1, 2), tuple(range(1, 13))).state_dict()
    assert projector_arguments(several, None) == {"z_dims": list(range(1, 13)), "projector_dim": 5}
