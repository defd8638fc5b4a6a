"""Ten teachers of the autoregressive generator: does a score that needs no generator say which one serves it?

    OMP_NUM_THREADS=1 python benchmarks/alignment_teachers.py FOLDER            # goes on where it was stopped
    OMP_NUM_THREADS=1 python benchmarks/alignment_teachers.py FOLDER --table    # what is there already
    OMP_NUM_THREADS=1 python benchmarks/alignment_teachers.py FOLDER --stage 1  # a stage in both kinds, with samples

Recipes, codes and cells of ``alignment.py``, whose folder this may be: what it has trained is not trained again. Six
blocks, 420 steps, aligned behind block 2 by weight 2; seeds are those of the generator's training; nothing is drawn.
Teachers: the pixels of a token; EfficientNet-Lite0 after each of its five stages, and its fourth with fresh weights;
the network of ``experiments/demo/teacher.toml`` with fresh weights, after 100 steps of training of its own schedule and
after 400. Scores: of the 640 held-out images, and for the cosine of a constant the 10,240 that are trained on.

Expected, before any run but those of ``alignment.py`` (none, EfficientNet-Lite0 and 400 steps were known):
- LDS of iREPA goes with the bits that are saved after a third of the steps, Spearman 0.5, which ten teachers do not
  tell from 0 (that takes 0.65). The probe of the class does not (within 0.3 of 0).
- What goes with them best is known only after training: how far the cosine goes beyond that of a constant, 0.7.
- Of held-out bits at the end nothing is said by any score: they differ by no more than seeds do, and the order of the
  teachers at one seed is not that at another.
- Fresh weights and pixels save 0 to 3 bits early. Of EfficientNet-Lite0 stages 3 and 4 save most and are not told
  apart, stages 1 and 5 less.
Rule for the stage that ``layer = 0`` takes, before any run: another one than the fourth if its held-out bits after a
third of the steps or at the end are lower than the fourth's by an interval for four comparisons (98.75 %), and neither
is higher so.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from alignment import (
    EFFICIENTNET,
    LEARNED,
    NONE,
    RECIPES,
    STEPS,
    Cell,
    Lines,
    Teacher,
    compared,
    constants,
    learned,
    main_cell,
    measure,
    of_arms,
    print_arms,
    read,
    shared,
    spread,
    table,
    teachers,
    trained,
)
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import nn

from ifsq import pipeline
from ifsq.codes.cache import CodeCache
from ifsq.codes.features import FeatureCache
from ifsq.config import build, merge, read_toml
from ifsq.data import DataConfig, iterate_once, open_images
from ifsq.evaluation.teacher import teacher_figures
from ifsq.generators.repa.encode import features_beside
from ifsq.metrics.alignment import cka_of_rows
from ifsq.pretrained.efficientnet_lite import EFFICIENTNET_LITE0, EfficientNetLite0
from ifsq.pretrained.teachers import ImageTeacher, ModuleTeacher, TeacherConfig, open_teacher, register_teacher
from ifsq.pretrained.teachers.module import EfficientNetTeacher
from ifsq.pretrained.teachers.preprocessing import HALF, Preprocessing
from ifsq.pretrained.teachers.trained import TrainedTeacher
from ifsq.pretrained.weights import find_weights, read_weights
from ifsq.pretraining import Student, TeacherExperiment
from ifsq.store.lock import BusyError, lock
from ifsq.training.distributed import join

SEEDS = (0, 1, 2)
PATCH, GRID = 4, (8, 8)
SHORT = 100
PIXELS, FRESH_EFFICIENTNET, FRESH = "pixels", "fresh-efficientnet-lite0", "fresh-self-supervised"
STAGES = {stage: EFFICIENTNET if stage == 4 else f"{EFFICIENTNET}-{stage}" for stage in range(1, 6)}
ARMS = (PIXELS, FRESH_EFFICIENTNET, *STAGES.values(), FRESH, f"{LEARNED}-{SHORT}", LEARNED)
SCORES = {
    "LDS": "spatial structure of iREPA, `ifsq.metrics.spatial`",
    "RMSC": "root mean square contrast over the tokens of an image, unit vectors",
    "probe": "class from the mean features",
    "constant": "mean cosine of the best constant a position",
    "codes": "linear CKA of unit features with the codes of the same tokens; thought of when figures were there",
}
LOOKED_AT = 2000
SAVED = ("a third", "two thirds", "end", "training")
REACHED = ("cosine", "beyond a constant")
DRAWS = 10_000
MOST_SEEDS = 10

Floats = NDArray[np.float64]


def all_teachers(folder: Path) -> dict[str, Teacher]:
    """Each arm's teacher, as an experiment file says it."""
    return {
        **teachers(folder),
        **{arm: {"source": arm} for arm in (PIXELS, FRESH_EFFICIENTNET, FRESH)},
        **{arm: {"source": EFFICIENTNET, "layer": stage} for stage, arm in STAGES.items()},
        f"{LEARNED}-{SHORT}": {"source": str(folder / f"teacher-{SHORT}")},
    }


