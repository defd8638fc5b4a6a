"""Two levels of seeds: means, both spreads, and Student's intervals against scipy's own tests."""

import math

import numpy as np
import pytest
from scipy import stats

from ifsq.metrics.seeds import Gap, gap, seed_means, shared_seeds, spread, welch_level


def _cell(rng, seeds, drawn, training, sampling, mean=10.0):
    of = mean + training * rng.standard_normal(seeds)
    return {seed: list(of[seed] + sampling * rng.standard_normal(drawn)) for seed in range(seeds)}


def test_both_spreads_are_found_again():
    cell = _cell(np.random.default_rng(0), 3000, 3, training=2.0, sampling=1.5)
    found = spread(cell)
    assert found.seeds == 3000
    assert found.mean == pytest.approx(10, abs=0.15)
    assert found.sampling == pytest.approx(1.5, rel=0.03)
    assert found.training == pytest.approx(2.0, rel=0.04)
    assert found.deviation == pytest.approx(math.sqrt(4 + 2.25 / 3), rel=0.04)


def test_a_seed_of_several_samplings_counts_once():
    cell = {0: [1.0, 3.0, 2.0], 1: [4.0], 2: [6.0, 6.0]}
    assert seed_means(cell) == {0: 2.0, 1: 4.0, 2: 6.0}
    assert spread(cell).deviation == pytest.approx(2.0)


def test_where_sampling_explains_everything_training_has_no_spread():
    assert spread({0: [0.0, 2.0], 1: [0.0, 2.0], 2: [0.1, 1.9]}).training == 0.0


def test_spreads_that_no_figures_tell_are_nan():
    assert math.isnan(spread({0: [1.0, 2.0]}).deviation)
    alone = spread({0: [1.0], 1: [2.0]})
    assert math.isnan(alone.sampling)
    assert math.isnan(alone.training)


def test_paired_gap_is_students_test_of_differences():
    rng = np.random.default_rng(1)
    a, b = (_cell(rng, 6, 2, 1.0, 0.5, mean) for mean in (10.0, 11.0))
    found = gap(a, b, 6, paired=True)
    theirs = stats.ttest_rel(*(list(seed_means(one).values()) for one in (a, b)))
    assert found.separates(theirs.pvalue * 1.001)
    assert not found.separates(theirs.pvalue * 0.999)
    low, high = theirs.confidence_interval(0.95)
    assert found.interval(0.05) == pytest.approx((low, high))


def test_unpaired_gap_is_welchs_at_a_lower_level():
    rng = np.random.default_rng(2)
    a, b = _cell(rng, 5, 1, 1.0, 0.0), _cell(rng, 5, 1, 4.0, 0.0, 12.0)
    found = gap(a, b, 5)
    theirs = stats.ttest_ind(*(list(seed_means(one).values()) for one in (a, b)), equal_var=False)
    assert found.value / found.error == pytest.approx(theirs.statistic)
    assert found.freedom == pytest.approx(theirs.df)
    low, high = theirs.confidence_interval(1 - welch_level(5, 0.05))
    assert found.interval(0.05) == pytest.approx((low, high))


@pytest.mark.parametrize(("seeds", "error"), [(3, 0.05), (5, 0.02)])
def test_welch_at_the_lower_level_keeps_the_error_at_every_ratio_and_only_just(seeds, error):
    rng, times = np.random.default_rng(4), 60_000
    a, b = rng.standard_normal((2, times, seeds))
    rates = []
    for ratio in (1, 4, 7, 1000):
        p = stats.ttest_ind(a, ratio * b, axis=1, equal_var=False).pvalue
        rates.append(float((p <= welch_level(seeds, error)).mean()))
        assert rates[-1] <= error + 4 * math.sqrt(error / times)
    assert max(rates) > 0.93 * error
    assert welch_level(seeds, error) < 0.95 * error


def test_welch_level_rises_with_the_error_and_nears_it_with_more_seeds():
    levels = [welch_level(3, error) for error in (1e-4, 1e-3, 0.01, 0.05, 0.2)]
    assert levels == sorted(levels)
    assert 0 < welch_level(2, 1e-3) < welch_level(3, 1e-3) < welch_level(30, 1e-3) < welch_level(31, 1e-3) == 1e-3


def test_pairing_takes_the_seeds_that_both_have():
    a, b = {0: [1.0], 1: [2.0], 3: [4.0]}, {1: [2.5], 2: [9.0], 3: [4.7]}
    assert shared_seeds(a, b, paired=True) == 2
    assert gap(a, b, 2, paired=True).value == pytest.approx(-0.6)
    assert gap(a, b, 2).value == pytest.approx((1 + 2) / 2 - (2.5 + 9) / 2)


def test_detectable_gap_is_seen_as_often_as_it_says():
    rng = np.random.default_rng(3)
    seeds, error = 5, 0.02
    # For new cells of a spread that is known to be 1: what the noncentral t says, counted.
    least = Gap(0.0, 1 / math.sqrt(seeds), seeds, seeds - 1.0, 1.0, True).detectable(error, 0.8)
    drawn = least + rng.standard_normal((20000, seeds))
    t = drawn.mean(1) / (drawn.std(1, ddof=1) / math.sqrt(seeds))
    assert (t > stats.t.isf(error / 2, seeds - 1)).mean() == pytest.approx(0.8, abs=0.01)


def test_figures_without_spread_decide_nothing():
    found = gap({0: [1.0], 1: [1.0]}, {0: [2.0], 1: [2.0]}, 2)
    rounded = gap({0: [0.3], 1: [0.1 + 0.2]}, {0: [0.1], 1: [0.1]}, 2)
    assert not rounded.separates(0.5)
    assert (found.separates(0.5), found.interval(0.05), found.detectable(0.05, 0.8)) == (False, None, None)


def test_relative_to_nothing_is_no_number():
    assert Gap(1.0, 1.0, 3, 4.0, -50.0, False).relative(1.0) == pytest.approx(2.0)
    assert math.isnan(Gap(1.0, 1.0, 3, 4.0, 0.0, False).relative(1.0))


@pytest.mark.parametrize("figures", [{0: []}, {0: [math.nan]}, {0: [1.0], 1: [math.inf]}])
def test_figures_that_are_none_are_refused(figures):
    with pytest.raises(ValueError, match="expected finite numbers"):
        spread(figures)


def test_too_few_seeds_are_refused():
    with pytest.raises(ValueError, match="gap over 3 seeds: expected 2 to 2"):
        gap({0: [1.0], 1: [2.0]}, {0: [1.0], 1: [2.0], 2: [3.0]}, 3)
    with pytest.raises(ValueError, match="0 training seeds"):
        spread({})
