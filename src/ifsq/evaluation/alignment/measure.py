"""How alike the layers of a run and a teacher see images: CKNNA, CKA, mutual neighbours, a linear probe, tokens.

Features of an image are averaged over its positions, as the official repository does, and held against the teacher's
averages; patches are compared position by position. Images are read once, in one order, at their middle and not
mirrored; codes are those that the tokenizer gives of them. All sums are float64.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ifsq.config import InputError
from ifsq.data import ImageBatch, iterate_once
from ifsq.data.labels import NO_CLASSES
from ifsq.data.sampler import max_batch
from ifsq.evaluation.alignment.layers import Layers, Looked
from ifsq.evaluation.alignment.record import LABELS, AlignmentAnalysis, LayerAlignment, LayerFigures
from ifsq.evaluation.alignment.subject import Subject
from ifsq.evaluation.options import ImagesToMeasure
from ifsq.evaluation.protocol import blank_card
from ifsq.metrics.alignment import (
    LEAST,
    CrossMoments,
    Nearest,
    check_neighbours,
    cka_of_rows,
    cknna_of,
    linear_cka,
    mutual_neighbours,
    nearest,
    unit_rows,
)
from ifsq.metrics.probe import FOLDS, PENALTY, ridge_probe
from ifsq.nn.modes import exact_float32
from ifsq.pretrained.teachers.face import ImageTeacher
from ifsq.training.log import Reporter

PATCHES = 1 << 16  # positions, of the first images, whose features are compared one by one
FIGURES = {
    "cknna": "CKNNA",
    "cknna_biased": "CKNNA, biased",
    "cknna_cosine": "CKNNA, unit length",
    "mutual": "mutual neighbours",
    "cka": "CKA",
    "cka_biased": "CKA, biased",
    "patch_cka": "patch CKA",
    "read_patch_cka": "CKA, patch read",
    "own_token": "own token",
    "next_token": "next token",
    "probe": "probe",
    "probe_error": "probe, standard error",
    "chance": "chance",
}
"""Names of figures, and what tables and pictures call them.

cknna           unbiased, of features as they are: the official form
cknna_biased    its biased form
cknna_cosine    unbiased, each image's features scaled to length 1
mutual          share of the neighbours that both have, by cosine
cka             linear, unbiased; ``cka_biased`` with the kernels' diagonals
patch_cka       of the features at each position with the teacher's there, unbiased; of an autoregressive generator with
                the patch that the state predicts
