"""Latents that the official DiT extracted beforehand: read as its data set gives them, and turned into a code cache.

A folder of ``latents_rankRR_shardSSS.safetensors`` (``latents``, ``latents_flip`` (n, d, h, w), ``labels``) and
``latents_stats.pt`` (``mean``, ``std`` (1, d, 1, 1)).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ifsq.codes import writer
from ifsq.codes.cache import MANIFEST, CodeCache, CodeSet
from ifsq.codes.spec import LatentSpec
from ifsq.codes.stated import check_stated
from ifsq.config import InputError, digest
from ifsq.data.labels import MOST_CLASSES
from ifsq.store.files import check_free
from ifsq.store.folders import whole_folder
from ifsq.store.pickles import read_pickle
from ifsq.store.weights import read_tensors

PATTERN = "latents_rank*_shard*.safetensors"
STATISTICS = "latents_stats.pt"
OTHERS = 0.1  # standard deviations that its statistics, of ten thousand latents, may be off
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class LatentShard:
    """Latents, those of the mirrored images, and labels of some images."""

    latents: Float[Tensor, "n d h w"]
    flipped: Float[Tensor, "n d h w"]
    labels: Int[Tensor, "n"]


def read_shards(folder: Path) -> Iterator[LatentShard]:
    """The shards in the order of their names. Raises InputError naming what is missing or damaged."""
    files = sorted(folder.glob(PATTERN))
    if not files:
        raise InputError(f"{folder}: holds no {PATTERN}; expected latents that the official DiT extracted")
    for file in files:
        yield _read_shard(file)


def read_statistics(folder: Path) -> tuple[Float[Tensor, "1 d 1 1"], Float[Tensor, "1 d 1 1"]]:
    """Mean and standard deviation of every channel. Raises InputError when they are missing or damaged."""
    return statistics_in(folder / STATISTICS)


def statistics_in(path: Path) -> tuple[Float[Tensor, "1 d 1 1"], Float[Tensor, "1 d 1 1"]]:
    """`read_statistics` of a file."""
    table = read_pickle(path)
    return _statistic(table, "mean", path), _statistic(table, "std", path)


def features(
    folder: Path, flipped: bool | Tensor, multiplier: float = 1.0, normalize: bool = True
) -> Float[Tensor, "n d h w"]:
    """What the official data set returns: ``(latent - mean) / std * multiplier``, of the mirrored image where asked.

    flipped     for all images, or for each, bool (n,)
    normalize   the official ``latent_norm``; False leaves mean and std out
    """
    shards = list(read_shards(folder))
    plain, mirrored = (torch.cat([getattr(shard, name) for shard in shards]) for name in ("latents", "flipped"))
    chosen = torch.where(torch.as_tensor(flipped).expand(len(plain)).view(-1, 1, 1, 1), mirrored, plain)
    if normalize:
        mean, std = read_statistics(folder)
        chosen = (chosen - mean) / std
    return chosen * multiplier


def import_latents(folder: Path, out: Path) -> CodeCache:
    """A cache of float16 latents with flips, its statistics computed over all of them, classes named by their number.

    The split ``train`` alone; the official mean and std, of ten thousand latents, stand in ``about``. Raises InputError
    for damaged shards, values beyond float16, and a mean and std that are not those of the latents.
    """
    check_free(out)
    with whole_folder(out, MANIFEST) as partial:
        _fill(folder, partial, out)
        _check_statistics(folder, CodeCache.open(partial).read("train"))
    return CodeCache.open(out)


def _check_statistics(folder: Path, codes: CodeSet) -> None:
    """Raise InputError unless the official ones are those of the latents, which were taken of them unmirrored."""
    mean, std = (value.flatten().tolist() for value in read_statistics(folder))
    plain = lambda rows: codes.batch(rows).codes()[:, None]  # noqa: E731
    check_stated(plain, len(codes), mean, std, str(folder / STATISTICS), OTHERS)


def _fill(folder: Path, partial: Path, out: Path) -> None:
    mean, std = (value.flatten().tolist() for value in read_statistics(folder))
    about = {
        "tokenizer": "",
        "data": {},
        "fingerprints": {"train": _fingerprint(folder)},
        "flips": True,
        "official_statistics": {"mean": mean, "std": std},
    }
    layout: LatentSpec | None = None
    shards, classes = 0, 0
    for shard in read_shards(folder):
        d, h, w = shard.latents.shape[1:]
        if layout is None:
            if len(mean) != d or len(std) != d:
                raise InputError(f"{folder / STATISTICS}: {len(mean)} and {len(std)} channels; expected {d} as latents")
            layout = LatentSpec(d, (h, w))
        if layout != LatentSpec(d, (h, w)):
            raise InputError(f"{folder}: latents of {(d, h, w)} beside {(layout.dim, *layout.grid)}; expected alike")
        part = writer.Part(shard.latents, shard.labels, shard.flipped)
        writer.save_part(partial / writer.shard_name("train", shards), part, layout)
        shards, classes = shards + 1, max(classes, int(shard.labels.max()) + 1)
    assert layout is not None  # `read_shards` gives one shard at least
    names = tuple(str(k) for k in range(classes))
    files = [writer.shard_name("train", number) for number in range(shards)]
    writer.write_manifest(partial, out, layout, names, {"train": files}, about)


def _read_shard(file: Path) -> LatentShard:
    table = read_tensors(file)
    for name in ("latents", "latents_flip", "labels"):
        if name not in table:
            raise InputError(f"{file}: holds no {name}; expected latents, latents_flip and labels")
    latents, flipped, labels = table["latents"], table["latents_flip"], table["labels"]
    if latents.ndim != 4 or latents.shape != flipped.shape or labels.shape != latents.shape[:1] or not latents.numel():
        shapes = [tuple(value.shape) for value in (latents, flipped, labels)]
        raise InputError(f"{file}: latents, latents_flip, labels of shapes {shapes}; expected (n, d, h, w) twice, (n,)")
    if not latents.is_floating_point() or flipped.dtype != latents.dtype:
        raise InputError(f"{file}: latents of {latents.dtype} and {flipped.dtype}; expected floats of one type")
    least, most = map(int, labels.aminmax()) if labels.dtype in INTEGERS else (-1, -1)
    if least < 0 or most >= MOST_CLASSES:
        told = f"{least} to {most}" if labels.dtype in INTEGERS else labels.dtype
        raise InputError(f"{file}: labels of {told}; expected integers from 0 to {MOST_CLASSES - 1}")
    return LatentShard(latents, flipped, labels)


def _statistic(table: Any, name: str, path: Path) -> Float[Tensor, "1 d 1 1"]:
    value = table.get(name) if isinstance(table, dict) else None
    told = f"{value.dtype} of {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
        raise InputError(f"{path}: {name} is {told}; expected floats (1, d, 1, 1)")
    stored = value.numel() * value.element_size() <= path.stat().st_size  # no view that repeats one number
    if value.ndim != 4 or value.shape != (1, value.shape[1], 1, 1) or not stored:
        raise InputError(f"{path}: {name} is {told}; expected floats (1, d, 1, 1)")
    if not value.isfinite().all() or (name == "std" and not (value > 0).all()):
        raise InputError(f"{path}: {name} has values that are not finite or, of std, not above 0")
    return value


def _fingerprint(folder: Path) -> str:
    return digest([(file.name, file.stat().st_size) for file in sorted(folder.glob(PATTERN))])
