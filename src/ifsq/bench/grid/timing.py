"""How long a step of a training takes on this machine: budgets in minutes become steps by it, once for a grid's folder.

A training is timed as it is done, by the one loop, but for what is no time of its steps: nothing is validated, looked
at or saved. A tokenizer and a teacher take their own images, a discriminator plays from the first step on; a generator
takes codes drawn at random, for its tokenizer is not trained yet.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ifsq.bench.grid.stages import identity
from ifsq.codes import CodeSet, CodeSpec
from ifsq.codes.spec import LatentSpec
from ifsq.config import InputError, build, digest, read_json, to_dict
from ifsq.data import open_images
from ifsq.experiment import GeneratorExperiment, TokenizerExperiment
from ifsq.generators.train import GeneratorTask
from ifsq.pretraining import Student, TeacherExperiment, TeacherTask
from ifsq.store.files import write_text
from ifsq.tokenizer.losses import load_perceptual
from ifsq.tokenizer.model import Tokenizer
from ifsq.tokenizer.train import TokenizerTask
from ifsq.training.config import EngineConfig, TrainConfig
from ifsq.training.distributed import World, join
from ifsq.training.log import Reporter, Silent
from ifsq.training.loop import Task, train

TIMES = "times.json"
"""File of the seconds that steps took, in the folder of a grid: whoever plans the grid again takes these."""
WARM_UP = 3
"""Steps before the first that is timed."""
PAIRS = 5
"""Pairs of steps that are timed: a discriminator may play at every second."""


@dataclass(frozen=True)
class Training:
    """A training whose steps are to be timed.

    told       what it is, for people
    codes      of a generator: their layout, the classes of the images, and the channels of a codebook's vectors
    """

    told: str
    experiment: TokenizerExperiment | TeacherExperiment | GeneratorExperiment
    codes: tuple[CodeSpec | LatentSpec, int, int | None] | None = None

    @property
    def kind(self) -> str:
        """Of its stage."""
        if isinstance(self.experiment, GeneratorExperiment):
            return self.experiment.kind
        return "tokenizer" if isinstance(self.experiment, TokenizerExperiment) else "teacher"

    @property
    def key(self) -> str:
        """The same of trainings whose steps take as long: of any length and seed."""
        train = replace(self.experiment.train, steps=TrainConfig.steps, seed=0, keep_every=0)
        about: list[Any] = [identity(replace(self.experiment, train=train)), to_dict(train.engine)]
        if self.codes is not None:
            layout, classes, code_dim = self.codes
            about += [layout.to_dict(), classes, code_dim]
        return digest(about)


@dataclass(frozen=True)
class Timed:
    """What a step took.

    seconds  median over pairs of steps
    told     of what training
    device   on what, and how many threads of the processor computed
    """

    seconds: float
    told: str
    device: str
    threads: int

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"seconds={self.seconds}: expected a positive number")


def read_times(out: Path) -> dict[str, Timed]:
    """Those of a grid's folder by `Training.key`; none where nothing was timed. Raises InputError."""
    file = out / TIMES
    found = read_json(file) if file.is_file() else {}
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise InputError(f"{file}: is damaged; expected what bench wrote")
    return {key: build(Timed, one, str(file)) for key, one in found.items()}


def time_trainings(
    trainings: Mapping[str, Training], out: Path, device: str, reporter: Reporter, jobs: int = 1
) -> None:
    """Time each training and add what it took to those of the grid's folder. Raises InputError and Interrupted.

    jobs  stages that are to be done at the same time: each then has its share of the cores, as here
    """
    times, threads = read_times(out), torch.get_num_threads()
    try:
        if jobs > 1:
            torch.set_num_threads(cores_of(jobs))
        for number, (key, training) in enumerate(trainings.items(), start=1):
            reporter.say(f"timing {number} of {len(trainings)}: {training.told}")
            times[key] = _timed(training, device)
            write_text(out / TIMES, json.dumps({name: asdict(one) for name, one in times.items()}, indent=1) + "\n")
    finally:
        torch.set_num_threads(threads)


