"""Latents that the official DiT extracted beforehand: read as its data set gives them, and turned into a code cache.

A folder of ``latents_rankRR_shardSSS.safetensors`` (``latents``, ``latents_flip`` (n, d, h, w), ``labels``) and
``latents_stats.pt`` (``mean``, ``std`` (1, d, 1, 1)). Called by ``cli``.
"""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ifsq.codes import writer
from ifsq.codes.cache import MANIFEST, CodeCache
from ifsq.codes.spec import LatentSpec
from ifsq.config import InputError, digest
from ifsq.store.folders import whole_folder
from ifsq.training.folder import check_free

PATTERN = "latents_rank*_shard*.safetensors"
STATISTICS = "latents_stats.pt"


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
    path = folder / STATISTICS
    try:
        table = torch.load(path, map_location="cpu", weights_only=True)
        return table["mean"], table["std"]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected the latents' mean and std") from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: cannot be read as mean and std: {str(error).splitlines()[0]}") from error


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
    for damaged shards and values beyond float16.
    """
    check_free(out)
    with whole_folder(out, MANIFEST) as partial:
        _fill(folder, partial, out)
    return CodeCache.open(out)


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
    try:
        table = load_file(file)
        latents, flipped, labels = (table[name] for name in ("latents", "latents_flip", "labels"))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from error
    except KeyError as error:
        raise InputError(f"{file}: holds no {error.args[0]}; expected latents, latents_flip and labels") from error
    if labels.is_floating_point() or (labels.numel() and int(labels.min()) < 0):
        raise InputError(f"{file}: labels of {labels.dtype}, {labels.min():g} at least; expected integers from 0 on")
    if latents.ndim != 4 or latents.shape != flipped.shape or labels.shape != latents.shape[:1] or not len(labels):
        shapes = [tuple(value.shape) for value in (latents, flipped, labels)]
        raise InputError(f"{file}: latents, latents_flip, labels of shapes {shapes}; expected (n, d, h, w) twice, (n,)")
    return LatentShard(latents, flipped, labels)


def _fingerprint(folder: Path) -> str:
    return digest([(file.name, file.stat().st_size) for file in sorted(folder.glob(PATTERN))])
