"""The page of a grid: its question, the verdicts with their intervals, cells, curves, samples, and what failed."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from ifsq.bench.charts import Line, line_chart, mark
from ifsq.bench.figures import ARROWS, LARGEST, compute_text, decimals_of, interval_text, is_of_codes, text_of, titled
from ifsq.bench.figures import better as side_of
from ifsq.bench.forecast import correlation_table
from ifsq.bench.grid.cells import told
from ifsq.bench.grid.config import GENERATOR, Value
from ifsq.bench.page import Block, Charts, Commands, Details, Fact, Page, Pictures, Section, Table
from ifsq.bench.pictures import GAP, level_bars, picture, scale_of
from ifsq.bench.summary import Family, Figure, Summary, same_codes, winner_of
from ifsq.bench.tables import PROTOCOL_COLUMNS, protocol_columns, search_table
from ifsq.data.images import height_width
from ifsq.evaluation.record import read_cards
from ifsq.metrics.card import ProtocolCard
from ifsq.quantizers.usage import LevelUse
from ifsq.store.run import EVALUATION

MOST_SHEETS = 8  # cells whose samples are shown
MOST_LINES = 6  # of a chart, before it is split
MOST_LEVELS = 4  # tokenizers whose use of levels is shown
MOST_TOLD = 4  # pairs of values in the sentence at the top
SPREAD = "mean ± standard deviation over training seeds, each the mean of its sampling seeds"


def grid_page(summary: Summary, title: str, machine: str) -> Page:
    """What the page of a grid says."""
    sections = [
        Section("Verdicts", _verdicts(summary)),
        Section("Cells", [*(_cells(summary, of) for of in summary.kinds), *_searches(summary)]),
        Section("Over the axes", _over_axes(summary)),
        Section("Quality over training compute", _over_training(summary)),
        Section("What tokenizers foretell", _foretold(summary)),
        Section("Samples", _samples(summary)),
        Section("How evenly the levels are used", _levels(summary)),
        Section("What is equal, and what is not", _equal(summary)),
        Section("What failed", _failed(summary)),
        Section("By seed", [_by_seed(summary, of) for of in summary.kinds]),
        Section("Protocol cards", [_cards(of) for of in summary.kinds]),
        Section("Commands", _commands(summary)),
    ]
    cells = {summary.name(one.cell) for one in summary.last}
    seeds = sorted({len(one.figures) for one in summary.last})
    counted = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    fixed = ", ".join(f"{name} {value}" for name, value in summary.constant.items())
    about = f"{len(cells)} cells, {counted} training seed{'s' if seeds[-1] > 1 else ''} each" + (
        f"; all: {fixed}" if fixed else ""
    )
    if len(summary.code_versions) > 1:
        about += f"; measured by several versions of the code: {', '.join(summary.code_versions)}"
    if summary.failures:
        about += f"; {len(summary.failures)} stage{'s' if len(summary.failures) > 1 else ''} failed"
    return Page(
        title=title,
        about=f"{about}.",
        question=summary.about.question or "Which cells of the grid are better, and how sure is that?",
        verdict=_verdict(summary),
        figures=_all_figures(summary),
        facts=_best(summary),
        sections=[section for section in sections if section.blocks],
        footer=f"{machine}.",
    )


def _headline(summary: Summary) -> Family | None:
    """The family that the sentence at the top is of: the first that the grid names of generators where there are any.

    Of a grid that names none it is that of the first metric.
    """
    metrics = [one.metric for one in (summary.kinds[-1] if summary.kinds else [])]
    if summary.about.grid is not None:
        metrics = [family.metric for family in summary.families if family.metric in metrics]
    named = (family for metric in metrics for family in summary.families if family.metric == metric)
    return next(named, next(iter(summary.families), None))


def _verdict(summary: Summary) -> str:
    family = _headline(summary)
    if summary.protocol is None:
        return "One training seed a cell: no spread of retraining is known, and nothing is told apart."
    if family is None:
        return "No two cells differ on one axis alone: nothing is compared."
    if len(family.verdicts) == 1:
        return f"By {family.metric}: {family.verdicts[0].sentence}."
    more = f"; {len(family.told) - MOST_TOLD} more in the table" if len(family.told) > MOST_TOLD else ""
    told = f"By {family.metric}: {'; '.join(family.told[:MOST_TOLD])}{more}."
    if all(verdict.words == "open" for verdict in family.verdicts):
        return told
    return f"{told} The chance that any of these verdicts is false is at most {family.protocol.error:.0%}."


def _best(summary: Summary) -> list[Fact]:
    """The best mean of each kind's first metric that has a better side and compares over all of its cells."""
    facts = []
    for of in summary.kinds:
        metrics = dict.fromkeys(one.metric for one in of if side_of(one.metric))
        apart = {name for name in metrics if is_of_codes(name) and not same_codes(_named(of, name))}
        metric = next((name for name in metrics if name not in apart), None)
        if metric:
            found = _named(of, metric)
            end = min if side_of(metric).startswith("lower") else max
            best = end(found, key=lambda one: one.mean)
            facts.append(Fact(_mean(best), f"best mean of {titled(metric)}: {summary.name(best.cell)}"))
    return facts


