"""A grid's page: the same numbers in each form, what failed, and what it refuses."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from measured import measurement, write_grid

from ifsq.bench.grid.config import Compared, Grid, Seeds, Setting
from ifsq.bench.grid.guidance import Search
from ifsq.bench.grid.stages import folder_of, marker_of
from ifsq.bench.grid_page import grid_page
from ifsq.bench.measurement import MEASUREMENTS, write_measurements
from ifsq.bench.protocol import Protocol
from ifsq.bench.render import html
from ifsq.bench.summary import summary_of
from ifsq.cli import main
from ifsq.config import to_dict
from ifsq.evaluation.record import Evaluation, write_cards
from ifsq.metrics import ProtocolCard
from ifsq.quantizers.usage import LevelUse


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Its page in all forms."""
    folder = tmp_path_factory.mktemp("grid") / "out"
    write_grid(folder)
    about = {
        "command": ["bench", "grid.toml", "--out", "my grid"],
        "grid": {
            "question": "Is iFSQ better at equal bits?",
            "left_out": [{"when": {"bits": 9}, "why": "too slow"}],
        },
        "equal": {"train.batch": 32},
        "differ": {"train.optim.lr": [0.1, 0.2]},
        "unequal": ["the loss"],
        "stages": {"guidance-1": {"kind": "guidance", "cells": ["photos ifsq bits 2 ar"]}, "ar-1": {"kind": "ar"}},
    }
    figures = {1.5: {1_000_000: (3.0,)}, 2.0: {1_000_000: (4.0, 5.0)}}
    Search(1.5, "FD(judge)", "distance", figures).write(folder_of(folder, "guidance-1"))
    marker_of(folder, "guidance-1").write_text("{}")
    (folder / "grid.json").write_text(json.dumps(about))
    failure = {"stage": "train-4", "cells": ["vq 4"], "error": "out of memory"}
    (folder / "failures.jsonl").write_text(json.dumps(failure) + "\n")
    for form in ("html", "md", "csv"):
        assert main(["report", str(folder), "--format", form]) == 0
    return folder


def test_every_form_has_the_same_numbers(grid):
    summary = summary_of(grid)
    rows = list(csv.DictReader((grid / "report.csv").read_text().splitlines()))
    cells = [row for row in rows if row["row"] == "cell"]
    assert [float(row["mean"]) for row in cells] == [one.mean for one in summary.figures]
    assert all(row["command"].startswith("ifsq bench grid.toml --only stages/") for row in cells)
    assert {len(set(row["command"].split(" && "))) for row in cells} == {3}, "one a training seed"
    assert len(rows) - len(cells) == sum(len(family.verdicts) for family in summary.families)
    page, text = (grid / "report.html").read_text(), (grid / "report.md").read_text()
    for one in summary.last:
        decimals = {"PSNR, dB": 2}.get(one.metric, 3)
        shown = f"{one.mean:.{decimals}f} ± {one.deviation:.{decimals}f}"
        assert shown in page
        assert shown in text


def test_it_says_what_was_asked_what_failed_and_what_is_equal(grid):
    for form in ("html", "md"):
        said = (grid / f"report.{form}").read_text()
        for part in (
            "Is iFSQ better at equal bits?",
            "By FD(judge): diffusion is better than ar in 6 of 6 pairs",
            "The chance that any of these verdicts is false is at most 5%.",
            "train-4", "out of memory", "1 stage failed",
            "train.optim.lr", "0.1, 0.2", "the loss", "train.batch", "bits 9: too slow",
            "ifsq bench grid.toml --only stages/photos_ifsq_4_ar_2",
        ):  # fmt: skip
            assert part in said, part


def test_the_scale_that_a_cell_chose_and_the_search_of_it_are_there(grid):
    rows = [[cell.strip() for cell in line.split("|")] for line in (grid / "report.md").read_text().splitlines()]
    columns = next(row for row in rows if "guidance chosen" in row)
    table = rows[rows.index(columns) + 2 :]
    cells = {tuple(row[1:4]): row for row in table[: table.index([""])] if len(row) == len(columns)}
    chosen = {cell: row[columns.index("guidance chosen")] for cell, row in cells.items()}
    assert {cell for cell, scale in chosen.items() if scale} == {("ifsq", "2", "ar")}
    assert chosen["ifsq", "2", "ar"] == "1.5"
    assert ["", "ifsq bits 2 ar", "FD(judge)", "3.000 (chosen)", "4.500", ""] in rows
    assert "the search of the guidance scale" in (grid / "report.html").read_text()


