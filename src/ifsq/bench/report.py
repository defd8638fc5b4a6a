"""The report: one self-contained page about a tokenizer and its generators, read from their run folders alone.

Nothing is computed here but pictures: figures come from ``metrics.jsonl`` and ``evaluation.json``.
"""

import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch

from ifsq.bench.curves import curves_over_training, tokenizer_over_training
from ifsq.bench.pictures import GAP, SCALE, level_bars, loss_curve, picture
from ifsq.bench.runs import Reported, read_run, refuse_unlike
from ifsq.config import InputError
from ifsq.data.images import height_width, size_text
from ifsq.experiment import TokenizerExperiment
from ifsq.metrics.card import ProtocolCard, code_version
from ifsq.store.files import make_folder, write_text
from ifsq.store.run import Run
from ifsq.tokenizer.bottleneck import rate_of
from ifsq.training.distributed import first_process


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page; returns its path. Raises InputError for a folder that is no run, or one that is not evaluated."""
    target = out or folders[0] / "report.html"
    if target.suffix not in (".html", ".htm"):
        raise InputError(f"{target}: expected a name that ends in .html")
    opened = [Run.open(folder) for folder in folders]
    kinds = [run.kind for run in opened]
    if len(set(kinds)) < len(kinds):
        raise InputError(f"{len(kinds)} runs of kinds {', '.join(kinds)}: expected at most one of a kind on a page")
    runs = [read_run(run) for run in opened]
    refuse_unlike(runs)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ifsq.bench", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(_content(runs, target))
    if first_process():
        make_folder(target.parent)
        write_text(target, page)
    return target


def _content(runs: Sequence[Reported], target: Path) -> dict[str, Any]:
    tokenizers = [run for run in runs if run.kind == "tokenizer"]
    generators = [run for run in runs if run.kind != "tokenizer"]
    return {
        "title": f"ifsq: {target.parent}",
        "subtitle": _subtitle(tokenizers, generators),
        "facts": [fact for run in runs for fact in _facts(run)],
        "reconstructions": _reconstructions(tokenizers[0]) if tokenizers else None,
        "panels": _panels(generators),
        "classes": generators[0].shown if generators else [],
        "samples_text": _samples_text(generators),
        "row_height": _row_height(generators),
        "rows": [row for run in runs for row in _rows(run)],
        "levels": level_bars(tokenizers[0]) if tokenizers else None,
        "steps": list(filter(None, [*map(tokenizer_over_training, tokenizers), curves_over_training(generators)])),
        "curves": [loss_curve(run) for run in runs],
        "commands": _commands(runs),
        "footer": f"{_machine()}.",
    }


def _subtitle(tokenizers: Sequence[Reported], generators: Sequence[Reported]) -> str:
    parts = [f"{run.name} trained for {run.trained()}" for run in (*tokenizers, *generators)]
    same = len(generators) > 1 and len({run.run.data for run in generators}) == 1
    return "; ".join(parts) + (". Both generators read the same cached digits." if same else ".")


def _facts(run: Reported) -> list[dict[str, str]]:
    facts = []
    for metric, value, form, label in (
        ("PSNR, dB", "mean", "{:.2f} dB", "held-out PSNR"),
        ("level entropy / log2 L", "mean", "{:.1%}", "level entropy of the most possible"),
        ("class agreement", "share", "{:.0%}", f"{run.name}: samples of the class asked for"),
        ("FD(judge)", "distance", "{:.2f}", f"{run.name}: FD(judge)"),
    ):
        number = run.figure(metric, value)
        if number is not None:
            facts.append({"value": form.format(number), "label": label})
    return facts


def _reconstructions(run: Reported) -> dict[str, Any] | None:
    sheet = run.folder / "samples" / "reconstructions.png"
    if not sheet.is_file():
        return None
    experiment = run.run.experiment(TokenizerExperiment)
    rate = ", ".join(f"{name} {value}" for name, value in rate_of(experiment.tokenizer.quantizer).items())
    text = f"Images of {experiment.data.source} at {size_text(experiment.data.size)} px; {rate}."
    mean, deviation = run.figure("PSNR, dB", "mean"), run.figure("PSNR, dB", "std")
    if mean is not None and deviation is not None:
        text += f" PSNR {mean:.2f} dB over all held-out images, standard deviation between images {deviation:.2f} dB."
    return {**picture(sheet), "text": text}


def _panels(generators: Sequence[Reported]) -> list[dict[str, Any]]:
    pictures = [("real images", generators[0].folder / "samples" / "real.png")] if generators else []
    pictures += [(run.name, run.folder / "samples" / "classes.png") for run in generators]
    return [{"title": title, **picture(path)} for title, path in pictures]


def _samples_text(generators: Sequence[Reported]) -> str:
    parts = []
    for run in generators:
        agreement, chance = run.figure("class agreement", "share"), 1 / len(run.evaluation.classes)
        if agreement is None:  # images of a single class
            continue
        card = run.evaluation.cards[0]
        parts.append(
            f"A classifier of the real images sees the class that was asked for in {agreement:.0%} of {card.n} "
            f"{run.name} samples (chance {chance:.0%}; guidance {card.guidance}, {card.sampler})."
        )
    return " ".join(parts)


def _row_height(generators: Sequence[Reported]) -> int:
    if not generators:
        return 0
    return SCALE * (height_width(generators[0].evaluation.cards[0].size)[0] + GAP)


def _rows(run: Reported) -> list[dict[str, Any]]:
    return [
        {
            "run": run.name,
            "metric": card.metric,
            "value": ", ".join(f"{name} {value:.4g}" for name, value in card.values.items()),
            "n": card.n,
            "on": f"{card.reference}{_protocol(card)}",
        }
        for card in run.evaluation.cards
    ]


def _protocol(card: ProtocolCard) -> str:
    parts = []
    if card.sampler:
        parts = [f"guidance {card.guidance}", card.sampler, f"{card.function_evaluations} evaluations"]
        parts += [card.dtype, f"seed {card.seed}"]
    return "".join(f"; {part}" for part in parts)


def _commands(runs: Sequence[Reported]) -> str:
    lines = []
    for run in runs:
        folder = shlex.quote(str(run.folder))
        if run.kind == "tokenizer":
            lines.append(f"ifsq reconstruct {folder} your-picture.jpg --out reconstructed")
            lines.append(f"ifsq encode {folder} your-folder codes-of-yours")
        else:
            lines.append(f"ifsq sample {folder} --labels 0 1 2 3 --sampling.guidance 2 --seed 1 --out {run.kind}.png")
    lines.append(
        "ifsq tokenizer train experiments/demo/tokenizer.toml --data.source your-folder --out runs/yours/tokenizer"
    )
    lines.append(
        "ifsq tokenizer train experiments/demo/tokenizer.toml --tokenizer.quantizer.cells equal --out runs/equal"
    )
    lines.append("torchrun --nproc-per-node=8 -m ifsq tokenizer train EXPERIMENT.toml")
    return "\n".join(lines)


def _machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return f"ifsq {code_version()}, torch {torch.__version__}, Python {platform.python_version()}, {device}"
