"""What ``manifest.json`` of a cache says, checked before it is believed: types, ranges, and names inside the folder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from ifsq.codes.spec import CodeSpec, LatentSpec
from ifsq.config import InputError, build, digest
from ifsq.data.crops import Crops
from ifsq.data.paths import is_plain, shown

FORMATS = (1, 2, 3, 4)  # 1: digits only, without flips; 2: no names of the images; 4: several crops of an image
MOST_IMAGES = 2**40
LARGEST = 65504.0  # float16, in which latents are stored
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ShardEntry:
    """A shard as the manifest names it.

    file          its name in the cache's folder
    count         images in it
    sha256        of its bytes, in hexadecimal
    skipped       a line about each image that is missing in it
    names_sha256  of the file beside it that names its images; empty where there is none
    """

    file: str
    count: int
    sha256: str
    skipped: tuple[str, ...] = ()
    names_sha256: str = ""

    def __post_init__(self) -> None:
        if self.file != PurePath(self.file).name or not self.file.endswith(".safetensors") or not is_plain(self.file):
            raise ValueError(f"file {self.file!r}: expected the name of a .safetensors file in the cache's folder")
        if not 0 <= self.count <= MOST_IMAGES:
            raise ValueError(f"count {self.count}: expected a number of images")
        for name, value in (("sha256", self.sha256), ("names_sha256", self.names_sha256)):
            if not SHA256.fullmatch(value) and (name == "sha256" or value):
                raise ValueError(f"{name} {value[:80]!r}: expected 64 hexadecimal digits")


@dataclass(frozen=True)
class Manifest:
    """The whole file.

    content     ``digits`` or ``latents``
    spec        layout of either
    classes     names; a label is a position in them
    about       source, size, crop, flip, fingerprints and tokenizer hash
    splits      shards of each
    statistics  of latents: ``mean`` and ``std`` of every channel, over the training split where there is one
    """

    spec: dict[str, Any]
    classes: tuple[str, ...]
    about: dict[str, Any]
    splits: dict[str, tuple[ShardEntry, ...]]
    format: int
    kind: str = "codes"
    content: str = "digits"
    statistics: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.content not in ("digits", "latents"):
            raise ValueError(f"content {self.content!r}: expected digits or latents")
        if not self.classes:
            raise ValueError("classes []: expected at least one name")
        if wrong := [name for name in self.classes if not is_plain(name)]:
            raise ValueError(f"class {wrong[0][:80]!r}: expected a name on one line")
        for key, kind in (("tokenizer", str), ("data", dict), ("fingerprints", dict), ("flips", bool)):
            if not isinstance(self.about.get(key, kind()), kind):
                raise ValueError(f"about.{key} {self.about[key]!r}: expected a {kind.__name__}")
        if "crops" in self.about:
            build(Crops, self.about["crops"], "about.crops")
        if "tokenizer" not in self.about:
            raise ValueError("about.tokenizer: is required")
        named: set[str] = set()
        for split, entries in self.splits.items():
            for entry in entries:
                if entry.file in named:
                    raise ValueError(f"split {split!r}: {entry.file} stands twice; expected every shard once")
                named.add(entry.file)

    def crops(self, split: str) -> int:
        """Crops of each image of a split: only of training images there are several."""
        several = self.about.get("crops") if split == "train" else None
        return build(Crops, several, "about.crops").count if several else 1

    def layout(self, where: str) -> CodeSpec | LatentSpec:
        """Layout of the digits or of the latents. Raises InputError naming ``where``."""
        if self.content == "latents":
            latents = build(LatentSpec, self.spec, f"{where}: spec")
            for name in ("mean", "std") if self.splits.get("train") else ():
                if len(self.statistics.get(name, ())) != latents.dim:
                    raise InputError(f"{where}: statistics.{name}: expected {latents.dim} numbers, one a channel")
                least = -LARGEST if name == "mean" else 0.0
                if wrong := [value for value in self.statistics[name] if not least <= value <= LARGEST]:
                    raise InputError(f"{where}: statistics.{name}: {wrong[0]:g}: expected {least:g} to {LARGEST:g}")
            return latents
        digits = build(CodeSpec, self.spec, f"{where}: spec")
        try:
            _ = digits.digit_dtype
        except ValueError as error:
            raise InputError(f"{where}: spec: {error}") from error
        return digits


def tokens_digest(table: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a manifest but for the names of the images, which decide no token.

    A cache of format 3 so has the digest of the same one of format 2, and runs on that go on with it.
    """
    splits = {
        split: [{key: value for key, value in entry.items() if key != "names_sha256"} for entry in entries]
        for split, entries in table["splits"].items()
    }
    return digest({**table, "format": min(table["format"], 2), "splits": splits})


def read_manifest(table: Any, where: str) -> Manifest:
    """The manifest in a JSON value. Raises InputError naming ``where`` and what is wrong in it."""
    if not isinstance(table, Mapping) or "format" not in table:
        raise InputError(f"{where}: is not a manifest of a code cache; expected a JSON object with a format")
    if table["format"] not in FORMATS or isinstance(table["format"], bool):
        raise InputError(f"{where}: format {shown(table['format'])}; expected one of {FORMATS}")
    return build(Manifest, table, where)
