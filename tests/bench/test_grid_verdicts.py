"""A grid's comparisons: which cells they are of, what is taken as their figures, and seeds until they are decided."""

from dataclasses import replace

import pytest

from ifsq.bench.grid.cells import cells, told
from ifsq.bench.grid.config import Absent, Compared, Grid, LeftOut, Seeds, Setting, load_grid
from ifsq.bench.grid.plan import _seeds
from ifsq.bench.grid.verdicts import comparisons_of, figures_of, more_seeds, pairs_of, still_compared, verdicts_of
from ifsq.bench.measurement import Measurement
from ifsq.bench.protocol import Protocol
from ifsq.config import InputError
from ifsq.metrics import ProtocolCard

PROTOCOL = Protocol(looks=(3, 5))
BY_FD = Compared("generator", "FD(judge)", "distance")
BY_PSNR = Compared("bound", "PSNR, dB", "mean", "higher", "tokenizer")
GRID = Grid(
    {"bound": ("tanh", "ifsq"), "generator": ("ar", "diffusion"), "head": ("joint", "chain")},
    "tokenizer.toml",
    {"ar": "ar.toml", "diffusion": "diffusion.toml"},
    settings=(
        Setting({"bound": "tanh"}, tokenizer={"tokenizer": {"quantizer": {"bound": "tanh"}}}),
        Setting({"head": "joint"}, generator={"groups": [2]}),
    ),
    absent=(Absent("head", {"generator": ("ar", "diffusion")}),),
    protocol=PROTOCOL,
    compare=(BY_FD, BY_PSNR),
)


def measured(cell, seed, figure, metric="FD(judge)", value="distance", step=4, sampling=0):
    card = ProtocolCard(metric, {value: figure}, "photos", "ab", 64, 32, "centre", "lanczos", "float32").to_dict()
    stage = "".join(map(str, cell.values())) + str(seed)
    return Measurement(cell, seed, sampling, step, None, metric, value, figure, card, stage, "stages/x", "ifsq bench")


def figures(ar, diffusion, seeds, psnr=True):
    """Of both generators behind either bound, and of the bounds."""
    found = []
    for bound in ("tanh", "ifsq"):
        for seed in range(seeds):
            for kind, mean in (("ar", ar), ("diffusion", diffusion)):
                found.append(
                    measured({"bound": bound, "generator": kind}, seed, mean + 0.01 * (-1) ** seed * (1 + seed))
                )
            if psnr:
                noise = 0.01 * (1 + seed) * (-1) ** seed + (bound == "ifsq")
                found.append(measured({"bound": bound}, seed, 20 + noise, "PSNR, dB", "mean"))
    return found


def test_cells_that_differ_in_the_axis_alone_are_compared():
    assert [(one.a, one.b, one.better) for one in comparisons_of(GRID)] == [
        ("tanh ar by FD(judge), distance", "tanh diffusion by FD(judge), distance", "lower"),
        ("ifsq ar by FD(judge), distance", "ifsq diffusion by FD(judge), distance", "lower"),
        ("tanh by PSNR, dB, mean", "ifsq by PSNR, dB, mean", "higher"),
    ]


def test_figures_are_of_the_newest_step_and_every_sampling_seed():
    cell = {"bound": "tanh", "generator": "ar"}
    rows = [
        measured(cell, 0, 9.0, step=2), measured(cell, 0, 3.0), measured(cell, 0, 4.0, sampling=1),
        measured(cell, 1, 5.0),
        measured(cell, 0, 7.0, value="low"), measured({"bound": "other", "generator": "ar"}, 0, 1.0),
    ]  # fmt: skip
    assert figures_of(GRID, rows) == {"tanh ar by FD(judge), distance": {0: (3.0, 4.0), 1: (5.0,)}}


def test_seeds_are_added_until_every_comparison_is_decided():
    names = {*(told(cell) for cell in cells(GRID)), "tanh", "ifsq"}
    assert more_seeds(GRID, []) == dict.fromkeys(names, 3)
    apart = figures(1.0, 5.0, 3)
    assert more_seeds(GRID, apart) == dict.fromkeys(names, 3)
    assert {verdict.words.split(" by")[0] for verdict in verdicts_of(GRID, apart)} == {"tanh ar", "ifsq ar", "ifsq"}
    near = figures(1.0, 1.0, 3)
    wanted = {name: 3 if name in ("tanh", "ifsq") else 5 for name in names}
    assert more_seeds(GRID, near) == wanted, "of the bounds nothing is open by themselves"
    assert {one.words for one in verdicts_of(GRID, near)[:2]} == {"open"}
    same = [one for one in apart if one.metric != BY_PSNR.metric]
    same += [
        measured(one.cell, one.seed, 20.0 + one.seed, "PSNR, dB", "mean") for one in apart if one.metric == "PSNR, dB"
    ]
    wanted = {name: 5 if name in ("tanh", "ifsq") else 3 for name in names}
    assert more_seeds(GRID, same) == wanted, "generators of which nothing is open are not trained again"
    capped = figures(1.0, 1.0, 5)
    assert more_seeds(GRID, capped) == dict.fromkeys(names, 5), "as many as there are"
    assert {one.words for one in verdicts_of(GRID, capped)[:2]} == {"not told apart"}


