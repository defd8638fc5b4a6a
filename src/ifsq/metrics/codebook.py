"""How a tokenizer uses its codes: levels of every dimension, indices of every group.

Everything follows from counts of digits that occur, so the cost does not depend on the size of the codebook. Called by
``pipeline`` and the report.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from ifsq.codes.spec import CodeSpec


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


def entropy_bits(counts: Int[np.ndarray, "k"]) -> float:
    """Entropy in bits of the distribution that counts (not all zero) describe."""
    p = counts[counts > 0] / counts.sum()
    return abs(float(-(p * np.log2(p)).sum()))


def code_statistics(digits: Integer[Tensor, "n h w d"], spec: CodeSpec) -> CodeStatistics:
    """Statistics of the digits of n images, of any integer type.

    Raises ValueError when a digit does not fit the spec, or there is none.
    """
    flat = _checked(digits, spec)
    histograms = [np.bincount(flat[:, k], minlength=count) for k, count in enumerate(spec.levels)]
    bits = [entropy_bits(histogram) for histogram in histograms]
    fractions = [b / math.log2(count) for b, count in zip(bits, spec.levels, strict=True)]
    return CodeStatistics(
        tokens=len(flat),
        histograms=tuple(tuple(histogram.tolist()) for histogram in histograms),
        level_bits=tuple(bits),
        level_fraction=tuple(fractions),
        mean_fraction=float(np.mean(fractions)),
        dead_levels=tuple(int((histogram == 0).sum()) for histogram in histograms),
        groups=_index_use(digits, spec),
    )


def _index_use(digits: Tensor, spec: CodeSpec) -> tuple[IndexUse, ...]:
    indices = spec.digits_to_indices(digits.long()).flatten(0, -2).cpu().numpy()
    uses = []
    for group, vocab in enumerate(spec.vocab_sizes):
        counts = np.unique(indices[:, group], return_counts=True)[1]
        limit = min(vocab, len(indices)) / vocab
        uses.append(IndexUse(vocab, len(counts), len(counts) / vocab, limit, 2 ** entropy_bits(counts)))
    return tuple(uses)


def _checked(digits: Tensor, spec: CodeSpec) -> np.ndarray:
    if digits.shape[-1] != spec.dim or digits.numel() == 0:
        raise ValueError(f"digits {tuple(digits.shape)}: expected some with {spec.dim} dimensions")
    flat = digits.reshape(-1, spec.dim).long()
    outside = ((flat < 0) | (flat >= torch.tensor(spec.levels, device=flat.device))).any(dim=0).nonzero()
    if len(outside):
        k = int(outside[0])
        low, high = int(flat[:, k].min()), int(flat[:, k].max())
        raise ValueError(f"digits of dimension {k} from {low} to {high}: expected 0 to {spec.levels[k] - 1}")
    return flat.cpu().numpy()
