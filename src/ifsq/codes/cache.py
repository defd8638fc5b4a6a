"""The cache of codes: what a tokenizer writes once and every generator reads.

A folder of safetensors shards and ``manifest.json``, which names the layout, the classes, the source, the tokenizer's
hash and every shard's SHA-256. A shard holds ``labels`` int64 (n,) and ``digits`` uint8 or uint16 (n, h, w, d), or of a
continuous tokenizer ``latents`` float16 (n, d, h, w); with flips also those of the mirrored images, ``digits_flipped``
or ``latents_flipped``. All generators open the same bytes, so "the same tokens" is one hash. Written by `writer`;
called by ``pipeline`` and ``generators.train``.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Integer
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ifsq.codes.spec import CodeSpec, LatentSpec
from ifsq.config import InputError, digest

MANIFEST = "manifest.json"
FORMATS = (1, 2)  # 1: digits only, without flips
FLIPPED = "_flipped"


@dataclass(frozen=True)
class CodeSet:
    """One split in memory: digits as stored (n, h, w, d), int64 labels (n,), and the digits of the mirrored images."""

    digits: Integer[Tensor, "n h w d"]
    labels: Int[Tensor, "n"]
    flipped: Integer[Tensor, "n h w d"] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class LatentSet:
    """One split in memory: float16 latents (n, d, h, w), int64 labels (n,), and the latents of the mirrored images."""

    latents: Float[Tensor, "n d h w"]
    labels: Int[Tensor, "n"]
    flipped: Float[Tensor, "n d h w"] | None = None

    def __len__(self) -> int:
        return len(self.labels)


class CodeCache:
    """An opened cache.

    layout      of the digits, or of the latents
    classes     class names; a label is a position in them
    about       source, size, crop, flip, fingerprint and tokenizer hash, as written
    skipped     lines about images that are missing
    statistics  of latents: ``mean`` and ``std`` of every channel over the training split; empty for digits
    digest      SHA-256 of the manifest: two generators with the same digest saw the same tokens
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        latents = manifest.get("content", "digits") == "latents"
        self.layout = LatentSpec.from_dict(manifest["spec"]) if latents else CodeSpec.from_dict(manifest["spec"])
        self.classes = tuple(manifest["classes"])
        self.about: dict[str, Any] = manifest["about"]
        if "tokenizer" not in self.about:
            raise KeyError("about.tokenizer")
        self.statistics: dict[str, list[float]] = manifest.get("statistics", {})
        self.digest = digest(manifest)
        self._splits: dict[str, list[dict[str, Any]]] = manifest["splits"]
        for entries in self._splits.values():
            for entry in entries:
                _ = Path(entry["file"]), int(entry["count"]), str(entry["sha256"])  # raises for a damaged manifest

    @classmethod
    def open(cls, folder: str | Path) -> "CodeCache":
        """Read the manifest. Raises InputError when the folder is no cache of a known format."""
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            raise InputError(f"{folder}: holds no code cache ({MANIFEST} is missing); write one with ifsq encode")
        try:
            manifest = json.loads(path.read_text())
            if manifest["format"] not in FORMATS:
                raise InputError(f"{path}: format {manifest['format']}; expected one of {FORMATS}")
            return cls(folder, manifest)
        except InputError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: is not a manifest of a code cache ({error})") from error

    @property
    def spec(self) -> CodeSpec:
        """Layout of the digits. Raises InputError for a cache of latents."""
        if isinstance(self.layout, LatentSpec):
            raise InputError(f"{self.folder}: holds latents of a continuous tokenizer; expected digits")
        return self.layout

    def read(self, split: str) -> CodeSet:
        """All digits and labels of a split, every shard checked against its hash.

        Raises InputError for latents, a split that is absent, and a shard that is missing or damaged.
        """
        spec = self.spec
        return CodeSet(**self._read(split, "digits", spec.shape, spec.digit_dtype))

    def read_latents(self, split: str) -> LatentSet:
        """All latents and labels of a split, every shard checked against its hash. Raises InputError, as `read`."""
        if not isinstance(self.layout, LatentSpec):
            raise InputError(f"{self.folder}: holds digits; expected latents of a continuous tokenizer")
        return LatentSet(**self._read(split, "latents", self.layout.shape, torch.float16))

    @property
    def skipped(self) -> list[str]:
        """A line about each image that could not be read when the cache was written."""
        return [line for entries in self._splits.values() for entry in entries for line in entry.get("skipped", [])]

    def count(self, split: str) -> int:
        """Images of a split."""
        return sum(entry["count"] for entry in self._splits.get(split, []))

    def _read(self, split: str, content: str, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
        if split not in self._splits:
            raise InputError(f"{self.folder}: has no split {split!r}; expected one of {', '.join(self._splits)}")
        n, place = self.count(split), 0
        # One allocation, filled shard by shard: putting shards together at the end would need it all twice.
        whole = {content: torch.empty(n, *shape, dtype=dtype), "labels": torch.empty(n, dtype=torch.int64)}
        if self.about.get("flips"):
            whole["flipped"] = torch.empty(n, *shape, dtype=dtype)
        for entry in self._splits[split]:
            shard, path = self._read_shard(entry), self.folder / entry["file"]
            for name, table in whole.items():
                stored = shard.get(f"{content}{FLIPPED}" if name == "flipped" else name)
                expected = (entry["count"], *table.shape[1:])
                if stored is None or stored.dtype != table.dtype or tuple(stored.shape) != expected:
                    found = "nothing" if stored is None else f"{stored.dtype} {tuple(stored.shape)}"
                    raise InputError(f"{path}: {name} is {found}; expected {table.dtype} {expected}")
                if name in ("digits", "flipped") and isinstance(self.layout, CodeSpec):
                    _check_digits(path, stored, self.layout)
                table[place : place + entry["count"]] = stored
            place += entry["count"]
        return whole

    def _read_shard(self, entry: dict[str, Any]) -> dict[str, Tensor]:
        path = self.folder / entry["file"]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise InputError(f"{path}: is damaged, its SHA-256 is not the one in {MANIFEST}; encode again")
        try:
            return load(content)
        except SafetensorError as error:
            raise InputError(f"{path}: cannot be read: {error}") from error


def _check_digits(path: Path, digits: Tensor, spec: CodeSpec) -> None:
    if not len(digits):
        return
    over = digits.flatten(0, -2).to(torch.int32).amax(dim=0) >= torch.tensor(spec.levels)
    if bool(over.any()):
        raise InputError(f"{path}: a digit of dimension {int(over.nonzero()[0])} is not below its level count")
