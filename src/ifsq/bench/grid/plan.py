"""A grid expanded into its stages, each once, in an order in which they can be done; and whose figures each gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ifsq.bench.grid import work
from ifsq.bench.grid.cells import Bases, Cell, cells, part, told
from ifsq.bench.grid.config import GENERATOR, Budget, Grid, load_grid
from ifsq.bench.grid.control import Compared, check_alike
from ifsq.bench.grid.cost import lasting, steps_for
from ifsq.bench.grid.foreseen import check_measures, check_teachers, check_timed, check_training
from ifsq.bench.grid.lookups import Coded, Lookups
from ifsq.bench.grid.stages import Stage, folder_of, identity
from ifsq.bench.grid.timing import Timed, Training, read_times
from ifsq.bench.grid.verdicts import pairs_of, still_compared
from ifsq.bench.protocol import MOST_SEEDS
from ifsq.bench.shipped import grid_name
from ifsq.codes import CodeSpec
from ifsq.config import InputError, build, check_seed, digest, merge, read_json
from ifsq.evaluation import TokenizerEvaluation
from ifsq.evaluation.likelihood import BITS
from ifsq.experiment import EXPERIMENTS, GUIDANCE, GeneratorExperiment, TokenizerExperiment
from ifsq.generators.repa.config import AlignmentConfig
from ifsq.pretrained.features import check_features
from ifsq.pretrained.teachers import TeacherConfig
from ifsq.pretraining import TeacherExperiment
from ifsq.store.run import Run
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import pick_device
from ifsq.training.precision import computes_bfloat16

Built = TypeVar("Built", TokenizerExperiment, GeneratorExperiment, TeacherExperiment)

GRID = "grid.json"
"""File of a plan in the folder of its grid."""
COSTS = "costs.json"
"""File of the FLOPs that were counted, in the folder of a grid: a worker of an engine need not count them again."""
APART = 1000
"""Between seeds of tokenizers that have their own."""
OWN_TEACHER = "grid"
"""Source of a teacher that the grid trains."""


@dataclass(frozen=True)
class Figures:
    """Where measurements come from.

    cell           what they are of
    seed           of the training
    sampling_seed  of the images drawn; None where none are
    stage          name of the stage that measures
    of             name of the stage that is measured
    """

    cell: Cell
    seed: int
    sampling_seed: int | None
    stage: str
    of: str


@dataclass
class Plan:
    """A grid and its stages.

    out      folder of the grid
    stages   by name, each after what it needs
    figures  what the stages give, without those that another cell has given
    users    which cells need a stage, by its name
    compared the generators behind each tokenizer, see `ifsq.bench.grid.control`
    costs    FLOPs of training on an image, by what was counted
    times    what steps took, by `Training.key`
    auto     what ``train.precision = "auto"`` is in all of its trainings
    untimed  trainings with a budget in minutes whose steps were not timed yet: until then steps, FLOPs and addresses of
             these, and the addresses of what stands on them, are not known
    command  what follows ``ifsq``
    """

    grid: Grid
    out: Path
    command: tuple[str, ...] = ()
    stages: dict[str, Stage] = field(default_factory=dict)
    figures: list[Figures] = field(default_factory=list)
    users: dict[str, list[str]] = field(default_factory=dict)
    compared: Compared = field(default_factory=dict)
    costs: dict[str, int] = field(default_factory=dict)
    times: dict[str, Timed] = field(default_factory=dict)
    auto: str = "fp32"
    untimed: dict[str, Training] = field(default_factory=dict)

    def only(self, name: str) -> "Plan":
        """The stage of this name and what it needs. Raises InputError where there is none."""
        if name not in self.stages:
            raise InputError(f"--only {name}: no such stage; --plan lists them")
        wanted = [name]
        for one in wanted:
            wanted += [need for need in self.stages[one].needs if need not in wanted]
        return replace(self, stages={one: stage for one, stage in self.stages.items() if one in wanted})

    def add(self, stage: Stage, cell: Cell) -> Stage:
        """The stage, or the one of its name that is there."""
        users = self.users.setdefault(stage.name, [])
        if told(cell) not in users:
            users.append(told(cell))
        return self.stages.setdefault(stage.name, stage)

    def gives(self, figures: Figures) -> None:
        """Say where measurements come from, once."""
        if figures not in self.figures:
            self.figures.append(figures)


def plan_grid(
    file: Path,
    out: Path,
    overrides: Sequence[str] = (),
    seeds: Mapping[str, int] | None = None,
    device: str = "auto",
) -> Plan:
    """Read a grid file and expand it. Raises InputError for whatever is wrong with it or with an experiment of it.

    seeds   by the name (`told`) of a cell, and of the tokenizer's part of one: how many of its training seeds where a
            protocol decides it, with a generator or without; others have as many as its first look takes
    device  that trains: ``train.precision = "auto"`` is bf16 where it computes that, unless the grid's folder says
            what it was when the grid began
    """
    grid = load_grid(file, overrides)
    for name in grid.evaluation.generator.features or ():
        check_features(name)
    if any(one.startswith("--axes") for one in overrides):
        grid = still_compared(grid)
    check_measures(grid)
    command = ("bench", grid_name(file), "--out", str(out), *overrides)
    plan = Plan(grid, out, command, costs=_counted(out / COSTS), times=read_times(out), auto=_precision(out, device))
    made = _Planner(plan, Bases.read(grid, file.parent))
    every = cells(grid)
    names = {told(one) for cell in every for one in (cell, part(cell, grid.of_tokenizer))}
    counts = {name: _seeds(grid, (seeds or {}).get(name, 0)) for name in names}
    for seed in max(counts.values(), key=len):  # all cells once, before any again; fewer seeds are its first ones
        for cell in every:
            whole = seed in counts[told(cell)]
            if whole or seed in counts[told(part(cell, grid.of_tokenizer))]:
                made.cell(cell, seed, whole=whole)
    check_alike(grid, made.plan.compared)
    _check_apart(made.plan)
    _check_independent(made.plan)
    return made.plan


def _precision(out: Path, device: str) -> str:
    """What ``auto`` is in a grid's folder. Raises InputError."""
    file = out / GRID
    written = read_json(file) if file.is_file() else {}
    if not isinstance(written, dict) or written.get("auto", "fp32") not in ("fp32", "bf16"):
        raise InputError(f"{file}: is damaged; expected what bench wrote")
    if "auto" in written:
        return str(written["auto"])
    kind = pick_device(device).type if device == "auto" else device  # a named one may be on other machines alone
    return "bf16" if computes_bfloat16(kind) else "fp32"


