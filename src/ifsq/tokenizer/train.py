"""What the training loop needs to know about a tokenizer; how it is validated is told to it."""

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ifsq.config import InputError
from ifsq.data.images import ImageSource
from ifsq.data.sampler import ImageBatch, ImageBatches, StepSampler
from ifsq.tokenizer.adversarial import Adversary
from ifsq.tokenizer.bottleneck import NestedLevels
from ifsq.tokenizer.losses import LossConfig, tokenizer_loss
from ifsq.tokenizer.model import Tokenizer
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World
from ifsq.training.loop import Opponent, Task


class TokenizerTask(Task):
    """Reconstruct the images of a source, against a discriminator where the losses name one.

    perceptual  frozen networks of the losses, see `load_perceptual`; they are on no list of what is saved
    validation  figures of a model on images it was not trained on
    """

    model: Tokenizer

    def __init__(
        self,
        model: Tokenizer,
        source: ImageSource,
        loss: LossConfig,
        config: TrainConfig,
        perceptual: Mapping[str, nn.Module],
        validation: Callable[[Tokenizer, World], dict[str, float]],
    ) -> None:
        self.model = model
        self.source, self.weights, self.config = source, loss, config
        self.perceptual, self.validation = perceptual, validation
        self._described = model.describe()
        quantizer = model.config.quantizer
        self.nested: NestedLevels | None = None  # what each step is quantized to
        if quantizer.nested_levels:
            self.nested = NestedLevels(quantizer, model.quantizer, config.seed)
        self._reconstructed: Tensor | None = None  # by the latest `loss`, for the discriminator's half of the step
        self.adversary: Adversary | None = None
        if loss.adversarial is not None:
            self.adversary = Adversary(loss.adversarial, model.channels)
            self.opponent = Opponent(
                self.adversary, replace(config.optim, kind="adamw", lr=loss.adversarial.rate, clip=0.0), "discriminator"
            )

    def batches(self, start: int, world: World) -> Generator[ImageBatch, None, None]:
        sampler = StepSampler(
            len(self.source),
            self.config.batch,
            self.config.seed,
            rank=world.rank,
            world=world.size,
            parts=self.config.engine.accumulate,
        )
        engine = self.config.engine
        return iter(ImageBatches(self.source, sampler, start, engine.workers, engine.prefetch, world.device))

    def skipped(self, batch: ImageBatch) -> tuple[str, ...]:
        return batch.skipped

    def left(self, batch: ImageBatch) -> int | None:
        return batch.left if self.source.broken == "skip" else None

    def turns(self, step: int) -> tuple[bool, bool]:
        adversarial = self.weights.adversarial
        if adversarial is None or not adversarial.started(step):
            return True, False
        if not adversarial.alternate:
            return True, True
        return step % 2 == 0, step % 2 == 1

    def loss(self, model: Tokenizer, batch: ImageBatch, rng: torch.Generator, step: int) -> dict[str, Tensor]:
        drawn = self._draw_levels(model, step)
        try:
            out = model(batch.images)
        except ValueError as error:  # the quantizer refuses what is not finite
            raise InputError(f"training diverged ({error}); lower train.optim.lr, in a new folder") from error
        # Kept only for a discriminator that has its turn on the same part: a later step would see what no longer is.
        self._reconstructed = out.images.detach() if self.turns(step)[1] else None
        losses = tokenizer_loss(
            batch.images, out, self.model.decoder, self.weights, self.perceptual, self.adversary, step
        )
        return {**losses, **drawn}

    def opponent_loss(self, opponent: Adversary, model: Tokenizer, batch: ImageBatch, step: int) -> dict[str, Tensor]:
        reconstructed, self._reconstructed = self._reconstructed, None
        if reconstructed is None:  # the model does not play in this step
            model.eval()
            self._draw_levels(model, step)
            with torch.no_grad():
                reconstructed = model(batch.images).images
        losses = opponent(batch.images, reconstructed, step)
        return {"loss": losses.pop("discriminator"), **losses}

    def _draw_levels(self, model: Tokenizer, step: int) -> dict[str, Tensor]:
        """Let the model round to the levels of a step, and say how many those are, for the log."""
        if self.nested is None:
            return {}
        self.nested.use(model.quantizer, step)
        return {"levels": torch.full((), float(self.nested.draw(step)), device=next(model.parameters()).device)}

    def validate(self, model: Tokenizer, world: World) -> dict[str, float]:
        return self.validation(model, world)

    def compiled(self) -> Iterable[nn.Module]:
        return self.model.encoder, self.model.decoder

    def describe(self) -> dict[str, Any]:
        return self._described
