#!/usr/bin/env bash
# One would guess: Pillow gives a TIFF's grey as it looks, whatever its layout: it inverts 8 bits where zero is white, so 16 bits too;
# a compressed file holds the pixels of the plain one; channels that lie in planes have the values of those that lie side by side.
# What happens (Pillow 13.0.0), without an error or a warning:
# - 16 bits, zero is white, little-endian: not inverted (8 bits are), so black and white are exchanged;
# - 16 bits with signs, big-endian: read right when plain, with their two bytes exchanged when compressed;
# - three planes of 16 bits, plain: read as if a value were two pixels of 8 bits, half of the plane is lost;
# - 12 bits: 0 to 4095 in the mode I;16, whose white is 65535: nearly black once converted.
# Here: src/ifsq/data/deep.py inverts and scales by the file's tags, and refuses signs and planes of 16 bits.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0 numpy==2.4.6 tifffile==2026.3.3
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct
import sys

import numpy as np
import PIL
import tifffile
from PIL import Image

print("Pillow", PIL.__version__)


def read(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, metadata=None, **options)
    return np.asarray(Image.open(file))


seen = []
for kind in ("u1", "u2"):
    values = np.array([[0, np.iinfo(kind).max]], kind)
    found = read(values, byteorder="<", photometric="miniswhite")
    seen.append(found.tolist() == values.tolist())
    print(f"zero is white, {kind}: stored {values.tolist()}, expected {values[:, ::-1].tolist()}, found {found.tolist()}")

values = np.array([[1, -2]], "i2")
for compression in (None, "zlib"):
    found = read(values, byteorder=">", compression=compression)
    seen.append(found.tolist() != values.tolist())
    print(f"signs, big-endian, compression {compression}: expected {values.tolist()}, found {found.tolist()}")

planes = np.arange(12, dtype="u2").reshape(3, 2, 2) * 5000
found = np.moveaxis(read(planes, byteorder="<", photometric="rgb", planarconfig="separate"), -1, 0)
seen.append(abs(found.astype(int) - planes / 257).max() > 2)
print(f"red plane of 16 bits: expected about {(planes[0] / 257).round().astype(int).tolist()}, found {found[0].tolist()}")

tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: 1, 279: 3}
directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
image = Image.open(io.BytesIO(b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + bytes([0, 15, 255])))
found = np.asarray(image)
seen.append(image.mode == "I;16" and found.tolist() == [[0, 4095]])
print(f"12 bits, black and white: mode {image.mode}, expected [[0, 65535]], found {found.tolist()}")

expected = [False, True, False, True, True, True]
print("surprises as described:", seen == expected)
sys.exit(0 if seen == expected else 1)
PYTHON
