"""The one training loop: tokenizers, both generators and the judge pass through here. It knows no image and no model.

A step is a function of (weights, optimizer, seed, step, process): batches are addressed by step and all randomness is
seeded from these numbers, so a checkpoint holds no random state and a run that was killed ends with the same bits.
Called by ``tokenizer.train``, ``generators.train`` and ``metrics.judge``.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ifsq.config import InputError
from ifsq.training import checkpoint
from ifsq.training.distributed import World
from ifsq.training.ema import EMA
from ifsq.training.log import MetricsLog, Reporter
from ifsq.training.optim import OptimConfig, lr_at, make_optimizer


@dataclass(frozen=True)
class TrainConfig:
    """How long and how: the part that every model shares.

    steps           optimizer steps
    batch           examples a step, over all processes together
    seed            of the weights, the sample order and every random draw
    precision       ``fp32``, or ``bf16`` autocast
    ema             decay of the averaged weights, which are the ones evaluated and exported
    log_every       steps between lines of metrics.jsonl
    save_every      steps between checkpoints; the last step is always saved
    validate_every  steps between validations; 0 for the last step only
    keep            checkpoints kept
    workers         processes that load data; 0 loads in this one
    """

    steps: int = 1000
    batch: int = 32
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    ema: float = 0.999
    log_every: int = 50
    save_every: int = 500
    validate_every: int = 0
    keep: int = 2
    workers: int = 0
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.validate_every < 0 or self.workers < 0 or not 0 <= self.seed < 2**31:
            raise ValueError("validate_every and workers must not be negative, and seed must lie in 0..2**31-1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema}: expected a decay in [0, 1)")


@runtime_checkable
class Task(Protocol):
    """What is trained."""

    model: nn.Module

    def batches(self, start: int, world: World) -> Iterator[Any]:
        """This process's share of the batches, from step ``start`` on."""

    def loss(self, model: Any, batch: Any, rng: torch.Generator) -> dict[str, Tensor]:
        """Scalars by name; ``loss`` is minimised."""

    def validate(self, model: Any) -> dict[str, float]:
        """Held-out figures of a model, by name; called in the first process."""

    def describe(self) -> dict[str, Any]:
        """JSON from which the model can be built again; goes into every checkpoint."""


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """The run was asked to stop, and saved itself at ``step``."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}; the same command continues from there")
        self.step = step


class _Step(nn.Module):
    """One forward pass behind one module, which is what DistributedDataParallel needs in order to see it."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.task = task

    def forward(self, batch: Any, rng: torch.Generator) -> dict[str, Tensor]:
        return self.task.loss(self.model, batch, rng)


def fit(task: Task, config: TrainConfig, folder: Path, world: World, watch: Reporter, name: str) -> nn.Module:
    """Train until ``config.steps``, going on from the newest checkpoint in ``folder``; returns the averaged model.

    Raises InputError when the batch does not divide by the processes or the loss is not finite, Interrupted on SIGINT
    and SIGTERM (after saving).
    """
    check_batch(config, world)
    run = _Run(task, config, folder, world)
    watch.start(name, run.step, config.steps)
    with _stop_requests() as stop:
        for batch in task.batches(run.step, world) if run.step < config.steps else ():
            values = run.advance(batch)
            watch.advance(run.step, values)
            if world.any(stop.is_set()):
                run.save()
                raise Interrupted(run.step)
            if run.step == config.steps:
                break
    watch.finish(run.last)
    return run.ema.model


def check_batch(config: TrainConfig, world: World) -> None:
    """Raise InputError when the processes cannot share a batch equally."""
    if config.batch % world.size:
        raise InputError(f"train.batch={config.batch}: expected a multiple of the {world.size} processes")


