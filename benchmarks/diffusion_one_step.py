"""One step of average velocities (`diffusion.objective = "mean_flow"`) against many of flow matching, on demo's codes.

    python benchmarks/diffusion_one_step.py --demo runs/demo [--steps 300] [--equal 130] [--seeds 3] [--work one-step]

Trains the demo's diffusion generator by its own experiment in three arms, seed by seed: ``flow matching``; ``mean
flow``, for as many steps; ``mean flow, equal time``, for ``--equal`` steps. FD(judge) and class agreement are of 500
samples by `ifsq generator eval`, at guidance 2, which mean flow is trained for and told; beside them stands the
finished generator of the demo. Then what the lattice forgives: how far its solutions, and those of mean flow, are from
250 Euler steps of the same model from the same noise, as the codes come and snapped; and the time of drawing. Prints
tables in Markdown. What is there already is not trained or measured again.
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from ifsq import pipeline
from ifsq.bench.shipped import experiment_file
from ifsq.evaluation import GeneratorEvaluation
from ifsq.experiment import load_generator_experiment
from ifsq.sources import load_pair
from ifsq.store.run import Run

GUIDANCE, SAMPLES = 2.0, 500
MEAN = ["--diffusion.objective", "mean_flow", "--diffusion.derivative", "difference",
        "--diffusion.trained_guidance", "3", "--diffusion.time_sampling", "uniform"]  # fmt: skip
ARMS: dict[str, list[str]] = {"flow matching": [], "mean flow": MEAN, "mean flow, equal time": MEAN}
EULER = [("euler", 1), ("euler", 2), ("euler", 4), ("euler", 25)]
ASKED = {
    "flow matching": EULER,
    "mean flow": [("mean", 1), ("mean", 2), ("mean", 4)],
    "mean flow, equal time": [("mean", 1)],
}
REFERENCE, IMAGES = 250, 16
Rows = dict[tuple[str, str, int], list[dict[str, float]]]


def train(demo: Path, work: Path, arm: str, seed: int, steps: int) -> tuple[Path, float]:
    """The run of an arm, and the seconds of processor time that it took; those of an earlier call as noted there."""
    folder = work / f"{arm.replace(', ', '_').replace(' ', '_')}_{steps}_{seed}"
    places = ["--out", str(folder), "--tokenizer", str(demo / "tokenizer"), "--codes", str(demo / "codes")]
    length = ["--train.steps", str(steps), "--train.seed", str(seed), "--train.save_every", str(steps)]
    sampling = ["--sampling.guidance", "2", "--sampling.solver", "euler", "--sampling.steps", "25"]
    noted, began = folder.with_suffix(".seconds"), time.process_time()
    overrides = [*ARMS[arm], *places, *length, *sampling]
    run = pipeline.train_generator(load_generator_experiment(experiment_file("demo/diffusion.toml"), overrides))
    if not noted.exists():
        noted.write_text(str(time.process_time() - began))
    return run, float(noted.read_text())


def figures(run: Path, solver: str, steps: int) -> dict[str, float]:
    """FD(judge), class agreement and evaluations of the network an image."""
    noted = run / f"measured_{solver}_{steps}.json"
    if not noted.exists():
        asked = GeneratorEvaluation(samples=SAMPLES, twin=False, features=())
        sampling = {"guidance": GUIDANCE, "solver": solver, "steps": steps}
        (found,) = pipeline.evaluate_generator(run, asked, sampling=sampling).values()
        cards = {card.metric: card for card in found.cards}
        distance, agreement = cards["FD(judge)"], cards["class agreement"]
        values = {"FD(judge)": distance.values["distance"], "class agreement": agreement.values["share"]}
        noted.write_text(json.dumps(values | {"evaluations": distance.function_evaluations}))
    return json.loads(noted.read_text())


@torch.no_grad()
def forgiven(run: Path, seed: int, asked: list[tuple[str, int]]) -> list[dict[str, float]]:
    """How far solutions of the same noise are from that of many steps, in codes and in pictures."""
    noted = run / f"forgiven_{seed}.json"
    if noted.exists():
        return json.loads(noted.read_text())
    pair = load_pair(Run.open(run), torch.device("cpu"))
    model, tokenizer = pair.generator, pair.tokenizer
    spec: Any = model.spec
    labels = torch.arange(IMAGES) % model.num_classes

    def solve(solver: str, steps: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        drawn = model.sample(labels, seed=seed, guidance=GUIDANCE, solver=solver, steps=steps, snap="none")
        digits = spec.codes_to_digits(drawn.codes)
        pictures = [tokenizer.decode(codes).clamp(-1, 1) for codes in (drawn.codes, spec.digits_to_codes(digits))]
        return drawn.codes, digits, pictures

    codes, digits, pictures = solve("euler", REFERENCE)
    cell = 2 / (spec.levels[0] - 1)
    found = []
    for solver, steps in asked:
        own_codes, own_digits, own_pictures = solve(solver, steps)
        found.append(
            {
                "error of codes, cells": float((own_codes - codes).square().mean().sqrt()) / cell,
                "below half a cell": float(((own_codes - codes).abs() < cell / 2).float().mean()),
                "digits equal": float((own_digits == digits).float().mean()),
                "dB as they come": psnr(own_pictures[0], pictures[0]),
                "dB snapped": psnr(own_pictures[1], pictures[1]),
            }
        )
    noted.write_text(json.dumps(found))
    return found


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of images in [-1, 1], by the mean square over all of them."""
    return float(10 * torch.log10(4 / (one - other).square().mean()))


