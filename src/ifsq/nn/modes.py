"""Evaluation for a while: every module's own mode comes back afterwards. Called by both generators' samplers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run the block in eval mode and without gradients; restores the mode of every submodule, also after an error."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in before:
            part.training = training