class _Run:
    """The state of a run between two steps."""

    def __init__(self, task: Task, config: TrainConfig, folder: Path, world: World) -> None:
        self.task, self.config, self.folder, self.world = task, config, folder, world
        self.model = task.model.to(world.device)
        self.ema = EMA(self.model, config.ema)
        self.optimizer = make_optimizer(self.model, config.optim)
        folder.mkdir(parents=True, exist_ok=True)
        self.log = MetricsLog(folder / "metrics.jsonl")
        self.step, self.seconds = 0, 0.0
        self.last: dict[str, float] = {}
        self._restore()
        step = _Step(task)
        self.forward = DistributedDataParallel(step, broadcast_buffers=False) if world.size > 1 else step
        self._since = (time.perf_counter(), self.step)

    def advance(self, batch: Any) -> dict[str, float]:
        """One optimizer step; returns the figures where this step is one to log, else nothing."""
        config, step = self.config, self.step
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(step, config.steps, config.optim)
        rng = _seed_step(config.seed, step, self.world)
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            losses = self.forward(batch, rng)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.model, step)
        self.step += 1
        saves = self.step == config.steps or self.step % config.save_every == 0
        if saves:
            self._refuse_infinite(float(losses["loss"].detach()))  # before anything is overwritten
        logged = self._log(losses, norm) if self.step % config.log_every == 0 or self.step == config.steps else {}
        if self.step == config.steps or (config.validate_every and self.step % config.validate_every == 0):
            self._validate()
        if saves:
            self.save()
        return logged

    def save(self) -> None:
        """Write a checkpoint in the first process; the others wait."""
        if self.world.first:
            checkpoint.save(
                self.folder / "checkpoints",
                self.step,
                {
                    "model": self.model.state_dict(),
                    "ema": self.ema.model.state_dict(),
                    "optimizer": checkpoint.flatten_optimizer(self.optimizer),
                },
                {"seconds": self.seconds + self._elapsed(), "model": self.task.describe()},
                self.config.keep,
            )
        self.world.barrier()

    def _restore(self) -> None:
        found = checkpoint.steps_in(self.folder / "checkpoints")
        if found:
            self.step, path = found[-1]
            where = str(path)
            checkpoint.load_weights(self.model, checkpoint.load(path, "model"), where)
            checkpoint.load_weights(self.ema.model, checkpoint.load(path, "ema"), where)
            checkpoint.restore_optimizer(self.optimizer, checkpoint.load(path, "optimizer"))
            self.seconds = checkpoint.load_state(path)["seconds"]
        if self.world.first and self.log.path.exists():
            self.log.rewind(self.step)

    def _elapsed(self) -> float:
        return time.perf_counter() - self._since[0]

    def _log(self, losses: dict[str, Tensor], norm: Tensor) -> dict[str, float]:
        names = sorted(losses)
        stacked = self.world.mean(torch.stack([losses[name].detach().float() for name in names]))
        values = dict(zip(names, stacked.tolist(), strict=True))
        self._refuse_infinite(values["loss"])
        elapsed, (_, before) = self._elapsed(), self._since
        self.seconds += elapsed
        values |= {
            "grad_norm": float(norm),
            "lr": self.optimizer.param_groups[0]["lr"],
            "steps_per_second": (self.step - before) / max(elapsed, 1e-9),
            "seconds": self.seconds,
        }
        if self.world.first:
            self.log.write(self.step, values)
        self._since = (time.perf_counter(), self.step)
        self.last = values
        return values

    def _refuse_infinite(self, loss: float) -> None:
        if not math.isfinite(loss):
            lr = self.config.optim.lr
            raise InputError(f"loss is {loss} at step {self.step}; lower train.optim.lr (now {lr}), in a new folder")

    def _validate(self) -> None:
        if self.world.first:
            values = {f"val/{name}": value for name, value in self.task.validate(self.ema.model).items()}
            self.log.write(self.step, values)
            self.last = self.last | values
        self.world.barrier()


def _seed_step(seed: int, step: int, world: World) -> torch.Generator:
    """The step's generator; dropout has no generator argument, so the global one is seeded as well."""
    number = ((seed * 1_000_003 + step) * 65_537 + world.rank) % 2**63
    torch.manual_seed(number)
    return torch.Generator(world.device).manual_seed(number)


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into a flag that is looked at between steps; a second one acts as usual."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may handle signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _: Any) -> None:
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
