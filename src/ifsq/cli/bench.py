"""``ifsq demo``, ``ifsq bench``, ``ifsq report``."""

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

from ifsq.cli.parser import verb
from ifsq.cli.terminal import Terminal, print_table, say

DEMO = "runs/demo"


def add_demo(verbs: Any) -> None:
    """``demo``."""
    text = "train and compare a tokenizer and two generators on bundled pictures; ends with a report"
    of_them = "Any --train.key value may follow, for all three trainings, as --train.steps 100."
    demo = verb(verbs, "demo", text, _demo, overrides="--", of_them=of_them)
    demo.add_argument("--out", default=DEMO, metavar="DIR", help=f"folder of the runs (default {DEMO})")


def add_bench(verbs: Any) -> None:
    """``bench``."""
    text = "train a grid of tokenizers and generators, each stage once"
    of_them = "Any --section.key value of the grid may follow, as --seeds.training [0,1,2]."
    bench = verb(verbs, "bench", text, _bench, overrides="--", of_them=of_them)
    bench.add_argument("grid", type=Path, metavar="GRID.toml", help="a grid file, or the name of a shipped one")
    bench.add_argument("--out", type=Path, default=None, metavar="DIR", help="folder of the grid (default: runs/GRID)")
    bench.add_argument("--plan", action="store_true", help="say what there is to do, and do nothing")
    bench.add_argument("--jobs", type=int, default=1, metavar="N", help="stages done at the same time (default 1)")
    bench.add_argument("--engine", default="", metavar="NAME", help="run the stages on snakemake (ifsq[engine])")
    bench.add_argument(
        "--engine-options", type=_words, default=[], metavar="TEXT", help='its options, as "--executor slurm"'
    )
    bench.add_argument("--only", default="", metavar="STAGE", help="this stage alone, and what it needs")


def add_report(verbs: Any) -> None:
    """``report``."""
    report = verb(verbs, "report", "write one page about tokenizers and generators", _report, device=False)
    report.add_argument("folders", type=Path, nargs="+", metavar="RUN")
    report.add_argument(
        "--out",
        type=Path,
        default=None,
        metavar="PAGE",
        help="ends in .html, .md or .csv (default: report.html in the first run's folder)",
    )
    report.add_argument("--format", choices=("html", "md", "csv"), help="default: by the ending of --out, else html")
    report.add_argument("--title", default="", metavar="TEXT", help="of the page (default: its folder)")
    report.add_argument(
        "--no-pictures", action="store_true", help="without samples: Markdown links to those in the folders of the runs"
    )


def _demo(options: argparse.Namespace) -> None:
    from ifsq.bench.demo import demo

    with Terminal() as terminal:
        page = demo(Path(options.out), options.extra, options.device, terminal)
    say(f"report: {page}")


def _bench(options: argparse.Namespace) -> None:
    from ifsq.bench.grid.command import bench, grid_file, several_processes, show_plan

    file = grid_file(options.grid)
    out = options.out or Path("runs") / file.stem
    if os.environ.get("WORLD_SIZE", "1") != "1":
        with Terminal() as terminal:
            return several_processes(file, out, options.extra, options.only, options.device, terminal)
    if options.plan:
        lines, rows = show_plan(file, out, options.extra, options.device)
        print_table(str(file), ("stage", "", "steps", "FLOP", "cells"), rows)
        for line in lines:
            say(line)
        return None
    with Terminal() as terminal:
        path = bench(
            file,
            out,
            options.extra,
            options.device,
            terminal,
            jobs=options.jobs,
            only=options.only,
            engine=options.engine,
            options=options.engine_options,
        )
    say(f"{'stage' if options.only else 'measurements'}: {path}")
    return None


def _report(options: argparse.Namespace) -> None:
    from ifsq.bench.report import write_report

    pictures = not options.no_pictures
    target = write_report(options.folders, options.out, options.format, title=options.title, pictures=pictures)
    say(f"report: {target}")


def _words(text: str) -> list[str]:
    """Words as a shell reads them."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}; expected words as of a shell") from error
