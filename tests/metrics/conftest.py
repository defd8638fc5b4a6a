"""Processes of one machine, as threads: what a metric gathers from them without starting any."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from ifsq.training.distributed import World


class Together(World):
    """One of several threads; all gather at the same places."""

    def __init__(self, rank: int, size: int, told: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, size, torch.device("cpu"))
        object.__setattr__(self, "told", told)
        object.__setattr__(self, "barrier_of_threads", barrier)

    def gather(self, value: Any) -> list[Any]:
        self.told[self.rank] = value
        self.barrier_of_threads.wait(30)
        values = list(self.told)
        self.barrier_of_threads.wait(30)
        return values


@pytest.fixture
def processes() -> Callable[[int, Callable[[World], Any]], list[Any]]:
    """``processes(size, make)``: what ``make(world)`` returns in each."""

    def run(size: int, make: Callable[[World], Any]) -> list[Any]:
        told, barrier = [None] * size, threading.Barrier(size)
        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(make, [Together(rank, size, told, barrier) for rank in range(size)]))

    return run
