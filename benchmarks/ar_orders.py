"""Raster against random orders annealed to it (`ar.order`), at equal steps on the codes of a finished demo.

    python benchmarks/ar_orders.py --demo runs/demo [--steps 420] [--seeds 3] [--work ar-orders]

Trains the demo's autoregressive generator by its own experiment in three arms, seed by seed, in processes' default
threads: ``raster``; ``raster, told``, always in raster but with the embeddings of the position to predict (what the
added parameters do alone); ``random to raster``. Bits an image are of held-out images, in raster; class agreement,
FD(judge) and the Fréchet distance in an ImageNet network are of 1000 samples, by the demo's judge. Prints a table in
Markdown. A run that is there already (``--work`` of an earlier call) is not run again.
"""

import argparse
import shutil
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from ifsq import pipeline
from ifsq.bench.demo import FEATURES
from ifsq.bench.shipped import experiment_file
from ifsq.evaluation import GeneratorEvaluation
from ifsq.evaluation.record import read_evaluation
from ifsq.experiment import load_generator_experiment
from ifsq.store.run import Run
from ifsq.training.log import read_metrics

ARMS = {
    "raster": ["--ar.order", "raster"],
    "raster, told": ["--ar.order", "random", "--ar.order_start", "0", "--ar.order_end", "0"],
    "random to raster": ["--ar.order", "random", "--ar.order_start", "0.5", "--ar.order_end", "0.75"],
}
Figures = Mapping[str, float]


def train(demo: Path, work: Path, arm: str, seed: int, steps: int) -> Path:
    """The run of an arm, its learning rate's schedule and the annealing those of so many steps."""
    run = work / f"{arm.replace(', ', '_').replace(' ', '_')}_{steps}_{seed}"
    places = ["--out", str(run), "--tokenizer", str(demo / "tokenizer"), "--codes", str(demo / "codes")]
    length = ["--train.steps", str(steps), "--train.seed", str(seed), "--train.save_every", str(steps)]
    experiment = load_generator_experiment(experiment_file("demo/ar.toml"), [*ARMS[arm], *places, *length])
    return pipeline.train_generator(experiment)


def figures(run: Path) -> dict[str, float]:
    """Seconds of training, bits an image, held-out and of the last step's images, and the figures of samples."""
    rows = read_metrics(run / "metrics.jsonl")
    last = Run.open(run)
    found = {"seconds": max(row["seconds"] for row in rows if "seconds" in row)}
    spec = last.weights().described["spec"]
    tokens = spec["grid"][0] * spec["grid"][1]
    found["bits an image"] = tokens * next(row["val/bits_per_token"] for row in reversed(rows) if "val/loss" in row)
    found["training bits an image"] = tokens * [row["bits_per_token"] for row in rows if "bits_per_token" in row][-1]
    if read_evaluation(last) is None:
        pipeline.evaluate_generator(run, GeneratorEvaluation(samples=1000, twin=False, features=(FEATURES,)))
    held = read_evaluation(last)
    assert held is not None
    values = {card.metric: card.values for card in held.cards}
    found["FD(judge)"] = values["FD(judge)"]["distance"]
    found["class agreement"] = values["class agreement"]["share"]
    found[f"FD({FEATURES})"] = values[f"FD({FEATURES})"]["distance"]
    return found


def spread(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.4g} ± {deviation:.2g}"


def show(found: Mapping[str, list[Figures]], steps: int) -> None:
    """The table, and what the other arms differ by from the first, seed by seed."""
    names = list(found["raster"][0])
    print(f"\n{steps} steps, {len(found['raster'])} seeds, mean ± standard deviation\n")
    print(f"| | {' | '.join(names)} |")
    print(f"|---|{'---|' * len(names)}")
    for arm, runs in found.items():
        print(f"| {arm} | {' | '.join(spread([run[name] for run in runs]) for name in names)} |")
    for arm in list(found)[1:]:
        pairs = list(zip(found[arm], found["raster"], strict=True))
        differences = [spread([ours[name] - theirs[name] for ours, theirs in pairs]) for name in names]
        print(f"| {arm} - raster, seed by seed | {' | '.join(differences)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=420)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("ar-orders"))
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    for judge in asked.demo.glob("judge_*"):
        if not (asked.work / judge.name).exists():
            shutil.copytree(judge, asked.work / judge.name)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    found: dict[str, list[Figures]] = {arm: [] for arm in ARMS}
    for seed in range(asked.seeds):
        for arm in ARMS:
            began = time.perf_counter()
            run = train(asked.demo, asked.work, arm, seed, asked.steps)
            found[arm].append(figures(run))
            print(f"{arm}, seed {seed}: {time.perf_counter() - began:.0f} s, {found[arm][-1]}", flush=True)
    show(found, asked.steps)


if __name__ == "__main__":
    main()
