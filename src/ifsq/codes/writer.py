"""Writing a cache: shards in a hidden folder beside its place, each whole or not at all, then a manifest and the name.

A writer that was killed goes on: what the hidden folder says of itself decides whether its shards are of these codes.
Called by ``pipeline``, by every process with its own shards, and by ``interop``.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ifsq.codes.cache import FLIPPED, FORMATS, MANIFEST, CodeCache
from ifsq.codes.spec import CodeSpec, LatentSpec
from ifsq.config import InputError, differences, read_json

SHARD = 8192  # images a shard
ABOUT = "about.json"
CHECKSUM = ".sha256"


@dataclass(frozen=True)
class Part:
    """Codes of some images in order: digits or latents, labels (n,), and the codes of the mirrored images.

    skipped  a line about each image that is missing among them
    """

    codes: Tensor
    labels: Tensor
    flipped: Tensor | None = None
    skipped: tuple[str, ...] = ()


# The part of the images start..stop-1 of a split; fewer, where some cannot be read and are passed over.
EncodeRange = Callable[[int, int], Part]


def partial_of(out: Path) -> Path:
    """The hidden folder in which the cache ``out`` is written."""
    return out.absolute().with_name(f".partial_{out.absolute().name}")


def prepare(partial: Path, about: dict[str, Any]) -> bool:
    """Make the hidden folder, or keep it where it holds shards of the very same codes; whether it was kept."""
    told = partial / ABOUT
    if told.is_file() and not differences(read_json(told), about):
        for leftover in partial.glob(".writing_*"):
            leftover.unlink()
        return True
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write(told, json.dumps(about))
    return False


def write_shards(
    folder: Path, split: str, count: int, encode: EncodeRange, mine: Iterable[int], layout: CodeSpec | LatentSpec
) -> None:
    """Write this process's shards of a split of ``count`` images into ``folder``; those that are whole stay."""
    for number in mine:
        target = folder / shard_name(split, number)
        if not _is_whole(target):
            start = number * SHARD
            save_part(target, encode(start, min(count, start + SHARD)), layout)


def save_part(target: Path, part: Part, layout: CodeSpec | LatentSpec) -> None:
    """One shard and, first, its SHA-256. Raises InputError for latents beyond float16."""
    name = "latents" if isinstance(layout, LatentSpec) else "digits"
    table = {name: _stored(part.codes, layout), "labels": part.labels.to(torch.int64).cpu()}
    if part.flipped is not None:
        table[name + FLIPPED] = _stored(part.flipped, layout)
    writing = target.with_name(f".writing_{target.name}")
    save_file(table, writing, {"skipped": json.dumps(part.skipped)})
    writing.chmod(0o644)  # safetensors writes for the owner alone
    with writing.open("rb") as file:
        os.fsync(file.fileno())
    # What is written now is what the manifest will vouch for, however long the other shards take.
    _write(target.with_suffix(CHECKSUM), _sha256(writing))
    writing.rename(target)


def drop_unfinished(partial: Path) -> None:
    """Remove the hidden folder unless a shard is done, from which the same command can go on."""
    if not any(partial.glob("*.safetensors")):
        shutil.rmtree(partial, ignore_errors=True)


def shards_of(count: int) -> int:
    """Shards that hold ``count`` images."""
    return -(-count // SHARD)


def finish(
    partial: Path,
    target: Path,
    layout: CodeSpec | LatentSpec,
    classes: tuple[str, ...],
    counts: dict[str, int],
    about: dict[str, Any],
) -> CodeCache:
    """Write the manifest over the shards in ``partial`` and move the whole to ``target``, which must be free."""
    splits = {
        split: [_entry(partial / shard_name(split, number)) for number in range(shards_of(count))]
        for split, count in counts.items()
    }
    for split, entries in splits.items():
        if not sum(entry["count"] for entry in entries):
            raise InputError(f"{target}: none of the {counts[split]} images of {split!r} can be read")
    latents = isinstance(layout, LatentSpec)
    manifest = {
        "kind": "codes",
        "format": FORMATS[-1],
        "content": "latents" if latents else "digits",
        "spec": layout.to_dict(),
        "classes": list(classes),
        "about": about,
        "splits": splits,
        **({"statistics": _statistics([partial / entry["file"] for entry in splits["train"]])} if latents else {}),
    }
    if target.is_dir():
        target.rmdir()  # an empty folder is free
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(partial / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    shutil.move(str(partial), target)
    for note in (target / ABOUT, *target.glob(f"*{CHECKSUM}")):  # only now: until here it could have been killed
        note.unlink(missing_ok=True)
    return CodeCache.open(target)


def shard_name(split: str, number: int) -> str:
    """File of a shard."""
    return f"{split}_{number:05d}.safetensors"


def _stored(codes: Tensor, layout: CodeSpec | LatentSpec) -> Tensor:
    if isinstance(layout, CodeSpec):
        return codes.to(layout.digit_dtype).contiguous().cpu()
    half = codes.to(torch.float16).contiguous().cpu()
    if not bool(half.isfinite().all()):
        raise InputError(f"latents up to {float(codes.abs().max()):.3g}: expected values that float16 holds")
    return half


def _is_whole(target: Path) -> bool:
    recorded = target.with_suffix(CHECKSUM)
    return target.exists() and recorded.exists() and recorded.read_text() == _sha256(target)


def _entry(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as shard:
        count = shard.get_slice("labels").get_shape()[0]
        skipped = json.loads(shard.metadata()["skipped"])
    entry = {"file": path.name, "count": count, "sha256": path.with_suffix(CHECKSUM).read_text()}
    return entry | ({"skipped": skipped} if skipped else {})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, text: str) -> None:
    writing = path.with_name(f".writing_{path.name}")
    writing.write_text(text)
    writing.replace(path)


def _statistics(files: list[Path]) -> dict[str, list[float]]:
    """Mean and standard deviation (divided by n) of every channel, in float64, over what is stored and its mirror."""
    total: Tensor = torch.zeros(())
    for step in ("mean", "spread"):
        sums, n = torch.zeros((), dtype=torch.float64), 0
        for file in files:
            for name, table in load_file(file).items():
                if name.startswith("latents"):
                    rows = table.double().movedim(1, -1).flatten(0, -2)
                    sums = sums + (rows if step == "mean" else (rows - total).square()).sum(dim=0)
                    n += len(rows)
        if step == "mean":
            total = sums / max(1, n)
    return {"mean": total.tolist(), "std": (sums / max(1, n)).sqrt().tolist()}
