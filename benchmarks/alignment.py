"""Both kinds of generator, without alignment and aligned to three teachers, three seeds, equal steps; and a sweep.

    OMP_NUM_THREADS=1 python benchmarks/alignment.py FOLDER                  # several at a time share the cells
    OMP_NUM_THREADS=1 python benchmarks/alignment.py FOLDER --sweep 1 2 0    # the sweep alone, of these seeds
    OMP_NUM_THREADS=1 python benchmarks/alignment.py FOLDER --table          # what is there already

The recipes of ``experiments/demo`` (bundled photographs of 32 px) with six blocks in place of four, so that a third
of the depth is a block: autoregressive 420 steps, weight 2; diffusion 1000 steps in place of 1840, weight 0.5; both
aligned behind block 2, projector 256 wide. One tokenizer (500 steps in place of 800), its codes, one judge and one
self-supervised teacher (``experiments/demo/teacher.toml``) serve all; a seed is that of a generator's training.
Teachers: EfficientNet-Lite0, the self-supervised one, and the generator's averaged weights behind block 4. All draw 500
images at guidance 2 from sampling seed 0, diffusion by 16 steps of Adams-Bashforth. Layers are looked at with 320
held-out images and EfficientNet-Lite0. The sweep: autoregressive, EfficientNet-Lite0, depths 1, 2, 4 and weights 0.5,
2, 8. A cell that is done is not run again.

Expected, before any run: EfficientNet-Lite0 raises CKNNA and probe of the aligned layer and of those before it, at
every seed and in both kinds, the self-supervised teacher less, the self-teacher not. What is trained by it changes
little: bits an image within 1 % (a little lower, if any: in the demo training is 13 % below held-out, so there is
something to regularise), flow loss within 1 %, FD(judge), FD(pixels) and class agreement not told apart at three seeds;
FD of EfficientNet-Lite0 2 to 5 % lower for diffusion. The self-teacher is not told apart from none. Sweep: weight 8
costs 1 to 2 % of bits, 0.5 and 2 are not told apart, nor the depths: 'a third of the depth, weight about 2' does not
show.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import t as student

from ifsq import pipeline
from ifsq.codes.cache import CodeCache
from ifsq.codes.features import FeatureCache
from ifsq.config import build, merge, read_toml
from ifsq.evaluation import GeneratorEvaluation
from ifsq.evaluation.alignment.record import AlignmentAnalysis
from ifsq.experiment import ARExperiment, DiffusionExperiment, TokenizerExperiment
from ifsq.generators.repa.encode import features_beside
from ifsq.metrics import ProtocolCard
from ifsq.pretrained.teachers import TeacherConfig
from ifsq.pretraining import TeacherExperiment
from ifsq.store.lock import BusyError, lock
from ifsq.training.log import Silent

SEEDS = (0, 1, 2)
BLOCKS, DEPTH, HIDDEN = 6, 2, 256
STEPS = {"ar": 420, "diffusion": 1000}
WEIGHTS = {"ar": 2.0, "diffusion": 0.5}
NONE, EFFICIENTNET, LEARNED, SELF = "none", "efficientnet-lite0", "self-supervised", "self"
ARMS = (NONE, EFFICIENTNET, LEARNED, SELF)
SWEEP_DEPTHS, SWEEP_WEIGHTS = (1, 2, 4), (0.5, 2.0, 8.0)
SAMPLES, HELD_OUT, TIMES = 500, 320, (0.25, 0.75)
NETWORK = "efficientnet-lite0@64"
RECIPES = Path(__file__).resolve().parents[1] / "experiments" / "demo"
EXPERIMENTS = {"ar": ARExperiment, "diffusion": DiffusionExperiment}
LOSS = {"ar": "bits_per_image", "diffusion": "mse"}
NAMED = {"ar": "bits an image", "diffusion": "flow loss"}
LOSSES = ("a third", "two thirds", "loss", "training")
METRICS = (*LOSSES, "FD(judge)", "FD(pixels)", "class agreement", f"FD({NETWORK})")
DIGITS = {f"FD({NETWORK})": 0, "FD(judge)": 2}
LAYERED = {"cknna": "CKNNA", "cknna_cosine": "CKNNA, unit length", "patch_cka": "patch CKA", "probe": "probe"}

Figures = dict[str, Any]
Teacher = dict[str, str | int]


class Lines(Silent):
    """What is said of runs, on stderr."""

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Cell:
    """One generator: its kind, what it is aligned to, how, and the seed of its training."""

    kind: str
    arm: str
    seed: int
    depth: int
    weight: float

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.arm}_depth{self.depth}_weight{self.weight:g}_seed{self.seed}"


def main_cell(kind: str, arm: str, seed: int) -> Cell:
    return Cell(kind, arm, seed, DEPTH, WEIGHTS[kind])


def cells() -> Iterator[Cell]:
    """All, in such an order that a run that is cut short leaves a fair table; the sweep shares one with the rest."""
    for seed in SEEDS:
        for arm in ARMS:
            for kind in STEPS:
                yield main_cell(kind, arm, seed)
    for seed in SEEDS:
        yield from (cell for cell in sweep(seed) if cell.depth != DEPTH or cell.weight != WEIGHTS["ar"])


def sweep(seed: int) -> Iterator[Cell]:
    """The sweep of a seed: no alignment, the depth and the weight of the other cells, and all others of its grid."""
    centre = main_cell("ar", EFFICIENTNET, seed)
    yield from (main_cell("ar", NONE, seed), centre)
    for depth in SWEEP_DEPTHS:
        for weight in SWEEP_WEIGHTS:
            if (depth, weight) != (centre.depth, centre.weight):
                yield Cell("ar", EFFICIENTNET, seed, depth, weight)


def teachers(folder: Path) -> dict[str, Teacher]:
    """Of each arm, as an experiment file says it; of EfficientNet-Lite0 the fourth stage."""
    efficientnet: Teacher = {"source": EFFICIENTNET, "layer": 4}
    return {NONE: {}, EFFICIENTNET: efficientnet, LEARNED: {"source": str(folder / "teacher")}, SELF: {"source": SELF}}


def shared(folder: Path) -> None:
    """Tokenizer, judge, codes, teacher and the features of both teachers; what is there is not made again."""
    lines, data = Lines(), "bundled:photos"
    train = {"steps": 500, "save_every": 500}
    recipe = merge(read_toml(RECIPES / "tokenizer.toml"), {"out": str(folder / "tokenizer"), "train": train})
    tokenizer = pipeline.train_tokenizer(build(TokenizerExperiment, recipe, "tokenizer"), "cpu", lines)
    pipeline.encode(tokenizer, data, folder / "codes", device="cpu", reporter=lines)
    cards = pipeline.evaluate_tokenizer(tokenizer, "cpu", lines)  # the judge is made here
    (folder / "shared.json").write_text(json.dumps(values(cards)))
    recipe = merge(read_toml(RECIPES / "teacher.toml"), {"out": str(folder / "teacher")})
    pipeline.train_teacher(build(TeacherExperiment, recipe, "teacher"), "cpu", lines)
    for arm in (LEARNED, EFFICIENTNET):
        teacher = build(TeacherConfig, teachers(folder)[arm], arm)
        pipeline.cache_features(folder / "codes", teacher, device="cpu", reporter=lines)


def trained(folder: Path, cell: Cell, teacher: Teacher) -> Path:
    """Train the generator of a cell, aligned to a teacher (unused without alignment); returns its run, finished."""
    steps, recipe = STEPS[cell.kind], read_toml(RECIPES / f"{cell.kind}.toml") | {"sampling": {"guidance": 2.0}}
    recipe[cell.kind]["depth"] = BLOCKS
    train = {"seed": cell.seed, "steps": steps, "save_every": steps, "keep_every": 0, "validate_every": steps // 3}
    places = {"out": str(folder / cell.name), "tokenizer": str(folder / "tokenizer"), "codes": str(folder / "codes")}
    asked = merge(recipe, {**places, "train": train})
    if cell.arm != NONE:
        asked["alignment"] = {
            "teachers": [teacher], "depth": cell.depth, "weight": cell.weight, "hidden": HIDDEN
        }  # fmt: skip
    return pipeline.train_generator(build(EXPERIMENTS[cell.kind], asked, cell.name), "cpu", Lines())


def made(folder: Path, cell: Cell, teacher: Teacher) -> Figures:
    """Train the generator of a cell and measure it; a run that is finished is measured as it is."""
    began, lines = time.process_time(), Lines()
    run = trained(folder, cell, teacher)
    of_training = time.process_time() - began
    evaluation = GeneratorEvaluation(samples=SAMPLES, twin=False, features=("pixels", NETWORK))
    (measured,) = pipeline.evaluate_generator(run, evaluation, "cpu", lines).values()
    looks = AlignmentAnalysis(count=HELD_OUT, times=TIMES if cell.kind == "diffusion" else ())
    _, layers = pipeline.analyze_alignment(run, looks, None, "cpu", lines)
    return {
        **values(measured.cards),
        **learned(run, LOSS[cell.kind]),
        "layers": [{"layer": row.layer, "time": row.time, **row.values} for row in layers.rows],
        "probe of the teacher": layers.beside,
        "version": measured.cards[0].code_version,
        "training FLOP": measured.flops,
        "seconds": [of_training, time.process_time() - began],
    }


def values(cards: Sequence[ProtocolCard]) -> Figures:
    """The first value of each card, by its metric."""
    return {card.metric: float(next(iter(card.values.values()))) for card in cards}


def learned(run: Path, loss: str) -> Figures:
    """Held-out loss at a third, two thirds and the end; loss and alignment in the last tenth or so of the training."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    held_out = [line[f"val/{loss}"] for line in lines if f"val/{loss}" in line]
    training = [line for line in lines if loss in line]
    late = [line for line in training if line["step"] > 0.85 * training[-1]["step"]]
    aligned = [line["alignment"] for line in late if "alignment" in line]
    return {
        "curve": held_out,
        "loss": held_out[-1],
        "training": statistics.mean(line[loss] for line in late),
        "alignment": statistics.mean(aligned) if aligned else None,
    }


