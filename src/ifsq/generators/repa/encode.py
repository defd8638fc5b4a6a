"""Writing the features of a teacher beside a cache of codes: all processes share them, a writer cut short goes on."""

import itertools
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ifsq.codes import feature_writer as writer
from ifsq.codes.cache import CodeCache
from ifsq.codes.features import FeatureCache, FeaturesAbout
from ifsq.config import InputError, build
from ifsq.data import DataConfig, open_images
from ifsq.data.crops import Crops
from ifsq.data.images import ImageSource
from ifsq.data.sampler import ImageBatch, iterate_items, iterate_once, max_batch
from ifsq.pretrained.teachers import ImageTeacher, TeacherConfig
from ifsq.training.claim import alone_in
from ifsq.training.distributed import World, from_first
from ifsq.training.log import Reporter


def features_beside(codes: str | Path, teacher: TeacherConfig) -> Path:
    """Where the features of a teacher lie unless somebody says otherwise: a folder beside that of the codes."""
    codes = Path(codes)
    codes = codes if codes.name not in ("", "..") else codes.resolve()  # where somebody is, it has no name
    return codes.with_name(f"{codes.name}-{re.sub(r'[^A-Za-z0-9._-]+', '-', named(teacher)).strip('-')}")


def named(teacher: TeacherConfig) -> str:
    """A teacher in a word: its source, and of its options those that are not usual."""
    return ", ".join([teacher.source, *(f"{name} {value}" for name, value in unusual(teacher).items())])


def unusual(teacher: TeacherConfig) -> dict[str, Any]:
    """Options of a teacher that are not usual."""
    usual = vars(TeacherConfig(teacher.source))
    return {name: value for name, value in vars(teacher).items() if value != usual[name]}


def write_features(
    teacher: ImageTeacher,
    name: str,
    cache: CodeCache,
    out: Path,
    grid: tuple[int, int],
    world: World,
    reporter: Reporter,
    *,
    workers: int = 0,
    batch: int = 0,
) -> FeatureCache:
    """Features of the training pictures of a cache, in their order; a cache that already says the same is returned.

    teacher  on the device that it computes on
    name     of it, for messages
    grid     rows and columns of the features
    workers  processes that read images ahead
    batch    pictures that pass through the teacher together; 0: as many as through a tokenizer

    Raises InputError in every process: where the cache does not say of which images it is, or they have changed, and
    for a grid or images that the teacher does not take.
    """
    pictures = Pictures.of(cache)
    height, width, channels = pictures.images.shape
    with _taken_by(teacher):
        teacher.check(torch.empty(1, channels, height, width), grid)
    about = FeaturesAbout(
        name, teacher.digest, cache.pictures, grid, teacher.width, len(pictures.indices) * pictures.count, cache.flips
    )
    if (existing := writer.existing_features(out, about)) is not None:
        return existing
    partial, size = writer.partial_features(out), writer.shard_size(about, pictures.count)
    shards = [pictures.indices[at : at + size] for at in range(0, len(pictures.indices), size)]
    with alone_in(out, world, reporter.say):
        if from_first(world, lambda: writer.existing_features(out, about) is not None):  # another was at work there
            return FeatureCache.open(out)
        if from_first(world, lambda: writer.prepare_features(partial, about)):
            reporter.say(f"{out}: goes on with the shards that are there")
        try:
            reporter.start(f"features, {name}", 0, len(pictures.indices))
            for number in range(world.rank, len(shards), world.size):
                path, rows = partial / writer.feature_shard(number), len(shards[number]) * pictures.count
                if not (partial / writer.MANIFEST).is_file() and not writer.shard_is_whole(path, rows, about):
                    seen = _looked_at(teacher, pictures, shards[number], about, workers, batch)
                    writer.save_features(path, *seen)
                reporter.advance(number * size + len(shards[number]), {})
            reporter.finish({})
        except InputError:
            writer.drop_unfinished_features(partial)
            raise
        world.barrier()
        if world.first:
            counts = [len(shard) * pictures.count for shard in shards]
            writer.finish_features(partial, out, about, counts)
        world.barrier()
    return FeatureCache.open(out)


