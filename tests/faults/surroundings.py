"""Rows A2, A2b and A3: a full disk, a disk that is read-only, files and folders without permission. Needs root."""

import ctypes
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from tests.faults.cases import BAD, Found
from tests.faults.trial import Ended, forked
from tests.faults.world import copy

ROOMS = (0, 4096, 24_576, 98_304)
"""Bytes that are left on the disk."""
WRITERS = (
    "tokenizer train mid.toml",
    "tokenizer train mid.toml --train.sample_every 1 --train.evaluate_every 2",
    "generator train ar.toml",
    "generator train diffusion.toml --out fresh",
    "adapt tok --steps 2 --out adapted",
    "encode tok images out",
    "tokenizer eval tok",
    "generator eval ar --samples 4 --features",
    "generator likelihood ar --images 2",
    "sample ar --labels 0 1 --out new.png",
    "sample ar --count 40 --batch 8 --out set",
    "sample ar --count 40 --batch 8 --out set.npz",
    "evaluate samples.npz --reference samples.npz --features pixels --no-cache --out new.json",
    "reconstruct tok images/b --out again",
    "report tok",
    "export pretrained tok --out new",
    "export torch tok --out new",
    "export official imported --out new.ckpt",
    "import official official.ckpt --config official.json --out new",
    "export official imported_ar --out new.pt",
    "import official llamagen.pt --out new",
    "import official dit.pt --multiplier 1.1 --out new",
    "export official imported_dit --out new.pt",
    "analyze alignment ar --neighbours 2 --split train --step all",
    "analyze forecast tok codes --no-judge",
    "import latents latents --out new",
    "teacher train teacher.toml",
    "teacher score teacher --data images --broken skip --size 16 --grid 4 --out scores.json",
    "features codes --teacher teacher --out seen",
    "generator train aligned.toml",
)
READERS = (
    ("images/a/0.png", "encode tok images out"),
    ("mid/checkpoints/step_4/ema.safetensors", "reconstruct mid picture.png --out p"),
    ("codes/train_00000.safetensors", "generator train ar.toml --out fresh"),
    ("codes/manifest.json", "generator train ar.toml --out fresh"),
    ("codes-teacher/features_00000.safetensors", "generator train aligned.toml --out fresh"),
    ("codes-teacher/manifest.json", "generator train aligned.toml --out fresh"),
    ("mid.toml", "tokenizer train mid.toml"),
    ("saved/config.json", "reconstruct saved picture.png --out p"),
)


