"""``ifsq evaluate``, ``ifsq compare``."""

import argparse
from pathlib import Path
from typing import Any

from ifsq.cli.parser import SAMPLING, add_reading, named, reading_of, sampling_of, size, verb
from ifsq.cli.terminal import Terminal, print_cards, print_table, say


def add_evaluate(verbs: Any) -> None:
    """``evaluate``."""
    evaluate = verb(verbs, "evaluate", "measure anybody's images against a reference", _evaluate, overrides=SAMPLING)
    evaluate.add_argument(
        "samples",
        metavar="SAMPLES",
        help="FILE.npz in ADM's layout, a folder of images or another data source, or a generator run to sample",
    )
    evaluate.add_argument(
        "--reference",
        type=named,
        required=True,
        metavar="REFERENCE",
        help="FILE.npz of images (arr_0) or statistics (mu, sigma), a folder of images or another data source",
    )
    evaluate.add_argument(
        "--features",
        nargs="+",
        default=["inception"],
        metavar="NAME",
        help="networks that look: inception (FID and its relatives, the default), efficientnet-lite0 (needs no"
        " download), efficientnet-lite0@128, pixels",
    )
    evaluate.add_argument("--weights", type=named, default=None, metavar="PATH", help="file of the network's weights")
    evaluate.add_argument(
        "--count", type=int, default=0, metavar="N", help="samples, drawn over all (default: all; 1000 of a run)"
    )
    evaluate.add_argument(
        "--size", type=size, default=0, metavar="PX", help="bring data sources to it (default: images as they are)"
    )
    evaluate.add_argument("--split", default="", metavar="NAME", help="of the samples (default: val, test, or all)")
    evaluate.add_argument(
        "--reference-split", default="", metavar="NAME", help="of the reference (default: train, or all)"
    )
    evaluate.add_argument(
        "--pairs",
        type=int,
        default=10_000,
        metavar="N",
        help="images of each side at most that are compared pair by pair, for KID, precision, recall, density and"
        " coverage; 0: none (default 10000)",
    )
    evaluate.add_argument("--seed", type=int, default=0, help="of the sampling of a run")
    evaluate.add_argument(
        "--classes",
        choices=("balanced", "random", "training"),
        default="balanced",
        help="of a run: all alike, drawn at random, or as frequent as in the training set (default balanced)",
    )
    evaluate.add_argument("--step", type=int, metavar="N", help="of a run: a checkpoint that is kept (default: newest)")
    evaluate.add_argument("--no-cache", action="store_true", help="neither read nor keep statistics of the reference")
    evaluate.add_argument("--out", type=Path, default=None, metavar="CARDS.json", help="write the cards there too")
    add_reading(evaluate)


def add_compare(verbs: Any) -> None:
    """``compare``."""
    compare = verb(
        verbs, "compare", "put evaluations side by side; unlike ones are refused", _compare, alone=True, device=False
    )
    compare.add_argument("places", nargs="+", metavar="CARDS", help="files of cards, and runs that were evaluated")
    compare.add_argument(
        "--allow",
        nargs="+",
        default=[],
        metavar="FIELD",
        help="fields of the cards that may differ, as sampler function_evaluations",
    )


def _evaluate(options: argparse.Namespace) -> None:
    from ifsq import pipeline
    from ifsq.evaluation import ImageEvaluation

    asked = ImageEvaluation(
        samples=options.samples,
        reference=options.reference,
        features=tuple(options.features),
        weights=options.weights or "",
        count=options.count,
        size=options.size,
        split=options.split,
        reference_split=options.reference_split,
        pairs=options.pairs,
        seed=options.seed,
        sampling=sampling_of(options),
        classes=options.classes,
        step=options.step,
        cache=not options.no_cache,
        reading=reading_of(options),
    )
    with Terminal() as terminal:
        cards = pipeline.evaluate(asked, options.out, options.device, terminal)
    print_cards(cards)
    if options.out is not None:
        say(f"cards: {options.out}")


def _compare(options: argparse.Namespace) -> None:
    from ifsq.evaluation import compare_evaluations

    found = compare_evaluations(options.places, options.allow)
    columns = ["metric", options.places[0]]
    for place in options.places[1:]:
        columns += [place, "difference", "95 % ranges"]
    print_table("", columns, [_row(compared) for compared in found])


def _row(compared: Any) -> list[str]:
    def text(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{value:{sign}.5g}"

    cells = [compared.metric, text(compared.figures[0])]
    told = {True: "overlap", False: "apart", None: ""}
    for figure, difference, overlap in zip(compared.figures[1:], compared.differences, compared.overlap, strict=True):
        cells += [text(figure), text(difference, "+"), told[overlap]]
    return cells
