"""Evaluations side by side: what differs, and whether the ranges of two figures overlap."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ifsq.config import InputError
from ifsq.evaluation.record import Evaluation, read_cards, read_evaluation
from ifsq.metrics import ProtocolCard, compare
from ifsq.store.run import Run

FIGURE = ("distance", "mean", "share")
"""Names of the values that figures are, of which each card has one; other values say how sure it is."""


@dataclass(frozen=True)
class Compared:
    """A figure of several evaluations.

    metric       its name
    figures      of each evaluation; None: not measured
    differences  from the first one's
    overlap      whether its 95 % range and the first one's overlap; None: a range is not known
    """

    metric: str
    figures: tuple[float | None, ...]
    differences: tuple[float | None, ...]
    overlap: tuple[bool | None, ...]


def compare_evaluations(places: Sequence[str | Path], allow: Collection[str] = ()) -> list[Compared]:
    """Every figure of the first evaluation, in its order, beside those of the others; then what only others have.

    places  files of cards, or folders of runs that were evaluated
    allow   fields of the cards that may differ

    Raises InputError, which names the field, where two cards of a figure are not of one protocol.
    """
    if len(places) < 2:
        raise InputError(f"{len(places)} evaluations: expected two at least")
    known = {field.name for field in fields(ProtocolCard)}
    for name in allow:
        if name not in known:
            raise InputError(f"allow {name}: is no field of a card; expected some of {', '.join(sorted(known))}")
    tables = [{card.metric: card for card in _evaluation(place).cards} for place in places]
    metrics = dict.fromkeys(metric for table in tables for metric in table)
    if not set(tables[0]).intersection(*tables[1:]):
        raise InputError(f"{' and '.join(map(str, places))}: have no figure in common")
    return [_compared(metric, [table.get(metric) for table in tables], places, allow) for metric in metrics]


def figure_of(card: ProtocolCard) -> float:
    """What a card is about, of its values."""
    return next((card.values[name] for name in FIGURE if name in card.values), next(iter(card.values.values())))


def _compared(
    metric: str, cards: Sequence[ProtocolCard | None], places: Sequence[str | Path], allow: Collection[str]
) -> Compared:
    first = cards[0]
    differences: list[float | None] = []
    overlap: list[bool | None] = []
    for card, place in zip(cards[1:], places[1:], strict=True):
        if first is None or card is None:
            differences.append(None)
            overlap.append(None)
            continue
        try:
            compare(first, card, allow)
        except ValueError as error:
            raise InputError(f"{places[0]} and {place}: {metric}: {error}") from error
        differences.append(figure_of(card) - figure_of(first))
        overlap.append(_overlap(first, card))
    figures = tuple(None if card is None else figure_of(card) for card in cards)
    return Compared(metric, figures, tuple(differences), tuple(overlap))


def _overlap(a: ProtocolCard, b: ProtocolCard) -> bool | None:
    if not all({"low", "high"} <= card.values.keys() for card in (a, b)):
        return None
    return a.values["low"] <= b.values["high"] and b.values["low"] <= a.values["high"]


def _evaluation(place: str | Path) -> Evaluation:
    if Path(place).is_dir():
        found = read_evaluation(Run.open(place))
        if found is None:
            raise InputError(f"{place}: was not evaluated yet; expected its evaluation.json")
        return found
    return read_cards(Path(place))
