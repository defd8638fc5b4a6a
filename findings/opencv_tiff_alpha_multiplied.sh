#!/usr/bin/env bash
# One would guess: `cv2.imread` gives the numbers in the file, whatever its format; IMREAD_UNCHANGED stands for "the image as is, with
# alpha channel". The same pixels with alpha as PNG and as TIFF are the same array.
# What happens (OpenCV 5.0.0): of a TIFF of 8 bits with alpha, as Pillow and tifffile write it (unassociated, as PNG's), the colours come
# multiplied by alpha, with IMREAD_UNCHANGED as with IMREAD_COLOR: red of 200 under an alpha of 51 is 40, and under 0 it is gone. PNG,
# lossless WebP and TIFF of 16 bits are not multiplied. Nothing tells the two apart in the array. OpenCV reads back unchanged what it
# has written itself, as that does not say what its fourth channel is.
# Here: OpenCV is not used; src/ifsq/data/decode.py puts pictures with alpha over white, whatever their format.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet opencv-python-headless==5.0.0.93 pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys

import cv2
import numpy as np
import PIL
import tifffile
from PIL import Image

print(f"OpenCV {cv2.__version__}, Pillow {PIL.__version__}, tifffile {tifffile.__version__}")
pixels = np.array([[[200, 100, 50, 255], [200, 100, 50, 51], [200, 100, 50, 0]]], np.uint8).repeat(4, axis=0)
multiplied = pixels.copy()
multiplied[..., :3] = np.rint(pixels[..., :3] * (pixels[..., 3:] / 255))


def by_pillow(form, **options):
    Image.fromarray(pixels).save(file := io.BytesIO(), form, **options)
    return file.getvalue()


def by_tifffile(values, **options):
    tifffile.imwrite(file := io.BytesIO(), values, photometric="rgb", extrasamples=["unassalpha"], metadata=None, **options)
    return file.getvalue()


def by_opencv(extension):
    return cv2.imencode(extension, cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA))[1].tobytes()


cases = {
    "PNG by Pillow": (by_pillow("PNG"), False),
    "WebP by Pillow": (by_pillow("WEBP", lossless=True, exact=True), False),
    "TIFF by Pillow": (by_pillow("TIFF"), True),
    "TIFF by tifffile": (by_tifffile(pixels), True),
    "TIFF by tifffile, zlib": (by_tifffile(pixels, compression="zlib"), True),
    "TIFF by OpenCV": (by_opencv(".tiff"), False),
}
as_described = True
for name, (content, expected) in cases.items():
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content)).convert("RGBA")), pixels), "Pillow reads each of them right"
    stored = np.frombuffer(content, np.uint8)
    as_is = cv2.cvtColor(cv2.imdecode(stored, cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)
    colour = cv2.imdecode(stored, cv2.IMREAD_COLOR_RGB)
    right = multiplied if expected else pixels
    as_described &= np.array_equal(as_is, right) and np.array_equal(colour, right[..., :3])
    print(f"{name}: stored {pixels[0].tolist()}, unchanged {as_is[0].tolist()}, colour {colour[0].tolist()}")
wide = pixels.astype(np.uint16) * 257
found = cv2.cvtColor(cv2.imdecode(np.frombuffer(by_tifffile(wide), np.uint8), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)
print(f"TIFF of 16 bits: stored {wide[0, 1].tolist()}, unchanged {found[0, 1].tolist()}")
sys.exit(0 if as_described and np.array_equal(found, wide) else 1)
PYTHON
