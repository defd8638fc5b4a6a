"""What all bottlenecks share: the lattice they state, and layout, checks and type of the arithmetic of their input."""

import math

import torch
from torch import Tensor, nn

from ifsq.quantizers.digits import check_indices
from ifsq.quantizers.lattice import Lattice

MAX_COUNT = 2**31 - 1  # nobody's codes, channels or stages, and far from what overflows


class Bottleneck(nn.Module):
    """A module called on a latent (b, width, h, w), (b, t, width) or any leading shape, floating point.

    channel_first  True: channels on axis 1; False: axis 1 for four and more axes, else last
    channel_axis   the axis of the channels, where neither of these is meant

    It has ``width``, channels of the input; ``dim``, channels of the codes (they differ for KL alone); ``lattice``, on
    which its codes lie; ``levels`` and ``groups``, of the digits and indices that `forward` returns. The last three are
    None where codes are continuous.

    Computes in float32 (float64 stays) whatever the autocast; codes come in the input's type and layout. Raises
    ValueError on another width or type and, on a CPU outside a compiler, on NaN and infinity: elsewhere reading values
    would stop the queue.
    """

    width: int
    dim: int
    lattice: Lattice | None = None
    levels: tuple[int, ...] | None = None
    groups: tuple[int, ...] | None = None

    def __init__(self, width: int, dim: int, channel_first: bool = False, channel_axis: int | None = None) -> None:
        super().__init__()
        self.width, self.dim = width, dim
        self.channel_axis = 1 if channel_first else channel_axis

    def _state(self, lattice: Lattice) -> None:
        self.lattice, self.levels, self.groups = lattice, lattice.levels, lattice.groups

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Indices as `forward` gives them -> its codes."""
        raise NotImplementedError

    def codes_to_indices(self, codes: Tensor) -> Tensor:
        """Codes as `forward` gives them -> its indices."""
        raise NotImplementedError

    def axis_of(self, ndim: int) -> int:
        """The axis of the channels in latents of so many axes."""
        if self.channel_axis is not None:
            return self.channel_axis if self.channel_axis >= 0 else ndim + self.channel_axis
        return 1 if ndim >= 4 else ndim - 1

    def _enter(self, z: Tensor) -> tuple[Tensor, int]:
        """A checked latent in the type of the arithmetic, and the axis of its channels."""
        axis = self._check(z, "latent", self.width)
        return (z if z.dtype == torch.float64 else z.float()), axis

    def _enter_codes(self, codes: Tensor) -> Tensor:
        """Checked codes in `forward`'s layout -> the same with channels last, in the type of the arithmetic."""
        axis = self._check(codes, "codes", self.dim)
        return (codes if codes.dtype == torch.float64 else codes.float()).movedim(axis, -1)

    def _leave_codes(self, codes: Tensor) -> Tensor:
        """Codes with channels last -> `forward`'s layout."""
        return codes.movedim(-1, self.axis_of(codes.ndim))

    def _check(self, x: Tensor, name: str, channels: int) -> int:
        """The axis of the channels of latents or codes. Raises ValueError on another width, type or value."""
        axis = self.axis_of(x.ndim)
        if not x.is_floating_point():
            raise ValueError(f"{name} of dtype {x.dtype}: expected a floating point type")
        if x.ndim < 2 or not 0 <= axis < x.ndim or x.shape[axis] != channels:
            raise ValueError(f"{name} of shape {tuple(x.shape)}: expected {channels} channels on axis {axis}")
        self._check_finite(x, name)
        return axis

    def _check_finite(self, x: Tensor, name: str) -> None:
        if self._checks(x):
            check_finite(x, name)

    def _check_indices(self, indices: Tensor) -> None:
        if self._checks(indices) and self.levels and self.groups:
            check_indices(indices, self.levels, self.groups)

    def _checks(self, x: Tensor) -> bool:
        """Whether to read values."""
        return reads_values(x)


def reads_values(x: Tensor) -> bool:
    """Whether values may be read: that stops an accelerator's queue, and a compiler cannot trace it."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def check_finite(x: Tensor, name: str) -> None:
    """Raise ValueError naming the first value that is NaN or infinite."""
    x = x.detach()
    # A finite sum is the cheap proof; a sum of large values may overflow without any of them being infinite.
    if math.isfinite(x.sum()) or bool(torch.isfinite(x).all()):
        return
    worst = x.flatten()[~torch.isfinite(x).flatten()][0].item()
    raise ValueError(f"{name} of shape {tuple(x.shape)} holds {worst}: expected finite values")


def check_count(name: str, value: int, least: int = 1, most: int = MAX_COUNT) -> int:
    """The value, or ValueError unless it is an integer of at least and at most so much."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}: expected an integer of at least {least}")
    if value > most:
        raise ValueError(f"{name}={value!r}: expected an integer of at most {most}")
    return value


def check_weight(name: str, value: float) -> float:
    """The value, or ValueError unless it is a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value!r}: expected a finite number of at least 0")
    return float(value)