def work(folder: Path, wanted: Iterable[Cell]) -> None:
    """These cells, where they are not done and no other process is at them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = Lines()
    with lock(folder / "shared.lock", lines.say, wait=True):
        shared(folder)
    for cell in wanted:
        measure(folder, cell, teachers(folder)[cell.arm])


def measure(folder: Path, cell: Cell, teacher: Teacher) -> None:
    """Write the figures of a cell beside its run, unless they are there or another process is at it."""
    kept, lines = folder / f"{cell.name}.json", Lines()
    try:
        with lock(folder / f"{cell.name}.lock", lines.say):
            if not kept.exists():
                found = made(folder, cell, teacher)
                kept.write_text(json.dumps(found))
                told = {name: value for name, value in found.items() if name != "layers"}
                print(f"{cell.name}: {told}", file=sys.stderr, flush=True)
    except BusyError:
        return


def spread(numbers: Sequence[float], digits: int) -> str:
    if len(numbers) < 2:
        return f"{numbers[0]:.{digits}f}"
    return f"{statistics.mean(numbers):.{digits}f} ± {statistics.stdev(numbers):.{digits}f}"


def compared(less: Sequence[float], digits: int, *, short: bool = False, level: float = 0.95) -> str:
    """Mean of differences seed by seed, bold where their interval (Student's t) leaves out zero, and that interval."""
    mean = statistics.mean(less)
    if len(less) < 2:
        return f"{mean:+.{digits}f}"
    half = float(student.ppf((1 + level) / 2, len(less) - 1)) * statistics.stdev(less) / len(less) ** 0.5
    apart = "**" if abs(mean) > half else ""
    told = f"{apart}{mean:+.{digits}f}{apart}"
    return told if short else f"{told} ({mean - half:+.{digits}f} to {mean + half:+.{digits}f})"


def table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    print("\n".join(["", f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]))
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))


