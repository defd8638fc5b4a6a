"""Solvers and times of the diffusion generator: the error that they leave, the distances that their samples have.

    python benchmarks/diffusion_solvers.py errors ROWS.jsonl RUN
    python benchmarks/diffusion_solvers.py distances ROWS.jsonl RUN

RUN is a generator run with its tokenizer and its judge beside it, as ``runs/demo/diffusion``. Guidance is 2 everywhere,
so an evaluation of the guided velocity asks the network twice; the tables state both.

``errors``: root of the mean square, over normalised codes of 8 images a seed, of where a solver ends less where 60
steps of order 4 end, which are held against 1000 steps of Adams and Bashforth's method. Fitted times are fitted to 8
noises that no sampling draws. ``distances``: Fréchet distance through the judge and class agreement of 160 samples a
seed, the distance also over that of 250 steps of Euler's method with the same labels and random numbers, so that what
they have in common cancels; the share of digits that are those of these; and the same without snapping to the lattice.
Every cell is a line of ROWS.jsonl; what is there is not drawn again.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ifsq.codes import CodeSpec
from ifsq.data import to_uint8
from ifsq.evaluation import GeneratorEvaluation
from ifsq.evaluation.generator import hold
from ifsq.generators import Generator
from ifsq.generators.diffusion import DiffusionGenerator, DiffusionSampling
from ifsq.generators.diffusion.grids import fit_generator_times
from ifsq.generators.diffusion.solvers import rk4, time_grid
from ifsq.generators.streams import normals
from ifsq.metrics import FeatureStatistics
from ifsq.metrics.distribution import frechet_from_statistics
from ifsq.pretrained.network import FeatureNetwork
from ifsq.sources import Pair, load_pair, open_codes
from ifsq.store.run import Run
from ifsq.training.distributed import join
from ifsq.training.log import Silent

GUIDANCE = 2.0
EVALUATIONS = {"euler": 1, "ab2": 1, "dpm++2m": 1, "heun": 2, "midpoint": 2, "rk4": 4}
BUDGETS = (8, 16, 32)
GRIDS = {"even": 0.0, "shift 0.5": 0.5}
FITTED = ("ab2", "euler")
IMAGES, SEEDS, ITERATIONS, FINE = 8, (0, 1, 2), 15, 60

DRAWN = {
    "euler, 250 steps": DiffusionSampling(GUIDANCE, 250, "euler"),
    "ab2, 16 steps": DiffusionSampling(GUIDANCE, 16, "ab2"),
    "ab2, 16 steps, shift 0.5": DiffusionSampling(GUIDANCE, 16, "ab2", 0.5),
    "ab2, 12 steps, shift 0.5": DiffusionSampling(GUIDANCE, 12, "ab2", 0.5),
    "ab2, 8 steps, shift 0.5": DiffusionSampling(GUIDANCE, 8, "ab2", 0.5),
    "heun, 6 steps": DiffusionSampling(GUIDANCE, 6, "heun"),
    "euler, 16 steps": DiffusionSampling(GUIDANCE, 16, "euler"),
    "euler, 25 steps": DiffusionSampling(GUIDANCE, 25, "euler"),
    "ab2, 12 steps": DiffusionSampling(GUIDANCE, 12, "ab2"),
    "dpm++2m, 16 steps": DiffusionSampling(GUIDANCE, 16, "dpm++2m"),
    "midpoint, 8 steps": DiffusionSampling(GUIDANCE, 8, "midpoint"),
}
FIRST = 3  # of these, which are drawn of all seeds before the others
SAMPLES, AT_ONCE = 160, 16
JUDGED = "FD(judge)"


def errors(place: Path, folder: str) -> None:
    """Measure what ``place`` lacks, and print the table of errors: mean and range over the seeds."""
    model = Generator.from_pretrained(folder)
    assert isinstance(model, DiffusionGenerator)
    solved = list(_solutions(model))
    others = [name for name in EVALUATIONS if name not in FITTED]
    wanted = [*product(FITTED, (*GRIDS, "fitted"), BUDGETS), *product(others, GRIDS, BUDGETS)]
    for name, grid, budget in wanted:
        if any((row["solver"], row["grid"], row["budget"]) == (name, grid, budget) for row in _rows(place)):
            continue
        sampling = DiffusionSampling(GUIDANCE, budget // EVALUATIONS[name], name, GRIDS.get(grid, 0.0))
        if grid == "fitted":
            sampling = replace(sampling, times=fit_generator_times(model, sampling, IMAGES, ITERATIONS).times)
        found = [_error(model, sampling, noise, target) for noise, target in solved]
        _keep(place, {"solver": name, "grid": grid, "budget": budget, "errors": found, "times": sampling.times})
    rows = {(row["solver"], row["grid"], row["budget"]): row["errors"] for row in _rows(place)}
    print("| solver | times | " + " | ".join(f"{n} ({2 * n})" for n in BUDGETS) + " |\n|---|---|---|---|---|")
    for name, grid in product(EVALUATIONS, (*GRIDS, "fitted")):
        cells = [_spread(rows[name, grid, n], 4) if (name, grid, n) in rows else "" for n in BUDGETS]
        print(f"| {name} | {grid} | " + " | ".join(cells) + " |" if any(cells) else "", end="\n" if any(cells) else "")
    print("\n| even over fitted |" + "".join(f" {n} |" for n in BUDGETS) + "\n|---|---|---|---|")
    for name in FITTED:
        pairs = [(rows[name, "even", n], rows[name, "fitted", n]) for n in BUDGETS if (name, "fitted", n) in rows]
        shares = [_spread([even / one for even, one in zip(*pair, strict=True)], 2) for pair in pairs]
        print(f"| {name} | " + " | ".join(shares) + " |")


def _labels(model: DiffusionGenerator) -> Tensor:
    return torch.arange(IMAGES) % model.num_classes


@torch.inference_mode()
def _solutions(model: DiffusionGenerator) -> Iterator[tuple[Tensor, Tensor]]:
    """Noise of every seed and where it ends in a fine solution."""
    shape, guided = (model.code_dim, *model.spec.grid), DiffusionSampling(GUIDANCE)
    for seed in SEEDS:
        noise = normals(seed, 0, IMAGES, model.code_dim * model.spec.tokens).unflatten(1, shape)
        target = rk4(lambda x, t: model.velocity(x, t, _labels(model), guided), noise, time_grid(FINE))
        if seed == 0:
            off = _error(model, DiffusionSampling(GUIDANCE, 1000, "ab2"), noise[:2], target[:2])
            print(f"{FINE} steps of order 4 against 1000 of Adams and Bashforth's method: {off:.2g}", file=sys.stderr)
        yield noise, target


@torch.inference_mode()
def _error(model: DiffusionGenerator, sampling: DiffusionSampling, noise: Tensor, target: Tensor) -> float:
    labels = _labels(model)[: len(noise)]
    found = sampling.solve(lambda x, t: model.velocity(x, t, labels, sampling), noise, model.path)
    return float((found - target).square().mean().sqrt())


def distances(place: Path, folder: str) -> None:
    """Measure what ``place`` lacks, and print the tables of distances and of snapping."""
    _measure(place, folder)
    rows = {(row["seed"], row["drawn"]): row for row in _rows(place)}
    first = next(iter(DRAWN))

    def cell(drawn: str, name: str, digits: int, ratio: bool = False) -> str:
        own = [row for (_, other), row in rows.items() if other == drawn and name in row]
        of = [float(row[name]) / (float(rows[row["seed"], first][name]) if ratio else 1) for row in own]
        return _spread(of, digits) if of else ""

    print(f"| samples | network evaluations | {JUDGED} | over euler's | agreement | same codes |")
    print("|---|---|---|---|---|---|")
    for drawn in dict.fromkeys(drawn for _, drawn in rows):
        cells = (
            cell(drawn, JUDGED, 3),
            cell(drawn, JUDGED, 3, True),
            cell(drawn, "agreement", 3),
            cell(drawn, "same", 3),
        )
        print(f"| {drawn} | {rows[0, drawn]['evaluations']} | " + " | ".join(cells) + " |")
    print(f"\n| samples | {JUDGED}, snapped | not snapped | agreement, snapped | not snapped |\n|---|---|---|---|---|")
    for drawn in dict.fromkeys(drawn for _, drawn in rows):
        names = JUDGED, f"{JUDGED}, not snapped", "agreement", "agreement, not snapped"
        print(f"| {drawn} | " + " | ".join(cell(drawn, name, 3) for name in names) + " |")


def _measure(place: Path, folder: str) -> None:
    with join("cpu") as world:
        run = Run.open(Path(folder))
        pair = load_pair(run, world.device)
        model = pair.generator
        assert isinstance(model, DiffusionGenerator)
        assert isinstance(model.spec, CodeSpec)
        asked = GeneratorEvaluation(samples=SAMPLES, twin=False, features=())
        held = hold(run, pair, open_codes(run, model), asked, DiffusionSampling(), world, Silent())
        names, fine = list(DRAWN), dict[int, Tensor]()
        for name, seed in [*product(names[:FIRST], SEEDS), *product(names[FIRST:], SEEDS)]:
            if any((row["seed"], row["drawn"]) == (seed, name) for row in _rows(place)):
                continue
            codes = _codes(model, held.labels, DRAWN[name], seed)
            digits = model.spec.codes_to_digits(codes)
            kept = place.with_name(f"{place.stem}_{seed}.pt")
            if name == names[0]:
                torch.save(digits, kept)
            fine[seed] = fine[seed] if seed in fine else torch.load(kept)
            row: dict[str, Any] = {"seed": seed, "drawn": name, "evaluations": model.cost(DRAWN[name])}
            row["same"] = float((digits == fine[seed]).float().mean())
            for ending, shown in (("", model.spec.digits_to_codes(digits)), (", not snapped", codes)):
                seen, row[f"agreement{ending}"] = _seen(pair, held.looks[0].network, shown, held.labels)
                row[f"{JUDGED}{ending}"] = frechet_from_statistics(seen, held.views[0].pooled)
            _keep(place, row)


@torch.inference_mode()
def _codes(model: DiffusionGenerator, labels: Tensor, sampling: DiffusionSampling, seed: int) -> Tensor:
    """Codes of images, not snapped."""
    sampling, starts = replace(sampling, snap="none"), range(0, len(labels), AT_ONCE)
    drawn = (model.sample(labels[at : at + AT_ONCE], sampling, seed=seed, first=at).codes for at in starts)
    return torch.cat([one for one in drawn if one is not None])


@torch.inference_mode()
def _seen(pair: Pair, judge: FeatureNetwork, codes: Tensor, labels: Tensor) -> tuple[FeatureStatistics, float]:
    """The judge's features of the images of codes, and how often it sees the class that was asked for."""
    seen, right = FeatureStatistics(judge.widths["features"]), 0
    for part, asked in zip(codes.split(AT_ONCE), labels.split(AT_ONCE), strict=True):
        images = torch.from_numpy(to_uint8(pair.tokenizer.decode(part))).movedim(-1, 1)
        found = judge(images, ("features", "scores"))
        seen.add(found["features"])
        right += int((found["scores"].argmax(dim=1) == asked).sum())
    return seen, right / len(labels)


def _keep(place: Path, row: dict[str, Any]) -> None:
    with place.open("a") as file:
        print(json.dumps(row), file=file)


def _rows(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in place.read_text().splitlines()] if place.exists() else []


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{sum(values) / len(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    if sys.argv[1] == "errors":
        errors(Path(sys.argv[2]), sys.argv[3])
    else:
        distances(Path(sys.argv[2]), sys.argv[3])