def _seeds(grid: Grid, wanted: int) -> tuple[int, ...]:
    """The training seeds of a cell."""
    if grid.protocol is None:
        return grid.seeds.training
    return grid.protocol.compared[: max(grid.protocol.looks[0], wanted)]


class _Planner:
    """Expands cells, and remembers what is alike in several of them."""

    def __init__(self, plan: Plan, bases: Bases) -> None:
        self.plan, self.grid, self.bases = plan, plan.grid, bases
        self.known = Lookups(plan.costs)
        self.measured_on: dict[str, tuple[str, Cell]] = {}  # by tokenizer or generator: images, and a cell of theirs

    def cell(self, cell: Cell, seed: int, *, whole: bool = True) -> None:
        """Add the stages of a cell that are not there yet; those of its tokenizer alone unless it is whole."""
        tokenizer = self._tokenizer(cell, seed)
        self._measure_tokenizer(cell, seed, tokenizer)
        if GENERATOR not in cell or not whole:
            return
        generator = self._generator(cell, seed, tokenizer)
        chosen = self._guidance(cell)
        search = None if chosen is None else folder_of(self.plan.out, chosen.name)
        inputs = {} if chosen is None else {"guidance": chosen.name}
        asked, kept = self.grid.evaluation, self.grid.evaluation.kept
        steps = _measured_steps(generator, kept)
        place = folder_of(self.plan.out, generator.name)
        protocol = self.grid.protocol
        drawn = self.grid.seeds.sampling if protocol is None else tuple(range(protocol.sampling_seeds))
        for number, sampling in enumerate(drawn):
            options = replace(asked.generator, seed=_drawing(generator, sampling))
            options = replace(options, bits=options.bits and self.bits_wanted)
            about = {**identity(options), "kept": kept}
            measures = work.MeasureGenerator(place, options, steps, usual=number == 0, guidance=search)
            stage = Stage("generator-eval", about, inputs, measures, tuple(inputs.values()))
            self._measure(cell, seed, sampling, generator, stage)
        if asked.likelihood:
            bits = work.MeasureLikelihood(place, asked.likelihood, _drawing(generator, 0), steps)
            about = {"images": asked.likelihood, "seed": bits.seed, "kept": kept}
            self._measure(cell, seed, None, generator, Stage("likelihood", about, {}, bits))

    @property
    def bits_wanted(self) -> bool:
        """Whether bits are measured beside samples: not where a stage of their own does, or no metric asks for them."""
        asked = self.grid.evaluation
        return not asked.likelihood and (not asked.metrics or not set(BITS).isdisjoint(asked.metrics))

    def _tokenizer(self, cell: Cell, seed: int) -> Stage:
        own = part(cell, self.grid.of_tokenizer)
        seed = seed if self.grid.seeds.tokenizer is None else self.grid.seeds.tokenizer
        table = merge(self.bases.of(self.grid, cell, "tokenizer"), {"train": {"seed": seed}, "out": ""})
        experiment = self._built(TokenizerExperiment, table, f"{self.bases.names['tokenizer']} of {told(own)}")
        if self.grid.seeds.apart:
            experiment = replace(experiment, train=replace(experiment.train, seed=_own_seed(experiment)))
        cost = self.known.tokenizer_cost(experiment)
        train = self._lasting(Training(f"tokenizer {told(own)}", experiment), cost, self.grid.budget.tokenizer, 1)
        experiment = replace(experiment, train=train)
        inputs, _ = self.known.images(experiment.data, experiment.tokenizer.conv.in_channels)
        stage = self._trained(work.TrainTokenizer, experiment, inputs, (), cost)
        return self.plan.add(stage, own)

    def _guidance(self, cell: Cell) -> Stage | None:
        """The stage that takes a cell's best guidance, on training and sampling seeds of its own."""
        protocol, by = self.grid.protocol, self.grid.best_by
        if protocol is None or by is None or not protocol.guidance:
            return None
        inputs: dict[str, str] = {}
        searched: list[tuple[float, int, Path]] = []
        for seed, sampling in protocol.searched:
            generator = self._generator(cell, seed, self._tokenizer(cell, seed))
            place, options = folder_of(self.plan.out, generator.name), self.grid.evaluation.generator
            options = replace(options, seed=_drawing(generator, sampling), bits=options.bits and by.metric in BITS)
            for scale in protocol.guidance:
                about = {**identity(options), "guidance": scale}
                does = work.MeasureGenerator(place, options, guidance=scale)
                stage = Stage("generator-eval", about, {GENERATOR: generator.name}, does, (generator.name,), sampling)
                inputs[f"search.{len(searched)}"] = self.plan.add(stage, cell).name
                searched.append((scale, seed, folder_of(self.plan.out, stage.name)))
        about = {"metric": by.metric, "value": by.value, "better": by.better}
        does_choose = work.ChooseGuidance(tuple(searched), by.metric, by.value, by.better)
        return self.plan.add(Stage("guidance", about, inputs, does_choose, tuple(inputs.values())), cell)

    def _measure_tokenizer(self, cell: Cell, seed: int, stage: Stage) -> None:
        own, place = part(cell, self.grid.of_tokenizer), folder_of(self.plan.out, stage.name)
        seed = seed if self.grid.seeds.tokenizer is None else self.grid.seeds.tokenizer
        options = self.grid.evaluation.tokenizer
        options = replace(options, levels=self._encoding(cell).levels or options.levels)
        behind = _experiment(stage)
        images = self.known.looked_at(behind, options, told(own))
        self._check_reference("tokenizer", own, images)
        others = options.source not in ("", behind.data.source) or options.split not in ("", "train", "val")
        looks = {"images": images} if others else {}  # what it was trained on is a part of its address
        measures = Stage("tokenizer-eval", identity(options), looks, work.MeasureTokenizer(place, options))
        self._measure(own, seed, None, stage, measures)
        if self.grid.evaluation.forecast:
            self._forecast(own, seed, stage, options, looks)

    def _check_reference(self, role: str, cell: Cell, images: str) -> None:
        """Raise InputError where cells are measured on several sets of images: their figures do not compare."""
        first, other = self.measured_on.setdefault(role, (images, cell))
        if images != first:
            raise InputError(
                f"{told(other)} and {told(cell)}: the {role}s are measured on other images, or other sizes of them, and"
                " such figures do not compare; expected a grid of each"
            )

    def _forecast(
        self, own: Cell, seed: int, tokenizer: Stage, options: TokenizerEvaluation, looks: dict[str, str]
    ) -> None:
        """Add a tokenizer's, but for one of which nothing would be said: continuous codes, and no network looks."""
        behind = _experiment(tokenizer)
        layout, _ = self.known.layout(Coded(behind.data, behind.tokenizer))
        if not (options.judge or options.fid or isinstance(layout, CodeSpec)):
            return
        if (processes := self.grid.resource("forecast").processes) > 1:
            raise InputError(f"resources.forecast.processes={processes}: expected 1, in which a forecast is made")
        codes = self._codes(own, tokenizer, behind, self._encoding(own))
        place, options = folder_of(self.plan.out, tokenizer.name), replace(options, lpips="")
        does = work.Forecast(place, folder_of(self.plan.out, codes.name), options)
        stage = Stage("forecast", identity(options), {"codes": codes.name, **looks}, does, (codes.name,))
        self._measure(own, seed, None, tokenizer, stage)

    def _generator(self, cell: Cell, seed: int, tokenizer: Stage) -> Stage:
        behind = _experiment(tokenizer)
        out, where = self.plan.out, f"{self.bases.names[f'{GENERATOR}.{cell[GENERATOR]}']} of {told(cell)}"
        table = merge({"sampling": {"guidance": GUIDANCE}}, self.bases.of(self.grid, cell, GENERATOR))
        kinds = [cls for cls in EXPERIMENTS if cls.kind in table]
        if len(kinds) != 1:
            raise InputError(f"{where}: expected exactly one section of a kind of generator")
        seed = behind.train.seed if self.grid.seeds.apart else seed
        over: dict[str, Any] = {"train": {"seed": seed}, "out": "", "tokenizer": str(folder_of(out, tokenizer.name))}
        needs, inputs = [tokenizer.name], {"tokenizer": tokenizer.name}
        how = self._encoding(cell)
        if "data" not in table:
            codes = self._codes(cell, tokenizer, behind, how)
            over["codes"] = str(folder_of(out, codes.name))
            needs, inputs = [*needs, codes.name], {**inputs, "codes": codes.name}
        experiment = self._built(kinds[0], merge(table, over), where)
        self.plan.compared.setdefault(tokenizer.name, []).append((cell, experiment))
        if experiment.data is not None:
            if experiment.data.levels != how.levels:
                raise InputError(
                    f"{where}: data.levels={experiment.data.levels} and codes.levels={how.levels}, at which the"
                    " tokenizer is measured; expected the same"
                )
            inputs |= self.known.images(experiment.data.images(), behind.tokenizer.conv.in_channels)[0]
        taught, teachers = self._taught(cell, experiment, over.get("codes"))
        experiment, inputs = replace(experiment, alignment=taught), inputs | teachers
        coded = Coded.of(experiment, behind, how)
        images, _ = self.known.images(coded.data, coded.tokenizer.conv.in_channels)
        self._check_reference("generator", cell, images["images.val"])
        cost = self.known.generator_cost(experiment, coded)
        scales = () if self.grid.protocol is None else self.grid.protocol.guidance
        self.known.check_sampled(experiment, coded, scales, self.grid.evaluation.likelihood, told(cell))
        budget = self.grid.budget.generator
        training = Training(told(cell), experiment, None if budget.minutes is None else self.known.codes(coded))
        train = self._lasting(training, cost, budget, self.grid.evaluation.kept)
        experiment = replace(experiment, train=train)
        needs += [name for name in teachers.values() if name in self.plan.stages]
        return self.plan.add(self._trained(work.TrainGenerator, experiment, inputs, tuple(needs), cost), cell)

    def _built(self, kind: type[Built], table: dict[str, Any], where: str) -> Built:
        """An experiment, in the precision of this grid."""
        experiment: Any = build(kind, table, where)
        made: Built = replace(experiment, train=experiment.train.with_precision(self.plan.auto == "bf16"))
        return made

    def _encoding(self, cell: Cell) -> work.Encoding:
        return build(work.Encoding, self.bases.of(self.grid, cell, "codes"), f"codes of {told(cell)}")

    def _codes(self, cell: Cell, tokenizer: Stage, behind: TokenizerExperiment, how: work.Encoding) -> Stage:
        place = folder_of(self.plan.out, tokenizer.name)
        self.known.check_encoding(behind, how)
        does = work.Encode(place, behind.data.source, how)
        stage = Stage("codes", identity(replace(how, batch=0)), {"tokenizer": tokenizer.name}, does, (tokenizer.name,))
        return self.plan.add(stage, part(cell, self.grid.of_tokenizer))

    def _taught(
        self, cell: Cell, experiment: GeneratorExperiment, codes: str | None
    ) -> tuple[AlignmentConfig | None, dict[str, str]]:
        """The alignment with its teachers and its features found, and these as inputs."""
        asked = experiment.alignment
        if asked is None or not asked.weight:
            return asked, {}
        check_teachers(asked, OWN_TEACHER)
        inputs: dict[str, str] = {}
        teachers = []
        for number, one in enumerate(asked.teachers):
            if one.source == OWN_TEACHER:
                stage = self._teacher(cell)
                inputs[f"teacher.{number}"] = stage.name
                one = replace(one, source=str(folder_of(self.plan.out, stage.name)))
            elif Path(one.source).is_dir():
                inputs[f"teacher.{number}"] = _outside(one.source)
            teachers.append(one)
        found = replace(asked, teachers=tuple(teachers))
        if codes is None or asked.features:
            return found, inputs
        places = []
        for number, one in enumerate(found.seeing):
            stage = self._features(cell, codes, one, inputs.get(f"teacher.{found.teachers.index(one)}"))
            inputs[f"features.{number}"] = stage.name
            places.append(str(folder_of(self.plan.out, stage.name)))
        return replace(found, features=tuple(places)), inputs

    def _features(self, cell: Cell, codes: str, teacher: TeacherConfig, taught: str | None) -> Stage:
        own = Path(codes).name
        said = identity(teacher if taught is None else replace(teacher, source=OWN_TEACHER))
        inputs = {"codes": own} | ({} if taught is None else {"teacher": taught})
        needs = tuple(name for name in inputs.values() if name in self.plan.stages)
        return self.plan.add(Stage("features", said, inputs, work.CacheFeatures(Path(codes), teacher), needs), cell)

    def _teacher(self, cell: Cell) -> Stage:
        if not self.grid.teacher:
            raise InputError(f"alignment of {told(cell)}: source 'grid' without teacher; expected its experiment")
        table = merge(self.bases.of(self.grid, cell, "teacher"), {"out": ""})
        experiment = self._built(TeacherExperiment, table, f"{self.grid.teacher} of {told(cell)}")
        if self.grid.budget.teacher.flops is not None:
            raise InputError("budget.teacher.flops: are not counted of a teacher; expected images or minutes")
        training = Training(f"teacher {told(cell)}", experiment)
        experiment = replace(experiment, train=self._lasting(training, 0, self.grid.budget.teacher, 1))
        inputs, _ = self.known.images(experiment.data, 3)
        return self.plan.add(self._trained(work.TrainTeacher, experiment, inputs, (), None), cell)

    def _trained(
        self, does: Any, experiment: Any, inputs: Mapping[str, str], needs: tuple[str, ...], cost: int | None
    ) -> Stage:
        """A stage that trains."""
        train = experiment.train
        if train.init:
            inputs = {**inputs, "init": _outside(train.init)}
        said = identity(experiment)
        if taught := said.get("alignment"):  # which teacher it is says an input
            taught["teachers"] = [
                {**one, "source": OWN_TEACHER} if f"teacher.{number}" in inputs else one
                for number, one in enumerate(taught["teachers"])
            ]
        flops = None if cost is None else float(cost) * train.batch * train.steps
        made = does(experiment)
        check_training(experiment, made.kind, self.grid.resource(made.kind).processes)
        stage = Stage(made.kind, said, dict(inputs), made, needs, train.seed, flops, train.steps)
        return replace(stage, work=does(replace(experiment, out=str(folder_of(self.plan.out, stage.name)))))

    def _measure(self, cell: Cell, seed: int, sampling: int | None, of: Stage, stage: Stage) -> None:
        """Add a stage that measures another one, and what it gives."""
        role = "tokenizer" if of.kind == "tokenizer" else GENERATOR
        inputs, needs = {role: of.name, **stage.inputs}, (of.name, *stage.needs)
        stage = self.plan.add(replace(stage, inputs=inputs, needs=needs, seed=sampling), cell)
        self.plan.gives(Figures(cell, seed, sampling, stage.name, of.name))

    def _lasting(self, training: Training, cost: int, budget: Budget, kept: int) -> TrainConfig:
        """A training as long as its budget says, or as its experiment; one still to be timed of any length."""
        train, kind = training.experiment.train, training.kind
        steps = train.steps
        if budget.images is not None:
            steps = steps_for(budget.images, train.batch)
        elif budget.flops is not None:
            steps = steps_for(budget.flops, cost * train.batch)
        elif budget.minutes is not None:
            check_timed(training.experiment, kind, self.grid.resource(kind).processes)
            if (timed := self.plan.times.get(training.key)) is None:
                self.plan.untimed[training.key] = training
                return lasting(train, kept, kept)
            steps = steps_for(60 * budget.minutes, timed.seconds)
        if kept > steps:
            raise InputError(f"evaluation.kept={kept}: expected at most the {steps} steps of a training")
        return lasting(train, steps, kept)


