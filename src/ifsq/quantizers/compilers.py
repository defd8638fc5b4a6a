"""What a compiler must be told of a module that it traces: which numbers are constants, which values are to be kept.

torch.compile makes a Python float of a module a symbol where it meets a second value of it, an integer never; and where
a symbol goes, operators with two numbers lose one of them, and some graphs cannot be built at all. In a compiled
training step the backward pass computes again what looks cheap, even from a buffer that the forward pass has changed
in place meanwhile: the gradient is then of another function, without a word. Inductor also fuses a softmax's gradient
with a reversed sum and gets it wrong. All seen in torch 2.13; ``findings/`` has a script for each.
"""

from typing import Any

import torch
from torch import Tensor, nn


def constant(name: str) -> Any:
    """A float attribute of a module that a compiler takes as a constant: kept under ``name`` as a ratio of integers."""

    def get(module: nn.Module) -> float:
        numerator, denominator = getattr(module, name)
        return numerator / denominator  # exact: Python rounds a quotient of integers correctly

    def keep(module: nn.Module, value: float) -> None:
        setattr(module, name, float(value).as_integer_ratio())

    return property(get, keep)


def is_exporting() -> bool:
    """Whether `torch.export` is at work, whose graphs have no training in them.

    The flag behind `torch.compiler.is_exporting()`: torch.compile of torch 2.11 takes the question itself for true.
    """
    return torch.compiler._is_exporting_flag


def materialize(x: Tensor) -> Tensor:
    """The tensor itself; in a compiled graph with gradients a copy, by an operator that a compiler cannot see into.

    Neither the copy nor its gradient is then computed twice or fused with anything. Under `torch.export`, which writes
    graphs without a backward pass, there is nothing to keep.
    """
    if torch.compiler.is_compiling() and not is_exporting() and torch.is_grad_enabled():
        return _copy(x)
    return x


@torch.library.custom_op("ifsq::materialize", mutates_args=())
def _copy(x: Tensor) -> Tensor:
    return x.clone()


@_copy.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _copy_gradient(_: Any, grad: Tensor) -> Tensor:
    return _copy(grad)


_copy.register_autograd(_copy_gradient)
