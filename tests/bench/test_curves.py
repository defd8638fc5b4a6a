"""Curves over the training: which figures share a panel, where their points lie, and damaged records."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from ifsq.bench.answer import answer_of, question_of
from ifsq.bench.charts import Line, line_chart
from ifsq.bench.curves import curves_over_training, panels_of, tokenizer_over_training
from ifsq.bench.runs import Reported, named
from ifsq.cli import main
from ifsq.evaluation.record import Evaluation, read_evaluation, write_evaluation
from ifsq.metrics import ProtocolCard
from ifsq.store.run import Run

CARD = ProtocolCard(
    metric="FD(judge)", values={"distance": 9.0}, reference="pictures train", reference_hash="a", n=10, size=16,
    crop="center", resize_kernel="bicubic", dtype="float32", tokenizer_hash="t", generator_hash="g", features="judge 1",
)  # fmt: skip


def evaluated(step, distance, agreement, **changes):
    cards = (
        replace(CARD, values={"distance": distance}, **changes),
        replace(CARD, metric="class agreement", values={"share": agreement}, **changes),
        replace(CARD, metric="FD(judge), untrained generator", values={"distance": 99.0}, **changes),
        replace(CARD, metric="bits per image", values={"mean": 5.0}, **changes),
    )
    return Evaluation(cards, step, seen=step * 4, flops=step * 1e6)


def reported(kind, evaluations=(), metrics=(), folder=""):
    run = Run(Path(folder or kind), kind, {"kind": kind, "experiment": {"train": {"batch": 4}}})
    held = {one.step: one for one in evaluations}
    return Reported(run, list(metrics), evaluated(9, 1.0, 1.0), held)


def told(panels):
    return {
        panel.title: {
            name: [(at.step, at.value, at.seen, at.flops) for at in points] for name, points in panel.points.items()
        }
        for panel in panels
    }


def test_both_generators_share_the_panels_of_what_was_measured_alike():
    ar = reported("ar", [evaluated(10, 8.0, 0.2), evaluated(20, 4.0, 0.5)])
    diffusion = reported("diffusion", [evaluated(10, 7.0, 0.3)])
    assert told(panels_of([ar, diffusion])) == {
        "FD(judge), 10 samples": {
            "autoregressive": [(10, 8.0, 40, 1e7), (20, 4.0, 80, 2e7)],
            "diffusion": [(10, 7.0, 40, 1e7)],
        },
        "class agreement, 10 samples": {
            "autoregressive": [(10, 0.2, 40, 1e7), (20, 0.5, 80, 2e7)],
            "diffusion": [(10, 0.3, 40, 1e7)],
        },
    }


@pytest.mark.parametrize("changes", [{"n": 20}, {"seed": 7}, {"features": "judge 2"}, {"code_version": "0.2"}])
def test_what_was_measured_otherwise_has_a_panel_of_its_own(changes):
    ar = reported("ar", [evaluated(10, 8.0, 0.2), evaluated(20, 4.0, 0.5)])
    diffusion = reported("diffusion", [evaluated(10, 7.0, 0.3, **changes), evaluated(20, 6.0, 0.3, **changes)])
    panels = panels_of([ar, diffusion])
    assert [list(panel.points) for panel in panels] == [["autoregressive"]] * 2 + [["diffusion"]] * 2
    assert len({panel.title for panel in panels}) == 4
    ((field, value),) = changes.items()
    assert panels[2].title == f"FD(judge), {'20 samples' if field == 'n' else f'10 samples; {field} {value}'}"


def test_each_generator_is_sampled_in_its_own_way():
    ar = reported("ar", [evaluated(10, 8.0, 0.2, sampler="top-k 5", guidance=2.0)])
    diffusion = reported("diffusion", [evaluated(10, 7.0, 0.3, sampler="euler", function_evaluations=50)])
    assert [len(panel.points) for panel in panels_of([ar, diffusion])] == [2, 2]


def test_what_was_looked_at_lies_where_an_evaluation_counted_the_cost():
    rows = [{"step": step, "evaluate/fd_pixels": 3.0 / step, "evaluate/images": 8.0} for step in (2, 4)]
    (panel,) = panels_of([reported("ar", metrics=rows)])
    assert told([panel]) == {
        "FD(pixels) while training, 8 samples": {"autoregressive": [(2, 1.5, 8, None), (4, 0.75, 16, None)]}
    }
    kernel = [{"step": 2, "evaluate/kd_pixels": -0.1, "evaluate/images": 8.0}]
    assert [panel.title for panel in panels_of([reported("ar", metrics=kernel)])] == [
        "KD(pixels) while training, 8 samples"
    ]
    counted = panels_of([reported("ar", [evaluated(10, 8.0, 0.2)], rows)])[-1]
    assert [point.flops for point in counted.points["autoregressive"]] == [2e6, 4e6]


def test_the_training_of_a_large_generator_is_drawn_and_what_is_no_step_is_not():
    large = [replace(evaluated(step, 8.0, 0.2), flops=step * 1e20) for step in (10, 20)]
    panel = panels_of([reported("ar", [*large, evaluated(2**70, 8.0, 0.2)])])[0]
    assert [point.flops for point in panel.points["autoregressive"]] == [1e21, 2e21]
    curves = curves_over_training([reported("ar", large)])
    assert "from 8.000 at 1e+21" in curves.charts[2].alt


def test_a_single_step_is_no_curve():
    assert curves_over_training([reported("ar", [evaluated(10, 8.0, 0.2)])]) is None
    assert curves_over_training([]) is None
    drawn = curves_over_training([reported("ar", [evaluated(10, 8.0, 0.2), evaluated(20, 4.0, 0.5)])])
    assert drawn is not None
    assert [chart.title for chart in drawn.charts] == ["FD(judge) ↓, 10 samples"] * 3 + [
        "class agreement ↑, 10 samples"
    ] * 3
    assert all(chart.svg.startswith("<svg") for chart in drawn.charts)
    assert not drawn.legend


def test_a_tokenizer_has_what_was_looked_at():
    rows = [
        {"step": step, "evaluate/rfd_pixels": 1.0, "evaluate/psnr": 20.0, "evaluate/images": 8.0} for step in (2, 4)
    ]
    drawn = tokenizer_over_training(reported("tokenizer", metrics=rows))
    assert drawn is not None
    assert [chart.title for chart in drawn.charts] == ["PSNR, dB ↑", "rFD(pixels) ↓"]
    assert "8 held-out images" in drawn.caption
    assert tokenizer_over_training(reported("tokenizer", metrics=rows[:1])) is None


def test_the_page_has_the_curves_and_a_damaged_record_is_one_line(road, tmp_path, monkeypatch, capsys):
    shutil.copytree(road / "ar", tmp_path / "ar")
    monkeypatch.chdir(tmp_path)
    assert main(["report", "ar"]) == 0
    assert "Over the training" not in Path("ar/report.html").read_text()
    run = Run.open("ar")
    held = read_evaluation(run)
    for step in (1, 2):
        write_evaluation(run, replace(held, step=step, seen=step * 4), step=step)
    assert main(["report", "ar"]) == 0
    assert "Over the training" in Path("ar/report.html").read_text()
    run.evaluation_file(1).write_text('{"cards": [')
    capsys.readouterr()
    assert main(["report", "ar"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "step_1.json" in said


def test_any_number_of_generators_is_drawn_each_in_a_look_of_its_own(monkeypatch):
    drawn, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, *given, **look: drawn.append(look) or plot(self, *given, **look))
    evaluations = [evaluated(10, 3.0, 0.2), evaluated(20, 2.0, 0.3)]
    runs = named([reported("ar", evaluations, folder=f"runs/{number}") for number in range(8)])
    charts = curves_over_training(runs)
    assert charts.charts[0].svg.count("<path") > 8
    assert [look["label"] for look in drawn[:8]] == [f"autoregressive, {number}" for number in range(8)]
    assert len({(look["color"], str(look["linestyle"])) for look in drawn}) == 8
    assert len({(each.colour, each.dash) for each in charts.legend}) == 8


def test_two_runs_of_a_kind_have_curves_of_their_own():
    one, two = named(
        [
            reported("ar", [evaluated(10, value, 0.2), evaluated(20, value / 2, 0.3)], folder=f"runs/{name}")
            for name, value in (("small", 8.0), ("large", 4.0))
        ]
    )
    points = told(panels_of([one, two]))["FD(judge), 10 samples"]
    assert points == {
        "autoregressive, small": [(10, 8.0, 40, 1e7), (20, 4.0, 80, 2e7)],
        "autoregressive, large": [(10, 4.0, 40, 1e7), (20, 2.0, 80, 2e7)],
    }


def seeded(seed, values, kind="ar", depth=1):
    run = reported(
        kind, [evaluated(10, values[0], 0.2), evaluated(20, values[1], 0.3)], folder=f"runs/{kind}{depth}_s{seed}"
    )
    run.run.config["experiment"] = {"ar": {"depth": depth}, "train": {"batch": 4, "seed": seed}}
    return replace(run, evaluation=evaluated(20, values[1], 0.3))


def test_seeds_of_training_are_one_line_in_a_band():
    runs = named([seeded(0, (8.0, 4.0)), seeded(1, (6.0, 5.0)), seeded(2, (7.0, 6.0))])
    assert [run.label for run in runs] == [f"autoregressive, seed {seed}" for seed in range(3)]
    distance, *_ = curves_over_training(runs).charts
    assert distance.data.rows == [
        ["autoregressive", "10", "7.000", "6.000 to 8.000"],
        ["autoregressive", "20", "5.000", "4.000 to 6.000"],
    ]
    two = named([*runs, seeded(0, (3.0, 2.0), depth=2), seeded(1, (2.0, 1.0), depth=2)])
    assert [run.label for run in two][3:] == ["autoregressive, ar2, seed 0", "autoregressive, ar2, seed 1"]
    assert two[3].differs == ("ar.depth 2", "train.seed 0")
    charts = curves_over_training(two)
    assert [each.name for each in charts.legend] == ["autoregressive, ar1", "autoregressive, ar2"]
    data = charts.charts[0].data
    assert data.columns[1:] == ["autoregressive, ar1", "autoregressive, ar2"]
    assert data.rows[-1] == ["20", "5.000 (4.000 to 6.000)", "1.500 (1.000 to 2.000)"]


def test_the_answer_of_a_page_with_several_seeds_is_of_their_means():
    """The two lowest runs may be of one kind: what is asked is which kind is better."""
    ar = [seeded(seed, (9.0, value)) for seed, value in enumerate((2.0, 2.2, 2.1))]
    diffusion = [seeded(seed, (9.0, value), kind="diffusion") for seed, value in enumerate((1.9, 1.0, 1.6))]
    runs = named([*ar, *diffusion])
    assert question_of([], runs).endswith(": autoregressive and diffusion?")
    answer = answer_of([], runs)
    means = "diffusion 1.500 (1.000 to 1.900, 3 seeds); autoregressive 2.100 (2.000 to 2.200, 3 seeds)"
    assert answer.startswith(f"FD(judge), mean over seeds of training: {means}; lower is better. Diffusion and ")
    assert "autoregressive are not told apart; the chance" in answer, "Welch's test at three seeds needs a wider gap"
    close = named([*ar, *(seeded(seed, (9.0, 1.0 + seed / 100), kind="diffusion") for seed in range(3))])
    assert "Diffusion above autoregressive; the chance of a false verdict is at most 5%." in answer_of([], close)
    assert "1 seed); autoregressive 2.100" in (one := answer_of([], named([*ar, diffusion[0]])))
    assert one.endswith("Where there is one seed nothing is told apart.")
    alone = named(ar)
    assert (
        question_of([], alone)
        == "How close do the samples of the autoregressive generator come to the training images?"
    )
    assert answer_of([], alone).endswith("autoregressive 2.100 (2.000 to 2.200, 3 seeds); lower is better.")


@pytest.mark.parametrize(("limits", "scale"), [(None, "log"), ((0.0, 90.0), "linear")])
def test_limits_that_are_given_keep_an_axis_linear(monkeypatch, limits, scale):
    """They begin at 0, which a logarithmic axis has not."""
    drawn, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, *given, **look: drawn.append(self) or plot(self, *given, **look))
    chart = line_chart("FD", [Line("ar", [1e9, 2e9], [80.0, 2.0])], "training FLOP", limits=limits, ratios=True)
    assert chart.svg
    assert drawn[0].get_yscale() == scale
    assert limits is None or drawn[0].get_ylim() == limits