def test_each_kind_of_generator_has_its_cards(grid):
    """How images are drawn is on the cards, and that differs from kind to kind; a seed of 0 is one."""
    said = (grid / "report.md").read_text().partition("## Protocol cards")[2]
    for kind, guidance in (("ar", "2.0; multinomial"), ("diffusion", "1.5; euler 25 steps")):
        assert (
            f"| FD(judge) | {kind} | 10 | pictures train a | 16 px, center, bicubic, float32 | guidance {guidance}; "
            in said
        )
    assert said.count("; seed 0 |") == 4, "two metrics of two kinds"
    assert "| PSNR, dB | 10 | pictures train a |" in said


def test_differences_of_independent_pairs_say_seeds_and_pairs(tmp_path):
    write_grid(tmp_path)
    axes = {"data": ("photos",), "tokenizer": ("fsq", "ifsq"), "bits": (2, 3, 4)}
    asked = Compared("generator", "FD(judge)", "distance", mean_over=("tokenizer", "bits"), independent=True)
    grid = Grid(
        axes, "tokenizer.toml", {"ar": "ar.toml", "diffusion": "diffusion.toml"},
        settings=tuple(Setting({axis: axes[axis]}, tokenizer={"train": {"steps": 3}}) for axis in axes),
        protocol=Protocol(looks=(3,)), compare=(asked,), seeds=Seeds(apart=True),
    )  # fmt: skip
    (tmp_path / "grid.json").write_text(json.dumps({"command": ["bench"], "grid": to_dict(grid)}))
    assert main(["report", str(tmp_path), "--format", "csv"]) == 0
    rows = list(csv.DictReader((tmp_path / "report.csv").read_text().splitlines()))
    (row,) = (row for row in rows if row["row"] == "difference")
    assert (row["seeds"], row["pairs"]) == ("3", "18")
    assert float(row["interval low"]) < float(row["mean"]) < float(row["interval high"])
    assert (row["least of seeds"], row["greatest of seeds"]) == ("", "")
    cell = rows[0]
    assert float(cell["least of seeds"]) <= float(cell["mean"]) <= float(cell["greatest of seeds"])
    assert (cell["interval low"], cell["interval high"], cell["pairs"]) == ("", "", "")


def test_what_is_open_is_not_called_the_same(tmp_path):
    write_grid(tmp_path)
    (tmp_path / "grid.json").write_text(json.dumps({"grid": {"protocol": {"looks": [5]}}}))
    said = grid_page(summary_of(tmp_path), "grid", "here").verdict
    assert said.startswith("By FD(judge): ar and diffusion are not decided yet in any of 6 pairs; ")
    assert "not told apart" not in said
    assert "chance" not in said


def test_every_row_can_be_made_anew(grid):
    said = (grid / "report.md").read_text()
    command = "ifsq bench grid.toml --only stages/photos_ifsq_4_ar_2"
    assert f"| ifsq bits 4 ar, seed 2, sampling seed 0 | FD(judge), class agreement | {command} |" in said


def test_what_tokenizers_foretell_is_there_where_both_were_measured(grid, tmp_path):
    found = summary_of(grid).correlations
    assert set(found) == {"FD(judge)", "class agreement"}
    assert {(one.predictor[0], one.generator["generator"], one.cells) for one in found["FD(judge)"]} == {
        (metric, kind, 6) for metric in ("rFD(judge)", "PSNR, dB") for kind in ("ar", "diffusion")
    }
    said = (grid / "report.md").read_text()
    assert "## What tokenizers foretell" in said
    assert "| figure of the tokenizer | ar | diffusion |" in said
    few = [one for one in write_grid(tmp_path / "few") if one.cell["bits"] == 2]
    write_measurements(tmp_path / "few" / MEASUREMENTS, few)
    assert summary_of(tmp_path / "few").correlations == {}, "of two tokenizers nothing is known"


def test_curves_of_many_cells_are_split(grid):
    page = (grid / "report.html").read_text()
    # Tokenizers and generators over bits, two figures each; over training two figures for each of three rates.
    assert page.count('<figure class="chart"') == 2 + 2 + 2 * 3


