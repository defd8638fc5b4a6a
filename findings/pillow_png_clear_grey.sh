#!/usr/bin/env bash
# One would guess: a grey PNG of 2 or 4 bits, one of whose greys stands for transparent (tRNS), is transparent there once it is RGBA.
# What happens (Pillow 13.0.0): it is opaque everywhere. Pixels are widened to 8 bits (5 of 15 becomes 85), the grey of tRNS
# stays as it was (5), and the two are compared. 1 and 8 bits are right; so are 2 and 4 bits where the grey is black.
# Here: src/ifsq/data/decode.py widens the grey as well.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct
import sys
import zlib

import PIL
from PIL import Image

print("Pillow", PIL.__version__)


def png(bits, row, clear):
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 8 // bits, 1, bits, 0, 0, 0, 0)),
        (b"tRNS", struct.pack(">H", clear)),
        (b"IDAT", zlib.compress(bytes([0, row]))),
        (b"IEND", b""),
    ]
    packed = [struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in parts]
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


wrong = {}
for bits, row, clear in ((1, 0b01010101, 1), (2, 0b00011011, 1), (4, 0x5A, 5), (8, 5, 5)):
    levels = [row >> bits * place & (1 << bits) - 1 for place in reversed(range(8 // bits))]
    expected = [0 if level == clear else 255 for level in levels]
    found = list(Image.open(png(bits, row, clear)).convert("RGBA").getchannel("A").tobytes())
    wrong[bits] = found != expected
    print(f"{bits} bits, levels {levels}, clear is {clear}: expected alpha {expected}, found {found}")
sys.exit(0 if wrong == {1: False, 2: True, 4: True, 8: False} else 1)
PYTHON
