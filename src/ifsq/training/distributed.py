"""Processes: one without torchrun, many with it. The same code runs in both.

Files are written by the first process only. What becomes of a process when another one is lost: `ifsq.training.watch`.
"""

import gc
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ifsq.config import InputError
from ifsq.training.watch import LostProcessError, Watch, following_torchrun, patience, wait_for_store

LONGEST = timedelta(days=100)  # of a wait for a process that answers: the first may evaluate alone for hours
SMALL = 1 << 16  # bytes of a value that all processes tell each other at once
Made = TypeVar("Made")


@dataclass(frozen=True)
class World:
    """This process among all: ``rank`` of ``size``, its device, and what it knows of the others."""

    rank: int
    size: int
    device: torch.device
    watch: Watch | None = None

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def refuse_lost(self) -> None:
        """Raise LostProcessError where another process is known to be lost: for who waits for more than a message."""
        if self.watch is not None and self.watch.lost:
            raise LostProcessError(self.watch.lost)

    def barrier(self) -> None:
        """Wait for every process."""
        if self.size > 1:
            dist.barrier()

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean of a tensor over the processes."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, in the order of the ranks, in every process; anything that pickles.

        Large ones are sent one after another: torch's own call makes room for as many of the largest as there are
        processes, also where one process alone has something to tell.
        """
        if self.size == 1:
            return [value]
        content = pickle.dumps(value)
        small: list[tuple[int, bytes | bytearray]] = [(0, b"")] * self.size
        dist.all_gather_object(small, (len(content), content if len(content) <= SMALL else b""))
        values = []
        for rank, (length, told) in enumerate(small):
            own = rank == self.rank
            if length > SMALL:
                room = bytearray(content) if own else bytearray(length)
                dist.broadcast(torch.frombuffer(room, dtype=torch.uint8), src=rank)
                told = room
            values.append(value if own else pickle.loads(told))  # noqa: S301 - of our own processes
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process, so that all stop together."""
        if self.size == 1:
            return flag
        told = torch.tensor(float(flag))  # on the CPU: no device has to finish its queue for the answer
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return bool(told)


def from_first(world: World, make: Callable[[], Made]) -> Made:
    """What ``make`` returns in the first process, in every process; or what it refuses, so that all end alike."""
    made: Made | None = None
    refusal: InputError | None = None
    if world.first:
        try:
            made = make()
        except InputError as error:
            refusal = error
    value, refused = world.gather((made, refusal))[0]
    if refused is not None:
        raise refused
    return value


def gather_or_refuse(world: World, make: Callable[[], Made]) -> list[Made]:
    """What ``make`` returns in every process, in the order of the ranks; or what the first of them that refuses says.

    Raises InputError in all of them: no process waits for the share of one that has none.
    """
    made: Made | None = None
    refusal: InputError | None = None
    try:
        made = make()
    except InputError as error:
        refusal = error
    shares = world.gather((made, refusal))
    for _, refused in shares:
        if refused is not None:
            raise refused
    return [share for share, _ in shares]


def in_turn(world: World, make: Callable[[], Made]) -> Made:
    """What ``make`` returns in this process; it runs in the first one before the others, as for a download.

    Raises InputError in every process where the first is refused.
    """
    made: list[Made] = []
    from_first(world, lambda: made.append(make()))
    return made[0] if made else make()


def first_process() -> bool:
    """Whether this process is the one that writes and prints, also outside `join`."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def join(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started, or stand alone. ``device``: ``auto``, ``cpu``, ``cuda``, ``mps``.

    Raises InputError for a device that this machine has not, and LostProcessError, in one line, where another process
    has ended or does not come. Where one stops answering for `ifsq.training.watch.PATIENCE` seconds, this process ends
    with the line and exit code 2. When torchrun is gone, it gets a SIGTERM.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    with following_torchrun():
        if size == 1:
            yield World(0, 1, chosen)
        else:
            with _together(size, chosen) as world:
                yield world


@contextmanager
def _together(size: int, device: torch.device) -> Iterator[World]:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    wait = patience()
    joined = f"the {size} processes of this run"
    try:
        wait_for_store(wait)
        store, rank, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=wait)))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=LONGEST)
        watch = Watch(store, rank, size, wait)
    except ValueError as error:  # a variable of the environment is missing
        raise InputError(f"WORLD_SIZE={size}: {error}") from error
    except (dist.DistStoreError, TimeoutError) as error:
        raise LostProcessError(f"{joined}: not all have come within {wait:.0f} s") from error
    except RuntimeError as error:
        raise LostProcessError(f"{joined} cannot be connected: {str(error).splitlines()[0]}") from error
    try:
        yield World(rank, size, device, watch)
        dist.barrier()  # nobody leaves while another still talks
        watch.leave()
    except RuntimeError as error:  # torch has no type of its own for a connection that broke
        if told := watch.verdict():
            raise LostProcessError(told) from error
        raise
    finally:
        watch.close()
        gc.collect()  # DistributedDataParallel sits in reference cycles and must go before its process group
        dist.destroy_process_group()


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called ``name``; ``auto`` takes an accelerator where there is one. Raises InputError without it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda': this machine has no CUDA device; expected cpu or auto")
    if name == "cuda" and local_rank >= torch.cuda.device_count():
        raise InputError(f"process {local_rank} of this machine: it has {torch.cuda.device_count()} CUDA devices")
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("device 'mps': this machine has no Metal device; expected cpu or auto")
    if name not in ("cpu", "cuda", "mps"):
        raise InputError(f"device {name!r}: expected auto, cpu, cuda or mps")
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)