def cores_of(jobs: int) -> int:
    """Threads of each of so many processes that share this machine."""
    return max(1, (os.cpu_count() or 1) // jobs)


def seconds_a_step(training: Training, world: World, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median over pairs of steps, after some that are not counted. Raises InputError and Interrupted."""
    last = WARM_UP + 2 * PAIRS
    config = replace(
        training.experiment.train,
        # Each line of the log waits for the device; it stops before the last step, at which a run is saved.
        steps=last + 1,
        save_every=last + 1,
        keep_every=0,
        log_every=1,
        validate_every=0,
        sample_every=0,
        evaluate_every=0,
        init="",
        init_parts=(),
        engine=replace(training.experiment.train.engine, loggers=EngineConfig.loggers),
    )
    torch.manual_seed(config.seed)
    task, watch = _task(training, config, world), _Stopwatch(clock, last)
    with tempfile.TemporaryDirectory() as folder, suppress(_Enough):
        train(task, config, Path(folder), world, watch, training.told)
    ends = watch.ends[WARM_UP - 1 :: 2]
    return median((after - before) / 2 for before, after in pairwise(ends))


class _Enough(Exception):  # noqa: N818 - nothing went wrong
    """All steps are timed."""


class _Stopwatch(Silent):
    """Notes when each step ends, and ends the training at the last of them."""

    def __init__(self, clock: Callable[[], float], last: int) -> None:
        self.clock, self.last = clock, last
        self.ends: list[float] = []

    def advance(self, done: int, facts: dict[str, float]) -> None:
        self.ends.append(self.clock())
        if done == self.last:
            raise _Enough


def _timed(training: Training, device: str) -> Timed:
    with join(device) as world:
        seconds = seconds_a_step(training, world)
        name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type
    return Timed(seconds, training.told, name, torch.get_num_threads())


def _task(training: Training, config: TrainConfig, world: World) -> Task:
    """What is trained, with fresh weights."""
    experiment = training.experiment
    if isinstance(experiment, TeacherExperiment):
        images = open_images(experiment.data, "train", labels=False)
        student = Student(experiment.network, experiment.objective.expansion)
        return TeacherTask(student, images, experiment.objective, config, lambda net, at: {})
    if isinstance(experiment, TokenizerExperiment):
        images = open_images(experiment.data, "train", labels=False, channels=experiment.tokenizer.conv.in_channels)
        model: Any = Tokenizer(experiment.tokenizer).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        loss = experiment.loss
        if loss.adversarial is not None:
            loss = replace(loss, adversarial=replace(loss.adversarial, start=0))
        return TokenizerTask(model, images, loss, config, load_perceptual(loss, world), lambda net, at: {})
    assert training.codes is not None
    layout, classes, code_dim = training.codes
    generator = experiment.make(layout, classes, code_dim)
    spread = 1 / (getattr(generator.config, "multiplier", None) or 1)
    codes = _drawn(layout, classes, code_dim, config.batch, spread)
    generator.observe(codes)
    return GeneratorTask(generator, codes, None, config)


def _drawn(layout: CodeSpec | LatentSpec, classes: int, code_dim: int | None, count: int, spread: float) -> CodeSet:
    """Codes of images that nobody has.

    spread  standard deviation of latents
    """
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (count,), generator=rng)
    if isinstance(layout, LatentSpec):
        return CodeSet(layout, (spread * torch.randn(count, *layout.shape, generator=rng)).half(), labels)
    levels = torch.tensor(layout.levels, dtype=torch.float64)
    digits = (torch.rand(count, *layout.shape, generator=rng, dtype=torch.float64) * levels).to(torch.int64)
    codebook = None if code_dim is None else torch.randn(max(layout.levels), code_dim, generator=rng)
    return CodeSet(layout, digits.to(layout.digit_dtype), labels, codebook=codebook)