def _check_apart(plan: Plan) -> None:
    """Raise InputError where two cells are one: what an axis means was not said of both."""
    first: dict[tuple[int, int | None, str], Cell] = {}
    for one in plan.figures:
        cell = first.setdefault((one.seed, one.sampling_seed, one.stage), one.cell)
        if cell != one.cell:
            raise InputError(f"{told(cell)} and {told(one.cell)}: are the same; expected settings that tell them apart")


def _check_independent(plan: Plan) -> None:
    """Raise InputError where cells that a comparison takes as independent stand on one tokenizer."""
    asked = [pair for pair in pairs_of(plan.grid) if pair.asked.independent]
    behind: dict[frozenset[Any], set[str]] = {}
    for one in plan.figures:
        stage = plan.stages[one.of]
        behind.setdefault(frozenset(one.cell.items()), set()).add(stage.inputs.get("tokenizer", stage.name))
    for group in (group for pair in asked for group in (pair.a, pair.b)):
        first: dict[str, Cell] = {}
        for cell in group.cells:
            for name in behind.get(frozenset(cell.items()), ()):
                if (other := first.setdefault(name, cell)) != cell:
                    raise InputError(f"compare: independent: {told(other)} and {told(cell)} have a tokenizer in common")


def _own_seed(experiment: TokenizerExperiment) -> int:
    """One that no other tokenizer of a grid has, but by a chance of one in a million, for its seed of the grid."""
    seed = experiment.train.seed
    unseeded = replace(experiment, train=replace(experiment.train, seed=0))
    return APART * int(digest(identity(unseeded))[:5], 16) + seed


