"""One DiT on the codes of five bottlenecks, three seeds, equal FLOPs: Fréchet distances and class agreement.

    OMP_NUM_THREADS=1 python benchmarks/diffusion_tokenizers.py FOLDER > table.md

The recipes of ``experiments/demo`` with fewer steps, the same for all, to fit an hour of one shared core: the tokenizer
(0.7 M parameters, 500 steps in place of 800, bundled photographs of 32 px) with iFSQ or FSQ of 17 levels in 4
dimensions, VQ of 16384 codes (averaged and revived), AE or VAE of 4 dimensions; its codes; the DiT (1.3 M parameters,
1000 steps in place of 1840). Tokenizer and DiT share the training seed. All are sampled alike (guidance 2, 6 steps of
Heun, 1000 images, sampling seed 0), the quantized ones with codes snapped to the nearest that the tokenizer has and
with the codes as they come. A cell that is done is not run again.

Expected, before any run: AE and VAE 0.3 dB above iFSQ, FSQ and VQ beside it. The DiT's own error is most of FD, so AE,
VAE, FSQ and iFSQ lie within the spread of the seeds and the paper's order is not told apart; VQ is 5 % worse, because
neighbours in its codebook say little of each other. Snapping lowers FD of the FSQs by less than 2 %, of VQ by 5 to 10
%, whose decoder never saw anything between its rows. Class agreement is 95 to 99 % everywhere.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ifsq import pipeline
from ifsq.config import build, merge, read_toml
from ifsq.evaluation import GeneratorEvaluation
from ifsq.evaluation.record import read_evaluation
from ifsq.experiment import DiffusionExperiment, TokenizerExperiment
from ifsq.metrics import ProtocolCard
from ifsq.store.run import Run
from ifsq.training.log import Silent

SEEDS = (0, 1, 2)
TOKENIZER_STEPS, STEPS, SAMPLES = 500, 1000, 1000
NETWORK = "efficientnet-lite0@64"
RECIPES = Path(__file__).resolve().parents[1] / "experiments" / "demo"
BOTTLENECKS: dict[str, dict[str, Any]] = {
    "iFSQ": {"levels": [17] * 4, "bound": "ifsq"},
    "FSQ": {"levels": [17] * 4, "bound": "tanh"},
    "VQ": {"kind": "vq", "dim": 4, "codebook_size": 16384, "ema": True, "revive_after": 20},
    "AE": {"kind": "ae", "dim": 4},
    "VAE": {"kind": "kl", "dim": 4, "kl_weight": 1e-6},
}
CONTINUOUS = ("AE", "VAE")
ALONE = ("PSNR, dB", f"FD({NETWORK}), tokenizer alone", "FD(judge), tokenizer alone")
DRAWN = (f"FD({NETWORK})", "FD(judge)", "class agreement")
DIGITS = {"PSNR, dB": 2, "class agreement": 3, "FD(judge)": 2, "FD(judge), tokenizer alone": 2}
STUDENT = 4.303  # 97.5 % of Student's t with the 2 degrees of freedom of three seeds

Figures = dict[str, float]


class Lines(Silent):
    """What is said of runs, on stderr."""

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def cell(folder: Path, name: str, seed: int) -> dict[str, Figures]:
    """Figures of one bottleneck and seed by how its codes are snapped: made, or read where they were made before."""
    kept = folder / f"{name.lower()}{seed}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    began, out, lines = time.process_time(), str(folder / f"{name.lower()}{seed}"), Lines()
    train = {"seed": seed, "steps": TOKENIZER_STEPS, "save_every": TOKENIZER_STEPS}
    recipe = read_toml(RECIPES / "tokenizer.toml")
    recipe["tokenizer"]["quantizer"] = BOTTLENECKS[name]
    asked = build(TokenizerExperiment, merge(recipe, {"out": f"{out}_tokenizer", "train": train}), name)
    tokenizer = pipeline.train_tokenizer(asked, "cpu", lines)
    shared = values(pipeline.evaluate_tokenizer(tokenizer, "cpu", lines))
    pipeline.encode(tokenizer, "bundled:photos", Path(f"{out}_codes"), device="cpu", reporter=lines)
    shared["seconds of tokenizer and codes"] = time.process_time() - began
    began = time.process_time()
    places = {"out": f"{out}_diffusion", "tokenizer": str(tokenizer), "codes": f"{out}_codes"}
    train = {"seed": seed, "steps": STEPS, "save_every": STEPS, "keep_every": 0}
    generator = pipeline.train_generator(
        build(DiffusionExperiment, merge(read_toml(RECIPES / "diffusion.toml"), {**places, "train": train}), name),
        "cpu",
        lines,
    )
    shared["seconds of the DiT"] = time.process_time() - began
    evaluation = GeneratorEvaluation(samples=SAMPLES, twin=False, features=(NETWORK,))
    found = {}
    for snap in ("none",) if name in CONTINUOUS else ("nearest", "none"):
        measured = pipeline.evaluate_generator(generator, evaluation, "cpu", lines, {"snap": snap})
        (one,) = measured.values()
        asked_for = next(card.function_evaluations for card in one.cards if card.metric == "class agreement")
        costs = {"training FLOP": float(one.flops or 0), "network evaluations an image": float(asked_for)}
        found[snap] = {**shared, **values(one.cards), **costs}
    kept.write_text(json.dumps(found))
    return found


def values(cards: Sequence[ProtocolCard]) -> Figures:
    """The first value of each card, by its metric."""
    return {card.metric: float(next(iter(card.values.values()))) for card in cards}


def rows(found: dict[str, list[dict[str, Figures]]]) -> dict[str, list[Figures]]:
    """Figures of all seeds by the name of the row."""
    called = {"nearest": "snapped", "none": "not snapped"}
    return {
        name if name in CONTINUOUS else f"{name}, {called[snap]}": [one[snap] for one in seeds]
        for name, seeds in found.items()
        for snap in seeds[0]
    }


def spread(metric: str, numbers: Sequence[float]) -> str:
    digits = DIGITS.get(metric, 0)
    return f"{statistics.mean(numbers):.{digits}f} ± {statistics.stdev(numbers):.{digits}f}"


def compared(metric: str, mine: Sequence[Figures], other: Sequence[Figures]) -> str:
    """Mean of the differences seed by seed, their 95 % interval, and whether that leaves out zero."""
    digits = DIGITS.get(metric, 0) + 1
    less = [a[metric] - b[metric] for a, b in zip(mine, other, strict=True)]
    mean, half = statistics.mean(less), STUDENT * statistics.stdev(less) / len(less) ** 0.5
    apart = "" if abs(mean) > half else ", not told apart"
    return f"{mean:+.{digits}f} ({mean - half:+.{digits}f} to {mean + half:+.{digits}f}{apart})"


def table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    return "\n".join(head + [f"| {' | '.join(line)} |" for line in lines]) + "\n"


def main(folder: Path) -> None:
    """See the module's docstring."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Figures]]] = {name: [] for name in BOTTLENECKS}
    for seed in SEEDS:
        for name in BOTTLENECKS:
            found[name].append(cell(folder, name, seed))
            print(f"{name} {seed}: {found[name][-1]}", file=sys.stderr, flush=True)
    every = rows(found)
    (flops,) = {one["training FLOP"] for seeds in every.values() for one in seeds}
    (evaluations,) = {one["network evaluations an image"] for seeds in every.values() for one in seeds}
    version = read_evaluation(Run.open(folder / "ifsq0_diffusion"))
    assert version is not None
    print(
        f"Every DiT: {flops:.3e} FLOP of training, {evaluations:.0f} network evaluations an image;"
        f" ifsq {version.cards[0].code_version}.\n"
    )
    print(
        table(
            ["codes", *ALONE, *DRAWN],
            [[name, *(spread(metric, [one[metric] for one in seeds]) for metric in ALONE + DRAWN)]
             for name, seeds in every.items()],
        )
    )  # fmt: skip
    pairs = [(name, "iFSQ, snapped") for name in every if name.endswith(", snapped") or name in CONTINUOUS]
    pairs = [pair for pair in pairs if pair[0] != pair[1]] + [("FSQ, snapped", "AE")]
    pairs += [(f"{name}, not snapped", f"{name}, snapped") for name in BOTTLENECKS if name not in CONTINUOUS]
    print(
        table(
            ["difference, seed by seed", *DRAWN],
            [[f"{a} less {b}", *(compared(metric, every[a], every[b]) for metric in DRAWN)] for a, b in pairs],
        )
    )
    print(
        table(
            ["codes, seeds 0, 1, 2", *DRAWN],
            [[name, *(", ".join(f"{one[metric]:.{DIGITS.get(metric, 0)}f}" for one in seeds) for metric in DRAWN)]
             for name, seeds in every.items()],
        )
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
