"""The one training loop: tokenizers, both generators and the judge pass through here. It knows no image and no model.

A step is a function of (weights, optimizer, seed, step, part of the batch): batches are addressed by step and all
randomness is seeded from these numbers, so a checkpoint holds no random state and a run that was killed ends with the
same bits.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ifsq.config import InputError, Interrupted
from ifsq.store.checkpoints import Checkpoint
from ifsq.store.weights import load_weights
from ifsq.training import checkpoint, parallel
from ifsq.training.claim import Claim, claimed
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World
from ifsq.training.ema import EMA
from ifsq.training.log import MetricsLog, Reporter, SkippedLog, memory_gib
from ifsq.training.observer import Observer, Observing
from ifsq.training.optim import new_length
from ifsq.training.parts import check_frozen, freeze
from ifsq.training.preparing import all_compute_bfloat16, check_batch
from ifsq.training.sinks import open_sinks
from ifsq.training.stopping import stop_requests
from ifsq.training.trainee import Opponent, Trainee
from ifsq.training.utilization import Utilization, Work


class Task(ABC):
    """What is trained.

    model     averaged, evaluated and exported
    companion  trained with it on the same loss, and saved for exact resume; neither averaged nor exported
    opponent  None where nothing is trained beside it
    average   of the model, which training moves: told before the first step
    observer  looks at the model while it is trained, see `Observer`; None where nobody does
    annealed  what follows the share of the steps that are behind, beside the learning rate; in words
    """

    model: nn.Module
    companion: nn.Module | None = None
    opponent: Opponent | None = None
    average: Any = None
    observer: Observer | None = None
    annealed: Sequence[str] = ()

    @abstractmethod
    def batches(self, start: int, world: World) -> Generator[Any, None, None]:
        """This process's share of the batches from step ``start`` on, in ``accumulate`` equal parts a step.

        Closed when training ends, however it does; processes that load end with it.
        """

    @abstractmethod
    def loss(self, model: Any, batch: Any, rng: torch.Generator, step: int) -> dict[str, Tensor]:
        """Scalars by name; ``loss`` is minimised."""

    @abstractmethod
    def validate(self, model: Any, world: World) -> dict[str, float]:
        """Held-out figures of a model, by name. Called in every process of ``world``, and equal in all of them."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON from which the model can be built again; goes into every checkpoint."""

    def skipped(self, batch: Any) -> tuple[str, ...]:
        """A line about each example that is missing in a part of a batch because it could not be read."""
        return ()

    def left(self, batch: Any) -> int | None:
        """Examples that count in a part of a batch; None where none is ever missing.

        Of a part with 0, others stand in for form's sake: its gradient counts nothing.
        """
        return None

    def turns(self, step: int) -> tuple[bool, bool]:
        """Whether the model and whether the opponent is trained at this step."""
        return True, False

    def opponent_loss(self, opponent: Any, model: Any, batch: Any, step: int) -> dict[str, Tensor]:
        """Scalars by name, ``loss`` is minimised. After `loss` on the same part where the model has its turn."""
        raise NotImplementedError

    def work(self) -> Work | None:
        """What an example asks of the machine, for the log; None where nobody counts it."""
        return None

    def compiled(self) -> Iterable[nn.Module]:
        """Modules whose forward torch.compile takes where ``engine.compile`` asks for it."""
        return ()


def fit(
    task: Task, config: TrainConfig, claim: Claim, world: World, reporter: Reporter,
    *, notes: Iterable[str] = (), wait: bool = False,
) -> nn.Module:  # fmt: skip
    """Claim the run's folder and train there until ``config.steps``; returns the averaged model.

    notes  said once the folder is the run's own
    wait   for another process that is at work in the folder; else it is refused

    Raises InputError as `check_frozen`, `claimed` and `train`, Interrupted as `train`.
    """
    check_frozen(task.model, config.freeze)
    with claimed(claim, world, reporter.say, wait=wait) as ours:
        for note in notes:
            reporter.say(note)
        return train(task, config, claim.folder, world, reporter, claim.kind, ours.config["run"], ours.check)


