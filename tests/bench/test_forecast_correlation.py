"""Rank correlation of tokenizers' figures with a grid's: which figures are compared, and the interval."""

import math

import numpy as np
import pytest
from scipy import stats

from ifsq.bench.forecast import correlation_table, rank_correlations, spearman
from ifsq.bench.measurement import Measurement
from ifsq.bench.protocol import SEARCH_SEEDS
from ifsq.config import InputError
from ifsq.metrics import ProtocolCard

TARGET = ("FD(judge)", "distance")
IFD = ("iFD(judge)", "distance")
BITS = (2, 3, 4, 5, 6)


def measured(cell, named, figure, seed=0, step=10, sampling_seed=None):
    metric, value = named
    said = {"crop": "center", "resize_kernel": "bicubic", "dtype": "float32", "code_version": "0"}
    card = ProtocolCard(metric, {value: figure}, "images", "0", 8, 16, **said).to_dict()
    return Measurement(cell, seed, sampling_seed, step, None, metric, value, figure, card, "stage", "run", "command")


def grid():
    """Tokenizers that the autoregressive generator likes in the order of iFD, and diffusion in another."""
    lines = []
    for place, bits in enumerate(BITS):
        tokenizer = {"tokenizer": "ifsq", "bits": bits}
        lines.append(measured(tokenizer, IFD, float(place)))
        for seed in (0, 1):
            lines.append(measured({**tokenizer, "generator": "ar"}, TARGET, 10.0 + place + 0.1 * seed, seed))
            lines.append(measured({**tokenizer, "generator": "dit"}, TARGET, float((3 * place) % 5), seed))
    return lines


def test_each_generator_is_compared_alone():
    ar, dit = rank_correlations(grid(), TARGET)
    assert (ar.generator, ar.cells, ar.rho) == ({"generator": "ar"}, 5, pytest.approx(1))
    assert dit.rho == pytest.approx(stats.spearmanr(range(5), [0, 3, 1, 4, 2]).statistic)
    assert dit.interval[0] < dit.rho < dit.interval[1]


def test_newest_steps_and_compared_seeds_decide():
    cell = {"tokenizer": "ifsq", "bits": 2, "generator": "ar"}
    more = [measured(cell, TARGET, 99.0, 0, step=5), measured(cell, TARGET, 99.0, SEARCH_SEEDS)]
    assert rank_correlations([*more, *grid()], TARGET) == rank_correlations(grid(), TARGET)
    last = [measured(cell, TARGET, 99.0, seed, step=50) for seed in (0, 1)]
    assert rank_correlations([*last, *grid()], TARGET)[0].rho < 0.5


def test_a_seed_counts_once_however_often_it_was_sampled():
    cell = {"tokenizer": "ifsq", "bits": 2, "generator": "ar"}
    often = [measured(cell, TARGET, figure, 7, sampling_seed=at) for at, figure in enumerate([-60.0, -60.0, 180.0])]
    assert rank_correlations([*often, *grid()], TARGET)[0].rho == pytest.approx(
        0.4
    )  # (10 + 10.1 + 20) / 3: the fourth of five


def test_tokenizers_without_a_figure_are_left_out():
    lines = [one for one in grid() if one.metric != IFD[0] or one.cell["bits"] > 3]
    assert [one.cells for one in rank_correlations(lines, TARGET)] == [3, 3]
    assert rank_correlations(lines, TARGET)[0].interval is None
    assert rank_correlations(lines, TARGET, [("PSNR, dB", "mean")]) == []


def test_the_correlation_is_scipys_ties_included():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (2, 30)).astype(float).tolist()
    assert spearman(a, b)[0] == pytest.approx(stats.spearmanr(a, b).statistic)


def test_the_interval_holds_the_true_correlation():
    rng, true, n, times = np.random.default_rng(1), 0.6, 12, 400
    pearson = 2 * math.sin(math.pi * true / 6)  # of normal figures with this correlation of ranks
    held = 0
    for _ in range(times):
        a, noise = rng.standard_normal((2, n))
        low, high = spearman(a.tolist(), (pearson * a + math.sqrt(1 - pearson**2) * noise).tolist())[1]
        held += low <= true <= high
    assert 0.92 <= held / times <= 0.99


def test_full_agreement_is_no_certainty():
    rho, (low, high) = spearman([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert rho == pytest.approx(1)
    assert low < 0.8
    assert high == pytest.approx(1)
    assert spearman([1.0, 1.0], [1.0, 2.0])[1] is None
    assert math.isnan(spearman([1.0, 1.0], [1.0, 2.0])[0])


def test_the_table_has_a_predictor_a_row():
    table = correlation_table(rank_correlations(grid(), TARGET), "how")
    assert (table.caption, table.columns) == ("how", ["figure of the tokenizer", "ar", "dit"])
    ((name, ar, dit),) = table.rows
    assert (name, ar[:6], ar[-3:]) == ("iFD(judge), distance", "1.00 [", "(5)")
    assert dit.startswith("0.50 [")


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match=r"measurements of PSNR, dB, mean: none"):
        rank_correlations(grid(), ("PSNR, dB", "mean"))
    double = measured({"bits": 2}, IFD, 1.0)
    with pytest.raises(InputError, match=r"iFD.judge. of 2 tokenizers; expected one"):
        rank_correlations([double, *grid()], TARGET)
    with pytest.raises(ValueError, match="2 figures and 3"):
        spearman([1.0, 2.0], [1.0, 2.0, 3.0])
