"""Bottlenecks at equal bits, steps and seeds on bundled photographs: PSNR, FD(judge), use of the levels.

    python benchmarks/tokenizer_comparison.py --out runs/comparison [--steps 500] [--seeds 0 1 2] [--table FILE.md]

Every run is an ordinary one (`ifsq.pipeline`): interrupted, the same command goes on. Several processes may share the
work: first ``--judge``, then ``--part 0/2`` and ``--part 1/2`` at once, at last ``--table FILE``, of what is there.
LPIPS enters where ``--lpips FILE`` gives VGG16.
"""

import argparse
import json
import math
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import torch

from ifsq import pipeline
from ifsq.config import build
from ifsq.data.images import size_text
from ifsq.evaluation import TokenizerEvaluation
from ifsq.experiment import TokenizerExperiment
from ifsq.metrics import ProtocolCard

DIM = 4
BITS = (2, 3, 4, 6)
VQ_BITS = (2, 3, 4)  # the 65^4 rows of 6 bits and their distances fit no small machine
FSQS = {
    "FSQ (tanh)": {"bound": "tanh", "cells": "paper"},
    "iFSQ": {"bound": "ifsq", "cells": "paper"},
    "iFSQ, equal cells": {"bound": "ifsq", "cells": "equal"},
    "iFSQ, calibrated": {"bound": "quantile", "cells": "equal"},
}
LARGEST_CODEBOOK = 2**16  # of VQ, for 4 bits a dimension


@dataclass(frozen=True)
class Run:
    """One bottleneck at one rate, trained from one seed."""

    name: str
    bits: int  # a dimension; 0: continuous
    seed: int
    quantizer: tuple[tuple[str, object], ...]

    @property
    def folder(self) -> str:
        plain = "".join(c for c in self.name if c.isalnum()).lower()
        return f"{plain}_{self.bits}bit_s{self.seed}"


def grid(seeds: list[int]) -> list[Run]:
    """All runs, the quick ones first: a search of 65536 codes takes most of a VQ's step."""
    runs: list[Run] = []
    for seed in seeds:
        runs.append(Run("AE", 0, seed, (("kind", "ae"), ("dim", DIM))))
        for bits in BITS:
            levels = [2**bits + 1] * DIM
            for name, options in FSQS.items():
                runs.append(Run(name, bits, seed, (("levels", levels), *options.items())))
    for bits in VQ_BITS:
        for seed in seeds:
            size = min((2**bits + 1) ** DIM, LARGEST_CODEBOOK)
            vq = {"kind": "vq", "dim": DIM, "codebook_size": size}
            runs.append(Run("VQ", bits, seed, tuple(vq.items())))
            kept_alive = {**vq, "ema": True, "revive_after": 20}
            runs.append(Run("VQ, averaged and revived", bits, seed, tuple(kept_alive.items())))
    return runs


def experiment(run: Run, out: Path, steps: int) -> TokenizerExperiment:
    """The demo's tokenizer with this bottleneck."""
    table = {
        "out": str(out / run.folder),
        "data": {"source": "bundled:photos", "size": 32},
        "tokenizer": {
            "conv": {"width": 64, "multipliers": [1, 1], "blocks": 1, "patch": 2, "groups": 8},
            "quantizer": dict(run.quantizer),
        },
        "train": {
            "steps": steps, "batch": 32, "seed": run.seed, "precision": "bf16", "ema": 0.99,
            "log_every": 100, "save_every": steps, "keep": 1, "optim": {"lr": 1e-3},
        },
    }  # fmt: skip
    return build(TokenizerExperiment, table, run.folder)


def measure(run: Run, out: Path, steps: int, lpips: str) -> list[ProtocolCard]:
    """Train and evaluate, or read what was measured before."""
    folder = out / run.folder
    if not (folder / "evaluation.json").is_file():
        pipeline.train_tokenizer(experiment(run, out, steps), "cpu")
        pipeline.evaluate_tokenizer(folder, "cpu", asked=TokenizerEvaluation(lpips=lpips))
    return [ProtocolCard.from_dict(card) for card in json.loads((folder / "evaluation.json").read_text())["cards"]]


