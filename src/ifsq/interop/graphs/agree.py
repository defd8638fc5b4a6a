"""Whether graphs compute what the tokenizer computes, on parts of a photograph that no training crop touches."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ifsq.config import InputError
from ifsq.data.bundled import PHOTOS, photo_part, read_photo
from ifsq.data.transforms import to_float
from ifsq.interop.graphs.formats import Opened
from ifsq.interop.graphs.parts import digits_of, steps_are_kept
from ifsq.quantizers.bottleneck import Bottleneck
from ifsq.quantizers.digits import group_sizes
from ifsq.tokenizer.model import Tokenizer

CLOSE = 1e-4
"""Largest difference of latents and of images; of numbers beyond 1, in parts of the largest."""
SAME_CODES = 1e-6
SIDE = 64
"""Pixels that the smaller side of most images has at least."""
FEW = 1000
"""One digit of so many may be another: a latent that lies between two levels as exactly as float32 tells."""


@dataclass(frozen=True)
class Agreement:
    """What was found.

    images        that passed through
    latents       largest difference of what the encoder gives
    decoded       largest difference of images
    digits        compared, from images to digits, at all rates
    other_digits  of these that differ: a latent's last bits put it on the other side of a boundary
    nearest       how far apart the two latents of such a digit are, at most; 0 where there is none
    """

    images: int
    latents: float
    decoded: float
    digits: int = 0
    other_digits: int = 0
    nearest: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    def __str__(self) -> str:
        first = "latents" if self.digits else "codes"
        text = f"{self.images} images: {first} to {self.latents:.1e}, images to {self.decoded:.1e}"
        if not self.digits:
            return text
        equal = f"{text}, {self.digits - self.other_digits:,} of {self.digits:,} digits equal"
        return equal if not self.other_digits else f"{equal} (the others' latents differ by {self.nearest:.1e})"


def check_network(
    tokenizer: Tokenizer, opened: Mapping[str, Opened], rates: Mapping[str, Bottleneck], least: int = 1
) -> Agreement:
    """Compare all parts with the tokenizer at three sizes. Raises InputError with the numbers where they disagree.

    rates  quantizers by the suffix of their parts' names; empty where codes are continuous
    least  positions a side of the smallest grid
    """
    count, latents_off, decoded_off, digits, others, nearest = 0, 0.0, 0.0, 0, 0, 0.0
    for images in shown(tokenizer.channels, tokenizer.factor, least):
        count += len(images)
        latents = tokenizer.latent(images)
        given = next(iter(opened["encoder"](images).values()))
        expected = latents if rates else tokenizer.quantizer(latents).codes
        latents_off = max(latents_off, _close("encoder", given, expected))
        for suffix, quantizer in rates.items():
            check_rate(quantizer, opened, suffix, latents)
            same = opened[f"quantizer{suffix}"](latents)["digits"] == opened[f"quantizer{suffix}"](given)["digits"]
            digits, others = digits + same.numel(), others + int((~same).sum())
            if not same.all():
                nearest = max(nearest, float((given - latents).abs().max()))
        codes = tokenizer.quantizer(latents).codes
        decoded_off = max(decoded_off, _close("decoder", opened["decoder"](codes)["images"], tokenizer.decode(codes)))
    if others > max(1, digits // FEW):
        raise InputError(f"encoder: {others} of {digits} digits differ; expected at most one of {FEW}")
    return Agreement(count, latents_off, decoded_off, digits, others, nearest)


def check_rate(quantizer: Bottleneck, opened: Mapping[str, Opened], suffix: str, latents: Tensor) -> None:
    """Compare quantizer and dequantizer with the quantizer, on the same latents and on numbers drawn from all.

    Equal to the bit, but for codebooks: two of their codes may be as near as float32 tells. Raises InputError.
    """
    lattice, record = quantizer.lattice, quantizer(latents)
    assert lattice is not None
    given = opened[f"quantizer{suffix}"](latents)
    exact = steps_are_kept(lattice)
    for name, expected in (("digits", digits_of(lattice, record)), ("indices", record.indices)):
        if expected is None:
            continue
        differ = int((given[name] != expected).sum())
        if differ > (0 if exact else max(1, expected.numel() // FEW)):
            raise InputError(f"quantizer{suffix}: {differ} of {expected.numel()} {name} differ on the same latents")
    if exact:
        _close(f"quantizer{suffix}", given["codes"], record.codes, SAME_CODES)
    draws = torch.Generator().manual_seed(0)
    if record.indices is None:
        sizes, shape, kind = lattice.levels, given["digits"].shape, given["digits"].dtype
    else:
        assert quantizer.levels is not None
        assert quantizer.groups is not None
        sizes, shape, kind = group_sizes(quantizer.levels, quantizer.groups), record.indices.shape, torch.int64
    drawn = [torch.randint(min(size, 2**63 - 1), shape[:3], generator=draws) for size in sizes]
    for column, size in zip(drawn, sizes, strict=True):
        column[0, 0, 0] = size - 1
    numbers = torch.stack(drawn, dim=-1) if len(shape) == 4 else drawn[0]
    if record.indices is None:
        codes = lattice.digits_to_codes(numbers).movedim(-1, 1)
    else:
        codes = quantizer.indices_to_codes(numbers)
    _close(f"dequantizer{suffix}", opened[f"dequantizer{suffix}"](numbers.to(kind))["codes"], codes, SAME_CODES)


def shown(channels: int, factor: int, least: int = 1) -> Iterator[Tensor]:
    """Images (b, channels, H, W) in [-1, 1]: eight squares, three that are higher than wide, a small one."""
    photo = PHOTOS[0]
    pixels = photo_part(read_photo(photo), photo, "val")[0][..., np.arange(channels) % 3]
    grid = max(2, SIDE // factor)
    for count, down, across in ((8, grid, grid), (3, grid + grid // 2, grid), (1, least, least)):
        rows, columns = np.arange(down * factor), np.arange(across * factor)
        # Around the edge where an image is larger than the photograph.
        parts = [
            pixels[(rows + 61 * i) % pixels.shape[0]][:, (columns + 37 * i) % pixels.shape[1]] for i in range(count)
        ]
        yield to_float(np.stack(parts))


def _close(part: str, given: Tensor, expected: Tensor, most: float = CLOSE) -> float:
    """The largest difference. Raises InputError where it is above ``most``, or the shapes differ."""
    if given.shape != expected.shape:
        raise InputError(f"{part}: gives {tuple(given.shape)} where the tokenizer gives {tuple(expected.shape)}")
    off, largest = float((given - expected).abs().max()), max(1.0, float(expected.abs().max()))
    if not off <= most * largest:  # NaN too
        raise InputError(
            f"{part}: differs from the tokenizer by {off:.2g} in values up to {largest:.2g} on images of"
            f" {tuple(given.shape)}; expected at most {most * largest:.1g}"
        )
    return off
