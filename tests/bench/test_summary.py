"""The numbers of a grid's page against others: means and spreads by numpy, verdicts on gaps that are known."""

import json
from dataclasses import replace

import numpy as np
import pytest
from measured import measurement, write_grid

from ifsq.bench.grid.config import Compared, Grid, Setting
from ifsq.bench.grid.verdicts import verdicts_of
from ifsq.bench.grid_page import grid_page
from ifsq.bench.measurement import MEASUREMENTS, write_measurements
from ifsq.bench.protocol import Protocol
from ifsq.bench.summary import summary_of, winner_of
from ifsq.config import InputError, to_dict
from ifsq.evaluation.likelihood import BOUND, EXACT


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    return folder, write_grid(folder), summary_of(folder)


def test_a_figure_is_of_all_seeds_of_a_cell_and_a_step(grid):
    _, measured, summary = grid
    assert sum(len(one.of) for one in summary.figures) == len(measured)
    for one in summary.figures:
        of = [each for each in measured if (each.cell, each.step, each.metric) == (one.cell, one.step, one.metric)]
        by_seed = [np.mean([each.figure for each in of if each.seed == seed]) for seed in (0, 1, 2)]
        assert one.mean == pytest.approx(np.mean(by_seed))
        assert one.deviation == pytest.approx(np.std(by_seed, ddof=1))
        assert list(one.means) == [0, 1, 2]
    ends = {one.cell["generator"]: one.flops for one in summary.last if "generator" in one.cell}
    assert ends == {"ar": 4e12, "diffusion": 1e12}


def test_axes_and_names(grid):
    summary = grid[2]
    assert summary.varying == ["tokenizer", "bits", "generator"]
    assert summary.constant == {"data": "photos"}
    assert [len(of) for of in summary.kinds] == [12, 24]
    assert summary.name(summary.last[0].cell) == "fsq bits 2"


def test_verdicts_are_of_cells_that_differ_on_one_axis(grid):
    summary = grid[2]
    assert summary.protocol.looks == (3,)
    families = {family.metric: family for family in summary.families}
    assert {metric: len(family.verdicts) for metric, family in families.items()} == {
        "PSNR, dB": 7, "rFD(judge)": 7, "FD(judge)": 20, "class agreement": 20,
    }  # fmt: skip
    distance = families["FD(judge)"]
    kinds = [
        winner_of(one) for one, pair in zip(distance.verdicts, distance.apart, strict=True) if pair[0] == "generator"
    ]
    assert kinds == [1] * 6, "diffusion is two units below"
    assert "diffusion is better than ar in 6 of 6 pairs" in distance.told
    assert "fsq and ifsq are not told apart in any of 6 pairs" in distance.told
    assert all({pair[1], pair[2]} != {2, 4} for pair in distance.apart), "numbers are compared with the next one"


def test_a_single_seed_has_no_verdict(tmp_path):
    write_grid(tmp_path, seeds=1)
    summary = summary_of(tmp_path)
    assert (summary.protocol, summary.families) == (None, [])
    assert summary.figures[0].deviation is None


def lines(tmp_path, *found):
    write_measurements(tmp_path / MEASUREMENTS, found)
    return summary_of(tmp_path)


def test_figures_that_do_not_compare_are_refused(tmp_path):
    cells = {"tokenizer": "a"}, {"tokenizer": "b"}
    good = [measurement(cell, 0, "SSIM", "mean", 0.5) for cell in cells]
    assert len(lines(tmp_path, *good).figures) == 2
    other = measurement(cells[1], 0, "SSIM", "mean", 0.5, size=32)
    with pytest.raises(
        InputError, match=r"a_0 and .*b_0: SSIM: cards do not compare: size 16 against 32.*measure both"
    ):
        lines(tmp_path, good[0], other)
    newer = measurement(cells[1], 0, "SSIM", "mean", 0.5, code_version="2")
    assert lines(tmp_path, good[0], newer).code_versions == ["1", "2"]


