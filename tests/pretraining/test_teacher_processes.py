"""A teacher that two processes train: each compares its own images, as one process does its parts of a batch."""

import os
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing as mp
from tests.ports import free_port

from ifsq import pipeline
from ifsq.config import InputError
from ifsq.data import DataConfig
from ifsq.pretrained.teachers.trained import PatchNetConfig
from ifsq.pretraining.config import TeacherExperiment
from ifsq.store import checkpoints
from ifsq.training.config import EngineConfig, TrainConfig
from ifsq.training.log import read_metrics
from ifsq.training.optim import OptimConfig

PARTS = EngineConfig(accumulate=2)


def experiment(out, steps=4, batch=8, engine=None):
    optim = OptimConfig(lr=1e-2, warmup=0, schedule="constant")
    train = TrainConfig(steps=steps, batch=batch, log_every=1, save_every=2, ema=0.9, optim=optim)
    data, network = DataConfig("bundled:shapes", 16), PatchNetConfig(width=8, depth=1)
    return TeacherExperiment(str(out), data, network, train=train if engine is None else replace(train, engine=engine))


def tables(folder):
    step, path = checkpoints.steps_in(folder / "checkpoints")[-1]
    assert step == 4
    return {name: checkpoints.at(path).load(name) for name in ("model", "ema", "optimizer")}


def _two(rank, ports, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    for port, name, steps in zip(ports, ("two", "cut", "cut"), (4, 2, 4), strict=True):
        os.environ["MASTER_PORT"] = str(port)  # processes meet once at each
        pipeline.train_teacher(experiment(folder / name, steps), "cpu")


def test_every_process_has_two_images_of_a_batch():
    experiment("x", batch=4).check_parts(2)
    with pytest.raises(InputError, match=r"train\.batch=2 in 2 parts: expected at least 2 images in each"):
        experiment("x", batch=2).check_parts(2)


@pytest.mark.slow
def test_two_processes_train_what_one_does_in_two_parts(tmp_path):
    """And go on with the same bits; held-out images are shared, so that these figures agree but for rounding."""
    mp.spawn(_two, ([free_port() for _ in range(3)], tmp_path), nprocs=2)
    pipeline.train_teacher(experiment(tmp_path / "one", engine=PARTS), "cpu")
    one = tables(tmp_path / "one")
    for name in ("two", "cut"):
        for table, found in tables(tmp_path / name).items():
            assert found.keys() == one[table].keys()
            assert all(torch.equal(value, one[table][key]) for key, value in found.items()), (name, table)
    ends = [read_metrics(tmp_path / name / "metrics.jsonl")[-1] for name in ("one", "two")]
    for figure in ("val/lds", "val/probe"):
        assert ends[0][figure] == pytest.approx(ends[1][figure], abs=1e-6)
