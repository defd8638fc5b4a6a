"""Orders in which the tokens of an image are predicted: raster, or random ones annealed to it (RAR, arXiv 2411.00776).

An order is int64 (t,): the grid position, in row-major numbers, of the token that comes first, second, and so on. An
image either has a random order, each as likely, or raster; the share of images that have one falls in the course of
the training from 1 to 0. Every draw comes from the generator that is passed.
"""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

ORDERS = ("raster", "random")


def check_orders(order: str, start: float, end: float) -> None:
    """Raise ValueError unless ``order`` is one of `ORDERS` and start and end are shares that follow each other."""
    if order not in ORDERS:
        raise ValueError(f"order={order!r}: expected one of {', '.join(ORDERS)}")
    if not 0 <= start <= end <= 1:
        raise ValueError(f"order_start={start}, order_end={end}: expected 0 <= start <= end <= 1")


def random_share(progress: float, start: float, end: float) -> float:
    """Share of images in a random order, with ``progress`` of the training behind: 1 to ``start``, 0 from ``end`` on.

    All three are shares of the training, 0 to 1; in between it falls linearly.
    """
    if progress >= end:
        return 0.0
    return 1.0 if progress <= start else (end - progress) / (end - start)


def draw_orders(images: int, tokens: int, share: float, rng: torch.Generator) -> Int[Tensor, "b t"] | None:
    """An order for each image, on the device of ``rng``; None where all are raster for certain: nothing is drawn.

    share  of the images that have a random order: each has one with this probability
    """
    if share == 0:
        return None
    random = torch.rand(images, generator=rng, device=rng.device) < share
    keys = torch.rand(images, tokens, generator=rng, device=rng.device, dtype=torch.float64)  # no two are equal
    raster = torch.arange(tokens, device=rng.device).expand(images, tokens)
    return torch.where(random[:, None], keys.argsort(dim=1), raster)


def in_order(values: Shaped[Tensor, "b t c"], order: Int[Tensor, "b t"]) -> Shaped[Tensor, "b t c"]:
    """Values of the grid positions, row-major -> the same in the order of each image."""
    return values.gather(1, order[..., None].expand_as(values))


def to_raster(values: Shaped[Tensor, "b t c"], order: Int[Tensor, "b t"]) -> Shaped[Tensor, "b t c"]:
    """Inverse of `in_order`."""
    return values.gather(1, order.argsort(dim=1)[..., None].expand_as(values))
