"""Two gloo processes against one: parts of a batch, sharded weights, checkpoints that any number of processes reads."""

import contextlib
import os
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.ports import free_port
from torch import nn

from ifsq.config import InputError, Interrupted
from ifsq.store import checkpoints
from ifsq.training.config import EngineConfig, TrainConfig
from ifsq.training.distributed import SMALL, from_first, join
from ifsq.training.log import Silent, read_metrics
from ifsq.training.loop import Opponent, Task, train
from ifsq.training.optim import OptimConfig

BATCH = 8
CONFIG = TrainConfig(steps=12, batch=BATCH, log_every=3, save_every=4, ema=0.9, keep=9, optim=OptimConfig(lr=1e-2))


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Dropout(0.2)) for _ in range(2))
        self.out = nn.Linear(4, 1)
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.out(x)


class Game(Task):
    """A regression against a critic with running statistics of its own."""

    def __init__(self, parts, stop_at=None):
        torch.manual_seed(3)
        self.model = Blocks()
        self.opponent = Opponent(
            nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), OptimConfig(lr=1e-2)
        )
        self.parts, self.stop_at = parts, stop_at
        self.seen = []

    def batches(self, start, world):
        step, size = start, BATCH // (world.size * self.parts)
        while True:
            if step == self.stop_at:
                raise Interrupted(step)
            rows = torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(step))
            for part in range(self.parts):
                first = (world.rank * self.parts + part) * size
                yield rows[first : first + size]
            step += 1

    def turns(self, step):
        return True, step >= 2

    def loss(self, model, batch, rng, step):
        made = model(batch) + 0.1 * torch.randn(len(batch), 1, generator=rng)
        self.made = made.detach()
        return {"loss": (made - batch.sum(dim=1, keepdim=True)).square().mean()}

    def opponent_loss(self, opponent, model, batch, step):
        return {"loss": (opponent(self.made) - opponent(batch[:, :1])).mean().square()}

    def validate(self, model, world):
        with torch.no_grad():
            return {"zero": float(model(torch.zeros(1, 4)))}

    def describe(self):
        return {"kind": "game"}


class Eye:
    """Each process looks at its own row, so that whoever asks another process for weights meanwhile waits for ever."""

    def picture(self, model, world):
        return np.zeros((1, 1, 3), np.uint8)

    def figures(self, model, world):
        found = {}
        for row in range(world.rank, 3, world.size):
            with torch.no_grad():
                found[f"row {row}"] = float(model(torch.full((1, 4), float(row))))
        return {name: value for share in world.gather(found) for name, value in share.items()}


def _process(rank, port, folder, config, stop_at):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    with join("cpu") as here:
        task = Game(config.engine.accumulate, stop_at)
        task.observer = Eye()
        with contextlib.suppress(Interrupted):
            train(task, config, folder, here, Silent(), "two")
        running = torch.cat([b.reshape(-1) for b in task.opponent.module.buffers() if b.is_floating_point()])
        theirs = here.gather(running)
        assert torch.equal(theirs[0], theirs[1]), "running statistics drift apart"


def spawn(process, *given):
    port = free_port()
    torch.multiprocessing.spawn(process, (port, *given), nprocs=2)


def _gathers(rank, port, _):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    at_once, gather = [], torch.distributed.all_gather_object

    def noted(values, value):
        at_once.append(len(pickle.dumps(value)))
        gather(values, value)

    torch.distributed.all_gather_object = noted
    with join("cpu") as here:
        for counts in ((3, 4), (3, 2 * SMALL), (2 * SMALL, 5), (SMALL, 3 * SMALL)):
            found = here.gather({"rank": rank, "rows": torch.arange(counts[rank], dtype=torch.uint8)})
            assert [one["rank"] for one in found] == [0, 1]
            for one, count in zip(found, counts, strict=True):
                assert torch.equal(one["rows"], torch.arange(count, dtype=torch.uint8))
        assert torch.equal(from_first(here, lambda: torch.ones(SMALL)), torch.ones(SMALL))
        assert max(at_once) < 2 * SMALL, "torch would make room for it in every process"


def test_large_values_are_told_one_after_another(tmp_path):
    spawn(_gathers, tmp_path)


def two(folder, config, stop_at=None):
    spawn(_process, folder, config, stop_at)


def one(folder, config, stop_at=None):
    with join("cpu") as here, contextlib.suppress(Interrupted):
        train(Game(config.engine.accumulate, stop_at), config, folder, here, Silent(), "one")


def tables(folder):
    step, path = checkpoints.steps_in(folder / "checkpoints")[-1]
    assert step == 12
    names = ("model", "ema", "optimizer", "opponent", "opponent_optimizer")
    return {name: checkpoints.at(path).load(name) for name in names}


