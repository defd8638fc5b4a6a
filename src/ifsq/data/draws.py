"""Random numbers as a pure function of integers: the same on every machine, in every worker and numpy version.

The function is the SplitMix64 finaliser (Steele, Lea and Flood 2014), chained over its arguments. A numpy generator
costs 15 microseconds to seed, as much as a whole crop.
"""

from typing import TypeVar

import numpy as np

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_GAMMA = 0x9E37_79B9_7F4A_7C15

Word = TypeVar("Word", int, np.ndarray)


def _scramble(word: Word) -> Word:
    word = ((word ^ (word >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK
    return word ^ (word >> 31)


def mix(*values: int) -> int:
    """A hash of non-negative integers below 2**64, uniform on 0 .. 2**63 - 1 (so that it fits an int64)."""
    word = 0
    for value in values:
        word = _scramble((word + value + _GAMMA) & _MASK)
    return word >> 1


def mix_range(seed: int, epoch: int, n: int) -> np.ndarray:
    """`mix(seed, epoch, i)` for i in 0 .. n - 1, as uint64."""
    prefix = _scramble((_scramble((seed + _GAMMA) & _MASK) + epoch + _GAMMA) & _MASK)
    start = np.array([(prefix + _GAMMA) & _MASK], dtype=np.uint64)
    return _scramble(start + np.arange(n, dtype=np.uint64)) >> np.uint64(1)


class Draws:
    """A stream of random numbers that the given integers decide."""

    def __init__(self, *seed: int) -> None:
        self._key, self._count = mix(*seed), 0

    def uniform(self) -> float:
        """A float in [0, 1)."""
        self._count += 1
        return (mix(self._key, self._count) >> 10) * 2.0**-53

    def below(self, n: int) -> int:
        """An integer in 0 .. n - 1."""
        return int(self.uniform() * n)
