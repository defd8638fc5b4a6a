"""Sizes of transformers by name, in place of the numbers that each stands for."""

from collections.abc import Mapping
from typing import Any, NamedTuple

BY_SIZE: Any = None
"""Default of the numbers that a size stands for: every config has them as numbers once it is made."""


DEEPEST = 1000
"""Blocks of a network: more take minutes to make, and are a slip of the finger."""


class Size(NamedTuple):
    """Blocks, width, and heads of attention."""

    depth: int
    width: int
    heads: int


def numbers_of(config: Any, sizes: Mapping[str, Size]) -> dict[str, int]:
    """Depth, width and heads of a config, by its ``size`` where there is one.

    Raises ValueError where one is missing, a number beside a size says otherwise, or the network is too deep.
    """
    given = {name: getattr(config, name) for name in Size._fields}
    if given["depth"] is not None:
        check_blocks(given["depth"])
    if not config.size:
        if missing := [name for name, value in given.items() if value is None]:
            raise ValueError(f"{', '.join(missing)} missing: expected depth, width and heads, or a size")
        return given
    if config.size not in sizes:
        raise ValueError(f"size={config.size!r}: expected one of {', '.join(sizes)}, or empty with numbers")
    named = sizes[config.size]._asdict()
    for name, value in given.items():
        if value not in (None, named[name]):
            raise ValueError(
                f"{name}={value} beside size={config.size!r}, which has {named[name]}: expected one of them"
            )
    return named


def check_blocks(depth: int) -> None:
    """Raise ValueError unless there is a block, and not more than `DEEPEST`."""
    if depth < 1:
        raise ValueError(f"depth={depth}: expected at least 1")
    if depth > DEEPEST:
        raise ValueError(f"depth={depth}: expected at most {DEEPEST}")
