"""Finite scalar quantization: bound each dimension, round it to one of its levels, gradient straight through.

``FSQ(levels)`` is iFSQ (arXiv 2601.17124); ``bound="tanh"`` is FSQ (arXiv 2309.15505). Here are its options, the layout
of what it takes and returns, and projection and rotation; what it computes is in `bounds`, `rounding` and `lattice`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ifsq.quantizers.bottleneck import Bottleneck, check_count
from ifsq.quantizers.bounds import IFSQ_ALPHA, Bound, Clamp, make_bound
from ifsq.quantizers.cells import CELLS, codes_to_digits
from ifsq.quantizers.compilers import is_exporting
from ifsq.quantizers.digits import by_blocks, check_digits, check_layout
from ifsq.quantizers.lattice import Lattice
from ifsq.quantizers.record import Deferred, Quantized
from ifsq.quantizers.rounding import Rounding, full

if TYPE_CHECKING:
    from jaxtyping import Float, Int

FINEST = 2**22  # levels of a dimension


class FSQ(Bottleneck):
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

    lattice: Lattice
    levels: tuple[int, ...]
    groups: tuple[int, ...]
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
        lattice = _lattice(levels, groups, digit_order, cells, preserve_symmetry)
        width = len(lattice.levels) * check_count("num_codebooks", num_codebooks)
        dim = check_count("dim", dim) if dim is not None else width
        _check_axis(channel_first, channel_axis)
        if not force_quantization_f32:
            raise ValueError("force_quantization_f32=False: expected True; the bound is computed in float32 always")
        keep = num_codebooks > 1 if keep_num_codebooks_dim is None else keep_num_codebooks_dim
        if num_codebooks > 1 and not keep:
            raise ValueError(f"keep_num_codebooks_dim=False with num_codebooks={num_codebooks}: expected True")
        for name, rate in (("noise_dropout", noise_dropout), ("quantization_dropout", quantization_dropout)):
            if not 0 <= rate <= 1:
                raise ValueError(f"{name}={rate}: expected a rate from 0 to 1")

        super().__init__(dim, dim, channel_first, channel_axis)
        self.bound = bound if isinstance(bound, Bound) else make_bound(bound, width, alpha)
        if self.bound.channels not in (None, width):
            raise ValueError(f"bound of {self.bound.channels} channels: expected {width}")
        original = lattice.cells == "paper" and self.bound.name == "tanh"
        if bound_hard_clamp:
            self.bound = Clamp()
        _check_odd(lattice, original, self.bound)
        self.round_by(Rounding(lattice, num_codebooks, original))
        self.num_codebooks, self.keep_num_codebooks_dim = num_codebooks, keep
        self.return_indices, self.validate = return_indices, validate
        self.noise_dropout, self.quantization_dropout = noise_dropout, quantization_dropout

        self.has_projections = dim != width
        self.project_in: nn.Module = nn.Identity()
        self.project_out: nn.Module = nn.Identity()
        if self.has_projections:
            self.project_in = nn.Linear(dim, width, bias=projection_has_bias)
            self.project_out = nn.Linear(width, dim, bias=projection_has_bias)
        self.register_buffer("orthogonal_rot", None)
        if orthogonal_rotation:
            self.orthogonal_rot = nn.init.orthogonal_(torch.empty(len(self.levels), len(self.levels)))

    def round_by(self, rounding: Rounding) -> None:
        """Use another cell rule from now on, or one of `rounding_to`: the codes change their meaning.

        Indices of a record that is there already are to be read before.
        """
        self.rounding = rounding
        self._state(rounding.lattice)

    def rounding_to(self, levels: Sequence[int]) -> Rounding:
        """What rounds to other level counts behind the same bound, for `round_by`.

        Raises ValueError for another number of them, and for what is refused in ``levels``.
        """
        if len(levels) != len(self.levels):
            raise ValueError(f"levels={list(levels)}: expected {len(self.levels)} of them")
        lattice = _lattice(levels, self.groups, self.digit_order, self.cells, False)
        _check_odd(lattice, self.original, self.bound)
        return Rounding(lattice, self.num_codebooks, self.original)

    @property
    def cells(self) -> str:
        """Cell rule, see `cells`."""
        return self.lattice.cells

    @property
    def digit_order(self) -> str:
        """``little`` or ``big``, see `digits`."""
        return self.lattice.digit_order

    @property
    def original(self) -> bool:
        """Whether this is the first FSQ: a tanh a little wider than its levels, shifted for even ones."""
        return self.rounding.original

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
        return self.lattice.group_sizes

    def forward(self, z: Float[Tensor, "..."]) -> Quantized:
        """Latents, ``dim`` channels where the layout has them -> codes, indices and digits.

        The codes have the latents' shape and type and, before any projection, lie in [-1, 1]; their gradient is that of
        the bound (straight through). In training the two dropouts act, and a running bound moves behind the batch.
        Raises ValueError on a wrong width or type and, where values are checked, on NaN and infinity.
        """
        rows, axis = self.entered(z)
        codes, digits, flat = self.rounding(self.bound, rows, axis, self.return_indices)
        if self.training:
            if self.noise_dropout > 0 or self.quantization_dropout > 0:
                rates = self.noise_dropout, self.quantization_dropout
                codes = self.rounding.disturb(self.bound, codes, rows, axis, *rates)
            if not is_exporting():
                self.bound.observe(rows, axis)
        codes = self._leave(codes, axis, self.axis_of(z.ndim), z.dtype)
        if digits is None:
            return Quantized(codes)
        last = digits.movedim(axis, -1)
        if self.num_codebooks > 1:
            last = last.unflatten(-1, (self.num_codebooks, -1))
        if not self.rounding.has_indices:
            return Quantized(codes, None, last)
        if flat is not None:
            return Quantized(codes, self._by_codebook(flat), last)
        if digits.is_cuda or torch.compiler.is_compiling():  # what is recorded to be run again must hold all of it
            return Quantized(codes, self._indices(digits, axis), last)
        return Deferred(codes, partial(self._indices, digits, axis), last)  # type: ignore[arg-type]

    def entered(self, z: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], int]:
        """Latents as they reach the bound, behind projection and rotation, and the axis of their channels.

        Raises ValueError as `forward` does.
        """
        axis = self._check(z, "latent", self.dim)
        if self._mixes:
            z, axis = self.project_in(z.movedim(axis, -1)), -1
        return (z if self.orthogonal_rot is None else self._rotate(full(z), self.orthogonal_rot)), axis

    def quantize(self, z: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Latents of one codebook, channels last, behind any projection -> their codes.

        Straight-through gradient. Raises ValueError on a wrong width or type and (where values are checked) on NaN and
        infinity.
        """
        self._check_last(z, "latents")
        if self.num_codebooks > 1 and self.bound.channels is not None:
            raise ValueError(
                f"num_codebooks={self.num_codebooks} with bound={self.bound.name!r}: expected one codebook"
            )
        rounding = self.rounding if self.num_codebooks == 1 else Rounding(self.lattice, 1, self.original)
        return rounding.round(self.bound, full(z), -1)[0].to(z.dtype)

    def bounded(self, z: Float[Tensor, "..."], axis: int = -1) -> Float[Tensor, "..."]:
        """Latents, channels on ``axis``, behind any projection -> the unrounded codes, same shape, float32.

        In [-1, 1], but for the first FSQ, whose tanh is a thousandth wider.
        """
        return self.rounding.unrounded(self.bound, full(z), axis)

    def digits_to_codes(self, digits: Int[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Integer digits -> float32 codes in [-1, 1], before any projection.

        Raises ValueError (where values are checked) outside the levels.
        """
        self._check_digits(digits)
        return self.lattice.digits_to_codes(digits)

    def codes_to_digits(self, codes: Float[Tensor, "... d"]) -> Int[Tensor, "... d"]:
        """Codes of one codebook, channels last, not rotated -> the nearest lattice point's digits, int64."""
        self._check_last(codes, "codes")
        return self.lattice.codes_to_digits(codes)

    def digits_to_indices(self, digits: Int[Tensor, "... d"]) -> Int[Tensor, "..."]:
        """Integer digits -> int64 indices (...), or (..., g) with several groups.

        Raises ValueError where a group has more than 2**63 codes and (where values are checked) outside the levels.
        """
        self._check_digits(digits)
        return self.lattice.digits_to_indices(digits)

    def indices_to_digits(self, indices: Int[Tensor, "..."]) -> Int[Tensor, "... d"]:
        """Int64 indices (...), or (..., g) with several groups -> int64 digits.

        Raises ValueError (where values are checked) outside the codebook.
        """
        self._check_indices(indices)
        return self.lattice.indices_to_digits(indices)

    indices_to_level_indices = indices_to_digits  # its name elsewhere

    def codes_to_indices(self, codes: Float[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Codes in the layout of `forward`'s output, before ``project_out`` -> indices as `forward` gives them."""
        codes = codes if codes.is_floating_point() else codes.float()
        axis = self._check(codes, "codes", self.effective_codebook_dim)
        if self.orthogonal_rot is not None:
            codes = self._rotate(codes.movedim(axis, -1).float(), self.orthogonal_rot).movedim(-1, axis)
        rounding, inner = self.rounding, (-1 if axis == codes.ndim - 1 else axis)

        def compute(part: Tensor) -> Tensor:
            return self._indices(codes_to_digits(part, rounding.levels, self.cells, inner, rounding.packed), inner)

        return by_blocks(compute, codes, 1) if inner == -1 else compute(codes)

    def indices_to_codes(self, indices: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Indices as `forward` gives them -> its codes (after ``project_out`` where there is one).

        float32, or the projection's type. The channels come where `forward` would read them: on axis 1 for images
        (indices (b, h, w)), last for sequences. Raises ValueError (where values are checked) outside the codebook.
        """
        self._check_indices(indices)
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

        def compute(part: Tensor) -> Tensor:
            return self.lattice.digits_to_codes(
                self.lattice.indices_to_digits(part, inner, self.rounding.packed), inner
            )

        codes = by_blocks(compute, indices, int(grouped)) if inner == -1 else compute(indices)
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

    def _leave(self, codes: Tensor, axis: int, outer: int, dtype: torch.dtype) -> Tensor:
        """Inverse of `entered`: codes, channels on ``axis`` -> output, channels on ``outer``."""
        if self.orthogonal_rot is not None:
            codes = self._rotate(codes, self.orthogonal_rot.t())
        codes = codes if codes.dtype == dtype else codes.to(dtype)
        codes = self.project_out(codes) if self.has_projections else codes
        return codes if axis == outer else codes.movedim(axis, outer)

    def _rotate(self, rows: Tensor, rotation: Tensor) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            return (rows.unflatten(-1, (self.num_codebooks, -1)) @ rotation.to(rows.dtype)).flatten(-2)

    def _indices(self, digits: Tensor, axis: int) -> Tensor:
        """Digits, channels of all codebooks on ``axis`` -> indices in `forward`'s shape."""
        if self.num_codebooks == 1:
            indices = self.lattice.digits_to_indices(digits, axis)
            grouped = len(self.groups) > 1
            return indices.unsqueeze(-2 if grouped else -1) if self.keep_num_codebooks_dim else indices
        rows = digits.movedim(axis, -1).unflatten(-1, (self.num_codebooks, -1))
        return self.lattice.digits_to_indices(rows)

    def _by_codebook(self, flat: Tensor) -> Tensor:
        """Indices with all groups of all codebooks on the last axis -> indices in `forward`'s shape."""
        if self.num_codebooks > 1:
            indices = flat.unflatten(-1, (self.num_codebooks, -1))
            return indices.squeeze(-1) if len(self.groups) == 1 else indices
        if len(self.groups) == 1:
            return flat if self.keep_num_codebooks_dim else flat.squeeze(-1)
        return flat.unsqueeze(-2) if self.keep_num_codebooks_dim else flat

    def _check_last(self, x: Tensor, name: str) -> None:
        """Refuse what are not one codebook's values, channels last."""
        if not x.is_floating_point():
            raise ValueError(f"{name} of dtype {x.dtype}: expected a floating point type")
        if x.ndim == 0 or x.shape[-1] != len(self.levels):
            raise ValueError(f"{name} of shape {tuple(x.shape)}: expected a last axis of {len(self.levels)} channels")
        self._check_finite(x, name)

    def _check_digits(self, digits: Tensor) -> None:
        if self._checks(digits):
            check_digits(digits, self.levels)

    def _checks(self, x: Tensor) -> bool:
        wanted = self.validate if self.validate is not None else x.device.type == "cpu"
        return wanted and not torch.compiler.is_compiling()


def _lattice(
    levels: Sequence[int], groups: Sequence[int] | None, digit_order: str, cells: str, preserve_symmetry: bool
) -> Lattice:
    """The lattice of one codebook. Raises ValueError for what is none."""
    for name, value in (("levels", levels), ("groups", groups if groups is not None else ())):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{name}={value!r}: expected a list of integers")
    sizes = tuple(groups) if groups is not None else (len(levels),)
    check_layout(levels, sizes, digit_order)
    if max(levels) > FINEST:
        raise ValueError(f"levels={list(levels)}: expected at most {FINEST}, which float32 codes keep apart")
    if cells not in CELLS:
        raise ValueError(f"cells={cells!r}: expected one of {', '.join(CELLS)}")
    if preserve_symmetry and cells == "equal":
        raise ValueError("preserve_symmetry=True with cells='equal': expected one of the two")
    return Lattice(tuple(levels), sizes, digit_order, "symmetric" if preserve_symmetry else cells)


def _check_odd(lattice: Lattice, original: bool, bound: Bound) -> None:
    """The paper's cells have even levels with the first FSQ's tanh alone."""
    if lattice.cells == "paper" and not original and any(L % 2 == 0 for L in lattice.levels):
        raise ValueError(
            f"levels={list(lattice.levels)}: paper cells with bound={bound.name!r} need odd levels;"
            " use cells='equal' or 'symmetric'"
        )


def _check_axis(channel_first: bool, channel_axis: int | None) -> None:
    if channel_axis is not None and (not isinstance(channel_axis, int) or isinstance(channel_axis, bool)):
        raise ValueError(f"channel_axis={channel_axis!r}: expected an integer")
    if channel_first and channel_axis not in (None, 1):
        raise ValueError(f"channel_first=True with channel_axis={channel_axis}: expected one of the two")
