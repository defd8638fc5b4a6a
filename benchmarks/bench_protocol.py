"""False verdicts and power of the seeds protocol on synthetic cells of known gap and spread; prints Markdown.

    python benchmarks/bench_protocol.py > benchmarks/protocol_cpu2_2026-11-28.md

A cell has a mean, a spread over training seeds and one over sampling seeds, half as large; two sampling seeds a
training seed. Every count is of the whole sequential procedure, `ifsq.bench.protocol.judge` itself, and has an interval
of 95 % (Wilson). A false verdict: any comparison of the family decided whose gap is 0 or has the other sign.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.stats import binomtest, ttest_1samp, ttest_ind

from ifsq.bench.protocol import Comparison, Protocol, best_setting, judge
from ifsq.metrics.seeds import Figures, gap

Law = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
NAMES = "abcdef"
AB = (Comparison("a", "b"),)
USUAL = Protocol(sampling_seeds=2)


def normal(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(size)


def student3(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    return rng.standard_t(3, size)


def outliers(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """One training in ten has ten times the spread."""
    return rng.standard_normal(size) * np.where(rng.random(size) < 0.1, 10, 1)


def lognormal(sigma: float) -> Law:
    """Skewed, mean 0 and deviation 1."""
    mean, deviation = np.exp(sigma**2 / 2), np.sqrt((np.exp(sigma**2) - 1) * np.exp(sigma**2))
    return lambda rng, size: (rng.lognormal(0, sigma, size) - mean) / deviation


@dataclass(frozen=True)
class Setup:
    """Synthetic cells: a mean, a spread over training seeds and a law a cell; ``shared`` of the variance is common."""

    what: str
    means: tuple[float, ...] = (0.0, 0.0)
    spreads: tuple[float, ...] = (1.0, 1.0)
    laws: tuple[Law, ...] = (normal, normal)
    protocol: Protocol = USUAL
    shared: float = 0.0

    def cells(self, rng: np.random.Generator) -> dict[str, Figures]:
        """Figures of all seeds to the cap."""
        seeds, drawn = self.protocol.cap, self.protocol.sampling_seeds
        common = rng.standard_normal(seeds)
        made = {}
        for name, mean, spread, law in zip(NAMES, self.means, self.spreads, self.laws, strict=False):
            training = np.sqrt(self.shared) * common + np.sqrt(1 - self.shared) * law(rng, (seeds,))
            figures = mean + spread * (training[:, None] + 0.5 * rng.standard_normal((seeds, drawn)))
            made[name] = dict(enumerate(figures.tolist()))
        return made

    @property
    def asked(self) -> list[Comparison]:
        """All pairs."""
        return [Comparison(*pair) for pair in combinations(NAMES[: len(self.means)], 2)]


def share(count: int, times: int) -> str:
    """In percent, with Wilson's interval."""
    ends = binomtest(count, times).proportion_ci(method="wilson")
    return f"{100 * count / times:.2f} [{100 * ends.low:.2f}, {100 * ends.high:.2f}]"


def false_verdicts(setup: Setup, times: int, seed: int) -> int:
    """Families with any false verdict."""
    rng, asked = np.random.default_rng(seed), setup.asked
    true = dict(zip(NAMES, setup.means, strict=False))
    found = (judge(setup.cells(rng), asked, setup.protocol) for _ in range(times))
    return sum(any(one.decided and not true[one.words[0]] < true[one.words[-1]] for one in each) for each in found)


def four(law: Law = normal) -> tuple[Law, ...]:
    return (law,) * 4