def _named(of: Sequence[Figure], metric: str) -> list[Figure]:
    return [one for one in of if one.metric == metric]


def _mean(one: Figure, decimals: int | None = None) -> str:
    decimals = decimals_of([one.mean]) if decimals is None else decimals
    spread = "" if one.deviation is None else f" ± {text_of(one.deviation, decimals)}"
    return f"{text_of(one.mean, decimals)}{spread}"


def _verdicts(summary: Summary) -> list[Block]:
    headline, blocks = _headline(summary), list[Block]()
    for family in summary.families:
        table = _family(family, alone=summary.about.grid is None)
        decided = sum(verdict.decided for verdict in family.verdicts)
        folded = f"{family.metric} {ARROWS[family.side]}: {decided} of {len(family.verdicts)} told apart"
        blocks.append(table) if family is headline else blocks.append(Details(folded, table))
    return sorted(blocks, key=lambda block: block.kind != "table")


def _family(family: Family, *, alone: bool) -> Table:
    rows = []
    for verdict in family.verdicts:
        asked = verdict.comparison
        neither = "open: more seeds may decide" if verdict.words == "open" else verdict.words
        row = [asked.a, asked.b, ("a is better", "b is better", neither)[winner_of(verdict)]]
        if verdict.gap is None:
            rows.append([*row, "", "", "", "", ""])
            continue
        gap, interval, percent, seen = verdict.gap.value, verdict.interval, verdict.percent, verdict.detectable
        decimals = decimals_of([gap, *(interval or ())])
        row += [text_of(gap, decimals), interval_text(*interval, decimals) if interval else "no spread"]
        row += [f"{text_of(percent[0], 1)} ({interval_text(percent[1], percent[2], 1)})" if percent else ""]
        row += [
            "" if seen is None else text_of(seen, decimals),
            f"{verdict.gap.seeds}{' pairs' if verdict.gap.paired else ''}",
        ]
        rows.append(row)
    columns = ["a", "b", "verdict", "a - b", "interval", "percent of b", "seen if at least", "seeds"]
    looks = ", ".join(map(str, family.protocol.looks))
    of = "in this table" if alone else "in all of the grid's comparisons"
    caption = (
        f"{family.metric}, {family.side}. The chance of any false verdict {of} is at most"
        f" {family.protocol.error:.0%} (looks at {looks} seeds, Holm over both directions); a verdict falls where the"
        f" interval leaves out 0. Seen if at least: the gap that is told apart {family.protocol.power:.0%} of the time."
    )
    return Table(caption, columns, rows, range(3, len(columns)))


def _cells(summary: Summary, of: Sequence[Figure]) -> Table:
    """A cell a row, a metric a column."""
    axes = _axes(summary, of)
    metrics = list(dict.fromkeys(one.metric for one in of))
    decimals = {name: decimals_of([one.mean for one in of if one.metric == name]) for name in metrics}
    cells: dict[str, dict[str, Figure]] = {}
    for one in of:
        cells.setdefault(summary.name(one.cell), {})[one.metric] = one
    rows = []
    for found in cells.values():
        first = next(iter(found.values()))
        figures = [_mean(found[name], decimals[name]) if name in found else "" for name in metrics]
        flops = next((one.flops for one in found.values() if one.flops is not None), None)
        counts = ", ".join(map(str, sorted({len(one.figures) for one in found.values()})))
        search = summary.searches.get(told(first.cell))
        more = [f"{search.guidance:g}" if search else "", counts, compute_text(flops) if flops else ""]
        rows.append([*(str(first.cell.get(axis, "")) for axis in axes), *figures, *more])
    columns = [*axes, *map(titled, metrics), "guidance chosen", "seeds", "training compute"]
    kept = [at for at, name in enumerate(columns) if name not in columns[-3:] or any(row[at] for row in rows)]
    columns, rows = [columns[at] for at in kept], [[row[at] for at in kept] for row in rows]
    caption = f"{SPREAD[0].upper()}{SPREAD[1:]}, at the last step. ↓ lower is better, ↑ higher is better."
    if not all(same_codes(_named(of, name)) for name in metrics if is_of_codes(name)):
        caption += " Bits compare behind the same tokenizer alone: codes that say less of the image have fewer."
    return Table(caption, columns, rows, range(len(axes), len(columns)))


