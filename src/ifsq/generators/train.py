"""What the training loop needs to know about a generator: one task for both kinds, fed with codes.

The task never learns which kind it holds.
"""

from collections import abc
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ifsq.codes import CodeBatch, CodeSet, CodeSpec
from ifsq.data.draws import mix
from ifsq.data.sampler import StepSampler
from ifsq.generators.base import Generator
from ifsq.training import parallel
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World
from ifsq.training.loop import Task
from ifsq.training.utilization import Work

HELD_OUT_BATCH = 128
HELD_OUT_SEED = 1  # noise and times of the held-out loss are the same at every validation


class GeneratorTask(Task):
    """Model codes, of a cache or computed as they are asked for.

    val  held-out codes; None of a cache without any, as of latents that another project extracted
    """

    def __init__(self, model: Generator, train: CodeSet, val: CodeSet | None, config: TrainConfig) -> None:
        self.model: nn.Module = model
        self.train, self.val = train, val
        self.config = config
        self.annealed = model.annealed
        self._described = model.describe()

    def batches(self, start: int, world: World) -> abc.Generator[CodeBatch, None, None]:
        sampler = StepSampler(
            len(self.train),
            self.config.batch,
            self.config.seed,
            rank=world.rank,
            world=world.size,
            parts=self.config.engine.accumulate,
        )
        engine = self.config.engine
        yield from self.train.batches(sampler, start, world.device, engine.workers, engine.prefetch)

    def loss(self, model: Generator, batch: CodeBatch, rng: torch.Generator, step: int) -> dict[str, Tensor]:
        return model.loss(batch, rng, step / self.config.steps)

    @torch.no_grad()
    def validate(self, model: Generator, world: World) -> dict[str, float]:
        """Mean of the losses over the held-out codes, in eval mode: no dropout, no dropped labels."""
        if self.val is None:
            return {}
        totals: dict[str, float] = {}
        for number, rows in enumerate(torch.arange(len(self.val)).split(HELD_OUT_BATCH)):
            if number % world.size != world.rank:
                continue
            rng = torch.Generator(world.device).manual_seed(mix(HELD_OUT_SEED, number))
            for name, value in model.eval().loss(self.val.batch(rows, world.device), rng).items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(rows)
        shares = world.gather(totals)
        names = {name: None for share in shares for name in share}
        return {name: sum(share.get(name, 0.0) for share in shares) / len(self.val) for name in names}

    def work(self) -> Work:
        return Work(self.train.layout.tokens, training_flops(self.model))

    def compiled(self) -> abc.Iterable[nn.Module]:
        return parallel.blocks(self.model)

    def describe(self) -> dict[str, Any]:
        return self._described


def training_flops(model: Any) -> int:
    """Floating-point operations that training a generator spends on an image: its loss, forward and backward.

    As torch counts them, those of matrices alone: a multiplication and an addition are two. The backward pass counts
    as two forward passes, so that what a pass computes again to save memory does not count. On the meta device: nothing
    is computed, no random number is drawn from the global generator, and the count is the same on every machine (torch
    counts no attention on a CPU, ``findings/torch_flop_counter_cpu_attention.sh``).
    """
    shadow: Any = parallel.without_weights(model).to("meta").train()  # a head's loss may be another there
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow.loss(_one_image(shadow), torch.Generator())
    return 3 * counter.get_total_flops()


def _one_image(model: Generator) -> CodeBatch:
    """A batch without content on the meta device, of the layout that a generator models."""
    digits = isinstance(model.spec, CodeSpec)
    content = torch.empty(1, *model.spec.shape, dtype=torch.int64 if digits else torch.float32, device="meta")
    labels = torch.empty(1, dtype=torch.int64, device="meta")
    return CodeBatch(model.spec, content, labels, getattr(model, "codebook", None))
