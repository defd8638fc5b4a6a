"""What was found good once is not read again: the state of each checked file, remembered beside the shards.

The first opening of a cache takes the SHA-256 of every shard and looks at all its values; of terabytes that takes an
hour. So ``.checked.json`` in the cache's folder remembers, for the manifest of this digest, which files were found good
in which state. The rules:

- A file is checked again unless its size, its times of modification and of change (in nanoseconds) and its inode are
  all as they were: a write, an exchange, a copy, a move from elsewhere and a time that was set back all differ in one.
- A file whose times lie less than `SETTLED` before its check is not remembered: another write within the clock's tick
  would leave no trace. So a cache is remembered from the first opening after that.
- The file has a digest of itself. Damaged, of another manifest, of another version or no file at all: then nothing is
  remembered.
- Where it cannot be written (a folder of somebody else's, a full or read-only disk), everything is checked at each
  opening.

What a disk alters by itself changes no time and goes unseen: remove ``.checked.json`` to have everything checked again.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from ifsq.config import InputError, digest, read_json
from ifsq.store.files import WriteError, write_text

CHECKED = ".checked.json"
VERSION = 1
SETTLED = 2.0
"""Seconds: the coarsest clock of a file system (FAT) counts in twos."""


@dataclass(frozen=True)
class FileState:
    """What changes when a file does: size in bytes, times of modification and of change in nanoseconds, inode."""

    size: int
    modified: int
    changed: int
    inode: int

    @classmethod
    def of(cls, stat: os.stat_result) -> "FileState":
        """Of what the system says of a file."""
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)

    def settled(self, now: float) -> bool:
        """Whether a write at ``now`` (seconds since the epoch) would give the file other times than it has."""
        return max(self.modified, self.changed) <= (now - SETTLED) * 1e9


@dataclass
class Checked:
    """What ``.checked.json`` of a cache remembers.

    folder    of the cache
    manifest  digest of the manifest that it is of
    files     state in which a file was found good, by name
    facts     whatever else was computed of the whole cache and follows from the manifest's digest, by name
    """

    folder: Path
    manifest: str
    files: dict[str, FileState] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, manifest: str) -> "Checked":
        """What is remembered of a cache with this manifest: nothing, where the file is not as it was written."""
        empty = cls(folder, manifest)
        try:
            table = read_json(folder / CHECKED)
        except InputError:  # nothing can be believed, and everything is checked again
            return empty
        if not isinstance(table, dict) or table.pop("digest", None) != digest(table):
            return empty
        if table.get("version") != VERSION or table.get("manifest") != manifest:
            return empty
        return cls(folder, manifest, {n: FileState(*s) for n, s in table["files"].items()}, table["facts"])

    def knows(self, name: str, state: FileState) -> bool:
        """Whether the file was found good in the very state that it is in."""
        return self.files.get(name) == state

    def fact(self, name: str) -> Any:
        """What is remembered under a name, by now and by any process; None where nothing is."""
        self.facts |= Checked.read(self.folder, self.manifest).facts
        return self.facts.get(name)

    def add(self, files: Mapping[str, FileState], facts: Mapping[str, Any]) -> None:
        """Remember these too, together with what another process has remembered meanwhile; where it cannot, not."""
        latest = Checked.read(self.folder, self.manifest)
        self.files, self.facts = latest.files | self.files | dict(files), latest.facts | self.facts | dict(facts)
        table = {
            "version": VERSION,
            "manifest": self.manifest,
            "files": {name: list(astuple(state)) for name, state in self.files.items()},
            "facts": self.facts,
        }
        try:
            write_text(self.folder / CHECKED, json.dumps({**table, "digest": digest(table)}) + "\n")
        except WriteError:  # it is checked at every opening, as the docstring says
            return
