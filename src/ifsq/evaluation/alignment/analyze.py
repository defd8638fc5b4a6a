"""All of an analysis: the run opened, images and teacher looked at once, then the layers of one step after another."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ifsq.evaluation.alignment.curves import write_curves
from ifsq.evaluation.alignment.measure import begin_alignment, look_at_images, measure_layers, wanted_rows
from ifsq.evaluation.alignment.record import (
    AlignmentAnalysis,
    LayerAlignment,
    check_out,
    file_of,
    read_alignment,
    write_alignment,
)
from ifsq.evaluation.alignment.subject import open_subject
from ifsq.pretrained.teachers.opening import open_teacher
from ifsq.sources import workers_of
from ifsq.store.run import Run
from ifsq.training.log import Reporter


def analyze_layers(
    run: Run,
    asked: AlignmentAnalysis,
    out: Path | None,
    steps: Sequence[int] | None,
    average: bool,
    device: torch.device,
    reporter: Reporter,
) -> tuple[Path, LayerAlignment]:
    """See `ifsq.pipeline.analyze_alignment`. Raises InputError before anything is written."""
    measured = ((run.step,) if steps is None else tuple(sorted(set(steps))) or run.kept) or (None,)
    for step in measured if steps else ():
        run.weights(step, average)  # each of them is there
    subject = open_subject(run, asked, measured[-1], average, device)
    teacher = open_teacher(asked.teacher).to(device)
    place = out or file_of(run, teacher.name, subject.on.suffix)
    check_out(place)
    workers = workers_of(run, asked.reading)
    taught = look_at_images(teacher, subject, asked, device, reporter, workers)
    found, before = begin_alignment(teacher, subject, taught, asked, average), read_alignment(place)
    for step in measured:
        layers, digest = subject.at_step(step)
        rows = found.known(before, step, digest, wanted_rows(layers, asked))
        rows = rows or measure_layers(layers, taught, asked, step, reporter)
        found = found.extended(rows, step, digest)
        write_alignment(place, found)
    write_curves(place, found)
    return place, found
