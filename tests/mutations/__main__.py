"""Write central lines wrong, one after another: ``python -m tests.mutations [--only WORD] [--out FILE]``.

Prints a Markdown table of what the named tests made of it. Exit code 1 where one was not caught.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.mutations.lines import MUTATIONS
from tests.mutations.tried import Tried, attempt

LONGEST = 110  # characters of a reason


def row(tried: Tried) -> str:
    """A line of the table."""
    mutation = tried.mutation
    because = tried.because[:LONGEST].replace("|", "\\|").replace("`", "'")
    cells = (mutation.name, f"`{mutation.file}`", f"`{mutation.test}`", "yes" if tried.caught else "NO", f"`{because}`")
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Try what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations")
    parser.add_argument("--only", default="", metavar="WORD", help="those alone whose names hold this word")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table there too")
    options = parser.parse_args()
    chosen = [one for one in MUTATIONS if options.only in one.name]
    lines = ["| line | file | test | caught | by |", "|---|---|---|---|---|"]
    print("\n".join(lines))
    missed = 0
    with tempfile.TemporaryDirectory() as place:
        for mutation in chosen:
            tried = attempt(mutation, Path(place))
            missed += not tried.caught
            lines.append(row(tried))
            print(lines[-1], flush=True)
    told = f"{len(chosen) - missed} of {len(chosen)} caught"
    print(told)
    if options.out is not None:
        options.out.write_text("\n".join([*lines, "", f"{told}.", ""]))
    return 1 if missed or not chosen else 0


if __name__ == "__main__":
    raise SystemExit(main())
