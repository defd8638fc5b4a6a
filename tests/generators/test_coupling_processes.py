"""Pairs of noise and data in training: the same bits after an interruption, over two processes each its own part."""

import contextlib
import os
from dataclasses import replace

import pytest
import torch
from tests.ports import free_port

from ifsq.codes import CodeSet, LatentSpec
from ifsq.config import Interrupted
from ifsq.generators.diffusion import DiffusionGenerator, DiTConfig
from ifsq.generators.train import GeneratorTask
from ifsq.store import checkpoints
from ifsq.training.config import EngineConfig, TrainConfig
from ifsq.training.distributed import join
from ifsq.training.log import Silent
from ifsq.training.loop import train
from ifsq.training.optim import OptimConfig

SPEC = LatentSpec(2, (2, 2))
IMAGES, BATCH, STEPS = 24, 8, 6  # two epochs
CONFIG = TrainConfig(steps=STEPS, batch=BATCH, log_every=3, save_every=2, ema=0.9, optim=OptimConfig(lr=1e-2))
TABLES = ("model", "ema", "optimizer")


def codes():
    """Latents whose first number is the image's."""
    content = torch.randn(IMAGES, *SPEC.shape, generator=torch.Generator().manual_seed(0)).half()
    content[:, 0, 0, 0] = torch.arange(IMAGES)
    return CodeSet(SPEC, content, torch.arange(IMAGES) % 3)


class Coupled(GeneratorTask):
    """Notes in each part of a step which images were paired, and that all of their noise was used once."""

    def __init__(self, coupling, stop_at=None):
        torch.manual_seed(0)
        model = DiffusionGenerator(DiTConfig(1, 16, 2, patch=1, coupling=coupling), SPEC, 3)
        super().__init__(model, codes(), None, CONFIG)
        self.stop_at, self.paired, self.moved = stop_at, [], 0
        pairs = model.objective.pairs

        def noted(x0, x1, labels):
            if x0.is_meta:  # where operations are counted
                return x0
            found = pairs(x0, x1, labels)
            self.paired.append(x1[:, 0, 0, 0].round().int().tolist())
            rows = [sorted(map(tuple, x.flatten(1).tolist())) for x in (x0, found)]
            assert rows[0] == rows[1], "noise is lost, or used twice"
            self.moved += int((found != x0).any())
            return found

        model.objective.pairs = noted

    def batches(self, start, world):
        parts = self.config.engine.accumulate
        for number, batch in enumerate(super().batches(start, world)):
            if start + number / parts == self.stop_at:
                raise Interrupted(self.stop_at)
            yield batch


def run(folder, coupling, world, config=CONFIG, stop_at=None):
    task = Coupled(coupling, stop_at)
    task.config = config
    with contextlib.suppress(Interrupted):
        train(task, config, folder, world, Silent(), "coupled")
    assert (task.moved > 0) == (coupling != "independent")
    return task.paired


def alone(folder, coupling, config=CONFIG, stop_at=None):
    with join("cpu") as world:
        return run(folder, coupling, world, config, stop_at)


def _process(rank, ports, folder, coupling):
    """Unbroken, and stopped and gone on; at one port a process may meet the run before."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    for port, name, stop_at in zip(ports, ("two", "cut", "cut"), (None, 5, None), strict=True):
        os.environ["MASTER_PORT"] = str(port)
        with join("cpu") as world:
            seen = world.gather(run(folder / name, coupling, world, stop_at=stop_at))
            assert all(len(part) == BATCH // 2 for parts in seen for part in parts)
            if name == "two":
                check_epochs([left + right for left, right in zip(*seen, strict=True)])


def check_epochs(steps):
    """Every image once in an epoch of three steps."""
    for first in range(0, STEPS, 3):
        assert sorted(image for step in steps[first : first + 3] for image in step) == list(range(IMAGES))


def assert_same(a, b):
    for name in TABLES:
        one, other = (checkpoints.at(checkpoints.steps_in(run / "checkpoints")[-1][1]).load(name) for run in (a, b))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


@pytest.mark.parametrize("coupling", ["optimal", "optimal_in_class"])
def test_a_run_that_was_stopped_ends_with_the_same_bits(coupling, tmp_path):
    check_epochs(alone(tmp_path / "whole", coupling))
    assert len(alone(tmp_path / "cut", coupling, stop_at=5)) == 5
    assert len(alone(tmp_path / "cut", coupling)) == 2  # from the checkpoint of step 4
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_two_processes_pair_their_own_halves_and_go_on_with_the_bits_of_one_with_two_parts(tmp_path):
    torch.multiprocessing.spawn(_process, ([free_port() for _ in range(3)], tmp_path, "optimal"), nprocs=2)
    assert_same(tmp_path / "two", tmp_path / "cut")
    parts = alone(tmp_path / "one", "optimal", replace(CONFIG, engine=EngineConfig(accumulate=2)))
    assert {len(part) for part in parts} == {BATCH // 2}
    assert_same(tmp_path / "one", tmp_path / "two")
