"""What the training loop needs to know about a teacher."""

from collections.abc import Callable, Generator, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ifsq.config import to_dict
from ifsq.data.images import ImageSource
from ifsq.data.sampler import ImageBatch, ImageBatches, StepSampler
from ifsq.pretrained.teachers.trained import KIND, PatchNet, PatchNetConfig
from ifsq.pretraining.config import ObjectiveConfig
from ifsq.pretraining.views import common_places, draw_frames, features_at, recolour, take
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World
from ifsq.training.loop import Task

MARGIN = 1e-4
"""Beside a variance, so that features that do not vary are not divided by nothing."""


class Student(nn.Module):
    """The network, and the two projectors that only its training needs: of places and of whole images."""

    def __init__(self, config: PatchNetConfig, expansion: int) -> None:
        super().__init__()
        self.network = PatchNet(config)
        self.places = _projector(config.width, expansion * config.width)
        self.whole = _projector(config.width, expansion * config.width)

    def forward(
        self, images: Float[Tensor, "b c H W"], objective: ObjectiveConfig, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """``loss`` and its parts, of two views of each image; of one channel, luminance, as of grey RGB."""
        images = images.expand(-1, 3, -1, -1)
        first, second = (draw_frames(len(images), objective.smallest, rng) for _ in range(2))
        common = common_places(first, second, objective.points, rng)
        places, means = [], []
        for frames in (first, second):
            view = recolour(take(images, frames), objective.colour, objective.noise, rng)
            maps = self.network(view)
            places.append(self.places(features_at(maps, frames.inside(common)).flatten(0, 1)))
            means.append(self.whole(maps.mean(dim=(2, 3))))
        at_places = barlow_twins(places[0], places[1], objective.redundancy)
        whole = barlow_twins(means[0], means[1], objective.redundancy)
        loss = (1 - objective.whole) * at_places.pop("loss") + objective.whole * whole["loss"]
        return {"loss": loss, **{name: value.detach() for name, value in at_places.items()}}


def barlow_twins(
    one: Float[Tensor, "n d"], two: Float[Tensor, "n d"], redundancy: float
) -> dict[str, Float[Tensor, ""]]:
    """Of paired vectors, in float32, by the correlations c between features of the one and of the other.

        alike + redundancy * redundant,  alike = mean_i (1 - c_ii)^2,  redundant = sum_{i != j} c_ij^2 / d

    Correlations are those of the vectors that are given: processes do not share them.
    """
    with torch.autocast(one.device.type, enabled=False):
        first, second = (_standardized(x.float()) for x in (one, two))
        correlations = first.T @ second / len(first)  # d d
        own = correlations.diagonal()
        alike = (1 - own).square().mean()
        redundant = (correlations.square().sum() - own.square().sum()) / len(own)
    return {"loss": alike + redundancy * redundant, "unlike_views": alike, "redundant": redundant}


class TeacherTask(Task):
    """Features of the same place alike in two views of an image.

    validation  figures of a network on images that it was not trained on
    """

    model: Student

    def __init__(
        self,
        model: Student,
        source: ImageSource,
        objective: ObjectiveConfig,
        config: TrainConfig,
        validation: Callable[[PatchNet, World], dict[str, float]],
    ) -> None:
        self.model, self.source, self.objective, self.config = model, source, objective, config
        self.validation = validation

    def batches(self, start: int, world: World) -> Generator[ImageBatch, None, None]:
        engine = self.config.engine
        sampler = StepSampler(
            len(self.source), self.config.batch, self.config.seed, world.rank, world.size, engine.accumulate
        )
        return iter(ImageBatches(self.source, sampler, start, engine.workers, engine.prefetch, world.device))

    def skipped(self, batch: ImageBatch) -> tuple[str, ...]:
        return batch.skipped

    def left(self, batch: ImageBatch) -> int | None:
        return batch.left if self.source.broken == "skip" else None

    def loss(self, model: Student, batch: ImageBatch, rng: torch.Generator, step: int) -> dict[str, Tensor]:
        return model(batch.images, self.objective, rng)

    def validate(self, model: Student, world: World) -> dict[str, float]:
        return self.validation(model.network, world)

    def compiled(self) -> Iterable[nn.Module]:
        return (self.model.network,)

    def describe(self) -> dict[str, Any]:
        return {"kind": KIND, "network": to_dict(self.model.network.config), "objective": to_dict(self.objective)}


def _projector(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inner, outer), nn.LayerNorm(outer), nn.SiLU(), nn.Linear(outer, outer))


def _standardized(x: Tensor) -> Tensor:
    """Every feature with mean 0 and variance 1 over the rows; of a single row zeros."""
    centred = x - x.mean(dim=0)
    return centred / (centred.square().mean(dim=0) + MARGIN).sqrt()