def test_what_no_step_moves_is_not_drawn_over_training(tmp_path):
    """As the distance that the tokenizer alone leaves; and one that falls a hundredfold is drawn by its ratios."""
    found = [
        measurement({"generator": kind}, seed, metric, "distance", figure(step) + seed, step=step, flops=1e9 * step)
        for kind in ("ar", "diffusion")
        for seed in range(2)
        for step in (10, 20, 50)
        for metric, figure in (("FD(judge)", lambda step: 4e5 / step**2), ("FD(judge), tokenizer alone", lambda _: 2.0))
    ]
    write_measurements(tmp_path / MEASUREMENTS, found)
    page = grid_page(summary_of(tmp_path), "grid", "here")
    (section,) = (section for section in page.sections if section.title == "Quality over training compute")
    (chart,) = section.blocks[0].charts
    assert chart.title == "FD(judge) ↓"
    ticks = [float(text) for text in re.findall(r">([0-9.]+)<", chart.svg)]
    assert {200.0, 500.0, 1000.0, 2000.0} <= set(ticks)


def test_the_sentence_at_the_top_is_of_what_the_grid_names_first(tmp_path):
    """Not of the metric that happens to be measured first."""
    found = [
        measurement({"generator": kind}, seed, metric, value, figure + seed / 100)
        for kind, more in (("ar", 0), ("diffusion", 5))
        for seed in range(3)
        for metric, value, figure in (("SSIM", "mean", 9.0 - more), ("FD(judge)", "distance", 2.0 + more))
    ]
    write_measurements(tmp_path / MEASUREMENTS, found)
    asked = (Compared("generator", "FD(judge)", "distance"), Compared("generator", "SSIM", "mean", "higher"))
    grid = Grid(
        {}, "tokenizer.toml", {"ar": "ar.toml", "diffusion": "d.toml"}, protocol=Protocol(looks=(3,)), compare=asked
    )
    (tmp_path / "grid.json").write_text(json.dumps({"grid": to_dict(grid)}))
    assert grid_page(summary_of(tmp_path), "grid", "here").verdict.startswith("By FD(judge): ar above diffusion")


def test_each_cell_of_a_nested_tokenizer_has_its_own_levels(tmp_path):
    """One run, whose usual evaluation is of one of them."""
    found = []
    for levels, most in ((3, 0.9), (5, 0.7)):
        place, rest = tmp_path / f"stages/eval-{levels}", (1 - most) / (levels - 1)
        share = {"quantizer": LevelUse((most, *[rest] * (levels - 1)), 0.5)}
        one = measurement({"tokenizer": "nested", "levels": levels}, 0, "SSIM", "mean", 0.5)
        found.append(replace(one, run="stages/nested", evaluation=f"stages/eval-{levels}"))
        for folder in (place, tmp_path / "stages/nested"):
            write_cards(folder / "evaluation.json", Evaluation((ProtocolCard.from_dict(one.card),), levels=share))
    write_measurements(tmp_path / MEASUREMENTS, found)
    page = grid_page(summary_of(tmp_path), "grid", "here")
    (section,) = (section for section in page.sections if section.title == "How evenly the levels are used")
    assert [block.charts[0].alt.partition("shares from ")[2][:14] for block in section.blocks] == [
        "0.050 to 0.900",
        "0.075 to 0.700",
    ]


def test_a_number_of_an_axis_that_no_chart_takes_is_left_out_of_charts(tmp_path):
    found = [measurement({"bits": bits}, 0, "SSIM", "mean", 0.5) for bits in (2, 3, 10**400)]
    write_measurements(tmp_path / MEASUREMENTS, found)
    page = grid_page(summary_of(tmp_path), "grid", "here")
    (section,) = (section for section in page.sections if section.title == "Over the axes")
    assert "at 2 to 0.500 at 3" in section.blocks[0].charts[0].alt
    assert html(page)


def test_a_grid_has_a_page_of_its_own(grid, road, tmp_path, capsys):
    assert main(["report", str(grid), str(road / "ar"), "--out", str(tmp_path / "page.html")]) == 2
    said = capsys.readouterr().err
    assert "is a grid, which has a page of its own; expected it alone, or runs" in said
    assert not (tmp_path / "page.html").exists()


def test_a_single_seed_says_that_it_tells_nothing_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_grid(tmp_path / "one", seeds=1)
    assert main(["report", "one", "--out", "one.md", "--title", "One seed"]) == 0
    assert Path("one.md").read_text().startswith("# One seed\n")
    assert "One training seed a cell: no spread of retraining is known" in Path("one.md").read_text()
