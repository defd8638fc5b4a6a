"""Optimizer and learning-rate schedule."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ifsq.training import parallel
from ifsq.training.muon import Muon


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, and its schedule.

    kind          ``adamw``; or ``muon`` for matrices and convolutions of the blocks (see `Muon`), AdamW for the rest
    lr            peak learning rate of AdamW
    muon_lr       of Muon; both follow the schedule. ``adamw`` reads neither this nor the next
    muon_momentum of Muon
    betas         AdamW's two momenta
    weight_decay  on matrices and convolutions only: never on norms, biases and one-dimensional tables
    warmup        steps of linear warm-up
    schedule      ``constant``, or ``cosine`` down to ``final`` times the peak
    final         what the cosine ends at, 0 to 1
    clip          largest gradient norm; 0 for no clipping
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    muon_lr: float = 0.02
    muon_momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup: int = 50
    schedule: Literal["constant", "cosine"] = "cosine"
    final: float = 0.05
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr", "muon_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected a positive number")
        if not 0 <= self.muon_momentum < 1:
            raise ValueError(f"muon_momentum={self.muon_momentum}: expected a number in [0, 1)")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas}: expected two numbers in [0, 1)")
        if self.warmup < 0 or self.clip < 0 or self.weight_decay < 0 or not 0 <= self.final <= 1:
            raise ValueError("warmup, clip and weight_decay must not be negative, and final must lie in [0, 1]")


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of the trainable parameters, with decay on those of two and more dimensions.

    A group's ``scale`` is its learning rate in units of AdamW's.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = list(hidden_matrices(model)) if config.kind == "muon" else []
    taken = {id(p) for p in matrices}
    rest = [p for p in trainable if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    if config.kind == "adamw":
        return adamw
    muon = Muon(matrices, config.muon_lr, config.muon_momentum, config.weight_decay, adamw)
    muon.param_groups[-1]["scale"] = config.muon_lr / config.lr
    return muon


def hidden_matrices(model: nn.Module) -> Iterator[nn.Parameter]:
    """Trainable parameters of two and more dimensions in the blocks of a model, each once.

    A block is an element of a module list that is made of other modules: an embedding or an output layer is none. Its
    ``not_hidden`` names children that are left out, as what a condition modulates the block by.
    """
    for block in parallel.blocks(model):
        for name, child in block.named_children():
            if name not in getattr(block, "not_hidden", ()):
                yield from (p for p in child.parameters() if p.requires_grad and p.ndim >= 2)


def lr_at(step: int, steps: int, config: OptimConfig) -> float:
    """Learning rate of optimizer step ``step`` (from 0) of ``steps``: a pure function, nothing to restore."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup) / max(1, steps - config.warmup)
    return config.lr * (config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def new_length(optim: OptimConfig, step: int, planned: Any, steps: int, annealed: Sequence[str] = ()) -> str:
    """What it means that a run goes on from ``step`` to another length than it was planned for; "" where nothing.

    annealed  what else than the learning rate follows the share of the steps that are behind, in words
    """
    if type(planned) is not int or planned == steps:
        return ""
    follows = [f"{name} that of {steps} steps" for name in annealed]
    if optim.schedule != "constant":
        was, now = (lr_at(step, length, optim) for length in (planned, steps))
        rate = f"the {optim.schedule} schedule is that of {steps} steps (lr {now:.3g} in place of {was:.3g})"
        follows.insert(0, rate)
    if not follows:
        return ""
    return (
        f"train.steps={steps}, {planned} until now: from here on {', '.join(follows)};"
        f" a run of {steps} steps from its start ends elsewhere"
    )
