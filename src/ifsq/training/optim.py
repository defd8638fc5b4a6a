"""Optimizer and learning-rate schedule."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, and its schedule.

    lr            peak learning rate
    betas         AdamW's two momenta
    weight_decay  on matrices and convolutions only: never on norms, biases and one-dimensional tables
    warmup        steps of linear warm-up
    schedule      ``constant``, or ``cosine`` down to ``final`` times the peak
    final         what the cosine ends at, 0 to 1
    clip          largest gradient norm; 0 for no clipping
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup: int = 50
    schedule: Literal["constant", "cosine"] = "cosine"
    final: float = 0.05
    clip: float = 1.0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr}: expected a positive number")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas}: expected two numbers in [0, 1)")
        if self.warmup < 0 or self.clip < 0 or self.weight_decay < 0 or not 0 <= self.final <= 1:
            raise ValueError("warmup, clip and weight_decay must not be negative, and final must lie in [0, 1]")


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, decay on those of two and more dimensions."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def lr_at(step: int, steps: int, config: OptimConfig) -> float:
    """Learning rate of optimizer step ``step`` (from 0) of ``steps``: a pure function, nothing to restore."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup) / max(1, steps - config.warmup)
    return config.lr * (config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
