"""What a page of runs asks, and the answer in a sentence or two."""

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

from ifsq.bench.figures import interval_text, text_of
from ifsq.bench.protocol import LEAST_SEEDS, Comparison, Protocol, judge
from ifsq.bench.runs import Reported

JUDGED = "FD(judge)"


def question_of(tokenizers: Sequence[Reported], generators: Sequence[Reported]) -> str:
    """What a page of these runs asks."""
    groups = list(dict.fromkeys(run.group for run in generators))
    if len(groups) > 1:
        return f"Which samples come closer to the training images: {' and '.join(groups)}?"
    if groups:
        return f"How close do the samples of the {groups[0]} generator come to the training images?"
    if len(tokenizers) > 1:
        return "Which tokenizer keeps more of held-out images, at which rate?"
    return "How much of held-out images does the tokenizer keep?"


def answer_of(tokenizers: Sequence[Reported], generators: Sequence[Reported]) -> str:
    """Its answer, as far as what was measured gives one."""
    judged = [(run, found) for run in generators if (found := _judged(run)) is not None]
    if len({run.group for run, _ in judged}) < len(judged):
        return _verdict_of_seeds(judged)
    if len(judged) > 1:
        return _verdict_between(judged)
    if judged:
        run, (distance, low, high) = judged[0]
        alone = run.figure(f"{JUDGED}, tokenizer alone", "distance")
        floor = "" if alone is None else f"; the tokenizer alone leaves {text_of(alone)}"
        return f"{JUDGED} {text_of(distance)} ({interval_text(low, high)}), lower is better{floor}."
    kept = [(run, psnr) for run in tokenizers if (psnr := run.figure("PSNR, dB", "mean")) is not None]
    if not kept:
        return "Not measured by a figure that answers it; the table has what was measured."
    if len(kept) == 1:
        return f"{text_of(kept[0][1], 2)} dB of PSNR on held-out images."
    (best, most), (worst, least) = max(kept, key=_second), min(kept, key=_second)
    return (
        f"PSNR on held-out images reaches from {text_of(least, 2)} dB ({worst.label}) to {text_of(most, 2)} dB"
        f" ({best.label}). One page tells no spread of retraining where a tokenizer has one seed."
    )


def _second(pair: tuple[Reported, float]) -> float:
    return pair[1]


def _judged(run: Reported) -> tuple[float, float, float] | None:
    """The distance of its samples by the judge, with the interval of the card."""
    card = run.card(JUDGED)
    if card is None or "distance" not in card.values:
        return None
    distance = card.values["distance"]
    return distance, card.values.get("low", distance), card.values.get("high", distance)


def _verdict_between(judged: Sequence[tuple[Reported, tuple[float, float, float]]]) -> str:
    """The two lowest: whether the intervals of their samples overlap. Of retraining one seed each says nothing."""
    (first, lowest), (second, next_lowest) = sorted(judged, key=lambda one: one[1][0])[:2]
    apart = lowest[2] < next_lowest[1]
    told = [
        f"{run.label} {text_of(distance)} ({interval_text(low, high)})"
        for run, (distance, low, high) in ((first, lowest), (second, next_lowest))
    ]
    answer = f"{first.label} samples are closer" if apart else f"{first.label} and {second.label} are not told apart"
    others = "" if len(judged) == 2 else f", the two lowest of {len(judged)}"
    return (
        f"By {JUDGED} {answer}{others}: {'; '.join(told)}; lower is better. The intervals are of the drawn images"
        " alone: how far retraining moves a figure, only several seeds of training say."
    )


def _verdict_of_seeds(judged: Sequence[tuple[Reported, tuple[float, float, float]]]) -> str:
    """Means over seeds of training; where every group has several, whether the lowest is told from the next one."""
    groups: dict[str, list[float]] = {}
    for run, (distance, _, _) in judged:
        groups.setdefault(run.group, []).append(distance)
    names = sorted(groups, key=lambda name: fmean(groups[name]))
    told = []
    for name in names:
        figures = groups[name]
        spread = f"{interval_text(min(figures), max(figures))}, {len(figures)} seeds" if len(figures) > 1 else "1 seed"
        told.append(f"{name} {text_of(fmean(figures))} ({spread})")
    said = f"{JUDGED}, mean over seeds of training: {'; '.join(told)}; lower is better."
    if len(names) == 1:
        return said
    seeds = min(map(len, groups.values()))
    if seeds < LEAST_SEEDS:
        return f"{said} Where there is one seed nothing is told apart."
    cells = {name: {at: (figure,) for at, figure in enumerate(figures)} for name, figures in groups.items()}
    asked = [Comparison(*pair) for pair in combinations(names, 2)]
    protocol = Protocol(looks=(seeds,))
    verdict = judge(cells, asked, protocol)[0]
    words = verdict.words if verdict.decided else f"{names[0]} and {names[1]} are {verdict.words}"
    others = f", in all of {len(asked)} comparisons," if len(asked) > 1 else ""
    chance = f"the chance of a false verdict{others} is at most {protocol.error:.0%}"
    return f"{said} {words[0].upper()}{words[1:]}; {chance}."
