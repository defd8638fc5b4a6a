#!/usr/bin/env bash
# One would guess: a PIL image that `litdata.optimize` writes comes back from `StreamingDataset` with the colours it had, in every mode.
# What happens (litdata 0.2.76), without an error or a warning:
# - an image with a palette (mode P, as many PNGs and all GIFs open) is stored as its numbers alone, and comes back black;
# - what is transparent by a colour alone (tRNS of a PNG) comes back opaque;
# - of a JPEG that was opened from a file, the file's bytes are stored: what was done to the image in place is lost.
# RGB, RGBA and grey that are no JPEG are right.
# Here: a picture is made RGB when it is decoded (src/ifsq/data/decode.py), and images are written from arrays.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 pillow==13.0.0 litdata==0.2.76
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import io
import sys
from importlib.metadata import version

import numpy as np
from litdata.streaming.serializers import _SERIALIZERS, JPEGSerializer
from PIL import Image

print(", ".join(f"{name} {version(name)}" for name in ("litdata", "pillow")))


def stored(image):
    """As the writer chooses the serializer: the first that can."""
    serializer = next(each for each in _SERIALIZERS.values() if each.can_serialize(image))
    content = serializer.serialize(image)[0]
    return Image.open(io.BytesIO(content)) if isinstance(serializer, JPEGSerializer) else serializer.deserialize(content)


colours = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255], [250, 250, 250]]], np.uint8))
indexed = Image.new("P", (3, 1))
indexed.putpalette([255, 0, 0, 0, 0, 255, 250, 250, 250])
indexed.putdata([0, 1, 2])
colours.save("rgb.png")
colours.convert("L").save("grey.png")
colours.convert("RGBA").save("rgba.png")
colours.save("clear.png", transparency=(0, 0, 255))
indexed.save("palette.png")
indexed.save("palette.gif")
found = {}
for name in ("rgb.png", "grey.png", "rgba.png", "clear.png", "palette.png", "palette.gif"):
    right = np.asarray(Image.open(name).convert("RGBA"))[0]
    got = np.asarray(stored(Image.open(name)).convert("RGBA"))[0]
    same_colours, same = np.array_equal(got[:, :3], right[:, :3]), np.array_equal(got, right)
    found[name] = "right" if same else "opaque" if same_colours else "black" if not got[:, :3].any() else "other"
    print(f"{name}: right {right.tolist()}, found {got.tolist()}: {found[name]}")

Image.new("RGB", (64, 64), "white").save("white.jpg")
edited = Image.open("white.jpg")
edited.thumbnail((16, 16))
edited.paste("black", (0, 0, 16, 16))
got = stored(edited)
found["edited JPEG"] = "the file" if (got.size, got.getpixel((0, 0))) == ((64, 64), (255, 255, 255)) else "other"
print(f"JPEG, edited in place: right {edited.size}, {edited.getpixel((0, 0))}, found {got.size}, {got.getpixel((0, 0))}")
described = dict.fromkeys(("rgb.png", "grey.png", "rgba.png"), "right")
described |= {"clear.png": "opaque", "palette.png": "black", "palette.gif": "black", "edited JPEG": "the file"}
sys.exit(0 if found == described else 1)
PYTHON
