"""The loop: exact resume, the same batches whatever the processes, and clear ends."""

import json
import math
import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from ifsq.config import InputError, Interrupted
from ifsq.store import checkpoints
from ifsq.store.files import LOCK
from ifsq.store.lock import lock
from ifsq.store.run import Run
from ifsq.training import stopping
from ifsq.training.claim import Claim
from ifsq.training.config import EngineConfig, TrainConfig
from ifsq.training.distributed import World, pick_device
from ifsq.training.ema import EMA
from ifsq.training.log import Silent, read_metrics
from ifsq.training.loop import Task, fit, train
from ifsq.training.optim import OptimConfig, lr_at, make_optimizer
from ifsq.training.trainee import Opponent

MEASURED = ("data_wait", "memory_gib")
HERE = World(0, 1, torch.device("cpu"))


class Regression(Task):
    """A task with dropout and noise, so that every kind of randomness has to be restored."""

    def __init__(self, on_step=lambda step: None):
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.Dropout(0.2), nn.Linear(16, 1))
        self.on_step = on_step

    def batches(self, start, world):
        step = start
        while True:
            self.on_step(step)
            rng = torch.Generator().manual_seed(step)
            yield torch.randn(8, 4, generator=rng)
            step += 1

    def loss(self, model, batch, rng, step):
        noise = 0.1 * torch.randn(8, 1, generator=rng)
        return {"loss": (model(batch) - batch.sum(dim=1, keepdim=True) + noise).square().mean()}

    def validate(self, model, world):
        with torch.no_grad():
            return {"zero": float(model(torch.zeros(1, 4)))}

    def describe(self):
        return {"kind": "regression"}


def config(**changes):
    return TrainConfig(**{"steps": 40, "batch": 8, "log_every": 5, "save_every": 10, "ema": 0.9, **changes})


