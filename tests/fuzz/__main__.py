"""Fuzz the parsers: ``python -m tests.fuzz [--parser WORD ...] [--cases N] [--seconds S] [--state FILE]``.

``make fuzz`` takes all of it: a million cases of each parser that is cheap. It goes on where it was cut short: what was
tried stands in the state. ``--short`` is what the tests run: the first cases of each. ``--case N`` tries one again and
shows it. Exit code 1 where a case ended in a traceback, a hang, a death, too much memory or an untidy message.
"""

import argparse
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.fuzz.made import Parser
from tests.fuzz.parsers import PARSERS
from tests.fuzz.watch import Tally, buffer_of, fuzz

COLUMNS = ("accepted", "refused", "untidy", "traceback", "hang", "memory", "crash")
SHORT = 15
"""Cases of each parser in the short form."""


def table(tallies: dict[str, Tally]) -> str:
    """Markdown: a line a parser."""
    lines = [f"| parser | cases | {' | '.join(COLUMNS)} | places | seconds |", "|---" * (len(COLUMNS) + 4) + "|"]
    for name, tally in tallies.items():
        counts = " | ".join(str(tally.kinds[kind]) for kind in COLUMNS)
        lines.append(f"| {name} | {tally.next} | {counts} | {len(tally.places)} | {tally.seconds:.0f} |")
    return "\n".join(lines)


def show(parser: Parser, number: int) -> int:
    """Try one case in this process, with its traceback."""
    from hypothesis import given, settings

    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        strategy, parse, _ = parser.make(Path(place))

        @settings(database=None, deadline=None)
        @given(strategy)
        def one(case: object) -> None:
            print(repr(case)[:3000])
            parse(case)

        one.hypothesis.fuzz_one_input(buffer_of(parser, number))  # type: ignore[attr-defined]
    return 0


def main() -> int:
    """Run what was asked for; prints the table and every place of a defect."""
    options = _options()
    chosen = [one for one in PARSERS if any(word.lower() in one.name.lower() for word in options.parser)]
    if not chosen:
        known = ", ".join(one.name for one in PARSERS)
        raise SystemExit(f"--parser {' '.join(options.parser)}: expected parts of {known}")
    if options.case is not None:
        return show(chosen[0], options.case)
    known = json.loads(options.state.read_text()) if options.state and options.state.exists() else {}
    tallies = {name: Tally(**told) for name, told in known.items()}
    warnings.simplefilter("ignore")
    for parser in chosen:
        tally = tallies.setdefault(parser.name, Tally())
        cases = SHORT if options.short else options.cases or parser.cases
        for _ in fuzz(parser, tally, cases, options.seconds):
            if options.state:
                partial = options.state.with_suffix(".partial")
                partial.write_text(json.dumps({name: one.to_dict() for name, one in tallies.items()}, indent=1))
                partial.replace(options.state)
        print(f"{parser.name}: {tally.next} cases, {tally.bad} bad", file=sys.stderr, flush=True)
    ordered = {parser.name: tallies[parser.name] for parser in PARSERS if parser.name in tallies}
    for name, tally in ordered.items():
        for place, text in tally.places.items():
            print(f"{name}: {place}: {text}"[:500])
    print(table(ordered))
    if options.out is not None:
        options.out.write_text(table(ordered) + "\n")
    return 1 if any(tally.bad for tally in ordered.values()) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--parser", nargs="*", default=[""], help="parts of their names; all without it")
    parser.add_argument("--cases", type=int, default=0, help="of each, from the first on; 0: as its row says")
    parser.add_argument("--seconds", type=float, default=1e9, help="for each at most")
    parser.add_argument("--state", type=Path, default=None, help="what was tried; a later run goes on from it")
    parser.add_argument("--out", type=Path, default=None, help="the table, in Markdown")
    parser.add_argument("--case", type=int, default=None, help="the number of one case to try again")
    parser.add_argument("--short", action="store_true", help="the first cases of each, as the tests do")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