def test_single_tokenizers_are_not_compared():
    """One for all training seeds: the spread would be that of the generators alone."""
    for asked in (BY_PSNR, replace(BY_FD, axis="bound")):
        with pytest.raises(ValueError, match=r"compare: bound: seeds\.tokenizer trains each tokenizer once"):
            replace(GRID, compare=(asked,), seeds=Seeds(tokenizer=0))
    assert comparisons_of(replace(GRID, compare=(BY_FD,), seeds=Seeds(tokenizer=0)))


def test_comparisons_of_some_cells_and_against_one_value():
    third = Setting({"bound": "quantile"}, tokenizer={"tokenizer": {"quantizer": {"bound": "quantile"}}})
    grid = replace(GRID, axes={**GRID.axes, "bound": ("tanh", "ifsq", "quantile")}, settings=(*GRID.settings, third))
    every = replace(BY_PSNR, axis="bound")
    assert len(comparisons_of(replace(grid, compare=(every,)))) == 3
    assert {one.paired for one in comparisons_of(replace(grid, compare=(replace(every, paired=True),)))} == {True}
    against = replace(every, against="ifsq")
    names = [(one.a.split()[0], one.b.split()[0]) for one in comparisons_of(replace(grid, compare=(against,)))]
    assert names == [("tanh", "ifsq"), ("ifsq", "quantile")]
    only = replace(BY_FD, when={"bound": ("tanh", "quantile")})
    names = [one.a.split()[0] for one in comparisons_of(replace(grid, compare=(only,)))]
    assert names == ["tanh", "quantile"]


def test_means_over_an_axis_count_a_training_seed_once_all_of_its_cells_have_it():
    asked = replace(BY_FD, mean_over=("bound",))
    grid = replace(GRID, compare=(asked,))
    (one,) = comparisons_of(grid)
    assert (one.a, one.b) == (
        "ar, mean of tanh, ifsq by FD(judge), distance",
        "diffusion, mean of tanh, ifsq by FD(judge), distance",
    )
    rows = figures(1.0, 5.0, 3, psnr=False)[:-1]  # the last seed of diffusion behind ifsq was not measured
    found = figures_of(grid, rows)
    assert {name.split(",")[0]: sorted(of) for name, of in found.items()} == {"ar": [0, 1, 2], "diffusion": [0, 1]}
    assert {seed: [round(f, 6) for f in of] for seed, of in found[one.a].items()} == {
        0: [1.01, 1.01],
        1: [0.98, 0.98],
        2: [1.03, 1.03],
    }
    names = {told(cell) for cell in cells(grid)}
    assert more_seeds(grid, figures(1.0, 1.0, 3)) == dict.fromkeys(names, 5)
    assert [verdict.decided for verdict in verdicts_of(grid, figures(1.0, 5.0, 3))] == [True]
    shown = pairs_of(grid)[0].a.shown
    assert shown == "ar, mean over bound (2)"


def test_independent_cells_are_pairs_of_their_own():
    asked = replace(BY_FD, mean_over=("bound",), independent=True)
    grid = replace(GRID, compare=(asked,), seeds=Seeds(apart=True))
    (one,) = comparisons_of(grid)
    assert (one.paired, one.each) == (True, 2)
    rows = figures(1.0, 5.0, 3, psnr=False)
    found = figures_of(grid, rows)
    assert [round(f, 6) for (f,) in found[one.a].values()] == [1.01, 1.01, 0.98, 0.98, 1.03, 1.03]
    assert list(found[one.a]) == list(range(6))
    assert len(figures_of(grid, rows[:-1])[one.b]) == 4  # both cells of two seeds
    late = figures_of(grid, [row for row in rows if row.seed != 1])[one.a]
    assert list(late) == [0, 1, 4, 5]  # a seed keeps its numbers, by which pairs are made
    names = {told(cell) for cell in cells(grid)}
    assert more_seeds(grid, []) == dict.fromkeys(names, 3)
    assert more_seeds(grid, figures(1.0, 1.0, 3)) == dict.fromkeys(names, 5)


def test_groups_of_other_values_are_not_compared():
    grid = replace(
        GRID, axes={"bound": ("tanh", "ifsq"), "head": ("joint", "chain"), "generator": ("ar",)}, absent=(),
        left_out=(LeftOut({"bound": "ifsq", "head": "chain"}),),
    )  # fmt: skip
    over = Compared("bound", "FD(judge)", "distance", mean_over=("head",))
    with pytest.raises(InputError, match=r"differ in bound alone \(means over head\)"):
        comparisons_of(replace(grid, compare=(over,)))
    assert len(comparisons_of(replace(grid, compare=(replace(over, when={"head": "joint"}),)))) == 1