read_patch_cka  of an autoregressive generator with the patch before it, the last that it has read
own_token       mean cosine of the state with the token at its own position as the first block reads it
next_token      of an autoregressive generator with the one behind that, which the state predicts
probe           accuracy of a ridge regression of the class, over folds; ``chance``: share of the most frequent class
"""


@dataclass(frozen=True)
class TeacherView:
    """What a teacher sees of the images, and what is measured of it alone.

    pooled   averages over positions
    patches  of the first images
    labels   of the images; None where they have no classes
    looked   the images, in batches, for the layers
    skipped  a line about each image that could not be read
    """

    pooled: Float[Tensor, "n f"]
    patches: Float[Tensor, "m t f"]
    labels: Int[Tensor, "n"] | None
    looked: Callable[[], Iterator[Looked]]
    skipped: tuple[str, ...]


def look_at_images(
    teacher: ImageTeacher,
    subject: Subject,
    asked: AlignmentAnalysis,
    device: torch.device,
    reporter: Reporter,
    workers: int = 0,
) -> TeacherView:
    """The teacher's features of the images, and the images ready for the layers.

    workers  processes that read ahead

    Raises InputError for images that the teacher does not take, features that are not of the grid, and too few images.
    """
    on, codes, grid = subject.on, subject.codes, subject.grid
    _check_enough(len(on.indices), asked)
    most, n = _patched(grid), 0
    kept, pooled, patches = list[Looked](), list[Tensor](), list[Tensor]()
    labels, skipped = list[Tensor](), list[str]()
    reporter.start(f"features of {teacher.name}", 0, len(on.indices))
    for read in _read(on, workers):
        skipped += read.skipped
        if len(read.images):
            images = read.images.to(device)
            features = _features(teacher, images, grid)
            pooled.append(features.double().mean(dim=1).float().cpu())
            patches.append(features[: max(0, most - n)].cpu())
            labels.append(read.labels)
            if codes is not None:
                told = read.labels if asked.labels == "class" else torch.full_like(read.labels, subject.null)
                kept.append(Looked(None, codes.coded(images, told, device), n))
            n += len(images)
        reporter.advance(n + len(skipped), {})
    reporter.finish({})
    _check_enough(n, asked)

    def looked() -> Iterator[Looked]:
        if codes is not None:
            yield from kept
            return
        first = 0
        for read in _read(on, workers):
            if len(read.images):
                yield Looked(read.images.to(device), None, first)
            first += len(read.images)

    known = torch.cat(labels)
    without = on.images.classes == NO_CLASSES or int(known.min()) < 0 or len(known.unique()) < 2 or n < FOLDS
    return TeacherView(torch.cat(pooled), torch.cat(patches), None if without else known, looked, tuple(skipped))


def begin_alignment(
    teacher: ImageTeacher, subject: Subject, taught: TeacherView, asked: AlignmentAnalysis, average: bool
) -> LayerAlignment:
    """The record before any step is in it: the protocol, and what is found of the teacher alone."""
    layers, n = subject.layers, len(taught.pooled)
    times = ", ".join(f"{time:g}" for time in layers.times if time is not None)
    method = (
        f"features averaged over {subject.grid[0]}x{subject.grid[1]} positions; {asked.neighbours} neighbours; ridge"
        f" probe of {FOLDS} folds, penalty {PENALTY:g}; patches of the first {min(n, _patched(subject.grid))} images"
    )
    on = subject.on
    card = replace(
        blank_card(on.data, on.name, on.images.fingerprint, n, subject.tokenizer),
        metric="alignment",
        method=f"{method}; times {times}" if times else method,
        seed=asked.seed,
        features=f"{teacher.name} ({teacher.digest[:12]})",
    )
    if subject.codes is None:
        card = replace(card, tokenizer_hash="")  # of each step, in `LayerAlignment.hashes`
    else:
        card = replace(card, labels=LABELS[asked.labels], dtype=layers.arithmetic)
    return LayerAlignment(
        card,
        teacher.name,
        teacher.digest,
        asked.neighbours,
        weights="average" if average else "raw",
        beside={} if taught.labels is None else _probed(taught.pooled, taught.labels),
        left_out=_reasons(taught, asked),
        skipped=taught.skipped,
    )


def wanted_rows(layers: Layers, asked: AlignmentAnalysis) -> list[tuple[str, float | None]]:
    """Layer and time of each row that `measure_layers` finds, in its order."""
    names = [name for name in layers.names if not asked.layers or name in asked.layers]
    return [(name, time) for time in layers.times for name in names]


def measure_layers(
    layers: Layers, taught: TeacherView, asked: AlignmentAnalysis, step: int | None, reporter: Reporter
) -> tuple[LayerFigures, ...]:
    """The figures of the layers that are asked for, at every time.

    Raises InputError where features are not finite numbers.
    """
    found, teacher = list[LayerFigures](), _Teacher(taught, layers.predicts, asked.neighbours)
    names = list(dict.fromkeys(name for name, _ in wanted_rows(layers, asked)))
    for time in layers.times:
        at = "" if time is None else f", time {time:g}"
        reporter.start(f"layers of step {step}{at}", 0, len(taught.pooled))
        sums = {name: _LayerSums(layers.predicts) for name in names}
        with exact_float32():
            for batch in taught.looked():
                states = layers.states(batch, time)
                tokens = states[0] if layers.reads_tokens else None
                patches = teacher.patches[batch.first : batch.first + len(states[0])]
                for name, state in zip(layers.names, states, strict=True):
                    if name in sums:
                        _refuse_infinite(state, f"step {step}, layer {name}{at}")
                        sums[name].add(state, tokens, patches)
                reporter.advance(batch.first + len(states[0]), {})
        found += [LayerFigures(step, name, time, sums[name].figures(teacher, asked)) for name in names]
        reporter.finish({})
    return tuple(found)


class _Teacher:
    """The side that all layers are held against, computed once."""

    def __init__(self, taught: TeacherView, predicts: bool, k: int) -> None:
        self.pooled, self.patches, self.labels = taught.pooled, taught.patches, taught.labels
        self.near = _neighbours(taught.pooled, k)
        self.own = CrossMoments()
        self.own_read = CrossMoments()
        for part in taught.patches.split(max_batch(1, taught.patches.shape[1])):
            here, read = _pairs(part, predicts)
            self.own.add(here, here)
            if read is not None:
                self.own_read.add(read, read)


@dataclass
class _LayerSums:
    """What is kept of a layer's states while batches pass."""

    predicts: bool
    pooled: list[Tensor] = field(default_factory=list)
    own: CrossMoments = field(default_factory=CrossMoments)
    here: CrossMoments = field(default_factory=CrossMoments)
    read: CrossMoments = field(default_factory=CrossMoments)
    own_token: list[float] = field(default_factory=list)
    next_token: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, state: Tensor, tokens: Tensor | None, patches: Tensor) -> None:
        """Count the states of a batch; ``patches`` are the teacher's of the first of its images, or of none."""
        self.pooled.append(state.double().mean(dim=1).float().cpu())
        if tokens is not None:
            self.counts.append(len(state))
            # The token at a position of an autoregressive generator is the last it has read; the first is the class.
            own = F.cosine_similarity(state.double(), tokens.double(), dim=-1)
            self.own_token.append(float(own[:, 1:].mean(dim=1).sum() if self.predicts else own.mean(dim=1).sum()))
            if self.predicts:
                behind = F.cosine_similarity(state[:, :-1].double(), tokens[:, 1:].double(), dim=-1)
                self.next_token.append(float(behind.mean(dim=1).sum()))
        if len(patches):
            states = state[: len(patches), 1:] if self.predicts else state[: len(patches)]
            rows = states.flatten(0, 1)
            here, read = _pairs(patches.to(rows.device), self.predicts)
            self.own.add(rows, rows)
            self.here.add(rows, here)
            if read is not None:
                self.read.add(rows, read)

    def figures(self, teacher: _Teacher, asked: AlignmentAnalysis) -> dict[str, float | None]:
        """All of `FIGURES` that this layer has."""
        pooled = torch.cat(self.pooled)
        (near, biased, unit), theirs = _neighbours(pooled, asked.neighbours), teacher.near
        values = {
            "cknna": cknna_of(near, theirs[0]),
            "cknna_biased": cknna_of(biased, theirs[1]),
            "cknna_cosine": cknna_of(unit, theirs[2]),
            "mutual": mutual_neighbours(unit, theirs[2]),
            "cka": cka_of_rows(pooled, teacher.pooled),
            "cka_biased": cka_of_rows(pooled, teacher.pooled, unbiased=False),
            "patch_cka": linear_cka(self.here, self.own, teacher.own),
        }
        if self.predicts:
            values["read_patch_cka"] = linear_cka(self.read, self.own, teacher.own_read)
        if self.counts:
            values["own_token"] = math.fsum(self.own_token) / sum(self.counts)
        if self.next_token:
            values["next_token"] = math.fsum(self.next_token) / sum(self.counts)
        found = {name: value if math.isfinite(value) else None for name, value in values.items()}
        if teacher.labels is not None and asked.labels == "null":
            found |= _probed(pooled, teacher.labels)
        return found


