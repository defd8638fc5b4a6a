"""Which image a training step sees, and batches of them: a pure function of (seed, step), whatever the processes.

The stream is the endless concatenation of one permutation of the source per epoch. Step s takes the positions
s * batch .. s * batch + batch - 1 of it, and rank r of w the r-th of w equal slices of these. Nothing is dropped,
nothing depends on what was read before, so a run continues at any step.
"""

import functools
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ifsq.data.draws import mix, mix_range
from ifsq.data.images import BrokenImageError, DataError, ImageSource
from ifsq.data.transforms import to_float
from ifsq.data.workers import Items, Loaded, load_ahead

FURTHER = 100  # images that are tried in the place of one that cannot be read
AT_ONCE = 128  # images that pass through a network together
PIXELS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class ImageBatch:
    """Images, float32 in [-1, 1], and their labels.

    skipped    what was left out, a line an image with its name and the reason; see `ImageBatches`
    indices    of the images in their source
    stands_in  whether these are other images, in the place of a batch with nothing left
    """

    images: Float[Tensor, "b c H W"]
    labels: Int[Tensor, "b"]
    skipped: tuple[str, ...] = ()
    indices: tuple[int, ...] = ()
    stands_in: bool = False

    @property
    def left(self) -> int:
        """Images that count."""
        return 0 if self.stands_in else len(self.labels)


