"""The grid file: base experiments, axes, what their values mean, seeds, budgets and what is measured; strict."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ifsq import config
from ifsq.bench.protocol import Protocol
from ifsq.config import InputError
from ifsq.evaluation import GeneratorEvaluation, TokenizerEvaluation
from ifsq.generators import Generator

Value = str | int | float
When = dict[str, Value | tuple[Value, ...]]
GENERATOR = "generator"
"""The axis whose values are the names of base experiments."""
TRAINED = ("tokenizer", "teacher", "generator")
KINDS = (
    "tokenizer",
    "teacher",
    *Generator.kinds,
    "codes",
    "features",
    "tokenizer-eval",
    "forecast",
    "guidance",
    "generator-eval",
    "likelihood",
)
"""Kinds of stages: those of generators are `Generator.kinds`."""


@dataclass(frozen=True)
class Setting:
    """What values of axes mean: tables that lie over the base experiments; later settings lie over earlier ones.

    when       of which cells: a value or a list of values by axis; empty: of all
    drop       dotted names that are removed from what lies below first, as ``generator.groups``: a table that is laid
               over another one adds to it
    tokenizer  over the experiment of the tokenizer, as ``{train = {steps = 500}}``
    teacher    over that of a teacher which the grid trains
    generator  over that of a generator
    codes      over how the codes are written, see `Encoding`
    """

    when: When = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    tokenizer: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    generator: dict[str, Any] = field(default_factory=dict)
    codes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.drop:
            if name.partition(".")[0] not in TRAINED or "." not in name:
                raise ValueError(f"drop: {name!r}: expected a name below {', '.join(TRAINED)}, as generator.groups")

    @property
    def sets(self) -> set[str]:
        """Names of the experiments that it changes."""
        return {name for name in (*TRAINED, "codes") if getattr(self, name)} | {
            name.partition(".")[0] for name in self.drop
        }


@dataclass(frozen=True)
class Absent:
    """Cells that have no value on an axis, as autoencoders have no bits.

    axis  its name
    when  of which cells
    """

    axis: str
    when: When


@dataclass(frozen=True)
class LeftOut:
    """Cells that are not in the grid.

    when  which
    why   for the page
    """

    when: When
    why: str = ""


@dataclass(frozen=True)
class Budget:
    """How long each training of a kind is, in place of ``train.steps``; at most one of them.

    flops    floating-point operations, forward and backward, see `ifsq.bench.grid.cost`
    images   taken, those that are taken again counted again
    minutes  of wall time that its steps take on the machine that begins the grid, see `ifsq.bench.grid.timing`
    """

    flops: float | None = None
    images: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: expected one of them")
        for name, value in given.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value}: expected a number above 0")


@dataclass(frozen=True)
class Budgets:
    """Of the trainings of each kind, see `Budget`."""

    tokenizer: Budget = field(default_factory=Budget)
    teacher: Budget = field(default_factory=Budget)
    generator: Budget = field(default_factory=Budget)


@dataclass(frozen=True)
class Seeds:
    """Which seeds.

    training   of the whole road: the tokenizer and the generator behind it have the same
    sampling   of the images drawn from each trained generator
    tokenizer  of all tokenizers in place of the training's, which share them then
    apart      whether each tokenizer of the grid, and what stands on it, is trained from seeds of its own: what its
               cells' figures at a seed have by chance is then independent of that of other tokenizers' cells. Cells of
               one tokenizer have the same seeds, and so the same order of data
    """

    training: tuple[int, ...] = (0,)
    sampling: tuple[int, ...] = (0,)
    tokenizer: int | None = None
    apart: bool = False

    def __post_init__(self) -> None:
        for name in ("training", "sampling"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given) or min(given) < 0:
                raise ValueError(f"{name}={list(given)}: expected at least one seed, none negative, each once")
        if self.apart and self.tokenizer is not None:
            raise ValueError(f"apart with tokenizer={self.tokenizer}: expected one of them")


@dataclass(frozen=True)
class Measured:
    """What is measured, and how.

    tokenizer   see `TokenizerEvaluation`
    generator   see `GeneratorEvaluation`; its seed is ``seeds.sampling``
    kept        checkpoints of each generator, evenly spaced, that are measured, the last included
    likelihood  held-out images whose bits are measured by `ifsq.pipeline.likelihood`; 0: by none
    forecast    whether `ifsq.pipeline.forecast` is made of each tokenizer and its codes
    metrics     names of those that become measurements; empty: all
    """

    tokenizer: TokenizerEvaluation = field(default_factory=TokenizerEvaluation)
    generator: GeneratorEvaluation = field(default_factory=GeneratorEvaluation)
    kept: int = 1
    likelihood: int = 0
    forecast: bool = False
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.generator.seed:
            raise ValueError(f"generator.seed={self.generator.seed}: expected it in seeds.sampling")
        if self.kept < 1 or self.likelihood < 0:
            raise ValueError(f"kept={self.kept}, likelihood={self.likelihood}: expected at least 1, and at least 0")


@dataclass(frozen=True)
class Compared:
    """Cells that are compared: each pair of values of an axis, everything else being equal.

    axis       whose values
    metric     by which, and ``value`` of it, as on a card
    better     which figures are
    of         whether the metric is of tokenizers or of generators
    when       of which cells: a value or a list of values by axis; empty: of all
    against    a value of the axis with which each other one is compared; empty: with all
    mean_over  axes: cells that differ in these alone count as one, by the mean of their figures at each training seed,
               and are compared with others of the same values
    paired     whether seed by seed; left out: as the protocol says
    independent
               whether each of the cells that count as one makes a pair of its own at each seed: with ``seeds.apart``,
               and where each of them has another tokenizer. The mean is over as many pairs as there are cells and seeds
    """

    axis: str
    metric: str
    value: str
    better: Literal["lower", "higher"] = "lower"
    of: Literal["tokenizer", "generator"] = "generator"
    when: When = field(default_factory=dict)
    against: Value = ""
    mean_over: tuple[str, ...] = ()
    paired: bool | None = None
    independent: bool = False

    def __post_init__(self) -> None:
        if self.axis in self.mean_over:
            raise ValueError(f"mean_over {self.axis!r}: expected other axes than the compared one")
        if self.independent and (not self.mean_over or self.paired is False):
            raise ValueError("independent: cells of means are; expected mean_over, and nothing or true for paired")


@dataclass(frozen=True)
class Resources:
    """What a stage of a kind takes of a machine, for an engine over several; ``processes`` for every runner.

    processes  started by torchrun
    gpus       0: none
    memory_mb  0: not said
    minutes    of the longest such stage; 0: not said
    """

    processes: int = 1
    gpus: int = 0
    memory_mb: int = 0
    minutes: int = 0

    def __post_init__(self) -> None:
        if self.processes < 1 or min(self.gpus, self.memory_mb, self.minutes) < 0:
            raise ValueError(f"{vars(self)}: expected at least 1 process, and nothing negative")


@dataclass(frozen=True)
class Grid:
    """A grid.

    axes        values of each axis by name. The axis ``generator`` need not be there: names of ``generators``
    tokenizer   base experiment: a path beside the grid file, or the name of a shipped one, as ``demo/tokenizer.toml``
    generators  base experiments of generators by name, which may be none
    teacher     base experiment of a teacher that the grid trains: the alignment's source ``grid`` is this one
    question    what is asked, for the page
    settings    see `Setting`
    absent      see `Absent`
    left_out    see `LeftOut`
    differ      dotted options in which generators of one cell may differ though both have them: ``train.optim.lr``, or
                a table as ``train.optim``. Any other difference is refused
    budget      see `Budgets`
    seeds       see `Seeds`
    evaluation  see `Measured`
    resources   see `Resources`, by kind of stage
    protocol    how many training seeds there are and when they decide a comparison, in place of ``seeds.training``, see
                `Protocol`: more seeds of the cells of comparisons that are open, until none is or there are enough
    compare     the comparisons, one family, see `Compared`
    """

    axes: dict[str, tuple[Value, ...]]
    tokenizer: str
    generators: dict[str, str] = field(default_factory=dict)
    teacher: str = ""
    question: str = ""
    settings: tuple[Setting, ...] = ()
    absent: tuple[Absent, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    differ: tuple[str, ...] = ()
    budget: Budgets = field(default_factory=Budgets)
    seeds: Seeds = field(default_factory=Seeds)
    evaluation: Measured = field(default_factory=Measured)
    resources: dict[str, Resources] = field(default_factory=dict)
    protocol: Protocol | None = None
    compare: tuple[Compared, ...] = ()

    def __post_init__(self) -> None:
        for asked in self.compare:
            for name in (asked.axis, *asked.mean_over):
                if name not in self.values:
                    raise ValueError(f"compare: axis {name!r}: expected one of {', '.join(self.values)}")
            if asked.independent and not self.seeds.apart:
                raise ValueError("compare: independent: cells have seeds in common; expected seeds.apart = true")
            if self.seeds.tokenizer is not None and (asked.of == "tokenizer" or asked.axis in self.of_tokenizer):
                raise ValueError(
                    f"compare: {asked.axis}: seeds.tokenizer trains each tokenizer once, and two single ones say"
                    " nothing of their kinds; expected no seeds.tokenizer"
                )
        if (self.protocol is None) != (not self.compare):
            raise ValueError("protocol and compare: expected both or neither: seeds decide comparisons")
        if self.protocol is not None and self.protocol.guidance and self.best_by is None:
            raise ValueError("protocol.guidance: expected a compare of generators, by whose first the best is taken")
        for name, values in self.values.items():
            if not values or len(set(values)) < len(values):
                raise ValueError(f"axes.{name}={list(values)}: expected at least one value, each once")
        for value in self.values.get(GENERATOR, ()):
            if value not in self.generators:
                raise ValueError(f"axes.generator: {value!r}: expected one of {', '.join(self.generators) or 'none'}")
        for one in self.absent:
            if one.axis not in self.values or one.axis == GENERATOR:
                raise ValueError(f"absent: axis {one.axis!r}: expected one of {', '.join(self._named)}")
        for name in self._named:
            meant = self.meant(name)
            unsaid = [value for value in self.values[name] if value not in meant]
            if len(unsaid) > 1:  # one may be what the base experiments are
                told = ", ".join(map(str, unsaid))
                raise ValueError(f"axes.{name}: no setting says what {told} mean; expected it of all but one")
        for kind in self.resources:
            if kind not in KINDS:
                raise ValueError(f"resources.{kind}: expected one of {', '.join(KINDS)}")

    @property
    def values(self) -> dict[str, tuple[Value, ...]]:
        """All axes, that of the generators included."""
        implied = {GENERATOR: tuple(self.generators)} if self.generators and GENERATOR not in self.axes else {}
        return {**self.axes, **implied}

    @property
    def of_tokenizer(self) -> set[str]:
        """Axes that a tokenizer depends on: those by which some setting changes it or its levels, and ``tokenizer``."""
        changing = {
            name
            for setting in self.settings
            if "tokenizer" in setting.sets or "levels" in setting.codes
            for name in setting.when
        }
        return (changing | {"tokenizer"}) & self.values.keys()

    @property
    def best_by(self) -> Compared | None:
        """The figure by which each cell takes its best guidance: that of the first comparison of generators."""
        return next((asked for asked in self.compare if asked.of == GENERATOR), None)

    def resource(self, kind: str) -> Resources:
        """What a stage of this kind takes."""
        return self.resources.get(kind, Resources())

    def meant(self, axis: str) -> set[Value]:
        """Values of an axis of which a setting says what they mean."""
        return {value for setting in self.settings if axis in setting.when for value in values_of(setting.when[axis])}

    @property
    def _named(self) -> list[str]:
        return [name for name in self.values if name != GENERATOR]


def values_of(wanted: Value | tuple[Value, ...]) -> tuple[Value, ...]:
    """The values that a ``when`` names of an axis: one, or several."""
    return wanted if isinstance(wanted, tuple) else (wanted,)


def load_grid(path: Path, overrides: Iterable[str] = ()) -> Grid:
    """Read a grid file. Raises InputError in one line for whatever is wrong with it.

    A file with ``over = "FILE"`` lies over that grid file, which is beside it: it says what is other, its settings come
    behind those of that file, and any other list takes the place of that file's.

    overrides  ``--section.key value``, as ``--seeds.training [0]``; an axis may be given fewer values, and settings of
               the others then say nothing
    """
    table = _with_below(path)
    usual = {"evaluation": {"generator": {"twin": False}}}  # an untrained twin of every cell tells little
    own = config.build(Grid, config.merge(usual, table), str(path))
    given = config.parse_overrides(overrides, Grid)
    if given:
        _refuse_both(given, "command line")
        below = _decided(table, given)
        grid = config.build(Grid, config.merge(config.merge(usual, below), given), str(path))
    else:
        grid = own
    known = {name: {*values, *own.values.get(name, ())} for name, values in grid.values.items()}
    for when in (one.when for several in (grid.settings, grid.absent, grid.left_out, grid.compare) for one in several):
        _check(when, known, str(path))
    for asked in grid.compare:
        if asked.against != "":
            _check({asked.axis: asked.against}, known, f"{path}: compare: against")
    for name, values in grid.axes.items():
        known_here = {*own.values.get(name, ()), *grid.meant(name)}
        for value in values if name != GENERATOR else ():
            if value not in known_here:
                raise InputError(f"axes.{name}: {value!r}: expected one of {', '.join(sorted(map(str, known_here)))}")
    for setting in grid.settings:
        if GENERATOR in setting.when and setting.sets & {"tokenizer", "teacher", "codes"}:
            raise InputError(
                f"{path}: settings: a generator changes {', '.join(sorted(setting.sets))}; expected itself"
            )
    return grid


def _with_below(path: Path) -> dict[str, Any]:
    """The table of a grid file, laid over the one that it names."""
    table = config.read_toml(path)
    _refuse_both(table, str(path))
    if "over" not in table:
        return table
    name = table.pop("over")
    if not isinstance(name, str):
        raise InputError(f"{path}: over {name!r}: expected the name of a grid file beside it")
    below = config.read_toml(path.parent / name)
    _refuse_both(below, str(path.parent / name))
    if "over" in below:
        raise InputError(f"{path}: over {name!r}, which lies over another itself; expected one that does not")
    settings = [below.get("settings", []), table.get("settings", [])]
    if all(isinstance(one, list) for one in settings):  # what is none is refused by its name below
        table["settings"] = [*settings[0], *settings[1]]
    return config.merge(_decided(below, table), table)


def _decided(below: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A table without its protocol and comparisons where what lies over it says the seeds itself."""
    if _says_seeds(over):
        return {name: value for name, value in below.items() if name not in ("protocol", "compare")}
    return below


def _says_seeds(table: Mapping[str, Any]) -> bool:
    seeds = table.get("seeds")
    return isinstance(seeds, Mapping) and bool({"training", "sampling"} & seeds.keys())


def _refuse_both(table: Mapping[str, Any], where: str) -> None:
    """Raise InputError for seeds that a protocol, said in the same place, would take the place of."""
    if "protocol" in table and _says_seeds(table):
        raise InputError(
            f"{where}: seeds and protocol: expected one of them; protocol.looks says how many seeds there are"
        )


def _check(when: When, known: Mapping[str, Any], where: str) -> None:
    for name, wanted in when.items():
        if name not in known:
            raise InputError(f"{where}: when: axis {name!r}: expected one of {', '.join(known)}")
        if not values_of(wanted):
            raise InputError(f"{where}: when: axis {name!r} has no value; expected at least one")
        for value in values_of(wanted):
            if value not in known[name]:
                choices = ", ".join(sorted(map(str, known[name])))
                raise InputError(f"{where}: when: {name} {value!r}: expected one of {choices}")