def _features(teacher: ImageTeacher, images: Tensor, grid: tuple[int, int]) -> Float[Tensor, "b t f"]:
    try:
        features = teacher.features(images, grid)
    except ValueError as error:
        raise InputError(f"teacher {error}") from error
    expected = (len(images), grid[0] * grid[1], teacher.width)
    if tuple(features.shape) != expected:
        raise InputError(
            f"teacher {teacher.name}: features of {tuple(features.shape)}, expected {expected}, one a position of the"
            f" grid {grid[0]}x{grid[1]}"
        )
    _refuse_infinite(features, f"teacher {teacher.name}")
    return features


def _read(on: ImagesToMeasure, workers: int) -> Iterator[ImageBatch]:
    """The images in the order of measurement, in batches that fit their size."""
    batch = max_batch(*on.images.shape[:2])
    with closing(iterate_once(on.images, batch, workers=workers, indices=on.indices)) as batches:
        yield from batches


def _check_enough(n: int, asked: AlignmentAnalysis) -> None:
    """Raise InputError unless n images have enough neighbours, and HSIC enough images."""
    try:
        check_neighbours(asked.neighbours, n)
    except ValueError as error:
        raise InputError(str(error)) from error
    if n < LEAST:
        raise InputError(f"{n} images: expected at least {LEAST}")


def _patched(grid: tuple[int, int]) -> int:
    """Images whose patches are compared one by one."""
    return max(1, PATCHES // (grid[0] * grid[1]))


def _reasons(taught: TeacherView, asked: AlignmentAnalysis) -> tuple[str, ...]:
    """What is not measured of these images, and why."""
    if taught.labels is None:
        return ("probe: the images have no classes to tell apart",)
    if asked.labels == "class":
        return ("probe: the network is told the classes; expected --labels null",)
    return ()


def _refuse_infinite(features: Tensor, whose: str) -> None:
    if not bool(features.isfinite().all()):
        raise InputError(f"{whose}: features are not finite numbers; expected finite weights")


def _neighbours(pooled: Tensor, k: int) -> tuple[Nearest, Nearest, Nearest]:
    """By inner product, with each image itself for the biased form, and by cosine."""
    return nearest(pooled, k), nearest(pooled, k, itself=True), nearest(unit_rows(pooled), k)


def _pairs(patches: Tensor, predicts: bool) -> tuple[Tensor, Tensor | None]:
    """Rows of patches for the states: those of their own positions, and where they predict, of the ones before.

    The first state of an autoregressive generator has read no patch and is left out of both.
    """
    if not predicts:
        return patches.flatten(0, 1), None
    return patches[:, 1:].flatten(0, 1), patches[:, :-1].flatten(0, 1)


def _probed(pooled: Tensor, labels: Tensor) -> dict[str, float | None]:
    probe = ridge_probe(pooled, labels)
    return {"probe": probe.accuracy, "probe_error": probe.error, "chance": probe.chance}