def max_batch(height: int, width: int) -> int:
    """Images of this size that pass through a tokenizer together: fewer of large ones."""
    return max(1, min(AT_ONCE, PIXELS_AT_ONCE // (height * width)))


def sample_order(seed: int, epoch: int, n: int, block: int = 0) -> Int[np.ndarray, "n"]:
    """The permutation of 0 .. n - 1 that an epoch follows: the order of ``mix(seed, epoch, i)``.

    block  0: over all of them; else inside of every block of so many neighbours, and the blocks in their order
    """
    keys = mix_range(seed, epoch, n)
    return np.lexsort((keys, np.arange(n) // block)) if block else np.argsort(keys, kind="stable")


class StepSampler:
    """Items of every training step.

    n           images in the source
    batch       images a step over all ranks; may exceed n
    seed        decides the order and every item seed, ``mix(seed, epoch, position in the epoch)``
    rank, world this process among those that share the batch
    parts       equal parts that `steps_from` gives this rank's share of a step in

    Raises ValueError when the ranks cannot share the batch equally.
    """

    def __init__(self, n: int, batch: int, seed: int, rank: int = 0, world: int = 1, parts: int = 1) -> None:
        if n < 1 or batch < 1:
            raise ValueError(f"{n} images in batches of {batch}: expected at least one")
        if not 0 <= rank < world:
            raise ValueError(f"rank={rank} of world={world}: expected 0 <= rank < world")
        if parts < 1 or batch % (world * parts):
            raise ValueError(f"batch={batch}: expected a multiple of the {world} processes times parts={parts}")
        self.n, self.batch, self.seed, self.rank, self.world = n, batch, seed, rank, world
        self.parts, self.block = parts, 0
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def in_blocks(self, block: int) -> "StepSampler":
        """A sampler of the same steps whose order stays inside of blocks (`sample_order`)."""
        other = StepSampler(self.n, self.batch, self.seed, self.rank, self.world, self.parts)
        other.block = block
        return other

    def items(self, step: int) -> Items:
        """This rank's (index, item seed) pairs of a step."""
        share = self.batch // self.world
        start = step * self.batch + self.rank * share
        return [self._item(*divmod(position, self.n)) for position in range(start, start + share)]

    def steps_from(self, start: int) -> Iterator[Items]:
        """Items of steps start, start + 1, ... without end, each step in ``parts``."""
        step, size = start, self.batch // self.world // self.parts
        while True:
            items = self.items(step)
            for part in range(self.parts):
                yield items[part * size : (part + 1) * size]
            step += 1

    def _item(self, epoch: int, position: int) -> tuple[int, int]:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, sample_order(self.seed, epoch, self.n, self.block)
        return int(self._order[position]), mix(self.seed, epoch, position)


class ImageBatches:
    """Endless batches of a source, from any step on. Bitwise the same for any number of workers.

    start     first step
    workers   processes that read ahead; 0 reads in this one. They draw nothing of their own: all randomness is in the
              item seeds, so no two workers can repeat each other
    prefetch  batches that each worker reads ahead
    device    where images are made floats: bytes go there, from pinned memory when it is a GPU. Labels stay here

    The iterator owns the workers: close it (``contextlib.closing``) where it is left early. Iterating raises DataError
    in one line when an image cannot be read, also from a worker, and when a worker ends. A source whose ``broken`` is
    ``skip`` leaves the image out instead: its batch is smaller and names it, every time it is drawn. Training weighs
    every image that is left in a step alike, however it lies in parts and processes, and refuses a step with nothing
    left (`ifsq.training.loop`). Where that is a part of a step alone, another image stands in: processes compute
    together, so each has to pass something through the model. It counts nothing, but running statistics see it.
    """

    def __init__(
        self,
        source: ImageSource,
        sampler: StepSampler,
        start: int = 0,
        workers: int = 0,
        prefetch: int = 2,
        device: torch.device | None = None,
    ) -> None:
        if len(source) != sampler.n:
            raise ValueError(f"sampler over {sampler.n} images: expected the {len(source)} of the source")
        if prefetch < 1:
            raise ValueError(f"prefetch={prefetch}: expected at least one batch")
        self.source, self.sampler = source, sampler.in_blocks(source.block)
        self.start, self.workers, self.prefetch, self.device = start, workers, prefetch, device

    def __iter__(self) -> Generator[ImageBatch, None, None]:
        steps = self.sampler.steps_from(self.start)
        return _read(self.source, steps, self.workers, self.prefetch, self.device, fills=True)


def iterate_once(
    source: ImageSource, batch: int, seed: int = 0, workers: int = 0, indices: Sequence[int] | None = None
) -> Generator[ImageBatch, None, None]:
    """The images at ``indices`` (default: all) exactly once, in order; the last batch may be smaller.

    The iterator owns the workers: close it (``contextlib.closing``) where it may be left before its end.

    Item seeds are ``mix(seed, 0, index)``, so a part gives the pictures that the whole would. Where a source skips
    broken images, batches are smaller by these and may be empty; ``skipped`` of all of them names every one once.
    """
    if batch < 1:
        raise ValueError(f"batch={batch}: expected at least one image")
    items = [(index, mix(seed, 0, index)) for index in (range(len(source)) if indices is None else indices)]
    return iterate_items(source, items, batch, workers)


def iterate_items(source: ImageSource, items: Items, batch: int, workers: int = 0) -> Generator[ImageBatch, None, None]:
    """The pictures that these pairs of image and seed stand for, in order, otherwise as `iterate_once`.

    Several pictures of an image are quickest one behind the other: it is decoded once.
    """
    return _read(source, [items[at : at + batch] for at in range(0, len(items), batch)], workers)


def iterate_bytes(
    source: ImageSource, batches: Iterable[Sequence[int]], workers: int = 0
) -> Generator[Loaded, None, None]:
    """The images at these places as bytes, batch by batch, as `iterate_once` does it; it owns the workers likewise."""
    load = functools.partial(_load, source, False)
    items = ([(index, mix(0, 0, index)) for index in indices] for indices in batches)
    if not workers:
        yield from map(load, items)
        return
    with closing(load_ahead(load, items, workers)) as loaded:
        yield from loaded


def _load(source: ImageSource, fills: bool, items: Items) -> Loaded:
    """A batch of a source as bytes: a quarter of what floats would cost between processes. Raises DataError.

    fills  another image stands in where nothing is left
    """
    images, labels, skipped, read = [], [], [], []
    for index, seed in items:
        try:
            image, label = source.load(index, seed)
        except BrokenImageError as error:
            if source.broken == "refuse":
                raise
            skipped.append(str(error))
        else:
            images.append(image)
            labels.append(label)
            read.append(index)
    stands_in = fills and not images
    if stands_in:
        index, image, label = _another(source, *items[-1], skipped[0])
        images, labels, read = [image], [label], [index]
    stacked = np.stack(images) if images else np.empty((0, *source.shape), dtype=np.uint8)
    told = torch.tensor(labels, dtype=torch.int64)
    return Loaded(torch.from_numpy(stacked), told, tuple(skipped), tuple(read), stands_in)


def _another(source: ImageSource, index: int, seed: int, broken: str) -> tuple[int, UInt8[np.ndarray, "H W c"], int]:
    """The first image after ``index``, in its block where there are blocks, that can be read; its index and label."""
    size = source.block or len(source)
    start = index - index % size
    size = min(size, len(source) - start)  # the last block may be shorter
    for further in range(1, min(size, FURTHER)):
        other = start + (index - start + further) % size
        with suppress(BrokenImageError):
            return other, *source.load(other, seed)
    raise DataError(f"images around it cannot be used either: {broken}")


def _read(
    source: ImageSource,
    batches: Iterable[Items],
    workers: int,
    prefetch: int = 2,
    device: torch.device | None = None,
    fills: bool = False,
) -> Generator[ImageBatch, None, None]:
    load = functools.partial(_load, source, fills)
    gpu = None
    if device is not None and device.type == "cuda":
        gpu = torch.cuda.current_device() if device.index is None else device.index
    in_turn = (load(items) for items in batches)
    with closing(load_ahead(load, batches, workers, prefetch, gpu) if workers else in_turn) as loaded:
        for read in loaded:
            images = read.images if device is None else read.images.to(device, non_blocking=True)
            yield ImageBatch(to_float(images), read.labels, read.skipped, read.indices, read.stands_in)
