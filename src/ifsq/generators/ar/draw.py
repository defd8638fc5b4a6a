"""Drawing an index from logits: temperature, top-k, top-p, min-p, greedy; the options, and the draw by them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ifsq.generators.base import Sampling
from ifsq.generators.categorical import filter_logits, inverted, tempered
from ifsq.generators.conditioning import GUIDANCE_SCHEDULES

T = TypeVar("T", float, int, bool)
PRECISIONS = ("auto", "fp32", "bf16", "int8")
PER_GROUP = ("guidance", "temperature", "top_k", "top_p", "min_p", "greedy")


@dataclass(frozen=True)
class ARSampling(Sampling):
    """How an autoregressive generator is sampled. The first five and ``min_p`` also take a list, one value a group.

    guidance           as of `Sampling`, of the logits
    temperature        divides the logits, above 0; one too small for float32 leaves the most likely code alone
    top_k              keep the k most likely codes, ties included; 0 keeps all
    top_p              keep the most likely codes until their probability passes p, in (0, 1]
    greedy             take the most likely code, whatever the temperature and the filters are
    guidance_interval  guide the first so many tokens only; None guides all
    min_p              keep the codes at least p times as likely as the most likely one, in [0, 1); 0 keeps all
    guidance_schedule  how the scale rises from 1 over the guided tokens, see `guidance_scales`: ``constant`` (it is
                       ``guidance`` from the first on), ``linear`` or ``power-cosine``
    guidance_power     of ``power-cosine``, above 0: the greater, the later the scale rises
    precision          of the weights while sampling: ``fp32``, ``bf16``, ``int8`` (with a scale an output channel), or
                       ``auto``; see `precision_of`
    parallel           draw so many tokens at once and keep those that hold, see `decode_parallel`; 0 draws one by one
    noise              ``uniform``: one random number a group, by which its distribution is inverted; ``gumbel``: one a
                       code, added to its logit, and the greatest is drawn. Images differ, their distribution does not.
                       They are made on the CPU, 4 bytes each, for a token or a window of all images at a time.
                       Parallel decoding keeps more with ``gumbel``: far more where a group has hundreds of codes
    """

    guidance: float | Sequence[float] = 1.0
    temperature: float | Sequence[float] = 1.0
    top_k: int | Sequence[int] = 0
    top_p: float | Sequence[float] = 1.0
    greedy: bool | Sequence[bool] = False
    guidance_interval: int | None = None
    min_p: float | Sequence[float] = 0.0
    guidance_schedule: str = "constant"
    guidance_power: float = 2.75
    precision: str = "auto"
    parallel: int = 0
    noise: str = "uniform"

    def __post_init__(self) -> None:
        for name in PER_GROUP:
            if isinstance(value := getattr(self, name), Sequence):  # hashable, and equal whatever it came as
                object.__setattr__(self, name, tuple(value))
        super().__post_init__()
        _check("temperature", self.temperature, lambda t: t > 0, "a positive number; for the mode set greedy")
        _check("top_k", self.top_k, lambda k: k >= 0, "0 (all) or a positive count")
        _check("top_p", self.top_p, lambda p: 0 < p <= 1, "a number above 0 and at most 1")
        _check("min_p", self.min_p, lambda p: 0 <= p < 1, "a number of at least 0 (all) and below 1")
        if self.guidance_interval is not None and self.guidance_interval < 0:
            raise ValueError(f"guidance_interval={self.guidance_interval}: expected None or a count of tokens")
        if self.guidance_schedule not in GUIDANCE_SCHEDULES:
            known = ", ".join(GUIDANCE_SCHEDULES)
            raise ValueError(f"guidance_schedule={self.guidance_schedule!r}: expected one of {known}")
        if not 0 < self.guidance_power < math.inf:
            raise ValueError(f"guidance_power={self.guidance_power}: expected a positive number")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r}: expected one of {', '.join(PRECISIONS)}")
        if self.parallel < 0 or self.parallel == 1:
            raise ValueError(f"parallel={self.parallel}: expected 0 (one token after the other) or at least 2 tokens")
        if self.noise not in ("uniform", "gumbel"):
            raise ValueError(f"noise={self.noise!r}: expected uniform or gumbel")

    @property
    def unsaid(self) -> tuple[str, ...]:
        off = {"min_p": not self.min_p, "guidance_schedule": self.guidance_schedule == "constant"}
        off |= {"parallel": not self.parallel, "noise": self.noise == "uniform"}
        off["guidance_power"] = self.guidance_schedule != "power-cosine"
        return ("precision", *(name for name, is_off in off.items() if is_off))  # a card says it as its dtype

    def check_groups(self, groups: int) -> None:
        """Raise ValueError naming the first option whose list is not of as many values as a token has groups."""
        for name in PER_GROUP:
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != groups:
                raise ValueError(f"{name}={list(value)}: expected one value, or {groups}, one a group of the token")


def of_group(value: T | Sequence[T], group: int) -> T:
    """The option's value for a group."""
    return value[group] if isinstance(value, Sequence) else value


def _check(name: str, value: T | Sequence[T], right: Callable[[T], bool], expected: str) -> None:
    """Raise ValueError unless the option, or each of its values, is ``right``."""
    if isinstance(value, Sequence):
        if not value or not all(map(right, value)):
            raise ValueError(f"{name}={list(value)}: expected for each group {expected}")
    elif not right(value):
        raise ValueError(f"{name}={value}: expected {expected}")


def draw(
    logits: Float[Tensor, "b v"], sampling: ARSampling, noise: Float[Tensor, "b *v"], group: int = 0
) -> Int[Tensor, "b"]:
    """One index a row, float32 throughout, by its random numbers.

    A row's index depends on nothing of the other rows. Logits that are not finite give no meaningful one.

    noise  one number of [0, 1) a row, by which its distribution is inverted; of ``sampling.noise = "gumbel"`` a Gumbel
           number a code, and the code with the greatest sum of both is drawn
    group  of the token, whose values of the options count
    """
    logits = logits.to(torch.float32)
    if of_group(sampling.greedy, group):
        return logits.argmax(dim=-1)
    # Down from the greatest: under a small temperature the others then fall to -inf, and it stays at 0.
    kept = logits - logits.amax(dim=-1, keepdim=True)
    kept = filter_logits(kept, of_group(sampling.top_k, group), 1.0)  # before a great temperature makes ties
    temperature, min_p = of_group(sampling.temperature, group), of_group(sampling.min_p, group)
    kept = tempered(kept, temperature)
    kept = filter_logits(kept, 0, of_group(sampling.top_p, group))
    if min_p > 0:
        kept = kept.masked_fill_(kept < math.log(min_p), -torch.inf)
    if sampling.noise == "gumbel":
        return (kept + noise).argmax(dim=-1)
    return inverted(kept.softmax(dim=-1), noise)