def train(
    task: Task, config: TrainConfig, folder: Path, world: World, reporter: Reporter, name: str,
    run: str | None = None, check: Callable[[], None] = lambda: None,
) -> nn.Module:  # fmt: skip
    """Train until ``config.steps``, going on from the newest checkpoint in ``folder``; returns the averaged model.

    name   what the reporter calls the training
    run    identity of the run that the checkpoints are of
    check  made in the first process before anything is written: raises InputError where the folder is no longer ours

    Raises InputError when the batch does not divide by the processes or the loss is not finite, Interrupted on SIGINT
    and SIGTERM (after saving).
    """
    check_batch(config, world)
    config = config.with_precision(all_compute_bfloat16(world))
    training = _Training(task, config, folder, world, run, check)
    reporter.start(name, training.step, config.steps)
    for note in filter(None, training.notes):
        reporter.say(note)
    try:
        if config.init and not training.step:
            training.measure_start()
        with stop_requests() as stop, closing(task.batches(training.step, world)) as batches:
            while training.step < config.steps:
                values = training.advance(batches)
                reporter.advance(training.step, values)
                if world.any(stop.is_set()):
                    training.save()
                    training.writer.wait()
                    raise Interrupted(training.step)
        training.writer.wait()
    finally:
        training.close()
    if missing := training.skipped.count:
        reporter.say(f"{name}: {missing} times an example could not be read; {training.skipped.path} names them")
    reporter.finish(training.last)
    return training.ema.model


