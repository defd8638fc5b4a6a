"""A teacher that is trained here: the road from images to features, resumed and opened again; and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from ifsq import pipeline
from ifsq.bench.shipped import experiment_file
from ifsq.cli import main
from ifsq.config import InputError
from ifsq.data import DataConfig, open_images
from ifsq.evaluation.teacher import network_figures, teacher_figures
from ifsq.pretrained.teachers import TeacherConfig, open_teacher
from ifsq.pretrained.teachers.trained import PatchNet, PatchNetConfig
from ifsq.pretraining.config import ObjectiveConfig, TeacherExperiment, load_teacher_experiment
from ifsq.store.weights import weights_digest
from ifsq.training.config import EngineConfig, TrainConfig
from ifsq.training.distributed import World

LINE = """--data.source bundled:shapes --data.size 16 --network.width 16 --network.depth 2
    --train.batch 8 --train.log_every 1 --train.save_every 2"""
SMALL = LINE.split()
FILE = experiment_file("demo/teacher.toml")
ALONE = World(0, 1, torch.device("cpu"))


def images(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def trained(out, steps, *more):
    options = [*SMALL, "--out", str(out), "--train.steps", str(steps), *more]
    return pipeline.train_teacher(load_teacher_experiment(FILE, options), "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("teachers") / "four", 4)


def test_from_images_to_features(run):
    teacher, pictures = open_teacher(TeacherConfig(str(run))), images(2, 3, 16, 16)
    assert (teacher.name, teacher.width) == ("four", 16)
    found = teacher.features(pictures, (4, 4))
    assert found.shape == (2, 16, 16)
    assert not any(value.requires_grad for value in teacher.parameters())
    torch.testing.assert_close(found[1:], teacher.features(pictures[1:], (4, 4)), atol=1e-5, rtol=1e-4)
    assert teacher.features(pictures, (8, 8)).shape == (2, 64, 16)  # resized to one patch a token
    enlarged = open_teacher(TeacherConfig(str(run), side=32))
    assert enlarged.features(pictures, (4, 4)).shape == (2, 16, 16)
    first = open_teacher(TeacherConfig(str(run), layer=1))
    torch.testing.assert_close(first.network.blocks[1](first.features(pictures, (4, 4)).mT.unflatten(2, (4, 4))),
                               open_teacher(TeacherConfig(str(run), layer=2)).features(pictures, (4, 4)).mT
                               .unflatten(2, (4, 4)), atol=1e-5, rtol=1e-4)  # fmt: skip
    assert len({teacher.digest, enlarged.digest, first.digest}) == 3
    with pytest.raises(InputError, match="layer=3; expected 1 to 2, or 0"):
        open_teacher(TeacherConfig(str(run), layer=3))


def test_a_run_that_goes_on_has_the_same_bits(tmp_path):
    steady = ("--train.optim.schedule", "constant")
    half = open_teacher(TeacherConfig(str(trained(tmp_path / "again", 2, *steady))))
    again = open_teacher(TeacherConfig(str(trained(tmp_path / "again", 4, *steady))))
    whole = open_teacher(TeacherConfig(str(trained(tmp_path / "whole", 4, *steady))))
    assert again.digest == whole.digest != half.digest


def test_the_log_has_what_is_measured(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "unlike_views", "redundant"} <= {key for line in lines for key in line}
    last = {key.rpartition("/")[2]: value for line in lines for key, value in line.items()}
    assert -2 <= last["lds"] <= 2
    assert 0 <= last["probe"] <= 1


def test_it_learns_digits_without_their_labels(tmp_path):
    """A linear probe and the spatial structure of held-out images, which no step has seen, after a hundred steps."""
    options = ["--data.source", "bundled:digits", "--network.depth", "1", "--train.batch", "32", "--train.ema", "0.9"]
    options += ["--train.optim.lr", "5e-3", "--train.log_every", "100", "--train.save_every", "100"]
    held_out = open_images(DataConfig("bundled:digits", 16), "val", labels=False)
    torch.manual_seed(0)
    before = network_figures(PatchNet(PatchNetConfig(16, 1)), held_out, ALONE)
    network = open_teacher(TeacherConfig(str(trained(tmp_path / "run", 100, *options)))).network
    after = network_figures(network, held_out, ALONE)
    assert after["probe"] > before["probe"] + 0.05
    assert after["lds"] > before["lds"] + 0.05


def test_figures_are_of_held_out_images():
    torch.manual_seed(0)
    held_out = open_images(DataConfig("bundled:photos", 16), "val", labels=False)
    network = PatchNet(PatchNetConfig(16, 1)).train()
    figures = network_figures(network, held_out, ALONE)
    assert network.training
    assert set(figures) == {"lds", "probe"}

    def places(pictures):  # the same for every image: no structure but that of the grid, and no class
        return torch.eye(16).expand(len(pictures), 16, 16)

    found = teacher_figures(places, (4, 4), held_out, ALONE, 40)
    assert found["lds"] == pytest.approx(0)
    assert found["probe"] < 0.3


def test_the_command_trains_and_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["teacher", "train", str(FILE), *SMALL, "--out", "run", "--train.steps", "2"]) == 0
    assert open_teacher(TeacherConfig("run")).width == 16
    assert main(["teacher", "train", str(FILE), *SMALL, "--network.patch", "8", "--out", "no"]) == 2
    assert "expected at least four patches a side" in capsys.readouterr().err
    assert not Path("no").exists()


def test_a_run_of_another_kind_is_no_teacher(road):
    with pytest.raises(InputError, match=r"tok: holds a run of kind tokenizer; expected a teacher, see ifsq teacher"):
        open_teacher(TeacherConfig(str(road / "tok")))


def test_weights_of_another_size_are_refused(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "changed")
    for file in folder.rglob("state.json"):
        file.write_text(file.read_text().replace('"width": 16', '"width": 24'))
    with pytest.raises(InputError, match="damaged or was changed"):
        open_teacher(TeacherConfig(str(folder)))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: PatchNetConfig(width=2), "width=2, depth=3: expected at least width 4"),
        (lambda: PatchNetConfig(patch=6), "patch=6: expected a power of two"),
        (lambda: ObjectiveConfig(smallest=0.4), "smallest=0.4: expected 0.5 to 1"),
        (lambda: ObjectiveConfig(colour=1.0), "colour below 1"),
        (lambda: ObjectiveConfig(whole=1.5), "whole=1.5"),
        (lambda: ObjectiveConfig(noise=-0.1), "noise=-0.1: expected no negative number"),
        (lambda: ObjectiveConfig(points=0), "points=0: expected 1 to 4096"),
        (lambda: ObjectiveConfig(points=10**9), "points=1000000000: expected 1 to 4096"),
        (lambda: ObjectiveConfig(expansion=0), "expansion=0: expected at least 1"),
        (
            lambda: TeacherExperiment("x", DataConfig("bundled:photos", 16), PatchNetConfig(patch=8)),
            "network.patch=8 of images of 16 pixels: expected at least four patches a side",
        ),
        (lambda: experiment(TrainConfig(batch=1)), "train.batch=1 in 1 parts"),
        (lambda: experiment(TrainConfig(sample_every=5)), "train.sample_every=5 of a teacher"),
        (lambda: experiment(TrainConfig(engine=EngineConfig(sharding="shard"))), "sharding='shard' of a teacher"),
    ],
)
def test_options_that_are_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def experiment(train):
    return TeacherExperiment("x", DataConfig("bundled:photos", 32), train=train)


def test_a_network_of_any_patch_and_size():
    for patch in (2, 4, 16):
        network = PatchNet(PatchNetConfig(8, 1, patch))
        assert network(images(1, 3, 2 * patch, 3 * patch)).shape == (1, 8, 2, 3)
    assert weights_digest(PatchNet(PatchNetConfig())) != weights_digest(PatchNet(PatchNetConfig()))


def test_a_network_larger_than_the_memory_is_refused_in_a_line(tmp_path):
    asked = TeacherExperiment(
        str(tmp_path / "teacher"), DataConfig("bundled:photos", 32), PatchNetConfig(width=9999999)
    )
    with pytest.raises(InputError, match="network: a network of these sizes does not fit in memory"):
        pipeline.train_teacher(asked, "cpu")
    assert not (tmp_path / "teacher").exists()
