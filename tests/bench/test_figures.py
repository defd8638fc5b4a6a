"""Figures as text: equal decimals in a row, very large and odd numbers, and which way is better."""

import math

import pytest

from ifsq.bench.figures import HIGHER, LOWER, better, compute_text, decimals_of, main_value, text_of, titled


@pytest.mark.parametrize(
    ("figures", "decimals"),
    [([2334.9, 1.0], 0), ([525.5], 1), ([26.83, 3.0], 2), ([1.6], 3), ([0.9, 0.01], 3), ([0.0042], 5), ([0.0], 0)],
)
def test_a_row_has_the_decimals_of_its_largest_figure(figures, decimals):
    assert decimals_of(figures) == decimals


@pytest.mark.parametrize(
    ("figure", "text"), [(1e308, "1e+308"), (math.nan, "nan"), (-math.inf, "-inf"), (-1.25, "-1.250"), (1673.4, "1673")]
)
def test_any_figure_has_a_text(figure, text):
    assert text_of(figure) == text


def test_which_way_is_better():
    assert [better(name) for name in ("FD(judge)", "PSNR, dB", "rFID", "latent scale")] == [LOWER, HIGHER, LOWER, ""]
    assert [titled(name) for name in ("KD(pixels)", "SSIM", "odd")] == ["KD(pixels) ↓", "SSIM ↑", "odd"]
    assert [main_value(values) for values in ({"low": 1.0, "distance": 2.0}, {"odd": 1.0})] == ["distance", "odd"]
    assert compute_text(4.96e12) == "4.96e12 FLOP"
