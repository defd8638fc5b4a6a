"""What is equal between the kinds of generators of a grid, what may differ, and what cannot be equal."""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from ifsq.bench.grid.cells import Cell, told
from ifsq.bench.grid.config import GENERATOR, Grid
from ifsq.config import InputError, to_dict
from ifsq.experiment import GeneratorExperiment

ALONE = ("steps", "save_every", "keep_every", "keep", "log_every", "validate_every", "sample_every", "engine", "seed")
"""Of ``[train]``: how long it is, which a budget says, and what changes no weight."""
UNEQUAL = (
    "the loss: a likelihood of digits against a distance between codes or velocities",
    "what a token is: a position's groups of digits, one after another, against a patch of the grid at once",
    "the head: classes of a digit against numbers of a patch; what it costs is in the FLOPs",
    "how images are drawn: token by token against steps of a solver; the cards say both",
)
"""What cannot be equal of generators of several kinds."""


Compared = dict[str, list[tuple[Cell, GeneratorExperiment]]]
"""The generators of cells, by the name of the tokenizer's stage that is behind them."""


def check_alike(grid: Grid, compared: Compared) -> None:
    """Raise InputError where generators of one tokenizer differ in what both have and the grid does not say so."""
    for members in compared.values():
        for (cell, one), (other_cell, other) in _pairs(members):
            unsaid = {
                name: values
                for name, values in differing(one, other).items()
                if not any(name == said or name.startswith(f"{said}.") for said in grid.differ)
            }
            if unsaid:
                name, (mine, theirs) = next(iter(unsaid.items()))
                raise InputError(
                    f"{told(cell)} and {told(other_cell)}: {name} {mine!r} against {theirs!r}; make it equal by a"
                    f" setting, or say that it is not: differ = {json.dumps([*grid.differ, *unsaid])}"
                )


def equal_between(compared: Compared) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Options that all generators of the grid have in common, with their values; those that differ, with each value."""
    every = [_common(one) for members in compared.values() for _, one in members]
    names = [name for name in (every[0] if every else {}) if all(name in one for one in every)]
    values: dict[str, list[Any]] = {name: [] for name in names}
    for one in every:
        for name in names:
            if one[name] not in values[name]:
                values[name].append(one[name])
    return (
        {name: found[0] for name, found in values.items() if len(found) == 1},
        {name: found for name, found in values.items() if len(found) > 1},
    )


def differing(one: GeneratorExperiment, other: GeneratorExperiment) -> dict[str, tuple[Any, Any]]:
    """Options that both have with other values."""
    mine, theirs = _common(one), _common(other)
    return {name: (mine[name], theirs[name]) for name in mine if name in theirs and mine[name] != theirs[name]}


def _pairs(members: Sequence[tuple[Cell, GeneratorExperiment]]) -> list[Any]:
    """Generators whose cells differ in the generator alone, as far as both have an axis."""
    return [
        (a, b)
        for a, b in combinations(members, 2)
        if a[0][GENERATOR] != b[0][GENERATOR]
        and a[1].train.seed == b[1].train.seed
        and all(a[0][name] == b[0][name] for name in a[0].keys() & b[0].keys() if name != GENERATOR)
    ]


def _common(experiment: GeneratorExperiment) -> dict[str, Any]:
    """What any two kinds could have in common, flat: training, network, what is read, and alignment."""
    table = to_dict(experiment)
    train = {name: value for name, value in table["train"].items() if name not in ALONE}
    read = "codes of a cache" if experiment.data is None else "images"
    shown = {"train": train, "network": table[experiment.kind], "reads": read}
    if table.get("data"):
        shown["data"] = table["data"]
    if table.get("alignment"):
        shown["alignment"] = {name: value for name, value in table["alignment"].items() if name != "features"}
    return dict(_flat(shown, ""))


def _flat(table: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in table.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return found
