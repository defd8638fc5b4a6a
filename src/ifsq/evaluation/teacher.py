"""What is measured of a teacher without any generator: spatial structure, and how well classes are read off it."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ifsq.data import DataError, ImageSource, iterate_once
from ifsq.data.labels import NO_LABEL
from ifsq.data.sampler import max_batch
from ifsq.evaluation.protocol import sample_indices
from ifsq.metrics.probe import FOLDS, ridge_probe
from ifsq.metrics.spatial import local_distant_similarity
from ifsq.pretrained.teachers.trained import PatchNet
from ifsq.training.distributed import World, gather_or_refuse

WATCHED = 500
"""Held-out images at most, drawn over all and always the same."""

Features = Callable[[Float[Tensor, "b c H W"]], Float[Tensor, "b t f"]]


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
    """``lds``, `local_distant_similarity`, and ``probe``, accuracy of `ridge_probe` on features averaged over an image.

    features  of images in [-1, 1] on ``world``'s device, for every token of the grid, row-major
    count     of the images, drawn over all, always the same

    ``probe`` is left out of images without two classes or with too few of them. What one process refuses, all refuse.
    """
    drawn = sorted(sample_indices(images, count))

    def look() -> tuple[Float[Tensor, "n"], Float[Tensor, "n f"], Int[Tensor, "n"]]:
        scores, means, labels = [torch.zeros(0, dtype=torch.float64)], [], []
        for batch in iterate_once(images, max_batch(*images.shape[:2]), indices=drawn[world.rank :: world.size]):
            if len(batch.images):
                found = features(batch.images.to(world.device))
                scores.append(local_distant_similarity(found, grid).cpu())
                means.append(found.mean(dim=1).cpu())
                labels.append(batch.labels)
        none = torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64)
        return torch.cat(scores), *((torch.cat(means), torch.cat(labels)) if means else none)

    shares = [share for share in gather_or_refuse(world, look) if len(share[0])]
    if not shares:
        raise DataError(f"held-out images: none of {len(drawn)} could be read")
    scores, means, labels = (torch.cat(part) for part in zip(*shares, strict=True))
    figures = {"lds": float(scores.mean())}
    known = labels != NO_LABEL
    if len(labels[known].unique()) > 1 and int(known.sum()) >= FOLDS:
        figures["probe"] = ridge_probe(means[known], labels[known]).accuracy
    return figures
