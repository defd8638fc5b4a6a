"""A module with its optimizer and loss scale: what takes a step, the model as well as its opponent."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ifsq.store.weights import whole
from ifsq.training import parallel
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World
from ifsq.training.optim import OptimConfig, lr_at, make_optimizer


@dataclass(frozen=True)
class Opponent:
    """A second module, trained beside the model on a loss of its own: a discriminator.

    name  of its figures in the log
    """

    module: nn.Module
    optim: OptimConfig
    name: str = "opponent"


class Trainee:
    """A module with its optimizer and loss scale: what takes a step.

    loss       of a part of the batch; called behind DistributedDataParallel, so that it sees the forward pass
    companion  a second module in the same loss, under the same optimizer
    still      modules of it that stay in evaluation mode
    """

    def __init__(
        self, module: nn.Module, loss: Callable[..., dict[str, Tensor]], optim: OptimConfig, config: TrainConfig,
        world: World, companion: nn.Module | None = None, *, replicated: bool = True, still: Sequence[nn.Module] = (),
    ) -> None:  # fmt: skip
        self.module, self.optim, self.config, self.world = module, optim, config, world
        self.still = still
        self.trained = [module] if companion is None else [module, companion]
        both = module if companion is None else nn.ModuleDict({"model": module, "companion": companion})
        self.optimizer = make_optimizer(both, optim)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
        step = _Step(module, loss, companion)
        self.forward = parallel.replicate(step, world) if replicated else step

    def backward(self, *given: Any, last: bool, share: float = 1.0) -> dict[str, Tensor]:
        """Add a part's gradient; with the ``last`` part the processes share it.

        share  of the part's examples that is left: how much it counts
        """
        device, precision = self.world.device.type, self.config.precision
        half = torch.float16 if precision == "fp16" else torch.bfloat16
        for trained in self.trained:
            trained.train()
        for frozen in self.still:
            frozen.eval()
        with self._alone() if not last else nullcontext():
            with torch.autocast(device, half, enabled=precision != "fp32"):
                losses = self.forward(*given)
            self.scaler.scale(losses["loss"] * share / self.config.engine.accumulate).backward()
        return {name: value.detach() for name, value in losses.items()}

    def step(self, step: int, share: float = 1.0) -> Tensor:
        """Move the weights; returns the gradient's norm before clipping.

        share  of the whole step's examples that is left: the gradient becomes the mean over these
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(step, self.config.steps, self.optim) * group.get("scale", 1.0)
        self.scaler.unscale_(self.optimizer)
        if share != 1:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(share)
        norm = nn.utils.clip_grad_norm_(self.parameters(), self.optim.clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return whole(norm)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of all that takes a step."""
        return itertools.chain.from_iterable(module.parameters() for module in self.trained)

    def _alone(self) -> AbstractContextManager[Any]:
        return self.forward.no_sync() if isinstance(self.forward, DistributedDataParallel) else nullcontext()


class _Step(nn.Module):
    """One forward pass behind one module, which is what DistributedDataParallel needs in order to see it."""

    def __init__(
        self, module: nn.Module, loss: Callable[..., dict[str, Tensor]], companion: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.module, self.loss, self.companion = module, loss, companion

    def forward(self, *given: Any) -> dict[str, Tensor]:
        return self.loss(self.module, *given)
