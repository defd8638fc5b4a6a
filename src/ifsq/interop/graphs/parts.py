"""What a tokenizer is exported as: encoder, quantizer, dequantizer and decoder, each with one tensor in.

Encoder and decoder are the large ones and hold floats alone, which every accelerator takes; the small quantizer and
dequantizer hold the integers. So weights are stored once, and each of several rates is a small pair of its own. A
tokenizer with continuous codes is encoder and decoder alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ifsq.interop.graphs.thresholds import MOST_LEVELS, Steps, thresholds
from ifsq.quantizers.bottleneck import Bottleneck
from ifsq.quantizers.cells import packed_dtype
from ifsq.quantizers.lattice import Lattice
from ifsq.quantizers.record import Quantized
from ifsq.tokenizer.model import Tokenizer

GRID = ("height", "width")
"""Sides of the grid of codes, dynamic as ``batch`` is."""


@dataclass(frozen=True)
class Port:
    """A tensor that goes into a part or comes out.

    name  as runtimes know it
    type  ``float32``, ``uint8``, ``int32`` or ``int64``
    axes  a number, or the name of what the caller chooses: ``batch``, ``height`` and ``width`` of the grid of codes
          (``16*height`` pixels)
    """

    name: str
    type: str
    axes: tuple[str | int, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"name": self.name, "type": self.type, "shape": list(self.axes)}


@dataclass(frozen=True, eq=False)
class Part:
    """One graph: ``module`` takes a tensor and gives tensors by name, of which ``gives`` tells in the same order.

    example  an input, for tracing: every side that the caller chooses is at least 2
    factor   pixels a side of a code, where ``takes`` is an image; else 1
    """

    name: str
    module: nn.Module
    takes: Port
    gives: tuple[Port, ...]
    example: Tensor
    factor: int = 1

    def dynamic_shapes(self) -> dict[int, Any]:
        """What `torch.export.export` is told of the axes of the input."""
        dims: dict[int, Any] = {}
        for axis, side in enumerate(self.takes.axes):
            if isinstance(side, str):
                dim = torch.export.Dim(side.rpartition("*")[2])
                dims[axis] = self.factor * dim if "*" in side else dim
        return dims


class Encoding(nn.Module):
    """Images in [-1, 1] (b, c, H, W) -> latents before the bound (b, d, h, w); of continuous codes the codes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        latents = self.tokenizer.latent(images)
        if self.tokenizer.quantizer.lattice is not None:
            return {"latents": latents}
        return {"codes": self.tokenizer.quantizer(latents).codes}


class Decoding(nn.Module):
    """Codes (b, d, h, w) -> images (b, c, H, W) around [-1, 1], not clamped."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, codes: Tensor) -> dict[str, Tensor]:
        return {"images": self.tokenizer.decode(codes)}


class Quantizing(nn.Module):
    """Latents (b, d, h, w) -> codes, digits (b, h, w, n) and, where there are any, indices (b, h, w) or (b, h, w, g).

    Digits are those of the lattice, channels last. Of a lattice that is not too fine all follow from `Steps`, so that
    they are the quantizer's to the bit; else it is the quantizer itself.
    """

    def __init__(self, quantizer: Bottleneck, lattice: Lattice, indexed: bool) -> None:
        super().__init__()
        self.quantizer, self.lattice, self.indexed = quantizer, lattice, indexed
        self.table = thresholds(quantizer, lattice) if steps_are_kept(lattice) else None
        self.steps = None if self.table is None else Steps(self.table)

    def forward(self, latents: Tensor) -> dict[str, Tensor]:
        if self.steps is None:
            record = self.quantizer(latents)
            codes, indices = record.codes, record.indices
            digits = digits_of(self.lattice, record)
        else:
            found = self.steps(latents)
            codes, digits = self.lattice.digits_to_codes(found, axis=1), found.movedim(1, -1)
            indices = self.quantizer.codes_to_indices(codes) if self.indexed else None
        given = {"codes": codes, "digits": digits.to(packed_dtype(self.lattice.levels))}
        return given if indices is None else {**given, "indices": indices}


class Dequantizing(nn.Module):
    """Indices, or digits where there are no indices, -> codes (b, d, h, w)."""

    def __init__(self, decode: Callable[[Tensor], Tensor], quantizer: Bottleneck) -> None:
        super().__init__()
        self.decode, self.quantizer = decode, quantizer  # whose codebook is then known to be a part of this

    def forward(self, numbers: Tensor) -> dict[str, Tensor]:
        return {"codes": self.decode(numbers)}


def digits_of(lattice: Lattice, record: Quantized) -> Tensor:
    """The digits of a record in the layout of the lattice (b, h, w, n), int64: a residual quantizer's are by stage."""
    if lattice.has_codes:
        return lattice.codes_to_digits(record.codes, axis=1).movedim(1, -1)
    assert record.digits is not None  # of a codebook, its numbers
    return record.digits


def steps_are_kept(lattice: Lattice) -> bool:
    """Whether the quantizer of such a lattice is exported as thresholds."""
    return lattice.has_codes and max(lattice.levels) <= MOST_LEVELS


def network_parts(tokenizer: Tokenizer) -> tuple[Part, Part]:
    """Encoder and decoder."""
    factor, dim = tokenizer.factor, tokenizer.quantizer.dim
    pixels = tuple(f"{factor}*{side}" if factor > 1 else side for side in GRID)
    images = Port("images", "float32", ("batch", tokenizer.channels, *pixels))
    codes = Port("codes", "float32", ("batch", dim, *GRID))
    latents = codes if tokenizer.quantizer.lattice is None else Port("latents", "float32", codes.axes)
    shown = torch.zeros(2, tokenizer.channels, 3 * factor, 4 * factor)
    return (
        Part("encoder", Encoding(tokenizer), images, (latents,), shown, factor),
        Part("decoder", Decoding(tokenizer), codes, (images,), torch.zeros(2, dim, 3, 4)),
    )


def rate_parts(quantizer: Bottleneck, suffix: str = "") -> tuple[Part, ...]:
    """Quantizer and dequantizer, with ``suffix`` in their names; none where codes are continuous."""
    lattice = quantizer.lattice
    if lattice is None:
        return ()
    latents = torch.zeros(2, quantizer.width, 3, 4)
    record = quantizer(latents)
    codes = Port("codes", "float32", ("batch", quantizer.dim, *GRID))
    packed = str(packed_dtype(lattice.levels)).removeprefix("torch.")
    digits = Port("digits", packed, ("batch", *GRID, len(lattice.levels)))
    gives: tuple[Port, ...] = (codes, digits)
    numbers, decode = digits, _from_digits(lattice)
    example = torch.zeros(2, 3, 4, len(lattice.levels), dtype=packed_dtype(lattice.levels))
    if record.indices is not None:
        numbers = Port("indices", "int64", ("batch", *GRID, *record.indices.shape[3:]))
        gives, decode, example = (*gives, numbers), quantizer.indices_to_codes, record.indices
    module = Quantizing(quantizer, lattice, record.indices is not None)
    return (
        Part(f"quantizer{suffix}", module, Port("latents", "float32", codes.axes), gives, latents),
        Part(f"dequantizer{suffix}", Dequantizing(decode, quantizer), numbers, (codes,), example),
    )


def _from_digits(lattice: Lattice) -> Callable[[Tensor], Tensor]:
    def decode(digits: Tensor) -> Tensor:
        return lattice.digits_to_codes(digits).movedim(-1, 1)

    return decode
