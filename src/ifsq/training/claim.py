"""Claiming the folder of a run: its ``config.json`` says whose it is, and a lock that one process is at work there.

A folder that is not ours, or that holds another configuration, is refused: nothing of somebody else's is overwritten.
"""

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifsq.config import InputError, build, differences, to_dict
from ifsq.store.checkpoints import steps_in
from ifsq.store.files import LOCK, WriteError, entries_of, make_folder, reason
from ifsq.store.lock import lock
from ifsq.store.run import CONFIG, Run, write_config
from ifsq.training.distributed import World, from_first

MAY_CHANGE = (
    *("steps", "log_every", "save_every", "validate_every", "keep", "keep_every"),
    *("sample_every", "evaluate_every", "evaluate_images"),
)
"""Options of ``[train]`` that change no weight of the steps behind."""
FREE = (
    "experiment.out ",
    "experiment.engine.",
    "experiment.train.engine.",
    *(f"experiment.train.{name} " for name in MAY_CHANGE),
)


@dataclass(frozen=True)
class Claim:
    """The run that is to train in a folder.

    folder      of the run
    kind        ``tokenizer``, a kind of generator, or ``judge``
    experiment  all of its options: a dataclass
    data        fingerprint of what it is trained on
    init        `Start.record` of the weights that it begins with; None of fresh ones, and where it goes on
    """

    folder: Path
    kind: str
    experiment: Any
    data: str
    init: Mapping[str, Any] | None = None

    @property
    def config(self) -> dict[str, Any]:
        """What ``config.json`` says of it, but for the run's identity."""
        said = {"kind": self.kind, "experiment": to_dict(self.experiment), "data": self.data}
        return said if self.init is None else {**said, "init": dict(self.init)}


@dataclass(frozen=True)
class Claimed:
    """A folder that is this run's own.

    config  what its ``config.json`` says
    place   which folder it was when it was claimed
    """

    folder: Path
    config: dict[str, Any]
    place: os.stat_result

    def check(self) -> None:
        """Raise InputError where the folder is gone or is another one, and where its ``config.json`` is gone, after
        writing it again. For the first process, before it writes anything."""
        if not self.folder.is_dir() or not os.path.samestat(self.folder.stat(), self.place):
            raise InputError(
                f"{self.folder}: was moved or removed while the run trained there; once it is back, or with --out where"
                " it is now, the same command goes on from its newest checkpoint"
            )
        if not (self.folder / CONFIG).is_file():
            write_config(self.folder, self.config)
            raise InputError(
                f"{self.folder / CONFIG}: was removed while the run trained; it is written again, and the same command"
                " goes on from its newest checkpoint"
            )


def check_run(folder: Path, config: dict[str, Any], experiment: type | None = None) -> dict[str, Any] | None:
    """What ``config.json`` of ``folder`` has to say before the run begins or goes on; None where it says so already.

    config      kind, experiment and fingerprint of the data; the folder gives the run's identity, ``run``
    experiment  the class of ``config["experiment"]``: options that came after the run was started have their defaults

    Where a run lies, how its work is laid out on machines, how long it is and how often it logs, saves, validates and
    is looked at (`MAY_CHANGE`) may change. Raises InputError when ``folder`` is a file, holds something else, a run of
    another configuration, or one that has gone further than it is now to go.
    """
    if folder.is_file():
        raise InputError(f"{folder}: is a file; expected a folder for the run")
    entries = entries_of(folder) if folder.is_dir() else []
    if not entries:
        return {**config, "run": secrets.token_hex(16)}
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: is not empty and holds no run of ifsq ({entries[0].name}); choose another folder")
    run = Run.open(folder)
    found = run.config
    if found["kind"] != config["kind"]:
        kinds = f"kind {found['kind']} against {config['kind']}"
        raise InputError(f"{folder}: holds another run ({kinds}); choose another folder or remove it")
    identity = {"run": found.get("run", secrets.token_hex(16))}
    if not steps_in(folder / "checkpoints"):
        agreed = {**config, **identity}  # it stopped before its first checkpoint: there is nothing to lose
        return None if agreed == found else agreed
    if "init" in found:  # a run that goes on has not looked at its source again
        config = {"init": found["init"], **config}
    known = {"experiment": _completed(found, experiment, folder), **identity}
    different = [told for told in differences({**found, **known}, {**config, **identity}) if not told.startswith(FREE)]
    if different:
        said = [told for told in different if not told.startswith("data ")]  # fingerprints tell a person nothing
        why = said[0] if said else "its data have changed since, or another build reads them otherwise"
        raise InputError(f"{folder}: holds another run ({why}); choose another folder or remove it")
    agreed = {**found, **identity}
    if train := config["experiment"].get("train"):
        _refuse_shorter(run, train["steps"])
        kept = found["experiment"].get("train", {})
        changed = {**kept, **{name: train[name] for name in MAY_CHANGE}}
        agreed["experiment"] = {**found["experiment"], "train": changed}
    return None if agreed == found else agreed


def _completed(found: dict[str, Any], experiment: type | None, folder: Path) -> Any:
    if experiment is None:
        return found.get("experiment")
    try:
        return to_dict(build(experiment, found.get("experiment", {}), CONFIG))
    except InputError as error:
        raise InputError(
            f"{folder}: holds a run of options that this version does not have ({error}); go on with the version that"
            " began it, or choose another folder"
        ) from error


def _refuse_shorter(run: Run, steps: int) -> None:
    if (done := run.step) is not None and done > steps:
        raise InputError(f"{run.folder}: has {done} steps behind it; expected train.steps of as many, got {steps}")


@contextmanager
def claimed(claim: Claim, world: World, say: Callable[[str], None], *, wait: bool = False) -> Iterator[Claimed]:
    """Make the folder this run's own, once every process has looked at it, for as long as it trains there.

    The folder is checked at the end too. ``say`` and ``wait`` as of `lock`. Raises InputError in every process: as
    `check_run`, and where another run is at work there.
    """
    folder, config, experiment = claim.folder, claim.config, type(claim.experiment)
    check_run(folder, config, experiment)
    world.barrier()
    with alone_in(folder, world, say, wait=wait):

        def agree() -> dict[str, Any]:
            agreed = check_run(folder, config, experiment)  # again: another run may have come before this one
            if agreed is not None:
                write_config(folder, agreed)
            return Run.open(folder).config

        agreed = from_first(world, agree)
        if not (folder / CONFIG).is_file():
            raise InputError(
                f"{folder}: process {world.rank} does not see it; expected a file system that all hosts share"
            )
        ours = Claimed(folder, agreed, folder.stat())
        yield ours
        if world.first:
            ours.check()


@contextmanager
def alone_in(folder: Path, world: World, say: Callable[[str], None], *, wait: bool = False) -> Iterator[None]:
    """Make the folder where there is none and hold its lock in the first process; it goes again if it stays empty.

    say, wait  as of `lock`

    Raises InputError in every process where another run is at work there.
    """
    made: list[os.stat_result] = []

    def claim() -> None:
        try:
            if make_folder(folder):
                made.append(folder.stat())
            held.enter_context(lock(folder / LOCK, say, wait=wait))
        except OSError as error:
            raise WriteError(folder, reason(error)) from error

    try:
        with ExitStack() as held:
            from_first(world, claim)
            yield
    finally:
        if made and folder.is_dir() and os.path.samestat(folder.stat(), made[0]) and not any(folder.iterdir()):
            Path(os.path.realpath(folder)).rmdir()  # a link stays
