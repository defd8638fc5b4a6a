"""What a generator is trained on where it is aligned: codes that bring the features of teachers with them."""

from dataclasses import dataclass, replace

from ifsq.codes import CodeCache, CodeSet
from ifsq.codes.features import FeatureCache
from ifsq.config import InputError, digest
from ifsq.generators.base import Generator, check_depth
from ifsq.generators.repa.alignment import Alignment
from ifsq.generators.repa.config import AlignmentConfig
from ifsq.generators.repa.encode import features_beside, named, unusual
from ifsq.nn.memory import within_memory
from ifsq.pretrained.teachers import TeacherConfig, open_teacher
from ifsq.training.distributed import World, in_turn


@dataclass(frozen=True)
class Taught:
    """A training set, and what learns from it beside the generator.

    train      codes, with the features of every teacher that looks at images
    companion  None where nothing is aligned
    data       what the run is trained on, as a digest: the codes, and the features
    """

    train: CodeSet
    companion: Alignment | None
    data: str


def taught(config: AlignmentConfig | None, model: Generator, train: CodeSet, cache: CodeCache, world: World) -> Taught:
    """Codes with the features of the teachers of an alignment: cached ones, or of teachers that look at each picture.

    Without a config, or of weight 0, the codes as they are. Raises InputError in every process where features are
    missing, damaged, or not of these pictures.
    """
    if config is None or not config.weight:
        return Taught(train, None, cache.digest)
    check_depth(config.depth, model.depth)
    sizes: dict[TeacherConfig, tuple[int, tuple[int, int]]] = {}  # numbers in a feature, and the grid
    if train.online:
        teachers = in_turn(world, lambda: [open_teacher(one) for one in config.seeing])
        train = train.seen_by([teacher.to(world.device) for teacher in teachers], model.token_grid)
        sizes |= {one: (teacher.width, model.token_grid) for one, teacher in zip(config.seeing, teachers, strict=True)}
        digests = [teacher.digest for teacher in teachers]
    else:
        opened = in_turn(world, lambda: _opened(config, cache))
        train = replace(train, features=tuple(in_turn(world, lambda: [found.read() for found in opened])))
        sizes |= {one: (found.about.width, found.about.grid) for one, found in zip(config.seeing, opened, strict=True)}
        digests = [found.digest for found in opened]
    if config.own is not None:
        sizes[config.own] = (model.config.width, model.token_grid)
    widths, grids = zip(*(sizes[one] for one in config.teachers), strict=True)
    with within_memory("alignment.hidden"):
        companion = Alignment(config, model.config.width, model.token_grid, widths, grids)
    return Taught(train, companion, digest({"codes": cache.digest, "features": digests}) if digests else cache.digest)


def _opened(config: AlignmentConfig, cache: CodeCache) -> list[FeatureCache]:
    """The features that the teachers have cached of the pictures of a cache of codes. Raises InputError."""
    opened = []
    folders = config.features or [str(features_beside(cache.folder, one)) for one in config.seeing]
    for one, folder in zip(config.seeing, folders, strict=True):
        try:
            opened.append(FeatureCache.open(folder))
        except InputError as error:
            asked = " ".join(f"--{name} {value}" for name, value in unusual(one).items())
            place = f"--out {folder}" if config.features else ""
            command = f"ifsq features {cache.folder} --teacher {one.source} {asked} {place}"
            raise InputError(f"{error}; write it with {' '.join(command.split())}") from error
        opened[-1].check(named(one), cache.pictures, flips=cache.flips)
    return opened