def _searches(summary: Summary) -> list[Block]:
    """What the search of each cell's guidance scale found, where there was one."""
    names = {summary.name(one.cell): told(one.cell) for one in summary.last}
    found = {name: summary.searches[cell] for name, cell in names.items() if cell in summary.searches}
    return [Details(f"the search of the guidance scale, {len(found)} cells", search_table(found))] if found else []


def _axes(summary: Summary, of: Sequence[Figure]) -> list[str]:
    axes = [name for name in summary.varying if any(name in one.cell for one in of)]
    return axes or list(summary.constant)[:1]


def _over_axes(summary: Summary) -> list[Block]:
    """For each axis of numbers: every metric over it, a line for each of the other values."""
    blocks: list[Block] = []
    for of in summary.kinds:
        for axis in _axes(summary, of):
            members = [one for one in of if _is_number(one.cell.get(axis))]
            if len({one.cell[axis] for one in members}) < 2:
                continue

            caption = f"At the last step, over {axis}. Band: from the least to the greatest of the training seeds."
            blocks += _charts(members, axis, partial(_number, axis), partial(_but, summary, axis=axis), caption)
    return blocks


def _is_number(value: Value | None) -> bool:
    """Whether it is one that can be drawn."""
    return isinstance(value, (int, float)) and abs(value) < LARGEST


def _number(axis: str, one: Figure) -> float:
    return float(one.cell[axis])


def _over_training(summary: Summary) -> list[Block]:
    """Every metric that was measured at several steps, over the training compute, else over the steps."""
    several = {
        (summary.name(one.cell), one.metric) for one in summary.main if (one.step or 0) and one not in summary.last
    }
    of = [one for one in summary.main if (summary.name(one.cell), one.metric) in several]
    found: dict[tuple[str, str], set[tuple[float, ...]]] = {}
    for one in of:
        found.setdefault((summary.name(one.cell), one.metric), set()).add(tuple(one.means.values()))
    moved = {metric for (_, metric), means in found.items() if len(means) > 1}
    of = [one for one in of if one.metric in moved]  # what the tokenizer leaves alone is the same at every step
    if not of:
        return []
    counted = all(one.flops is not None for one in of)

    def place(one: Figure) -> float:
        return float((one.flops if counted else one.step) or 0)

    caption = "Every step that was measured; line: mean over training seeds, band: from the least to the greatest."
    axis = "training FLOP" if counted else "step"
    split = _split(summary, of)
    if split is None:
        return _charts(of, axis, place, lambda one: summary.name(one.cell), caption, ratios=counted)
    return _charts(of, axis, place, partial(_but, summary, axis=split), caption, ratios=counted, split=split)


def _split(summary: Summary, of: Sequence[Figure]) -> str | None:
    """The axis whose values have charts of their own, so that none has too many lines; None of few cells."""
    cells = {summary.name(one.cell) for one in of}
    if len(cells) <= MOST_LINES:
        return None
    axes = [axis for axis in _axes(summary, of) if axis != "generator"]
    lines = {axis: len({_but(summary, one, axis) for one in of}) for axis in axes}
    return min(lines, key=lambda axis: lines[axis], default=None)


def _charts(
    of: Sequence[Figure],
    axis: str,
    place: Callable[[Figure], float],
    name: Callable[[Figure], str],
    caption: str,
    *,
    ratios: bool = False,
    split: str = "",
) -> list[Block]:
    """A chart a metric, and a value of the axis ``split``; a line a name, in a band over its seeds."""
    of = [one for one in of if all(abs(value) < LARGEST for value in one.means.values())]
    names = list(dict.fromkeys(name(one) for one in of))
    looks = {each: look for look, each in enumerate(names)}
    charts = []
    for value in dict.fromkeys(one.cell.get(split) for one in of):
        members = [one for one in of if one.cell.get(split) == value]
        said = f", {split} {'-' if value is None else value}" if split else ""
        for metric in dict.fromkeys(one.metric for one in members if side_of(one.metric)):
            lines = []
            for each in names:
                points = sorted((one for one in members if one.metric == metric and name(one) == each), key=place)
                if points:
                    lines.append(_line(each, points, place, looks[each]))
            charts.append(line_chart(f"{titled(metric)}{said}", lines, axis, ratios=ratios))
    legend = [mark(each, look) for each, look in looks.items()] if len(names) > 1 else []
    return [Charts(charts, caption, legend)] if charts else []


