"""Writing the codes of images as a cache: all processes share them, and a writer that was cut short goes on."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ifsq.codes import writer
from ifsq.codes.cache import CodeCache
from ifsq.codes.spec import CodeSpec, LatentSpec
from ifsq.config import InputError, to_dict
from ifsq.data import DataConfig, ImageBatch, describe_images, describe_splits, iterate_once
from ifsq.data.crops import Crops
from ifsq.data.images import SPLITS, ImageSource
from ifsq.data.sampler import iterate_items, max_batch
from ifsq.tokenizer.model import Tokenizer
from ifsq.training.claim import alone_in
from ifsq.training.distributed import World, from_first
from ifsq.training.log import Reporter


def write_codes(
    tokenizer: Tokenizer,
    sources: Mapping[str, ImageSource],
    data: DataConfig,
    out: Path,
    world: World,
    reporter: Reporter,
    *,
    flip: bool,
    workers: int,
    crops: Crops | None = None,
    batch: int = 0,
) -> CodeCache:
    """The codes of some splits of a source as a cache; one that already says the same is returned.

    sources  the images of each split
    data     how they were made
    flip     store the codes of the mirrored images too
    workers  processes that read images ahead
    crops    several of each training image in place of its middle; ``ten`` brings flips with it
    batch    pictures that pass through the tokenizer together; 0: as many as are usual at their size

    Raises InputError in every process.
    """
    flip = flip or (crops is not None and crops.kind == "ten")
    cropped = _cropped(crops, data, tokenizer.channels, sources)
    fingerprints = {split: images.fingerprint for split, images in sources.items()}
    about = {
        "data": to_dict(data),
        "fingerprints": fingerprints | {f"train, crops {n}": one.fingerprint for n, one in enumerate(cropped)},
        "tokenizer": tokenizer.digest(),
        **({"flips": True} if flip else {}),
        **({"crops": to_dict(crops)} if crops is not None else {}),
    }
    existing = writer.existing_cache(out, about)
    if existing is not None:
        return existing
    layout = tokenizer.layout(*data.sides)
    partial = writer.partial_of(out)
    with alone_in(out, world, reporter.say):
        if from_first(world, lambda: writer.existing_cache(out, about) is not None):  # another was at work there
            return CodeCache.open(out)
        if from_first(world, lambda: writer.prepare(partial, about)):
            reporter.say(f"{out}: goes on with the shards that are there")
        told = describe_images(*sources.values()) if tuple(sources) == SPLITS else describe_splits(sources)
        reporter.say(f"data: {told}")
        try:
            for split, images in sources.items() if not writer.is_complete(partial) else ():
                reporter.start(f"codes, {split}", 0, len(images))
                mine = range(world.rank, writer.shards_of(len(images)), world.size)
                several = crops if split == "train" else None
                read = _Read(images, cropped, several, batch or max_batch(*images.shape[:2]), workers)
                encode = _encoder(tokenizer, read, layout, flip, reporter)
                count = 1 if several is None else several.count
                writer.write_shards(
                    partial, split, len(images), encode, mine, layout, flips=flip, named=True, crops=count
                )
                reporter.finish({})
        except InputError:
            writer.drop_unfinished(partial)
            raise
        world.barrier()
        if world.first:
            counts = {split: len(images) for split, images in sources.items()}
            writer.finish(partial, out, layout, next(iter(sources.values())).classes, counts, about)
        world.barrier()
    cache = CodeCache.open(out)
    for line in cache.skipped:
        reporter.say(f"left out: {line}")
    return cache


def _cropped(
    crops: Crops | None, data: DataConfig, channels: int, sources: Mapping[str, ImageSource]
) -> tuple[ImageSource, ...]:
    """The training images as the crops have them, a source for every range."""
    if crops is None:
        return ()
    if "train" not in sources:
        raise InputError(f"crops of {', '.join(sources)}: several are taken of training images alone; expected train")
    return crops.sources(data, channels)


@dataclass(frozen=True)
class _Read:
    """How the images of a split are read: at their middle, or as crops of several sources."""

    images: ImageSource
    cropped: tuple[ImageSource, ...]
    crops: Crops | None
    batch: int
    workers: int

    def parts(self, images: range) -> Iterator[tuple[range, Generator[ImageBatch, None, None]]]:
        """For each source, which crops come from it, and their pictures in batches, image by image."""
        if self.crops is None:
            yield range(1), iterate_once(self.images, self.batch, workers=self.workers, indices=images)
            return
        for turn, source in enumerate(self.cropped):
            if numbers := self.crops.numbers(turn):
                yield numbers, iterate_items(source, self.crops.items(turn, images), self.batch, self.workers)


def _encoder(
    tokenizer: Tokenizer, read: _Read, layout: CodeSpec | LatentSpec, flip: bool, reporter: Reporter
) -> writer.EncodeRange:
    device = next(tokenizer.parameters()).device
    count = 1 if read.crops is None else read.crops.count

    def codes_of(pictures: Tensor) -> Tensor:
        encoded = tokenizer.encode(pictures.to(device))
        return (tokenizer.digits(encoded, layout) if isinstance(layout, CodeSpec) else encoded.codes).cpu()

    @torch.no_grad()
    def encode_range(start: int, stop: int) -> writer.Part:
        nothing = torch.empty(0, *layout.shape, dtype=torch.uint8 if isinstance(layout, CodeSpec) else torch.float32)
        columns: dict[int, tuple[Tensor, Tensor]] = {}  # of each crop, the codes of all images and of their mirrors
        indices: list[int] = []
        labels = torch.empty(0, dtype=torch.int64)
        skipped: dict[str, None] = {}
        seen = 0
        for numbers, pictures in read.parts(range(start, stop)):
            codes, flipped, marks, places = [nothing], [nothing], [labels[:0]], list[int]()
            with closing(pictures) as batches:
                for batch in batches:
                    skipped |= dict.fromkeys(batch.skipped)
                    places += batch.indices
                    if len(batch.images):
                        codes.append(codes_of(batch.images))
                        marks.append(batch.labels)
                        flipped += [codes_of(batch.images.flip(-1))] if flip else []
                    seen += len(batch.images) + len(batch.skipped)
                    reporter.advance(start + seen // count, {})
            rows, mirrored, k = torch.cat(codes), torch.cat(flipped), len(numbers)
            if columns and places[::k] != indices:
                raise InputError(f"{read.images.name(start)} and after it: images changed while they were encoded")
            indices, labels = places[::k], torch.cat(marks)[::k]
            columns |= {n: (rows[turn::k], mirrored[turn::k]) for turn, n in enumerate(numbers)}
        straight, mirrors = (
            torch.stack([columns[number][side] for number in range(count)], dim=1).flatten(0, 1) for side in (0, 1)
        )
        names = tuple(read.images.name(index) for index in indices)
        return writer.Part(straight, labels, mirrors if flip else None, tuple(skipped), names)

    return encode_range