def read(folder: Path, wanted: Iterable[Cell]) -> dict[Cell, Figures]:
    """Figures of those cells that have any."""
    found = {cell: folder / f"{cell.name}.json" for cell in wanted}
    figures = {cell: json.loads(path.read_text()) for cell, path in found.items() if path.exists()}
    for one in figures.values():
        one |= {"a third": one["curve"][0], "two thirds": one["curve"][1]}
    return figures


def digits_of(metric: str, kind: str) -> int:
    if metric in LOSSES:
        return 1 if kind == "ar" else 4
    return DIGITS.get(metric, 3)


def of_arms(found: dict[Cell, Figures], kind: str, arms: Sequence[str] = ARMS) -> dict[str, list[Figures]]:
    """Figures of each arm, of the seeds that all of them have."""
    seeds = [seed for seed in SEEDS if all(main_cell(kind, arm, seed) in found for arm in arms)]
    return {arm: [found[main_cell(kind, arm, seed)] for seed in seeds] for arm in arms}


def titles(kind: str) -> list[str]:
    told = {
        "a third": ", after a third of the steps",
        "two thirds": ", two thirds",
        "loss": "",
        "training": ", training",
    }
    return [f"{NAMED[kind]}{told[metric]}" if metric in told else metric for metric in METRICS]


