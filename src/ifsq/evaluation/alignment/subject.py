"""Whose layers are looked at, and at which images: a tokenizer, or a generator with the tokenizer behind it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ifsq.codes.cache import CodeCache
from ifsq.config import InputError, build
from ifsq.data import DataConfig, open_images, split_called
from ifsq.data.images import size_text
from ifsq.evaluation.alignment.layers import GeneratorLayers, Layers, TokenizerLayers, check_names
from ifsq.evaluation.alignment.record import MOST_IMAGES, AlignmentAnalysis
from ifsq.evaluation.options import ImagesToMeasure, TokenizerEvaluation, held_out_of, images_to_measure
from ifsq.evaluation.protocol import name_of, sample_indices
from ifsq.generators import Generator
from ifsq.sources import Pair, load_pair, open_codes
from ifsq.store.run import Run
from ifsq.store.weights import weights_digest
from ifsq.tokenizer.model import Tokenizer
from ifsq.tokenizer.online import OnlineCodes


@dataclass(frozen=True)
class Subject:
    """A run, opened.

    tokenizer  of its newest step that is asked for; of a generator the one behind it
    on         the images
    codes      how they become what a generator reads; None of a tokenizer
    null       the label of the null class
    layers     of the step that it was opened at
    at_step    the layers at a step, and the SHA-256 of its weights
    """

    tokenizer: Tokenizer
    on: ImagesToMeasure
    codes: OnlineCodes | None
    null: int
    layers: Layers
    at_step: Callable[[int | None], tuple[Layers, str]]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the layers' positions."""
        return self.layers.grid


def open_subject(run: Run, asked: AlignmentAnalysis, step: int | None, average: bool, device: torch.device) -> Subject:
    """Open a run with the weights of a step. Raises InputError, as for a run of another kind."""
    kind = run.weights(step, average).described.get("kind", run.kind)
    if kind == "tokenizer":
        return _tokenizer(run, asked, step, average, device)
    if kind in Generator.kinds:
        return _generator(run, asked, step, average, device)
    raise InputError(f"{run.name}: holds a {kind} model; expected a tokenizer or a generator")


def _tokenizer(run: Run, asked: AlignmentAnalysis, step: int | None, average: bool, device: torch.device) -> Subject:
    if asked.labels != "null":
        raise InputError(f"labels {asked.labels}: a tokenizer is told no classes")
    first = Tokenizer.from_run(run, step, average).to(device)
    options = TokenizerEvaluation(asked.source, asked.split, reading=asked.reading)
    on = _drawn(images_to_measure(run, options, first), asked.count)

    def at_step(number: int | None) -> tuple[Layers, str]:
        model = first if number == step else Tokenizer.from_run(run, number, average).to(device)
        return TokenizerLayers(model, on.data.sides, asked.times), model.digest()

    return _subject(first, on, None, 0, at_step, step, asked)


def _generator(run: Run, asked: AlignmentAnalysis, step: int | None, average: bool, device: torch.device) -> Subject:
    pair = load_pair(run, device, step, average)
    tokenizer = pair.tokenizer.requires_grad_(False)
    on = _drawn(_images(run, asked, pair), asked.count)
    layout, nothing = tokenizer.layout(*on.data.sides), torch.empty(0, dtype=torch.int64)
    if layout.grid != pair.generator.spec.grid:
        rows, columns = pair.generator.spec.grid
        raise InputError(
            f"images of {size_text(on.data.size)} pixels: expected those of a grid of {rows}x{columns} codes"
        )
    codes = OnlineCodes(
        layout,
        torch.empty(0, *layout.shape),
        nothing,
        codebook=tokenizer.codebook(),
        tokenizer=tokenizer,
        images=on.images,
    )

    def at_step(number: int | None) -> tuple[Layers, str]:
        model = pair.generator if number == step else Generator.from_run(run, number, average).to(device)
        return GeneratorLayers(model, asked.times, asked.seed), weights_digest(model)

    null = _null_label(pair.generator, asked, on.images.classes)
    return _subject(tokenizer, on, codes, null, at_step, step, asked)


def _subject(
    tokenizer: Tokenizer,
    on: ImagesToMeasure,
    codes: OnlineCodes | None,
    null: int,
    at_step: Callable[[int | None], tuple[Layers, str]],
    step: int | None,
    asked: AlignmentAnalysis,
) -> Subject:
    layers, _ = at_step(step)
    check_names(layers, asked.layers)
    return Subject(tokenizer, on, codes, null, layers, at_step)


def _images(run: Run, asked: AlignmentAnalysis, pair: Pair) -> ImagesToMeasure:
    """Images for a generator: those behind its codes, at their middle, or others of that size. Raises InputError."""
    cache: CodeCache | None = None
    if asked.source:
        height, width = (side * pair.tokenizer.factor for side in pair.generator.spec.grid)
        data = DataConfig(asked.source, (height, width), **asked.reading.options())
        split = split_called(data, asked.split) if asked.split else held_out_of(data)
    else:
        if not run.trained:
            raise InputError(f"{run.name}: is not a training run and has no images of its own; give --data")
        cache = open_codes(run, pair.generator)
        data = replace(build(DataConfig, cache.about["data"], str(cache.folder)), **asked.reading.options())
        split = split_called(data, asked.split) if asked.split else "val" if "val" in cache.splits else "train"
    data = replace(data, flip=False, crop="center")
    images = open_images(data, split, labels=False, channels=pair.tokenizer.channels)
    told = None if cache is None else cache.about["fingerprints"].get(split)
    if told is not None and not asked.reading.options() and told != images.fingerprint:
        raise InputError(
            f"{data.source}: has changed since {run.name} learned from it, or another build read it otherwise; give"
            " --data"
        )
    usual = told is not None and split == "val" and told == images.fingerprint
    suffix = "" if usual else f"_{split}_{images.fingerprint[:8]}"
    return ImagesToMeasure(images, data, name_of(data, split), sample_indices(images, len(images)), suffix)


def _drawn(on: ImagesToMeasure, count: int | None) -> ImagesToMeasure:
    """So many of the images, always the same ones. Raises InputError where there are fewer."""
    there = len(on.indices)
    if count is not None and count > there:
        raise InputError(f"count {count}: expected 1 to {there}, the images that there are")
    if (taken := min(there, MOST_IMAGES) if count is None else count) == there:
        return on
    suffix = on.suffix if count is None else f"{on.suffix}_{taken}"
    return replace(on, name=f"{on.name}, {taken} drawn", indices=on.indices[:taken], suffix=suffix)


def _null_label(generator: Generator, asked: AlignmentAnalysis, classes: Sequence[str]) -> int:
    """The label of the null class. Raises InputError where none was trained, and for labels of other classes."""
    if asked.labels == "class" and tuple(classes) != tuple(generator.origin.classes):
        raise InputError("labels class: the images have other classes than the generator's; expected --labels null")
    if asked.labels == "null" and not generator.config.label_dropout:
        raise InputError("labels null: label_dropout is 0, so that no null class was trained; expected --labels class")
    return generator.num_classes