def drawing_times(runs: dict[str, Path], repeats: int = 5) -> dict[tuple[str, str, int], float]:
    """Processor time of drawing and decoding the images, the median, arms in turn."""
    pairs = {arm: load_pair(Run.open(run), torch.device("cpu")) for arm, run in runs.items()}
    labels = torch.arange(IMAGES) % 10
    taken: dict[tuple[str, str, int], list[float]] = {}
    for _ in range(repeats):
        for arm, pair in pairs.items():
            for solver, steps in ASKED[arm]:
                began = time.process_time()
                with torch.no_grad():
                    drawn = pair.generator.sample(labels, seed=0, guidance=GUIDANCE, solver=solver, steps=steps)
                    pair.tokenizer.decode_sampled(drawn)
                taken.setdefault((arm, solver, steps), []).append(time.process_time() - began)
    return {key: statistics.median(values) for key, values in taken.items()}


def spread(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{statistics.mean(values):.4g}" + (f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else "")


def show(rows: Rows) -> None:
    """A table of figures by arm, solver and steps."""
    names = list(next(iter(rows.values()))[0])
    print(f"\n| arm | solver | steps | {' | '.join(names)} |\n|---|---|---|{'---|' * len(names)}")
    for (arm, solver, steps), found in rows.items():
        cells = " | ".join(spread([each[name] for each in found]) for name in names)
        print(f"| {arm} | {solver} | {steps} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--equal", type=int, default=130)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("one-step"))
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    demo = "the demo's own, 1840 steps"
    rooms = (asked.demo / name for name in ("tokenizer", "codes", "diffusion"))
    for each in (*asked.demo.glob("judge_*"), *rooms):  # evaluations are written beside them
        if not (asked.work / each.name).exists():
            shutil.copytree(each, asked.work / each.name)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    quality: Rows = {}
    lattice: Rows = {}
    runs: dict[str, Path] = {}

    def note(rows: Rows, arm: str, solver: str, n: int, found: dict[str, float]) -> None:
        rows.setdefault((arm, solver, n), []).append(found)
        print(f"{arm}, {solver}, {n} steps: {found}", flush=True)

    for seed in range(asked.seeds):
        for arm in ARMS:
            steps = asked.equal if "equal" in arm else asked.steps
            run, seconds = train(asked.demo, asked.work, arm, seed, steps)
            print(f"{arm}, seed {seed}: {steps} steps, {seconds:.0f} s of processor time", flush=True)
            runs.setdefault(arm, run)
            for solver, n in ASKED[arm]:
                note(quality, arm, solver, n, figures(run, solver, n))
        for arm, run in ((demo, asked.work / "diffusion"), ("mean flow", runs["mean flow"])):
            solvers = ASKED.get(arm, EULER)
            for (solver, n), one in zip(solvers, forgiven(run, seed, solvers), strict=True):
                note(lattice, arm, solver, n, one)
    for solver, n in EULER:
        note(quality, demo, solver, n, figures(asked.work / "diffusion", solver, n))
    show(quality)
    show(lattice)
    times = drawing_times(runs)
    whole = times["flow matching", "euler", 25]
    for (arm, solver, n), taken in times.items():
        print(f"{arm}, {solver}, {n} steps: {taken / whole:.3f} of the time of 25 Euler steps of flow matching")


if __name__ == "__main__":
    main()
