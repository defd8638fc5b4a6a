"""Writing the codes of images as a cache: all processes share them, and a writer that was cut short goes on."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from ifsq.codes import writer
from ifsq.codes.cache import CodeCache
from ifsq.codes.spec import CodeSpec, LatentSpec
from ifsq.config import InputError, to_dict
from ifsq.data import DataConfig, describe_images, describe_splits, iterate_once
from ifsq.data.images import SPLITS, ImageSource
from ifsq.data.sampler import max_batch
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
) -> CodeCache:
    """The codes of some splits of a source as a cache; one that already says the same is returned.

    sources  the images of each split
    data     how they were made
    flip     store the codes of the mirrored images too
    workers  processes that read images ahead

    Raises InputError in every process.
    """
    about = {
        "data": to_dict(data),
        "fingerprints": {split: images.fingerprint for split, images in sources.items()},
        "tokenizer": tokenizer.digest(),
        **({"flips": True} if flip else {}),
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
        usual = tuple(sources) == SPLITS
        reporter.say(f"data: {describe_images(*sources.values()) if usual else describe_splits(sources)}")
        try:
            for split, images in sources.items() if not writer.is_complete(partial) else ():
                reporter.start(f"codes, {split}", 0, len(images))
                mine = range(world.rank, writer.shards_of(len(images)), world.size)
                encode = _encoder(tokenizer, images, layout, flip, workers, reporter)
                writer.write_shards(partial, split, len(images), encode, mine, layout, flips=flip, named=True)
                reporter.finish({})
        except InputError:
            writer.drop_unfinished(partial)
            raise
        world.barrier()
        if world.first:
            classes = next(iter(sources.values())).classes
            counts = {split: len(images) for split, images in sources.items()}
            writer.finish(partial, out, layout, classes, counts, about)
        world.barrier()
    cache = CodeCache.open(out)
    for line in cache.skipped:
        reporter.say(f"left out: {line}")
    return cache


def _encoder(
    tokenizer: Tokenizer,
    images: ImageSource,
    layout: CodeSpec | LatentSpec,
    flip: bool,
    workers: int,
    reporter: Reporter,
) -> writer.EncodeRange:
    device = next(tokenizer.parameters()).device

    def codes_of(pictures: Tensor) -> Tensor:
        encoded = tokenizer.encode(pictures.to(device))
        return (tokenizer.digits(encoded, layout) if isinstance(layout, CodeSpec) else encoded.codes).cpu()

    @torch.no_grad()
    def encode_range(start: int, stop: int) -> writer.Part:
        nothing = torch.empty(0, *layout.shape, dtype=torch.uint8 if isinstance(layout, CodeSpec) else torch.float32)
        codes, flipped, labels = [nothing], [nothing], [torch.empty(0, dtype=torch.int64)]
        skipped: list[str] = []
        names: list[str] = []
        once = iterate_once(images, max_batch(*images.shape[:2]), workers=workers, indices=range(start, stop))
        with closing(once) as batches:
            for batch in batches:
                skipped += batch.skipped
                names += [images.name(index) for index in batch.indices]
                if len(batch.images):
                    codes.append(codes_of(batch.images))
                    labels.append(batch.labels)
                    flipped += [codes_of(batch.images.flip(-1))] if flip else []
                reporter.advance(start + sum(map(len, labels)) + len(skipped), {})
        mirrored = torch.cat(flipped) if flip else None
        return writer.Part(torch.cat(codes), torch.cat(labels), mirrored, tuple(skipped), tuple(names))

    return encode_range
