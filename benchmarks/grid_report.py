"""A grid's page as a file of this folder: ``python benchmarks/grid_report.py GRID_FOLDER HEADER.md TARGET.md``.

HEADER holds the title and what a person has to say: what was expected and where that was wrong, hardware, commit,
minutes. Below it comes the page that `ifsq report` writes as Markdown, shortened where a page is longer than anybody
reads: seeds stand side by side in place of a row each, and of the commands the grid's own is kept.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path


def main(folder: str, header: Path, target: Path) -> None:
    """Write it."""
    with tempfile.TemporaryDirectory() as place:
        page = Path(place) / "page.md"
        command = [sys.executable, "-m", "ifsq", "report", folder, "--out", str(page), "--no-pictures"]
        subprocess.run(command, check=True)
        parts = re.split(r"(?m)^(?=## )", page.read_text())
    kept = [parts[0].partition("\n")[2], *map(_shortened, parts[1:])]
    target.write_text(f"{header.read_text().rstrip()}\n\n{''.join(kept).strip()}\n")


def _shortened(part: str) -> str:
    if part.startswith("## Commands"):
        return part[: part.index("```", part.index("```") + 3) + 4]
    return _side_by_side(part) if part.startswith("## By seed") else part


def _side_by_side(part: str) -> str:
    """The section with one row for all seeds of a figure; a mean of sampling seeds is shown, these are not."""
    lines: list[str] = []
    last: tuple[str, ...] = ()
    for line in part.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if not line.startswith("| ") or line.startswith("| ---"):
            lines.append("| --- | --- | --- |" if line.startswith("| ---") else line)
            last = ()
        elif cells[2] == "training seed":
            lines.append(f"| {cells[0]} | {cells[1]} | by training seed |")
        elif tuple(cells[:2]) == last:
            lines[-1] = f"{lines[-1].removesuffix(' |')}, {cells[3]} |"
        else:
            lines.append(f"| {cells[0]} | {cells[1]} | {cells[3]} |")
            last = (cells[0], cells[1])
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
