"""Writing a line wrong in a copy of the package, and what the test that is named makes of it."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.mutations.lines import Mutation

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "ifsq"
NO_TESTS_FAILED, TESTS_FAILED = 0, 1  # exit codes of pytest


@dataclass(frozen=True)
class Tried:
    """What became of one.

    caught   whether the test passes on the line as it is and fails on the wrong one
    because  the first line in which pytest says why it failed; what went wrong, where it was not caught
    """

    mutation: Mutation
    caught: bool
    because: str


def spoiled(mutation: Mutation, source: str) -> str:
    """The file's text with the wrong line. Raises ValueError unless the right one stands there once."""
    found = source.count(mutation.line)
    if found != 1:
        raise ValueError(f"{mutation.file}: {mutation.line!r} stands there {found} times; expected once")
    return source.replace(mutation.line, mutation.wrong)


def attempt(mutation: Mutation, place: Path) -> Tried:
    """Run the test on the line as it is and on the wrong one, in a copy of the package below ``place``."""
    package = place / "ifsq"
    shutil.copytree(PACKAGE, package, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    code, told = _run(mutation.test, place)
    if code != NO_TESTS_FAILED:
        return Tried(mutation, False, f"the test does not pass on the line as it is: {told}")
    file = package / mutation.file
    right = file.read_text()
    file.write_text(spoiled(mutation, right))
    try:
        code, told = _run(mutation.test, place)
    finally:
        file.write_text(right)
    return Tried(mutation, code == TESTS_FAILED, told or f"pytest ended with exit code {code}")


def _run(test: str, place: Path) -> tuple[int, str]:
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{test}"]
    found = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(place)}, capture_output=True, text=True, check=False
    )
    reasons = [line[1:].strip() for line in found.stdout.splitlines() if line.startswith("E ")]
    return found.returncode, reasons[0] if reasons else ""