def print_arms(kind: str, arms: dict[str, list[Figures]], than: str = NONE) -> None:
    """What was trained and drawn, the differences from an arm, and the seeds one by one."""
    rows = []
    for arm, seeds in arms.items():
        term = "" if arm == NONE else spread([one["alignment"] for one in seeds], 3)
        rows.append([arm, *(spread([one[m] for one in seeds], digits_of(m, kind)) for m in METRICS), term])
    table([kind, *titles(kind), "alignment"], rows)
    rows = []
    for arm in (arm for arm in arms if arm != than):
        less = differences(arms[arm], arms[than])
        rows.append([f"{arm} less {than}", *(compared(less[m], digits_of(m, kind) + 1) for m in METRICS)])
    table([f"{kind}, difference seed by seed", *titles(kind)], rows)
    rows = []
    for arm, seeds in arms.items():
        rows.append([arm, *(", ".join(f"{one[m]:.{digits_of(m, kind)}f}" for one in seeds) for m in METRICS)])
    table([f"{kind}, by seed", *titles(kind)], rows)


def differences(mine: Sequence[Figures], other: Sequence[Figures]) -> dict[str, list[float]]:
    """Seed by seed, of each metric."""
    return {metric: [a[metric] - b[metric] for a, b in zip(mine, other, strict=True)] for metric in METRICS}


def layer_values(one: Figures, measure: str, at: float | None) -> list[float]:
    return [row[measure] for row in one["layers"] if row["time"] == at]


def print_layers(kind: str, arms: dict[str, list[Figures]]) -> None:
    """Each measure by layer, and the differences from no alignment there."""
    times = TIMES if kind == "diffusion" else (None,)
    for at in times:
        of = kind if at is None else f"{kind} at time {at:g}"
        rows, apart = [], []
        for measure, called in LAYERED.items():
            by_arm = {arm: [layer_values(one, measure, at) for one in seeds] for arm, seeds in arms.items()}
            for arm, seeds in by_arm.items():
                rows.append([f"{called}: {arm}", *(spread(layer, 3) for layer in zip(*seeds, strict=True))])
            for arm in ARMS[1:]:
                pairs = zip(by_arm[arm], by_arm[NONE], strict=True)
                less = [[a - b for a, b in zip(*pair, strict=True)] for pair in pairs]
                told = (compared(layer, 3, short=True) for layer in zip(*less, strict=True))
                apart.append([f"{called}: {arm} less none", *told])
        layers = [f"layer {layer}" for layer in range(len(rows[0]) - 1)]
        table([of, *layers], rows)
        table([f"{of}, difference seed by seed", *layers], apart)


