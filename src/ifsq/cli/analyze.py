"""``ifsq analyze bounds|codes|forecast|alignment``."""

import argparse
from pathlib import Path
from typing import Any

from ifsq.cli.generator import add_weights
from ifsq.cli.parser import add_reading, reading_of, verb
from ifsq.cli.terminal import Terminal, print_cards, print_table, say
from ifsq.cli.tokenizer import add_measured, measured_of

BOUNDS = "runs/bounds"


def add_analyze(verbs: Any) -> None:
    """``analyze bounds``, ``codes``, ``forecast`` and ``alignment``."""
    analyze = verbs.add_parser(
        "analyze", help="study bounds, codes and layers, and forecast generation"
    ).add_subparsers(metavar="VERB", required=True)
    bounds = verb(
        analyze,
        "bounds",
        "what every bound and cell rule does to latents of known distributions",
        _analyze_bounds,
        device=False,
    )
    bounds.add_argument("--out", type=Path, default=Path(BOUNDS), metavar="DIR", help=f"default {BOUNDS}")
    bounds.add_argument("--levels", type=int, nargs="+", default=None, metavar="L", help="default: 2 to 65")
    bounds.add_argument(
        "--samples", type=int, default=100_000, metavar="N", help="that bounds are fitted to and integrals checked on"
    )
    bounds.add_argument("--seed", type=int, default=0)

    codes = verb(analyze, "codes", "how a cache uses levels and indices", _analyze_codes, device=False)
    codes.add_argument("folder", type=Path, metavar="CACHE", help="code cache")
    codes.add_argument("--split", default="train", metavar="NAME", help="default train")

    forecast = verb(
        analyze, "forecast", "how well a tokenizer's codes can be generated, without a generator", _forecast, alone=True
    )
    add_measured(forecast)
    forecast.add_argument(
        "codes", type=Path, nargs="?", metavar="CACHE", help="of its codes (default: nothing is said of tokens)"
    )
    _add_alignment(analyze)


def _add_alignment(analyze: Any) -> None:
    alignment = verb(
        analyze,
        "alignment",
        "how similarly the layers of a tokenizer or generator and a teacher see images",
        _analyze_alignment,
        alone=True,
    )
    alignment.add_argument("folder", type=Path, metavar="RUN")
    alignment.add_argument(
        "--teacher",
        metavar="NAME",
        help="a name, a folder or a repository of the hub (default efficientnet-lite0, its fourth stage)",
    )
    alignment.add_argument("--teacher-layer", type=int, default=0, metavar="N", help="of it (default: its own choice)")
    alignment.add_argument("--data", default="", metavar="SOURCE", help="images (default: those of the run)")
    alignment.add_argument("--split", default="", metavar="NAME", help="default: what is held out")
    alignment.add_argument("--count", type=int, metavar="N", help="images drawn over the split (default: up to 2000)")
    alignment.add_argument("--neighbours", type=int, default=10, metavar="K", help="of CKNNA (default 10)")
    alignment.add_argument(
        "--times",
        type=float,
        nargs="+",
        default=(),
        metavar="T",
        help="of a diffusion generator, 0 is noise and 1 data (default 0.25 0.5 0.75 0.95)",
    )
    alignment.add_argument("--layers", nargs="+", default=(), metavar="NAME", help="some of them (default: all)")
    alignment.add_argument(
        "--labels",
        choices=("null", "class"),
        default="null",
        help="what a generator is told of an image's class: nothing, or what it is (default null)",
    )
    alignment.add_argument("--seed", type=int, default=0, help="of the noise")
    add_weights(alignment, all_of_them=True)
    add_reading(alignment)
    alignment.add_argument(
        "--out", type=Path, metavar="FILE.json", help="default: alignment_TEACHER.json in the run; curves: .png"
    )


def _analyze_bounds(options: argparse.Namespace) -> None:
    from ifsq.analysis.bounds import LEVELS, analyze_bounds

    with Terminal() as terminal:
        report = analyze_bounds(options.out, options.levels or LEVELS, options.samples, options.seed, terminal)
    for table in report.tables:
        print_table(table.title, table.columns, table.rows)
    for line in (report.check, f"table: {report.table}", f"picture: {report.picture}"):
        say(line)


def _analyze_codes(options: argparse.Namespace) -> None:
    from ifsq.analysis.codes import analyze_codes

    with Terminal() as terminal:
        found = analyze_codes(options.folder, options.split, terminal)
    for table in found:
        print_table(table.title, table.columns, table.rows)


def _forecast(options: argparse.Namespace) -> None:
    from ifsq import pipeline

    with Terminal() as terminal:
        cards = pipeline.forecast(options.folder, options.codes, options.device, terminal, measured_of(options))
    print_cards(cards)


def _analyze_alignment(options: argparse.Namespace) -> None:
    from ifsq import pipeline
    from ifsq.config import build
    from ifsq.evaluation.alignment.record import USUAL, AlignmentAnalysis
    from ifsq.evaluation.alignment.table import figures_table
    from ifsq.pretrained.teachers.config import TeacherConfig

    named = USUAL.source if options.teacher is None else options.teacher
    layer = options.teacher_layer or (USUAL.layer if options.teacher is None else 0)
    asked = AlignmentAnalysis(
        build(TeacherConfig, {"source": named, "layer": layer}, "teacher"),
        options.data,
        options.split,
        options.count,
        options.neighbours,
        tuple(options.times),
        tuple(options.layers),
        options.labels,
        options.seed,
        reading_of(options),
    )
    steps = () if options.step and "all" in options.step else options.step
    with Terminal() as terminal:
        place, found = pipeline.analyze_alignment(
            options.folder, asked, options.out, options.device, terminal, steps, options.weights == "average"
        )
    print_table(f"{found.card.reference}: {found.card.n} images, teacher {found.teacher}", *figures_table(found))
    for line in found.skipped[:1]:
        say(f"skipped: {len(found.skipped)} images; the first: {line}")
    for line in found.left_out:
        say(f"left out: {line}")
    say(f"{found.card.method}; ifsq {found.card.code_version}")
    say(f"figures: {place}; curves: {place.with_suffix('.png')}")
