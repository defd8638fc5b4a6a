"""Features of a teacher beside a cache of codes, of the very pictures that the codes are of, in their order.

A folder of safetensors shards and ``manifest.json``, which names the teacher by the digest of its weights, the pictures
by what the cache of codes says of them, and every shard's SHA-256. A shard holds ``features`` bfloat16 (n * k, t, f), k
crops of an image one behind the other, and with flips ``features_flipped``. Caches of the same pictures share it,
whatever their tokenizer. Rows are read like those of codes, see `stored`. Written by `feature_writer`.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ifsq.codes.checks import Checked, FileState
from ifsq.codes.manifest import SHA256
from ifsq.codes.shard import FLIPPED, starts_of
from ifsq.codes.stored import Shard, ShardFiles, StoredRows, open_regular, state_of
from ifsq.config import InputError, build, differences, digest, read_json, to_dict
from ifsq.store.files import reason, sha256_of

MANIFEST = "manifest.json"
FEATURES = "features"
VERSION = 1
CHECKED_AT_ONCE = 1 << 24  # bytes of a shard that are looked at together
Item = TypeVar("Item")
Read = TypeVar("Read")


@dataclass(frozen=True)
class FeatureRows:
    """Features of the pictures of a split.

    content  (m, n, f): a tensor, or bfloat16 in shards, read as the 16-bit integers of the same bytes
    grid     rows and columns, n in all
    flipped  those of the mirrored pictures, where they were stored
    """

    content: Float[Tensor, "m n f"] | StoredRows
    grid: tuple[int, int]
    flipped: Float[Tensor, "m n f"] | StoredRows | None = None

    @property
    def width(self) -> int:
        """Numbers f in a feature."""
        return int(self.content.shape[-1])

    def taken(self, rows: Int[Tensor, "b"], mirrored: Bool[Tensor, "b"] | None = None) -> Float[Tensor, "b n f"]:
        """Of these rows, those of the mirrored pictures where they are asked for and there are any."""
        if mirrored is None or self.flipped is None:
            return _as_floats(self.content[rows])
        straight, flipped = _as_integers(self.content[rows[~mirrored]]), _as_integers(self.flipped[rows[mirrored]])
        taken = torch.empty(len(rows), *straight.shape[1:], dtype=straight.dtype)
        # By NumPy: in a thread of its own torch would start more of them, and slow down those that compute.
        taken.numpy()[~mirrored.numpy()], taken.numpy()[mirrored.numpy()] = straight.numpy(), flipped.numpy()
        return _as_floats(taken)


def feature_shard(number: int) -> str:
    """File of a shard."""
    return f"{FEATURES}_{number:05d}.safetensors"


@dataclass(frozen=True)
class FeatureShard:
    """A shard as the manifest names it: its file, the pictures in it and the SHA-256 of its bytes."""

    file: str
    count: int
    sha256: str

    def __post_init__(self) -> None:
        if not self.file.endswith(".safetensors") or Path(self.file).name != self.file:
            raise ValueError(f"file {self.file!r}: expected the name of a .safetensors file in the cache's folder")
        if self.count < 1 or not SHA256.fullmatch(self.sha256):
            raise ValueError(f"{self.file}: count {self.count}, sha256 {self.sha256!r}: expected a number and a digest")


@dataclass(frozen=True)
class FeaturesAbout:
    """What features are of.

    teacher   its name
    digest    of its weights and settings
    pictures  `CodeCache.pictures` of the split ``train``
    grid      rows and columns
    width     numbers in a feature
    rows      pictures: images times crops
    flips     whether those of the mirrored pictures are there too
    """

    teacher: str
    digest: str
    pictures: str
    grid: tuple[int, int]
    width: int
    rows: int
    flips: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if min(self.grid) < 1:
            raise ValueError(f"grid={self.grid}: expected a positive height and width")

    @property
    def row(self) -> tuple[int, int]:
        """Shape of a picture's features."""
        return (self.grid[0] * self.grid[1], self.width)


@dataclass(frozen=True)
class FeatureManifest:
    """The whole file."""

    about: FeaturesAbout
    shards: tuple[FeatureShard, ...]
    kind: str = FEATURES
    format: int = VERSION

    def __post_init__(self) -> None:
        if (self.kind, self.format) != (FEATURES, VERSION):
            raise ValueError(f"kind {self.kind!r}, format {self.format}: expected {FEATURES!r}, {VERSION}")
        for number, shard in enumerate(self.shards):  # rows follow each other in the order of the pictures
            if shard.file != feature_shard(number):
                raise ValueError(f"shards.{number}: file {shard.file!r}: expected {feature_shard(number)!r}")
        if (count := sum(shard.count for shard in self.shards)) != self.about.rows:
            raise ValueError(f"shards of {count} pictures: expected {self.about.rows}")


