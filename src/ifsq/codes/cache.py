"""The cache of digits: what a tokenizer writes once and every generator reads.

A folder of safetensors shards (``digits`` uint8 or uint16 (n, h, w, d), ``labels`` int64 (n,)) and ``manifest.json``,
which names the layout, the classes, the source, the tokenizer's hash and every shard's SHA-256. Both generators open
the same bytes, so "the same tokens" is one hash. Called by ``pipeline`` (writing) and ``generators.train`` (reading).
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, Integer
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from ifsq.codes.spec import CodeSpec
from ifsq.config import InputError, digest

MANIFEST = "manifest.json"
FORMAT = 1
SHARD = 8192  # images a shard

# Digits (n, h, w, d) and labels (n,) of the images start..stop-1 of a split.
EncodeRange = Callable[[int, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class CodeSet:
    """One split in memory: digits as stored (n, h, w, d) and int64 labels (n,)."""

    digits: Integer[Tensor, "n h w d"]
    labels: Int[Tensor, "n"]

    def __len__(self) -> int:
        return len(self.labels)


class CodeCache:
    """An opened cache.

    spec       layout of the digits
    classes    class names; a label is a position in them
    about      source, size, crop, flip, fingerprint and tokenizer hash, as written
    digest     SHA-256 of the manifest: two generators with the same digest saw the same tokens
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.spec = CodeSpec.from_dict(manifest["spec"])
        self.classes = tuple(manifest["classes"])
        self.about: dict[str, Any] = manifest["about"]
        if "tokenizer" not in self.about:
            raise KeyError("about.tokenizer")
        self.digest = digest(manifest)
        self._splits: dict[str, list[dict[str, Any]]] = manifest["splits"]

    @classmethod
    def open(cls, folder: str | Path) -> "CodeCache":
        """Read the manifest. Raises InputError when the folder is no cache of this format."""
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            raise InputError(f"{folder}: holds no code cache ({MANIFEST} is missing); write one with ifsq encode")
        try:
            manifest = json.loads(path.read_text())
            if manifest["format"] != FORMAT:
                raise InputError(f"{path}: format {manifest['format']}; expected {FORMAT}")
            return cls(folder, manifest)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: is not a manifest of a code cache ({error})") from error

    def read(self, split: str) -> CodeSet:
        """All digits and labels of a split, every shard checked against its hash.

        Raises InputError naming the split that is absent, or the shard that is missing or damaged.
        """
        if split not in self._splits:
            raise InputError(f"{self.folder}: has no split {split!r}; expected one of {', '.join(self._splits)}")
        shards = [self._read_shard(entry) for entry in self._splits[split]]
        return CodeSet(torch.cat([s["digits"] for s in shards]), torch.cat([s["labels"] for s in shards]))

    def count(self, split: str) -> int:
        """Images of a split."""
        return sum(entry["count"] for entry in self._splits.get(split, []))

    def _read_shard(self, entry: dict[str, Any]) -> dict[str, Tensor]:
        path = self.folder / entry["file"]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise InputError(f"{path}: is damaged, its SHA-256 is not the one in {MANIFEST}; encode again")
        try:
            shard = load(content)
        except SafetensorError as error:
            raise InputError(f"{path}: cannot be read: {error}") from error
        self._check_shard(path, shard)
        return shard

    def _check_shard(self, path: Path, shard: dict[str, Tensor]) -> None:
        expected = (*self.spec.grid, self.spec.dim)
        if tuple(shard["digits"].shape[1:]) != expected:
            raise InputError(f"{path}: digits of shape {tuple(shard['digits'].shape)}; expected (n, {expected})")
        over = shard["digits"].to(torch.int32).amax(dim=(0, 1, 2)) >= torch.tensor(self.spec.levels)
        if bool(over.any()):
            raise InputError(f"{path}: a digit of dimension {int(over.nonzero()[0])} is not below its level count")


def write_shards(
    folder: Path, split: str, count: int, encode: EncodeRange, mine: Iterator[int], spec: CodeSpec
) -> None:
    """Write this process's shards of a split into ``folder``, which becomes a cache with `finish`."""
    for number in mine:
        start = number * SHARD
        digits, labels = encode(start, min(count, start + SHARD))
        table = {"digits": digits.to(spec.digit_dtype).contiguous().cpu(), "labels": labels.to(torch.int64).cpu()}
        save_file(table, folder / _shard_name(split, number))


def shards_of(count: int) -> int:
    """Shards that hold ``count`` images."""
    return -(-count // SHARD)


def finish(
    partial: Path, target: Path, spec: CodeSpec, classes: tuple[str, ...], counts: dict[str, int], about: dict[str, Any]
) -> CodeCache:
    """Write the manifest over the shards in ``partial`` and move the whole to ``target``, which must be free."""
    splits = {}
    for split, count in counts.items():
        splits[split] = [
            {
                "file": _shard_name(split, number),
                "count": min(SHARD, count - number * SHARD),
                "sha256": hashlib.sha256((partial / _shard_name(split, number)).read_bytes()).hexdigest(),
            }
            for number in range(shards_of(count))
        ]
    manifest = {
        "kind": "codes",
        "format": FORMAT,
        "spec": spec.to_dict(),
        "classes": list(classes),
        "about": about,
        "splits": splits,
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    if target.is_dir():
        target.rmdir()  # an empty folder is free
    shutil.move(str(partial), target)
    return CodeCache.open(target)


def _shard_name(split: str, number: int) -> str:
    return f"{split}_{number:05d}.safetensors"
