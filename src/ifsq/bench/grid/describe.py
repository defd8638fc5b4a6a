"""A plan in words and as a file: its stages, what they share, what they cost, and what is equal between the kinds."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ifsq.bench.grid.cells import told
from ifsq.bench.grid.control import UNEQUAL, equal_between
from ifsq.bench.grid.plan import COSTS, GRID, Plan
from ifsq.bench.grid.stages import Stage, is_complete, marker_of
from ifsq.bench.grid.timing import TIMES
from ifsq.bench.grid.verdicts import pairs_of
from ifsq.config import read_json, to_dict
from ifsq.store.files import make_folder, write_text


def rows_of_stages(plan: Plan) -> list[list[str]]:
    """Name, state, steps, FLOPs of training and cells of each stage; of a plan that is not timed, kinds for names."""
    if plan.untimed:
        return [[stage.kind, "to do", "", "", _whose(plan, name)] for name, stage in plan.stages.items()]
    return [
        [
            name,
            "done" if is_complete(plan.out, name) else "to do",
            "" if stage.steps is None else str(stage.steps),
            "" if stage.flops is None else f"{stage.flops:.3g}",
            _whose(plan, name),
        ]
        for name, stage in plan.stages.items()
    ]


def summary(plan: Plan) -> list[str]:
    """A sentence about what there is, what is shared, what it costs, and each about what is equal."""
    kinds = Counter(stage.kind for stage in plan.stages.values())
    left = [name for name in plan.stages if not is_complete(plan.out, name)]
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    lines = [f"{len(plan.stages)} stages ({counted}), {len(left)} to do"]
    roads = _roads(plan)
    shared = sum(count > 1 for count in Counter(name for road in roads.values() for name in road).values())
    alone = sum(map(len, roads.values()))
    lines.append(f"{shared} stages are shared by several cells; each cell for itself would do {alone}")
    if plan.untimed:
        lines.append(
            f"{len(plan.untimed)} trainings with a budget in minutes are not timed yet, which ifsq bench does first:"
            " steps, FLOPs and the names of stages follow from it"
        )
    else:
        lines += _timed(plan)
        lines.append(f"training: {_flops(plan.stages.values()):.3g} FLOP, forward and backward, as torch counts them")
    if plan.grid.protocol is not None:
        looks = ", ".join(map(str, plan.grid.protocol.looks))
        lines.append(f"compared: {len(pairs_of(plan.grid))} pairs of cells, one family, looked at with {looks} seeds")
    lines.append(f"precision of trainings that say auto: {plan.auto}")
    equal, differ = equal_between(plan.compared)
    if equal:
        lines.append(f"equal of all generators: {', '.join(f'{name} {value}' for name, value in equal.items())}")
        lines += [f"differs: {name}: {', '.join(map(str, values))}" for name, values in differ.items()]
        lines += [f"cannot be equal: {line}" for line in _unequal(plan)]
    return lines


def write_plan(plan: Plan) -> Path:
    """Write ``grid.json``: the grid, its stages and what is equal; returns the file. Raises InputError."""
    equal, differ = equal_between(plan.compared)
    table: dict[str, Any] = {
        "command": list(plan.command),
        "grid": to_dict(plan.grid),
        "auto": plan.auto,
        "equal": equal,
        "differ": differ,
        "unequal": _unequal(plan),
        "stages": {
            name: {
                "kind": stage.kind,
                "needs": list(stage.needs),
                "cells": plan.users.get(name, []),
                "steps": stage.steps,
                "flops": stage.flops,
            }
            for name, stage in plan.stages.items()
        },
    }
    make_folder(plan.out)
    path = plan.out / GRID
    write_text(path, json.dumps(table, indent=1) + "\n")
    write_text(plan.out / COSTS, json.dumps(plan.costs, indent=1) + "\n")
    return path


def seconds_taken(plan: Plan) -> float:
    """What the complete stages took, the last attempt of each. Raises InputError."""
    done = [name for name in plan.stages if is_complete(plan.out, name)]
    return float(sum(read_json(marker_of(plan.out, name))["seconds"] for name in done))


def _unequal(plan: Plan) -> list[str]:
    """What cannot be equal between kinds of generators; nothing where there is one."""
    kinds = {one.kind for members in plan.compared.values() for _, one in members}
    return list(UNEQUAL) if len(kinds) > 1 else []


def _roads(plan: Plan) -> dict[str, set[str]]:
    """The stages that each cell needs for its figures, from its images on; a tokenizer is a cell of its own."""
    found: dict[str, set[str]] = {}
    for figures in plan.figures:
        found.setdefault(told(figures.cell), set()).update(plan.only(figures.stage).stages)
    return found


def _timed(plan: Plan) -> list[str]:
    """Where the steps of budgets in minutes come from, where there are any."""
    if all(budget.minutes is None for budget in vars(plan.grid.budget).values()):
        return []
    where = dict.fromkeys(f"{one.device} with {one.threads} threads" for one in plan.times.values())
    return [f"budgets in minutes: steps by {plan.out / TIMES}, timed on {', '.join(where)}"]


def _flops(stages: Any) -> float:
    trained: list[Stage] = list(stages)
    return sum(stage.flops for stage in trained if stage.flops is not None)


def _whose(plan: Plan, name: str) -> str:
    users = plan.users.get(name, [])
    return (
        users[0]
        if len(users) == 1
        else f"{len(users)} cells: {', '.join(users[:3])}{', ...' if len(users) > 3 else ''}"
    )
