"""The seeds protocol: its false verdicts on synthetic cells, counted, and what each of its parts is for."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binom, ttest_1samp

from ifsq.bench.protocol import SEARCH_SEEDS, Comparison, Protocol, best_setting, judge, seeds_wanted
from ifsq.config import InputError, build, to_dict
from ifsq.metrics.seeds import gap

AB = (Comparison("a", "b"),)


def _cells(means, spreads, seeds, rng, draw=None):
    """Cells of one sampling seed each."""
    draw = draw or rng.standard_normal
    return {
        name: dict(enumerate((mean + spread * draw(seeds))[:, None].tolist()))
        for name, mean, spread in zip("abcdef", means, spreads, strict=False)
    }


def _false(verdicts, means):
    """Whether any verdict says what is not so: the lower mean is above."""
    of = dict(zip("abcdef", means, strict=False))
    return any(one.decided and not of[one.words[0]] < of[one.words[-1]] for one in verdicts)


def _rate(means, spreads, protocol, times, seed=0, draw=None):
    rng = np.random.default_rng(seed)
    asked = [Comparison(*pair) for pair in combinations("abcdef"[: len(means)], 2)]
    law = None if draw is None else lambda size: draw(rng, size)
    cells = (_cells(means, spreads, protocol.cap, rng, law) for _ in range(times))
    return sum(_false(judge(one, asked, protocol), means) for one in cells)


def test_false_verdicts_over_all_looks_are_at_most_the_stated_rate():
    times, rate = 400, 0.05
    assert _rate((0.0, 0.0), (1.0, 4.0), Protocol(), times) <= rate * times


def test_without_spending_the_rate_is_broken(monkeypatch):
    """The same cells, looks and tests, each look at the whole error: what the spending is for."""
    looks, times = (3, 4, 5, 6, 8, 10), 200
    protocol = Protocol(looks=looks, paired=True)
    assert sum(protocol.shares) == pytest.approx(1)
    assert _rate((0.0, 0.0), (1.0, 1.0), protocol, times, seed=1) <= 0.05 * times
    monkeypatch.setattr(Protocol, "shares", (1.0,) * len(looks))
    unspent = Protocol(looks=looks, paired=True)
    assert _rate((0.0, 0.0), (1.0, 1.0), unspent, times, seed=1) > binom.ppf(0.999, times, 0.05)


def test_a_family_of_comparisons_shares_the_error():
    means, spreads = (0.0, 0.0, 0.0, -50.0), (1.0, 2.0, 0.5, 1.0)  # three verdicts against d are right, and give way
    assert _rate(means, spreads, Protocol(looks=(3, 5)), 100, seed=2) <= 0.05 * 100


def test_heavy_tails_cost_power_and_no_false_verdicts():
    draw = lambda rng, size: rng.standard_t(2, size)  # noqa: E731 - of one line
    assert _rate((0.0, 0.0), (1.0, 3.0), Protocol(), 200, seed=3, draw=draw) <= 0.05 * 200


def test_known_gaps_are_found_and_stop_early():
    rng = np.random.default_rng(4)
    found = [judge(_cells((0.0, 4.0), (1.0, 1.0), 8, rng), AB, Protocol())[0] for _ in range(100)]
    assert all(one.words == "a above b" for one in found)
    assert np.mean([one.gap.seeds for one in found]) < 6
    inside = [one.interval[0] <= -4 <= one.interval[1] for one in found]
    assert np.mean(inside) > 0.9


def test_a_comparison_may_be_of_pairs_in_a_protocol_that_is_not():
    """Cells whose figures move together with the seed: their differences have no other spread than the rest."""
    cells = {"a": {0: (1.0,), 1: (5.0,), 2: (9.0,)}, "b": {0: (2.01,), 1: (6.0,), 2: (9.99,)}}
    (alone,) = judge(cells, [Comparison("a", "b")], Protocol(looks=(3,)))
    (pairs,) = judge(cells, [Comparison("a", "b", paired=True)], Protocol(looks=(3,)))
    assert (alone.words, pairs.words) == ("not told apart", "a above b")
    assert judge(cells, [Comparison("a", "b")], Protocol(looks=(3,), paired=True))[0].gap == pairs.gap
    (back,) = judge(cells, [Comparison("a", "b", paired=False)], Protocol(looks=(3,), paired=True))
    assert back.gap == alone.gap


def test_independent_pairs_of_any_spreads_are_false_at_most_as_often_as_stated():
    """Eight cells at three seeds each, one of ten times the others' spread; and by the definition of Student's test."""
    rng, times, spreads = np.random.default_rng(7), 400, np.array([10.0, *[1.0] * 7])
    asked, protocol = [Comparison("a", "b", paired=True, each=8)], Protocol(looks=(3,))
    false = 0
    for _ in range(times):
        a, b = (
            {number: (figure,) for number, figure in enumerate((rng.standard_normal((3, 8)) * spreads).ravel())}
            for _ in "ab"
        )
        (verdict,) = judge({"a": a, "b": b}, asked, protocol)
        false += verdict.decided
    assert false <= 0.05 * times
    assert (verdict.gap.seeds, verdict.gap.freedom) == (24, 23)
    differences = [a[number][0] - b[number][0] for number in range(24)]
    low, high = ttest_1samp(differences, 0).confidence_interval(0.95)
    assert verdict.interval == pytest.approx((low, high))


def test_seeds_of_independent_pairs_are_counted_by_the_seed():
    even = {number: (float(number % 2),) for number in range(6)}
    asked = [Comparison("a", "b", paired=True, each=2)]
    odd = {number: (float((number + 1) % 2),) for number in range(6)}
    protocol = Protocol(looks=(3, 5))
    assert judge({"a": even, "b": odd}, asked, protocol)[0].words == "open"
    assert seeds_wanted({"a": even, "b": odd}, asked, protocol) == {"a": 5, "b": 5}
    four = {number: even[number] for number in range(4)}
    assert seeds_wanted({"a": four, "b": four}, asked, protocol) == {"a": 3, "b": 3}


def test_verdict_falls_where_the_interval_leaves_out_zero():
    rng = np.random.default_rng(5)
    asked = [Comparison(*pair) for pair in combinations("abcd", 2)]
    for _ in range(50):
        for one in judge(_cells((0.0, 1.0, 2.0, 4.0), (1.0, 0.5, 2.0, 1.0), 5, rng), asked, Protocol(looks=(3, 5))):
            low, high = one.interval
            assert one.decided == (low > 0 or high < 0)
            assert one.decided or low <= 0 <= high


def test_a_verdict_that_fell_stays_and_looks_depend_on_first_seeds_alone():
    rng = np.random.default_rng(6)
    cells = _cells((0.0, 90.0), (1.0, 1.0), 8, rng)
    first = {name: {seed: figures[seed] for seed in range(3)} for name, figures in cells.items()}
    later = {**cells, "b": {**cells["b"], **{seed: [-900.0] for seed in range(3, 8)}}}
    assert judge(first, AB, Protocol())[0].decided
    assert judge(first, AB, Protocol()) == judge(later, AB, Protocol())


def test_after_verdicts_the_others_may_take_what_is_left():
    protocol = Protocol(looks=(3,))
    pairs = [Comparison("a", "b"), Comparison("c", "d"), Comparison("a", "c")]
    levels = [2 * 0.05 / 6, 2 * 0.05 / 4]  # of three comparisons, and after two verdicts
    a = {0: [0.0], 1: [1.0], 2: [2.0]}
    error = gap(a, a, 3)
    apart = sum(error.reach(level) for level in levels) / 2 * error.error
    cells = {"a": a, "b": {seed: [seed + apart] for seed in range(3)}}
    assert not gap(a, cells["b"], 3).separates(levels[0])
    far = {name: {seed: [at + seed * 1e-3] for seed in range(3)} for name, at in (("c", 100.0), ("d", 200.0))}
    assert judge(cells, pairs[:1], protocol)[0].decided
    assert not judge({**cells, **far, "c": cells["b"]}, pairs, protocol)[0].decided
    verdicts = judge({**cells, **far}, pairs, protocol)
    assert [one.words for one in verdicts] == ["a above b", "c above d", "a above c"]
    assert [one.error for one in verdicts] == pytest.approx([levels[1], levels[0], levels[0]])


def test_guidance_chosen_on_compared_seeds_is_called_better_than_it_is():
    """Ten settings of a, all as good as b in truth; the gap to the chosen one, over many grids."""
    rng = np.random.default_rng(7)
    settings, times = [float(at) for at in range(1, 11)], 100
    own, biased = [], []
    for _ in range(times):
        a, again = ({at: dict(enumerate(rng.standard_normal((5, 1)).tolist())) for at in settings} for _ in range(2))
        b = dict(enumerate(rng.standard_normal((5, 1)).tolist()))
        own.append(gap(a[best_setting(again)], b, 5).value)
        biased.append(gap(a[best_setting(a)], b, 5).value)
    errors = np.std([own, biased], axis=1) / times**0.5
    assert abs(np.mean(own)) < 3 * errors[0]
    assert np.mean(biased) < -6 * errors[1]  # by theory -1.54 / sqrt(5)
    assert np.mean(biased) == pytest.approx(-0.69, abs=0.15)


def test_higher_is_better_where_the_metric_says_so():
    cells = _cells((0.0, 50.0), (1.0, 1.0), 3, np.random.default_rng(8))
    protocol = Protocol(looks=(3,))
    assert judge(cells, [Comparison("a", "b", "higher")], protocol)[0].words == "b above a"
    assert judge(cells, AB, protocol)[0].words == "a above b"
    figures = {1.0: {0: [1.0]}, 2.0: {0: [3.0]}, 3.0: {0: [3.0]}}
    assert (best_setting(figures), best_setting(figures, "higher")) == (1.0, 2.0)


def test_more_seeds_are_asked_for_only_where_a_comparison_is_open():
    rng = np.random.default_rng(9)
    cells = {"a": {}, "b": {}}
    assert seeds_wanted(cells, AB, Protocol()) == {"a": 3, "b": 3}
    three = _cells((0.0, 0.0, 500.0), (1.0, 1.0, 1.0), 3, rng)
    pairs = [Comparison("a", "b"), Comparison("b", "c")]
    assert seeds_wanted(three, pairs, Protocol()) == {"a": 5, "b": 5, "c": 3}
    assert seeds_wanted(three, pairs, Protocol(looks=(3,))) == {"a": 3, "b": 3, "c": 3}


def test_sentences_say_what_was_seen_and_what_could_have_been():
    cells = {"ar": {0: [10.0], 1: [11.0], 2: [12.0]}, "dit": {0: [10.5], 1: [11.5], 2: [12.0]}}
    one = judge(cells, [Comparison("ar", "dit")], Protocol(looks=(3,)))[0]
    assert one.words == "not told apart"
    assert one.sentence.startswith("ar against dit: not told apart; gap -0.3333 [")
    assert f"a gap of {one.detectable:.4g} (" in one.sentence
    assert one.percent[0] == pytest.approx(100 * one.gap.value / 11.3333, rel=1e-4)
    assert "too few seeds" in judge({}, AB, Protocol())[0].sentence
    flat = {name: {seed: [value] for seed in range(3)} for name, value in (("a", 1.0), ("b", 2.0))}
    assert "without any spread over 3 seeds" in judge(flat, AB, Protocol(looks=(3,)))[0].sentence


def test_searches_have_seeds_of_their_own():
    protocol = Protocol(search_seeds=2, search_sampling_seeds=2)
    training = {seed for seed, _ in protocol.searched}
    assert len(protocol.searched) == 4
    assert not training & set(protocol.compared)
    with pytest.raises(ValueError, match="cell 'a': training seed 1000000 is one of a search"):
        judge({"a": {SEARCH_SEEDS: [1.0]}}, AB, protocol)


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({"looks": []}, r"looks=\[\]: expected rising counts"),
        ({"looks": [5, 3]}, r"looks=\[5, 3\]"),
        ({"looks": [1, 3]}, r"looks=\[1, 3\]"),
        ({"sampling_seeds": 0}, "sampling_seeds=0: expected 1 to 1000"),
        ({"error": 0.5}, "error=0.5"),
        ({"power": 0.01}, "power=0.01: expected more than error"),
        ({"spending": 0.0}, "spending=0.0"),
        ({"guidance": [1.0, 1.0]}, "guidance=.*expected scales that differ"),
        ({"seeds": 3}, "unknown key"),
    ],
)
def test_tables_that_are_no_protocol_are_refused(table, match):
    with pytest.raises(InputError, match=match):
        build(Protocol, table, "[protocol]")


def test_a_protocol_is_read_as_it_was_written():
    assert build(Protocol, to_dict(Protocol(looks=(3, 4))), "x") == Protocol(looks=(3, 4))


@pytest.mark.parametrize("pairs", [[Comparison("a", "a")], [Comparison("a", "b"), Comparison("b", "a")]])
def test_a_comparison_is_of_two_cells_and_asked_once(pairs):
    with pytest.raises(ValueError, match="expected two cells, once in a family"):
        judge({}, pairs, Protocol())


def test_settings_on_unlike_seeds_are_refused():
    with pytest.raises(ValueError, match="measured on the same seeds"):
        best_setting({1.0: {0: [1.0]}, 2.0: {1: [1.0]}})
    with pytest.raises(ValueError, match="0 settings"):
        best_setting({})
