"""What the stages of a grid measured, as its measurements; always from their own evaluations."""

import shlex
from pathlib import Path

from ifsq.bench.figures import LARGEST
from ifsq.bench.grid.cells import told
from ifsq.bench.grid.config import Value
from ifsq.bench.grid.plan import Figures, Plan
from ifsq.bench.grid.stages import STAGES, folder_of, is_complete
from ifsq.bench.grid.verdicts import pairs_of
from ifsq.bench.grid.work import evaluations_in
from ifsq.bench.measurement import MEASUREMENTS, Measurement, write_measurements
from ifsq.config import InputError
from ifsq.evaluation.likelihood import BITS


def measurements(plan: Plan) -> list[Measurement]:
    """Those of every complete stage of a plan, in its order. Raises InputError where an evaluation is damaged."""
    return [one for figures in plan.figures if is_complete(plan.out, figures.stage) for one in taken(plan, figures)]


def write_results(plan: Plan) -> Path:
    """Write all of them anew; returns the file. Raises InputError."""
    path = plan.out / MEASUREMENTS
    write_measurements(path, measurements(plan))
    return path


def check_measured(plan: Plan) -> None:
    """Raise InputError where the grid names a figure that was not measured: by no stage, or of a cell it compares."""
    wanted = plan.grid.evaluation.metrics
    said = [("evaluation.metrics", metric, "") for metric in wanted]
    said += [("compare", asked.metric, asked.value) for asked in plan.grid.compare]
    has: dict[frozenset[tuple[str, Value]], set[tuple[str, str]]] = {}  # metrics and values, by cell
    for one in plan.figures if said else ():
        if is_complete(plan.out, one.stage):
            of = has.setdefault(frozenset(one.cell.items()), set())
            for evaluation in evaluations_in(folder_of(plan.out, one.stage)):
                of |= {(card.metric, value) for card in evaluation.cards for value in card.values}
    values: dict[str, set[str]] = {}
    for metric, value in set().union(*has.values()):
        values.setdefault(metric, set()).add(value)
    for where, metric, value in said if values else ():
        if metric not in values:
            raise InputError(f"{where}: {metric!r} was not measured; expected one of {', '.join(sorted(values))}")
        if value and value not in values[metric]:
            choices = ", ".join(sorted(values[metric]))
            raise InputError(f"{where}: {metric} has no value {value!r}; expected one of {choices}")
        if where == "compare" and wanted and metric not in wanted:
            raise InputError(f"compare: {metric!r} is none of evaluation.metrics, {', '.join(wanted)}")
    for pair in pairs_of(plan.grid):  # what a cell has not, more seeds do not decide
        asked, figure = pair.asked, (pair.asked.metric, pair.asked.value)
        for cell in (*pair.a.cells, *pair.b.cells):
            if figure not in has.get(frozenset(cell.items()), {figure}):
                raise InputError(
                    f"compare: {asked.metric}, {asked.value} was not measured of the {asked.of} {told(cell)}; expected"
                    " a figure of both cells: `of` says whose it is, `when` which cells are compared"
                )


def taken(plan: Plan, figures: Figures) -> list[Measurement]:
    """What a complete stage measured, as far as the grid asks for it; numbers that are none are left out."""
    wanted, stage = plan.grid.evaluation.metrics, plan.stages[figures.of]
    command = shlex.join(["ifsq", *plan.command, "--only", figures.stage])
    found = []
    for evaluation in evaluations_in(folder_of(plan.out, figures.stage)):
        flops = evaluation.flops
        if flops is None and None not in (stage.flops, stage.steps, evaluation.step):
            flops = stage.flops * evaluation.step / stage.steps  # type: ignore[operator]
        for card in evaluation.cards:
            if wanted and card.metric not in wanted:
                continue
            if plan.grid.evaluation.likelihood and figures.sampling_seed is not None and card.metric in BITS:
                continue  # of other images, or again, what the stage of the likelihood measures
            for value, figure in card.values.items():
                if abs(figure) < LARGEST:
                    found.append(
                        Measurement(
                            figures.cell, figures.seed, figures.sampling_seed, evaluation.step, flops, card.metric,
                            value, figure, card.to_dict(), figures.of.rpartition("-")[2], f"{STAGES}/{figures.of}",
                            command, f"{STAGES}/{figures.stage}",
                        )
                    )  # fmt: skip
    return found