class _Training:
    """The state of a training between two steps."""

    def __init__(
        self, task: Task, config: TrainConfig, folder: Path, world: World, run: str | None, check: Callable[[], None]
    ) -> None:
        self.task, self.config, self.folder, self.world, self.check = task, config, folder, world, check
        model, companion = task.model.to(world.device), task.companion
        if companion is not None:
            companion.to(world.device)
        self.speed = Utilization.of(task.work(), config.precision, config.engine, world)
        still = freeze(model, config.freeze)
        self.ema = EMA(model, config.ema)
        self.observing = Observing(task.observer, config, folder, world)
        sharded = config.engine.sharding == "shard" and world.size > 1
        self.bare = parallel.without_weights(self.ema.model) if sharded and self.observing.wanted else None
        if config.engine.recompute:
            parallel.recompute(model)
        if sharded:
            parallel.shard(model, world)
            parallel.shard(self.ema.model, world)
            if companion is not None:
                parallel.shard(companion, world)
        if config.engine.compile:
            for part in task.compiled():
                part.compile()
        self.main = Trainee(
            model, task.loss, config.optim, config, world, companion, replicated=not sharded, still=still
        )
        task.average = self.ema.model
        self.other: Trainee | None = None
        self.other_name = "" if task.opponent is None else task.opponent.name
        if task.opponent is not None:
            module = task.opponent.module.to(world.device)
            self.other = Trainee(module, self._opponent_loss, task.opponent.optim, config, world)
        # A sharded model needs every process in each forward, so validation is not split over them.
        self.validates = replace(world, rank=0, size=1) if sharded else world
        folder.mkdir(parents=True, exist_ok=True)
        self.writer = checkpoint.Writer(folder / "checkpoints", world, config.keep, config.keep_every, run)
        self.notes: list[str] = []
        self.log = MetricsLog(folder / "metrics.jsonl")
        self.skipped = SkippedLog(folder / "skipped.txt")
        self.step, self.seconds, self.waited = 0, 0.0, 0.0
        self.last: dict[str, float] = {}
        self.losses: dict[str, Tensor] = {}
        self.share = 1.0  # of this process's examples, in the latest step
        self._restore()
        self.sinks = open_sinks(config.engine.loggers, folder, self.step) if world.first else []
        self._since = (time.perf_counter(), self.step)

    def advance(self, batches: Iterator[Any]) -> dict[str, float]:
        """One optimizer step; returns the figures where this step is one to log or to look at, else nothing."""
        config = self.config
        self._train(batches)
        self.step += 1
        self.writer.check()
        saves = self.step == config.steps or self.step % config.save_every == 0
        if saves or self.observing.due(self.step):
            self._refuse_infinite(self.losses)  # before anything is overwritten
        logged = self._log() if self.step % config.log_every == 0 or self.step == config.steps else {}
        if self.observing.due(self.step):
            logged = logged | self._observe()
        began = time.perf_counter()
        if self.step == config.steps or (config.validate_every and self.step % config.validate_every == 0):
            self._validate()
        if saves:
            self.save()
        paused = time.perf_counter() - began  # no time of the steps
        self.seconds += paused
        self._since = (self._since[0] + paused, self._since[1])
        return logged

    def measure_start(self) -> None:
        """Log the held-out figures of the weights that the run begins with, and what is looked at of them."""
        if self.observing.due(self.step):
            self._observe()
        self._validate()
        self._since = (time.perf_counter(), self.step)

    def save(self) -> None:
        """Begin to write a checkpoint."""
        if self.world.first:
            self.check()
        self.skipped.write(self.world)
        tables = {"model": self.main.module.state_dict(), "ema": self.ema.model.state_dict()}
        if self.task.companion is not None:
            tables["companion"] = self.task.companion.state_dict()
        tables["optimizer"] = checkpoint.flatten_optimizer(self.main.optimizer)
        scales = {"scaler": self.main.scaler.state_dict()}
        if self.other is not None:
            tables["opponent"] = self.other.module.state_dict()
            tables["opponent_optimizer"] = checkpoint.flatten_optimizer(self.other.optimizer)
            scales["opponent_scaler"] = self.other.scaler.state_dict()
        seconds = self.seconds + self._elapsed()
        state = {"steps": self.config.steps, "seconds": seconds, "model": self.task.describe(), **scales}
        self.writer.save(self.step, tables, state)

    def close(self) -> None:
        """Let what is being written end."""
        self.writer.close()
        for sink in self.sinks:
            sink.close()

    def _train(self, batches: Iterator[Any]) -> None:
        """The step's gradients, part by part, and the move: along the mean over all examples that are left."""
        main_plays, other_plays = self.task.turns(self.step)
        parts, added, shares = self.config.engine.accumulate, [], []
        missing: list[str] = []
        for part in range(parts):
            batch, last = self._next(batches), part == parts - 1
            missing += self.task.skipped(batch)
            rng = _seed_step(self.config.seed, self.step, self.world.rank * parts + part, self.world)
            left = self.task.left(batch)
            shares.append(1.0 if left is None else left * self.world.size * parts / self.config.batch)
            losses: dict[str, Tensor] = {}
            if main_plays:
                losses |= self.main.backward(batch, rng, self.step, last=last, share=shares[-1])
            if other_plays and self.other is not None:
                others = self.other.backward(batch, self.step, last=last, share=shares[-1])
                losses |= {f"{self.other_name}/{name}": value for name, value in others.items()}
            added.append(losses)
        self.skipped.add(self.step + 1, tuple(missing))
        of_all = self._share_of_all(sum(shares) / parts, missing, left is not None)
        mean = _mean(added, shares)
        if main_plays:
            mean["grad_norm"] = self.main.step(self.step, of_all)
            self.ema.update(self.main.module, self.step)
        if other_plays and self.other is not None:
            mean[f"{self.other_name}/grad_norm"] = self.other.step(self.step, of_all)
            parallel.average_buffers(self.other.module, self.world)
        self.losses |= mean
        self.share = sum(shares) / parts

    def _share_of_all(self, own: float, missing: list[str], may_miss: bool) -> float:
        """Part of the whole step's examples that is left. Raises InputError in every process where none is."""
        if not may_miss:
            return 1.0
        share = float(self.world.mean(torch.tensor(own, dtype=torch.float64)))
        if not share:
            raise InputError(
                f"step {self.step + 1}: none of its {self.config.batch} examples can be used: {missing[0]}"
            )
        return share

    def _opponent_loss(self, opponent: nn.Module, batch: Any, step: int) -> dict[str, Tensor]:
        return self.task.opponent_loss(opponent, self.main.module, batch, step)

    def _next(self, batches: Iterator[Any]) -> Any:
        started = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - started
        return batch

    def _restore(self) -> None:
        """Go on from the newest checkpoint, and drop what the logs say of later steps."""
        self.notes += self.writer.passed_over
        found = self.writer.checkpoint
        if found is not None:
            checkpoint.check_files(found, self.world)
            self.step, self.seconds = found.step, checkpoint.number(found, "seconds")
            load_weights(self.ema.model, found.load("ema"), str(found.folder / "ema"))
            if self.task.companion is not None:
                load_weights(self.task.companion, found.load("companion"), str(found.folder / "companion"))
            self._restore_trainee(self.main, found, ("model", "optimizer", "scaler"), 0)
            if self.other is not None:
                self._restore_trainee(self.other, found, ("opponent", "opponent_optimizer", "opponent_scaler"), 1)
            annealed, planned = self.task.annealed, found.state.get("steps")
            self.notes += [found.remark, new_length(self.config.optim, self.step, planned, self.config.steps, annealed)]
        if self.world.first:
            self.notes += [self.skipped.rewind(self.step), self.log.rewind(self.step if found is not None else -1)]
            self.observing.rewind(self.step)

    def _restore_trainee(self, trainee: Trainee, found: Checkpoint, names: tuple[str, str, str], turn: int) -> None:
        weights, optimizer, scale = names
        load_weights(trainee.module, found.load(weights), str(found.folder / weights))
        moved = any(self.task.turns(step)[turn] for step in range(self.step))
        where = str(found.folder / optimizer)
        checkpoint.restore_optimizer(trainee.optimizer, found.load(optimizer), where, self.step if moved else 0)
        trainee.scaler.load_state_dict(checkpoint.scaler_state(found, scale, trainee.scaler))

    def _elapsed(self) -> float:
        return time.perf_counter() - self._since[0]

    def _log(self) -> dict[str, float]:
        names = sorted(self.losses)
        told = torch.stack([self.losses[name].float() for name in names])
        weighed = self.world.mean(torch.cat([told * self.share, told.new_tensor([self.share])]))
        values = dict(zip(names, (weighed[:-1] / weighed[-1]).tolist(), strict=True))
        self._refuse_infinite(values)
        elapsed, steps = max(self._elapsed(), 1e-9), self.step - self._since[1]
        self.seconds += elapsed
        examples_per_second = steps * self.config.batch / elapsed
        values |= {
            "lr": self.main.optimizer.param_groups[0]["lr"],
            "steps_per_second": steps / elapsed,
            "examples_per_second": examples_per_second,
            **self.speed.figures(examples_per_second),
            "data_wait": self.waited / elapsed,
            "memory_gib": memory_gib(self.world.device),
            "seconds": self.seconds,
        }
        self.skipped.write(self.world)
        if self.skipped.count:
            values["skipped"] = self.skipped.count
        self._tell(values)
        self._since, self.waited = (time.perf_counter(), self.step), 0.0
        self.last = values
        return values

    def _tell(self, values: dict[str, float]) -> None:
        if self.world.first:
            self.check()
            self.log.write(self.step, values)
            for sink in self.sinks:
                sink.write(self.step, values)

    def _refuse_infinite(self, losses: dict[str, Any]) -> None:
        lr = self.config.optim.lr
        # A loss scale meets infinite gradients by design, and passes over them.
        norms = () if self.config.precision == "fp16" else ("grad_norm", f"{self.other_name}/grad_norm")
        for name in ("loss", f"{self.other_name}/loss", *norms):
            if name in losses and not math.isfinite(value := float(losses[name])):
                raise InputError(
                    f"{name} is {value} at step {self.step}; lower train.optim.lr (now {lr}), in a new folder"
                )

    def _observe(self) -> dict[str, float]:
        """Look at the averaged weights; no time of the training. Returns the figures."""
        began = time.perf_counter()
        if self.world.first:
            self.check()
        with self._saved():
            model = self.ema.model if self.bare is None else parallel.gathered(self.bare, self.ema.model)
            seen = self.observing.look(self.step, model)
        self._tell(seen.figures)
        if seen.picture is not None:
            for sink in self.sinks:
                sink.picture(self.step, seen.picture)
        self._since = (self._since[0] + time.perf_counter() - began, self._since[1])
        return seen.figures

    @contextmanager
    def _saved(self) -> Iterator[None]:
        """The steps are not lost for what is refused while they are measured."""
        try:
            yield
        except InputError:
            self.save()
            self.writer.wait()
            raise

    def _validate(self) -> None:
        with self._saved():
            found = self.task.validate(self.ema.model, self.validates)
        values = {f"val/{name}": value for name, value in found.items()}
        self._tell(values)
        self.last = self.last | values
        self.world.barrier()


def _mean(losses: Sequence[dict[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """Mean of the losses of some parts, each weighed by what is left in it."""
    whole = sum(shares)
    weights = [share / whole if whole else 1 / len(shares) for share in shares]
    return {
        name: torch.stack([part[name].float() * w for part, w in zip(losses, weights, strict=True)]).sum()
        for name in losses[0]
    }


def _seed_step(seed: int, step: int, part: int, world: World) -> torch.Generator:
    """The generator of a part of a step; dropout has no generator argument, so the global one is seeded as well."""
    number = ((seed * 1_000_003 + step) * 65_537 + part) % 2**63
    torch.manual_seed(number)
    return torch.Generator(world.device).manual_seed(number)
