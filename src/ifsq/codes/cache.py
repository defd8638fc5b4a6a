"""The cache of codes: what a tokenizer writes once and every generator reads.

A folder of safetensors shards and ``manifest.json``, which names the layout, the classes, the source, the tokenizer's
hash and every shard's SHA-256. A shard holds ``labels`` int64 (n,) and ``digits`` uint8 or uint16 (n, h, w, d), or of a
continuous tokenizer ``latents`` float16 (n, d, h, w); with flips also those of the mirrored images, ``digits_flipped``
or ``latents_flipped``; with k crops of each training image k rows for it, one behind the other. All generators open the
same bytes, so "the same tokens" is one hash. Beside each shard lies a list in JSON of what its images are called, and
beside all of them what was found good in them, see `checks`. Written by `writer`.
"""

import hashlib
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from ifsq.codes.batch import CodeBatch
from ifsq.codes.checks import Checked, FileState
from ifsq.codes.features import FeatureRows, read_ahead
from ifsq.codes.manifest import Manifest, ShardEntry, read_manifest, tokens_digest
from ifsq.codes.shard import FLIPPED, LABELS, content_of, names_of, read_header, stored_dtype
from ifsq.codes.spec import CodeSpec, LatentSpec
from ifsq.codes.stated import check_stated
from ifsq.codes.stored import Shard, ShardFiles, StoredRows, open_regular, state_of
from ifsq.config import InputError, digest, read_json
from ifsq.data.paths import is_plain
from ifsq.data.sampler import StepSampler
from ifsq.data.workers import Items
from ifsq.pretrained.teachers import ImageTeacher
from ifsq.store.files import sha256, sha256_of

MANIFEST = "manifest.json"
CPU = torch.device("cpu")
STATED = "statistics"  # what `checks` calls it that they are those of the latents
SUMMED_AT_ONCE = 4096  # images whose codes are floats at one time
CHECKED_AT_ONCE = 1 << 24  # bytes of a shard that are looked at together


