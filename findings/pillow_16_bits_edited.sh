#!/usr/bin/env bash
# One would guess: what Pillow does to a grey picture of 16 bits (a PNG or TIFF, modes I;16 and I;16B) is what it does to one of 8 bits,
# or an error, as `reduce` raises one. `resize` of I;16 is right.
# What happens (Pillow 13.0.0), without an error or a warning:
# - `rotate` and `transform` with BILINEAR or BICUBIC compute with single bytes: an even grey of 40000 becomes 64 and 110;
# - `paste` of a number writes its lower byte twice: 1000 becomes 59624;
# - `resize` of I;16B, which is what a big-endian TIFF opens as, exchanges bytes: neighbours of a ramp jump by tens of thousands;
# - I;16B is saved as JPEG 2000 with its bytes exchanged, and `convert("I;16")` clips it to 255.
# Right are NEAREST, `crop`, `transpose`, and the saving as PNG and TIFF.
# Here: src/ifsq/data/deep.py crops such pictures and brings them to 8 bits before anything else is done.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys

import numpy as np
import PIL
from PIL import Image
from PIL.Image import Resampling, Transform

print("Pillow", PIL.__version__)
seen = {}


def show(case, expected, found, tolerance=0):
    expected, found = np.asarray(expected).astype(int), np.asarray(found).astype(int)
    seen[case] = bool(abs(expected - found).max() > tolerance)
    print(f"{case}: right {expected.tolist()}, found {found.tolist()}")


def middle(image):
    return np.asarray(image)[image.height // 2, image.width // 2]


grey = Image.new("I;16", (9, 9), 40000)
half_a_pixel = (1, 0, 0.5, 0, 1, 0)
show("rotate, NEAREST", 40000, middle(grey.rotate(30)))
show("rotate, BILINEAR", 40000, middle(grey.rotate(30, Resampling.BILINEAR)))
show("rotate, BICUBIC", 40000, middle(grey.rotate(30, Resampling.BICUBIC)))
show("transform, BICUBIC", 40000, middle(grey.transform((9, 9), Transform.AFFINE, half_a_pixel, Resampling.BICUBIC)))
show("resize, BICUBIC", 40000, middle(grey.resize((5, 5), Resampling.BICUBIC)))
grey.paste(1000, (0, 0, 9, 9))
show("paste", 1000, middle(grey))

ramp = (np.arange(16, dtype="u2") * 3000 + 10000)[None].repeat(4, axis=0)
right = Image.fromarray(ramp.astype("f4")).resize((8, 2), Resampling.BICUBIC)
for mode, kind in (("I;16", "<u2"), ("I;16B", ">u2")):
    image = Image.frombytes(mode, (16, 4), ramp.astype(kind).tobytes())
    show(f"{mode}, values", ramp[0, :4], np.asarray(image)[0, :4])
    show(f"{mode}, resize", np.asarray(right)[0].round(), np.asarray(image.resize((8, 2), Resampling.BICUBIC))[0], tolerance=1)
    image.save(file := io.BytesIO(), "JPEG2000")
    show(f"{mode}, JPEG 2000", ramp[0, :4], np.asarray(Image.open(file))[0, :4])
    show(f"{mode}, convert to I;16", ramp[0, :4], np.asarray(image.convert("I;16"))[0, :4])

wrong = {case for case, differs in seen.items() if differs}
described = {"rotate, BILINEAR", "rotate, BICUBIC", "transform, BICUBIC", "paste"}
described |= {f"I;16B, {case}" for case in ("resize", "JPEG 2000", "convert to I;16")}
print("wrong:", sorted(wrong))
sys.exit(0 if wrong == described else 1)
PYTHON
