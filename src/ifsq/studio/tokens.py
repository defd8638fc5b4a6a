"""The tokens of an image as a picture: a cell of colour for every position of the code grid."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ifsq.codes import CodeSpec

CELL = 4
"""Pixels a side of a position: a stroke across an empty one can be seen."""
BLANK, STROKE = 200, 130  # greys of a position without a token


def token_picture(
    layout: CodeSpec, digits: Int[Tensor, "h w d"], known: Bool[Tensor, "h w"] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Tokens as colours, `CELL` pixels a position.

    known  positions that have a token yet; the others are grey with a stroke. None: all

    Points of a lattice that are near have colours that are near: up to three dimensions are red, green and blue, of
    more a fixed projection is. The vectors of a codebook have a random colour each.
    """
    shades = _of_points(layout, digits) if layout.on_lattice else _of_numbers(digits)  # h w 3
    cells = (shades * 255).round().to(torch.uint8).cpu().numpy()
    drawn = cells.repeat(CELL, axis=0).repeat(CELL, axis=1)
    if known is not None:
        stroke = np.where(np.eye(CELL, dtype=bool)[::-1], STROKE, BLANK).astype(np.uint8)
        empty = np.tile(stroke, known.shape)[..., None]
        shown = known.cpu().numpy().repeat(CELL, axis=0).repeat(CELL, axis=1)[..., None]
        drawn = np.where(shown, drawn, empty)
    return drawn


def _of_points(layout: CodeSpec, digits: Tensor) -> Float[Tensor, "h w 3"]:
    codes = layout.digits_to_codes(digits[None])[0].movedim(0, -1).cpu() / layout.scale  # h w d, in [-1, 1]
    if layout.dim <= 3:
        grey = codes.new_zeros(*codes.shape[:2], 3 - layout.dim)
        return (torch.cat([codes, grey], dim=-1) + 1) / 2
    axes = torch.linalg.qr(torch.randn(layout.dim, 3, generator=torch.Generator().manual_seed(0))).Q
    return (torch.tanh(1.5 * codes @ axes) + 1) / 2


def _of_numbers(digits: Tensor) -> Float[Tensor, "h w 3"]:
    """Colours by the number alone, of the first codebook: its bits are mixed by a multiplication."""
    mixed = (digits[..., :1].cpu() * 2654435761) % 2**32 // torch.tensor([1, 2**8, 2**16])
    return (mixed % 256) / 255