@dataclass(frozen=True)
class CodeSet:
    """One split. Labels are in memory; codes may lie on the disk, and `batch` reads its rows alone.

    layout      of the digits, or of the latents
    content     digits as stored (n, h, w, d), or float16 latents (n, d, h, w): a tensor, or one in shards, of which
                ``content[rows]`` is a tensor. With k crops of each image n * k rows, those of image i from i * k on
    labels      int64 (n,)
    flipped     the content of the mirrored images, where it was stored
    codebook    float32 (v, c): the vectors that a VQ tokenizer's digits number, where they are known
    statistics  of latents: ``mean`` and ``std`` of every channel over the training split
    crops       of each image
    known       what was computed of whole splits, and the name of this one's there; None where nothing is remembered
    features    of the same pictures, rows as in ``content``, of each teacher that a generator is aligned to
    """

    layout: CodeSpec | LatentSpec
    content: Num[Tensor, "m _ _ _"] | StoredRows
    labels: Int[Tensor, "n"]
    flipped: Num[Tensor, "m _ _ _"] | StoredRows | None = None
    codebook: Float[Tensor, "v c"] | None = None
    statistics: Mapping[str, list[float]] = field(default_factory=dict)
    crops: int = 1
    known: tuple[Checked, str] | None = None
    features: tuple[FeatureRows, ...] = ()

    online: ClassVar[bool] = False
    """Whether codes are computed of images as they are asked for."""

    def __len__(self) -> int:
        return len(self.labels)

    def seen_by(self, teachers: Sequence[ImageTeacher], grid: tuple[int, int]) -> "CodeSet":
        """The set whose batches of training bring features of these teachers on a grid, of one that is `online`."""
        raise InputError("codes of a cache show a teacher no images; expected cached features")

    def without_features(self) -> "CodeSet":
        """The set whose batches bring no features."""
        return replace(self, features=())

    def batch(
        self,
        rows: Int[Tensor, "b"],
        device: torch.device = CPU,
        mirrored: Bool[Tensor, "b"] | None = None,
        crops: Int[Tensor, "b"] | None = None,
    ) -> CodeBatch:
        """The images of these rows, on a device.

        mirrored  whether a row is taken from the codes of the mirrored images, where the set has them
        crops     number of the crop that is taken of each; by default its first

        Raises InputError where a shard is no longer what it was when the split was read.
        """
        codebook = None if self.codebook is None else self.codebook.to(device)
        places = rows * self.crops if crops is None else rows * self.crops + crops
        content, labels = self._taken(places, mirrored).to(device), self.labels[rows].to(device)
        features = tuple(one.taken(places, mirrored).to(device) for one in self.features)
        return CodeBatch(self.layout, content, labels, codebook, features)

    def drawn(self, items: Sequence[tuple[int, int]], device: torch.device) -> CodeBatch:
        """The images of these pairs of row and seed (0 to 2**63 - 1), which decides crop and flip."""
        rows, mirrored, crops = _draws(items, self.crops)
        return self.batch(rows, device, mirrored, crops)

    def batches(
        self, sampler: StepSampler, start: int, device: torch.device, workers: int = 0, prefetch: int = 2
    ) -> Generator[CodeBatch, None, None]:
        """This process's batches of the steps from ``start`` on, without end.

        workers, prefetch  processes that read images ahead, where codes are computed of images; and batches of
                           features that a thread reads ahead, where there are any
        """
        if not self.features:
            return (self.drawn(items, device) for items in sampler.steps_from(start))
        return self._with_features(sampler.steps_from(start), device, prefetch)

    def _with_features(
        self, steps: Iterator[Items], device: torch.device, prefetch: int
    ) -> Generator[CodeBatch, None, None]:
        codes = self.without_features()

        def read(items: Items) -> list[Float[Tensor, "b n f"]]:
            rows, mirrored, crops = _draws(items, self.crops)
            return [one.taken(rows * self.crops + crops, mirrored) for one in self.features]

        with closing(read_ahead(read, steps, prefetch)) as ahead:
            for items, found in ahead:
                yield replace(codes.drawn(items, device), features=tuple(one.to(device) for one in found))

    def moments(self) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
        """Mean and variance of every channel of the codes over all images and positions, float64.

        Of a split on the disk they are computed once and remembered; see `checks`.
        """
        if self.known is None:
            return self._moments()
        checked, split = self.known
        book = "" if self.codebook is None else hashlib.sha256(self.codebook.cpu().numpy().tobytes()).hexdigest()
        name = f"moments {split} {book}".strip()
        told = checked.fact(name)
        if told is None:
            told = [value.tolist() for value in self._moments()]
            checked.add({}, {name: told})
        mean, variance = (torch.tensor(value, dtype=torch.float64) for value in told)
        return mean, variance

    def _moments(self) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
        count, total, squares = 0, torch.zeros(()).double(), torch.zeros(()).double()
        for rows in torch.arange(len(self)).split(SUMMED_AT_ONCE):
            for crop in range(self.crops):
                part = self.batch(rows, crops=torch.full_like(rows, crop)).codes().double().cpu()
                count += part[:, 0].numel()
                total = total + part.sum(dim=(0, 2, 3))
                squares = squares + part.square().sum(dim=(0, 2, 3))
        mean = total / count
        return mean, squares / count - mean.square()

    def views(self, rows: Int[Tensor, "b"]) -> Float[Tensor, "b m d h w"]:
        """The codes of all crops of these images, and where they are there of the mirrored ones."""
        mirrors = (False,) if self.flipped is None else (False, True)
        found = [
            self.batch(
                rows, CPU, torch.full_like(rows, mirrored, dtype=torch.bool), torch.full_like(rows, crop)
            ).codes()
            for crop in range(self.crops)
            for mirrored in mirrors
        ]
        return torch.stack(found, dim=1)

    def _taken(self, rows: Int[Tensor, "b"], mirrored: Bool[Tensor, "b"] | None) -> Num[Tensor, "b _ _ _"]:
        dtype = torch.float32 if isinstance(self.layout, LatentSpec) else torch.int64
        if mirrored is None or self.flipped is None:
            return self.content[rows].to(dtype)
        taken = torch.empty(len(rows), *self.layout.shape, dtype=dtype)
        taken[~mirrored] = self.content[rows[~mirrored]].to(dtype)
        taken[mirrored] = self.flipped[rows[mirrored]].to(dtype)
        return taken


