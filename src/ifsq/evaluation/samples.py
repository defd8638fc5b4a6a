"""Samples: images of a generator by number, drawn in any batches and processes, and written as a set with a card.

Image number i follows from (weights, label, options, seed, i), see `Generator.sample`; the batch that it was drawn in
shows at most in how a sum was rounded.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ifsq.config import InputError, check_seed, differences, to_dict
from ifsq.data import image_grid, to_uint8, write_png
from ifsq.data.image_sets import ImageSet
from ifsq.data.sampler import max_batch
from ifsq.evaluation.labels import labels_like
from ifsq.evaluation.protocol import dealt
from ifsq.generators import Generator, Sampling
from ifsq.generators.streams import choices
from ifsq.metrics.card import code_version
from ifsq.sources import Pair, open_codes
from ifsq.store.files import make_folder, writing
from ifsq.store.lock import BusyError
from ifsq.store.run import Run
from ifsq.store.weights import weights_digest
from ifsq.tokenizer.model import Tokenizer
from ifsq.training.claim import alone_in
from ifsq.training.distributed import World, from_first, gather_or_refuse
from ifsq.training.log import Reporter, Silent

MOST_SAMPLES = 10**7
MOST_PICTURED = 1000
Classes = Literal["balanced", "random", "training"]
LAWS = {
    "balanced": "every class alike",
    "random": "each of random class",
    "training": "in the training set's proportions",
}
"""Which classes are asked for, in the words of a card."""
GIVEN = "as given"
DERIVED = ("guidance", "sampler", "function_evaluations", "code_version", "passes")
"""Fields of a card that follow from others, or from who drew it."""


@dataclass(frozen=True)
class Part:
    """Some 8-bit images, their labels, which of all images they are, and ``passes`` as of `Sampled`."""

    images: UInt8[np.ndarray, "b H W c"]
    labels: Int[Tensor, "b"]
    numbers: Sequence[int]
    passes: int | None = None


@torch.no_grad()
def sample_parts(
    generator: Generator,
    tokenizer: Tokenizer,
    labels: Int[Tensor, "n"],
    seed: int,
    sampling: Sampling,
    batches: Iterable[Sequence[int]],
) -> Iterator[Part]:
    """Images by number, one a label, in batches of numbers that follow each other.

    Image number i has random numbers of its own, see `Generator.sample`.
    """
    for numbers in batches:
        asked = labels[numbers[0] : numbers[-1] + 1]
        drawn = generator.sample(asked, sampling, seed=seed, first=numbers[0])
        yield Part(to_uint8(tokenizer.decode_sampled(drawn)), asked, numbers, drawn.passes)


def draw_images(
    generator: Generator, tokenizer: Tokenizer, labels: Int[Tensor, "n"], seed: int, sampling: Sampling
) -> UInt8[np.ndarray, "n H W c"]:
    """All of them: 8-bit images, one a label."""
    return np.concatenate([part.images for part in _all_parts(generator, tokenizer, labels, seed, sampling)])


def _all_parts(
    generator: Generator, tokenizer: Tokenizer, labels: Int[Tensor, "n"], seed: int, sampling: Sampling
) -> list[Part]:
    batches = dealt(range(len(labels)), at_once(generator, tokenizer), World(0, 1, labels.device))
    return list(sample_parts(generator, tokenizer, labels, seed, sampling, batches))


def image_shape(generator: Generator, tokenizer: Tokenizer) -> tuple[int, int, int]:
    """Height, width and channels of what is drawn."""
    height, width = generator.spec.grid
    return height * tokenizer.factor, width * tokenizer.factor, tokenizer.channels


def at_once(generator: Generator, tokenizer: Tokenizer) -> int:
    """Images that are drawn together where nobody says otherwise."""
    height, width, _ = image_shape(generator, tokenizer)
    return max_batch(height, width)


def draw_picture(
    pair: Pair, labels: Int[Tensor, "n"], seed: int, sampling: Sampling, out: Path, reporter: Reporter | None = None
) -> None:
    """All of them side by side as one PNG, ten in a row. Raises InputError, also where they are too many for that."""
    if len(labels) > MOST_PICTURED:
        raise InputError(f"{out}: {len(labels)} images are too many for one picture; name a folder or a .npz")
    parts = _all_parts(pair.generator, pair.tokenizer, labels, seed, sampling)
    images = np.concatenate([part.images for part in parts])
    make_folder(out.parent)
    write_png(image_grid(images, min(len(images), 10)), out)
    _mean_passes([part.passes for part in parts], pair.generator, reporter or Silent())


def _mean_passes(passes: Sequence[int | None], generator: Generator, reporter: Reporter) -> float | None:
    """Passes a batch where drawing decided how many, told in a line; else None."""
    counted = [count for count in passes if count is not None]
    if not counted:
        return None
    mean, tokens = sum(counted) / len(counted), generator.spec.tokens
    reporter.say(f"parallel: {mean:.1f} passes a batch for {tokens} tokens, {tokens / mean:.2f} tokens a pass")
    return mean


@dataclass(frozen=True)
class AskedFor:
    """The labels of the images, one each, and in words how they were chosen."""

    labels: Int[Tensor, "n"]
    law: str


def asked_for(
    run: Run, generator: Generator, given: Sequence[str | int], count: int, classes: Classes, seed: int
) -> AskedFor:
    """The labels that a person asks for: ``given`` ones, or ``count`` by a law.

    given    numbers or names of classes; empty for the law
    classes  ``balanced``: all classes of the generator in turn; ``random``: image i's follows from (seed, i);
             ``training``: in the proportions of the codes that the run was trained on, which must be there

    Raises InputError.
    """
    if given:
        return AskedFor(torch.tensor(generator.origin.labels(given)), GIVEN)
    if not 1 <= count <= MOST_SAMPLES:
        raise InputError(f"count {count}: expected 1 to {MOST_SAMPLES}")
    if classes not in LAWS:
        raise InputError(f"classes {classes!r}: expected {', '.join(LAWS)}")
    if classes == "balanced":
        labels = torch.arange(count) % generator.num_classes
    elif classes == "random":
        check_seed(seed)
        labels = choices(seed, count, generator.num_classes)
    else:
        labels = labels_like(open_codes(run, generator).read("train").labels, count)
    return AskedFor(labels, LAWS[classes])


@dataclass(frozen=True)
class SamplesCard:
    """What a set of samples is of: whatever decides its images, and by which code they were drawn.

    count                 images
    labels                how their classes were chosen, as ``every class alike``
    step                  of the checkpoint; None of a saved model
    weights               ``average`` or ``raw``
    seed                  of every random number
    guidance              classifier-free guidance scale, or one a group
    sampler               the other options in words; ``sampling`` holds all of them
    function_evaluations  of the generator for one image; of parallel decoding at most
    form                  ``png`` or ``npz``
    size                  height and width in pixels
    dtype                 arithmetic of the generator
    labels_hash           SHA-256 of the labels as int64
    generator_hash, tokenizer_hash
                          of the weights
    code_version          of ifsq, with its commit where that is known; several where the set was gone on with
    passes                of a batch through the generator on average, as of `Sampled`, since it was last gone on with
    guide_hash            of the weights that stand in for the null class, where the options name such
    """

    count: int
    labels: str
    step: int | None
    weights: str
    seed: int
    guidance: float | Sequence[float]
    sampler: str
    function_evaluations: int
    sampling: dict[str, Any]
    form: str
    size: tuple[int, int]
    dtype: str
    labels_hash: str
    generator_hash: str
    tokenizer_hash: str
    code_version: str
    kind: str = "samples"
    passes: float | None = None
    guide_hash: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "size": list(self.size)}

    def differs_from(self, found: dict[str, Any]) -> str:
        """The first field in which a card on disk says another thing, with both values; empty where none does."""
        mine = self.to_dict()
        different = differences({name: found.get(name) for name in mine}, mine)
        order = [entry.name for entry in fields(self) if entry.name not in DERIVED]
        told = [text for name in order for text in different if text.startswith((f"{name} ", f"{name}."))]
        return told[0] if told else ""


def samples_card(
    pair: Pair, asked: AskedFor, sampling: Sampling, seed: int, form: str, step: int | None, average: bool
) -> SamplesCard:
    """The card of samples that are to be drawn; ``form`` as of `ImageSet.kind`."""
    return SamplesCard(
        count=len(asked.labels),
        labels=asked.law,
        step=step,
        weights="average" if average else "raw",
        seed=seed,
        guidance=sampling.guidance,
        sampler=pair.generator.sampler(sampling),
        function_evaluations=pair.generator.cost(sampling),
        sampling=to_dict(sampling),
        form=form,
        size=image_shape(pair.generator, pair.tokenizer)[:2],
        dtype=pair.generator.arithmetic(sampling),
        labels_hash=hashlib.sha256(asked.labels.numpy().astype("<i8").tobytes()).hexdigest(),
        generator_hash=weights_digest(pair.generator),
        tokenizer_hash=pair.tokenizer.digest(),
        code_version=code_version(),
        guide_hash=pair.generator.guide_digest(sampling),
    )


def write_samples(
    pair: Pair,
    labels: Int[Tensor, "n"],
    sampling: Sampling,
    card: SamplesCard,
    place: ImageSet,
    world: World,
    reporter: Reporter,
    batch: int | None = None,
) -> None:
    """Draw an image for every label and write them as a set; one that is there already stays as it is.

    All processes share the images. Killed at any moment and called again it goes on with those that are missing, and
    ends with the bytes of an unbroken run: a batch is drawn as a whole however many of its images are there.

    batch  images at once, in each process; None: as many as pass through the tokenizer together, see `max_batch`

    Raises InputError in every process: where something else lies there, and samples of other options.
    """
    if batch is not None and batch < 1:
        raise InputError(f"batch {batch}: expected at least 1")
    for other in world.gather(card):
        if different := card.differs_from(other.to_dict()):
            raise InputError(
                f"{place.out}: the processes would draw unlike images ({different}); expected equal files on all"
                " machines, and of a run that is being trained a --step"
            )
    if _is_there(place, card):
        return
    with writing(place.out), _alone(place, world, reporter):
        if from_first(world, lambda: _is_there(place, card)):  # another was at work there
            return
        missing = ~from_first(world, lambda: _begin(place, card))
        try:
            passes = _draw_missing(pair, labels, sampling, card.seed, place, missing, world, reporter, batch)
        except InputError:
            if world.first:
                place.drop()
            raise
        names = pair.generator.origin.classes
        told = card.to_dict() | {"code_version": (place.note() or {}).get("code_version", card.code_version)}
        told["passes"] = _mean_passes(passes, pair.generator, reporter)
        from_first(world, lambda: place.finish(labels.numpy(), names, told))


@contextmanager
def _alone(place: ImageSet, world: World, reporter: Reporter) -> Iterator[None]:
    with ExitStack() as held:
        try:
            held.enter_context(alone_in(place.claimed, world, reporter.say))
        except BusyError as error:
            raise BusyError(f"{place.out}: another process writes it; wait until it ends") from error
        yield


def _is_there(place: ImageSet, card: SamplesCard) -> bool:
    """Whether these very samples are there. Raises InputError where others are, or something else."""
    found = place.finished()
    if found is None:
        return False
    if different := card.differs_from(found):
        raise InputError(f"{place.out}: holds other samples ({different}); choose another place or remove it")
    return True


def _begin(place: ImageSet, card: SamplesCard) -> np.ndarray:
    """Which images are there. Raises InputError where they are of other options."""
    note, mine = place.note(), card.to_dict()
    if note is not None:
        if different := card.differs_from(note):
            raise InputError(
                f"{place.out}: samples of other options were interrupted there ({different}); give the same options to"
                f" go on, or remove {place.hidden}"
            )
        versions = str(note.get("code_version")).split(", ")
        mine["code_version"] = ", ".join(dict.fromkeys((*versions, card.code_version)))
    place.begin(mine)
    return place.present()


def _draw_missing(
    pair: Pair,
    labels: Int[Tensor, "n"],
    sampling: Sampling,
    seed: int,
    place: ImageSet,
    missing: np.ndarray,
    world: World,
    reporter: Reporter,
    batch: int | None,
) -> list[int | None]:
    """Draw the batches that lack an image, a batch a process at a time, and keep what is missing.

    Returns the passes of all of them, see `Sampled`.
    """
    size = batch or at_once(pair.generator, pair.tokenizer)
    starts = [at for at in range(0, len(labels), size) if missing[at : at + size].any()]
    done = int(len(labels) - missing.sum())
    reporter.start("samples", done, len(labels))
    passes: list[int | None] = []

    def draw(turn: int) -> int:
        if turn >= len(starts):  # the others have the last ones
            return 0
        at = starts[turn]
        numbers = range(at, min(at + size, len(labels)))
        try:
            (part,) = sample_parts(pair.generator, pair.tokenizer, labels, seed, sampling, [numbers])
        except torch.OutOfMemoryError as error:
            raise InputError(f"{len(numbers)} images at once need more memory than there is; give --batch") from error
        passes.append(part.passes)
        lacks = missing[at : at + size]
        edges = np.flatnonzero(np.diff(lacks, prepend=False, append=False))
        for first, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            place.write(at + first, part.images[first:stop])
        return int(lacks.sum())

    for turn in range(0, len(starts), world.size):
        done += sum(gather_or_refuse(world, partial(draw, turn + world.rank)))
        reporter.advance(done, {})
    reporter.finish({})
    return [count for share in world.gather(passes) for count in share]
