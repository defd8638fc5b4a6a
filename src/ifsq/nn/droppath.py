"""Stochastic depth (arXiv 1603.09382): a layer that now and then adds nothing for an example, in training."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn


class DropPath(nn.Module):
    """In training, 0 for a share ``rate`` of the examples and ``1 / (1 - rate)`` times x for the others.

    Examples are the first axis. The draws are torch's own, as of dropout. The rate is a tensor, so that blocks which
    differ in it alone are one to a compiler; it is float32 whatever the module is cast to.
    """

    keep: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"rate={rate}: expected a share of at least 0 and below 1")
        self.rate = rate
        self.register_buffer("keep", self._keep().to(torch.get_default_device()), persistent=False)

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        if not self.training:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) < self.keep
        return x * (kept / self.keep).to(x.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DropPath":
        super()._apply(fn, recurse)
        self.keep = self._keep().to(self.keep.device)
        return self

    def _keep(self) -> Tensor:
        return torch.tensor(1 - self.rate, dtype=torch.float32, device="cpu")
