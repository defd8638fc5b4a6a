"""Tar shards, images and npz files."""

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from tests.fuzz import texts
from tests.fuzz.damaged import (
    Case,
    Table,
    as_plain,
    as_table,
    damaged_bytes,
    damaged_tables,
)
from tests.fuzz.made import Made, as_list, files_in, latin

from ifsq.data.containers.shards import Shards
from ifsq.data.decode import read_image
from ifsq.data.npz import Npz


def tars(folder: Path) -> Made:
    os.environ["IFSQ_CACHE"] = str(folder / "cache")
    image = texts.image("PNG").decode("latin-1")
    members = [
        {"name": f"a/{number}.{ending}", "content": content, "size": None, "type": "0", "link": ""}
        for number in range(3)
        for ending, content in (("png", image), ("cls", "1"), ("json", '{"label": 1}'))[: 2 + number % 2]
    ]

    def read(name: str) -> None:
        found = Shards("shards", [folder / name])
        found.classes()
        for position in range(len(found.names)):
            found.read(position)

    parse = files_in(folder, read)

    def apart(case: Case) -> None:
        try:
            parse(case)
        finally:
            (folder / "x.tar").unlink(missing_ok=True)
            for kept in (folder / "cache").rglob("*.json"):
                kept.unlink()

    valid = {"x.tar": _tar(as_table(members))}
    strategy = damaged_tables({"x.tar": members}, lambda _, table: _tar(table)) | damaged_bytes(valid)
    return Made(strategy, apart, valid.items())


def _tar(table: Any) -> bytes:
    """An archive of members, each header with a right checksum, whatever else it says."""
    parts = []
    for member in as_list(table):
        told = dict(member) if isinstance(member, Table) else {}
        content = latin(told.get("content"))
        size = told.get("size")
        size = len(content) if not isinstance(size, int) or isinstance(size, bool) else size
        octal = b"%011o" % size if 0 <= size < 8**11 else (2**95 + size % 2**90).to_bytes(12, "big")
        header = bytearray(512)
        for at, length, value in (
            *((0, 100, latin(told.get("name"))), (100, 8, b"0000644"), (124, 12, octal), (136, 12, b"00000000000")),
            *((148, 8, b" " * 8), (156, 1, latin(told.get("type"))), (157, 100, latin(told.get("link")))),
            *((257, 8, b"ustar\x0000"),),
        ):
            header[at : at + length] = value[:length].ljust(length, b" " if at == 148 else b"\0")
        header[148:156] = b"%06o\0 " % sum(header)
        parts.append(bytes(header) + content + bytes(-len(content) % 512))
    return b"".join(parts) + bytes(1024)


def images(folder: Path) -> Made:
    valid = texts.images()
    chunks = _chunks(valid["PNG"])

    def parse(case: Case) -> None:
        read_image("picture", case[1], max_pixels=2**20)

    strategy = damaged_bytes(valid) | damaged_tables({"PNG": chunks}, lambda _, table: _png(table))
    return Made(
        strategy,
        parse,
        [*((name, one) for name, one in valid.items() if "floats" not in name), ("PNG", _png(as_table(chunks)))],
    )


def _chunks(content: bytes) -> list[list[str]]:
    """Names and contents of the parts of a PNG."""
    at, found = 8, []
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        part = content[at + 4 : at + 8 + length].decode("latin-1")
        found.append([part[:4], part[4:]])
        at += 12 + length
    return found


def _png(table: Any) -> bytes:
    """A PNG of parts, each with a right checksum."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for chunk in as_list(table):
        name, content = ([*map(latin, chunk), b"", b""] if isinstance(chunk, list) else [b"IDAT", b""])[:2]
        body = name[:4].ljust(4, b"x") + content
        parts.append(struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body)))
    return b"".join(parts)


def npz(folder: Path) -> Made:
    valid = io.BytesIO()
    np.savez(valid, arr_0=np.zeros((2, 4, 4, 3), np.uint8), arr_1=np.arange(2))
    headers = {name: {"descr": "|u1", "fortran_order": False, "shape": [2, 4, 4, 3]} for name in ("arr_0", "arr_1")}

    def read(name: str) -> None:
        found = Npz(folder / name)
        for array in found.members:
            found.array(array)
            list(found.rows(array, [[0]]))

    def write(_: str, table: Any) -> bytes:
        """An archive with right checksums of arrays whose headers say anything."""
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            for name, header in as_plain(table).items() if isinstance(as_plain(table), dict) else ():
                if isinstance(header, dict) and "shape" in header and isinstance(header["shape"], list):
                    header = header | {"shape": tuple(header["shape"])}
                text = repr(header).encode("utf-8", "replace")[:60_000] + b"\n"
                body = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(96)
                archive.writestr(f"{name[:100]}.npy".encode("utf-8", "replace").decode(), body)
        return made.getvalue()

    strategy = damaged_bytes({"x.npz": valid.getvalue()}) | damaged_tables({"x.npz": headers}, write)
    return Made(
        strategy, files_in(folder, read), [("x.npz", one) for one in (valid.getvalue(), write("", as_table(headers)))]
    )