def test_seeds_that_lie_over_a_protocol_take_its_place(tmp_path):
    (tmp_path / "base.toml").write_text(
        """tokenizer = "demo/tokenizer.toml"
axes = { bound = ["tanh", "ifsq"] }
settings = [{ when = { bound = "tanh" }, tokenizer.tokenizer.quantizer.bound = "tanh" }]
protocol.looks = [3]
compare = [{ axis = "bound", metric = "PSNR, dB", value = "mean", better = "higher", of = "tokenizer" }]
"""
    )
    (tmp_path / "over.toml").write_text('over = "base.toml"\nseeds.training = [0]\n')
    base = load_grid(tmp_path / "base.toml")
    assert base.protocol is not None
    assert len(base.compare) == 1
    for grid in (load_grid(tmp_path / "over.toml"), load_grid(tmp_path / "base.toml", ["--seeds.training", "[0]"])):
        assert (grid.protocol, grid.compare, grid.seeds.training) == (None, (), (0,))
    (tmp_path / "both.toml").write_text('over = "base.toml"\nseeds.training = [0]\nprotocol.looks = [3]\n')
    with pytest.raises(InputError, match=r"both\.toml: seeds and protocol: expected one of them"):
        load_grid(tmp_path / "both.toml")
    with pytest.raises(InputError, match="command line: seeds and protocol"):
        load_grid(tmp_path / "base.toml", ["--seeds.training", "[0]", "--protocol.looks", "[3]"])
    compared = (tmp_path / "base.toml").read_text()
    (tmp_path / "typo.toml").write_text(compared.replace('axis = "bound",', 'axis = "bound", against = "thanh",'))
    with pytest.raises(InputError, match="bound 'thanh': expected one of ifsq, tanh"):
        load_grid(tmp_path / "typo.toml")
    (tmp_path / "when.toml").write_text(compared.replace('axis = "bound",', 'axis = "bound", when = { bits = 2 },'))
    with pytest.raises(InputError, match="when: axis 'bits': expected one of bound"):
        load_grid(tmp_path / "when.toml")


def test_fewer_values_of_an_axis_leave_fewer_comparisons():
    narrow = still_compared(replace(GRID, axes={**GRID.axes, "bound": ("tanh",)}))
    assert (narrow.compare, narrow.protocol) == ((BY_FD,), PROTOCOL)
    none = still_compared(replace(GRID, axes={**GRID.axes, "bound": ("tanh",), "generator": ("ar",)}))
    assert (none.compare, none.protocol, none.seeds.training) == ((), None, (0, 1, 2))
    assert still_compared(GRID) == GRID


def test_a_cell_has_the_seeds_of_the_first_look_at_least():
    assert _seeds(GRID, 0) == (0, 1, 2)
    assert _seeds(GRID, 5) == (0, 1, 2, 3, 4)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="compare: axis 'bits': expected one of bound, generator, head"):
        Grid(
            GRID.axes,
            "t",
            GRID.generators,
            settings=GRID.settings,
            protocol=PROTOCOL,
            compare=(Compared("bits", "a", "b"),),
        )
    with pytest.raises(ValueError, match="protocol and compare: expected both or neither"):
        Grid(GRID.axes, "t", GRID.generators, settings=GRID.settings, compare=(BY_FD,))
    with pytest.raises(InputError, match=r"tanh ar by FD\(judge\), distance: compared twice with tanh diffusion"):
        comparisons_of(replace(GRID, compare=(BY_FD, replace(BY_FD, better="higher"))))
    with pytest.raises(ValueError, match="compare: axis 'rate': expected one of bound, generator, head"):
        replace(GRID, compare=(replace(BY_FD, mean_over=("rate",)),))
    with pytest.raises(ValueError, match="mean_over 'generator': expected other axes than the compared one"):
        replace(BY_FD, mean_over=("generator",))
    with pytest.raises(ValueError, match="independent: cells of means are; expected mean_over"):
        replace(BY_FD, independent=True)
    with pytest.raises(ValueError, match=r"independent: cells have seeds in common; expected seeds\.apart"):
        replace(GRID, compare=(replace(BY_FD, mean_over=("bound",), independent=True),))
    none = replace(BY_FD, when={"bound": "tanh"}, against="ar", axis="bound")
    with pytest.raises(InputError, match=r"no two cells of a generator differ in bound alone .bound tanh; against ar."):
        comparisons_of(replace(GRID, compare=(none,)))
    with pytest.raises(ValueError, match=r"protocol\.guidance: expected a compare of generators"):
        replace(GRID, protocol=Protocol(guidance=(1.0, 2.0)), compare=(BY_PSNR,))
    alone = Grid({}, "t", {"ar": "ar.toml"}, protocol=PROTOCOL, compare=(BY_FD,))
    with pytest.raises(InputError, match="compare: no two cells of a generator differ in generator alone"):
        comparisons_of(alone)
