"""How a tokenizer uses its codes: levels of every dimension, indices of every group.

Everything follows from counts of what occurs, so the cost does not depend on the size of the codebook, and no digit is
kept.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor

from ifsq.quantizers.digits import check_layout, digits_to_indices, group_sizes
from ifsq.quantizers.usage import entropy_bits


@dataclass(frozen=True)
class IndexUse:
    """Use of one group's indices.

    vocab             indices that the group can express
    used              of them, those that occur
    fraction          used / vocab
    fraction_limit    the most that this many tokens could reach: min(vocab, tokens) / vocab
    perplexity        2 to the entropy of the indices that occur; at most min(vocab, tokens)
    """

    vocab: int
    used: int
    fraction: float
    fraction_limit: float
    perplexity: float


@dataclass(frozen=True)
class CodeStatistics:
    """Use of levels and indices by ``tokens`` grid positions.

    histograms         per dimension, how often each level occurs
    level_bits         per dimension, entropy in bits
    level_fraction     per dimension, entropy / log2(levels): 1 is uniform use
    mean_fraction      mean of ``level_fraction``
    dead_levels        per dimension, levels that never occur
    groups             per group, use of its indices
    """

    tokens: int
    histograms: tuple[tuple[int, ...], ...]
    level_bits: tuple[float, ...]
    level_fraction: tuple[float, ...]
    mean_fraction: float
    dead_levels: tuple[int, ...]
    groups: tuple[IndexUse, ...]


class CodeCounts:
    """Running counts of levels and indices: `add` digits, `merge` counts of other images, read `statistics`.

    Memory grows with the different indices that occur (16 bytes each), not with the images.
    """

    def __init__(self, levels: tuple[int, ...], groups: tuple[int, ...]) -> None:
        check_layout(levels, groups, "little")
        self.levels, self.groups, self.tokens = levels, groups, 0
        self._levels = [np.zeros(count, np.int64) for count in levels]
        self._indices = [_SparseCounts() for _ in groups]

    def add(self, digits: Integer[Tensor, "n h w d"]) -> None:
        """Count the digits of n images, of any integer type. Raises ValueError when one does not fit the levels."""
        flat = _checked(digits, self.levels)
        # How often an index occurs does not depend on the order of the digits in it.
        indices = digits_to_indices(flat, self.levels, self.groups, "little").reshape(len(flat), -1)
        self.tokens += len(flat)
        for counts, column in zip(self._levels, flat.cpu().numpy().T, strict=True):
            counts += np.bincount(column, minlength=len(counts))
        for sparse, column in zip(self._indices, indices.cpu().numpy().T, strict=True):
            sparse.add(column, np.ones(len(column), np.int64))

    def merge(self, other: "CodeCounts") -> None:
        """Count what ``other`` has counted. Raises ValueError where its levels or groups differ."""
        mine_of, theirs_of = (f"levels={list(one.levels)}, groups={list(one.groups)}" for one in (self, other))
        if mine_of != theirs_of:
            raise ValueError(f"counts of other codes, {theirs_of}: expected {mine_of}")
        self.tokens += other.tokens
        for mine, theirs in zip(self._levels, other._levels, strict=True):
            mine += theirs
        for ours, others in zip(self._indices, other._indices, strict=True):
            ours.add(*others.all())

    def statistics(self) -> CodeStatistics:
        """Statistics of all digits so far. Raises ValueError when there are none."""
        if not self.tokens:
            raise ValueError("statistics of 0 tokens: expected some")
        bits = [entropy_bits(torch.from_numpy(histogram)) for histogram in self._levels]
        fractions = [b / math.log2(count) for b, count in zip(bits, self.levels, strict=True)]
        return CodeStatistics(
            tokens=self.tokens,
            histograms=tuple(tuple(histogram.tolist()) for histogram in self._levels),
            level_bits=tuple(bits),
            level_fraction=tuple(fractions),
            mean_fraction=float(np.mean(fractions)),
            dead_levels=tuple(int((histogram == 0).sum()) for histogram in self._levels),
            groups=tuple(map(self._index_use, self._indices, group_sizes(self.levels, self.groups))),
        )

    def _index_use(self, sparse: "_SparseCounts", vocab: int) -> IndexUse:
        counts = sparse.all()[1]
        limit = min(vocab, self.tokens) / vocab
        return IndexUse(vocab, len(counts), len(counts) / vocab, limit, 2 ** entropy_bits(torch.from_numpy(counts)))


def code_statistics(
    digits: Integer[Tensor, "n h w d"], levels: tuple[int, ...], groups: tuple[int, ...]
) -> CodeStatistics:
    """Statistics of the digits of n images, of any integer type.

    Raises ValueError when a digit does not fit the levels, or there is none.
    """
    counts = CodeCounts(levels, groups)
    counts.add(digits)
    return counts.statistics()


class _SparseCounts:
    """How often each of the integers that occur has occurred."""

    PATIENCE = (
        1 << 20
    )  # values that wait before they are sorted in; as many as are sorted in already, if those are more

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._sorted = self._waiting = 0

    def add(self, values: np.ndarray, counts: np.ndarray) -> None:
        self._parts.append((values, counts))
        self._waiting += len(values)
        if self._waiting > max(self.PATIENCE, self._sorted):
            self.all()

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """Values in order, and their counts."""
        if not self._parts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        values, counts = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        distinct, place = np.unique(values, return_inverse=True)
        total = np.zeros(len(distinct), np.int64)
        np.add.at(total, place, counts)
        self._parts, self._sorted, self._waiting = [(distinct, total)], len(distinct), 0
        return distinct, total


def _checked(digits: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Digits as int64 rows, one a token."""
    dim = len(levels)
    if digits.shape[-1] != dim or digits.numel() == 0:
        raise ValueError(f"digits {tuple(digits.shape)}: expected some with {dim} dimensions")
    flat = digits.reshape(-1, dim).long()
    outside = ((flat < 0) | (flat >= torch.tensor(levels, device=flat.device))).any(dim=0).nonzero()
    if len(outside):
        k = int(outside[0])
        low, high = int(flat[:, k].min()), int(flat[:, k].max())
        raise ValueError(f"digits of dimension {k} from {low} to {high}: expected 0 to {levels[k] - 1}")
    return flat