def null_setups() -> list[Setup]:
    """Cells without a gap, which satisfy what the protocol assumes, or break only its normality by heavy tails."""
    level, none = (0.0,) * 4, (1.0,) * 4
    return [
        Setup("normal, equal spreads"),
        Setup("normal, spreads 1 : 3", spreads=(1.0, 3.0)),
        Setup("normal, spreads 1 : 10", spreads=(1.0, 10.0)),
        Setup("normal, 3 seeds alone, spreads 1 : 3", spreads=(1.0, 3.0), protocol=replace(USUAL, looks=(3,))),
        Setup("normal, a look at each of 3 to 10 seeds", protocol=replace(USUAL, looks=tuple(range(3, 11)))),
        Setup("normal, spending saved for the cap (3)", protocol=replace(USUAL, spending=3.0)),
        Setup("normal, paired, 0.8 of the variance shared", protocol=replace(USUAL, paired=True), shared=0.8),
        Setup("Student's t, 3 degrees of freedom", laws=(student3, student3)),
        Setup("Student's t, 3 degrees of freedom, spreads 1 : 3", spreads=(1.0, 3.0), laws=(student3, student3)),
        Setup("one training in ten with ten times the spread", laws=(outliers, outliers)),
        Setup("the same, against normal of a tenth of the spread", spreads=(1.0, 0.1), laws=(outliers, normal)),
        Setup("both skewed, lognormal of sigma 1", laws=(lognormal(1.0), lognormal(1.0))),
        Setup("4 cells, 6 comparisons, normal", level, none, four()),
        Setup("4 cells, 6 comparisons, spreads 1 : 2 : 4 : 8", level, (1.0, 2.0, 4.0, 8.0), four()),
        Setup("4 cells, 6 comparisons, three equal and one far above", (0.0, 0.0, 0.0, -50.0), none, four()),
        Setup("4 cells, 6 comparisons, Student's t of 3", level, none, four(student3)),
        Setup("normal, not paired, though 0.8 of the variance is shared", shared=0.8),
    ]


def broken_setups() -> list[Setup]:
    """Cells without a gap that break the assumption: a skewed law against a far smaller spread."""
    return [
        Setup(f"lognormal of sigma {sigma} against normal of {of} the spread", (0.0, 0.0), (1.0, tight), laws)
        for sigma in (0.25, 0.5, 1.0)
        for laws in [(lognormal(sigma), normal)]
        for of, tight in (("half", 0.5), ("a tenth of", 0.1))
    ]


def otherwise(times: int) -> list[tuple[str, int]]:
    """What else is done with the same cells: normal, equal spreads, no gap, error 5 %."""
    rng, setup = np.random.default_rng(100), Setup("")
    counts = {
        "each look at 5 %, nothing spent (3, 5, 8 seeds)": 0,
        "all figures of 3 training x 5 sampling seeds as if independent": 0,
        "one training seed a cell, 8 sampling seeds": 0,
    }
    fifteen = Setup("", protocol=Protocol(looks=(3,), sampling_seeds=5))
    one = Setup("", protocol=Protocol(looks=(2,), sampling_seeds=8))
    for _ in range(times):
        cells = setup.cells(rng)
        at_looks = any(gap(cells["a"], cells["b"], seeds).separates(0.05) for seeds in (3, 5, 8))
        every = [np.array(list(cell.values())).ravel() for cell in fifteen.cells(rng).values()]
        drawn = [cell[0] for cell in one.cells(rng).values()]
        found = (at_looks, ttest_ind(*every).pvalue <= 0.05, ttest_ind(*drawn).pvalue <= 0.05)
        counts = {name: count + bool(hit) for (name, count), hit in zip(counts.items(), found, strict=True)}
    return list(counts.items())


def searches(times: int, settings: int = 10) -> list[tuple[str, float, float, int]]:
    """Cell a with the best of ten settings that are all as good as b: mean gap, its standard error, verdicts for a."""
    rng, protocol = np.random.default_rng(200), Protocol()
    found: dict[str, list[tuple[float, bool]]] = {"seeds of its own": [], "the compared seeds": []}
    for _ in range(times):
        a, again = ({at: _alone(rng, 8) for at in map(float, range(settings))} for _ in range(2))
        b = _alone(rng, 8)
        for name, chosen in zip(found, (best_setting(again), best_setting(a)), strict=True):
            verdict = judge({"a": a[chosen], "b": b}, AB, protocol)[0]
            found[name].append((gap(a[chosen], b, 8).value, verdict.words == "a above b"))
    return [
        (name, *(f(np.array([one for one, _ in hits])) for f in (np.mean, lambda x: x.std() / times**0.5)), sum(w))
        for name, hits in found.items()
        for w in [[won for _, won in hits]]
    ]


def _alone(rng: np.random.Generator, seeds: int) -> Figures:
    return dict(enumerate(rng.standard_normal((seeds, 1)).tolist()))


