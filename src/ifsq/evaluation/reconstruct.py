"""Somebody's images beside their reconstructions."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ifsq.config import InputError
from ifsq.data import image_grid, read_image, to_channels, to_float, to_uint8, write_png
from ifsq.data.containers.folder import images_below
from ifsq.metrics import psnr
from ifsq.store.files import make_folder
from ifsq.tokenizer.model import Tokenizer
from ifsq.tokenizer.tiling import Tiling


def check_tile(tile: int, factor: int) -> None:
    """Raise InputError unless a tokenizer of this factor can take tiles of so many pixels a side."""
    try:
        Tiling.of_pixels(tile, None, factor)
    except ValueError as error:
        raise InputError(str(error)) from error


def distinct_targets(paths: Sequence[Path], out: Path, smallest: int) -> dict[Path, Path]:
    """Where the picture of every image goes; folders are searched, and their layout is kept.

    smallest  pixels a side that an image must have

    Raises InputError where two would meet, where anything is there already, and for an image that is too small.
    """
    targets: dict[Path, Path] = {}
    taken: set[Path] = set()
    for path in paths:
        inside = [path / name for name in images_below(path)] if path.is_dir() else [path]
        for image in inside:
            target = (out / image.relative_to(path if path.is_dir() else path.parent)).with_suffix(".png")
            if target in taken:
                raise InputError(f"{target}: two images would be written there; give them different names")
            if target.exists():
                raise InputError(f"{target}: exists already; choose another folder")
            taken.add(target)
            targets[image] = target
    for path in targets:
        height, width = read_image(path).shape[:2]
        if min(height, width) < smallest:
            raise InputError(f"{path}: {width} x {height} pixels; expected {smallest} a side")
    return targets


def reconstruct_image(tokenizer: Tokenizer, path: Path, target: Path, tile: int | None, alone: bool) -> str:
    """Write an image beside its reconstruction, or the reconstruction alone; returns a line about it."""
    picture = to_channels(read_image(path), tokenizer.channels)
    height, width = (side - side % tokenizer.factor for side in picture.shape[:2])
    original = to_float(picture[None, :height, :width])
    reconstruction = tokenizer.reconstruct(original.to(next(tokenizer.parameters()).device), tile).cpu()
    make_folder(target.parent)
    shown = to_uint8(reconstruction)[0] if alone else image_grid(to_uint8(torch.cat([original, reconstruction])), 2)
    write_png(shown, target)
    quality = float(psnr(original, reconstruction).mean())
    places = "" if alone else ", original left, reconstruction right"
    return f"{target}: {width} x {height} pixels, {quality:.2f} dB{places}"
