"""Rows B2 and C1 to C6: what comes from other people. Saved models, shards, images, lists, pickles, names, tables.

Nothing here does harm: what would run a program leaves a mark, and what would ask for memory says large numbers.
"""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tests.faults.cases import Case
from tests.faults.manifests import leaves, must_refuse, set_value
from tests.faults.trial import Ended
from tests.faults.world import replace

HUGE: tuple[Any, ...] = (
    *(None, True, -1, 0, 1000, 10**9, 10**12, 2**40, 2**63, 10**30, 0.5, 1e308, "", "x", "9" * 5000),
    *([], {}, [4], [10**9], [8] * 1000, {"x": 1}),
)
MARK = "started"
"""What a program or a pickle that was run would leave."""
MARKUP = "<mark-7f3>`_*[x](y)\"'&"


# B2 -------------------------------------------------------------------------------------------------------------------
def saved(world: Path) -> Iterator[Case]:
    """Row B2: every value in the ``config.json`` of saved models by numbers and types that are none of theirs."""
    readers = {
        "saved": "reconstruct saved picture.png --out p",
        "imported_ar": "export official imported_ar --out new.pt",
        "imported_dit": "export official imported_dit --out new.pt",
    }
    for name, line in readers.items():
        file = f"{name}/config.json"
        if (world / file).exists():
            for path in leaves(json.loads((world / file).read_text())):
                for value in HUGE:
                    yield Case(
                        "B2",
                        f"{file}: {'.'.join(map(str, path))} is {json.dumps(value)[:20]}",
                        lambda folder, file=file, path=path, value=value: set_value(folder / file, path, value),
                        tuple(line.split()),
                    )


# C1 -------------------------------------------------------------------------------------------------------------------
def shards(world: Path) -> Iterator[Case]:
    """Row C1: members, labels and patterns of tar shards."""
    picture = _png()
    good = [("a.png", picture), ("a.cls", b"0"), ("b.png", picture), ("b.cls", b"1")]
    contents: dict[str, list[Any]] = {
        "an absolute name": [*good, ("/tmp/c.png", picture), ("/tmp/c.cls", b"1")],
        "a name of the parent": [*good, ("../c.png", picture), ("../c.cls", b"1")],
        "a name of two lines": [*good, ("c\nd.png", picture)],
        "a name with a code for terminals": [*good, ("c\x1b[31m.png", picture)],
        "a name twice": [*good, ("a.png", picture)],
        "a link out": [*good, _member("c.png", kind=tarfile.SYMTYPE, link="/etc/passwd")],
        "a hard link": [*good, _member("c.png", kind=tarfile.LNKTYPE, link="/etc/passwd")],
        "a FIFO": [*good, _member("c.png", kind=tarfile.FIFOTYPE)],
        "a device": [*good, _member("c.png", kind=tarfile.CHRTYPE)],
        "no picture": [("a.txt", b"x")],
        "a broken picture": [*good, ("c.png", b"no picture"), ("c.cls", b"1")],
        "a label missing": [*good, ("c.png", picture)],
        "a label of other bytes": [*good[:3], ("b.cls", b"\xff\xfe")],
        "a label of a megabyte": [*good[:3], ("b.cls", b"x" * 2**20)],
        "a label below 0": [*good[:3], ("b.cls", b"-1")],
        "a label of 5000 digits": [*good[:3], ("b.cls", b"9" * 5000)],
        "a label of two lines": [*good[:3], ("b.cls", b"x\ny")],
        **{f"JSON {text[:12]!r}": [("a.png", picture), ("a.json", text), *good[2:]] for text in JSON},
    }
    for size in (2**33, 2**60, 2**62, 2**70, 10**6):
        contents[f"a label that says {size} bytes"] = [*good, _member("c.cls", size=size)]
        contents[f"a picture that says {size} bytes"] = [*good, _member("c.png", size=size)]
    for what, members in contents.items():
        yield _shard(what, _tar(members))
    whole = _tar(good)
    for length in (0, 1, 511, 512, 1024, len(whole) - 1024, len(whole) - 1):
        yield _shard(f"cut to {length} bytes", whole[:length])
    yield _shard("twice", whole * 2)
    yield _shard("compressed", zlib_of(whole))
    for pattern in (
        "x{0..999999999}.tar",
        "x{0..999}{0..999}{0..999}.tar",
        "x{0..3.tar",
        "x{3..0}.tar",
        "x{{0}}.tar",
        "[.tar",
    ):
        yield Case(
            "C1", f"pattern {pattern}", lambda folder: None, ("encode", "tok", pattern, "out", "--size", "16"), _refused
        )


