"""How many digits are hidden: the share of them over time, and how often each number is drawn in training.

Time runs from 0, where all are hidden, to 1, where none is. With a share m(t) of N hidden, each by itself, masked
diffusion (MDLM, arXiv 2406.07524; MD4, arXiv 2406.04329) bounds -log p by

    integral over t of -m'(t) / m(t) * E[sum over the hidden of -log p(digit | known)]

A network that is not told the time sees m(t) in what is hidden alone. Then the integral over all times at which n are
hidden is 1 / n, whatever the schedule, and the bound is the sum of arXiv 2110.02037 over all orders, one a step:

    sum over n = 1..N of 1 / n * E over sets S of n[sum over S of -log p(digit | known)]

Training draws n with probability P(n), of the schedule, and weighs by 1 / (n P(n)): the same bound without the variance
of n at a given time, nor the infinite weight at m = 0.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

SCHEDULES = ("linear", "cosine")


def check_schedule(schedule: str) -> None:
    """Raise ValueError unless it is one of `SCHEDULES`."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: expected one of {', '.join(SCHEDULES)}")


def hidden_share(schedule: str, time: float) -> float:
    """m(t), 1 at time 0 and 0 at time 1: ``linear`` 1 - t; ``cosine`` cos(pi t / 2), as MaskGIT (arXiv 2202.04200)."""
    if time >= 1:
        return 0.0
    return 1 - time if schedule == "linear" else math.cos(math.pi * time / 2)


def hidden_numbers(schedule: str, times: Float[Tensor, "b"], units: int) -> Int[Tensor, "b"]:
    """How many of so many are hidden at times of [0, 1], 1 to ``units`` below 1: ``ceil(units * m(t))``."""
    share = 1 - times.double() if schedule == "linear" else (times.double() * (math.pi / 2)).cos()
    return torch.where(times < 1, (share * units).ceil().clamp(1, units), 0).to(torch.int64)


def bound_weights(schedule: str, units: int) -> Float[Tensor, "n"]:
    """``1 / (n P(n))`` for n = 1..units: P(n) is the share of the times at which `hidden_numbers` is n. Float64."""
    shares = torch.linspace(0, 1, units + 1, dtype=torch.float64, device="cpu")
    times = 1 - shares if schedule == "linear" else shares.acos() * (2 / math.pi)  # at which so many are left
    chances = times[:-1] - times[1:]
    return 1 / (torch.arange(1, units + 1, dtype=torch.float64, device="cpu") * chances)


def left_after(schedule: str, rounds: int, units: int) -> list[int]:
    """How many are hidden after each of so many rounds of sampling, the last 0; every round reveals at least one.

    rounds  1 to ``units``
    """
    left, before = [], units
    for number in range(1, rounds + 1):
        wanted = math.floor(units * hidden_share(schedule, number / rounds))
        if schedule == "linear":  # in whole numbers: 1 - 9 / 10 is rounded to below a tenth
            wanted = units * (rounds - number) // rounds
        # One for each later round, and one fewer than before.
        before = max(rounds - number, min(before - 1, wanted))
        left.append(before)
    return left


def ranks(keys: Float[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """The place of each number among those of its row, 0 the smallest; of equal ones the first is smaller."""
    return keys.argsort(dim=1, stable=True).argsort(dim=1)
