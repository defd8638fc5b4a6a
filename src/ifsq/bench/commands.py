"""The commands that measure again what a page shows of a run."""

import json
import re
import shlex
from collections.abc import Sequence

from ifsq.bench.runs import Reported
from ifsq.evaluation.labels import BALANCED
from ifsq.evaluation.likelihood import BITS
from ifsq.evaluation.protocol import name_of
from ifsq.experiment import TokenizerExperiment

JUDGE = "judge"
MOST_LABELS = 4  # of the classes that are drawn


def evaluation_command(run: Reported) -> str:
    """``ifsq tokenizer eval`` or ``ifsq generator eval`` with the options that the run's cards name."""
    return " ".join(shlex.quote(word) for word in (_of_tokenizer if run.kind == "tokenizer" else _of_generator)(run))


def onward(runs: Sequence[Reported]) -> list[str]:
    """What may be done next with the runs of a page."""
    lines = [f"ifsq studio {' '.join(shlex.quote(str(run.folder)) for run in runs)}"]
    for run in runs:
        folder = shlex.quote(str(run.folder))
        if run.kind == "tokenizer":
            lines.append(f"ifsq reconstruct {folder} your-picture.jpg --out reconstructed")
            lines.append(f"ifsq encode {folder} your-folder codes-of-yours")
        else:
            labels = " ".join(map(str, range(min(MOST_LABELS, len(run.evaluation.classes)))))
            out = shlex.quote(f"{run.folder.absolute().name}.png")
            lines.append(f"ifsq sample {folder} --labels {labels} --sampling.guidance 2 --seed 1 --out {out}")
    train = "ifsq tokenizer train experiments/demo/tokenizer.toml"
    lines.append(f"{train} --data.source your-folder --out runs/yours/tokenizer")
    lines.append(f"{train} --tokenizer.quantizer.cells equal --out runs/equal")
    lines.append("torchrun --nproc-per-node=8 -m ifsq tokenizer train EXPERIMENT.toml")
    return lines


def _of_tokenizer(run: Reported) -> list[str]:
    words = ["ifsq", "tokenizer", "eval", str(run.folder)]
    card = run.evaluation.cards[0]
    data = run.run.experiment(TokenizerExperiment).data
    if card.reference.removesuffix(", luminance") != name_of(data, "val"):
        source, _, split = card.reference.removesuffix(", luminance").rpartition(" ")
        words += ["--data", source, "--split", split]
    metrics = [card.metric for card in run.evaluation.cards]
    if not any(metric == f"rFD({JUDGE})" for metric in metrics):
        words.append("--no-judge")
    words += [option for option, start in (("--lpips", "LPIPS"), ("--fid", "rFID")) if _any(metrics, start)]
    return words


def _of_generator(run: Reported) -> list[str]:
    card = run.evaluation.cards[0]
    words = ["ifsq", "generator", "eval", str(run.folder), "--samples", str(card.n), "--seed", str(card.seed)]
    metrics = [card.metric for card in run.evaluation.cards]
    if card.labels == BALANCED:
        words.append("--balanced")
    if not any(metric.endswith(", untrained generator") for metric in metrics):
        words.append("--no-twin")
    if run.kind != "diffusion" and not set(BITS) & set(metrics):
        words.append("--no-bits")
    if run.evaluation.weights != "average":
        words += ["--weights", run.evaluation.weights]
    guidance = next((card.guidance for card in run.evaluation.cards if card.sampler), None)
    if guidance is not None:
        words += ["--sampling.guidance", json.dumps(guidance, separators=(",", ":"))]
    networks = [found[1] for metric in metrics if (found := re.fullmatch(r"FD\(([^()]+)\)", metric))]
    return [*words, "--features", *(name for name in networks if name != JUDGE)]


def _any(metrics: Sequence[str], start: str) -> bool:
    return any(metric.startswith(start) for metric in metrics)
