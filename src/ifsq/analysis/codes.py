"""``ifsq analyze codes``: how a code cache uses levels and indices."""

from pathlib import Path

from ifsq.analysis.table import Table
from ifsq.codes import CodeCache
from ifsq.metrics import CodeCounts
from ifsq.training.log import Reporter, Silent

COUNTED_AT_ONCE = 8192  # images: counting takes int64 digits, eight times the bytes of the cache


def analyze_codes(folder: Path, split: str, reporter: Reporter | None = None) -> tuple[Table, Table]:
    """Use of every dimension's levels and of every group's indices, over all images of a split. Raises InputError."""
    cache = CodeCache.open(folder)
    counts = CodeCounts(cache.spec.levels, cache.spec.groups)
    content, reporter = cache.read(split).content, reporter or Silent()
    reporter.start("codes", 0, len(content))
    for start in range(0, len(content), COUNTED_AT_ONCE):
        counts.add(content[start : start + COUNTED_AT_ONCE])
        reporter.advance(min(start + COUNTED_AT_ONCE, len(content)), {})
    reporter.finish({})
    use = counts.statistics()
    dimensions = tuple(
        (str(d), str(L), f"{use.level_bits[d]:.3f}", f"{use.level_fraction[d]:.4f}", str(use.dead_levels[d]))
        for d, L in enumerate(cache.spec.levels)
    )
    groups = tuple(
        (str(g), str(group.vocab), str(group.used), f"{group.fraction:.4f}", f"{group.perplexity:.1f}")
        for g, group in enumerate(use.groups)
    )
    of = f"{cache.folder}, {split}: {cache.count(split)} images, {use.tokens} positions"
    return (
        Table(of, ("dimension", "levels", "entropy, bits", "entropy / log2 L", "dead levels"), dimensions),
        Table("indices", ("group", "indices", "used", "share", "perplexity"), groups),
    )