class FeatureCache:
    """An opened cache of features.

    about   what they are of
    digest  SHA-256 (hex) of the manifest
    """

    def __init__(self, folder: Path, table: Any) -> None:
        said = build(FeatureManifest, table, str(folder / MANIFEST))
        self.folder, self.about, self._shards, self.digest = folder, said.about, said.shards, digest(table)

    @classmethod
    def open(cls, folder: str | Path) -> "FeatureCache":
        """Read the manifest. Raises InputError where the folder holds no such cache."""
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise InputError(f"{folder}: holds no cache of features ({MANIFEST} is missing)")
        table = read_json(path)
        if isinstance(table, dict) and "splits" in table:
            raise InputError(f"{folder}: holds a cache of codes; expected one of features")
        return cls(Path(folder), table)

    def check(self, teacher: str, pictures: str, *, flips: bool) -> None:
        """Raise InputError unless the features are those of a teacher, by its name, of the pictures of a cache.

        flips  whether the cache has codes of the mirrored ones too
        """
        if self.about.teacher != teacher:
            raise InputError(f"{self.folder}: holds features of {self.about.teacher}; expected those of {teacher}")
        if self.about.pictures != pictures:
            raise InputError(f"{self.folder}: holds features of other pictures than the codes are of; write them again")
        if flips and not self.about.flips:
            raise InputError(f"{self.folder}: has no features of the mirrored pictures, of which there are codes")

    def read(self) -> FeatureRows:
        """The features, which stay in their shards.

        Every shard is checked against its hash and its values are looked at, the first time and whenever it has
        changed, see `checks`. Raises InputError for one that is missing or damaged.
        """
        checked, began, good = Checked.read(self.folder, self.digest), time.time(), dict[str, FileState]()
        shards = []
        for entry in self._shards:
            shards.append(self._checked(entry, checked))
            if not checked.knows(entry.file, shards[-1].state) and shards[-1].state.settled(began):
                good[entry.file] = shards[-1].state
        if good:
            checked.add(good, {})
        files = ShardFiles(shards, self._verify)
        flipped = self._rows(files, FEATURES + FLIPPED) if self.about.flips else None
        return FeatureRows(self._rows(files, FEATURES), self.about.grid, flipped)

    def _rows(self, files: ShardFiles, name: str) -> StoredRows:
        return StoredRows(files, name, self.about.row, torch.int16)  # NumPy, which reads them, has no bfloat16

    def _checked(self, entry: FeatureShard, checked: Checked) -> Shard:
        path = self.folder / entry.file
        handle = open_regular(path)
        try:
            state = state_of(handle, path)
            known = checked.knows(entry.file, state)
            if not known and sha256_of(handle, path) != entry.sha256:
                raise InputError(f"{path}: is damaged, its SHA-256 is not the one in {MANIFEST}; write it again")
            shard = Shard(path, entry.count, feature_starts(path, entry.count, self.about), state)
            if not known:
                self._check_values(shard)
        finally:
            os.close(handle)
        return shard

    def _verify(self, shard: Shard, handle: int) -> None:
        """Raise InputError unless the bytes of a shard that was touched since it was checked are still the same."""
        sums = {entry.file: entry.sha256 for entry in self._shards}
        if sha256_of(handle, shard.path) != sums[shard.path.name]:
            raise InputError(f"{shard.path}: has changed since it was opened, its SHA-256 is not the one in {MANIFEST}")

    def _check_values(self, shard: Shard) -> None:
        alone = ShardFiles([shard], self._verify)
        for name in (FEATURES, FEATURES + FLIPPED) if self.about.flips else (FEATURES,):
            rows = self._rows(alone, name)
            step = max(1, CHECKED_AT_ONCE // (2 * self.about.row[0] * self.about.row[1]))
            for start in range(0, len(rows), step):
                if not bool(_as_floats(rows[start : start + step]).isfinite().all()):
                    raise InputError(f"{shard.path}: {name}: expected finite numbers")
        alone.close()


def feature_starts(path: Path, count: int, about: FeaturesAbout) -> dict[str, int]:
    """Where each tensor of a shard of so many pictures begins. Raises InputError where they are not as said."""
    try:
        with safe_open(path, "pt") as shard:
            found = {name: (shard.get_slice(name).get_dtype(), tuple(shard.get_slice(name).get_shape()))
                     for name in shard.keys()}  # noqa: SIM118 - no mapping  # fmt: skip
        starts = starts_of(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    for name in (FEATURES, FEATURES + FLIPPED) if about.flips else (FEATURES,):
        if found.get(name) != ("BF16", (count, *about.row)):
            raise InputError(f"{path}: {name} is {found.get(name)}; expected BF16 {(count, *about.row)}")
    return starts


def refuse_others(told: Any, about: FeaturesAbout, where: str) -> None:
    """Raise InputError, which begins with ``where``, unless what is told of features is ``about``."""
    if different := differences(told if isinstance(told, dict) else {}, to_dict(about)):
        raise InputError(f"{where} ({different[0]}); choose another folder or remove it")


def read_ahead(
    read: Callable[[Item], Read], items: Iterable[Item], count: int
) -> Generator[tuple[Item, Read], None, None]:
    """Each item with what is read of it, up to ``count`` items ahead, in one thread that ends with the generator."""
    waiting: deque[tuple[Item, Future[Read]]] = deque()
    thread = ThreadPoolExecutor(1, "features")
    try:
        for item in items:
            waiting.append((item, thread.submit(read, item)))
            if len(waiting) > count:
                first, found = waiting.popleft()
                yield first, found.result()
        yield from ((first, found.result()) for first, found in waiting)
    finally:
        thread.shutdown(cancel_futures=True)


def _as_floats(rows: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return rows.view(torch.bfloat16) if rows.dtype == torch.int16 else rows


def _as_integers(rows: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """What NumPy can hold, the same bytes."""
    return rows.view(torch.int16) if rows.dtype == torch.bfloat16 else rows
