"""What is checked and settled of a training before anything is computed."""

from dataclasses import replace
from typing import Any, TypeVar

from ifsq.config import InputError
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World
from ifsq.training.precision import computes_bfloat16
from ifsq.training.sinks import check_sinks

Experiment = TypeVar("Experiment", bound=Any)  # a frozen dataclass with a `TrainConfig` as its ``train``


def prepared(experiment: Experiment, world: World) -> tuple[Experiment, list[str]]:
    """The experiment with a precision in place of ``auto``, the same for all processes, and what is to be said of it.

    Raises InputError as `check_batch`.
    """
    train: TrainConfig = experiment.train
    check_batch(train, world)
    bfloat16, said = all_compute_bfloat16(world), []
    if train.precision == "auto" and not bfloat16:
        said.append("precision: fp32, since this processor does not compute in bfloat16")
    elif train.precision == "bf16" and not bfloat16:
        said.append("precision: bf16, which this processor computes by detours; fp32 may be several times as fast")
    return replace(experiment, train=train.with_precision(bfloat16)), said


def all_compute_bfloat16(world: World) -> bool:
    """Whether the devices of all processes do."""
    return all(world.gather(computes_bfloat16(world.device.type)))


def check_batch(config: TrainConfig, world: World) -> None:
    """Raise InputError when the processes cannot share a batch equally, or a logger is not installed.

    With Muon also where some have bfloat16 and others have not: each moves its own copy of the weights.
    """
    check_sinks(config.engine.loggers)
    if config.optim.kind == "muon" and len(set(world.gather(computes_bfloat16(world.device.type)))) > 1:
        raise InputError("optim.kind='muon': only some of the processors compute in bfloat16; expected all, or none")
    check_shares(config, world.size)


def check_shares(config: TrainConfig, processes: int) -> None:
    """Raise InputError when so many processes cannot share a batch equally."""
    parts = config.engine.accumulate
    if config.batch % (processes * parts):
        whom = f"the {processes} processes" + (f" times accumulate={parts}" if parts > 1 else "")
        raise InputError(f"train.batch={config.batch}: expected a multiple of {whom}")
