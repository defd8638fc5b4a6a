"""Pairs of rows of large sets, a tile of them at a time, dealt to the processes.

A tile is made of `BLOCK` rows of each set, in float64: memory for pairs does not grow with the sets.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from ifsq.training.distributed import World

BLOCK = 2048
ALONE = World(0, 1, torch.device("cpu"))
Tile = tuple[slice, slice]


def tiles(n: int, m: int, world: World) -> Iterator[Tile]:
    """This process's share of the tiles of n rows against m; those of all processes cover each pair once."""
    every = [(rows, columns) for rows in _blocks(n) for columns in _blocks(m)]
    yield from every[world.rank :: world.size]


def own_tiles(n: int, world: World) -> Iterator[Tile]:
    """The same of a set against itself: of a tile and its mirror image, the one above the diagonal."""
    blocks = _blocks(n)
    every = [(rows, columns) for number, rows in enumerate(blocks) for columns in blocks[number:]]
    yield from every[world.rank :: world.size]


def check_rows(features: Float[Tensor, "n f"], width: int, name: str, least: int) -> None:
    """Raise ValueError unless there are ``least`` rows of ``width`` finite values."""
    if features.ndim != 2 or features.shape[1] != width or len(features) < least:
        raise ValueError(f"{name} {tuple(features.shape)}: expected at least {least} rows of {width}")
    if not all(bool(features[rows].isfinite().all()) for rows in _blocks(len(features))):
        raise ValueError(f"{name}: expected finite values, found nan or infinity")


def squared_distances(a: Float[Tensor, "a f"], b: Float[Tensor, "b f"]) -> Float[Tensor, "a b"]:
    """Of every row to every other, in float64."""
    a, b = a.double(), b.double()
    squares = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
    return squares.addmm_(a, b.T, alpha=-2).clamp_(min=0)


def _blocks(n: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]