def as_others() -> None:
    """Take from this process what lets root read and write whatever the permissions say."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    for word in (0, 1):  # effective and permitted: CAP_DAC_OVERRIDE is bit 1, CAP_DAC_READ_SEARCH bit 2
        data[word] &= ~0b110
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


@contextmanager
def disk(place: Path, size: str = "96m") -> Iterator[Path]:
    """A file system of its own at ``place``."""
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()


def fill(place: Path, room: int) -> Path:
    """A file that leaves so many bytes of the disk."""
    filler = place / "filler"
    free = shutil.disk_usage(place).free - room
    with suppress(OSError), filler.open("wb", buffering=0) as file:  # a run may be writing meanwhile
        for start in range(0, free, 1 << 20):
            file.write(bytes(min(1 << 20, free - start)))
    return filler


def full_disks(
    world: Path, place: Path, lines: tuple[str, ...] = WRITERS, rooms: tuple[int, ...] = ROOMS
) -> Iterator[Found]:
    """Row A2: refused in a line, nothing half-written under its name, and right once there is room."""
    for line in possible(world, lines):
        for room in rooms:
            with disk(place) as full:
                folder = copy_whole(world, full / "world")
                filler = fill(full, room)
                ended = forked(line.split(), folder)
                wrong = half_written(folder)
                filler.unlink()
                if not wrong and ended.kind not in BAD:
                    after = forked(line.split(), folder)
                    kept = "exists" in after.line  # what was made whole before is not written over
                    wrong = "" if after.kind == "accepted" or kept else f"with room again: {after.line}"
                yield found("A2", f"{line}, {room} bytes left", ended, wrong)


def full_disk_under_a_picture(world: Path, place: Path) -> Iterator[Found]:
    """Row A2b: a picture that is there stays whole where a new one cannot be written."""
    with disk(place) as full:
        folder = copy_whole(world, full / "world")
        before = (folder / "good.png").read_bytes()
        fill(full, 0)
        ended = forked(["sample", "diffusion", "--labels", "1", "0", "--out", "good.png"], folder)
        kept = (folder / "good.png").read_bytes() == before
        yield found("A2b", "sample over a picture", ended, "" if kept else "the good picture is destroyed")


def without_permission(
    world: Path,
    place: Path,
    lines: tuple[str, ...] = WRITERS,
    readers: tuple[tuple[str, str], ...] = READERS,
) -> Iterator[Found]:
    """Row A3: a read-only disk, folders that may not be written to, files that may not be read."""
    for line in possible(world, lines):
        with disk(place) as mounted:
            folder = copy_whole(world, mounted / "world")
            subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
            ended = forked(line.split(), folder)
            yield must_refuse("A3", f"{line}, read-only", ended)
        folder = copy(world, place)
        for inside in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            inside.chmod(0o555)
        ended = forked(line.split(), folder, before=as_others)
        _free(folder)
        yield must_refuse("A3", f"{line}, no permission", ended)
    for file, line in readers:
        folder = copy(world, place)
        path = folder / file
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        path.chmod(0)
        ended = forked(line.split(), folder, before=as_others)
        _free(folder)
        yield must_refuse("A3", f"{file} unreadable", ended)


def places(world: Path, place: Path) -> Iterator[Found]:
    """Row A11: results into a new volume, a link, a dangling link and the working folder, of which none is replaced."""
    made = {"encode tok images": "manifest.json", "export pretrained tok --out": "config.json"}
    made |= {"import official official.ckpt --config official.json --out": "config.json"}
    for line in possible(world, tuple(made)):
        for what in ("volume", "link", "dangling link", "working folder"):
            folder = copy(world, place)
            out = folder / "out"
            if what == "link":
                (folder / "elsewhere").mkdir()
            if "link" in what:
                out.symlink_to("elsewhere")
            if what == "working folder":
                out.mkdir()
            words = [str(folder / word) if (folder / word).exists() else word for word in line.split()]
            with disk(out, "16m") if what == "volume" else nullcontext():
                where = out if what == "working folder" else folder
                ended = forked([*words, "." if where == out else "out"], where)
                whole = (out / made[line]).is_file() and out.is_symlink() == ("link" in what)
            yield found("A11", f"{line}, {what}", ended, "" if whole else f"{ended.kind}, expected a result in it")
            shutil.rmtree(folder)


def possible(world: Path, lines: tuple[str, ...]) -> list[str]:
    """Those commands whose files are there: the official ones come with the golden vectors."""
    return [line for line in lines if "official" not in line or (world / "official.ckpt").exists()]


def must_refuse(row: str, name: str, ended: Ended) -> Found:
    """Found, where nothing but a refusal is right."""
    return found(row, name, ended, "" if ended.kind == "refused" else f"{ended.kind}, expected a refusal")


def found(row: str, name: str, ended: Ended, wrong: str = "") -> Found:
    """What there is to say of an attempt."""
    return Found(row, name, ended.kind, wrong, ended.line)


def half_written(folder: Path) -> str:
    """The first file under its own name that cannot be read; hidden ones may be anything."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        try:
            if path.suffix == ".png" and path.name != "broken.png":
                with Image.open(path) as image:
                    image.load()
            elif path.suffix == ".npz":
                with np.load(path) as file:
                    dict(file)
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    file.keys()
            elif path.suffix in (".pt", ".ckpt", ".pt2"):
                with ZipFile(path) as file:
                    file.testzip()
            elif path.suffix == ".html" and "</html>" not in path.read_text():
                return f"{path.relative_to(folder)} is cut short"
        except (OSError, ValueError, SyntaxError, SafetensorError, BadZipFile) as error:
            return f"{path.relative_to(folder)} is half-written: {error}"
    return ""


def copy_whole(world: Path, to: Path) -> Path:
    """A copy on another disk."""
    shutil.copytree(world, to)
    return to


def _free(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chmod(path, 0o755)
    shutil.rmtree(folder)
