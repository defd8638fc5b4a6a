"""Finite scalar quantization: bound each dimension, round it to one of its levels, gradient straight through.

``FSQ(levels)`` is iFSQ (arXiv 2601.17124); ``bound="tanh"`` is FSQ (arXiv 2309.15505). The parts have files of their
own: `bounds`, `cells` (levels and lattice points), `digits` (indices), `fused` (the arithmetic). Called by
``tokenizer`` and by other people's models; imports torch only.
"""

import importlib.util
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ifsq.quantizers import cells as points
from ifsq.quantizers import fused
from ifsq.quantizers.bottleneck import check_count, check_finite
from ifsq.quantizers.bounds import FIXED, IFSQ_ALPHA, Bound, Clamp, Curve, make_bound
from ifsq.quantizers.cells import CELLS, codes_to_digits, digits_to_codes, packed_dtype
from ifsq.quantizers.compilers import is_exporting
from ifsq.quantizers.digits import (
    MAX_CODEBOOK,
    check_digits,
    check_indices,
    check_layout,
    digits_of_groups,
    digits_to_indices,
    group_sizes,
    indices_to_digits,
)
from ifsq.quantizers.lattice import Lattice
from ifsq.quantizers.record import Quantized

FINEST = 2**22  # levels of a dimension


class FSQ(nn.Module):
    """Finite scalar quantizer; without parameters unless ``dim`` or a learned bound asks for some.

    levels                  level count L of every dimension, each at least 2
    dim                     width of the input; when it is not ``len(levels) * num_codebooks``, linear layers lead in
                            and out
    num_codebooks           codebooks side by side on the channel axis
    keep_num_codebooks_dim  whether indices keep the codebook axis; default: where there are several
    bound                   name or module, see `bounds`: ``ifsq`` (default), ``tanh``, ``gaussian``, ``clamp``,
                            ``standardized``, ``quantile``, ``learned``
    alpha                   slope of ``ifsq``, and of the bound that the fitted ones start from
    cells                   ``paper``, ``symmetric`` or ``equal``, see `cells`; ``tanh`` with ``paper`` is the first FSQ
    groups                  sizes of the groups of dimensions that share one index; default: one group
    digit_order             ``little`` or ``big``, see `digits`
    channel_first           True: channels on axis 1; False (default): axis 1 for four and more axes, else last
    channel_axis            the axis of the channels, where neither of these is meant
    return_indices          False: `forward` leaves indices and digits out
    validate                whether values are checked, which waits for an accelerator; default: on CPU only;
                            never under a compiler, where NaN becomes NaN codes and an arbitrary digit
    projection_has_bias     of the linear layers
    orthogonal_rotation     a random rotation of the dimensions before the bound, undone behind the rounding
    preserve_symmetry       ``cells="symmetric"`` by its name elsewhere
    bound_hard_clamp        clamp in place of the bound's curve, for latents that are bounded already
    force_quantization_f32  True: there is no other way here
    noise_dropout           in training, rate of elements whose code is moved by up to half a cell
    quantization_dropout    in training, rate of batches whose codes are left unrounded

    Input (b, d, h, w), (b, t, d) or any leading shape, floating point; computed in float32 (float64 stays), whatever
    the autocast. Training and evaluation give the same codes but for the last two options; a running bound moves its
    statistics behind the batch. Raises ValueError on a wrong width or type and, where values are checked, on NaN and
    infinity.
    """

    orthogonal_rot: Tensor | None

    def __init__(
        self,
        levels: Sequence[int],
        dim: int | None = None,
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
        *,
        bound: str | Bound = "ifsq",
        alpha: float = IFSQ_ALPHA,
        cells: str = "paper",
        groups: Sequence[int] | None = None,
        digit_order: str = "little",
        channel_first: bool = False,
        channel_axis: int | None = None,
        return_indices: bool = True,
        validate: bool | None = None,
        projection_has_bias: bool = True,
        orthogonal_rotation: bool = False,
        preserve_symmetry: bool = False,
        bound_hard_clamp: bool = False,
        force_quantization_f32: bool = True,
        noise_dropout: float = 0.0,
        quantization_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("levels", levels), ("groups", groups if groups is not None else ())):
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise ValueError(f"{name}={value!r}: expected a list of integers")
        self.levels = tuple(levels)
        self.groups = tuple(groups) if groups is not None else (len(self.levels),)
        check_layout(self.levels, self.groups, digit_order)
        if max(self.levels) > FINEST:
            raise ValueError(f"levels={list(self.levels)}: expected at most {FINEST}, which float32 codes keep apart")
        if cells not in CELLS:
            raise ValueError(f"cells={cells!r}: expected one of {', '.join(CELLS)}")
        if preserve_symmetry and cells == "equal":
            raise ValueError("preserve_symmetry=True with cells='equal': expected one of the two")
        check_count("num_codebooks", num_codebooks)
        if dim is not None:
            check_count("dim", dim)
        if channel_axis is not None and (not isinstance(channel_axis, int) or isinstance(channel_axis, bool)):
            raise ValueError(f"channel_axis={channel_axis!r}: expected an integer")
        if not force_quantization_f32:
            raise ValueError("force_quantization_f32=False: expected True; the bound is computed in float32 always")
        keep = num_codebooks > 1 if keep_num_codebooks_dim is None else keep_num_codebooks_dim
        if num_codebooks > 1 and not keep:
            raise ValueError(f"keep_num_codebooks_dim=False with num_codebooks={num_codebooks}: expected True")
        if channel_first and channel_axis not in (None, 1):
            raise ValueError(f"channel_first=True with channel_axis={channel_axis}: expected one of the two")
        for name, rate in (("noise_dropout", noise_dropout), ("quantization_dropout", quantization_dropout)):
            if not 0 <= rate <= 1:
                raise ValueError(f"{name}={rate}: expected a rate from 0 to 1")

        width = len(self.levels) * num_codebooks
        self.bound = bound if isinstance(bound, Bound) else make_bound(bound, width, alpha)
        if self.bound.channels not in (None, width):
            raise ValueError(f"bound of {self.bound.channels} channels: expected {width}")
        self.cells = "symmetric" if preserve_symmetry else cells
        # The first FSQ: a tanh a little wider than its levels, shifted for even ones.
        self.original = self.cells == "paper" and self.bound.name == "tanh"
        if bound_hard_clamp:
            self.bound = Clamp()
        if self.cells == "paper" and not self.original and any(L % 2 == 0 for L in self.levels):
            raise ValueError(
                f"levels={list(self.levels)}: paper cells with bound={self.bound.name!r} need odd levels;"
                " use cells='equal' or 'symmetric'"
            )
        self.digit_order, self.num_codebooks, self.keep_num_codebooks_dim = digit_order, num_codebooks, keep
        self.channel_axis = 1 if channel_first else channel_axis
        self.return_indices, self.validate = return_indices, validate
        self.noise_dropout, self.quantization_dropout = noise_dropout, quantization_dropout
        self._packed = packed_dtype(self.levels)
        self._uniform = len(set(self.levels)) == 1
        self._indexed = max(self.group_sizes) <= MAX_CODEBOOK

        self.dim = dim if dim is not None else width
        self.has_projections = self.dim != width
        self.project_in: nn.Module = nn.Identity()
        self.project_out: nn.Module = nn.Identity()
        if self.has_projections:
            self.project_in = nn.Linear(self.dim, width, bias=projection_has_bias)
            self.project_out = nn.Linear(width, self.dim, bias=projection_has_bias)
        # No buffer: whatever is cast, averaged or left empty with the model would reach the rounding.
        self._on_device: dict[torch.device, Tensor] = {}
        self._kernels: tuple[Any, Tensor, Any] | None = None
        self.register_buffer("orthogonal_rot", None)
        if orthogonal_rotation:
            self.orthogonal_rot = nn.init.orthogonal_(torch.empty(len(self.levels), len(self.levels)))

    @property
    def width(self) -> int:
        """Channels of the input, as in every quantizer."""
        return self.dim

    @property
    def lattice(self) -> Lattice:
        """The lattice of one codebook."""
        return Lattice(self.levels, self.groups, self.digit_order, self.cells)

    @property
    def codebook_dim(self) -> int:
        """Dimensions of one codebook."""
        return len(self.levels)

    @property
    def effective_codebook_dim(self) -> int:
        """Dimensions of all codebooks."""
        return len(self.levels) * self.num_codebooks

    @property
    def codebook_size(self) -> int:
        """Codes of one codebook over all groups, a Python integer of any size."""
        return math.prod(self.levels)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Codes of each group: what one index ranges over."""
        return group_sizes(self.levels, self.groups)

    def forward(self, z: Tensor) -> Quantized:
        outer = self._axis(z)
        self._check_input(z, outer)
        rows, axis = self._enter(z, outer)
        quantize = self._one_kernel if self._has_kernels(rows) else self._few_passes
        codes, digits, indices = quantize(rows, axis)
        if self.training:
            codes = self._disturb(codes, rows, axis)
            if not is_exporting():
                self.bound.observe(rows, axis)
        codes = self._leave(codes, axis, outer, z.dtype)
        if digits is None:
            return Quantized(codes)
        digits = digits.movedim(axis, -1)
        if self.num_codebooks > 1:
            digits = digits.unflatten(-1, (self.num_codebooks, -1))
        return Quantized(codes, indices, digits)

    def quantize(self, z: Tensor) -> Tensor:
        """Latents (..., d) of one codebook, channels last, behind any projection -> their codes (..., d).

        Straight-through gradient. Raises ValueError on a wrong width or type and (where values are checked) on NaN and
        infinity.
        """
        self._check_last(z, "latents")
        if self.num_codebooks > 1 and self.bound.channels is not None:
            raise ValueError(
                f"num_codebooks={self.num_codebooks} with bound={self.bound.name!r}: expected one codebook"
            )
        rows = _full(z)
        steps = self._steps(rows, -1, len(self.levels))
        return fused.straight_through(self._unit(rows, -1, steps), steps, None)[0].to(z.dtype)

    def bounded(self, z: Tensor, axis: int = -1) -> Tensor:
        """Latents, channels on ``axis``, behind any projection -> the unrounded codes, same shape, float32.

        In [-1, 1], but for the first FSQ, whose tanh is a thousandth wider.
        """
        rows = _full(z)
        return self._unrounded(rows, axis, self._steps(rows, axis))

    def digits_to_codes(self, digits: Tensor) -> Tensor:
        """Integer digits (..., d) -> float32 codes (..., d) in [-1, 1], before any projection.

        Raises ValueError (where values are checked) outside the levels.
        """
        self._check_digits(digits)
        return digits_to_codes(digits, self.levels, self.cells)

    def codes_to_digits(self, codes: Tensor) -> Tensor:
        """Codes (..., d) of one codebook, channels last, not rotated -> the nearest lattice point's digits, int64."""
        self._check_last(codes, "codes")
        return codes_to_digits(codes, self.levels, self.cells)

    def digits_to_indices(self, digits: Tensor) -> Tensor:
        """Integer digits (..., d) -> int64 indices (...), or (..., g) with several groups.

        Raises ValueError where a group has more than 2**63 codes and (where values are checked) outside the levels.
        """
        self._check_digits(digits)
        return digits_to_indices(digits, self.levels, self.groups, self.digit_order)

    def indices_to_digits(self, indices: Tensor) -> Tensor:
        """Int64 indices (...) or (..., g) -> int64 digits (..., d).

        Raises ValueError (where values are checked) outside the codebook.
        """
        if self._checks(indices):
            check_indices(indices, self.levels, self.groups)
        return indices_to_digits(indices, self.levels, self.groups, self.digit_order)

    indices_to_level_indices = indices_to_digits  # its name elsewhere

    def codes_to_indices(self, codes: Tensor) -> Tensor:
        """Codes in the layout of `forward`'s output, before ``project_out`` -> indices as `forward` gives them."""
        width = self.effective_codebook_dim
        axis = self._axis(codes)
        if codes.ndim < 2 or not 0 <= axis < codes.ndim or codes.shape[axis] != width:
            raise ValueError(f"codes of shape {tuple(codes.shape)}: expected {width} channels on axis {axis}")
        self._check_finite(codes, "codes")
        if self.orthogonal_rot is not None:
            codes = self._rotate(codes.movedim(axis, -1).float(), self.orthogonal_rot).movedim(-1, axis)
        return self._indices(
            codes_to_digits(codes, self.levels * self.num_codebooks, self.cells, axis, self._packed), axis
        )

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Indices as `forward` gives them -> its codes (after ``project_out`` where there is one).

        float32, or the projection's type. The channels come where `forward` would read them: on axis 1 for images
        (indices (b, h, w)), last for sequences. Raises ValueError (where values are checked) outside the codebook.
        """
        if self._checks(indices):
            check_indices(indices, self.levels, self.groups)
        grouped = len(self.groups) > 1
        kept = int(self.keep_num_codebooks_dim) + int(grouped)
        if indices.ndim < 1 + kept or (
            self.keep_num_codebooks_dim and indices.shape[-2 if grouped else -1] != self.num_codebooks
        ):
            axes = f"{self.num_codebooks} codebooks" if self.keep_num_codebooks_dim else "positions"
            raise ValueError(f"indices of shape {tuple(indices.shape)}: expected an axis of {axes}")
        ndim = indices.ndim - kept + 1  # of the codes
        axis = self.channel_axis if self.channel_axis is not None else (1 if ndim >= 4 else -1)
        if self.num_codebooks == 1 and self.keep_num_codebooks_dim:
            indices = indices.squeeze(-1 if len(self.groups) == 1 else -2)
        inner = -1 if self._mixes or self.num_codebooks > 1 else axis
        digits = indices_to_digits(indices, self.levels, self.groups, self.digit_order, inner, self._packed)
        codes = digits_to_codes(digits, self.levels, self.cells, inner)
        codes = codes.flatten(-2) if self.num_codebooks > 1 else codes
        weight = getattr(self.project_out, "weight", codes)
        return self._leave(codes, inner, axis, weight.dtype)

    def extra_repr(self) -> str:
        parts = [f"levels={list(self.levels)}", f"cells={self.cells}", f"groups={list(self.groups)}"]
        return ", ".join([*parts, f"digit_order={self.digit_order}"])

    @property
    def _mixes(self) -> bool:
        """Whether something before or behind the rounding mixes channels, which then must be last."""
        return self.has_projections or self.orthogonal_rot is not None

    def _enter(self, z: Tensor, axis: int) -> tuple[Tensor, int]:
        """Latents behind the projection and the rotation, and the axis of their channels."""
        if self._mixes:
            z, axis = self.project_in(z.movedim(axis, -1)), -1
        return (z if self.orthogonal_rot is None else self._rotate(_full(z), self.orthogonal_rot)), axis

    def _leave(self, codes: Tensor, axis: int, outer: int, dtype: torch.dtype) -> Tensor:
        """Inverse of `_enter`: codes, channels on ``axis`` -> output, channels on ``outer``."""
        if self.orthogonal_rot is not None:
            codes = self._rotate(codes, self.orthogonal_rot.t())
        codes = codes if codes.dtype == dtype else codes.to(dtype)
        codes = self.project_out(codes) if self.has_projections else codes
        return codes if axis == outer else codes.movedim(axis, outer)

    def _rotate(self, rows: Tensor, rotation: Tensor) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            return (rows.unflatten(-1, (self.num_codebooks, -1)) @ rotation.to(rows.dtype)).flatten(-2)

    def _steps(self, rows: Tensor, axis: int, channels: int | None = None) -> fused.Steps:
        L: float | Tensor
        if self._uniform:
            L = float(self.levels[0])  # made here: a compiler takes a module's integers as constants, not its floats
        else:
            shape = [1] * rows.ndim
            shape[axis] = -1
            L = self._level_tensor(rows.device)[:channels].to(rows.dtype).view(shape)
        return fused.make_steps(self.levels, L, self.cells, self.original)

    def _level_tensor(self, device: torch.device) -> Tensor:
        """Level counts of all channels, float32; kept, for a copy to an accelerator waits for it."""
        if torch.compiler.is_compiling():
            return torch.tensor(self.levels * self.num_codebooks, dtype=torch.float32, device=device)
        if device not in self._on_device:
            with torch.inference_mode(False):
                self._on_device[device] = torch.tensor(
                    self.levels * self.num_codebooks, dtype=torch.float32, device=device
                )
        return self._on_device[device]

    def _affine(self, rows: Tensor, axis: int, steps: fused.Steps) -> tuple[float | Tensor, float | Tensor]:
        """Slope and shift in front of the curve, with the original FSQ's shift of even levels."""
        assert isinstance(self.bound, Curve)
        slope, shift = self.bound.affine(rows.ndim, axis)
        if not self.original or all(L % 2 for L in self.levels):
            return slope, shift
        ratio = 2 * steps.offset / steps.span
        clamped = isinstance(self.bound, Clamp)
        if isinstance(ratio, float):
            return slope, ratio if clamped else slope * math.atanh(ratio)
        return slope, ratio if clamped else slope * torch.atanh(ratio)

    def _unit(self, rows: Tensor, axis: int, steps: fused.Steps) -> Tensor:
        if not (self.original and isinstance(self.bound, Curve)):
            return self.bound.unit(rows, axis)
        slope, shift = self._affine(rows, axis, steps)
        return fused.CURVES[self.bound.curve](rows * slope + shift)

    def _unrounded(self, rows: Tensor, axis: int, steps: fused.Steps) -> Tensor:
        """The code before rounding, in the units of the codes, differentiable."""
        u = self._unit(rows, axis, steps)
        if self.cells != "paper":
            return 2 * u - 1
        return ((u - 0.5) * steps.span - steps.offset) / points.half_width(steps.L)

    def _few_passes(self, rows: Tensor, axis: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Latents -> codes, digits and indices by `fused`."""
        rows, bound = _full(rows), self.bound
        steps = self._steps(rows, axis)
        packed = self._packed if self.return_indices else None
        if isinstance(bound, Curve):
            slope, shift = self._affine(rows, axis, steps)
            codes, digits = fused.quantize(rows, bound.curve, slope, shift, steps, packed)
        else:
            codes, digits = fused.straight_through(bound.unit(rows, axis), steps, packed)
        return codes, digits, self._indices(digits, axis) if digits is not None and self._indexed else None

    def _has_kernels(self, rows: Tensor) -> bool:
        return (
            rows.is_cuda
            and self.return_indices
            and self._indexed
            and isinstance(self.bound, Curve)
            and rows.dtype != torch.float64
            and not torch.compiler.is_compiling()  # which writes such kernels itself
            and _triton_is_here()
        )

    def _one_kernel(self, rows: Tensor, axis: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The same by `triton_kernels`."""
        from ifsq.quantizers import triton_kernels

        assert isinstance(self.bound, Curve)
        table, layout = self._kernel_table(rows, axis)
        codes, digits, indices = triton_kernels.quantize(
            rows, axis, self.bound.curve, self.cells, table, layout, self._packed
        )
        if self.num_codebooks > 1:
            indices = indices.unflatten(-1, (self.num_codebooks, -1))
            return codes, digits, indices.squeeze(-1) if len(self.groups) == 1 else indices
        if len(self.groups) == 1:
            return codes, digits, indices if self.keep_num_codebooks_dim else indices.squeeze(-1)
        return codes, digits, indices.unsqueeze(-2) if self.keep_num_codebooks_dim else indices

    def _kernel_table(self, rows: Tensor, axis: int) -> tuple[Tensor, Any]:
        """Parameters of every channel, float32 (channels, 8), and the layout of the indices."""
        from ifsq.quantizers.triton_kernels import Layout

        key = (rows.device, self.bound.name, getattr(self.bound, "alpha", None), self.cells, self.original)
        kept = self._kernels
        if kept is not None and kept[0] == key and self.bound.name in FIXED:
            return kept[1], kept[2]
        with torch.inference_mode(False), torch.no_grad():
            L = self._level_tensor(rows.device)
            steps = fused.make_steps(self.levels, L, self.cells, self.original)
            slope, shift = self._affine(L, 0, steps)
            c, h = points.lattice(L, self.cells)
            columns = (slope, shift, L, steps.span, steps.offset, c, h, steps.slope)
            table = torch.stack([x.float() if isinstance(x, Tensor) else torch.full_like(L, x) for x in columns], 1)
            if kept is not None and kept[0] == key:
                layout = kept[2]
            else:
                basis, starts = self._places()
                layout = Layout(torch.tensor(basis, device=L.device), torch.tensor(starts, device=L.device))
        self._kernels = (key, table, layout)
        return table, layout

    def _places(self) -> tuple[list[int], list[int]]:
        """Place value of every channel, and where the groups of all codebooks start."""
        basis, starts = [], [0]
        for part in digits_of_groups(self.levels, self.groups) * self.num_codebooks:
            places = [1]
            for base in list(part if self.digit_order == "little" else reversed(part))[:-1]:
                places.append(places[-1] * base)
            basis += places if self.digit_order == "little" else places[::-1]
            starts.append(len(basis))
        return basis, starts

    def _disturb(self, codes: Tensor, rows: Tensor, axis: int) -> Tensor:
        if self.noise_dropout == 0 and self.quantization_dropout == 0:
            return codes
        codes, rows = _full(codes), _full(rows)
        steps = self._steps(rows, axis)
        if self.noise_dropout > 0:
            _, h = points.lattice(steps.L, self.cells)
            noise = (torch.rand_like(codes) - 0.5) / h
            moved = torch.where(torch.rand_like(codes) < self.noise_dropout, codes + noise, codes).clamp(-1, 1)
            codes = codes + (moved - codes).detach()  # at the ends too
        if self.quantization_dropout > 0:
            skip = torch.rand((), device=codes.device) < self.quantization_dropout
            codes = torch.where(skip, self._unrounded(rows, axis, steps), codes)
        return codes

    def _indices(self, digits: Tensor, axis: int) -> Tensor:
        """Digits, channels of all codebooks on ``axis`` -> indices in `forward`'s shape."""
        if self.num_codebooks == 1:
            indices = digits_to_indices(digits, self.levels, self.groups, self.digit_order, axis)
            grouped = len(self.groups) > 1
            return indices.unsqueeze(-2 if grouped else -1) if self.keep_num_codebooks_dim else indices
        rows = digits.movedim(axis, -1).unflatten(-1, (self.num_codebooks, -1))
        return digits_to_indices(rows, self.levels, self.groups, self.digit_order)

    def _axis(self, x: Tensor) -> int:
        if self.channel_axis is not None:
            return self.channel_axis if self.channel_axis >= 0 else x.ndim + self.channel_axis
        return 1 if x.ndim >= 4 else x.ndim - 1

    def _check_input(self, z: Tensor, axis: int) -> None:
        if not z.is_floating_point():
            raise ValueError(f"latent of dtype {z.dtype}: expected a floating point type")
        if z.ndim < 2 or not 0 <= axis < z.ndim or z.shape[axis] != self.dim:
            raise ValueError(f"latent of shape {tuple(z.shape)}: expected {self.dim} channels on axis {axis}")
        self._check_finite(z, "latent")

    def _check_last(self, x: Tensor, name: str) -> None:
        """One codebook's values, channels last."""
        if not x.is_floating_point():
            raise ValueError(f"{name} of dtype {x.dtype}: expected a floating point type")
        if x.ndim == 0 or x.shape[-1] != len(self.levels):
            raise ValueError(f"{name} of shape {tuple(x.shape)}: expected a last axis of {len(self.levels)} channels")
        self._check_finite(x, name)

    def _check_finite(self, x: Tensor, name: str) -> None:
        if self._checks(x):
            check_finite(x, name)

    def _check_digits(self, digits: Tensor) -> None:
        if self._checks(digits):
            check_digits(digits, self.levels)

    def _checks(self, x: Tensor) -> bool:
        """Whether to read values: that stops an accelerator's queue, and a compiler cannot trace it."""
        wanted = self.validate if self.validate is not None else x.device.type == "cpu"
        return wanted and not torch.compiler.is_compiling()


def _full(x: Tensor) -> Tensor:
    """float32, whatever the autocast; float64 stays."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


@cache
def _triton_is_here() -> bool:
    return importlib.util.find_spec("triton") is not None