def _draws(
    items: Sequence[tuple[int, int]], crops: int
) -> tuple[Int[Tensor, "b"], Bool[Tensor, "b"], Int[Tensor, "b"]]:
    """Row, flip and crop that pairs of row and seed stand for."""
    rows, seeds = (torch.tensor(values) for values in zip(*items, strict=True))
    return rows, seeds % 2 == 1, (seeds // 2) % crops


class CodeCache:
    """An opened cache.

    layout      of the digits, or of the latents
    classes     class names; a label is a position in them
    about       source, size, crop, flip, fingerprint and tokenizer hash, as written
    skipped     lines about images that are missing
    crops       of each training image
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
        self._splits, self.crops = said.splits, said.crops("train")

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
        """The codes and labels of a split. Codes stay in their shards.

        codebook  of the tokenizer, where the digits are those of one; see `Tokenizer.codebook`

        Every shard is checked against its hash, and its values are looked at, the first time and whenever it has
        changed; see `checks`. Raises InputError for a split that is absent, a shard that is missing or damaged, and for
        statistics that are not those of the latents.
        """
        entries = self._entries(split)
        if not self.count(split):
            raise InputError(f"{self.folder}: split {split!r} holds no images; encode again")
        checked, crops = Checked.read(self.folder, self.digest), self.crops if split == "train" else 1
        began, good = time.time(), dict[str, FileState]()
        shards = []
        for entry in entries:
            shards.append(self._checked(entry, checked, crops))
            if not checked.knows(entry.file, shards[-1].state) and shards[-1].state.settled(began):
                good[entry.file] = shards[-1].state
        if good:
            checked.add(good, {})
        files = ShardFiles(shards, self._verify)
        name, dtype = content_of(self.layout), stored_dtype(self.layout)
        content = StoredRows(files, name, self.layout.shape, dtype, crops)
        flipped = StoredRows(files, name + FLIPPED, self.layout.shape, dtype, crops) if self.flips else None
        labels = StoredRows(files, LABELS, (), torch.int64)[:]
        self._check_labels(labels, files)
        codes = CodeSet(self.layout, content, labels, flipped, codebook, self.statistics, crops, (checked, split))
        if self.statistics and split == "train":
            self._check_statistics(codes, checked)
        return codes

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

    @property
    def flips(self) -> bool:
        """Whether it holds codes of the mirrored images too."""
        return bool(self.about.get("flips"))

    @property
    def pictures(self) -> str:
        """SHA-256 (hex) of what decides the training pictures and their order, whatever encoded them; without flips."""
        prints = {name: told for name, told in self.about.get("fingerprints", {}).items() if name.startswith("train")}
        skipped = [line for entry in self._splits.get("train", ()) for line in entry.skipped]
        told = {"data": self.about.get("data"), "crops": self.about.get("crops"), "fingerprints": prints}
        return digest({**told, "count": self.count("train"), "skipped": skipped})

    def _checked(self, entry: ShardEntry, checked: Checked, crops: int) -> Shard:
        """A shard whose bytes and header are those that the manifest names, and whose values can be."""
        path = self._inside(entry.file)
        handle = open_regular(path)
        try:
            state = state_of(handle, path)
            known = checked.knows(entry.file, state)
            if not known and sha256_of(handle, path) != entry.sha256:
                raise InputError(f"{path}: is damaged, its SHA-256 is not the one in {MANIFEST}; encode again")
            header = read_header(path, self.layout, self.flips, crops)
            if header.count != entry.count:
                raise InputError(
                    f"{path}: holds {header.count} images; expected {entry.count}, the count in {MANIFEST}"
                )
            shard = Shard(path, entry.count, header.starts, state)
            if not known:
                self._check_codes(shard, crops)
            after = state_of(handle, path)  # a link to it from elsewhere changes its state too, but no byte
            if (after.size, after.modified) != (state.size, state.modified):
                raise InputError(f"{path}: is written while it is read; wait until that ends")
        finally:
            os.close(handle)
        return shard

    def _verify(self, shard: Shard, handle: int) -> None:
        """Raise InputError unless the bytes of a shard that was touched since it was checked are still the same."""
        sums = {entry.file: entry.sha256 for entries in self._splits.values() for entry in entries}
        if sha256_of(handle, shard.path) != sums[shard.path.name]:
            raise InputError(f"{shard.path}: has changed since it was opened, its SHA-256 is not the one in {MANIFEST}")

    def _check_statistics(self, codes: CodeSet, checked: Checked) -> None:
        """Raise InputError unless what is stated of the training latents is true of some of them; once."""
        if checked.fact(STATED) is not None:
            return
        mean, std = self.statistics["mean"], self.statistics["std"]
        check_stated(codes.views, len(codes), mean, std, str(self.folder / MANIFEST))
        checked.add({}, {STATED: True})

    def _check_labels(self, labels: Int[Tensor, "n"], files: ShardFiles) -> None:
        """Raise InputError for a label that is no class."""
        wrong = ((labels < 0) | (labels >= len(self.classes))).nonzero()
        if len(wrong):
            path = files.shards[int(np.searchsorted(files.ends, int(wrong[0]), side="right"))].path
            most = len(self.classes) - 1
            raise InputError(f"{path}: label {int(labels[wrong[0]])}: expected 0 to {most}, a class")

    def _check_codes(self, shard: Shard, crops: int) -> None:
        """Raise InputError for a digit that is no level and a latent that is not finite."""
        if not shard.count:
            return
        alone = ShardFiles([shard], self._verify)
        name, dtype = content_of(self.layout), stored_dtype(self.layout)
        for stored in (name, name + FLIPPED) if self.flips else (name,):
            rows = StoredRows(alone, stored, self.layout.shape, dtype, crops)
            step = max(1, CHECKED_AT_ONCE // (rows[0].numel() * dtype.itemsize))
            for start in range(0, len(rows), step):
                self._check_values(shard.path, stored, rows[start : start + step])
        alone.close()

    def _check_values(self, path: Path, name: str, stored: Num[Tensor, "b _ _ _"]) -> None:
        if isinstance(self.layout, LatentSpec):
            if not bool(stored.isfinite().all()):
                raise InputError(f"{path}: {name}: expected finite numbers")
            return
        digits, levels = stored.numpy(), np.array(self.layout.levels)
        if digits.max() >= levels.min():  # of the whole first: that is quick
            over = digits.reshape(-1, len(levels)).max(axis=0) >= levels
            if over.any():
                raise InputError(f"{path}: a digit of dimension {int(over.argmax())} is not below its level count")
