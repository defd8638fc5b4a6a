"""The report: one page about tokenizers and generators, read from their run folders alone, or about a grid.

Nothing is computed here but charts: figures come from ``metrics.jsonl`` and ``evaluation.json``.
"""

import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from ifsq.bench.answer import JUDGED, answer_of, question_of
from ifsq.bench.commands import evaluation_command, onward
from ifsq.bench.curves import curves_over_training, tokenizer_over_training
from ifsq.bench.figures import compute_text
from ifsq.bench.grid_page import grid_page
from ifsq.bench.page import Block, Commands, Fact, Page, Pictures, Section, Table, Text, without_pictures
from ifsq.bench.pictures import GAP, level_bars, loss_charts, picture, scale_of
from ifsq.bench.rates import rate_charts
from ifsq.bench.render import target_of, write_page
from ifsq.bench.runs import Reported, read_runs, refuse_unlike
from ifsq.bench.summary import is_grid, summary_of
from ifsq.bench.tables import card_details, figures_table, measured_table
from ifsq.config import InputError
from ifsq.data.images import height_width, size_text
from ifsq.experiment import TokenizerExperiment
from ifsq.metrics.card import code_version
from ifsq.tokenizer.bottleneck import rate_of

MOST_FACTS = 4  # runs of whom figures stand at the top


def write_report(
    folders: Sequence[Path], out: Path | None = None, form: str | None = None, *, title: str = "", pictures: bool = True
) -> Path:
    """Write the page of some runs, or of a grid; returns its path.

    form      ``html``, ``md`` or ``csv``; None: by the ending of ``out``, else ``html``
    title     empty: the name of its folder
    pictures  whether samples are shown, to which Markdown links

    Raises InputError for a folder that is no run, or one that is not evaluated, and for runs that do not compare.
    """
    target, form = target_of(folders[0], out, form)
    title = title or f"ifsq: {folder_name(target.parent)}"
    grids = [folder for folder in folders if is_grid(folder)]
    if grids and len(folders) > 1:
        raise InputError(f"{grids[0]}: is a grid, which has a page of its own; expected it alone, or runs")
    if grids:
        page = grid_page(summary_of(grids[0]), title, machine())
    else:
        runs = read_runs(folders)
        refuse_unlike(runs)
        page = runs_page(runs, title)
    write_page(page if pictures else without_pictures(page), target, form)
    return target


def runs_page(runs: Sequence[Reported], title: str) -> Page:
    """What the page of these runs says; tokenizers come first."""
    tokenizers = [run for run in runs if run.kind == "tokenizer"]
    generators = [run for run in runs if run.kind != "tokenizer"]
    sections = [
        Section("What the tokenizer keeps", _kept(tokenizers)),
        Section("Rate and distortion", rate_charts(tokenizers)),
        Section("What the generators draw", _drawn(generators)),
        Section("Measured", _measured(tokenizers, generators)),
        Section("How evenly the levels are used", _levels(tokenizers)),
        Section("Over the training", _over_training(tokenizers, generators)),
        Section("How the training went", [_trainings(runs), loss_charts(runs)]),
        Section("Protocol cards", [card_details(run) for run in runs]),
        Section("Measure again", [Commands([evaluation_command(run) for run in runs])]),
        Section("Go further", [Commands(onward(runs))]),
    ]
    return Page(
        title=title,
        about=_about(tokenizers, generators),
        question=question_of(tokenizers, generators),
        verdict=answer_of(tokenizers, generators),
        figures=figures_table(runs),
        facts=[fact for run in runs for fact in _facts(run)] if len(runs) <= MOST_FACTS else [],
        sections=[section for section in sections if section.blocks],
        footer=f"{machine()}.",
    )


def folder_name(folder: Path) -> str:
    """As it was given, by its own name where that is the working folder."""
    return folder.absolute().name if folder == Path() else str(folder)


