"""``ifsq teacher train|score``."""

import argparse
from pathlib import Path
from typing import Any

from ifsq.cli.features import add_options
from ifsq.cli.parser import add_reading, experiment_named, named, reading_of, size, verb
from ifsq.cli.terminal import Terminal, print_table, say


def add_teacher(verbs: Any) -> None:
    """``teacher train`` and ``teacher score``."""
    teacher = verbs.add_parser(
        "teacher", help="train a teacher that generators are aligned to, or rank teachers"
    ).add_subparsers(metavar="VERB", required=True)
    train = verb(teacher, "train", "train a teacher on images, without labels", _teacher_train, overrides="--")
    train.add_argument("experiment", type=Path, metavar="EXPERIMENT.toml")
    score = verb(teacher, "score", "rank teachers by the spatial structure of their features", _teacher_score)
    score.add_argument(
        "teachers",
        type=named,
        nargs="+",
        metavar="SOURCE",
        help="as of ifsq features --teacher: efficientnet-lite0, dinov2-vit-b, a folder, or a hub's owner/name",
    )
    score.add_argument("--data", type=named, required=True, metavar="SOURCE", help="images")
    score.add_argument("--split", default="", metavar="NAME", help="of them (default: val, test, or all)")
    score.add_argument("--size", type=size, default=256, metavar="PX", help="images are cropped to it (default 256)")
    score.add_argument(
        "--grid", type=size, default=16, metavar="N", help="rows and columns of features: the generator's (default 16)"
    )
    score.add_argument("--count", type=int, metavar="N", help="images drawn over the split (default: up to 500)")
    add_options(score, several=True)
    add_reading(score)
    score.add_argument("--out", type=Path, metavar="CARDS.json", help="write the cards there too")


def _teacher_train(options: argparse.Namespace) -> None:
    from ifsq import pipeline
    from ifsq.pretraining.config import load_teacher_experiment

    experiment = load_teacher_experiment(experiment_named(options.experiment), options.extra)
    with Terminal() as terminal:
        say(f"run: {pipeline.train_teacher(experiment, options.device, terminal)}")


def _teacher_score(options: argparse.Namespace) -> None:
    from ifsq import pipeline
    from ifsq.config import build
    from ifsq.evaluation.score import TeacherScoring
    from ifsq.pretrained.teachers.config import TeacherConfig

    of_all = {"side": options.side, "positions": options.positions}
    teachers = [
        build(TeacherConfig, {"source": source, "layer": layer, **of_all}, "score")
        for source in options.teachers
        for layer in options.layer
    ]
    grid = (options.grid, options.grid) if isinstance(options.grid, int) else options.grid
    asked = TeacherScoring(
        tuple(teachers), options.data, options.split, options.size, grid, options.count, reading_of(options)
    )
    with Terminal() as terminal:
        scored = pipeline.score_teachers(asked, options.out, options.device, terminal)
    card = scored[0].cards[0]
    columns = ("teacher", "numbers", "LDS", "+/-", "below", "+/-", "probe", "chance")
    print_table(f"{card.reference}: {card.n} images; {card.method}", columns, [_row(one) for one in scored])
    say("below: the first one, image by image; +/-: half of a range of 95 %")
    say(f"ifsq {card.code_version}")
    if options.out is not None:
        say(f"cards: {options.out}")


def _row(scored: Any) -> tuple[str, ...]:
    from ifsq.evaluation.score import WITHIN

    values, (below, error), probe = scored.cards[0].values, scored.below, scored.figures.probe
    return (
        scored.name,
        str(scored.width),
        f"{values['lds']:.4f}",
        f"{values['high'] - values['lds']:.4f}",
        *((f"{below:.4f}", f"{WITHIN * error:.4f}") if below else ("", "")),
        *(("", "") if probe is None else (f"{probe.accuracy:.3f}", f"{probe.chance:.3f}")),
    )
