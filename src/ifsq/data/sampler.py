"""Which image a training step sees, and batches of them: a pure function of (seed, step), whatever the processes.

The stream is the endless concatenation of one permutation of the source per epoch. Step s takes the positions
s * batch .. s * batch + batch - 1 of it, and rank r of w the r-th of w equal slices of these. Nothing is dropped,
nothing depends on what was read before, so a run continues at any step.

Called by both training tasks and by ``pipeline``.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ifsq.data.draws import mix, mix_range
from ifsq.data.images import DataError, ImageSource
from ifsq.data.transforms import to_float

Items = list[tuple[int, int]]
"""Pairs of image index and item seed."""


@dataclass(frozen=True)
class ImageBatch:
    """Images, float32 in [-1, 1], and their labels."""

    images: Float[Tensor, "b 3 H W"]
    labels: Int[Tensor, "b"]


def sample_order(seed: int, epoch: int, n: int) -> Int[np.ndarray, "n"]:
    """The permutation of 0 .. n - 1 that an epoch follows: the order of ``mix(seed, epoch, i)``."""
    return np.argsort(mix_range(seed, epoch, n), kind="stable")


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
        self.parts = parts
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

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
            self._epoch, self._order = epoch, sample_order(self.seed, epoch, self.n)
        return int(self._order[position]), mix(self.seed, epoch, position)


class ImageBatches:
    """Endless batches of a source, from any step on. Bitwise the same for any number of workers.

    start    first step
    workers  processes that read ahead; 0 reads in this one

    Iterating raises DataError in one line when an image cannot be read, also from a worker.
    """

    def __init__(self, source: ImageSource, sampler: StepSampler, start: int = 0, workers: int = 0) -> None:
        if len(source) != sampler.n:
            raise ValueError(f"sampler over {sampler.n} images: expected the {len(source)} of the source")
        self.source, self.sampler, self.start, self.workers = source, sampler, start, workers

    def __iter__(self) -> Iterator[ImageBatch]:
        return _read(self.source, _Steps(self.sampler, self.start), self.workers)


def iterate_once(
    source: ImageSource, batch: int, seed: int = 0, workers: int = 0, indices: Sequence[int] | None = None
) -> Iterator[ImageBatch]:
    """The images at ``indices`` (default: all) exactly once, in order; the last batch may be smaller.

    Item seeds are ``mix(seed, 0, index)``, so a part gives the pictures that the whole would.
    """
    if batch < 1:
        raise ValueError(f"batch={batch}: expected at least one image")
    items = [(index, mix(seed, 0, index)) for index in (range(len(source)) if indices is None else indices)]
    return _read(source, [items[at : at + batch] for at in range(0, len(items), batch)], workers)


class _Steps:
    """Steps of a sampler as the iterable that a DataLoader wants."""

    def __init__(self, sampler: StepSampler, start: int) -> None:
        self.sampler, self.start = sampler, start

    def __iter__(self) -> Iterator[Items]:
        return self.sampler.steps_from(self.start)


class _Stacked(Dataset):
    """Whole batches of a source as bytes: a quarter of what floats would cost between processes."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __getitem__(self, items: Items) -> tuple[Tensor, Tensor] | DataError:
        try:
            images, labels = zip(*(self.source.load(index, seed) for index, seed in items), strict=True)
        except DataError as error:
            return error  # raised in a worker, it would come back with a traceback for a message
        return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def _read(source: ImageSource, batches: Iterable[Items], workers: int) -> Iterator[ImageBatch]:
    # batch_size None hands a step's items over whole; a generator of its own leaves torch's global one untouched.
    loader = DataLoader(
        _Stacked(source), batch_size=None, sampler=batches, num_workers=workers, generator=torch.Generator()
    )
    for read in loader:
        if isinstance(read, DataError):
            raise read
        images, labels = read
        yield ImageBatch(to_float(images.numpy()), labels)