def _line(name: str, points: Sequence[Figure], place: Callable[[Figure], float], look: int) -> Line:
    ends = [list(map(end, (one.means.values() for one in points))) for end in (min, max)]
    low, high = ends if any(len(one.figures) > 1 for one in points) else ([], [])
    return Line(name, list(map(place, points)), [one.mean for one in points], low, high, look)


def _but(summary: Summary, one: Figure, axis: str) -> str:
    """A cell's name without one axis."""
    rest = {name: value for name, value in one.cell.items() if name != axis}
    return summary.name(rest) if any(name in summary.varying for name in rest) else "all cells"


def _foretold(summary: Summary) -> list[Block]:
    """Rank correlations of tokenizers' figures with each metric of the generators."""
    blocks: list[Block] = []
    for metric, found in summary.correlations.items():
        caption = (
            f"Spearman's correlation, over tokenizers, of a figure of theirs with {titled(metric)} of a generator"
            " behind them, each the mean over seeds; 95 % interval over other tokenizers, and how many there are."
        )
        table = correlation_table(found, caption)
        blocks.append(Details(f"with {titled(metric)}", table) if blocks else table)
    return blocks


def _samples(summary: Summary) -> list[Block]:
    """Sheets of samples of the first training seed of each cell, as their runs have them."""
    runs: dict[str, Path] = {}
    for one in summary.last:
        if "generator" in one.cell:
            runs.setdefault(summary.name(one.cell), summary.folder / one.of[0].run)
    held = [read_cards(run / EVALUATION) for run in runs.values() if (run / EVALUATION).is_file()]
    scale = scale_of(held[0].cards[0].size) if held else 1
    rows, height = (held[0].shown, scale * (height_width(held[0].cards[0].size)[0] + GAP)) if held else ((), 0)
    searched = "; ".join(dict.fromkeys(one.neighbours for one in held if one.neighbours)) or "pixels"
    blocks: list[Block] = []
    for file, caption in (
        (
            "classes.png",
            "One class a row, of the first training seed; the samples are the first drawn, none was chosen.",
        ),
        ("neighbours.png", f"Pairs: a sample, and at its right the training image nearest to it, by {searched}."),
    ):
        found = [(name, run / "samples" / file) for name, run in runs.items() if (run / "samples" / file).is_file()]
        sheets = [
            picture(path, name, f"samples of {name}, one class a row", scale) for name, path in found[:MOST_SHEETS]
        ]
        more = f" The first {MOST_SHEETS} of {len(found)} cells." if len(found) > MOST_SHEETS else ""
        if sheets:
            blocks.append(Pictures(sheets, f"{caption}{more}", rows, height))
    return blocks


def _levels(summary: Summary) -> list[Block]:
    runs: dict[str, Mapping[str, LevelUse]] = {}
    for one in summary.last:
        # A run of nested levels has an evaluation of each, and its usual one may be of another cell.
        file = summary.folder / (one.of[0].evaluation or one.of[0].run) / EVALUATION
        if "generator" not in one.cell and file.is_file() and (levels := read_cards(file).levels):
            runs.setdefault(summary.name(one.cell), levels)
    charts = [level_bars(levels, name) for name, levels in list(runs.items())[:MOST_LEVELS]]
    return [chart for chart in charts if chart is not None]


def _equal(summary: Summary) -> list[Block]:
    about = summary.about
    blocks: list[Block] = []
    if about.differ:
        rows = [
            [name, ", ".join(map(str, values)) if isinstance(values, list | tuple) else str(values)]
            for name, values in about.differ.items()
        ]
        blocks.append(
            Table("Options that generators of the grid have with different values.", ["option", "values"], rows)
        )
    if about.unequal:
        blocks.append(
            Table("What cannot be equal between kinds of generators.", ["what"], [[line] for line in about.unequal])
        )
    if about.equal:
        rows = [[name, str(value)] for name, value in about.equal.items()]
        table = Table("", ["option", "value"], rows)
        blocks.append(Details(f"{len(rows)} options that all generators of the grid share", table))
    if about.left_out:
        blocks.append(Table("Cells that the grid leaves out.", ["cells"], [[line] for line in about.left_out]))
    return blocks


def _failed(summary: Summary) -> list[Block]:
    rows = [[one.stage, ", ".join(one.cells), one.error] for one in summary.failures]
    text = "What needs a failed stage was not done; the rest of the grid was."
    return [Table(text, ["stage", "cells", "error"], rows)] if rows else []


