"""Digits and indices: a vector of digits as one integer per group, in mixed radix and exact int64 arithmetic.

The official code and most peers sum the products in float32, which is wrong above 2**24 codes and for some small books
too; here no float is ever an index. Horner's scheme keeps the radix in Python integers, so nothing is stored or copied
to a device. ``little`` order (the official code's) makes the first dimension of a group the least significant digit,
``big`` (the paper's pseudo-code) the most significant. Called by ``fsq`` and ``codes.spec``; imports torch only.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ORDERS = ("little", "big")
MAX_CODEBOOK = 2**63  # an index is an int64


def check_layout(levels: Sequence[int], groups: Sequence[int], order: str) -> None:
    """Raise ValueError unless ``groups`` (sizes) partition ``levels`` and every group's index fits an int64."""
    if not levels or any(not isinstance(L, int) or isinstance(L, bool) or L < 2 for L in levels):
        raise ValueError(f"levels={list(levels)}: expected a list of integers of at least 2")
    if any(not isinstance(g, int) or g < 1 for g in groups) or sum(groups) != len(levels):
        raise ValueError(f"groups={list(groups)}: expected positive sizes that sum to the {len(levels)} levels")
    if order not in ORDERS:
        raise ValueError(f"digit_order={order!r}: expected one of {', '.join(ORDERS)}")


def group_sizes(levels: Sequence[int], groups: Sequence[int]) -> tuple[int, ...]:
    """Codes of each group: the products of its levels, as Python integers of any size."""
    return tuple(math.prod(part) for part in _split(levels, groups))


def digits_to_indices(digits: Tensor, levels: Sequence[int], groups: Sequence[int], order: str) -> Tensor:
    """Integer digits (..., d) -> int64 indices (...) for one group, (..., g) for several.

    Raises ValueError where a group has more than 2**63 codes: use the digits, or smaller groups.
    """
    _check_sizes(levels, groups)
    indices = []
    start = 0
    for part in _split(levels, groups):
        columns = [digits[..., start + i].to(torch.int64) for i in range(len(part))]
        start += len(part)
        places = list(zip(columns, part, strict=True))
        if order == "little":
            places.reverse()
        index = places[0][0]
        for column, base in places[1:]:
            index = index * base + column
        indices.append(index)
    return indices[0] if len(groups) == 1 else torch.stack(indices, dim=-1)


def indices_to_digits(indices: Tensor, levels: Sequence[int], groups: Sequence[int], order: str) -> Tensor:
    """Inverse of `digits_to_indices`: int64 indices (...) or (..., g) -> int64 digits (..., d)."""
    _check_sizes(levels, groups)
    if len(groups) > 1 and (indices.ndim == 0 or indices.shape[-1] != len(groups)):
        raise ValueError(f"indices of shape {tuple(indices.shape)}: expected a last axis of {len(groups)} groups")
    columns: list[Tensor] = []
    for g, part in enumerate(_split(levels, groups)):
        rest = indices.to(torch.int64) if len(groups) == 1 else indices[..., g].to(torch.int64)
        digits = []
        for base in part if order == "little" else reversed(part):
            digits.append(rest % base)
            rest = rest // base
        columns.extend(digits if order == "little" else reversed(digits))
    return torch.stack(columns, dim=-1)


def check_indices(indices: Tensor, levels: Sequence[int], groups: Sequence[int]) -> None:
    """Raise ValueError naming the first index outside its group's codebook; reads the tensor, so it synchronises."""
    if indices.dtype.is_floating_point or indices.dtype.is_complex or indices.dtype == torch.bool:
        raise ValueError(f"indices of dtype {indices.dtype}: expected integers")
    sizes = group_sizes(levels, groups)
    for g, size in enumerate(sizes):
        part = indices if len(sizes) == 1 else indices[..., g]
        if part.numel() == 0:
            continue
        low, high = int(part.min()), int(part.max())
        if low < 0 or high >= size:
            worst = low if low < 0 else high
            raise ValueError(f"index {worst} in indices of shape {tuple(indices.shape)}: expected 0 to {size - 1}")


def _split(levels: Sequence[int], groups: Sequence[int]) -> list[Sequence[int]]:
    ends = [sum(groups[: i + 1]) for i in range(len(groups))]
    return [levels[end - size : end] for end, size in zip(ends, groups, strict=True)]


def _check_sizes(levels: Sequence[int], groups: Sequence[int]) -> None:
    largest = max(group_sizes(levels, groups))
    if largest > MAX_CODEBOOK:
        raise ValueError(
            f"a group of {largest} codes has no index: more than 2**63 do not fit an int64; use digits, or small groups"
        )
