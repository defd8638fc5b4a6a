"""How a module computes for a while: in evaluation, without gradients of its own, or in exact float32.

What was set before comes back afterwards.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


@contextmanager
def without_gradients(module: nn.Module) -> Iterator[None]:
    """Run the block with parameters that need no gradients, though inputs may; they need them again afterwards."""
    needy = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in needy:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in needy:
            parameter.requires_grad_(True)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Run the block with float32 as it is: no TF32 or bfloat16 inside products, on any back end.

    In the block torch refuses its older question ``torch.backends.cudnn.allow_tf32``; the answers return with its end.
    """
    backends: Any = torch.backends  # its attributes are made at run time
    switches = (
        *(backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn),
        *(backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn),
    )
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision


def is_transformed() -> bool:
    """Whether a compiler, a function transform (jvp, vmap, grad) or forward-mode derivatives see what is computed now.

    They know torch's own operations; a function with a gradient of its own leaves the place to these.
    """
    forward_mode: int = torch.autograd.forward_ad._current_level
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_mode >= 0
