"""What the training loop needs to know about a tokenizer. Called by ``pipeline``, which also says how to validate."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ifsq.config import InputError
from ifsq.data.images import ImageSource
from ifsq.data.sampler import ImageBatch, ImageBatches, StepSampler
from ifsq.tokenizer.losses import LossConfig, reconstruction_loss
from ifsq.tokenizer.model import Tokenizer
from ifsq.training.distributed import World
from ifsq.training.loop import TrainConfig


class TokenizerTask:
    """Reconstruct the images of a source. An instance of `ifsq.training.loop.Task`.

    held_out  figures of a model on images it was not trained on
    """

    def __init__(
        self,
        model: Tokenizer,
        source: ImageSource,
        loss: LossConfig,
        config: TrainConfig,
        held_out: Callable[[nn.Module], dict[str, float]],
    ) -> None:
        self.model: nn.Module = model
        self.source, self.weights, self.config = source, loss, config
        self.validate = held_out
        self._described = model.describe()

    def batches(self, start: int, world: World) -> Iterator[ImageBatch]:
        sampler = StepSampler(len(self.source), self.config.batch, self.config.seed, rank=world.rank, world=world.size)
        for batch in ImageBatches(self.source, sampler, start=start, workers=self.config.workers):
            yield ImageBatch(batch.images.to(world.device), batch.labels)

    def loss(self, model: nn.Module, batch: ImageBatch, rng: torch.Generator) -> dict[str, Tensor]:
        try:
            out = model(batch.images)
        except ValueError as error:  # the quantizer refuses what is not finite
            raise InputError(f"training diverged ({error}); lower train.optim.lr, in a new folder") from error
        losses = reconstruction_loss(batch.images, out.images, self.weights)
        return losses | out.losses | {"loss": sum(out.losses.values(), losses["loss"])}

    def describe(self) -> dict[str, Any]:
        return self._described