def power_rows(times: int) -> list[str]:
    """By gap over the spread of a cell's training seeds as they are compared (means of sampling seeds)."""
    kinds = [
        Setup("3", protocol=Protocol(looks=(3,), sampling_seeds=2)),
        Setup("3, 5", protocol=Protocol(looks=(3, 5), sampling_seeds=2)),
        Setup("3, 5, 8"),
        Setup("3, 5, 8; paired, 0.8 shared", protocol=Protocol(sampling_seeds=2, paired=True), shared=0.8),
        Setup("3, 5, 8; one of 6 comparisons", (0.0,) * 4, (1.0,) * 4, four()),
    ]
    rows = []
    for ratio in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0):
        cells = []
        for number, kind in enumerate(kinds):
            shift = ratio * np.sqrt(1 + 0.25 / 2)
            setup = replace(kind, means=(0.0, *(shift * at for at in range(1, len(kind.means)))))
            rng = np.random.default_rng(300 + number)
            first = [judge(setup.cells(rng), setup.asked, setup.protocol)[0] for _ in range(times)]
            right = sum(one.words == "a above b" for one in first)
            seeds = np.mean([one.gap.seeds for one in first if one.gap])
            cells.append(f"{100 * right / times:.0f} ({seeds:.1f})")
        rows.append(f"| {ratio} | " + " | ".join(cells) + " |")
    head = "| gap / spread | " + " | ".join(kind.what for kind in kinds) + " |"
    return [head, "|" + "---|" * (len(kinds) + 1), *rows]


def sequence_rows(times: int) -> list[str]:
    """One sample of paired differences: this protocol beside an anytime-valid t-test, looked at after every seed."""
    rng, looks, protocol = np.random.default_rng(400), (3, 5, 8), Protocol()
    head = "| gap / spread of differences | looks 3, 5, 8, error spent | e-process after each of 3 to 8 seeds |"
    rows = [head, "|---|---|---|"]
    for ratio in (0.0, 1.0, 1.5, 2.0, 3.0, 4.0):
        drawn = ratio + rng.standard_normal((times, 8))
        spent = np.zeros(times, bool)
        for seeds, part in zip(looks, protocol.shares, strict=True):
            spent |= ttest_1samp(drawn[:, :seeds], 0, axis=1).pvalue <= part * protocol.error
        sequence = np.zeros(times, bool)
        for seeds in range(3, 9):
            t2 = ttest_1samp(drawn[:, :seeds], 0, axis=1).statistic ** 2
            # Right Haar over the spread, normal of variance 1 over gap / spread (arXiv 2310.03722, section 3).
            n, nu = seeds, seeds - 1
            value = (1 + n) ** -0.5 * ((1 + t2 / nu) / (1 + t2 / (nu * (1 + n)))) ** ((nu + 1) / 2)
            sequence |= value >= 1 / protocol.error
        rows.append(f"| {ratio} | {100 * spent.mean():.1f} | {100 * sequence.mean():.1f} |")
    return rows


