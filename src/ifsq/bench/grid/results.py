"""What the stages of a grid measured, as its measurements; always from their own evaluations."""

import math
import shlex
from pathlib import Path

from ifsq.bench.grid.plan import Figures, Plan
from ifsq.bench.grid.stages import STAGES, folder_of, is_complete
from ifsq.bench.grid.work import evaluations_in
from ifsq.bench.measurement import MEASUREMENTS, Measurement, write_measurements


def measurements(plan: Plan) -> list[Measurement]:
    """Those of every complete stage of a plan, in its order. Raises InputError where an evaluation is damaged."""
    return [one for figures in plan.figures if is_complete(plan.out, figures.stage) for one in taken(plan, figures)]


def write_results(plan: Plan) -> Path:
    """Write all of them anew; returns the file. Raises InputError."""
    path = plan.out / MEASUREMENTS
    write_measurements(path, measurements(plan))
    return path


def taken(plan: Plan, figures: Figures) -> list[Measurement]:
    """What a complete stage measured, as far as the grid asks for it; a number that is none is left out."""
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
            for value, figure in card.values.items():
                if math.isfinite(figure):
                    found.append(
                        Measurement(
                            figures.cell, figures.seed, figures.sampling_seed, evaluation.step, flops, card.metric,
                            value, figure, card.to_dict(), figures.of.rpartition("-")[2], f"{STAGES}/{figures.of}",
                            command,
                        )
                    )  # fmt: skip
    return found
