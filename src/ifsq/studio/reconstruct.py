"""An image that somebody dropped on the page, through the tokenizers: what each of their rates keeps of it."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8

from ifsq.codes import CodeSpec
from ifsq.config import InputError
from ifsq.data import read_image, to_channels, to_float, to_uint8
from ifsq.data.transforms import center_crop
from ifsq.evaluation.sheets import Pairs, magnified_difference
from ifsq.metrics import psnr
from ifsq.quantizers.usage import LevelUse
from ifsq.studio.runs import Rate
from ifsq.studio.tokens import token_picture

SIDES = (64, 128, 256, 512)
"""Pixels that the longer side of an image may have."""
MOST_PIXELS = 2**25
"""Of an image that is uploaded, before it is made smaller; 100 MB of bytes."""


@dataclass(frozen=True)
class Tokens:
    """The discrete codes of an image.

    picture  see `token_picture`
    use      of the levels, all positions and dimensions together
    used     different tokens, of ``count`` positions
    """

    picture: UInt8[np.ndarray, "h w 3"]
    use: LevelUse
    used: int
    count: int


@dataclass(frozen=True)
class Reconstruction:
    """What a rate keeps of an image.

    rate       that it is of
    image      8 bits, as large as what of the original makes whole positions
    psnr       in dB
    bits       a pixel, without any entropy coding; None where codes are continuous
    difference its size, drawn ``scale`` times larger
    tokens     None where codes are continuous
    """

    rate: Rate
    image: UInt8[np.ndarray, "H W c"]
    psnr: float
    bits: float | None
    difference: UInt8[np.ndarray, "H W c"]
    scale: int
    tokens: Tokens | None


def read_upload(name: str, content: bytes, side: int) -> UInt8[np.ndarray, "H W 3"]:
    """An uploaded file as RGB, the longer side at most ``side`` pixels. Raises BrokenImageError, see `read_image`."""
    picture = read_image(name, content, MOST_PIXELS)
    height, width = picture.shape[:2]
    if max(height, width) <= side:
        return picture
    longer = max(height, width)
    return center_crop(picture, (max(1, height * side // longer), max(1, width * side // longer)))


@torch.no_grad()
def reconstruct_at(rate: Rate, picture: UInt8[np.ndarray, "H W 3"]) -> Reconstruction:
    """Whole positions of the image through a tokenizer at one rate.

    Raises InputError for an image smaller than a position, and where there is not enough memory.
    """
    tokenizer = rate.at_levels()
    height, width = (side - side % tokenizer.factor for side in picture.shape[:2])
    if not height or not width:
        size = f"{picture.shape[1]} x {picture.shape[0]} pixels"
        raise InputError(f"{size} are too few for {rate.name}; expected at least {tokenizer.factor} a side")
    shown = to_channels(np.ascontiguousarray(picture[:height, :width]), tokenizer.channels)
    original = to_float(shown[None])
    try:
        encoded = tokenizer.encode(original.to(next(tokenizer.parameters()).device))
        again = tokenizer.decode(encoded.codes).clamp(-1, 1).cpu()
    except torch.OutOfMemoryError as error:
        raise InputError(f"{width} x {height} pixels need more memory than there is; choose a smaller side") from error
    image, tokens, bits = to_uint8(again), None, None
    if encoded.digits is not None:
        layout = tokenizer.spec(height, width)
        tokens = _tokens(layout, tokenizer.digits(encoded, layout)[0].cpu())
        bits = layout.tokens * sum(np.log2(layout.levels).tolist()) / (height * width)
    difference, scale = magnified_difference(Pairs(shown[None], image))
    return Reconstruction(rate, image[0], float(psnr(original, again)), bits, difference[0], scale, tokens)


def _tokens(layout: CodeSpec, digits: torch.Tensor) -> Tokens:
    counts = [torch.bincount(digits[..., k].flatten(), minlength=levels) for k, levels in enumerate(layout.levels)]
    used = len(digits.flatten(0, 1).unique(dim=0))
    return Tokens(token_picture(layout, digits), LevelUse.of(counts), used, layout.tokens)
