"""What the training loop needs to know about a generator: one task for both kinds, fed from the code cache.

Called by ``pipeline``. The task never learns which kind it holds.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ifsq.codes.cache import CodeSet
from ifsq.data.sampler import StepSampler
from ifsq.generators.base import CodeBatch, Generator
from ifsq.training.distributed import World
from ifsq.training.loop import TrainConfig

HELD_OUT_BATCH = 128
HELD_OUT_SEED = 1  # noise and times of the held-out loss are the same at every validation


class GeneratorTask:
    """Model the codes of a cache. An instance of `ifsq.training.loop.Task`.

    described  JSON from which the generator can be built again
    """

    def __init__(
        self, model: Generator, train: CodeSet, val: CodeSet, config: TrainConfig, described: dict[str, Any]
    ) -> None:
        self.model: nn.Module = model
        self.train, self.val = train, val
        self.config = config
        self._described = described

    def batches(self, start: int, world: World) -> Iterator[CodeBatch]:
        sampler = StepSampler(len(self.train), self.config.batch, self.config.seed, rank=world.rank, world=world.size)
        for items in sampler.steps_from(start):
            yield take(self.train, torch.tensor([index for index, _ in items]), world.device)

    def loss(self, model: Generator, batch: CodeBatch, rng: torch.Generator) -> dict[str, Tensor]:
        return model.loss(batch, rng)

    @torch.no_grad()
    def validate(self, model: Generator) -> dict[str, float]:
        """Mean of the losses over the held-out codes, in eval mode: no dropout, no dropped labels."""
        device = next(model.parameters()).device
        rng = torch.Generator(device).manual_seed(HELD_OUT_SEED)
        totals: dict[str, float] = {}
        for rows in torch.arange(len(self.val)).split(HELD_OUT_BATCH):
            for name, value in model.eval().loss(take(self.val, rows, device), rng).items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(rows)
        return {name: total / len(self.val) for name, total in totals.items()}

    def describe(self) -> dict[str, Any]:
        return self._described


def take(codes: CodeSet, rows: Tensor, device: torch.device) -> CodeBatch:
    """The rows of a code set as a batch on a device, digits as int64."""
    return CodeBatch(codes.digits[rows].to(device, torch.int64), codes.labels[rows].to(device))
