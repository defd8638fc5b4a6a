"""Exponential moving average of a model: the weights that are evaluated, saved beside the raw ones.

Integer tensors are taken over, never averaged: the official code averages them into floats and so corrupts its indices.
"""

import copy

import torch
from torch import Tensor, nn

from ifsq.store.weights import local


class EMA:
    """``average = decay * average + (1 - decay) * model``, with the decay ramped as (1 + step) / (10 + step).

    The ramp keeps the random initial weights from lingering in short runs. A sharded model is averaged part by part.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Fold in the weights after optimizer step ``step`` (0 for the first)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        floating: list[tuple[Tensor, Tensor]] = []
        own = self.model.state_dict()
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                floating.append((local(own[name]), local(value)))
            else:
                own[name].copy_(value)
        torch._foreach_lerp_([a for a, _ in floating], [b for _, b in floating], 1 - decay)
