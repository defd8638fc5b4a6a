"""Layers of the convolutional tokenizer: residual block, attention, and the steps between resolutions.

Parameter names are those of the official checkpoints. All keep the memory layout of their input.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ifsq.tokenizer.norms import Norm, make_norm, norm_silu


class ResnetBlock(nn.Module):
    """Norm, SiLU, convolution, twice, around a residual; 1x1 shortcut where the width changes.

    dropout    before the second convolution
    recompute  keep only the block's input for the backward pass and run it again there: the same gradients
    """

    def __init__(
        self, width_in: int, width_out: int, groups: int, norm: Norm = "group", dropout: float = 0.0,
        recompute: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm1 = make_norm(norm, width_in, groups)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = make_norm(norm, width_out, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()
        self.recompute = recompute

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h w"]:
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(self._run, x, use_reentrant=False)
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        y = self.conv1(norm_silu(self.norm1, x))
        y = self.conv2(self.dropout(norm_silu(self.norm2, y)))
        return self.nin_shortcut(x) + y


class AttnBlock(nn.Module):
    """Attention of every position to every one with a single head of all channels, around a residual."""

    def __init__(self, width: int, groups: int, norm: Norm = "group") -> None:
        super().__init__()
        self.norm = make_norm(norm, width, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        tokens = self.norm(x).flatten(2).mT.unsqueeze(1)  # b 1 h*w c
        y = F.scaled_dot_product_attention(self.q(tokens), self.k(tokens), self.v(tokens))
        return x + self.proj_out(y).squeeze(1).mT.unflatten(2, x.shape[2:])


class Downsample(nn.Module):
    """Stride-2 convolution over a zero row below and column to the right, as in the official model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h/2 w/2"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Every pixel twice in each direction, then a 3x3 convolution: `reference`, which `forward` computes in one step.

    A pixel and its copy meet neighbouring taps of the kernel, so both steps are one transposed convolution of stride 2
    with the 4x4 kernel of sums of neighbouring taps: 16 multiplications an input pixel and pair of channels, not 36.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
        return F.conv_transpose2d(x, transposed_kernel(self.conv.weight), self.conv.bias, stride=2, padding=1)

    def reference(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
        """The two steps, one after the other."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def transposed_kernel(weight: Float[Tensor, "o c 3 3"]) -> Float[Tensor, "c o 4 4"]:
    """Kernel of the transposed convolution that equals doubling of the pixels and convolution with ``weight``."""
    # Output row 2i-1+t sees rows 2i and 2i+1, the two copies of i, through taps 2-t and 3-t.
    first, second, third = weight.transpose(0, 1).unbind(2)
    rows = torch.stack([third, second + third, first + second, first], dim=2)
    first, second, third = rows.unbind(3)
    return torch.stack([third, second + third, first + second, first], dim=3)


def unrounded(conv: nn.Conv2d, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h w"]:
    """A convolution in the type of its weights, whatever the autocast: what it gives will be quantized."""
    x = x.to(conv.weight.dtype)
    if x.is_meta:  # which knows no autocast
        return conv(x)
    with torch.autocast(x.device.type, enabled=False):
        return conv(x)