def test_bounds_stand_on_one_page_however_they_are_found(tmp_path):
    """Each kind of generator has its own way, and diffusion one for each rate; an exact figure has one for all."""
    cells = {"generator": "diffusion"}, {"generator": "masked"}
    for metric, kept in ((BOUND, True), (EXACT, False)):
        found = [
            measurement(cell, 0, metric, "mean", 600.0, method=method)
            for cell, method in zip(cells, ("all orders", "Hutchinson's estimator"), strict=True)
        ]
        if kept:
            assert len(lines(tmp_path, *found).figures) == 2
        else:
            with pytest.raises(InputError, match="cards do not compare: method 'all orders' against"):
                lines(tmp_path, *found)


def test_what_was_measured_anew_counts_once(tmp_path):
    old = measurement({"tokenizer": "a"}, 0, "SSIM", "mean", 0.5)
    new = replace(measurement({"tokenizer": "a"}, 0, "SSIM", "mean", 0.75), stage="newer")
    (one,) = lines(tmp_path, old, new).figures
    assert one.figures == {0: (0.75,)}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (MEASUREMENTS, "", "measurements.jsonl: holds no measurement yet; run the grid first"),
        ("failures.jsonl", "[]\n", "failures.jsonl: line 1: expected a JSON object"),
        ("failures.jsonl", '{"stage": 1}\n', "failures.jsonl: line 1: stage: "),
        ("grid.json", '{"grid": {"question": [1]}}', "grid.json: question: "),
        ("grid.json", '{"unequal": 3}', "grid.json: unequal: "),
        ("grid.json", '{"command": 3}', "grid.json: command: expected a list"),
        ("grid.json", '{"grid": {"left_out": 3}}', "grid.json: grid.left_out: expected a list"),
        ("grid.json", "[]", "grid.json: expected a JSON object with the grid"),
        ("grid.json", "{", "grid.json: cannot be read as JSON"),
    ],
)
def test_damaged_files_are_a_line(tmp_path, name, content, told):
    write_measurements(tmp_path / MEASUREMENTS, [measurement({"tokenizer": "a"}, 0, "SSIM", "mean", 0.5)])
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=told):
        summary_of(tmp_path)


def test_a_failure_that_a_kill_cut_short_is_left_out(tmp_path):
    write_measurements(tmp_path / MEASUREMENTS, [measurement({"tokenizer": "a"}, 0, "SSIM", "mean", 0.5)])
    (tmp_path / "failures.jsonl").write_text('{"stage": "a"}\n{"stage": "b", "cel')
    assert [one.stage for one in summary_of(tmp_path).failures] == ["a"]


def test_figures_of_which_none_stands_for_its_metric_are_refused(tmp_path):
    held = {"mean": 1.0, "std": 0.5}
    one = measurement({"tokenizer": "a"}, 0, "SSIM", "std", 0.5, values=held)
    write_measurements(tmp_path / MEASUREMENTS, [one])
    with pytest.raises(InputError, match=r"measurements.jsonl: holds no figure that stands for its metric"):
        summary_of(tmp_path)


def test_the_grid_says_how_its_seeds_decide(tmp_path):
    write_grid(tmp_path)
    (tmp_path / "grid.json").write_text(
        json.dumps({"grid": {"question": "Which?", "protocol": {"looks": [3, 5], "error": 0.1}}})
    )
    summary = summary_of(tmp_path)
    assert (summary.about.question, summary.protocol.looks, summary.protocol.error) == ("Which?", (3, 5), 0.1)
    words = {verdict.words for family in summary.families for verdict in family.verdicts}
    assert "open" in words
    assert "not told apart" not in words, "the cap is not reached"
    assert not any("not told apart" in line for family in summary.families for line in family.told)


