"""The two feed-forward layers of a transformer block: SwiGLU (arXiv 2002.05202) and GELU."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ifsq.nn.linear import Linear


class SwiGLU(nn.Module):
    """``w3(silu(a) * b)`` with ``a, b`` the halves of ``w12(x)``: one multiplication for gate and value.

    Input and output (..., width); ``hidden`` is the width of each half.
    """

    def __init__(self, width: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.w12 = Linear(width, 2 * hidden, bias=bias)
        self.w3 = Linear(hidden, width, bias=bias)

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class GELU(nn.Module):
    """``fc2(gelu(fc1(x)))`` with the tanh approximation, as DiT has it. Input and output (..., width)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
