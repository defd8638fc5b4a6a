"""Residual finite scalar quantization: each stage quantizes what the previous stages left, at a finer scale.

With cells of equal width the stages nest: what a stage of L levels leaves lies within one cell, ``+-1/L`` around its
point, and scaled up by L that cell is the interval (-1, 1) again, which the next stage cuts into L cells. So m stages
are one lattice of ``L**m`` cells whose digit is written in base L, the first stage the most significant place; that is
how it is computed, and no residual loses bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ifsq.quantizers.bottleneck import Bottleneck, check_count, reads_values
from ifsq.quantizers.bounds import IFSQ_ALPHA, make_bound
from ifsq.quantizers.cells import digits_to_codes, packed_dtype
from ifsq.quantizers.compilers import is_exporting
from ifsq.quantizers.digits import (
    MAX_CODEBOOK,
    check_indices,
    check_layout,
    digits_to_indices,
    group_sizes,
    indices_to_digits,
)
from ifsq.quantizers.lattice import Lattice
from ifsq.quantizers.record import Quantized

if TYPE_CHECKING:
    from jaxtyping import Float, Int

FINEST = 2**22  # cells of a dimension that float32 codes keep apart


class ResidualFSQ(Bottleneck):
    """FSQ in stages: the first index gives a coarse code, every further one divides its cells.

    levels          level count L of every dimension in every stage, each at least 2
    num_quantizers  stages m; a dimension ends with ``L**m`` cells, at most 2**22
    bound, alpha    of the latent, see `bounds`
    cells           ``equal``: with others the stages do not nest
    digit_order     ``little`` or ``big``, within a stage, see `digits`

    Returns codes in (-1, 1), the sum of the stages; indices (..., m), one a stage, coarsest first, None where a stage
    has more than 2**63 codes; digits (..., m*d), stage by stage. The gradient of the whole is that of the bound.
    A running bound moves its statistics behind each training batch.
    """

    lattice: Lattice
    levels: tuple[int, ...]

    def __init__(
        self,
        levels: Sequence[int],
        num_quantizers: int,
        *,
        bound: str = "ifsq",
        alpha: float = IFSQ_ALPHA,
        cells: str = "equal",
        digit_order: str = "little",
        channel_first: bool = False,
    ) -> None:
        stage = tuple(levels)
        super().__init__(len(stage), len(stage), channel_first)
        check_layout(stage, (len(stage),), digit_order)
        self.num_quantizers = check_count("num_quantizers", num_quantizers)
        if cells != "equal":
            raise ValueError(f"cells={cells!r}: expected 'equal', the cells whose stages nest")
        if num_quantizers > log2(FINEST) or max(stage) ** num_quantizers > FINEST:
            raise ValueError(
                f"num_quantizers={num_quantizers} of {max(stage)} levels: expected at most 2**22 cells a dimension,"
                f" not {max(stage)}**{num_quantizers}"
            )
        # Codes lie on the lattice of all stages joined; digits and indices come stage by stage.
        self.lattice = Lattice(tuple(L**num_quantizers for L in stage), (1,) * len(stage), digit_order, "equal")
        self.levels, self.groups = stage * num_quantizers, (len(stage),) * num_quantizers
        self.stage_levels, self.digit_order = stage, digit_order
        self.bound = make_bound(bound, len(stage), alpha)

    @property
    def codebook_size(self) -> int:
        """Codes of one stage: what one index ranges over, a Python integer of any size."""
        return group_sizes(self.stage_levels, (self.dim,))[0]

    def forward(self, z: Float[Tensor, "..."]) -> Quantized:
        latent, axis = self._enter(z)
        unit = self.bound.unit(latent, axis).movedim(axis, -1)
        fine = torch.tensor(self.lattice.levels, dtype=torch.int32, device=unit.device)
        cell = (unit.detach() * fine).floor().to(torch.int32)
        cell = torch.minimum(cell.clamp(min=0), fine - 1)
        codes = self.lattice.digits_to_codes(cell).to(unit.dtype)
        codes = codes + 2 * (unit - unit.detach())  # straight through; a difference of 0
        digits = self._split(cell)
        indices = self._indices(digits) if self.codebook_size <= MAX_CODEBOOK else None
        if self.training and not is_exporting():
            self.bound.observe(latent, axis)
        packed = digits.to(packed_dtype(self.levels))
        return Quantized(codes.to(z.dtype).movedim(-1, axis), indices, packed)

    def indices_to_codes(self, indices: Int[Tensor, "... k"]) -> Float[Tensor, "..."]:
        """Integer indices (..., k) of the first k stages, 1 to m -> float32 codes in `forward`'s layout.

        With fewer stages the code is the centre of the coarser cell. Raises ValueError on another k and (on a CPU)
        outside the codebook.
        """
        stages = indices.shape[-1] if indices.ndim else 0
        if not 1 <= stages <= self.num_quantizers:
            raise ValueError(
                f"indices of shape {tuple(indices.shape)}: expected a last axis of 1 to {self.num_quantizers} stages"
            )
        levels, groups = self.stage_levels * stages, (self.dim,) * stages
        rows = indices.squeeze(-1) if stages == 1 else indices
        if reads_values(indices):
            check_indices(rows, levels, groups)
        cell = self._join(indices_to_digits(rows, levels, groups, self.digit_order))
        return self._leave_codes(digits_to_codes(cell, [L**stages for L in self.stage_levels], "equal"))

    def codes_to_indices(self, codes: Float[Tensor, "..."]) -> Int[Tensor, "... m"]:
        """Float codes in `forward`'s layout, of all stages -> int64 indices (..., m) of the nearest lattice point.

        Raises ValueError where a stage has more than 2**63 codes.
        """
        return self._indices(self._split(self.lattice.codes_to_digits(self._enter_codes(codes))))

    def extra_repr(self) -> str:
        return f"levels={list(self.stage_levels)}, num_quantizers={self.num_quantizers}"

    def _split(self, cell: Int[Tensor, "... d"]) -> Int[Tensor, "... m*d"]:
        """Cells of the finest lattice (..., d) -> digits (..., m*d), stage by stage, coarsest first."""
        L = torch.tensor(self.stage_levels, dtype=torch.int32, device=cell.device)
        digits = []
        for _ in range(self.num_quantizers - 1):
            above = torch.div(cell, L, rounding_mode="trunc")
            digits.append(cell - above * L)
            cell = above
        return torch.cat([cell, *reversed(digits)], dim=-1)

    def _join(self, digits: Int[Tensor, "... k*d"]) -> Int[Tensor, "... d"]:
        """Digits (..., k*d) of the first k stages -> cells (..., d) of their lattice."""
        first, *others = digits.split(self.dim, dim=-1)
        L = torch.tensor(self.stage_levels, device=digits.device)
        for finer in others:
            first = first * L + finer
        return first

    def _indices(self, digits: Tensor) -> Tensor:
        indices = digits_to_indices(digits, self.levels, (self.dim,) * self.num_quantizers, self.digit_order)
        return indices.unsqueeze(-1) if self.num_quantizers == 1 else indices
