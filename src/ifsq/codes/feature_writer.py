"""Writing a cache of features: like one of codes, shards in a hidden folder inside its place, then the manifest.

Each shard is whole or not there. A writer that was killed goes on with the shards that are done, where ``about.json``
in the hidden folder says that they are of the same features; what no shard is done of leaves nothing.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ifsq.codes.features import (
    FEATURES,
    MANIFEST,
    VERSION,
    FeatureCache,
    FeaturesAbout,
    feature_shard,
    feature_starts,
    refuse_others,
)
from ifsq.codes.shard import FLIPPED
from ifsq.codes.writer import ABOUT, CHECKSUM, is_as_recorded
from ifsq.config import InputError, read_json, to_dict
from ifsq.store.files import PARTIAL, is_free, make_folder, sha256, write_tensors, write_text, writing
from ifsq.store.folders import move_content

SHARD_BYTES = 1 << 28  # a shard is in memory while it is written


def shard_size(about: FeaturesAbout, crops: int) -> int:
    """Images a shard: those of 256 MiB, at least one."""
    tokens, width = about.row
    return max(1, SHARD_BYTES // (2 * tokens * width * crops * (2 if about.flips else 1)))


def existing_features(out: Path, about: FeaturesAbout) -> FeatureCache | None:
    """The cache that already lies at ``out`` and is of the same; None where the place is free.

    Raises InputError where something else lies there.
    """
    if out.is_file():
        raise InputError(f"{out}: is a file; expected a folder for features")
    if is_free(out) or (partial_features(out) / MANIFEST).is_file():
        return None
    if not (out / MANIFEST).is_file():
        raise InputError(f"{out}: is not empty and holds no cache of features; choose another folder")
    found = FeatureCache.open(out)
    refuse_others(to_dict(found.about), about, f"{out}: holds other features")
    return found


def partial_features(out: Path) -> Path:
    """The hidden folder in which the cache ``out`` is written."""
    return Path(os.path.realpath(out)) / f"{PARTIAL}features"


def prepare_features(partial: Path, about: FeaturesAbout) -> bool:
    """Make the hidden folder, or keep it where it holds shards of the same features; whether it was kept.

    Raises InputError where it holds shards of others: they cost somebody's time.
    """
    if any(partial.glob("*.safetensors")) or (partial / MANIFEST).is_file():
        done = (partial / MANIFEST).is_file()
        told = to_dict(FeatureCache.open(partial).about) if done else read_json(partial / ABOUT)
        refuse_others(told, about, f"{partial.parent}: features with other options were begun there")
        for leftover in partial.glob(f"{PARTIAL}*"):
            leftover.unlink()
        return True
    with writing(partial.parent):
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        write_text(partial / ABOUT, json.dumps(to_dict(about)))
    return False


def shard_is_whole(path: Path, count: int, about: FeaturesAbout) -> bool:
    """Whether a shard of so many pictures is there as it was written."""
    if not is_as_recorded(path):
        return False
    try:
        feature_starts(path, count, about)
    except InputError:  # then it is written again
        return False
    return True


def save_features(path: Path, straight: Float[Tensor, "n t f"], flipped: Float[Tensor, "n t f"] | None) -> None:
    """One shard and its SHA-256. Raises InputError for features that are not finite."""
    table = {FEATURES: straight} | ({} if flipped is None else {FEATURES + FLIPPED: flipped})
    for name, value in table.items():
        if not bool(value.isfinite().all()):
            raise InputError(f"{path.name}: {name}: the teacher gives numbers that are not finite")
    write_tensors(path, {name: value.to(torch.bfloat16).contiguous().cpu() for name, value in table.items()})
    write_text(path.with_suffix(CHECKSUM), sha256(path))


def drop_unfinished_features(partial: Path) -> None:
    """Remove the hidden folder unless a shard is done, from which the same command can go on."""
    if not (partial / MANIFEST).is_file() and not any(partial.glob("*.safetensors")):
        shutil.rmtree(partial, ignore_errors=True)


def finish_features(partial: Path, out: Path, about: FeaturesAbout, counts: list[int]) -> FeatureCache:
    """Write the manifest over the shards in ``partial``, of so many pictures each, and move all into ``out``."""
    if not (partial / MANIFEST).is_file():
        shards = []
        for number, count in enumerate(counts):
            recorded = partial / feature_shard(number)
            shards.append({"file": recorded.name, "count": count, "sha256": recorded.with_suffix(CHECKSUM).read_text()})
        manifest = {"kind": FEATURES, "format": VERSION, "about": to_dict(about), "shards": shards}
        write_text(partial / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    for note in (partial / ABOUT, *partial.glob(f"*{CHECKSUM}")):  # a writer that was killed may have left some
        note.unlink(missing_ok=True)
    make_folder(out)
    move_content(partial, out, MANIFEST)
    partial.rmdir()
    return FeatureCache.open(out)
