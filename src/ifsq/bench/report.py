"""The report: one self-contained page about a tokenizer and its generators, read from their run folders alone.

Nothing is computed here but pictures: figures come from ``metrics.jsonl`` and ``evaluation.json``.
"""

import base64
import io
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from ifsq.config import InputError
from ifsq.data import read_image
from ifsq.data.images import height_width, size_text
from ifsq.evaluation.record import Evaluation, read_evaluation
from ifsq.evaluation.sheets import SHEET_CLASSES
from ifsq.experiment import TokenizerExperiment
from ifsq.generators import Generator
from ifsq.metrics.card import ProtocolCard, code_version, compare
from ifsq.store.files import make_folder, write_text
from ifsq.store.run import EVALUATION, Run
from ifsq.tokenizer.bottleneck import rate_of
from ifsq.training.distributed import first_process
from ifsq.training.log import read_metrics

SCALE = 2  # screen pixels a pixel of the small pictures
GAP = 2  # white pixels around each, as `ifsq.data.image_grid` draws them
COLOURS = ("#2f6fde", "#d9822b", "#2e9e6b")
MOST_BARS = 512  # a level each, or the mean of several
MOST = 2.0**63  # steps and figures that matplotlib can draw
TITLES = {"tokenizer": "tokenizer", **{kind: cls.title for kind, cls in Generator.kinds.items()}}

matplotlib.rcParams.update(
    {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "ifsq"}
)


@dataclass(frozen=True)
class Reported:
    """A run that the page speaks of: what was logged of its training and what was measured."""

    run: Run
    metrics: list[dict[str, Any]]
    evaluation: Evaluation

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.run.folder

    @property
    def kind(self) -> str:
        """``tokenizer`` or a kind of generator."""
        return self.run.kind

    @property
    def name(self) -> str:
        """What the page calls it."""
        return TITLES[self.kind]

    def figure(self, metric: str, value: str) -> float | None:
        """One measured number, or None where it was not measured."""
        for card in self.evaluation.cards:
            if card.metric == metric:
                return card.values.get(value)
        return None

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the classes on the sheets of a generator; an older evaluation shows its first ones."""
        return self.evaluation.shown or self.evaluation.classes[:SHEET_CLASSES]

    def logged(self, name: str) -> list[tuple[int, float]]:
        """A figure of ``metrics.jsonl`` with its steps, where it was a number that can be drawn."""
        known = [(row["step"], row[name]) for row in self.metrics if row.get(name) is not None]
        return [(step, float(value)) for step, value in known if abs(value) < MOST and abs(step) < MOST]

    def trained(self) -> str:
        """Steps and minutes of its training."""
        step, seconds = max(self.logged("seconds"))
        return f"{step} steps, {seconds / 60:.1f} min"


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page; returns its path. Raises InputError for a folder that is no run, or one that is not evaluated."""
    target = out or folders[0] / "report.html"
    if target.suffix not in (".html", ".htm"):
        raise InputError(f"{target}: expected a name that ends in .html")
    opened = [Run.open(folder) for folder in folders]
    kinds = [run.kind for run in opened]
    if len(set(kinds)) < len(kinds):
        raise InputError(f"{len(kinds)} runs of kinds {', '.join(kinds)}: expected at most one of a kind on a page")
    runs = [_read(run) for run in opened]
    _refuse_unlike(runs)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ifsq.bench", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(_content(runs, target))
    if first_process():
        make_folder(target.parent)
        write_text(target, page)
    return target


def _read(run: Run) -> Reported:
    folder = run.folder
    if run.kind not in TITLES:
        raise InputError(f"{folder}: is a {run.kind}; expected a tokenizer or generator run")
    metrics = read_metrics(folder / "metrics.jsonl")
    evaluation = read_evaluation(run)
    if evaluation is None:
        verb = "tokenizer" if run.kind == "tokenizer" else "generator"
        raise InputError(f"{folder}: is not evaluated yet; run ifsq {verb} eval {folder}")
    reported = Reported(run, metrics, evaluation)
    if not reported.logged("seconds"):
        raise InputError(f"{folder}: has logged no step yet; train it first")
    if run.step is None or run.step != evaluation.step:
        raise InputError(f"{folder}: was trained on since it was evaluated; evaluate it again")
    if run.kind != "tokenizer" and not evaluation.classes:
        raise InputError(f"{folder / EVALUATION}: names no classes; evaluate the run again")
    return reported


