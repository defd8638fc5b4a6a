"""What the training loop needs to know about a generator: one task for all kinds, fed with codes.

The task never learns which kind it holds.
"""

from collections import abc
from contextlib import closing
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ifsq.codes import CodeBatch, CodeSet, CodeSpec
from ifsq.data.draws import mix
from ifsq.data.sampler import StepSampler
from ifsq.generators.base import Generator
from ifsq.generators.repa import Alignment, AlignmentConfig
from ifsq.generators.repa.config import SELF
from ifsq.pretrained.teachers import SelfTeacher
from ifsq.training import parallel
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World
from ifsq.training.loop import Task
from ifsq.training.utilization import Work

HELD_OUT_BATCH = 128
HELD_OUT_SEED = 1  # noise and times of the held-out loss are the same at every validation


class GeneratorTask(Task):
    """Model codes, of a cache or computed as they are asked for.

    val        held-out codes; None of a cache without any, as of latents that another project extracted
    companion  what the generator is aligned by; ``train`` then gives features of its teachers
    """

    companion: Alignment | None

    def __init__(
        self,
        model: Generator,
        train: CodeSet,
        val: CodeSet | None,
        config: TrainConfig,
        companion: Alignment | None = None,
    ) -> None:
        self.model: nn.Module = model
        self.train, self.val = train, val
        self.config = config
        self.companion = companion
        self._own: SelfTeacher | None = None
        self.annealed = (*model.annealed, *(() if companion is None else companion.config.annealed))
        self._described = model.describe()

    def batches(self, start: int, world: World) -> abc.Generator[CodeBatch, None, None]:
        """Without features once nothing is aligned any more: no teacher looks, nothing is read of them."""
        engine, steps = self.config.engine, self.config.steps
        sampler = StepSampler(
            len(self.train),
            self.config.batch,
            self.config.seed,
            rank=world.rank,
            world=world.size,
            parts=engine.accumulate,
        )
        last = 0 if self.companion is None else self.companion.config.aligned_steps(steps)
        for train, begin, end in ((self.train, start, last), (self.train.without_features(), max(start, last), None)):
            if end is None or begin < end:
                count = None if end is None else (end - begin) * engine.accumulate
                with closing(train.batches(sampler, begin, world.device, engine.workers, engine.prefetch)) as batches:
                    yield from islice(batches, count)

    def loss(self, model: Generator, batch: CodeBatch, rng: torch.Generator, step: int) -> dict[str, Tensor]:
        """`Generator.loss`; with a companion ``loss`` holds ``alignment`` too, weighed as it is at this step."""
        progress = step / self.config.steps
        if self.companion is None:
            return model.loss(batch, rng, progress)
        config = self.companion.config
        if not (weight := config.weight_at(progress)):
            losses = model.loss(batch, rng, progress)
            nothing = self.companion.idle()
            return {**losses, "loss": losses["loss"] + nothing, "alignment": nothing}
        if config.own is not None and self._own is None:
            self._own = self._own_average(config)
        own = None if self._own is None else (batch, copied(rng))
        losses, (states,), positions = model.training_pass(batch, rng, progress, (config.depth,))
        seen = iter(batch.features)
        features = [
            next(seen) if self._own is None or one.source != SELF else self._own.features(own, model.token_grid)
            for one in config.teachers
        ]
        aligned = self.companion(states, positions, features)
        return {**losses, "loss": losses["loss"] + weight * aligned, "alignment": aligned}

    def _own_average(self, config: AlignmentConfig) -> SelfTeacher:
        """The averaged weights as a teacher, who sees what the pass of a batch and its random numbers sees."""
        depth = config.teaching_depth(self.average.depth)

        def look(model: Generator, seen: tuple[CodeBatch, torch.Generator]) -> Tensor:
            return model.hidden(seen[0], depth, seen[1], cleaner=config.cleaner)

        return SelfTeacher(self.average, look, self.average.config.width)

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


def copied(rng: torch.Generator) -> torch.Generator:
    """A generator that draws what this one will."""
    again = torch.Generator(rng.device)
    again.set_state(rng.get_state())
    return again


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