def _by_seed(summary: Summary, of: Sequence[Figure]) -> Details:
    rows = []
    for one in of:
        decimals = decimals_of(list(one.means.values()))
        for seed, figures in one.figures.items():
            drawn = ", ".join(text_of(figure, decimals) for figure in figures) if len(figures) > 1 else ""
            rows.append(
                [summary.name(one.cell), titled(one.metric), str(seed), text_of(one.means[seed], decimals), drawn]
            )
    columns = ["cell", "metric", "training seed", "figure", "by sampling seed"]
    kind = "generators" if "generator" in of[0].cell else "tokenizers"
    return Details(f"{kind}: {len(rows)} figures by training seed", Table("", columns, rows, (2, 3, 4)))


def _cards(of: Sequence[Figure]) -> Details:
    """The card of each metric, of the first cell of each generator; others differ in what the grid compares."""
    first: dict[tuple[str, Value], Figure] = {}
    for one in of:
        first.setdefault((one.metric, one.cell.get(GENERATOR, "")), one)
    several = len({generator for _, generator in first}) > 1
    rows = []
    for (metric, generator), one in first.items():
        card = ProtocolCard.from_dict(one.of[0].card)
        rows.append([metric, *([str(generator)] if several else []), str(card.n), *protocol_columns(card)])
    columns = ["metric", *(["generator"] if several else []), "images", *PROTOCOL_COLUMNS]
    kind = "generators" if GENERATOR in of[0].cell else "tokenizers"
    told = f"{kind}: {len(rows)} cards, each of the first cell{' of its generator' if several else ''}, first seed"
    return Details(told, Table("", columns, rows, (columns.index("images"),)))


def _commands(summary: Summary) -> list[Block]:
    """What makes each cell again, and all of them."""
    lines: dict[str, tuple[str, list[str]]] = {}
    for one in summary.last:
        for measured in one.of:
            drawn = "" if measured.sampling_seed is None else f", sampling seed {measured.sampling_seed}"
            whose = f"{summary.name(one.cell)}, seed {measured.seed}{drawn}"
            metrics = lines.setdefault(measured.command, (whose, []))[1]
            metrics += [] if one.metric in metrics else [one.metric]
    rows = [[whose, ", ".join(metrics), command] for command, (whose, metrics) in lines.items()]
    caption = (
        "Each does one stage and what it needs, as far as that is not done: a row of the table of cells anew takes all"
        " of its commands, with another --out; the command of the whole grid then gathers what they measured."
    )
    table = Table(caption, ["of", "measures", "command"], rows)
    details = Details(f"the command of each of {len(rows)} measurements", table)
    return [Commands([summary.about.command]), details] if summary.about.command else [details]


def _all_figures(summary: Summary) -> Table:
    """Cells and differences as one table."""
    axes = list(dict.fromkeys(name for one in summary.figures for name in one.cell))
    rows = []
    for one in summary.figures:
        deviation = "" if one.deviation is None else repr(one.deviation)
        low, high = min(one.means.values()), max(one.means.values())
        each = " ".join(repr(mean) for mean in one.means.values())
        known = ["" if value is None else str(value) for value in (one.step, one.flops)]
        head = ["cell", *(str(one.cell.get(axis, "")) for axis in axes), one.metric, one.value, *known]
        rows.append(
            [
                *head,
                repr(one.mean),
                deviation,
                repr(low),
                repr(high),
                str(len(one.figures)),
                each,
                *("", "", "", ""),
                " && ".join(dict.fromkeys(measured.command for measured in one.of)),
            ]
        )
    for family in summary.families:
        for verdict in family.verdicts:
            asked, interval = verdict.comparison, verdict.interval or ("", "")
            gap = "" if verdict.gap is None else repr(verdict.gap.value)
            seeds = "" if verdict.gap is None else str(verdict.gap.seeds // asked.each)
            pairs = str(verdict.gap.seeds) if verdict.gap is not None and verdict.gap.paired else ""
            head = ["difference", *("" for _ in axes), family.metric, f"{asked.a} - {asked.b}", "", ""]
            ends = [str(end) for end in interval]
            rows.append(
                [*head, gap, "", "", "", seeds, "", *ends, pairs, verdict.words, summary.about.command],
            )
    columns = ["row", *axes, "metric", "value", "step", "training FLOP", "mean", "standard deviation"]
    columns += ["least of seeds", "greatest of seeds", "seeds", "by seed"]
    return Table("", [*columns, "interval low", "interval high", "pairs", "verdict", "command"], rows)