def mean_rows(times: int) -> list[str]:
    """Means over eight cells at three seeds: each cell a pair of its own, against one figure a seed, their mean.

    Spreads of cells differ; ``shared`` of the variance of a difference is common to the cells of a seed, which
    `seeds.apart` of a grid rules out.
    """
    each, seeds = 8, 3
    protocol, pairs = Protocol(looks=(seeds,)), Comparison("a", "b", paired=True, each=each)
    laws: list[tuple[str, list[float], float, Law]] = [
        ("normal, equal spreads", [1.0] * each, 0.0, normal),
        ("normal, one cell of ten times the spread", [10.0, *[1.0] * 7], 0.0, normal),
        ("normal, spreads 1 to 8", [float(at) for at in range(1, each + 1)], 0.0, normal),
        ("Student's t, 3 degrees of freedom", [1.0] * each, 0.0, student3),
        ("both skewed, lognormal of sigma 1", [1.0] * each, 0.0, lognormal(1.0)),
        ("normal, a tenth of the variance common to a seed", [1.0] * each, 0.1, normal),
        ("normal, half of the variance common to a seed", [1.0] * each, 0.5, normal),
    ]
    rows = [
        "| cells | pairs of their own, no gap | gap of one spread seen | the same by means a seed |",
        "|---|---|---|---|",
    ]
    for number, (what, spreads, shared, law) in enumerate(laws):
        rng = np.random.default_rng(500 + number)
        counts = [0, 0, 0]
        for _ in range(times):
            noise = [law(rng, (seeds, each)) * spreads for _ in "ab"]
            common = [rng.standard_normal((seeds, 1)) for _ in "ab"]
            a, b = (shared**0.5 * c + (1 - shared) ** 0.5 * n for c, n in zip(common, noise, strict=True))
            gap_of_one = float(np.sqrt(np.mean(np.square(spreads))))
            for at, shift, one in ((0, 0.0, pairs), (1, gap_of_one, pairs), (2, gap_of_one, Comparison("a", "b"))):
                made = {"a": a - shift, "b": b}
                cells = (
                    {name: dict(enumerate(f.reshape(-1, 1).tolist())) for name, f in made.items()}
                    if one.each > 1
                    else {name: dict(enumerate(f.tolist())) for name, f in made.items()}
                )
                counts[at] += judge(cells, [one], protocol)[0].decided
        rows.append(
            f"| {what} | {share(counts[0], times)} | {100 * counts[1] / times:.0f} | {100 * counts[2] / times:.0f} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10_000, help="simulated grids a row; a fifth of them for power")
    times = parser.parse_args().times
    print(HEADER.format(times=times))
    print("## False verdicts, no gap between cells\n\n| cells | families with a false verdict, % |\n|---|---|")
    for number, setup in enumerate(null_setups()):
        print(f"| {setup.what} | {share(false_verdicts(setup, times, number), times)} |", flush=True)
    print("\n## Where the assumption is broken, no gap\n\n| cells | families with a false verdict, % |\n|---|---|")
    for number, setup in enumerate(broken_setups()):
        print(f"| {setup.what} | {share(false_verdicts(setup, times, 50 + number), times)} |", flush=True)
    fewer = max(1, times // 5)
    print(
        "\n## What the parts are for: the same cells judged otherwise\n\n| judged by | false verdicts, % |\n|---|---|"
    )
    for name, count in otherwise(fewer):
        print(f"| {name} | {share(count, fewer)} |", flush=True)
    print(
        "\nBest of ten settings of a, all as good as b in truth (8 seeds, spread 1, one sampling seed):\n\n"
        "| setting chosen on | mean gap, in spreads | its standard error | verdicts for a, % |\n|---|---|---|---|"
    )
    for name, mean, error, wins in searches(fewer):
        print(f"| {name} | {mean:.3f} | {error:.3f} | {share(wins, fewer)} |", flush=True)
    print("\n## Power: right verdicts, %, and training seeds a cell on the way\n")
    print("\n".join(power_rows(fewer)))
    print("\n## Means over eight cells at three seeds: verdicts, %\n")
    print("\n".join(mean_rows(times)))
    print("\n## Beside a confidence sequence: verdicts of one paired comparison, %\n")
    print("\n".join(sequence_rows(times)))


HEADER = """# Seeds protocol on synthetic cells: false verdicts and power

`python benchmarks/bench_protocol.py --times {times}`; looks at 3, 5 and 8 training seeds unless said, error 5 %,
{times} simulated grids a row of false verdicts and a fifth of them elsewhere; brackets: Wilson's interval of 95 %.
AMD EPYC, 2 cores; counts, so what ran beside does not matter. Power is that of one pair, in a family of the nearest.

Expected beforehand: 2 to 3 % for equal spreads (shares are added, and the level is that of the worst ratio of spreads)
and up to 4.5 % at 1 : 10, less for heavy tails and families; more than 5 % where one law is skewed and the other tight;
at a cap of 8 verdicts on nine of ten gaps of two spreads; pairing the better the more is shared. A first form of the
protocol, Student's t with seeds - 1 degrees of freedom for unpaired cells too, had 1.1 % at equal spreads and saw 42 %
of gaps of three spreads at three seeds (19 % of two): that is why it is now Welch's at a lowered level.

It came out so, but for skew: against a law of half its spread, and for a lognormal of sigma 0.25 (its deviation a
quarter of its mean) at a tenth too, the error still holds.
"""


if __name__ == "__main__":
    main()
