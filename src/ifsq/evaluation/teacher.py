"""What is measured of a teacher without any generator: spatial structure, and how well classes are read off it."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifsq.config import InputError
from ifsq.data import DataError, ImageSource, iterate_once
from ifsq.data.labels import NO_LABEL
from ifsq.data.sampler import max_batch
from ifsq.evaluation.protocol import sample_indices
from ifsq.metrics.probe import FOLDS, Probe, ridge_probe
from ifsq.metrics.spatial import local_distant_similarity
from ifsq.pretrained.teachers.trained import PatchNet
from ifsq.training.distributed import World, gather_or_refuse

WATCHED = 500
"""Held-out images at most, drawn over all and always the same."""

Features = Callable[[Float[Tensor, "b c H W"]], Float[Tensor, "b t f"]]


@dataclass(frozen=True)
class TeacherFigures:
    """What was found of a teacher.

    lds      `local_distant_similarity` of each image, in an order that is the same for every teacher
    probe    `ridge_probe` on features averaged over an image; None of images without two classes, or with too few
    skipped  a line about each image that could not be read
    """

    lds: Float[Tensor, "n"]
    probe: Probe | None
    skipped: tuple[str, ...] = ()


@torch.no_grad()
def network_figures(network: PatchNet, images: ImageSource, world: World) -> dict[str, float]:
    """`teacher_figures` of a network on its own grid, while it is trained."""
    height, width, _ = images.shape
    grid = (height // network.config.patch, width // network.config.patch)
    seen = (grid[0] * network.config.patch, grid[1] * network.config.patch)  # sides that are no multiples are cut

    def features(pictures: Tensor) -> Tensor:
        maps = network(pictures[..., : seen[0], : seen[1]].expand(-1, 3, -1, -1))
        return maps.flatten(2).transpose(1, 2)

    was_training = network.training
    network.eval()
    try:
        return teacher_figures(features, grid, images, world)
    finally:
        network.train(was_training)


def teacher_figures(
    features: Features, grid: tuple[int, int], images: ImageSource, world: World, count: int = WATCHED
) -> dict[str, float]:
    """``lds``, the mean of `TeacherFigures.lds`, and ``probe``, the accuracy of its probe where it has one."""
    found = measure_teacher(features, grid, images, sample_indices(images, count), world)
    probe = {} if found.probe is None else {"probe": found.probe.accuracy}
    return {"lds": float(found.lds.mean()), **probe}


def measure_teacher(
    features: Features,
    grid: tuple[int, int],
    images: ImageSource,
    indices: Sequence[int],
    world: World,
    workers: int = 0,
    advance: Callable[[int], None] = lambda done: None,
) -> TeacherFigures:
    """Look at images, which all processes share; what one of them refuses, all refuse.

    features  of images in [-1, 1] on ``world``'s device, for every token of the grid, row-major
    indices   of the images
    workers   processes that read ahead
    advance   told how many images this process has seen
    """
    drawn = sorted(indices)[world.rank :: world.size]

    def look() -> tuple[tuple[Tensor, Tensor, Tensor] | None, tuple[str, ...]]:
        parts, skipped, seen = [], list[str](), 0
        with closing(iterate_once(images, max_batch(*images.shape[:2]), workers=workers, indices=drawn)) as batches:
            for batch in batches:
                skipped += batch.skipped
                if len(batch.images):
                    found = features(batch.images.to(world.device))
                    parts.append((_structure(found, grid), found.mean(dim=1).cpu(), batch.labels))
                seen += len(batch.images) + len(batch.skipped)
                advance(seen)
        if not parts:
            return None, tuple(skipped)
        lds, means, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        return (lds, means, labels), tuple(skipped)

    shares = gather_or_refuse(world, look)
    seen = [share for share, _ in shares if share is not None]
    if not seen:
        raise DataError(f"held-out images: none of {len(indices)} could be read")
    lds, means, labels = (torch.cat(part) for part in zip(*seen, strict=True))
    known = labels != NO_LABEL
    probed = len(labels[known].unique()) > 1 and int(known.sum()) >= FOLDS
    skipped = tuple(sorted(line for _, lines in shares for line in lines))
    return TeacherFigures(lds, ridge_probe(means[known], labels[known]) if probed else None, skipped)


def _structure(features: Float[Tensor, "b t f"], grid: tuple[int, int]) -> Float[Tensor, "b"]:
    try:
        return local_distant_similarity(features, grid).cpu()
    except ValueError as error:
        raise InputError(f"spatial structure: {error}") from error
