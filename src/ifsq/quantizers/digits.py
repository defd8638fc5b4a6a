"""Digits and indices: a vector of digits as one integer per group, in mixed radix and exact int64 arithmetic.

The official code and most peers sum the products in float32, which is wrong above 2**24 codes and for some small books
too; here no float is ever an index. Horner's scheme keeps the radix in Python integers, so nothing is stored or copied
to a device. ``little`` order (the official code's) makes the first dimension of a group the least significant digit,
``big`` (the paper's pseudo-code) the most significant.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ifsq.quantizers.compilers import is_exporting

ORDERS = ("little", "big")
MAX_CODEBOOK = 2**63  # an index is an int64
BLOCK = 2**17  # numbers at a time for each thread: with what is computed of them in its cache of the second level


def check_layout(levels: Sequence[int], groups: Sequence[int], order: str) -> None:
    """Raise ValueError unless level counts are at least 2, ``groups`` (sizes) partition them and ``order`` is known."""
    if not levels or any(not isinstance(L, int) or isinstance(L, bool) or L < 2 for L in levels):
        raise ValueError(f"levels={list(levels)}: expected a list of integers of at least 2")
    if any(not isinstance(g, int) or g < 1 for g in groups) or sum(groups) != len(levels):
        raise ValueError(f"groups={list(groups)}: expected positive sizes that sum to the {len(levels)} levels")
    if order not in ORDERS:
        raise ValueError(f"digit_order={order!r}: expected one of {', '.join(ORDERS)}")


def group_sizes(levels: Sequence[int], groups: Sequence[int]) -> tuple[int, ...]:
    """Codes of each group: the products of its levels, as Python integers of any size."""
    return tuple(math.prod(part) for part in digits_of_groups(levels, groups))


def digits_to_indices(
    digits: Tensor, levels: Sequence[int], groups: Sequence[int], order: str, axis: int = -1
) -> Tensor:
    """Integer digits, channels on ``axis`` -> int64 indices without that axis; several groups on a new last axis.

    Raises ValueError where a group has more than 2**63 codes: use the digits, or smaller groups.
    """
    columns = _signed(digits).unbind(axis)
    indices, start = [], 0
    for part in digits_of_groups(levels, groups):
        size = _indexable(part)
        places = list(zip(columns[start : start + len(part)], part, strict=True))
        start += len(part)
        if order == "little":
            places.reverse()
        # Half the width is twice as fast; what this group's index can hold decides, so nothing is lost.
        index = places[0][0].to(torch.int32 if size <= 2**31 else torch.int64)
        for column, base in places[1:]:
            index = torch.add(column, index, alpha=base)
        indices.append(index.to(torch.int64))
    return indices[0] if len(groups) == 1 else torch.stack(indices, dim=-1)


def indices_to_digits(
    indices: Tensor,
    levels: Sequence[int],
    groups: Sequence[int],
    order: str,
    axis: int = -1,
    dtype: torch.dtype = torch.int64,
) -> Tensor:
    """Inverse of `digits_to_indices`: int64 indices (...), or (..., g) with several groups -> digits of type ``dtype``.

    The channels come on ``axis`` of the result.
    """
    if len(groups) > 1 and (indices.ndim == 0 or indices.shape[-1] != len(groups)):
        raise ValueError(f"indices of shape {tuple(indices.shape)}: expected a last axis of {len(groups)} groups")
    columns: list[Tensor] = []
    for g, part in enumerate(digits_of_groups(levels, groups)):
        rest = (indices if len(groups) == 1 else indices[..., g]).to(torch.int64)
        bases = list(part if order == "little" else reversed(part))
        small = _indexable(part) <= 2**31
        digits = []
        for base in bases[:-1]:
            above = _divide(rest, base, small)
            digits.append(torch.sub(rest, above, alpha=base).to(dtype))
            rest = above
        digits.append(rest.to(dtype))
        columns.extend(digits if order == "little" else reversed(digits))
    return torch.stack(columns, dim=axis)


def by_blocks(compute: Callable[[Tensor], Tensor], x: Tensor, inner: int = 0) -> Tensor:
    """``compute(x)`` of many numbers, a block at a time that a processor's cache holds. No gradient.

    inner    last axes of x that belong together; the others are independent of each other, and lead the result's shape
    compute  of x, or of a part of it with one axis in place of these others

    At once where x is small, on an accelerator, and under a compiler, which does this itself.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or x.numel() <= BLOCK * torch.get_num_threads():
        return compute(x)
    outer = x.shape[: x.ndim - inner]
    rows = x.detach().reshape(-1, *x.shape[len(outer) :])
    count = max(1, BLOCK * torch.get_num_threads() * len(rows) // rows.numel())
    first = compute(rows[:count])
    whole = first.new_empty(len(rows), *first.shape[1:])
    whole[:count] = first
    for start in range(count, len(rows), count):
        whole[start : start + count] = compute(rows[start : start + count])
    return whole.unflatten(0, outer)


def check_indices(indices: Tensor, levels: Sequence[int], groups: Sequence[int]) -> None:
    """Raise ValueError naming the first index outside its group's codebook; reads the tensor, so it synchronises."""
    if indices.dtype.is_floating_point or indices.dtype.is_complex or indices.dtype == torch.bool:
        raise ValueError(f"indices of dtype {indices.dtype}: expected integers")
    sizes = group_sizes(levels, groups)
    if len(sizes) > 1 and (indices.ndim == 0 or indices.shape[-1] != len(sizes)):
        raise ValueError(f"indices of shape {tuple(indices.shape)}: expected a last axis of {len(sizes)} groups")
    for g, size in enumerate(sizes):
        part = indices if len(sizes) == 1 else indices[..., g]
        if part.numel() == 0:
            continue
        low, high = (int(end) for end in _signed(part).aminmax())
        if low < 0 or high >= size:
            worst = low if low < 0 else high
            raise ValueError(f"index {worst} in indices of shape {tuple(indices.shape)}: expected 0 to {size - 1}")


def check_digits(digits: Tensor, levels: Sequence[int]) -> None:
    """Raise ValueError naming the first digit outside its levels; channels last. Reads the tensor."""
    if digits.dtype.is_floating_point or digits.dtype.is_complex or digits.dtype == torch.bool:
        raise ValueError(f"digits of dtype {digits.dtype}: expected integers")
    if digits.ndim == 0 or digits.shape[-1] != len(levels):
        raise ValueError(f"digits of shape {tuple(digits.shape)}: expected a last axis of {len(levels)} digits")
    if digits.numel() == 0:
        return
    rows = _signed(digits).reshape(-1, len(levels))
    lows, highs = rows.aminmax(dim=0)
    for k, (low, high, L) in enumerate(zip(lows.tolist(), highs.tolist(), levels, strict=True)):
        if low < 0 or high >= L:
            worst = low if low < 0 else high
            raise ValueError(
                f"digit {worst} in dimension {k} of digits of shape {tuple(digits.shape)}: expected 0 to {L - 1}"
            )


def _divide(x: Tensor, base: int, small: bool) -> Tensor:
    """``x // base`` of int64 from 0 on, ``small`` where x is below 2**31.

    Processors divide one integer at a time but multiply many: x // base = (x * ceil(2**s / base)) >> s, exact for x
    below 2**31 and s = 31 + ceil(log2 base) (Granlund and Montgomery 1994). Compilers know that themselves. ONNX has no
    shift of signed integers, and a ``torch.div`` that rounds is written there as a division of float32 (``findings/``).
    """
    if is_exporting():
        return torch.floor_divide(x, base)
    if not small or torch.compiler.is_compiling():
        return torch.div(x, base, rounding_mode="trunc")
    shift = 31 + (base - 1).bit_length()
    return (x * -(-(1 << shift) // base)).bitwise_right_shift_(shift)


def _signed(x: Tensor) -> Tensor:
    """Integers in a type that torch has arithmetic for, which the larger unsigned ones lack."""
    return x.to(torch.int64) if x.dtype in (torch.uint16, torch.uint32, torch.uint64) else x


def digits_of_groups(levels: Sequence[int], groups: Sequence[int]) -> list[Sequence[int]]:
    """The levels of each group."""
    if len(groups) == 1:
        return [levels]
    ends = [sum(groups[: i + 1]) for i in range(len(groups))]
    return [levels[end - size : end] for end, size in zip(ends, groups, strict=True)]


def _indexable(levels: Sequence[int]) -> int:
    """The number of codes of a group. Raises ValueError where they have no index."""
    size = math.prod(levels)
    if size > MAX_CODEBOOK:
        raise ValueError(
            f"a group of {size} codes has no index: more than 2**63 do not fit an int64; use digits, or smaller groups"
        )
    return size
