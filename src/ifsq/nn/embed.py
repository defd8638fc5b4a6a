"""Where a token lies on the grid: rotary tables for attention and fixed sin-cos embeddings, both two-dimensional.

Both are functions of the grid, not parameters: float32 buffers outside the state dict, computed anew whenever the
module is moved or cast, so that ``module.bfloat16()`` and ``to_empty`` leave them exact.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

PREFIXES = ("identity", "zero")


class Rotary(nn.Module):
    """2-D rotary positions (RoPE): the first half of a head rotates with the row, the second with the column.

    Pairs are neighbours (0, 1), (2, 3), ...; pair i of a half rotates by ``position * base ** (-2i / half)``.

    grid      rows and columns, positions in row-major order
    head_dim  width of a head, a multiple of 4
    prefix    None, or positions before the grid for class tokens: ``identity`` leaves them as they are, ``zero``
              multiplies them by 0, which is what the official LlamaGen does and its checkpoints expect
    prefixes  how many these are
    """

    table: Tensor

    def __init__(
        self,
        grid: tuple[int, int],
        head_dim: int,
        *,
        base: float = 10000.0,
        prefix: str | None = None,
        prefixes: int = 1,
    ) -> None:
        super().__init__()
        if head_dim % 4:
            raise ValueError(f"head width {head_dim}: two-dimensional rotary positions need a multiple of 4")
        if prefix is not None and prefix not in PREFIXES:
            raise ValueError(f"prefix={prefix!r}: expected None or one of {', '.join(PREFIXES)}")
        self.grid, self.head_dim, self.base, self.prefix, self.prefixes = grid, head_dim, base, prefix, prefixes
        self.register_buffer("table", self._table().to(torch.get_default_device()), persistent=False)

    def forward(self, x: Float[Tensor, "... t width"], start: int | Tensor = 0) -> Float[Tensor, "... t width"]:
        """Rotate queries or keys at positions ``start`` .. ``start + t - 1``; float32 inside, the input's dtype out.

        start  a number, or a scalar tensor that the host need not know
        """
        return _rotate(x, _rows(self.table, start, x.shape[-2]))

    def along(self, rows: Int[Tensor, "b s"]) -> "RotaryAlong":
        """The same for sequences that visit the rows of the table in an order of their own each."""
        return RotaryAlong(self.table[rows])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rotary":
        super()._apply(fn, recurse)
        self.table = self._table().to(self.table.device)
        return self

    def _table(self) -> Tensor:
        half = self.head_dim // 2
        rates = self.base ** (-torch.arange(0, half, 2, dtype=torch.float32, device="cpu") / half)
        rows, columns = _positions(self.grid)
        angles = torch.cat([rows[:, None] * rates, columns[:, None] * rates], dim=1)
        table = torch.stack([angles.cos(), angles.sin()], dim=-1)
        if self.prefix is None:
            return table
        first = torch.zeros(self.prefixes, *table.shape[1:], device="cpu")
        first[..., 0] = float(self.prefix == "identity")
        return torch.cat([first, table])


class RotaryAlong:
    """Rotary positions of a batch of sequences, each with its own; called as `Rotary`, with heads (b, n, t, width).

    table  (b, s, width / 2, 2): cosines and sines of the positions of each sequence
    """

    def __init__(self, table: Float[Tensor, "b s _ 2"]) -> None:
        self.table = table

    def __call__(self, x: Float[Tensor, "b n t width"], start: int | Tensor = 0) -> Float[Tensor, "b n t width"]:
        return _rotate(x, _rows(self.table.transpose(0, 1), start, x.shape[-2]).transpose(0, 1)[:, None])


def _rows(table: Tensor, start: int | Tensor, count: int) -> Tensor:
    if isinstance(start, Tensor):
        return table[start + torch.arange(count, device=start.device)]
    return table[start : start + count]


def _rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Pairs of x (..., t, width) rotated by the cosines and sines (..., t, width / 2, 2), as complex numbers are."""
    if x.requires_grad and x.device.type == "cpu" and not torch.compiler.is_compiling():
        # Pairs as complex numbers: neighbours are read together, forward and backward, five times as fast. The last
        # of a tensor round otherwise, so where nothing is trained an image would depend on its batch.
        pairs = torch.view_as_complex(x.to(torch.float32).unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * torch.view_as_complex(rotations)).flatten(-2).to(x.dtype)
    cos, sin = rotations.unbind(-1)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


class SinCosPositions(nn.Module):
    """Fixed 2-D sin-cos position embedding (as in MAE and DiT): adds one vector per grid position.

    The first half of the width encodes the column, the second the row; in each, sines come before cosines.
    ``width`` must be a multiple of 4. Input and output (b, t, width) with t = rows * columns.
    """

    table: Tensor

    def __init__(self, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"width={width}: two-dimensional sin-cos positions need a multiple of 4")
        self.grid, self.width = grid, width
        self.register_buffer("table", self._table().to(torch.get_default_device()), persistent=False)

    def forward(self, x: Float[Tensor, "b t width"]) -> Float[Tensor, "b t width"]:
        return x + self.table.to(x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SinCosPositions":
        super()._apply(fn, recurse)
        self.table = self._table().to(self.table.device)
        return self

    def _table(self) -> Tensor:
        quarter = self.width // 4
        rates = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)
        rows, columns = _positions(self.grid)
        parts = [f(axis.double()[:, None] * rates) for axis in (columns, rows) for f in (torch.sin, torch.cos)]
        return torch.cat(parts, dim=1).to(torch.float32)


def _positions(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Row and column of every grid position in row-major order, float32 (t,)."""
    index = torch.arange(grid[0] * grid[1], device="cpu")
    return (index // grid[1]).to(torch.float32), (index % grid[1]).to(torch.float32)
