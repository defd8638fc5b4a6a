"""Writing a cache: shards in a hidden folder inside its place, each whole or not at all, then a manifest and the names.

Inside, because the place may be a volume, or a link to a folder elsewhere. The manifest gets its name last: until then
there is no cache. A writer that was killed goes on: shards are reused only if ``about.json`` in the hidden folder
matches.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ifsq.codes.cache import MANIFEST, CodeCache
from ifsq.codes.manifest import read_manifest
from ifsq.codes.shard import FLIPPED, LABELS, SKIPPED, content_of, names_of, read_header
from ifsq.codes.spec import CodeSpec, LatentSpec
from ifsq.config import InputError, build, differences, read_json, to_dict
from ifsq.data.crops import Crops
from ifsq.data.images import DataConfig
from ifsq.store.files import PARTIAL, is_free, make_folder, sha256, write_tensors, write_text, writing
from ifsq.store.folders import move_content

SHARD = 8192  # images a shard
ABOUT = "about.json"
CHECKSUM = ".sha256"
_HEX = 64  # characters of a checksum


@dataclass(frozen=True)
class Part:
    """Codes of some images in order: digits or latents, labels (n,), and the codes of the mirrored images.

    With k crops of each image, k rows of codes a label.

    skipped  a line about each image that is missing among them
    names    what each image is called; None where that is not known
    """

    codes: Tensor
    labels: Tensor
    flipped: Tensor | None = None
    skipped: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None


# The part of the images start..stop-1 of a split; fewer, where some cannot be read and are passed over.
EncodeRange = Callable[[int, int], Part]


def existing_cache(out: Path, about: dict[str, Any]) -> CodeCache | None:
    """The cache that already lies at ``out`` and says the same; None where the place is free.

    Raises InputError where something else lies there.
    """
    if out.is_file():
        raise InputError(f"{out}: is a file; expected a folder for the code cache")
    if is_free(out) or is_complete(partial_of(out)):
        return None
    if not (out / MANIFEST).is_file():
        raise InputError(f"{out}: is not empty and holds no code cache; choose another folder")
    cache = CodeCache.open(out)
    # Options that came later have their defaults in an older cache.
    known = cache.about | {"data": to_dict(build(DataConfig, cache.about.get("data", {}), str(out)))}
    different = differences(known, about)
    if different:
        raise InputError(f"{out}: holds another code cache ({different[0]}); choose another folder or remove it")
    return cache


def partial_of(out: Path) -> Path:
    """The hidden folder in which the cache ``out`` is written."""
    return Path(os.path.realpath(out)) / f"{PARTIAL}codes"


def is_complete(partial: Path) -> bool:
    """Whether all is written, and names alone are missing: a writer that was killed may have given some."""
    return (partial / MANIFEST).is_file()


def prepare(partial: Path, about: dict[str, Any]) -> bool:
    """Make the hidden folder, or keep it where it holds shards of the very same codes; whether it was kept.

    Raises InputError where it holds shards of other codes: they cost somebody's time.
    """
    if is_complete(partial) or any(partial.glob("*.safetensors")):
        _refuse_others(partial, about)
        for leftover in partial.glob(f"{PARTIAL}*"):
            leftover.unlink()
        return True
    with writing(partial.parent):
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        write_text(partial / ABOUT, json.dumps(about))
    return False


def write_shards(
    folder: Path,
    split: str,
    count: int,
    encode: EncodeRange,
    mine: Iterable[int],
    layout: CodeSpec | LatentSpec,
    *,
    flips: bool = False,
    named: bool = False,
    crops: int = 1,
) -> None:
    """Write this process's shards of a split of ``count`` images into ``folder``; those that are whole stay.

    flips  whether ``encode`` gives the codes of the mirrored images too
    crops  rows that it gives for each image
    named  whether it says what the images are called; a shard that an earlier version left without is written again
    """
    for number in mine:
        target = folder / shard_name(split, number)
        if not _is_whole(target, layout, flips, named, crops):
            start = number * SHARD
            save_part(target, encode(start, min(count, start + SHARD)), layout)


def save_part(target: Path, part: Part, layout: CodeSpec | LatentSpec) -> None:
    """One shard, the names of its images and the SHA-256 of both. Raises InputError for latents beyond float16."""
    name = content_of(layout)
    table = {name: _stored(part.codes, layout), LABELS: part.labels.to(torch.int64).contiguous().cpu()}
    if part.flipped is not None:
        table[name + FLIPPED] = _stored(part.flipped, layout)
    files = [target]
    if part.names is not None:
        files.insert(0, names_of(target))
        write_text(files[0], json.dumps(part.names, ensure_ascii=False))
    write_tensors(target, table, {SKIPPED: json.dumps(part.skipped)})
    for file in files:  # what is written now is what the manifest will vouch for, however long the other shards take
        write_text(file.with_suffix(CHECKSUM), sha256(file))


def drop_unfinished(partial: Path) -> None:
    """Remove the hidden folder unless a shard is done, from which the same command can go on."""
    if not is_complete(partial) and not any(partial.glob("*.safetensors")):
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
    """Write the manifest over the shards in ``partial`` and give all their names in ``target``.

    Raises InputError when a split is empty or a shard is not of this layout.
    """
    if not is_complete(partial):
        names = {split: [shard_name(split, n) for n in range(shards_of(count))] for split, count in counts.items()}
        write_manifest(partial, target, layout, classes, names, about)
    _drop_notes(partial)  # a writer that was killed may have left some beside its manifest
    make_folder(target)
    move_content(partial, target, MANIFEST)
    partial.rmdir()
    return CodeCache.open(target)


def write_manifest(
    folder: Path,
    target: Path,
    layout: CodeSpec | LatentSpec,
    classes: tuple[str, ...],
    names: dict[str, list[str]],
    about: dict[str, Any],
) -> None:
    """Write the manifest of the shards in ``folder``, by split, and remove the notes that it replaces.

    target  what to call the cache in a message

    Raises InputError when a split is empty or a shard is not of this layout.
    """
    flips = bool(about.get("flips"))
    several = build(Crops, about["crops"], "about.crops").count if "crops" in about else 1
    splits = {
        split: [_entry(folder / name, layout, flips, several if split == "train" else 1) for name in files]
        for split, files in names.items()
    }
    for split, entries in splits.items():
        if not sum(entry["count"] for entry in entries):
            raise InputError(f"{target}: none of the images of {split!r} can be read")
    latents = isinstance(layout, LatentSpec)
    counted = splits.get("train", [])
    manifest = {
        "kind": "codes",
        "format": 4 if "crops" in about else 3,  # whatever an earlier version can read it may
        "content": content_of(layout),
        "spec": layout.to_dict(),
        "classes": list(classes),
        "about": about,
        "splits": splits,
        **({"statistics": _statistics([folder / entry["file"] for entry in counted])} if latents and counted else {}),
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    _drop_notes(folder)  # only now: until here it could have been killed


def _drop_notes(folder: Path) -> None:
    for note in (folder / ABOUT, *folder.glob(f"*{CHECKSUM}")):
        note.unlink(missing_ok=True)


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


def _refuse_others(partial: Path, about: dict[str, Any]) -> None:
    """Raise InputError unless the shards in ``partial`` are those of an encoding that ``about`` describes."""
    advice = f"choose another folder, or remove {partial} to begin anew"
    for entry in partial.iterdir():
        if entry.is_symlink() or not entry.is_file():
            raise InputError(f"{entry}: is no regular file; {advice}")
    try:
        told = _told(partial)
    except InputError as error:
        raise InputError(f"{error}; {advice}") from error
    different = differences(told, about)
    if different:
        raise InputError(
            f"{partial.parent}: an encoding with other options was interrupted there ({different[0]}); "
            f"give the same options to go on, {advice}"
        )


def _told(partial: Path) -> dict[str, Any]:
    """What an interrupted encoding says it is of. Raises InputError when it is missing or damaged."""
    if is_complete(partial):
        path = partial / MANIFEST
        return read_manifest(read_json(path), str(path)).about
    path = partial / ABOUT
    told = read_json(path)
    if not isinstance(told, dict):
        raise InputError(f"{path}: expected a JSON object")
    return told


def _is_whole(target: Path, layout: CodeSpec | LatentSpec, flips: bool, named: bool, crops: int) -> bool:
    if not all(is_as_recorded(file) for file in ([target, names_of(target)] if named else [target])):
        return False
    try:
        read_header(target, layout, flips, crops)
    except InputError:  # then it is written again
        return False
    return True


def is_as_recorded(file: Path) -> bool:
    """Whether a file has the bytes whose SHA-256 was noted beside it."""
    recorded = file.with_suffix(CHECKSUM)
    if not file.is_file() or not recorded.is_file() or recorded.stat().st_size != _HEX:
        return False
    return recorded.read_bytes() == sha256(file).encode()


def _entry(path: Path, layout: CodeSpec | LatentSpec, flips: bool, crops: int) -> dict[str, Any]:
    header = read_header(path, layout, flips, crops)
    entry = {"file": path.name, "count": header.count, "sha256": path.with_suffix(CHECKSUM).read_text()}
    named = names_of(path).with_suffix(CHECKSUM)
    return {
        **entry,
        **({"skipped": list(header.skipped)} if header.skipped else {}),
        **({"names_sha256": named.read_text()} if named.is_file() else {}),
    }


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
