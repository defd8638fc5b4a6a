"""``ifsq analyze bounds|codes``."""

import argparse
from pathlib import Path
from typing import Any

from ifsq.cli.parser import verb
from ifsq.cli.terminal import print_table, say

BOUNDS = "runs/bounds"


def add_analyze(verbs: Any) -> None:
    """``analyze bounds`` and ``analyze codes``."""
    analyze = verbs.add_parser("analyze", help="what bounds and cells do to latents").add_subparsers(
        metavar="VERB", required=True
    )
    bounds = verb(analyze, "bounds", "every bound and cell rule on latents of known distributions", _analyze_bounds)
    bounds.add_argument("--out", type=Path, default=Path(BOUNDS), metavar="DIR", help=f"default {BOUNDS}")
    bounds.add_argument("--levels", type=int, nargs="+", default=None, metavar="L", help="default: 2 to 65")
    bounds.add_argument(
        "--samples", type=int, default=100_000, metavar="N", help="that bounds are fitted to and integrals checked on"
    )
    bounds.add_argument("--seed", type=int, default=0)

    codes = verb(analyze, "codes", "how a cache uses levels and indices", _analyze_codes)
    codes.add_argument("folder", type=Path, metavar="CACHE", help="code cache")
    codes.add_argument("--split", default="train", metavar="NAME", help="default train")


def _analyze_bounds(options: argparse.Namespace) -> None:
    from ifsq.analysis.bounds import LEVELS, analyze_bounds

    report = analyze_bounds(options.out, options.levels or LEVELS, options.samples, options.seed)
    for table in report.tables:
        print_table(table.title, table.columns, table.rows)
    for line in (report.check, f"table: {report.table}", f"picture: {report.picture}"):
        say(line)


def _analyze_codes(options: argparse.Namespace) -> None:
    from ifsq.analysis.codes import analyze_codes

    for table in analyze_codes(options.folder, options.split):
        print_table(table.title, table.columns, table.rows)
