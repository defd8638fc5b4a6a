"""What a grid takes of its stages' evaluations, on evaluations that nobody made."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from measured import CARD

from ifsq.bench.grid.config import Compared, Grid, Measured, Setting
from ifsq.bench.grid.plan import Figures, Plan
from ifsq.bench.grid.results import check_measured, measurements
from ifsq.bench.grid.runner import mark
from ifsq.bench.grid.stages import Stage
from ifsq.bench.protocol import Protocol
from ifsq.config import InputError
from ifsq.evaluation.record import Evaluation, write_cards

CELL = {"generator": "ar"}
AXES = {"bits": (2, 3)}
MEANT = (Setting({"bits": (2, 3)}, tokenizer={"train": {"steps": 3}}),)


@dataclass(frozen=True)
class Nothing:
    """Work that is done."""

    def run(self, folder, device, reporter):
        pass


def card(metric, value, figure, **changes):
    return replace(CARD, metric=metric, values={value: figure}, **changes)


def measured_plan(out: Path, **asked) -> Plan:
    """A generator that was evaluated, bits included, and whose bits were measured by a stage of their own."""
    generator = Stage("ar", {}, {}, Nothing(), flops=40.0, steps=4)
    evaluation = Stage("generator-eval", {}, {}, Nothing())
    likelihood = Stage("likelihood", {}, {}, Nothing())
    stages = {one.name: one for one in (generator, evaluation, likelihood)}
    figures = [Figures(CELL, 0, 1, evaluation.name, generator.name)]
    figures += [Figures(CELL, 0, None, likelihood.name, generator.name)]
    plan = Plan(Grid(AXES, "tokenizer.toml", settings=MEANT, **asked), out, ("bench",), stages, figures)
    bits = card("bits per image", "mean", 70.0, n=96)
    for stage, cards in (
        (evaluation, (card("FD(judge)", "distance", 2.5), bits)),
        (likelihood, (replace(bits, values={"mean": 71.0}, n=32),)),
    ):
        write_cards(stage.folder(out) / "evaluation.json", Evaluation(cards, step=2))
        mark(stage, plan, 1.0)
    return plan


def test_a_measurement_says_where_it_was_taken_and_at_what_cost(tmp_path):
    plan = measured_plan(tmp_path)
    one = measurements(plan)[0]
    assert (one.metric, one.figure, one.seed, one.sampling_seed, one.step, one.flops) == (
        "FD(judge)", 2.5, 0, 1, 2, 20.0,
    )  # fmt: skip
    assert (one.run, one.evaluation) == tuple(f"stages/{name}" for name in list(plan.stages)[:2])


def test_bits_are_those_of_the_likelihood_where_it_is_asked_for(tmp_path):
    """Of other held-out images than those of the evaluation they would not compare, of the same they count twice."""
    plan = measured_plan(tmp_path, evaluation=Measured(likelihood=32))
    assert [(one.metric, one.figure) for one in measurements(plan)] == [("FD(judge)", 2.5), ("bits per image", 71.0)]


def test_a_damaged_evaluation_is_refused_with_what_to_do(tmp_path):
    plan = measured_plan(tmp_path)
    folder = tmp_path / "stages" / list(plan.stages)[1]
    (folder / "evaluation.json").write_text("{")
    with pytest.raises(InputError, match=rf"cannot be read as JSON.*; remove {folder} for the stage to be done again$"):
        measurements(plan)


FD = Compared("bits", "FD(judge)", "distance")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"evaluation": Measured(metrics=("PSNR",))},
            "evaluation.metrics: 'PSNR' was not measured; expected one of FD",
        ),
        ({"compare": (replace(FD, metric="FD"),)}, "compare: 'FD' was not measured; expected one of FD(judge), bits"),
        ({"compare": (replace(FD, value="mean"),)}, "compare: FD(judge) has no value 'mean'; expected one of distance"),
        (
            {"compare": (FD,), "evaluation": Measured(metrics=("bits per image",))},
            "compare: 'FD(judge)' is none of evaluation.metrics, bits per image",
        ),
    ],
)
def test_a_figure_that_no_stage_has_is_told_once_all_are_measured(tmp_path, asked, message):
    plan = measured_plan(tmp_path, **({"protocol": Protocol()} if "compare" in asked else {}), **asked)
    with pytest.raises(InputError) as caught:
        check_measured(plan)
    assert message in str(caught.value)
    check_measured(measured_plan(tmp_path, compare=(FD,), protocol=Protocol()))


def test_a_figure_that_one_of_the_compared_cells_has_not_is_told(tmp_path):
    """More seeds would not decide it. A cell whose stages failed may still get its figure."""
    plan = measured_plan(tmp_path, compare=(FD,), protocol=Protocol())
    drawn, counted = plan.figures
    plan.figures = [replace(drawn, cell={"bits": 2}), replace(counted, cell={"bits": 3})]
    with pytest.raises(
        InputError, match=r"compare: FD\(judge\), distance was not measured of the generator bits 3; exp"
    ):
        check_measured(plan)
    plan.figures = [replace(drawn, cell={"bits": 2})]
    check_measured(plan)
