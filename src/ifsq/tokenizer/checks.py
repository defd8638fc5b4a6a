"""What a tokenizer is given, refused in words before a convolution refuses it in its own, or takes it for another.

Shapes and types are looked at everywhere, also under a compiler, where they cost nothing once it has compiled. Values
are read on a CPU alone: an accelerator's queue would have to wait for them.
"""

from math import isnan

import torch
from torch import Tensor

from ifsq.quantizers.bottleneck import check_finite, reads_values

FARTHEST = (
    1.5  # a resized image may overshoot [-1, 1] a little; one of 0 to 255, or normalised for another network, is beyond
)


def check_images(images: Tensor, channels: int, factor: int) -> None:
    """Raise ValueError unless they are a batch of images in [-1, 1] whose sides ``factor`` divides."""
    if not isinstance(images, Tensor):
        raise ValueError(f"images of type {type(images).__name__}: expected a tensor (b, {channels}, H, W)")
    if not images.is_floating_point():
        raise ValueError(f"images of {images.dtype}: expected floats in [-1, 1]; bytes are x.float() / 127.5 - 1")
    shape = tuple(images.shape)
    if len(shape) != 4:
        raise ValueError(f"images of shape {shape}: expected a batch (b, {channels}, H, W)")
    if shape[1] != channels:
        raise ValueError(f"images of shape {shape}: expected {channels} channels on axis 1, (b, {channels}, H, W)")
    if shape[0] < 1 or shape[2] < 1 or shape[3] < 1:
        raise ValueError(f"images of shape {shape}: expected at least one image with pixels")
    if shape[2] % factor or shape[3] % factor:
        raise ValueError(f"images of {shape[2]} x {shape[3]} pixels: expected multiples of {factor}")
    if reads_values(images):
        low, high = (float(end) for end in images.detach().aminmax())
        if isnan(low):
            raise ValueError("images with NaN: expected values in [-1, 1]")
        if low < -FARTHEST or high > FARTHEST:
            raise ValueError(f"images from {low:.4g} to {high:.4g}: expected values in [-1, 1]")


def check_codes(codes: Tensor, dim: int) -> None:
    """Raise ValueError unless they are a batch of finite codes (b, dim, h, w)."""
    if not codes.is_floating_point():
        raise ValueError(f"codes of {codes.dtype}: expected floats (b, {dim}, h, w); `decode_indices` takes indices")
    shape = tuple(codes.shape)
    if len(shape) != 4 or shape[1] != dim:
        raise ValueError(f"codes of shape {shape}: expected (b, {dim}, h, w)")
    if shape[0] < 1 or shape[2] < 1 or shape[3] < 1:
        raise ValueError(f"codes of shape {shape}: expected at least one position")
    if reads_values(codes):
        check_finite(codes, "codes")


def check_indices(indices: Tensor, counts: range) -> None:
    """Raise ValueError unless they are a batch of indices (b, h, w, n), n in ``counts``; (b, h, w) for one alone."""
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"indices of {indices.dtype}: expected integers; `decode` takes codes")
    shape = tuple(indices.shape)
    alone = counts == range(1, 2)
    if not (len(shape) == 4 and shape[3] in counts) and not (len(shape) == 3 and alone):
        most = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
        raise ValueError(f"indices of shape {shape}: expected {'(b, h, w)' if alone else f'(b, h, w, {most})'}")
    if shape[0] < 1 or shape[1] < 1 or shape[2] < 1:
        raise ValueError(f"indices of shape {shape}: expected at least one position")
