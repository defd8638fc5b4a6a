"""Sets of images that are written part by part: a folder of PNGs, or one npz in the layout of ADM's evaluations.

Until all images are there, parts lie in a hidden folder in or beside the place, each whole or not at all, with a note
that says of what they are. So a writer that is killed at any moment goes on with the images that are missing, and
nothing unfinished has its final name. At the end the set gets a card, in JSON, that says what it holds.
"""

import csv
import io
import json
import os
import re
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from ifsq.config import InputError, read_json
from ifsq.data.transforms import check_png, write_png
from ifsq.store.files import PARTIAL, entries_of, make_folder, move, whole_file, write_text
from ifsq.store.folders import move_content

CARD, LABELS, NOTE = "samples.json", "labels.csv", "note.json"
LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""When every member of an npz was written: its bytes follow from the images."""


class ImageSet(ABC):
    """Images 0..count-1 of one size, and their labels, on their way to a place.

    out    where they are to be
    count  how many
    shape  (H, W, c) of each
    """

    kind: str
    card: Path
    """Says what the finished set holds."""
    hidden: Path
    """Folder of the parts."""

    def __init__(self, out: Path, count: int, shape: tuple[int, int, int]) -> None:
        self.out, self.count, self.shape = out, count, shape

    @property
    @abstractmethod
    def claimed(self) -> Path:
        """The folder that a process holds while it writes."""

    @abstractmethod
    def finished(self) -> dict[str, Any] | None:
        """The card of the finished set that lies there; None where the place is free, or a set is on its way to it.

        Raises InputError where something else lies there, and where files of a finished set are missing.
        """

    @abstractmethod
    def present(self) -> Bool[np.ndarray, "n"]:
        """Which images are there. Raises InputError where a part is damaged."""

    @abstractmethod
    def write(self, first: int, images: UInt8[np.ndarray, "b H W c"]) -> None:
        """Keep the images numbered from ``first`` on. Raises InputError."""

    @abstractmethod
    def finish(self, labels: Int[np.ndarray, "n"], names: Sequence[str], card: Mapping[str, Any]) -> None:
        """Give all images, their labels (numbers of the classes ``names``) and the card their final names.

        Killed in between, it can be called again. Raises InputError.
        """

    @property
    def complete(self) -> bool:
        """Whether all is written, and names alone are missing."""
        return (self.hidden / CARD).is_file()

    def note(self) -> dict[str, Any] | None:
        """What the parts are of; None where none were begun. Raises InputError where the note is damaged."""
        path = next((path for path in (self.hidden / CARD, self.hidden / NOTE) if path.exists()), None)
        if path is None:
            return None
        found = read_json(path)
        if not isinstance(found, dict):
            raise InputError(f"{path}: expected a JSON object; remove {self.hidden} to begin anew")
        return found

    def begin(self, note: Mapping[str, Any]) -> None:
        """Make the hidden folder with this note, or keep what is there; what a kill left half-written goes.

        Raises InputError.
        """
        make_folder(self.hidden)
        for leftover in self.hidden.glob(f"{PARTIAL}*"):
            leftover.unlink()
        if not self.complete:
            write_text(self.hidden / NOTE, json.dumps(note))

    def drop(self) -> None:
        """Remove the hidden folder where it holds no image yet."""
        if self.hidden.is_dir() and not self.present().any():
            shutil.rmtree(self.hidden)


class PngFolder(ImageSet):
    """``000000.png`` and so on, ``labels.csv`` (path, label and class) and ``samples.json``."""

    kind = "png"

    def __init__(self, out: Path, count: int, shape: tuple[int, int, int]) -> None:
        super().__init__(out, count, shape)
        self.card, self.hidden = out / CARD, out / f"{PARTIAL}samples"  # inside: the place may be a volume
        self.digits = max(6, len(str(count - 1)))

    @property
    def claimed(self) -> Path:
        return self.out

    def name(self, number: int) -> str:
        """File of an image."""
        return f"{number:0{self.digits}d}.png"

    def finished(self) -> dict[str, Any] | None:
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out}: is a file; expected a folder for the samples")
        entries = entries_of(self.out) if self.out.is_dir() else []
        if not entries or self.complete:
            return None
        if not self.card.is_file():
            raise InputError(
                f"{self.out}: is not empty and holds no samples ({entries[0].name}); choose another folder"
            )
        card = _read_card(self.card)
        there = {entry.name for entry in entries}
        for number in range(min(self.count, card["count"])):
            if self.name(number) not in there:
                raise InputError(f"{self.out / self.name(number)}: is missing; remove {self.out} to sample again")
        return card

    def present(self) -> Bool[np.ndarray, "n"]:
        found = np.zeros(self.count, bool)
        if self.complete:
            return ~found
        names = [entry.name for entry in self.hidden.iterdir()]
        numbers = [int(name[:-4]) for name in names if re.fullmatch(rf"[0-9]{{{self.digits}}}\.png", name)]
        found[[number for number in numbers if number < self.count]] = True
        return found

    def write(self, first: int, images: UInt8[np.ndarray, "b H W c"]) -> None:
        for number, image in enumerate(images, start=first):
            write_png(image, self.hidden / self.name(number))

    def finish(self, labels: Int[np.ndarray, "n"], names: Sequence[str], card: Mapping[str, Any]) -> None:
        if not self.complete:
            table = io.StringIO()
            rows = csv.writer(table, lineterminator="\n")
            rows.writerow(("path", "label", "class"))
            rows.writerows((self.name(i), label, names[label]) for i, label in enumerate(labels.tolist()))
            write_text(self.hidden / LABELS, table.getvalue())
            _write_card(self.hidden / CARD, card)
        (self.hidden / NOTE).unlink(missing_ok=True)
        move_content(self.hidden, self.out, CARD)
        self.hidden.rmdir()


class NpzFile(ImageSet):
    """``arr_0`` uint8 (n, H, W, 3) and ``arr_1`` int64 (n,), uncompressed; the card beside it ends in ``.json``.

    Its bytes follow from images and labels. While it is put together it needs the room of its parts once more.
    """

    kind = "npz"

    def __init__(self, out: Path, count: int, shape: tuple[int, int, int]) -> None:
        super().__init__(out, count, shape)
        self.place = Path(os.path.realpath(out))  # a link keeps leading where it leads
        self.card, self.hidden = self.place.with_suffix(".json"), self.place.with_name(f"{PARTIAL}{self.place.name}")

    @property
    def claimed(self) -> Path:
        return self.hidden

    def finished(self) -> dict[str, Any] | None:
        if self.out.is_dir():
            raise InputError(f"{self.out}: is a folder; expected the name of a file")
        if self.complete:
            return None
        if self.card.exists():
            card = _read_card(self.card)  # also where its npz is gone: somebody's card is not written over
            return card if self.out.exists() else None
        if self.out.exists():
            raise InputError(f"{self.out}: exists, and no {self.card.name} beside it says of what; choose another name")
        return None

    def present(self) -> Bool[np.ndarray, "n"]:
        found = np.zeros(self.count, bool)
        if self.complete:
            return ~found
        for path in self._parts():
            first = int(path.stem)
            found[first : first + len(self._read(path))] = True
        return found

    def write(self, first: int, images: UInt8[np.ndarray, "b H W c"]) -> None:
        with whole_file(self.hidden / f"{first:08d}.npy") as partial, partial.open("wb") as stream:
            rows = np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], 3)))
            np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(rows))
            stream.write(rows.data)  # np.save would not say that the disk is full

    def finish(self, labels: Int[np.ndarray, "n"], names: Sequence[str], card: Mapping[str, Any]) -> None:
        height, width, _ = self.shape
        whole = self.hidden / "whole.npz"
        if not self.complete:
            with whole_file(whole) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as file:
                with _member(file, "arr_0.npy", np.uint8, (self.count, height, width, 3)) as stream:
                    for path in self._parts():
                        stream.write(self._read(path).data)
                with _member(file, "arr_1.npy", "<i8", (self.count,)) as stream:
                    stream.write(labels.astype("<i8").data)
            _write_card(self.hidden / CARD, card)
        if whole.exists():
            move(whole, self.place)
        for path in (*self._parts(), self.hidden / NOTE):
            path.unlink(missing_ok=True)
        move(self.hidden / CARD, self.card)
        shutil.rmtree(self.hidden)

    def _parts(self) -> list[Path]:
        return sorted(path for path in self.hidden.iterdir() if re.fullmatch(r"[0-9]{8,}\.npy", path.name))

    def _read(self, path: Path) -> UInt8[np.ndarray, "b H W 3"]:
        height, width, _ = self.shape
        try:
            part = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: is damaged; remove it, and its images are drawn again") from error
        if part.dtype != np.uint8 or part.shape[1:] != (height, width, 3) or int(path.stem) + len(part) > self.count:
            raise InputError(f"{path}: holds {part.dtype} {part.shape}; remove it, and its images are drawn again")
        return part


def set_kind(out: Path) -> type[ImageSet] | None:
    """What a place for samples is by its name: a folder, an npz, or a single picture (None).

    Raises InputError for the name of another kind of file, and for a folder with the name of a picture.
    """
    suffix = out.suffix.lower()
    if out.is_dir() and suffix not in (".png", ".npz"):
        return PngFolder
    if suffix[1:].isalpha() and suffix not in (".png", ".npz"):  # but not runs/ar_guidance_1.5
        raise InputError(f"{out}: expected a name that ends in .png or .npz, or that of a folder")
    if suffix == ".png":
        check_png(out)
        return None
    return NpzFile if suffix == ".npz" else PngFolder


@contextmanager
def _member(file: zipfile.ZipFile, name: str, dtype: Any, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """A new member of an npz after the header that says type and shape."""
    member = zipfile.ZipInfo(name, LONG_AGO)
    member.create_system, member.external_attr = 3, 0o644 << 16  # whatever system writes it
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with file.open(member, "w", force_zip64=True) as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        yield stream


def is_card(path: Path) -> bool:
    """Whether a file is the card of a set; any other JSON may bear its name, and lie beside anybody's npz."""
    try:
        found = read_json(path)
    except InputError:
        return False
    return isinstance(found, dict) and found.get("kind") == "samples"


def _read_card(path: Path) -> dict[str, Any]:
    """A card. Raises InputError where the file is none."""
    card = read_json(path)
    if not isinstance(card, dict) or card.get("kind") != "samples" or type(card.get("count")) is not int:
        raise InputError(f"{path}: is no card of samples; choose another place, or remove it")
    return card


def _write_card(path: Path, card: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(card, indent=1) + "\n")