def _refuse_unlike(runs: Sequence[Reported]) -> None:
    """Figures that stand beside each other were taken in the same way; how a generator samples is its own."""
    measured = {run.folder: {card.metric: card for card in run.evaluation.cards} for run in runs}
    first, *others = [run.folder for run in runs if run.kind != "tokenizer"] or [Path()]
    for other in others:
        for metric in [metric for metric in measured[first] if metric in measured[other]]:
            try:
                compare(
                    measured[first][metric],
                    measured[other][metric],
                    allow=("guidance", "sampler", "function_evaluations"),
                )
            except ValueError as error:
                raise InputError(f"{first} and {other}: {metric}: {error}; evaluate both again") from error


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
        "levels": _levels(tokenizers[0]) if tokenizers else None,
        "curves": [_curve(run) for run in runs],
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
    picture = run.folder / "samples" / "reconstructions.png"
    if not picture.is_file():
        return None
    experiment = run.run.experiment(TokenizerExperiment)
    rate = ", ".join(f"{name} {value}" for name, value in rate_of(experiment.tokenizer.quantizer).items())
    text = f"Images of {experiment.data.source} at {size_text(experiment.data.size)} px; {rate}."
    mean, deviation = run.figure("PSNR, dB", "mean"), run.figure("PSNR, dB", "std")
    if mean is not None and deviation is not None:
        text += f" PSNR {mean:.2f} dB over all held-out images, standard deviation between images {deviation:.2f} dB."
    return {**_picture(picture), "text": text}


def _panels(generators: Sequence[Reported]) -> list[dict[str, Any]]:
    pictures = [("real images", generators[0].folder / "samples" / "real.png")] if generators else []
    pictures += [(run.name, run.folder / "samples" / "classes.png") for run in generators]
    return [{"title": title, **_picture(path)} for title, path in pictures]


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
        parts.append(f"seed {card.seed}")
    return "".join(f"; {part}" for part in parts)


def _levels(run: Reported) -> dict[str, str] | None:
    used = list(run.evaluation.levels.items())[: len(COLOURS)]
    if not used:  # of other bottlenecks than FSQ
        return None
    figure = Figure(figsize=(9.6, 2.6), layout="constrained")
    axes = figure.subplots(1, len(used), sharey=True, squeeze=False)[0]
    for axis, (name, use), colour in zip(axes, used, COLOURS, strict=False):
        count = len(use.share)
        bars = [part.mean() for part in np.array_split(use.share, min(count, MOST_BARS))]
        axis.bar(np.linspace(0, count - 1, len(bars)), bars, color=colour, width=0.85 * count / len(bars))
        axis.axhline(1 / count, color="#888", linewidth=0.8, linestyle="--")
        axis.set_title(f"{name}: entropy {use.fraction:.3f} of log2 {count}", fontsize=9, parse_math=False)
        axis.set_xlabel("level")
    deviations = ", ".join(f"{value:.2f}" for value in run.evaluation.latent.get("std", ()))
    text = (
        "The same trained latents through fixed quantizers. The paper's bound makes N(0, 1) even before rounding; "
        "its rounding gives the two end cells half the width, and nothing makes a trained latent N(0, 1): here the "
        f"standard deviations of the dimensions are {deviations}."
    )
    caption = "Share of all digits on each level, all dimensions together; dashed: even use."
    return {"image": _svg(figure), "text": text, "caption": caption}


def _curve(run: Reported) -> dict[str, str]:
    trained, held_out = run.logged("loss"), run.logged("val/loss")
    figure = Figure(figsize=(5.2, 2.7), layout="constrained")
    axis = figure.subplots()
    if trained:
        axis.plot(*zip(*trained, strict=True), color=COLOURS[0], linewidth=1.2, label="training")
    if held_out:
        axis.plot(
            *zip(*held_out, strict=True), color=COLOURS[1], marker="o", markersize=4, linewidth=1, label="held out"
        )
        axis.legend(frameon=False)
    axis.set_title(f"{run.name}: loss", fontsize=9)
    axis.set_xlabel("step")
    return {"image": _svg(figure), "title": f"loss of the {run.name} run"}


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
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return f"ifsq {code_version()}, torch {torch.__version__}, Python {platform.python_version()}, {here}"


def _picture(path: Path) -> dict[str, Any]:
    """A picture for the page and the width it is shown at. Raises InputError where it is none."""
    width = SCALE * read_image(path).shape[1]
    return {"image": f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}", "width": width}


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
