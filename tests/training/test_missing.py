"""Steps with examples that cannot be used: the mean over those that are left, whatever the parts and processes."""

from dataclasses import replace

import pytest
import torch
from tests.training.test_watch import run
from torch import nn

from ifsq.config import InputError
from ifsq.store import checkpoints
from ifsq.training.config import EngineConfig, TrainConfig
from ifsq.training.distributed import World
from ifsq.training.log import Silent, read_metrics
from ifsq.training.loop import Task, train
from ifsq.training.optim import OptimConfig
from ifsq.training.trainee import Opponent

BATCH, STEPS = 8, 6
CONFIG = TrainConfig(
    steps=STEPS, batch=BATCH, log_every=1, save_every=STEPS, ema=0.5, optim=OptimConfig(lr=1e-2, warmup=0)
)
HERE = World(0, 1, torch.device("cpu"))
MISSING = {0: set(), 1: {5}, 2: {0, 1}, 3: {4, 5, 6, 7}, 4: {0, 1, 2, 3, 4, 6, 7}, 5: {1, 7}}
"""By step: a single one, a part of four, of two processes, all but one."""


class Lossy(Task):
    def __init__(self, missing):
        torch.manual_seed(3)
        self.model, self.missing = nn.Linear(4, 1), missing
        self.opponent = Opponent(nn.Linear(1, 1), OptimConfig(lr=1e-2))

    def batches(self, start, world):
        for step in range(start, STEPS):
            rows = torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(step))
            size = BATCH // self.parts // world.size
            for part in range(self.parts):
                first = (world.rank * self.parts + part) * size
                there = [row for row in range(first, first + size) if row not in self.missing[step]]
                lines = tuple(f"row {row}" for row in range(first, first + size) if row not in there)
                yield rows[there] if there else 100 + rows[:1], len(there), lines

    def loss(self, model, batch, rng, step):
        rows = batch[0]
        self.made = model(rows)
        return {"loss": (self.made - rows.sum(dim=1, keepdim=True)).square().mean()}

    def opponent_loss(self, opponent, model, batch, step):
        return {"loss": (opponent(self.made.detach()) - 1).square().mean()}

    def turns(self, step):
        return True, True

    def skipped(self, batch):
        return batch[2]

    def left(self, batch):
        return batch[1]

    def validate(self, model, world):
        return {}

    def describe(self):
        return {"kind": "lossy"}


def trained(folder, parts, missing=MISSING, here=HERE):
    task = Lossy(missing)
    task.parts = parts
    train(task, replace(CONFIG, engine=EngineConfig(accumulate=parts)), folder, here, Silent(), "lossy")


def tables(folder):
    step, path = checkpoints.steps_in(folder / "checkpoints")[-1]
    assert step == STEPS
    return {name: checkpoints.at(path).load(name) for name in ("model", "ema", "optimizer", "opponent")}


def losses(folder):
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]
    names = ("loss", "opponent/loss", "grad_norm", "opponent/grad_norm")
    return torch.tensor([[row[name] for name in names] for row in rows])


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_are_no_more_than_the_order_of_a_sum(tmp_path, parts):
    trained(tmp_path / "whole", 1)
    trained(tmp_path / "parts", parts)
    torch.testing.assert_close(tables(tmp_path / "parts"), tables(tmp_path / "whole"), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses(tmp_path / "parts"), losses(tmp_path / "whole"), atol=0, rtol=1e-4)
    skipped = [(tmp_path / name / "skipped.txt").read_text() for name in ("whole", "parts")]
    assert skipped[0] == skipped[1]
    assert len(skipped[0].splitlines()) == sum(map(len, MISSING.values()))


def test_the_mean_is_over_what_is_left(tmp_path):
    """The first step's gradient, by hand: AdamW's first momentum is (1 - beta1) times the clipped gradient."""
    missing = {0: {0, 1, 2, 3, 5}}
    task = Lossy(missing)
    rows = torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(0))[[4, 6, 7]]
    loss = (task.model(rows) - rows.sum(dim=1, keepdim=True)).square().mean()
    expected = torch.autograd.grad(loss, task.model.weight)[0]
    task.parts = 4
    optim = replace(CONFIG.optim, clip=0.0, betas=(0.9, 0.999))
    config = replace(CONFIG, steps=1, optim=optim, engine=EngineConfig(accumulate=4))
    train(task, config, tmp_path, HERE, Silent(), "lossy")
    momentum = checkpoints.at(tmp_path / "checkpoints/step_1").load("optimizer")["0.exp_avg"]
    torch.testing.assert_close(momentum / 0.1, expected)


def test_two_processes_end_with_the_bits_of_one_with_twice_the_parts(tmp_path):
    trained(tmp_path / "one", 2)
    (tmp_path / "said").mkdir()
    codes, said = run(tmp_path / "said", lambda here: trained(tmp_path / "two", 1, here=here))
    assert codes == [0, 0], said
    torch.testing.assert_close(tables(tmp_path / "one"), tables(tmp_path / "two"), atol=0, rtol=0)
    torch.testing.assert_close(losses(tmp_path / "one"), losses(tmp_path / "two"), atol=0, rtol=1e-5)


NOTHING = {**MISSING, 2: set(range(BATCH))}
REFUSED = "step 3: none of its 8 examples can be used: row "


@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_with_nothing_left_is_refused(tmp_path, parts):
    with pytest.raises(InputError, match=f"^{REFUSED}0$"):
        trained(tmp_path, parts, NOTHING)


def test_what_is_refused_is_refused_in_every_process(tmp_path):
    (tmp_path / "said").mkdir()
    codes, said = run(tmp_path / "said", lambda here: trained(tmp_path / "two", 2, NOTHING, here))
    assert codes == [2, 2]
    assert said == [f"InputError: {REFUSED}{row}\n" for row in (0, 4)]
