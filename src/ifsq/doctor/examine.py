"""All that is looked at, in the order in which it is told."""

from collections.abc import Iterator
from pathlib import Path

from ifsq.doctor import machine, packages, places
from ifsq.doctor.record import Finding


def examine(folder: Path = Path()) -> tuple[Finding, ...]:
    """Look at this Python, its packages, the machine and the places where ifsq writes.

    folder  where runs would be written: the one that a person works in
    """
    return tuple(_all(folder))


def _all(folder: Path) -> Iterator[Finding]:
    yield from packages.versions()
    torch_works = packages.torch_fault() is None
    yield from packages.extras()
    yield from packages.settings()
    if torch_works:
        yield from machine.devices()
    yield from machine.memory()
    yield from places.folders(folder, torch_works=torch_works)
    if torch_works:
        yield from places.weights()