@pytest.mark.parametrize("known", [True, False])
def test_a_seed_that_a_cell_lacks_changes_no_other_verdict(tmp_path, known):
    """As after one failure: the cells that have all of their seeds are judged as if it were there."""
    measured = write_grid(tmp_path, gap=0.25)
    if known:
        (tmp_path / "grid.json").write_text(json.dumps({"grid": {"seeds": {"training": [0, 1, 2]}}}))
    whole = summary_of(tmp_path).families
    short = {"data": "photos", "tokenizer": "ifsq", "bits": 3, "generator": "ar"}
    write_measurements(tmp_path / MEASUREMENTS, [one for one in measured if (one.cell, one.seed) != (short, 2)])
    summary = summary_of(tmp_path)
    assert summary.protocol.looks == (3,)
    name, found = summary.name(short), 0
    for family, other in zip(whole, summary.families, strict=True):
        for one, again in zip(family.verdicts, other.verdicts, strict=True):
            if name in (one.comparison.a, one.comparison.b):
                assert again.words == "open"
                found += 1
            else:
                assert (again.words == one.words, again.gap) == (True, one.gap)
    assert found


def test_bits_of_other_codes_are_not_compared(tmp_path):
    """Codes that say less of an image have fewer bits: 'bits 2 above bits 4' would be no finding."""
    cells = [{"bits": bits, "generator": generator} for bits in (2, 4) for generator in ("chain", "joint")]
    found = [
        measurement(cell, seed, EXACT, "mean", 150.0 * cell["bits"] + seed, tokenizer_hash=f"{cell['bits']} {seed}")
        for cell in cells
        for seed in range(3)
    ]
    summary = lines(tmp_path, *found)
    (family,) = summary.families
    assert {pair[0] for pair in family.apart} == {"generator"}
    assert summary.correlations == {}
    page = grid_page(summary, "grid", "here")
    assert page.facts == []
    (cells_section,) = (section for section in page.sections if section.title == "Cells")
    assert "Bits compare behind the same tokenizer alone" in cells_section.blocks[0].caption
    alike = [replace(one, card={**one.card, "tokenizer_hash": "t"}) for one in found]
    assert {pair[0] for pair in lines(tmp_path, *alike).families[0].apart} == {"generator", "bits"}


def test_a_grid_that_names_its_comparisons_is_judged_by_them_alone(tmp_path):
    measured = write_grid(tmp_path)
    axes = {"data": ("photos",), "tokenizer": ("fsq", "ifsq"), "bits": (2, 3, 4)}
    changed = {"tokenizer": {"train": {"steps": 3}}}
    asked = (
        Compared("bits", "rFD(judge)", "distance", of="tokenizer"),
        Compared("generator", "FD(judge)", "distance"),
    )
    grid = Grid(
        axes, "tokenizer.toml", {"ar": "ar.toml", "diffusion": "diffusion.toml"},
        settings=tuple(Setting({axis: axes[axis]}, **changed) for axis in axes),
        protocol=Protocol(looks=(3, 5), error=0.1), compare=asked,
    )  # fmt: skip
    (tmp_path / "grid.json").write_text(json.dumps({"command": ["bench"], "grid": to_dict(grid)}))
    summary = summary_of(tmp_path)
    assert {family.metric: len(family.verdicts) for family in summary.families} == {"rFD(judge)": 6, "FD(judge)": 6}
    shown = [verdict for family in summary.families for verdict in family.verdicts]
    own = verdicts_of(grid, measured)
    assert [(one.gap, one.error, one.decided) for one in shown] == [(one.gap, one.error, one.decided) for one in own]
    assert shown[-1].words == "ifsq bits 4 diffusion above ifsq bits 4 ar"
    assert own[-1].words.startswith("photos ifsq bits 4 diffusion by FD(judge), distance above photos ifsq bits 4 ar")
    page = grid_page(summary, "grid", "here")
    assert page.verdict.startswith("By FD(judge): diffusion is better than ar in 6 of 6 pairs.")
    assert "false verdict in all of the grid's comparisons is at most 10%" in page.sections[0].blocks[0].caption
