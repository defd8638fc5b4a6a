"""Norms of the tokenizer, over maps (b, c, h, w) in any memory layout."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Norm = Literal["group", "layer", "rms"]
NORMS: tuple[Norm, ...] = ("group", "layer", "rms")
EPS = 1e-6
SMALL = 1 << 16  # numbers of an image below which a call for each image costs more than its arithmetic
AT_ONCE = 1 << 18  # numbers that are float32 at one time, of small images: they stay in a processor's cache


def make_norm(kind: Norm, width: int, groups: int) -> nn.Module:
    """Norm of a map (b, width, h, w); ``groups`` are of the group norm. Raises ValueError for another kind."""
    if kind == "group":
        return nn.GroupNorm(groups, width, eps=EPS)
    if kind == "layer":
        return LayerNorm2d(width, eps=EPS)
    if kind == "rms":
        return RMSNorm2d(width, eps=EPS)
    raise ValueError(f"norm={kind!r}: expected one of {', '.join(NORMS)}")


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each position."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class RMSNorm2d(nn.RMSNorm):
    """x / sqrt(mean of x^2 over channels) at each position, scaled; the official "rmsnorm" is a layer norm.

    Computed in the type of its scale.
    """

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return super().forward(x.movedim(1, -1).to(self.weight.dtype)).movedim(-1, 1).to(x.dtype)


def norm_silu(norm: nn.Module, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """``F.silu(norm(x))``; a group norm trains in half precision on a CPU by functions of its own."""
    if isinstance(norm, nn.GroupNorm) and _is_slow(norm, x):
        function = _SmallGroupNormSilu if x[0].numel() < SMALL else _GroupNormSilu
        return function.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)
    return F.silu(norm(x))


def _is_slow(norm: nn.GroupNorm, x: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype in (torch.bfloat16, torch.float16)
        and norm.weight.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
    )


class _GroupNormSilu(torch.autograd.Function):
    """Group norm and SiLU that keep only their input, and a quick gradient where channels are last.

    torch's own gradient of the norm takes twenty times as long in bfloat16 with channels last as otherwise. In an image
    the norm is y = a x + b by channel, so it is a batch norm of given statistics, whose gradient torch has fast; what
    comes through mean and variance, which are shared by a group, is affine in x as well.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        y, mean, rstd = _group_norm(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.eps = groups, eps
        return F.silu(y, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        y = _group_norm(x, weight, bias, ctx.groups, ctx.eps)[0]
        grad = torch.ops.aten.silu_backward(grad.contiguous(memory_format=torch.channels_last), y)
        del y
        out, by_weight, by_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
        share = weight.numel() // ctx.groups
        for i in range(len(x)):
            m, r = (value[i].to(weight.dtype).repeat_interleave(share) for value in (mean, rstd))
            part, dw, db = torch.ops.aten.native_batch_norm_backward(
                grad[i : i + 1], x[i : i + 1], weight, m, r.square().reciprocal(), None, None, False, 0.0, [True] * 3
            )
            by_weight += dw
            by_bias += db
            # d loss / d variance and mean of a group, as slope and offset of x
            count = share * x.shape[2] * x.shape[3]
            along, level = ((weight * d).view(-1, share).sum(1).repeat_interleave(share) / count for d in (dw, db))
            slope = -along * r * r
            offset = -level * r - slope * m
            rest = torch.native_batch_norm(
                x[i : i + 1], slope, offset, torch.zeros_like(m), torch.ones_like(m), False, 0.0, 0.0
            )[0]
            torch.add(part, rest, out=out[i : i + 1])
        return out, by_weight, by_bias, None, None


class _SmallGroupNormSilu(torch.autograd.Function):
    """The same for small images, many in each call and in float32 inside: two to six times as fast, and more exact."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        b, c, h, w = x.shape
        rows, share, count = _rows(x), c // groups, c // groups * h * w
        y, mean, rstd = torch.empty_like(rows), weight.new_empty(b, groups), weight.new_empty(b, groups)
        for some in _parts(rows):
            values = rows[some].float()  # n h*w c
            level = values.sum(1).view(-1, groups, share).sum(2) / count
            square = values.square().sum(1).view(-1, groups, share).sum(2) / count
            mean[some], rstd[some] = level, (square - level.square()).clamp_min(0).add(eps).rsqrt()
            scale, shift = _affine(weight, bias, mean[some], rstd[some])
            y[some] = F.silu(torch.addcmul(shift, values, scale), inplace=True)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return _map(y, h)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        c, h, w = x.shape[1:]
        groups = mean.shape[1]
        rows, slopes, count = _rows(x), _rows(grad), c // groups * h * w
        out, by_weight, by_bias = torch.empty_like(rows), torch.zeros_like(weight), torch.zeros_like(bias)
        for some in _parts(rows):
            values = rows[some].float()
            scale, shift = _affine(weight, bias, mean[some], rstd[some])
            slope = torch.ops.aten.silu_backward(slopes[some].float(), torch.addcmul(shift, values, scale))
            m, r = (_by_channel(value[some], c) for value in (mean, rstd))
            db = slope.sum(1)  # n c
            dw = ((slope * values).sum(1) - m * db) * r
            by_weight += dw.sum(0)
            by_bias += db.sum(0)
            # through variance and mean of a group, as slope and offset of x
            along, level = (_by_channel((weight * d).view(-1, groups, c // groups).sum(2) / count, c) for d in (dw, db))
            tilt = -along * r.square()
            offset = -level * r - tilt * m
            out[some] = torch.addcmul(offset[:, None], values, tilt[:, None]).addcmul_(slope, scale)
        return _map(out, h), by_weight, by_bias, None, None


def _rows(x: Tensor) -> Tensor:
    """A map (b, c, h, w) as (b, h*w, c), which is how it lies in memory with channels last."""
    return x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(1, 2)


def _map(rows: Tensor, height: int) -> Tensor:
    """Inverse of `_rows`."""
    return rows.unflatten(1, (height, -1)).permute(0, 3, 1, 2)


def _parts(rows: Tensor) -> list[slice]:
    """Some images at a time."""
    size = max(1, AT_ONCE // rows[0].numel())
    return [slice(start, start + size) for start in range(0, len(rows), size)]


def _by_channel(values: Tensor, channels: int) -> Tensor:
    """What each group has (n, groups), for each of its channels (n, channels)."""
    return values.repeat_interleave(channels // values.shape[1], dim=1)


def _affine(weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """The norm of some images as a scale and a shift of each channel (n, 1, c)."""
    scale = weight * _by_channel(rstd, len(weight))
    return scale[:, None], (bias - _by_channel(mean, len(weight)) * scale)[:, None]


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    b, c, h, w = x.shape
    return torch.native_group_norm(x, weight, bias, b, c, h * w, groups, eps)
