"""Processes: one without torchrun, many with it. The same code runs in both.

Called by ``loop`` and ``pipeline``. Files are written by the first process only.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ifsq.config import InputError

PATIENCE = timedelta(hours=4)  # the first process evaluates alone while the others wait
Made = TypeVar("Made")


@dataclass(frozen=True)
class World:
    """This process among all: ``rank`` of ``size``, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

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
        """Everybody's value, in the order of the ranks, in every process; anything that pickles."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process, so that all stop together."""
        if self.size == 1:
            return flag
        told = torch.tensor(float(flag))  # on the CPU: no device has to finish its queue for the answer
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return bool(told)


def from_first(here: World, make: Callable[[], Made]) -> Made:
    """What ``make`` returns in the first process, in every process; or what it refuses, so that all end alike."""
    made: Made | None = None
    refusal: InputError | None = None
    if here.first:
        try:
            made = make()
        except InputError as error:
            refusal = error
    value, refused = here.gather((made, refusal))[0]
    if refused is not None:
        raise refused
    return value


def first_process() -> bool:
    """Whether this process is the one that writes and prints, also outside `world`."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started, or stand alone. ``device``: ``auto``, ``cpu``, ``cuda``, ``mps``."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    joined = not dist.is_initialized()
    if joined:
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield World(dist.get_rank(), size, chosen)
        dist.barrier()  # nobody leaves while another still talks
    finally:
        if joined:
            gc.collect()  # DistributedDataParallel sits in reference cycles and must go before its process group
            dist.destroy_process_group()


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called ``name``; ``auto`` takes an accelerator where there is one. Raises ValueError without it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': this machine has no CUDA device; expected cpu or auto")
    if name == "cuda" and local_rank >= torch.cuda.device_count():
        raise ValueError(f"process {local_rank} of this machine: it has {torch.cuda.device_count()} CUDA devices")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps': this machine has no Metal device; expected cpu or auto")
    if name not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device {name!r}: expected auto, cpu, cuda or mps")
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)
