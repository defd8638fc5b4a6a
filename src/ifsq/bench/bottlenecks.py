"""Bottlenecks of one tokenizer at equal bits, steps and seeds: the runs, how they are measured, and their table."""

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from ifsq import pipeline
from ifsq.config import InputError, build
from ifsq.data.images import size_text
from ifsq.evaluation import TokenizerEvaluation
from ifsq.evaluation.levels import COMPARED_QUANTIZERS
from ifsq.evaluation.record import read_evaluation
from ifsq.experiment import TokenizerExperiment
from ifsq.metrics import ProtocolCard
from ifsq.store.run import EVALUATION, Run

DIM = 4
BITS = (2, 3, 4, 6)
VQ_BITS = (2, 3, 4)  # the 65^4 rows of 6 bits and their distances fit no small machine
FSQS = {**COMPARED_QUANTIZERS, "iFSQ, calibrated": {"bound": "quantile", "cells": "equal"}}
LARGEST_CODEBOOK = 2**16  # of VQ, for 4 bits a dimension
JUDGED = "rFD(judge)"
METRICS = (("PSNR, dB", 2), ("SSIM", 4), ("LPIPS", 4), (JUDGED, 2), ("level entropy / log2 L", 4))  # digits shown


@dataclass(frozen=True)
class Setting:
    """One bottleneck at one rate, trained from one seed.

    bits       a dimension; 0: continuous
    quantizer  its options, as `tokenizer.quantizer` of an experiment
    """

    name: str
    bits: int
    seed: int
    quantizer: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """Name of its run."""
        plain = "".join(c for c in self.name if c.isalnum()).lower()
        return f"{plain}_{self.bits}bit_s{self.seed}"

    @property
    def position(self) -> str:
        """Bits of a grid position, in words."""
        if self.bits == 0:
            return "continuous"
        codes = self.quantizer.get("codebook_size", (2**self.bits + 1) ** DIM)
        return f"{math.log2(codes):.2f}"

    def experiment(self, out: Path, steps: int) -> TokenizerExperiment:
        """The demo's tokenizer with this bottleneck, to be trained in a folder below ``out``."""
        table = {
            "out": str(out / self.folder),
            "data": {"source": "bundled:photos", "size": 32},
            "tokenizer": {
                "conv": {"width": 64, "multipliers": [1, 1], "blocks": 1, "patch": 2, "groups": 8},
                "quantizer": dict(self.quantizer),
            },
            "train": {
                "steps": steps, "batch": 32, "seed": self.seed, "precision": "auto", "ema": 0.99,
                "log_every": 100, "save_every": steps, "keep": 1, "optim": {"lr": 1e-3},
            },
        }  # fmt: skip
        return build(TokenizerExperiment, table, self.folder)


def grid(seeds: Sequence[int]) -> list[Setting]:
    """All settings, the quick ones first: a search of 65536 codes takes most of a VQ's step."""
    settings: list[Setting] = []
    for seed in seeds:
        settings.append(Setting("AE", 0, seed, {"kind": "ae", "dim": DIM}))
        for bits in BITS:
            levels = [2**bits + 1] * DIM
            settings += [Setting(name, bits, seed, {"levels": levels, **options}) for name, options in FSQS.items()]
    for bits in VQ_BITS:
        for seed in seeds:
            vq = {"kind": "vq", "dim": DIM, "codebook_size": min((2**bits + 1) ** DIM, LARGEST_CODEBOOK)}
            settings.append(Setting("VQ", bits, seed, vq))
            settings.append(Setting("VQ, averaged and revived", bits, seed, {**vq, "ema": True, "revive_after": 20}))
    return settings


def measured(setting: Setting, out: Path) -> tuple[ProtocolCard, ...]:
    """The cards of a setting whose run is in ``out``; none where it was not measured yet. Raises InputError."""
    folder = out / setting.folder
    evaluation = read_evaluation(Run.open(folder)) if (folder / EVALUATION).is_file() else None
    return evaluation.cards if evaluation else ()


def measure(setting: Setting, out: Path, steps: int, lpips: str = "") -> tuple[ProtocolCard, ...]:
    """Train and evaluate, or read what was measured before; ``lpips`` as in `TokenizerEvaluation`.

    Raises InputError.
    """
    if not measured(setting, out):
        run = pipeline.train_tokenizer(setting.experiment(out, steps), "cpu")
        pipeline.evaluate_tokenizer(run, "cpu", None, TokenizerEvaluation(lpips=lpips))
    return measured(setting, out)


def prepare_judge(out: Path) -> None:
    """Train the judge of these images beside the runs, so that parts do not train one each at the same time."""
    first = replace(grid([0])[0].experiment(out, 1), out=str(out / "one_step"))
    pipeline.evaluate_tokenizer(pipeline.train_tokenizer(first, "cpu"), "cpu", None, TokenizerEvaluation(count=2))


def table(settings: Sequence[Setting], cards: Mapping[str, Sequence[ProtocolCard]], steps: int) -> str:
    """Mean and standard deviation over the seeds in Markdown, a bottleneck and rate a row; the protocol below.

    cards  what was measured, by the settings' folders; a setting without any is left out

    Raises InputError where not all were judged by the same network.
    """
    every = [card for one in cards.values() for card in one]
    features = {card.features for card in every if card.metric == JUDGED}
    if len(features) != 1:
        raise InputError(f"judges {sorted(features)}: expected one for all runs")
    metrics = [(name, digits) for name, digits in METRICS if any(card.metric == name for card in every)]
    lines = [
        f"# Bottlenecks of one tokenizer at equal bits: {steps} steps, mean ± standard deviation over seeds",
        "",
        "| bits a dimension | bits a position | bottleneck | seeds | " + " | ".join(name for name, _ in metrics) + " |",
        "|" + "---|" * (4 + len(metrics)),
    ]
    for bits, name in {(setting.bits, setting.name): None for setting in sorted(settings, key=lambda one: one.bits)}:
        group = [one for one in settings if (one.bits, one.name) == (bits, name) and cards.get(one.folder)]
        if not group:
            continue
        figures = [_spread([card for one in group for card in cards[one.folder]], *metric) for metric in metrics]
        seeds = ", ".join(str(one.seed) for one in group)
        lines.append(f"| {bits or '-'} | {group[0].position} | {name} | {seeds} | {' | '.join(figures)} |")
    first = every[0]
    lines += [
        "",
        f"{first.reference}, {first.n} images of {size_text(first.size)} px, {first.crop}; features {features.pop()};"
        f" {first.dtype}; ifsq {first.code_version.partition('+')[0]}, torch {torch.__version__};"
        f" {platform.processor() or platform.machine()}.",
    ]
    return "\n".join(lines) + "\n"


def _spread(cards: Sequence[ProtocolCard], metric: str, digits: int) -> str:
    """Mean and standard deviation of one metric over the seeds, in words."""
    value = "distance" if metric == JUDGED else "mean"
    values = [card.values[value] for card in cards if card.metric == metric]
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}" if values else "-"