def weights(folder):
    step, path = checkpoints.steps_in(folder / "checkpoints")[-1]
    return step, {name: checkpoints.at(path).load(name) for name in ("model", "ema", "optimizer")}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].keys() == b[name].keys()
        for key in a[name]:
            assert torch.equal(a[name][key], b[name][key]), (name, key)


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the loop may catch it."""


def kill_at(step):
    def look(now):
        if now == step:
            raise Killed

    return look


@pytest.mark.parametrize("moments", [[0], [9], [10], [11, 11, 30], [5, 17, 39]])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, moments):
    train(Regression(), config(), tmp_path / "whole", HERE, Silent(), "whole")

    for moment in moments:
        with pytest.raises(Killed):
            train(Regression(kill_at(moment)), config(), tmp_path / "cut", HERE, Silent(), "cut")
    model = train(Regression(), config(), tmp_path / "cut", HERE, Silent(), "cut")
    step, whole = weights(tmp_path / "whole")
    assert step == 40
    assert_same(whole, weights(tmp_path / "cut")[1])
    assert_same({"ema": model.state_dict()}, {"ema": whole["ema"]})
    timeless = [
        [
            {k: v for k, v in row.items() if "second" not in k and k not in MEASURED}
            for row in read_metrics(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "cut")
    ]
    assert timeless[0] == timeless[1]
    assert [row["step"] for row in timeless[0] if "loss" in row] == list(range(5, 41, 5))


class Gappy(Regression):
    """Misses an example in every seventh step."""

    def batches(self, start, world):
        for step, batch in enumerate(super().batches(start, world), start):
            self.missing = (f"image {step}.png cannot be read: broken",) if step % 7 == 3 else ()
            yield batch

    def skipped(self, batch):
        return self.missing


@pytest.mark.parametrize(("moments", "log_every"), [([], 5), ([9], 5), ([12, 38], 5), ([12, 38], 20)])
def test_what_was_skipped_is_named_once_for_each_step_also_after_kills(tmp_path, moments, log_every):
    for moment in moments:
        with pytest.raises(Killed):
            train(Gappy(kill_at(moment)), config(log_every=log_every), tmp_path, HERE, Silent(), "run")
    train(Gappy(), config(log_every=log_every), tmp_path, HERE, Silent(), "run")
    steps = [step for step in range(40) if step % 7 == 3]
    lines = [f"{step + 1}\timage {step}.png cannot be read: broken" for step in steps]
    assert (tmp_path / "skipped.txt").read_text().splitlines() == lines
    told = {row["step"]: row.get("skipped", 0) for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row}
    assert told == {row: sum(step < row for step in steps) for row in range(log_every, 41, log_every)}


def test_a_run_that_skipped_nothing_says_nothing_of_it(tmp_path):
    train(Regression(), config(), tmp_path, HERE, Silent(), "run")
    assert not (tmp_path / "skipped.txt").exists()
    assert not any("skipped" in row for row in read_metrics(tmp_path / "metrics.jsonl"))


@pytest.fixture
def ordinary():
    """The signals that nobody has caught before: here, they are written down."""
    came: list[int] = []
    asks = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: came.append(number)) for number in asks]
    yield came
    for number, handler in zip(asks, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("ordinary")
def test_a_request_to_stop_saves_and_says_so(tmp_path):
    task = Regression(lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 13 else None)
    with pytest.raises(Interrupted, match="stopped at step 14; the same command continues"):
        train(task, config(), tmp_path / "cut", HERE, Silent(), "cut")
    assert weights(tmp_path / "cut")[0] == 14
    train(Regression(), config(), tmp_path / "cut", HERE, Silent(), "cut")
    train(Regression(), config(), tmp_path / "whole", HERE, Silent(), "whole")
    assert_same(weights(tmp_path / "whole")[1], weights(tmp_path / "cut")[1])


@pytest.mark.parametrize("asked", ["here", "elsewhere"])
def test_requests_to_stop_are_one_for_a_moment_and_then_act_as_usual(tmp_path, monkeypatch, ordinary, asked):
    """As of a terminal and torchrun, or of a scheduler that has told another process first."""
    monkeypatch.setattr(stopping, "SAME_REQUEST", 0.2)
    stop = (lambda step: os.kill(os.getpid(), signal.SIGTERM)) if asked == "here" else (lambda step: None)
    here = HERE if asked == "here" else AskedElsewhere(0, 1, torch.device("cpu"))
    with pytest.raises(Interrupted):
        train(Regression(stop), config(), tmp_path, here, Silent(), "run")
    os.kill(os.getpid(), signal.SIGTERM)
    assert not ordinary
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)
    assert ordinary == [signal.SIGTERM]
    os.kill(os.getpid(), signal.SIGTERM)
    assert len(ordinary) == 2


@pytest.mark.parametrize("how", ["ends", "fails"])
def test_a_run_that_was_not_asked_to_stop_leaves_signals_as_they_were(tmp_path, ordinary, how):
    before = signal.getsignal(signal.SIGTERM)
    if how == "ends":
        train(Regression(), config(), tmp_path, HERE, Silent(), "run")
    else:
        with pytest.raises(InputError, match="loss is nan"):
            train(Regression(), config(optim=OptimConfig(lr=1e30)), tmp_path, HERE, Silent(), "run")
    assert signal.getsignal(signal.SIGTERM) is before
    assert not ordinary


class AskedElsewhere(World):
    """Another process of the run has been asked to stop."""

    def any(self, flag):
        return True


def test_runs_outside_the_main_thread(tmp_path):
    thread = threading.Thread(target=train, args=(Regression(), config(), tmp_path, HERE, Silent(), "thread"))
    thread.start()
    thread.join()
    assert weights(tmp_path)[0] == 40


def test_a_finished_run_is_left_alone(tmp_path):
    train(Regression(), config(), tmp_path, HERE, Silent(), "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")}
    train(Regression(), config(), tmp_path, HERE, Silent(), "run")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")} == before


def test_keeps_the_newest_checkpoints(tmp_path):
    train(Regression(), config(keep=2), tmp_path, HERE, Silent(), "run")
    assert [step for step, _ in checkpoints.steps_in(tmp_path / "checkpoints")] == [30, 40]
    assert not list((tmp_path / "checkpoints").glob(".partial*"))


def test_the_loss_falls_and_the_average_is_used_for_validation(tmp_path):
    seen = []
    task = Regression()
    task.validate = lambda model, world: seen.append(model) or {}
    ema = train(task, config(steps=200, optim=OptimConfig(lr=1e-2)), tmp_path, HERE, Silent(), "run")
    losses = [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < 0.3 * losses[0]
    assert seen == [ema]
    assert not ema.training


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    task = Regression()
    task.loss = lambda model, batch, rng, step: {"loss": model(batch).mean() * math.inf}
    with pytest.raises(InputError, match=r"loss is (nan|inf|-inf) at step 5; lower train.optim.lr \(now 0.001\)"):
        train(task, config(), tmp_path, HERE, Silent(), "run")


def test_a_batch_must_divide_by_the_processes(tmp_path):
    with pytest.raises(InputError, match=r"train.batch=8: expected a multiple of the 3 processes"):
        train(Regression(), config(), tmp_path, World(0, 3, torch.device("cpu")), Silent(), "run")


class Told(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path):
    train(Regression(), config(), tmp_path, HERE, Silent(), "run")
    path = tmp_path / "checkpoints" / "step_40"
    content = bytearray((path / "optimizer.safetensors").read_bytes())
    content[-3] ^= 1
    (path / "optimizer.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"optimizer\.safetensors: is damaged .*; remove .*step_40 to use the one"):
        train(Regression(), config(), tmp_path, HERE, Silent(), "run")


@pytest.mark.parametrize("what", ["state.json", "model.safetensors", "all of it"])
def test_a_run_goes_on_from_the_checkpoint_before_half_a_one(tmp_path, what):
    """And ends with the bits of one that nothing happened to."""
    train(Regression(), config(), tmp_path / "whole", HERE, Silent(), "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for file in (tmp_path / "cut" / "checkpoints" / "step_40").iterdir():
        if what in (file.name, "all of it"):
            file.unlink()
    told = Told()
    train(Regression(), config(), tmp_path / "cut", HERE, told, "cut")
    assert [line.partition(" (")[0] for line in told.lines] == [
        f"{tmp_path / 'cut/checkpoints/step_40'}: is unfinished"
    ]
    assert_same(weights(tmp_path / "whole")[1], weights(tmp_path / "cut")[1])
    assert (tmp_path / "cut" / "checkpoints" / "unfinished_step_40").is_dir()


def test_a_checkpoint_of_before_goes_on_and_it_is_said(tmp_path):
    train(Regression(), config(), tmp_path / "whole", HERE, Silent(), "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "old")
    shutil.rmtree(tmp_path / "old" / "checkpoints" / "step_40")
    file = tmp_path / "old" / "checkpoints" / "step_30" / "state.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps({name: state[name] for name in ("step", "seconds", "model", "scaler")}))
    told = Told()
    train(Regression(), config(), tmp_path / "old", HERE, told, "old")
    assert len(told.lines) == 1
    assert "step_30: was saved before checkpoints kept the SHA-256 of their files" in told.lines[0]
    assert_same(weights(tmp_path / "whole")[1], weights(tmp_path / "old")[1])


OFTEN = {"keep": 5, "keep_every": 20, "log_every": 3, "save_every": 4, "validate_every": 2}


@pytest.mark.parametrize("option", OFTEN)
def test_how_often_is_saved_and_said_changes_no_weight(tmp_path, option):
    train(Regression(), config(), tmp_path / "whole", HERE, Silent(), "whole")
    with pytest.raises(Killed):
        train(Regression(kill_at(25)), config(), tmp_path / "cut", HERE, Silent(), "cut")
    told = Told()
    train(Regression(), config(**{option: OFTEN[option]}), tmp_path / "cut", HERE, told, "cut")
    assert not told.lines
    assert_same(weights(tmp_path / "whole")[1], weights(tmp_path / "cut")[1])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_more_steps_on_a_finished_run(tmp_path, schedule):
    """Where the learning rate knows nothing of the end, it ends as if it had been planned so."""
    flat = OptimConfig(schedule=schedule, warmup=5)
    train(Regression(), config(steps=20, optim=flat), tmp_path / "longer", HERE, Silent(), "longer")
    assert weights(tmp_path / "longer")[0] == 20
    told = Told()
    train(Regression(), config(steps=40, optim=flat), tmp_path / "longer", HERE, told, "longer")
    train(Regression(), config(steps=40, optim=flat), tmp_path / "whole", HERE, Silent(), "whole")
    (step, longer), (_, whole) = weights(tmp_path / "longer"), weights(tmp_path / "whole")
    assert step == 40
    if schedule == "constant":
        assert not told.lines
        assert_same(whole, longer)
    else:
        assert told.lines == [
            "train.steps=40, 20 until now: from here on the cosine schedule is that of 40 steps (lr 0.000631 in place"
            " of 5e-05); a run of 40 steps from its start ends elsewhere"
        ]
        assert not torch.equal(whole["ema"]["0.weight"], longer["ema"]["0.weight"])
    again = Told()
    train(Regression(), config(steps=40, optim=flat), tmp_path / "longer", HERE, again, "longer")
    assert not again.lines


def test_an_opponent_that_has_not_begun_has_no_state(tmp_path):
    """And one that has begun must have it."""

    class Late(Regression):
        def __init__(self):
            super().__init__()
            self.opponent = Opponent(nn.Linear(1, 1), OptimConfig())

        def turns(self, step):
            return True, step >= 25

        def opponent_loss(self, opponent, model, batch, step):
            return {"loss": opponent(batch[:, :1]).square().mean()}

    train(Late(), config(), tmp_path / "whole", HERE, Silent(), "whole")
    train(Late(), config(steps=20), tmp_path / "cut", HERE, Silent(), "cut")
    found = checkpoints.newest(tmp_path / "cut" / "checkpoints", None).checkpoint
    assert found.load("opponent_optimizer") == {}
    train(Late(), config(steps=30), tmp_path / "cut", HERE, Silent(), "cut")
    assert checkpoints.newest(tmp_path / "cut" / "checkpoints", None).checkpoint.load("opponent_optimizer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps=0: expected at least 1"),
        ({"ema": 1.0}, "ema=1.0: expected a decay in"),
        ({"seed": -1}, "seed must lie in"),
        ({"batch": 0}, "batch=0"),
    ],
)
def test_bad_training_configs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        config(**change)


def test_ema_is_the_weighted_sum_of_the_past():
    model = nn.Linear(1, 1, bias=False)
    model.register_buffer("count", torch.tensor(0))
    ema = EMA(model, 0.9)
    expected = model.weight.item()
    for step in range(300):
        with torch.no_grad():
            model.weight.fill_(float(step))
            model.count.fill_(step)
        ema.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert ema.model.weight.item() == pytest.approx(expected, rel=1e-5)
    assert ema.model.count.item() == 299
    assert ema.model.count.dtype == torch.int64


def test_learning_rate_schedule():
    flat = OptimConfig(lr=2.0, warmup=4, schedule="constant")
    assert [lr_at(step, 10, flat) for step in (0, 1, 3, 4, 9)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    cosine = OptimConfig(lr=2.0, warmup=0, schedule="cosine", final=0.1)
    assert lr_at(0, 100, cosine) == 2.0
    assert lr_at(50, 100, cosine) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert lr_at(100, 100, cosine) == pytest.approx(0.2)


def test_weight_decay_spares_norms_and_biases():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    decayed, spared = make_optimizer(model, OptimConfig(weight_decay=0.5)).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(3, 3)]
    assert decayed["weight_decay"] == 0.5
    assert len(spared["params"]) == 3
    assert spared["weight_decay"] == 0


def test_devices_that_are_absent_are_named():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="device 'tpu': expected auto, cpu, cuda or mps"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="has no CUDA device"):
            pick_device("cuda")


def test_half_precision_keeps_its_loss_scale(tmp_path):
    """The scale grows and falls with the gradients; it is state like any other."""
    half = config(precision="fp16", steps=20)
    train(Regression(), half, tmp_path / "whole", HERE, Silent(), "whole")
    state = checkpoints.at(checkpoints.steps_in(tmp_path / "whole" / "checkpoints")[-1][1]).state
    assert state["scaler"]["scale"] > 0
    assert state["scaler"]["_growth_tracker"] > 0

    def kill(step):
        if step == 13:
            raise Killed

    with pytest.raises(Killed):
        train(Regression(kill), half, tmp_path / "cut", HERE, Silent(), "cut")
    train(Regression(), half, tmp_path / "cut", HERE, Silent(), "cut")
    assert_same(weights(tmp_path / "whole")[1], weights(tmp_path / "cut")[1])
    losses = [row["loss"] for row in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < losses[0]


def test_parts_add_up_to_the_batch(tmp_path):
    """Without dropout and noise, two halves give the gradient of the whole."""

    class Plain(Regression):
        def __init__(self, parts):
            super().__init__()
            self.model, self.parts = nn.Linear(4, 1), parts
            torch.manual_seed(0)
            nn.init.normal_(self.model.weight)

        def batches(self, start, world):
            for batch in super().batches(start, world):
                yield from batch.split(8 // self.parts)

        def loss(self, model, batch, rng, step):
            return {"loss": (model(batch) - batch.sum(dim=1, keepdim=True)).square().mean()}

    for parts in (1, 4):
        engine = EngineConfig(accumulate=parts)
        train(Plain(parts), config(engine=engine), tmp_path / str(parts), HERE, Silent(), "run")
    whole, pieces = (weights(tmp_path / str(parts))[1]["model"] for parts in (1, 4))
    for key, value in whole.items():
        torch.testing.assert_close(pieces[key], value, atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match=r"train.batch=8: expected a multiple of the 1 processes times accumulate=3"):
        train(Plain(1), config(engine=EngineConfig(accumulate=3)), tmp_path / "3", HERE, Silent(), "run")


def test_the_compiled_parts_are_those_the_task_names(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: asked.append(self))
    task = Regression()
    task.compiled = lambda: [task.model[0]]
    train(task, config(steps=1), tmp_path / "no", HERE, Silent(), "run")
    assert not asked
    train(task, config(steps=1, engine=EngineConfig(compile=True)), tmp_path / "yes", HERE, Silent(), "run")
    assert asked == [task.model[0]]


class Twice(nn.Linear):
    recompute = False


def test_blocks_run_again_where_the_engine_says_so(tmp_path):
    asked = config(steps=1, engine=EngineConfig(recompute=True))
    with pytest.raises(InputError, match=r"engine\.recompute=true: this model has no blocks that can run again"):
        train(Regression(), asked, tmp_path / "none", HERE, Silent(), "run")
    task = Regression()
    task.model[0].__class__ = Twice
    train(task, config(steps=1), tmp_path / "no", HERE, Silent(), "run")
    assert not task.model[0].recompute
    train(task, asked, tmp_path / "yes", HERE, Silent(), "run")
    assert task.model[0].recompute


@dataclass(frozen=True)
class Experiment:
    train: TrainConfig


def test_a_run_claims_its_folder_before_it_says_or_writes_anything(tmp_path):
    folder, told = tmp_path / "run", Told()
    claim = Claim(folder, "regression", Experiment(config()), "of these data")
    fit(Regression(), config(), claim, HERE, told, notes=["data: 8 rows"])
    run = Run.open(folder)
    assert (run.kind, run.data, run.step) == ("regression", "of these data", 40)
    assert run.experiment(Experiment) == claim.experiment
    assert run.newest.checkpoint.state["run"] == run.config["run"]
    assert told.lines[0] == "data: 8 rows"
    with pytest.raises(InputError, match="holds another run"):
        fit(Regression(), config(), replace(claim, kind="other"), HERE, told, notes=["never said"])
    assert "never said" not in told.lines
    with lock(folder / LOCK, pytest.fail), pytest.raises(InputError, match="is at work there"):
        fit(Regression(), config(), claim, HERE, told, notes=["never said"])
    assert "never said" not in told.lines