class Pixels(nn.Module):
    """The pixels of a patch as they are; the buffer says on which device."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("patch", torch.tensor(PATCH))


def pixels(config: TeacherConfig) -> ImageTeacher:
    look = Preprocessing(HALF, HALF)
    return ModuleTeacher(
        Pixels(), lambda _, images: F.pixel_unshuffle(images, PATCH), 3 * PATCH**2, PIXELS, look, PATCH, "pixels"
    )


def fresh_efficientnet(config: TeacherConfig) -> ImageTeacher:
    """Weights that keep variances (He et al. 2015, of the fan-in), norms that do nothing."""
    rng, table = torch.Generator().manual_seed(0), {}
    for name, tensor in read_weights(find_weights(EFFICIENTNET_LITE0)).items():
        if tensor.ndim > 1:
            fan_in = tensor[0].numel()
            table[name] = torch.randn(tensor.shape, generator=rng) * (2 / fan_in) ** 0.5
        else:
            is_one = name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight"))
            table[name] = torch.ones_like(tensor) if is_one else torch.zeros_like(tensor)
    return EfficientNetTeacher(EfficientNetLite0(table, FRESH_EFFICIENTNET), config)


def recipe_of_teacher(folder: Path, steps: int) -> TeacherExperiment:
    train = {"steps": steps, "save_every": steps}
    recipe = merge(read_toml(RECIPES / "teacher.toml"), {"out": str(folder / f"teacher-{steps}"), "train": train})
    return build(TeacherExperiment, recipe, "teacher")


def fresh_network(config: TeacherConfig) -> ImageTeacher:
    """What the training of the self-supervised teacher begins with."""
    experiment = recipe_of_teacher(Path(), SHORT)
    torch.manual_seed(experiment.train.seed)
    return TrainedTeacher(Student(experiment.network, experiment.objective.expansion).network, config, FRESH)


def scores(teacher: ImageTeacher) -> dict[str, float]:
    """What held-out images say of a teacher, see `SCORES`."""
    images = open_images(DataConfig(source="bundled:photos", size=32), "val")
    with join("cpu") as world:
        found = teacher_figures(lambda shown: teacher.features(shown, GRID), GRID, images, world, len(images))
    contrast = []
    for batch in iterate_once(images, 64):
        unit = F.normalize(teacher.features(batch.images, GRID), dim=-1)
        contrast.append((1 - unit.mean(dim=1).square().sum(dim=-1)).clamp(min=0).sqrt())
    return {"LDS": found["lds"], "RMSC": float(torch.cat(contrast).mean()), "probe": found["probe"]}


def stage_in_both(folder: Path, stage: int) -> None:
    """Generators of both kinds that are aligned to a stage, with samples and layers as `alignment` measures them."""
    arm = STAGES[stage]
    for seed in SEEDS:
        for kind in STEPS:
            measure(folder, main_cell(kind, arm, seed), all_teachers(folder)[arm])


def print_stage(folder: Path, stage: int) -> None:
    arms = (EFFICIENTNET, NONE, STAGES[stage])
    cells = [main_cell(kind, arm, seed) for kind in STEPS for arm in arms for seed in SEEDS]
    found = read(folder, cells)
    for kind in STEPS:
        by_arm = of_arms(found, kind, arms)
        if by_arm[NONE]:
            print_arms(kind, by_arm, EFFICIENTNET)
            print_arms(kind, {arm: by_arm[arm] for arm in (NONE, STAGES[stage])})


def of_codes(folder: Path, teacher: TeacherConfig) -> float:
    """How much of a teacher's features the codes of the same tokens say linearly, over the first training pictures."""
    rows = torch.arange(LOOKED_AT)
    codes = CodeCache.open(folder / "codes").read("train").views(rows)[:, 0].flatten(2).transpose(1, 2)  # b t d
    features = FeatureCache.open(features_beside(folder / "codes", teacher)).read().taken(rows).float()
    return cka_of_rows(codes.flatten(0, 1), F.normalize(features, dim=-1).flatten(0, 1))


def cell_of(arm: str, seed: int) -> Cell:
    return main_cell("ar", arm, seed)