def machine() -> str:
    """The code and the device that make the page."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return f"ifsq {code_version()}, torch {torch.__version__}, Python {platform.python_version()}, {device}"


def _about(tokenizers: Sequence[Reported], generators: Sequence[Reported]) -> str:
    runs = (*tokenizers, *generators)
    if len(runs) > MOST_FACTS:
        parts = [f"{len(tokenizers)} tokenizers"] * bool(tokenizers) + [f"{len(generators)} generators"] * bool(
            generators
        )
    else:
        parts = [f"{run.label} trained for {run.trained()}" for run in runs]
    same = len(generators) > 1 and len({run.run.data for run in generators}) == 1
    all_of_them = "Both" if len(generators) == 2 else "All"
    return "; ".join(parts) + (f". {all_of_them} generators read the same cached codes." if same else ".")


def _facts(run: Reported) -> list[Fact]:
    facts = []
    for metric, value, form, label in (
        ("PSNR, dB", "mean", "{:.2f} dB", f"{run.label}: held-out PSNR"),
        ("level entropy / log2 L", "mean", "{:.1%}", f"{run.label}: level entropy of the most possible"),
        ("class agreement", "share", "{:.0%}", f"{run.label}: samples of the class asked for"),
        (JUDGED, "distance", "{:.2f}", f"{run.label}: {JUDGED}, lower is better"),
    ):
        number = run.figure(metric, value)
        if number is not None:
            facts.append(Fact(form.format(number), label))
    return facts


def _kept(tokenizers: Sequence[Reported]) -> list[Block]:
    blocks: list[Block] = []
    for run in tokenizers:
        sheet = run.folder / "samples" / "reconstructions.png"
        if not sheet.is_file():
            continue
        experiment = run.run.experiment(TokenizerExperiment)
        rate = ", ".join(f"{name} {value}" for name, value in rate_of(experiment.tokenizer.quantizer).items())
        text = f"Images of {experiment.data.source} at {size_text(experiment.data.size)} px; {rate}."
        mean, deviation = run.figure("PSNR, dB", "mean"), run.figure("PSNR, dB", "std")
        if mean is not None and deviation is not None:
            text += (
                f" PSNR {mean:.2f} dB over all held-out images, standard deviation between images {deviation:.2f} dB."
            )
        if len(tokenizers) > 1:
            text = f"{run.label}: {text}"
        scale = scale_of(run.evaluation.cards[0].size)
        shown = picture(sheet, "", f"{run.label}: held-out originals above their reconstructions", scale)
        blocks += [
            Text(text),
            Pictures([shown], "Held-out originals in the odd rows, their reconstructions below them."),
        ]
    return blocks


def _drawn(generators: Sequence[Reported]) -> list[Block]:
    """Sheets of real images and of samples, then of samples beside the training images nearest to them."""
    if not generators:
        return []
    first = generators[0]
    scale = scale_of(first.evaluation.cards[0].size)
    height = scale * (height_width(first.evaluation.cards[0].size)[0] + GAP)
    pictures = [picture(first.folder / "samples" / "real.png", "real images", "real images, one class a row", scale)]
    for run in generators:
        path = run.folder / "samples" / "classes.png"
        pictures.append(picture(path, run.label, f"samples of {run.label}, one class a row", scale))
    caption = "One class a row. The samples are the first drawn for each class; none was chosen."
    blocks: list[Block] = [Pictures(pictures, caption, first.shown, height)]
    searched = [run for run in generators if run.evaluation.neighbours]
    if searched:
        pictures = []
        for run in searched:
            path = run.folder / "samples" / "neighbours.png"
            alt = f"samples of {run.label}, each with the training image nearest to it at its right, one class a row"
            pictures.append(picture(path, run.label, alt, scale))
        found = "; ".join(dict.fromkeys(run.evaluation.neighbours for run in searched))
        caption = f"Pairs: a sample, and at its right the training image nearest to it, by {found}."
        blocks.append(Pictures(pictures, caption, searched[0].shown, height))
    return [Text(text), *blocks] if (text := _samples_text(generators)) else blocks


def _samples_text(generators: Sequence[Reported]) -> str:
    parts = []
    for run in generators:
        agreement, chance = run.figure("class agreement", "share"), 1 / len(run.evaluation.classes)
        if agreement is None:  # images of a single class
            continue
        card = run.evaluation.cards[0]
        parts.append(
            f"A classifier of the real images sees the class that was asked for in {agreement:.0%} of {card.n} "
            f"{run.label} samples (chance {chance:.0%}; guidance {card.guidance}, {card.sampler})."
        )
    return " ".join(parts)


def _measured(tokenizers: Sequence[Reported], generators: Sequence[Reported]) -> list[Block]:
    text = (
        "FD(judge) is a Fréchet distance on the features of a small classifier of bundled or own images (the judge): it"
        " compares runs on this page and nothing else. It is not FID. rFD(judge) is that distance between"
        " reconstructions and their own originals."
    )
    tables = [measured_table(runs) for runs in (tokenizers, generators) if runs]
    return [Text(text), *tables]


def _levels(tokenizers: Sequence[Reported]) -> list[Block]:
    blocks: list[Block] = []
    for run in tokenizers:
        charts = level_bars(run.evaluation.levels, run.label)
        if charts is None:
            continue
        deviations = ", ".join(f"{value:.2f}" for value in run.evaluation.latent.get("std", ()))
        text = (
            "The same trained latents through fixed quantizers. The paper's bound makes N(0, 1) even before rounding; "
            "its rounding gives the two end cells half the width, and nothing makes a trained latent N(0, 1): here the "
            f"standard deviations of the dimensions are {deviations}."
        )
        blocks += [Text(text), charts]
    return blocks


def _over_training(tokenizers: Sequence[Reported], generators: Sequence[Reported]) -> list[Block]:
    found = [*map(tokenizer_over_training, tokenizers), curves_over_training(generators)]
    return [charts for charts in found if charts is not None]


def _trainings(runs: Sequence[Reported]) -> Table:
    rows = []
    for run in runs:
        step, seconds = run.last
        seen, flops = run.evaluation.seen, run.evaluation.flops
        rows.append(
            [
                run.label,
                str(step),
                f"{seconds / 60:.1f}",
                "" if seen is None else str(seen),
                "" if flops is None else compute_text(flops),
                str(run.folder),
                "; ".join(run.differs),
            ]
        )
    columns = ["run", "steps", "minutes", "images seen", "training compute", "folder", "differs in"]
    if not any(run.differs for run in runs):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    caption = "Compute: forward and backward, a multiplication and an addition counted one each."
    if not any(run.evaluation.flops is not None for run in runs):
        caption = ""
    return Table(caption, columns, rows, (1, 2, 3, 4))