def _drawing(generator: Stage, sampling: int) -> int:
    """The seed of its random numbers: generators of other training seeds draw others, those of one tokenizer the same.

    With the same for all, what it does to all alike would be in no spread over training seeds.
    """
    check_seed(sampling)
    return (MOST_SEEDS * _training(generator).seed + sampling) % 2**63


def _experiment(tokenizer: Stage) -> TokenizerExperiment:
    """That of the stage that trains it."""
    found: TokenizerExperiment = tokenizer.work.experiment  # type: ignore[attr-defined]
    return found


def _training(generator: Stage) -> TrainConfig:
    """That of the stage that trains it."""
    found: TrainConfig = generator.work.experiment.train  # type: ignore[attr-defined]
    return found


def _measured_steps(generator: Stage, kept: int) -> tuple[int, ...] | None:
    """Those that are kept; not what an interruption saved in between. None: the last alone."""
    train = _training(generator)
    return None if kept == 1 else tuple(range(train.keep_every, train.steps + 1, train.keep_every))


def _outside(source: str) -> str:
    """What tells a run or a saved model from any other. Raises InputError."""
    run = Run.open(source)
    return digest([run.config, run.step])


def _counted(file: Path) -> dict[str, int]:
    """The costs that were written; none where there are none. Raises InputError."""
    found = read_json(file) if file.is_file() else {}
    if not isinstance(found, dict) or not all(isinstance(value, int) and value > 0 for value in found.values()):
        raise InputError(f"{file}: is damaged; remove it")
    return found