def work(folder: Path, seeds: Sequence[int], arms: Sequence[str]) -> None:
    """What all share, the teachers' features and scores, and the cells that are not done and that nobody is at."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, said = Lines(), all_teachers(folder)
    with lock(folder / "shared.lock", lines.say, wait=True):
        shared(folder)
        pipeline.train_teacher(recipe_of_teacher(folder, SHORT), "cpu", lines)
        for arm in ARMS:
            teacher, kept = build(TeacherConfig, said[arm], arm), folder / f"scores_{arm}.json"
            pipeline.cache_features(folder / "codes", teacher, device="cpu", reporter=lines)
            if not kept.exists():
                found = {**scores(open_teacher(teacher)), "constant": constants(folder, teacher)[1]}
                kept.write_text(json.dumps(found))
                lines.say(f"{arm}: {found}")
    for seed in seeds:
        for arm in arms:
            cell = cell_of(arm, seed)
            try:
                with lock(folder / f"{cell.name}.lock", lines.say):
                    found = learned(trained(folder, cell, said[arm]), "bits_per_image")
                    lines.say(f"{cell.name}: {found}")
            except BusyError:
                continue


def read_runs(folder: Path, seeds: Sequence[int], arms: Sequence[str]) -> dict[str, list[dict[str, float]]]:
    """What training showed, by arm, of the seeds that all arms have: bits an image, and the cosine that was reached."""
    done = [s for s in seeds if all(finished(folder / cell_of(arm, s).name) for arm in arms)]
    shown: dict[str, list[dict[str, float]]] = {}
    for arm in arms:
        every = [learned(folder / cell_of(arm, seed).name, "bits_per_image") for seed in done]
        bits = [dict(zip(SAVED, (*one["curve"], one["training"]), strict=True)) for one in every]
        shown[arm] = [{**one, "cosine": -(said["alignment"] or 0.0)} for one, said in zip(bits, every, strict=True)]
    return shown


def finished(run: Path) -> bool:
    metrics = run / "metrics.jsonl"
    return metrics.is_file() and metrics.read_text().count('"val/bits_per_image"') == 3


def saved(shown: Mapping[str, Sequence[Mapping[str, float]]], arm: str, than: str, metric: str) -> list[float]:
    """Bits an image that an arm is below another, seed by seed."""
    return [b[metric] - a[metric] for a, b in zip(shown[arm], shown[than], strict=True)]


def rank_rows(values: Floats) -> Floats:
    return rankdata(values, axis=-1)


def spearman(a: Floats, b: Floats) -> Floats:
    """Along the last axis; nan where one of them has a single value."""
    ranks = [rank_rows(x) - rank_rows(x).mean(axis=-1, keepdims=True) for x in (a, b)]
    with np.errstate(invalid="ignore"):
        return (ranks[0] * ranks[1]).sum(-1) / np.sqrt((ranks[0] ** 2).sum(-1) * (ranks[1] ** 2).sum(-1))


def told(score: Floats, shown: Floats) -> str:
    """Spearman's rank correlation with the mean over seeds, its 95 % interval and the p-value of a permutation.

    score  of each teacher
    shown  of each teacher and seed

    The interval is of a bootstrap over teachers and seeds; bold where it leaves out 0 and p is below 0.05.
    """
    rng = np.random.default_rng(0)
    n, s = shown.shape
    rho = float(spearman(score, shown.mean(axis=1)))
    rows, columns = rng.integers(n, size=(DRAWS, n)), rng.integers(s, size=(DRAWS, s))
    means = shown[rows[:, :, None], columns[:, None, :]].mean(axis=2)
    low, high = np.nanquantile(spearman(score[rows], means), [0.025, 0.975])
    shuffled = rng.permuted(np.tile(score, (DRAWS, 1)), axis=1)
    chance = spearman(shuffled, np.broadcast_to(shown.mean(axis=1), shuffled.shape))
    p = (1 + int((np.abs(chance) >= abs(rho) - 1e-9).sum())) / (1 + DRAWS)
    mark = "**" if p < 0.05 and (low > 0 or high < 0) else ""
    return f"{mark}{rho:+.2f}{mark} ({low:+.2f} to {high:+.2f}), p {p:.2f}"


def print_teachers(known: Mapping[str, Mapping[str, float]], shown: Mapping[str, list[dict[str, float]]]) -> None:
    rows = [[NONE, *[""] * len(SCORES), *(spread([one[m] for one in shown[NONE]], 1) for m in SAVED), "", ""]]
    for arm in ARMS:
        cosines = [one["cosine"] for one in shown[arm]]
        beyond = [one - known[arm]["constant"] for one in cosines]
        rows.append(
            [
                arm,
                *(f"{known[arm][name]:.3f}" for name in SCORES),
                *(spread([one[m] for one in shown[arm]], 1) for m in SAVED),
                *(spread(values, 3) for values in (cosines, beyond)),
            ]
        )
    table(["teacher", *SCORES, *(f"bits an image, {metric}" for metric in SAVED), *REACHED], rows)


def print_saved(shown: Mapping[str, list[dict[str, float]]]) -> None:
    rows = [[arm, *(compared(saved(shown, arm, NONE, m), 2) for m in SAVED)] for arm in ARMS]
    table(["bits saved: none less", *SAVED], rows)
    rows = []
    for arm in ARMS:
        rows.append([arm, *(", ".join(f"{one:+.1f}" for one in saved(shown, arm, NONE, m)) for m in SAVED)])
    table(["bits saved, by seed", *SAVED], rows)


def print_ranks(known: Mapping[str, Mapping[str, float]], shown: Mapping[str, list[dict[str, float]]]) -> None:
    outcomes = {metric: np.array([saved(shown, arm, NONE, metric) for arm in ARMS]) for metric in SAVED}
    cosines = np.array([[one["cosine"] for one in shown[arm]] for arm in ARMS])
    scored = {name: np.array([known[arm][name] for arm in ARMS]) for name in SCORES}
    scored["cosine"] = cosines.mean(axis=1)
    scored["beyond a constant"] = scored["cosine"] - scored["constant"]
    rows = [[name, *(told(score, outcomes[metric]) for metric in SAVED)] for name, score in scored.items()]
    table(["Spearman over teachers", *(f"bits saved, {metric}" for metric in SAVED)], rows)
    rows = []
    for name, score in scored.items():
        by_seed = (spearman(np.broadcast_to(score, outcomes[m].T.shape), outcomes[m].T) for m in SAVED)
        rows.append([name, *(", ".join(f"{one:+.2f}" for one in found) for found in by_seed)])
    between = []
    for metric in SAVED:
        pairs = combinations(range(cosines.shape[1]), 2)
        found = [float(spearman(outcomes[metric][:, a], outcomes[metric][:, b])) for a, b in pairs]
        between.append(f"{statistics.mean(found):+.2f}" if found else "")
    rows.append(["teachers at one seed and at another, mean of the pairs", *between])
    table(["Spearman, by seed", *(f"bits saved, {metric}" for metric in SAVED)], rows)


def print_stages(folder: Path) -> None:
    """Each stage against the fourth, of the seeds that both have."""
    rows = []
    for stage, arm in STAGES.items():
        if arm != EFFICIENTNET:
            shown = read_runs(folder, range(MOST_SEEDS), (EFFICIENTNET, arm))
            less = {metric: saved(shown, arm, EFFICIENTNET, metric) for metric in SAVED}
            told = (compared(less[m], 2, level=1 - 0.05 / 4) for m in SAVED)
            rows.append([f"stage {stage}", str(len(shown[arm])), *told])
            rows.append(["by seed", "", *(", ".join(f"{one:+.1f}" for one in less[m]) for m in SAVED)])
    table(["bits saved: stage 4 less", "seeds", *SAVED], rows)


def print_tables(folder: Path, seeds: Sequence[int]) -> None:
    known = {arm: json.loads((folder / f"scores_{arm}.json").read_text()) for arm in ARMS}
    for arm in ARMS:
        known[arm]["codes"] = of_codes(folder, build(TeacherConfig, all_teachers(folder)[arm], arm))
    shown = read_runs(folder, seeds, (NONE, *ARMS))
    print(f"{len(shown[NONE])} seeds, {len(ARMS)} teachers")
    if shown[NONE]:
        print_teachers(known, shown)
        print_saved(shown)
        print_ranks(known, shown)
        print_stages(folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--stage", type=int, choices=STAGES, help="of EfficientNet-Lite0, measured in both kinds alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of the generator's training")
    parser.add_argument("--arms", nargs="+", default=(NONE, *ARMS), choices=(NONE, *ARMS))
    options = parser.parse_args()
    for name, load in {PIXELS: pixels, FRESH_EFFICIENTNET: fresh_efficientnet, FRESH: fresh_network}.items():
        register_teacher(name, load)
    if options.stage:
        stage_in_both(options.folder, options.stage)
        print_stage(options.folder, options.stage)
        return
    if not options.table:
        work(options.folder, options.seeds, options.arms)
    print_tables(options.folder, SEEDS)


if __name__ == "__main__":
    main()