def print_sweep(found: dict[Cell, Figures]) -> None:
    """Depths and weights against no alignment and each other, of the seeds that have all cells."""
    every = [(depth, weight) for depth in SWEEP_DEPTHS for weight in SWEEP_WEIGHTS]
    seeds = [seed for seed in SEEDS if all(cell in found for cell in sweep(seed))]
    if not seeds:
        return
    without = [found[main_cell("ar", NONE, seed)] for seed in seeds]
    mine = {one: [found[Cell("ar", EFFICIENTNET, seed, *one)] for seed in seeds] for one in every}
    rows = [["none", *(spread([one[m] for one in without], digits_of(m, "ar")) for m in METRICS), "", ""]]
    for (depth, weight), cells in mine.items():
        near = spread([layer_values(one, "patch_cka", None)[depth] for one in cells], 3)
        term = spread([one["alignment"] for one in cells], 3)
        figures = (spread([one[m] for one in cells], digits_of(m, "ar")) for m in METRICS)
        rows.append([f"depth {depth}, weight {weight:g}", *figures, term, near])
    head = f"sweep, seeds {', '.join(map(str, seeds))}"
    table([head, *titles("ar"), "alignment", "patch CKA of the aligned layer"], rows)
    less = {f"depth {d}, weight {w:g}, less none": differences(mine[d, w], without) for d, w in every}
    print_differences(f"{head}: difference seed by seed", less)
    rows = []
    for name, by_metric in less.items():
        figures = (", ".join(f"{one:+.{digits_of(m, 'ar')}f}" for one in by_metric[m]) for m in METRICS)
        rows.append([name, *figures])
    table([f"{head}: differences one by one", *titles("ar")], rows)
    centre = (DEPTH, WEIGHTS["ar"])
    rest = [one for one in every if one != centre]
    less = {f"depth {d}, weight {w:g}, less the centre": differences(mine[d, w], mine[centre]) for d, w in rest}
    print_differences(f"{head}: against depth {DEPTH}, weight {WEIGHTS['ar']:g}", less)
    less = {"mean of all, less none": differences(mean_over(list(mine.values())), without)}
    for axis, (name, values) in enumerate({"depth": SWEEP_DEPTHS, "weight": SWEEP_WEIGHTS}.items()):
        means = {value: mean_over([mine[one] for one in every if one[axis] == value]) for value in values}
        middle = values[1]
        less |= {f"{name} {v:g} less {middle:g}": differences(means[v], means[middle]) for v in values if v != middle}
    print_differences(f"{head}: means of cells", less)


def mean_over(cells: Sequence[Sequence[Figures]]) -> list[Figures]:
    """Each metric, averaged over cells seed by seed."""
    return [{m: statistics.mean(one[m] for one in each) for m in METRICS} for each in zip(*cells, strict=True)]


def print_differences(head: str, less: dict[str, dict[str, list[float]]]) -> None:
    rows = [[name, *(compared(of[m], digits_of(m, "ar") + 1) for m in METRICS)] for name, of in less.items()]
    table([head, *titles("ar")], rows)


def constants(folder: Path, teacher: TeacherConfig) -> list[float]:
    """Mean cosine with features of the training images that is reached without seeing an image: how low is low.

    By one constant for all, one a position, and one a position and class. The best constant for a group of features is
    the direction of the sum of their unit vectors, and its mean cosine is that sum's length over their number.
    """
    labels = CodeCache.open(folder / "codes").read("train").labels
    features = FeatureCache.open(features_beside(folder / "codes", teacher)).read()
    parts = torch.arange(len(labels)).split(512)
    unit = torch.cat([F.normalize(features.taken(part).float(), dim=-1) for part in parts])
    classes = [unit[labels == label] for label in labels.unique()]
    return [
        float(unit.mean((0, 1)).norm()),
        float(unit.mean(0).norm(dim=-1).mean()),
        sum(len(one) * float(one.mean(0).norm(dim=-1).mean()) for one in classes) / len(unit),
    ]


def print_constants(folder: Path) -> None:
    rows = []
    for arm in (LEARNED, EFFICIENTNET):
        found = constants(folder, build(TeacherConfig, teachers(folder)[arm], arm))
        rows.append([arm, *(f"{value:.3f}" for value in found)])
    table(["cosine of the best constant", "one for all", "one a position", "one a position and class"], rows)


def print_tables(folder: Path) -> None:
    found = read(folder, cells())
    (version,) = {one["version"] for one in found.values()}
    print(f"ifsq {version}; {len(found)} cells; {json.loads((folder / 'shared.json').read_text())}")
    for kind in STEPS:
        arms = of_arms(found, kind)
        if arms[NONE]:
            print_arms(kind, arms)
            print_layers(kind, arms)
    print_sweep(found)
    print_constants(folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--sweep", type=int, nargs="+", choices=SEEDS, default=(), help="seeds of the sweep, alone")
    options = parser.parse_args()
    if not options.table:
        asked = [cell for seed in options.sweep for cell in sweep(seed)]
        work(options.folder, asked or cells())
    print_tables(options.folder)


if __name__ == "__main__":
    main()
