"""Tables of a report of runs: what was measured, a run a column; each card whole; every figure a row."""

from collections.abc import Mapping, Sequence

from ifsq.bench.commands import evaluation_command
from ifsq.bench.figures import decimals_of, interval_text, main_value, text_of, titled
from ifsq.bench.grid.guidance import Search
from ifsq.bench.page import Details, Table
from ifsq.bench.runs import Reported
from ifsq.metrics.card import ProtocolCard

MOST_COLUMNS = 6  # runs beside each other; more are rows
PROTOCOL_COLUMNS = ("reference", "preparation", "sampling", "features", "weights", "code")
"""Of `protocol_columns`."""


def measured_table(runs: Sequence[Reported]) -> Table:
    """Metrics as rows and runs as columns, of many runs the other way round; intervals where a card has them."""
    metrics = list(dict.fromkeys(card.metric for run in runs for card in run.evaluation.cards))
    cells = {metric: _cells([run.card(metric) for run in runs]) for metric in metrics}
    caption = "↓ lower is better, ↑ higher is better."
    if any("low" in card.values for run in runs for card in run.evaluation.cards):
        caption += " In brackets the interval of 95 % over the images that were drawn."
    if any("std" in card.values for run in runs for card in run.evaluation.cards):
        caption += " After ± the standard deviation between images."
    if len(runs) <= MOST_COLUMNS:
        counts = {metric: _counts([run.card(metric) for run in runs]) for metric in metrics}
        rows = [[titled(metric), *cells[metric], counts[metric]] for metric in metrics]
        columns = ["metric", *(run.label for run in runs), "images"]
        return Table(caption, columns, rows, range(1, len(columns)))
    rows = [[run.label, *(cells[metric][at] for metric in metrics)] for at, run in enumerate(runs)]
    return Table(caption, ["run", *map(titled, metrics)], rows, range(1, len(metrics) + 1))


def card_details(run: Reported) -> Details:
    """Every card with its protocol, folded."""
    rows = [
        [
            card.metric,
            ", ".join(f"{name} {text_of(value)}" for name, value in card.values.items()),
            str(card.n),
            *protocol_columns(card),
        ]
        for card in run.evaluation.cards
    ]
    columns = ["metric", "values", "images", *PROTOCOL_COLUMNS]
    step = "" if run.evaluation.step is None else f", step {run.evaluation.step}"
    summary = f"{run.label}: {len(rows)} cards{step}, {run.evaluation.weights} weights"
    lacks = "; ".join(run.evaluation.lacks)
    return Details(summary, Table(lacks, columns, rows, (2,)))


def figures_table(runs: Sequence[Reported]) -> Table:
    """Every value of every card, a row each, with what it was measured on and the command that measures it again."""
    rows = []
    for run in runs:
        command = evaluation_command(run)
        evaluation = run.evaluation
        for card in evaluation.cards:
            for name, value in card.values.items():
                rows.append(
                    [
                        run.label,
                        str(run.folder),
                        _known(run.seed),
                        _known(evaluation.step),
                        _known(evaluation.flops),
                        card.metric,
                        name,
                        repr(value),
                        str(card.n),
                        *protocol_columns(card),
                        command,
                    ]
                )
    columns = ["run", "folder", "training seed", "step", "training FLOP", "metric", "value", "figure", "images"]
    return Table("", [*columns, *PROTOCOL_COLUMNS, "command"], rows)


def _known(value: object) -> str:
    return "" if value is None else str(value)


def _cells(cards: Sequence[ProtocolCard | None]) -> list[str]:
    """The main value of one metric's cards with the same decimals, and its interval or deviation."""
    known = [card for card in cards if card is not None]
    name = main_value(known[0].values)
    decimals = decimals_of([card.values[name] for card in known if name in card.values])
    return ["" if card is None or name not in card.values else _cell(card, name, decimals) for card in cards]


def _cell(card: ProtocolCard, name: str, decimals: int) -> str:
    values = card.values
    text = text_of(values[name], decimals)
    if "low" in values and "high" in values:
        return f"{text} ({interval_text(values['low'], values['high'], decimals)})"
    if "std" in values:
        return f"{text} ± {text_of(values['std'], decimals)}"
    if "of" in values:
        return f"{text} of {text_of(values['of'], 0)}"
    return text


def _counts(cards: Sequence[ProtocolCard | None]) -> str:
    return ", ".join(dict.fromkeys(str(card.n) for card in cards if card is not None))


def protocol_columns(card: ProtocolCard) -> list[str]:
    """What a card says of how it was taken, a part a column."""
    sampling = []
    if card.sampler:
        sampling = [f"guidance {card.guidance}", card.sampler, f"{card.function_evaluations} evaluations"]
        sampling += [f"seed {card.seed}"]
    sampling += [card.labels] if card.labels else []
    size = card.size if isinstance(card.size, int) else "x".join(map(str, card.size))
    weights = [
        f"{name} {held[:12]}"
        for name, held in (("tokenizer", card.tokenizer_hash), ("generator", card.generator_hash))
        if held
    ]
    return [
        f"{card.reference} {card.reference_hash[:12]}",
        f"{size} px, {card.crop}, {card.resize_kernel}, {card.dtype}" + (f"; {card.method}" if card.method else ""),
        "; ".join(sampling),
        card.features,
        ", ".join(weights),
        card.code_version,
    ]


def search_table(searches: Mapping[str, Search]) -> Table:
    """What searches of the guidance scale found, by the names of their cells: a cell a row, a scale a column."""
    scales = sorted({scale for search in searches.values() for scale in search.figures})
    rows = []
    for name, search in searches.items():
        decimals = decimals_of(list(search.means.values()))
        shown = {scale: text_of(mean, decimals) for scale, mean in search.means.items()}
        shown[search.guidance] += " (chosen)"
        rows.append([name, search.metric, *(shown.get(scale, "") for scale in scales)])
    caption = (
        "Mean over the training and sampling seeds of the search, none of which is compared, at each scale. The best of"
        " several looks better here than it is; the figures above are of other seeds."
    )
    columns = ["cell", "by", *(f"scale {scale:g}" for scale in scales)]
    return Table(caption, columns, rows, range(2, len(columns)))
