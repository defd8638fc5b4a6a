"""The cache of codes: what a tokenizer writes once and every generator reads.

A folder of safetensors shards and ``manifest.json``, which names the layout, the classes, the source, the tokenizer's
hash and every shard's SHA-256. A shard holds ``labels`` int64 (n,) and ``digits`` uint8 or uint16 (n, h, w, d), or of a
continuous tokenizer ``latents`` float16 (n, d, h, w); with flips also those of the mirrored images, ``digits_flipped``
or ``latents_flipped``. All generators open the same bytes, so "the same tokens" is one hash. Beside each shard lies a
list in JSON of what its images are called. Written by `writer`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Num
from safetensors import safe_open
from torch import Tensor

from ifsq.codes.batch import CodeBatch
from ifsq.codes.manifest import Manifest, ShardEntry, read_manifest, tokens_digest
from ifsq.codes.shard import FLIPPED, LABELS, content_of, names_of, read_header, stored_dtype
from ifsq.codes.spec import CodeSpec, LatentSpec
from ifsq.config import InputError, read_json
from ifsq.data.paths import is_plain
from ifsq.store.files import sha256

MANIFEST = "manifest.json"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class CodeSet:
    """One split in memory.

    layout      of the digits, or of the latents
    content     digits as stored (n, h, w, d), or float16 latents (n, d, h, w)
    labels      int64 (n,)
    flipped     the content of the mirrored images, where it was stored
    codebook    float32 (v, c): the vectors that a VQ tokenizer's digits number, where they are known
    statistics  of latents: ``mean`` and ``std`` of every channel over the training split
    """

    layout: CodeSpec | LatentSpec
    content: Num[Tensor, "n _ _ _"]
    labels: Int[Tensor, "n"]
    flipped: Num[Tensor, "n _ _ _"] | None = None
    codebook: Float[Tensor, "v c"] | None = None
    statistics: Mapping[str, list[float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(
        self, rows: Int[Tensor, "b"], device: torch.device = CPU, mirrored: Bool[Tensor, "b"] | None = None
    ) -> CodeBatch:
        """The images of these rows, on a device.

        mirrored  whether a row is taken from the codes of the mirrored images, where the set has them
        """
        dtype = torch.float32 if isinstance(self.layout, LatentSpec) else torch.int64
        content = self.content[rows].to(dtype)
        if mirrored is not None and self.flipped is not None:
            content = torch.where(mirrored.view(-1, 1, 1, 1), self.flipped[rows].to(dtype), content)
        codebook = None if self.codebook is None else self.codebook.to(device)
        return CodeBatch(self.layout, content.to(device), self.labels[rows].to(device), codebook)


class CodeCache:
    """An opened cache.

    layout      of the digits, or of the latents
    classes     class names; a label is a position in them
    about       source, size, crop, flip, fingerprint and tokenizer hash, as written
    skipped     lines about images that are missing
    statistics  of latents: ``mean`` and ``std`` of every channel over the training split; empty for digits
    digest      SHA-256 of the manifest but for the images' names: two generators with the same digest saw the same
                tokens of the same source
    """

    def __init__(self, folder: Path, manifest: Any) -> None:
        where = str(folder / MANIFEST)
        said: Manifest = read_manifest(manifest, where)
        self.folder = folder
        self.layout = said.layout(where)
        self.classes, self.about = said.classes, said.about
        self.statistics = {name: list(values) for name, values in said.statistics.items()}
        self.digest = tokens_digest(manifest)
        self._splits = said.splits

    @classmethod
    def open(cls, folder: str | Path) -> "CodeCache":
        """Read the manifest. Raises InputError when the folder is no cache of a known format."""
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.exists():
            raise InputError(f"{folder}: holds no code cache ({MANIFEST} is missing); write one with ifsq encode")
        return cls(folder, read_json(path))

    @property
    def spec(self) -> CodeSpec:
        """Layout of the digits. Raises InputError for a cache of latents."""
        if isinstance(self.layout, LatentSpec):
            raise InputError(f"{self.folder}: holds latents of a continuous tokenizer; expected digits")
        return self.layout

    def read(self, split: str, codebook: Float[Tensor, "v c"] | None = None) -> CodeSet:
        """All codes and labels of a split, every shard checked against its hash.

        codebook  of the tokenizer, where the digits are those of one; see `Tokenizer.codebook`

        Raises InputError for a split that is absent, and a shard that is missing or damaged.
        """
        found = self._read(split)
        content, labels, flipped = found[content_of(self.layout)], found[LABELS], found.get("flipped")
        return CodeSet(self.layout, content, labels, flipped, codebook, self.statistics)

    def names(self, split: str) -> list[str]:
        """What the images of a split are called, in the order of their codes: a path below the source, a member of a
        shard; where they have no names, as in bundled sources, their numbers.

        Raises InputError where the split is absent, names are missing, as in a cache of an earlier version, or damaged.
        """
        found: list[str] = []
        for entry in self._entries(split):
            if not entry.names_sha256:
                raise InputError(f"{self.folder}: does not say what its images are called; encode again")
            path = names_of(self._inside(entry.file))
            if sha256(path) != entry.names_sha256:
                raise InputError(f"{path}: is damaged, its SHA-256 is not the one in {MANIFEST}; encode again")
            names = read_json(path)
            if not isinstance(names, list) or not all(isinstance(name, str) and is_plain(name) for name in names):
                raise InputError(f"{path}: expected a list of names")
            if len(names) != entry.count:
                raise InputError(f"{path}: names {len(names)} images; expected {entry.count}, the count in {MANIFEST}")
            found += names
        return found

    @property
    def skipped(self) -> list[str]:
        """A line about each image that could not be read when the cache was written."""
        return [line for entries in self._splits.values() for entry in entries for line in entry.skipped]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self._splits)

    def count(self, split: str) -> int:
        """Images of a split."""
        return sum(entry.count for entry in self._splits.get(split, ()))

    def _entries(self, split: str) -> tuple[ShardEntry, ...]:
        if split not in self._splits:
            raise InputError(f"{self.folder}: has no split {split!r}; expected one of {', '.join(self._splits)}")
        return self._splits[split]

    def _inside(self, file: str) -> Path:
        path = self.folder / file
        if Path(os.path.realpath(path)).parent != Path(os.path.realpath(self.folder)):
            raise InputError(f"{path}: leads out of the cache's folder; expected a file in it")
        return path

    def _read(self, split: str) -> dict[str, Tensor]:
        entries, n = self._entries(split), self.count(split)
        if not n:
            raise InputError(f"{self.folder}: split {split!r} holds no images; encode again")
        paths = [self._checked(entry) for entry in entries]
        content, dtype = content_of(self.layout), stored_dtype(self.layout)
        names = {content: content, LABELS: LABELS, **({"flipped": content + FLIPPED} if self._flips else {})}
        try:
            # One allocation, filled shard by shard: putting shards together at the end would need it all twice.
            whole = {
                name: torch.empty(n, dtype=torch.int64)
                if name == LABELS
                else torch.empty(n, *self.layout.shape, dtype=dtype)
                for name in names
            }
        except RuntimeError as error:
            raise InputError(f"{self.folder}: {n} images of {split!r} are more than there is memory for") from error
        place = 0
        for path, entry in zip(paths, entries, strict=True):
            with safe_open(path, "pt") as shard:
                for name, table in whole.items():
                    stored = shard.get_tensor(names[name])
                    self._check_values(path, names[name], stored)
                    table[place : place + entry.count] = stored
            place += entry.count
        return whole

    @property
    def _flips(self) -> bool:
        return bool(self.about.get("flips"))

    def _checked(self, entry: ShardEntry) -> Path:
        """The path of a shard whose bytes and header are those that the manifest names."""
        path = self._inside(entry.file)
        if sha256(path) != entry.sha256:
            raise InputError(f"{path}: is damaged, its SHA-256 is not the one in {MANIFEST}; encode again")
        header = read_header(path, self.layout, self._flips)
        if header.count != entry.count:
            raise InputError(f"{path}: holds {header.count} images; expected {entry.count}, the count in {MANIFEST}")
        return path

    def _check_values(self, path: Path, name: str, stored: Tensor) -> None:
        """Raise InputError for a label that is no class, a digit that is no level and a latent that is not finite."""
        if not len(stored):
            return
        if name == LABELS:
            if int(stored.min()) < 0 or int(stored.max()) >= len(self.classes):
                wrong = stored[(stored < 0) | (stored >= len(self.classes))][0]
                raise InputError(f"{path}: label {int(wrong)}: expected 0 to {len(self.classes) - 1}, a class")
        elif isinstance(self.layout, CodeSpec):
            most = stored.flatten(0, -2).to(torch.int32).amax(dim=0)
            over = most >= torch.tensor(self.layout.levels)
            if bool(over.any()):
                raise InputError(f"{path}: a digit of dimension {int(over.nonzero()[0])} is not below its level count")
        elif not bool(stored.isfinite().all()):
            raise InputError(f"{path}: {name}: expected finite numbers")