def assert_same(a, b, **close):
    for name in a:
        assert a[name].keys() == b[name].keys()
        for key, value in a[name].items():
            torch.testing.assert_close(b[name][key], value, msg=f"{name} {key}", **(close or {"atol": 0, "rtol": 0}))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The run of two processes, one part each."""
    folder = tmp_path_factory.mktemp("pair") / "run"
    two(folder, CONFIG)
    return folder


def test_two_processes_write_a_checkpoint_in_two_files_of_whole_tensors(pair):
    files = sorted(path.name for path in checkpoints.steps_in(pair / "checkpoints")[-1][1].glob("model*"))
    assert files == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    shapes = {key: value.shape for key, value in tables(pair)["model"].items()}
    assert shapes == {key: value.shape for key, value in Blocks().state_dict().items()}


def test_one_process_with_two_parts_ends_with_the_bits_of_two_processes(pair, tmp_path):
    """But for the critic's running statistics, which two processes average and one lets run on."""
    one(tmp_path, replace(CONFIG, engine=EngineConfig(accumulate=2)))
    alone, both = tables(tmp_path), tables(pair)
    for name in ("model", "ema", "optimizer"):
        assert_same({name: alone[name]}, {name: both[name]})
    running = {key for key in alone["opponent"] if "running" in key or "num_batches" in key}
    weights = {key: value for key, value in alone["opponent"].items() if key not in running}
    assert_same({"opponent": weights}, {"opponent": {key: both["opponent"][key] for key in weights}})
    assert running


def _refused(rank, port, folder, file):
    with pytest.raises(InputError, match=rf"{file}\.safetensors: is damaged or of another checkpoint"):
        _process(rank, port, folder, CONFIG, None)


@pytest.mark.parametrize("file", ["optimizer-00001-of-00002", "ema-00002-of-00002"])
def test_what_one_process_finds_damaged_all_refuse(pair, tmp_path, file):
    """Each takes the SHA-256 of its share of the files."""
    shutil.copytree(pair, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step_12" / f"{file}.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 16
    path.write_bytes(content)
    spawn(_refused, tmp_path / "run", file)
    with pytest.raises(InputError, match=rf"{file}\.safetensors: is damaged"):
        one(tmp_path / "run", replace(CONFIG, engine=EngineConfig(accumulate=2)))


def test_a_run_goes_on_with_fewer_processes_and_the_same_bits(pair, tmp_path):
    two(tmp_path, CONFIG, stop_at=6)
    assert checkpoints.steps_in(tmp_path / "checkpoints")[-1][0] == 4
    one(tmp_path, replace(CONFIG, engine=EngineConfig(accumulate=2)))
    resumed, whole = tables(tmp_path), tables(pair)
    for name in ("model", "ema", "optimizer"):
        assert_same({name: whole[name]}, {name: resumed[name]})


def test_two_processes_that_were_stopped_end_with_the_same_bits(pair, tmp_path):
    two(tmp_path, CONFIG, stop_at=6)
    two(tmp_path, CONFIG)
    assert_same(tables(pair), tables(tmp_path))


def test_sharded_weights_train_like_replicated_ones_and_resume(pair, tmp_path):
    sharded = replace(CONFIG, engine=EngineConfig(sharding="shard"))
    two(tmp_path / "whole", sharded)
    assert_same(tables(pair), tables(tmp_path / "whole"), atol=1e-5, rtol=1e-4)
    losses = [
        [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]
        for folder in (pair, tmp_path / "whole")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    looked_at = replace(sharded, sample_every=6, evaluate_every=6)
    two(tmp_path / "cut", looked_at, stop_at=6)
    two(tmp_path / "cut", looked_at)
    assert_same(tables(tmp_path / "whole"), tables(tmp_path / "cut"))
    _seen_is_what_is_saved(tmp_path / "cut")


def _seen_is_what_is_saved(folder):
    """The figures that two processes took at the last step, against the averaged weights of its checkpoint."""
    model = Blocks().eval()
    model.load_state_dict(tables(folder)["ema"])
    seen = [row for row in read_metrics(folder / "metrics.jsonl") if "evaluate/row 0" in row]
    assert [row["step"] for row in seen] == [6, 12]
    with torch.no_grad():
        saved = [float(model(torch.full((1, 4), float(row)))) for row in range(3)]
    assert [seen[-1][f"evaluate/row {row}"] for row in range(3)] == pytest.approx(saved, rel=1e-5)
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["step_12.png", "step_6.png"]


def _frozen(rank, port, other, folder, config):
    for place, sharding in ((port, "replicate"), (other, "shard")):  # at one port a process may meet the run before
        _process(rank, place, folder / sharding, replace(config, engine=EngineConfig(sharding=sharding)), None)


def test_two_processes_leave_frozen_parts_as_they_are_replicated_or_sharded(tmp_path):
    spawn(_frozen, free_port(), tmp_path, replace(CONFIG, freeze=("blocks.0", "out.bias")))
    before = Game(1).model.state_dict()
    for sharding in ("replicate", "shard"):
        after = tables(tmp_path / sharding)
        for key, value in before.items():
            frozen = key.startswith("blocks.0.") or key in ("out.bias", "count")
            for name in ("model", "ema"):
                assert torch.equal(after[name][key], value) == frozen, (sharding, name, key)
        assert {key.partition(".")[0] for key in after["optimizer"]} == set("01234")


def test_two_processes_move_matrices_by_muon_with_the_bits_of_one(tmp_path):
    muon = replace(CONFIG, optim=OptimConfig(kind="muon", lr=1e-2, muon_lr=0.05, weight_decay=0.1))
    two(tmp_path / "two", muon)
    one(tmp_path / "one", replace(muon, engine=EngineConfig(accumulate=2)))
    both, alone = tables(tmp_path / "two"), tables(tmp_path / "one")
    for name in ("model", "ema", "optimizer"):
        assert_same({name: alone[name]}, {name: both[name]})
    assert sum(key.endswith("momentum_buffer") for key in both["optimizer"]) == 2, "the matrices of two blocks"