@dataclass(frozen=True)
class Pictures:
    """The training images that a cache of codes is of.

    images   at their middle
    indices  of those that it has codes of
    cropped  with several crops, the same as each range of them has it
    """

    images: ImageSource
    indices: tuple[int, ...]
    cropped: tuple[ImageSource, ...] = ()
    crops: Crops | None = None

    @classmethod
    def of(cls, cache: CodeCache) -> "Pictures":
        """Raises InputError where the cache does not say it, or the images are others now."""
        if not cache.about.get("data"):
            raise InputError(f"{cache.folder}: does not say of which images its codes are; a teacher sees none")
        data = build(DataConfig, cache.about["data"], f"{cache.folder}: data")
        if "train" not in cache.splits:
            raise InputError(
                f"{cache.folder}: has codes of {', '.join(cache.splits)}; expected a split train to be seen"
            )
        expected = cache.about.get("fingerprints", {}).get("train")
        opened = (open_images(data, "train", labels=False, channels=channels) for channels in (3, 1))
        found = next((images for images in opened if images.fingerprint == expected), None)
        if found is None:
            raise InputError(f"{data.source}: its images are not those of {cache.folder} any more; encode again")
        indices = _coded(found, cache)
        if "crops" not in cache.about:
            return cls(found, indices)
        crops = build(Crops, cache.about["crops"], f"{cache.folder}: crops")
        return cls(found, indices, crops.sources(data, found.shape[2]), crops)

    @property
    def count(self) -> int:
        """Pictures of an image."""
        return 1 if self.crops is None else self.crops.count

    def read(self, indices: Sequence[int], batch: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of pictures, in [-1, 1], and the row of each among those of ``indices``."""
        batch = batch or max_batch(*self.images.shape[:2])
        if self.crops is None:
            yield from self._rows(iterate_once(self.images, batch, workers=workers, indices=indices), range(1))
            return
        for turn, source in enumerate(self.cropped):
            if numbers := self.crops.numbers(turn):
                items = self.crops.items(turn, indices)
                yield from self._rows(iterate_items(source, items, batch, workers), numbers)

    def _rows(self, batches: Generator[ImageBatch, None, None], numbers: range) -> Iterator[tuple[Tensor, Tensor]]:
        seen = 0
        with closing(batches) as read:
            for part in read:
                if part.skipped:
                    raise InputError(f"{part.skipped[0]}: could be read when the codes were written; encode again")
                places = torch.arange(seen, seen + len(part.images))
                inside = torch.tensor(numbers)[places % len(numbers)]
                yield part.images, places // len(numbers) * self.count + inside
                seen += len(part.images)


def _coded(images: ImageSource, cache: CodeCache) -> tuple[int, ...]:
    """Which of the images have codes: all but those that could not be read. Raises InputError."""
    count = cache.count("train")
    if count == len(images):
        return tuple(range(count))
    names, found = iter(cache.names("train")), []
    wanted = next(names, None)
    for index in range(len(images)):
        if images.name(index) == wanted:
            found.append(index)
            wanted = next(names, None)
    if wanted is not None:
        raise InputError(f"{wanted}: is not among the images of {cache.folder} any more; encode again")
    return tuple(found)


@torch.no_grad()
def _looked_at(
    teacher: ImageTeacher, pictures: Pictures, indices: Sequence[int], about: FeaturesAbout, workers: int, batch: int
) -> tuple[Float[Tensor, "n t f"], Float[Tensor, "n t f"] | None]:
    """Features of the pictures of some images, and of the mirrored ones, bfloat16 on the CPU."""
    device = next(itertools.chain(teacher.parameters(), teacher.buffers())).device
    shape = (len(indices) * pictures.count, *about.row)
    straight = torch.empty(shape, dtype=torch.bfloat16)
    flipped = torch.empty(shape, dtype=torch.bfloat16) if about.flips else None
    for images, rows in pictures.read(indices, batch, workers):
        shown = images.to(device)
        with _taken_by(teacher):
            straight[rows] = teacher.features(shown, about.grid).to(torch.bfloat16).cpu()
            if flipped is not None:
                flipped[rows] = teacher.features(shown.flip(-1), about.grid).to(torch.bfloat16).cpu()
    return straight, flipped


@contextmanager
def _taken_by(teacher: ImageTeacher) -> Iterator[None]:
    """Raise InputError for what a teacher refuses in the block."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"teacher {teacher.name}: {error}") from error
