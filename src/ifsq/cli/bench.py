"""``ifsq demo``, ``ifsq report``."""

import argparse
from pathlib import Path
from typing import Any

from ifsq.cli.parser import verb
from ifsq.cli.terminal import Terminal, say

DEMO = "runs/demo"


def add_demo(verbs: Any) -> None:
    """``demo``."""
    demo = verb(verbs, "demo", "the whole road on bundled pictures; ends with a report", _demo, overrides="--")
    demo.add_argument("--out", default=DEMO, metavar="DIR", help=f"folder of the runs (default {DEMO})")


def add_report(verbs: Any) -> None:
    """``report``."""
    report = verb(verbs, "report", "one page about a tokenizer and its generators", _report)
    report.add_argument("folders", type=Path, nargs="+", metavar="RUN")
    report.add_argument(
        "--out", type=Path, default=None, metavar="PAGE.html", help="default: report.html in the first run's folder"
    )


def _demo(options: argparse.Namespace) -> None:
    from ifsq.bench.demo import demo

    with Terminal() as terminal:
        page = demo(Path(options.out), options.extra, options.device, terminal)
    say(f"report: {page}")


def _report(options: argparse.Namespace) -> None:
    from ifsq.bench.report import write_report

    say(f"report: {write_report(options.folders, options.out)}")