def prepare_judge(out: Path) -> None:
    """Train the judge of these images beside the runs, so that parts do not train one each at the same time."""
    first = replace(experiment(Run("AE", 0, 0, (("kind", "ae"), ("dim", DIM))), out, 1), out=str(out / "one_step"))
    run = pipeline.train_tokenizer(first, "cpu")
    pipeline.evaluate_tokenizer(run, "cpu", asked=TokenizerEvaluation(count=2))


def table(runs: list[Run], measured: dict[str, list[ProtocolCard]], steps: int) -> str:
    """Mean and standard deviation over the seeds, a bottleneck and rate a row; the protocol below."""
    metrics = (("PSNR, dB", 2), ("SSIM", 4), ("LPIPS", 4), ("rFD(judge)", 2), ("level entropy / log2 L", 4))
    found = {folder: {card.metric: card for card in cards} for folder, cards in measured.items()}
    metrics = tuple(entry for entry in metrics if any(entry[0] in cards for cards in found.values()))
    lines = [
        f"# Bottlenecks of one tokenizer at equal bits: {steps} steps, mean ± standard deviation over seeds",
        "",
        "| bits a dimension | bits a position | bottleneck | seeds | " + " | ".join(name for name, _ in metrics) + " |",
        "|" + "---|" * (4 + len(metrics)),
    ]
    for bits, name in {(run.bits, run.name): None for run in sorted(runs, key=lambda run: run.bits)}:
        group = [run for run in runs if (run.bits, run.name) == (bits, name) and run.folder in found]
        cells = []
        for metric, digits in metrics:
            values = (
                [found[run.folder][metric].values["mean"] for run in group if metric in found[run.folder]]
                if (metric != "rFD(judge)")
                else [found[run.folder][metric].values["distance"] for run in group]
            )
            spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.{digits}f}{spread}" if values else "-")
        seeds = ", ".join(str(run.seed) for run in group)
        if group:
            lines.append(f"| {bits or '-'} | {_position(group[0])} | {name} | {seeds} | " + " | ".join(cells) + " |")
    cards = [card for cards in measured.values() for card in cards]
    features = {card.features for card in cards if card.metric == "rFD(judge)"}
    if len(features) != 1:
        raise SystemExit(f"judges {sorted(features)}: expected one for all runs")
    first = cards[0]
    lines += [
        "",
        f"{first.reference}, {first.n} images of {size_text(first.size)} px, {first.crop}; features {features.pop()};"
        f" {first.dtype}; ifsq {first.code_version.partition('+')[0]}, torch {torch.__version__};"
        f" {platform.processor() or platform.machine()}.",
    ]
    return "\n".join(lines) + "\n"


def _position(run: Run) -> str:
    options = dict(run.quantizer)
    if run.bits == 0:
        return "continuous"
    size = options.get("codebook_size")
    return f"{math.log2(size) if isinstance(size, int) else DIM * math.log2(2**run.bits + 1):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--part", default="0/1", help="K/N: every N-th run from the K-th")
    parser.add_argument("--judge", action="store_true", help="train the judge and stop: before parts that run at once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lpips", default="", help="file of torchvision's VGG16")
    parser.add_argument("--table", type=Path, default=None, help="write the table of all runs there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.judge:
        return prepare_judge(options.out)
    runs, (part, parts) = grid(options.seeds), map(int, options.part.split("/"))
    measured = {}
    for run in runs[part::parts]:
        if options.table and not (options.out / run.folder / "evaluation.json").is_file():
            print(f"{run.folder}: not measured yet, its row has a seed less")
            continue
        measured[run.folder] = measure(run, options.out, options.steps, options.lpips)
        print(run.folder, {card.metric: dict(card.values) for card in measured[run.folder]}, flush=True)
    if options.table:
        options.table.write_text(table(runs, measured, options.steps))
    return None


if __name__ == "__main__":
    main()
