"""The weights that a run begins with: fresh, or the averaged ones of another run or a saved model, whole or in parts.

A run that goes on takes its own from its checkpoint. It does not look at the source again, which may be gone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ifsq.config import InputError, differences
from ifsq.store.checkpoints import steps_in
from ifsq.store.run import Run, Weights
from ifsq.store.weights import load_weights, refuse_infinite, tensors_digest
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World, gather_or_refuse, in_turn
from ifsq.training.parts import check_parts, under


@dataclass(frozen=True)
class Start:
    """How a run begins.

    record  of the source, for the run's ``config.json``: ``source``, ``digest`` of its weights (SHA-256), ``step``, and
            the tensors that were ``taken``, are ``fresh`` or were ``left``, counted by part; None of a run that begins
            with fresh weights, and of one that goes on, whose ``config.json`` has it
    notes   the same in lines for a person
    """

    record: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def goes_on(folder: Path) -> bool:
    """Whether the run in this folder has a checkpoint to go on from."""
    return bool(steps_in(folder / "checkpoints"))


def warm_start(
    model: nn.Module,
    described: Mapping[str, Any],
    config: TrainConfig,
    folder: Path,
    world: World,
    *,
    own: Iterable[str] = (),
) -> Start:
    """Give a model the weights that ``train.init`` names, unless the run in ``folder`` goes on; returns what was done.

    model      with fresh weights, neither replicated nor sharded
    described  what its task describes it as
    own        tensors that are never taken, where the model has them: it was given them already

    Without ``train.init_parts`` the source must have the model's tensors, all of them and no other. Raises InputError
    in every process, naming the first field and the first tensor that differ, and where there are no such weights.
    """
    if not config.init or goes_on(folder):
        return Start()
    run = in_turn(world, lambda: Run.open(config.init))

    def take() -> Start:
        found = run.weights()
        given = found.described.get("kind", run.kind)
        if given != described.get("kind"):
            raise InputError(f"train.init={config.init}: holds a {given} model; expected a {described.get('kind')}")
        table = found.load()
        taking = _whole if not config.init_parts else _parts
        kept = {name: value for name, value in model.state_dict().items() if name in own}
        return taking(model, described, found, config, table, kept)

    starts = gather_or_refuse(world, take)
    if any(start != starts[0] for start in starts):
        raise InputError(f"train.init={config.init}: processes see other weights there; expected the same everywhere")
    return starts[0]


def record_of(
    source: str, table: Mapping[str, Tensor], step: int | None, counts: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """The record of a `Start`.

    counts  tensors of each part that were ``taken``, are ``fresh`` or were ``left``
    """
    return {"source": source, "digest": tensors_digest(table), "step": step, **counts}


def told(record: Mapping[str, Any]) -> tuple[str, ...]:
    """A record in lines."""
    step = "" if record["step"] is None else f"step {record['step']}, "
    lines = [f"init: {record['source']} ({step}weights {record['digest'][:12]}): took {_listed(record['taken'])}"]
    lines += [f"init: starts fresh: {_listed(record['fresh'])}"] if record["fresh"] else []
    lines += [f"init: left in the source: {_listed(record['left'])}"] if record["left"] else []
    return tuple(lines)


def _whole(
    model: nn.Module, described: Mapping[str, Any], found: Weights, config: TrainConfig,
    table: Mapping[str, Tensor], kept: Mapping[str, Tensor],
) -> Start:  # fmt: skip
    where, differ = f"train.init={config.init}", _differ(found.described, described)
    refuse_infinite(table, where)
    try:
        load_weights(model, {**table, **kept}, where, halves=found.step is None)
    except InputError as error:
        field = f" ({differ[0]})" if differ else ""
        raise InputError(f"{error}: another architecture{field}; name what to take in train.init_parts") from error
    counts = {
        "taken": _counts(table.keys() - kept.keys()),
        "fresh": _counts(kept),
        "left": _counts(table.keys() & kept.keys()),
    }
    record = record_of(config.init, table, found.step, counts)
    return Start(record, (*told(record), *(f"init: the source has another {field}" for field in differ)))


def _parts(
    model: nn.Module, described: Mapping[str, Any], found: Weights, config: TrainConfig,
    table: Mapping[str, Tensor], kept: Mapping[str, Tensor],
) -> Start:  # fmt: skip
    check_parts(model, config.init_parts, "train.init_parts")
    own = model.state_dict()
    named = {name for part in config.init_parts for name in under((own | dict(table)).keys(), part)} - kept.keys()
    taken = {name: value for name, value in table.items() if name in named}
    fresh = {name: value for name, value in own.items() if name not in named}
    load_weights(model, {**fresh, **taken}, f"train.init={config.init}", halves=found.step is None)
    left = table.keys() - taken.keys()
    counts = {"taken": _counts(taken), "fresh": _counts(fresh), "left": _counts(left)}
    record = record_of(config.init, table, found.step, counts)
    return Start(record, told(record))


def _differ(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Fields of the two descriptions that differ, but for what the models were trained on and options of one alone."""
    return [
        line
        for line in differences({**theirs, "origin": None}, {**ours, "origin": None})
        if " None against " not in line and not line.endswith(" against None")
    ]


def _counts(names: Iterable[str]) -> dict[str, int]:
    """Tensors by the first part of their names."""
    counts: dict[str, int] = {}
    for name in sorted(names):
        part = name.partition(".")[0]
        counts[part] = counts.get(part, 0) + 1
    return counts


def _listed(counts: Mapping[str, int]) -> str:
    parts = ", ".join(f"{part} ({count})" for part, count in counts.items())
    return parts if len(parts) < 200 else f"{sum(counts.values())} tensors of {len(counts)} parts"
