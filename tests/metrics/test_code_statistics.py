"""Use of levels and indices: known distributions, and counting by hand."""

import math
from collections import Counter

import pytest
import torch

from ifsq.metrics import CodeCounts, code_statistics
from ifsq.metrics.codebook import _SparseCounts


def random_digits(levels: tuple[int, ...], n: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    columns = [torch.randint(count, (n, 4, 4), generator=draw) for count in levels]
    return torch.stack(columns, dim=-1).to(torch.uint8)


def test_every_code_once_is_uniform_use() -> None:
    found = code_statistics(torch.cartesian_prod(torch.arange(4), torch.arange(4)).view(1, 4, 4, 2), (4, 4), (2,))
    assert found.level_bits == (2.0, 2.0)
    assert found.mean_fraction == 1.0
    assert found.dead_levels == (0, 0)
    assert (found.groups[0].used, found.groups[0].fraction, found.groups[0].perplexity) == (16, 1.0, 16.0)


def test_one_code_is_no_use() -> None:
    found = code_statistics(torch.full((3, 4, 4, 2), 1), (3, 5), (1, 1))
    assert found.level_bits == (0.0, 0.0)
    assert found.dead_levels == (2, 4)
    assert found.histograms == ((0, 48, 0), (0, 48, 0, 0, 0))
    assert [group.perplexity for group in found.groups] == [1.0, 1.0]
    assert [group.fraction for group in found.groups] == [1 / 3, 1 / 5]


def test_a_level_that_occurs_once_is_alive() -> None:
    digits = torch.full((3, 4, 4, 1), 1)
    digits[2, 0, 3] = 0
    found = code_statistics(digits, (3,), (1,))
    assert found.histograms == ((1, 47, 0),)
    assert found.dead_levels == (1,)


def test_counts_equal_those_of_a_dictionary() -> None:
    levels, groups = (5, 3, 4, 6), (1, 3)
    digits = random_digits(levels, 9)
    found = code_statistics(digits, levels, groups)
    rows = digits.reshape(-1, 4).tolist()
    start = 0
    for use, size in zip(found.groups, groups, strict=True):
        counts = Counter(tuple(row[start : start + size]) for row in rows)
        entropy = -sum(c / len(rows) * math.log2(c / len(rows)) for c in counts.values())
        assert use.used == len(counts)
        assert use.vocab == math.prod(levels[start : start + size])
        assert use.fraction_limit == min(use.vocab, len(rows)) / use.vocab
        assert use.perplexity == pytest.approx(2**entropy)
        start += size
    for k in range(4):
        counts = Counter(row[k] for row in rows)
        entropy = -sum(c / len(rows) * math.log2(c / len(rows)) for c in counts.values())
        assert found.histograms[k] == tuple(counts[level] for level in range(levels[k]))
        assert found.level_bits[k] == pytest.approx(entropy)
        assert found.level_fraction[k] == pytest.approx(entropy / math.log2(levels[k]))


@pytest.mark.parametrize("patience", [0, 3, 1 << 20])
def test_parts_counted_apart_are_the_whole(patience: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_SparseCounts, "PATIENCE", patience)
    spec = (5, 3, 4, 6), (1, 3)
    digits = random_digits(spec[0], 9)
    left, right = CodeCounts(*spec), CodeCounts(*spec)
    for part in digits[:6].split(2):
        left.add(part)
    right.add(digits[6:])
    left.merge(right)
    left.merge(CodeCounts(*spec))
    assert left.statistics() == code_statistics(digits, *spec)


def test_only_different_indices_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_SparseCounts, "PATIENCE", 64)
    counts = CodeCounts((2, 2), (2,))
    for _ in range(100):
        counts.add(random_digits((2, 2), 1))
    assert sum(len(values) for values, _ in counts._indices[0]._parts) <= 64 + 16 + 4
    assert counts.statistics().tokens == 1600


def test_a_huge_codebook_costs_nothing() -> None:
    levels = (17,) * 8
    found = code_statistics(random_digits(levels, 8), levels, (8,))
    assert found.groups[0].vocab == 17**8
    assert found.groups[0].used == found.tokens == 128
    assert found.groups[0].fraction_limit == 128 / 17**8
    assert found.groups[0].perplexity == pytest.approx(128)


def test_digits_that_do_not_fit_are_named() -> None:
    spec = (3, 5), (2,)
    with pytest.raises(ValueError, match="dimension 0 from 0 to 4: expected 0 to 2"):
        code_statistics(torch.tensor([4, 0, 0, 0]).reshape(1, 1, 2, 2), *spec)
    with pytest.raises(ValueError, match="dimension 1 from -1 to 0: expected 0 to 4"):
        code_statistics(torch.tensor([0, -1, 0, 0]).reshape(1, 1, 2, 2), *spec)
    with pytest.raises(ValueError, match=r"digits \(1, 2, 2, 3\): expected some with 2 dimensions"):
        code_statistics(torch.zeros(1, 2, 2, 3, dtype=torch.long), *spec)
    with pytest.raises(ValueError, match="expected some"):
        code_statistics(torch.zeros(0, 2, 2, 2, dtype=torch.long), *spec)
    with pytest.raises(ValueError, match="0 tokens"):
        CodeCounts(*spec).statistics()
    with pytest.raises(
        ValueError,
        match=r"counts of other codes, levels=\[3, 3\], groups=\[2\]: expected levels=\[3, 5\], groups=\[2\]",
    ):
        CodeCounts(*spec).merge(CodeCounts((3, 3), (2,)))