JSON = (
    *(
        b"",
        b"[]",
        b"null",
        b'{"label": null}',
        b'{"label": [1]}',
        b'{"label": true}',
        b'{"label": 0.5}',
        b'{"label": "\\ud800"}',
    ),
    *(
        b'{"label": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"label": "' + b"x" * 5000 + b'"}',
        b"\xff",
        b'{"label": 1e999}',
    ),
)


def _shard(what: str, content: bytes) -> Case:
    line = ("encode", "tok", "odd.tar", "out", "--size", "16", "--broken", "refuse")
    return Case("C1", what, lambda folder: (folder / "odd.tar").write_bytes(content), line, _nothing_beside)


def _tar(members: list[Any]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for member in members:
            if isinstance(member, bytes):  # a header as it is
                archive.fileobj.write(member)
                archive.offset += len(member)
                continue
            name, content = member
            told = tarfile.TarInfo(name)
            told.size = len(content)
            archive.addfile(told, io.BytesIO(content))
    return made.getvalue()


def _member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """A header without content."""
    told = tarfile.TarInfo(name)
    told.size, told.type, told.linkname = size, kind, link
    return told.tobuf(tarfile.GNU_FORMAT)


def zlib_of(content: bytes) -> bytes:
    """Compressed."""
    import gzip

    return gzip.compress(content)


# C2 -------------------------------------------------------------------------------------------------------------------
def images(world: Path) -> Iterator[Case]:
    """Row C2: what may lie in a folder under the name of a picture."""
    line = ("encode", "tok", "odd", "out", "--size", "16", "--broken", "refuse")
    arranged: dict[str, Callable[[Path], Any]] = {
        "a FIFO": os.mkfifo,
        "a folder": Path.mkdir,
        "a dangling link": lambda path: path.symlink_to("nowhere"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "/dev/zero": lambda path: path.symlink_to("/dev/zero"),
        "/dev/null": lambda path: path.symlink_to("/dev/null"),
        "PostScript": lambda path: path.write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
        ),
        "pixels beyond memory": lambda path: path.write_bytes(_png(2**16, 2**15)),
        "no pixels": lambda path: path.write_bytes(_png(0, 0)),
        "more pixels than Pillow allows": lambda path: path.write_bytes(_png(2**30, 2**30)),
        "a strip": lambda path: Image.new("RGB", (1, 60_000)).save(path, "PNG"),
    }
    for form in ("ICO", "ICNS", "TGA", "PCX", "SGI", "DDS", "IM", "EPS", "PDF", "MPO"):
        arranged[f"the format {form}"] = lambda path, form=form: Image.new("RGB", (16, 16)).save(path, form)
    for what, put in arranged.items():
        fine = what in ("a folder", "a strip", "the format MPO")  # of no harm: passed over, read, refused or not
        judge = _not_started if fine else lambda folder, ended: must_refuse(ended) or _not_started(folder, ended)
        yield Case("C2", what, lambda folder, put=put: put(_odd(folder) / "odd.png"), line, judge, _watched)
    for name in (b"new\nline.png", b"esc\x1b[31m.png", b"\xff\xfe.png", b"a" * 251 + b".png", b"-x.png", b" .png"):
        yield Case(
            "C2",
            f"name {name[:12]!r}",
            lambda folder, name=name: Path(os.fsdecode(bytes(_odd(folder)) + b"/" + name)).write_bytes(_png()),
            line,
            _nothing_beside,
        )


def _odd(folder: Path) -> Path:
    """A folder of two good pictures, and a ``gs`` that would leave a mark."""
    (folder / "bin").mkdir()
    (folder / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {folder / MARK}\n")
    (folder / "bin" / "gs").chmod(0o755)
    place = folder / "odd"
    place.mkdir()
    for name in "ab":
        (place / f"{name}.png").write_bytes(_png())
    return place


def _watched() -> None:
    os.environ["PATH"] = f"{os.getcwd()}/bin:{os.environ['PATH']}"


def _not_started(folder: Path, ended: Ended) -> str:
    return "a program was started" if (folder / MARK).exists() else ""


def _png(width: int = 16, height: int = 16) -> bytes:
    """A picture; of another size than 16 its header alone says so."""
    made = io.BytesIO()
    Image.new("RGB", (16, 16), (9, 200, 90)).save(made, "PNG")
    content = made.getvalue()
    if (width, height) == (16, 16):
        return content
    import zlib

    header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


# C3 -------------------------------------------------------------------------------------------------------------------
def lists(world: Path) -> Iterator[Case]:
    """Row C3: what a list of images may say."""
    good = "images/a/0.png,x\nimages/b/0.png,y\nimages/b/1.png,x\n"
    paths = (
        "nowhere.png",
        "images/a",
        "/dev/zero.png",
        "pipe.png",
        "nul\0.png",
        "~.png",
        "odd.csv",
        "http://127.0.0.1:9/x.png",
    )
    texts = {
        **{f"path {path!r}": f"{good}{path},x\n".encode() for path in paths},
        "a path of surrogates": good.encode() + b"images/\xed\xa0\x80.png,x\n",
        "a path of a megabyte": good.encode() + b"a" * 2**20 + b".png,x\n",
        **{f"label {label[:12]!r}": f"{good}images/a/1.png,{label}\n".encode() for label in LABELS},
        "names twice": b"path,path,label\n" + good.encode(),
        "100 000 columns": b"path,label" + b",x" * 100_000 + b"\n" + good.encode(),
        "an open quote": b'path,label\n"images/a/0.png,x\n',
        "UTF-16": good.encode("utf-16"),
        "a BOM": b"\xef\xbb\xbf" + good.encode(),
        "old ends of lines": good.replace("\n", "\r").encode(),
        "nothing": b"",
        "blank lines": b"\n" * 10_000,
        "a line of a megabyte": b"x" * 2**20,
    }
    for what, content in texts.items():
        yield _list(what, "odd.csv", content)
    for row in (
        *JSON,
        b'{"path": "images/a/0.png", "label": {"x": 1}}',
        b'{"path": 3}',
        b'{"path": "images/a/0.png\\u0000"}',
    ):
        yield _list(f"row {row[:12]!r}", "odd.jsonl", b'{"path": "images/b/0.png", "label": "x"}\n' + row + b"\n")


LABELS = ("", "-1", "1e9", "9" * 5000, "99999999", "x" * 5000, "\x1b[31m", "0.5", "nan", "\u2028")


def _list(what: str, name: str, content: bytes) -> Case:
    def arrange(folder: Path) -> None:
        os.mkfifo(folder / "pipe.png")
        os.symlink("/dev/zero", folder / "zero.png")
        (folder / name).write_bytes(content)

    return Case(
        "C3", what, arrange, ("encode", "tok", name, "out", "--size", "16", "--broken", "refuse"), _nothing_beside
    )


# C4 -------------------------------------------------------------------------------------------------------------------
class _Marks:
    """What leaves a mark where a pickle of it is run."""

    def __reduce__(self) -> Any:
        return os.mkdir, (MARK,)


def pickles(world: Path) -> Iterator[Case]:
    """Row C4: pickles that hold code, refer to themselves or ask for more than they hold, where tensors are read."""
    places = {
        "official.ckpt": "import official official.ckpt --config official.json --out new",
        "llamagen.pt": "import official llamagen.pt --out new",
        "dit.pt": "import official dit.pt --multiplier 1.1 --out new",
        "latents/latents_stats.pt": "import latents latents --out new",
        "saved/model.safetensors": "reconstruct saved picture.png --out p",
        "mid/checkpoints/step_4/optimizer.safetensors": "tokenizer train mid.toml",
        "codes/train_00000.safetensors": "generator train ar.toml --out fresh",
        "samples.npz": "evaluate samples.npz --reference images --size 16 --features pixels --pairs 0 --no-cache",
    }
    loop: list[Any] = []
    loop.append(loop)
    view = torch.zeros(1).expand(10**9)
    contents: dict[str, bytes] = {
        "code": pickle.dumps(_Marks()),
        "code in a table": _saved({"state_dict": {"gen_model": _Marks()}}),
        "code in a file of before 1.6": _saved({"a": _Marks()}, zipped=False),
        "a list that holds itself": _saved({"state_dict": loop}),
        "a tensor that repeats one number": _saved({"model": {"a": view}, "ema": {"a": view}, "more": view}),
        "a tensor that lies about its size": _saved({"a": torch.zeros(4)}).replace(b"K\x04", b"K\xff"),
        "sparse": _saved({"a": torch.eye(3).to_sparse()}),
        "objects of NumPy": _objects(),
        "nothing": _saved({}),
        "a number": _saved(3),
        "5000 tables inside each other": pickle.dumps({"a": 1})[:2] + b"}" * 5000 + b".",
    }
    for file, line in places.items():
        if (world / file).exists():
            for what, content in contents.items():
                yield Case(
                    "C4",
                    f"{file}: {what}",
                    lambda folder, file=file, content=content: replace(folder / file, content),
                    tuple(line.split()),
                    lambda folder, ended: must_refuse(ended) or _not_started(folder, ended),
                )


def _saved(value: Any, zipped: bool = True) -> bytes:
    made = io.BytesIO()
    torch.save(value, made, _use_new_zipfile_serialization=zipped)
    return made.getvalue()


def _objects() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive, archive.open("arr_0.npy", "w") as file:
        np.lib.format.write_array(file, np.array([_Marks()], dtype=object), allow_pickle=True)
    return made.getvalue()


# C5 -------------------------------------------------------------------------------------------------------------------
def names(world: Path) -> Iterator[Case]:
    """Row C5: markup in what the report and the model card show."""
    for run in ("tok", "ar"):
        table = json.loads((world / run / "evaluation.json").read_text())
        for path in leaves(table):
            held = table
            for key in path:
                held = held[key]
            if isinstance(held, str) or path[-1] in ("classes", "shown", "left_out", "skipped"):
                value = MARKUP if isinstance(held, str) else [MARKUP]
                yield Case(
                    "C5",
                    f"{run}/evaluation.json: {'.'.join(map(str, path))}",
                    lambda folder, run=run, path=path, value=value: set_value(
                        folder / run / "evaluation.json", path, value
                    ),
                    ("report", run),
                    lambda folder, ended, run=run: _raw(folder / run / "report.html"),
                )
    if (world / "official.ckpt").exists():
        name = f"{MARKUP.replace('/', '')}\n---\n.ckpt"
        yield Case(
            "C5",
            "a checkpoint's name in the model card",
            lambda folder: (folder / "official.ckpt").rename(folder / name),
            ("import", "official", name, "--config", "official.json", "--out", "new"),
            lambda folder, ended: _raw(folder / "new/README.md"),
        )


def _raw(file: Path) -> str:
    if not file.exists():
        return ""
    text = file.read_text()
    if file.suffix == ".md":  # a span of code shows what it holds as it is
        return "a line of a name ends the front matter" if text.count("\n---\n") > 1 else ""
    return "markup stands raw in it" if "<mark-7f3>" in text else ""


# C6 -------------------------------------------------------------------------------------------------------------------
def tables(world: Path) -> Iterator[Case]:
    """Row C6: rows and cards of Hugging Face's folders that name files elsewhere."""
    line = ("encode", "tok", "hf:odd", "out", "--size", "16")
    elsewhere = (
        "../picture.png",
        "/etc/passwd",
        "http://127.0.0.1:9/x.png",
        "file:///etc/passwd",
        "pipe.png",
        "nowhere.png",
    )
    for name in elsewhere:
        rows = "".join(f'{{"file_name": "{one}", "label": 0}}\n' for one in ("a.png", "b.png", name))
        yield _table(f"a row names {name}", "metadata.jsonl", rows, line)
        card = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {name}\n---\n"
        yield _table(f"a card names {name}", "README.md", card, line)


def _table(what: str, file: str, text: str, line: tuple[str, ...]) -> Case:
    def arrange(folder: Path) -> None:
        place = _odd(folder)
        if "pipe" in what:
            os.mkfifo(place / "pipe.png")
        (place / file).write_text(text)

    def own_home() -> None:
        os.environ.update(HF_HOME=f"{os.getcwd()}/home", HF_HUB_OFFLINE="1")

    return Case("C6", what, arrange, line, lambda folder, ended: must_refuse(ended), own_home)


def _nothing_beside(folder: Path, ended: Ended) -> str:
    """Nothing is written but the cache, and that only by a command that was accepted."""
    for place in (folder / "c.png", folder.parent / "c.png", Path("/tmp/c.png")):
        if place.exists():
            return f"{place} was written"
    return "a cache was written" if ended.kind == "refused" and (folder / "out/manifest.json").exists() else ""


def _refused(folder: Path, ended: Ended) -> str:
    return must_refuse(ended)


ROWS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "B2": saved,
    "C1": shards,
    "C2": images,
    "C3": lists,
    "C4": pickles,
    "C5": names,
    "C6": tables,
}
