#!/usr/bin/env bash
# One would guess: IMREAD_REDUCED_COLOR_8 of OpenCV, "the image size reduced 1/8", gives an eighth of a picture whatever its format, as
# averages of 8 x 8 pixels, which is what it is known for with JPEG.
# What happens (OpenCV 5.0.0): a JPEG is reduced by its decoder, which averages, to a size rounded up. Any other format is decoded in
# full and then sampled bilinearly from 2 x 2 of every 8 x 8 pixels, to a size rounded down. Of white lines at every eighth column of a
# black picture a JPEG keeps the right mean, and a PNG is all black; 61 x 63 pixels are 8 x 8 of the one and 7 x 7 of the other. A set
# of mixed formats so has two kinds of small pictures.
# Here: OpenCV is not used; files are decoded in full (src/ifsq/data/decode.py) and then resized by filters that average (transforms.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet opencv-python-headless==5.0.0.93 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import cv2
import numpy as np

print("OpenCV", cv2.__version__)
lines = np.zeros((64, 64, 3), np.uint8)
lines[:, ::8] = 255
uneven = np.full((63, 61, 3), 100, np.uint8)
options = {".jpg": [cv2.IMWRITE_JPEG_QUALITY, 100], ".png": [], ".bmp": [], ".webp": []}
means, sizes = {}, {}
for extension, how in options.items():
    for factor in (2, 4, 8):
        flag = getattr(cv2, f"IMREAD_REDUCED_COLOR_{factor}")
        means[extension, factor] = float(cv2.imdecode(cv2.imencode(extension, lines, how)[1], flag).mean())
        sizes[extension, factor] = cv2.imdecode(cv2.imencode(extension, uneven, how)[1], flag).shape[:2]
        print(f"{extension}, 1/{factor}: mean {means[extension, factor]:.1f}, right {lines.mean():.1f}; 63 x 61 becomes {sizes[extension, factor]}")
as_described = all(abs(means[".jpg", factor] - lines.mean()) < 1 for factor in (2, 4, 8)) and sizes[".jpg", 8] == (8, 8)
for extension in (".png", ".bmp", ".webp"):
    as_described &= means[extension, 4] == means[extension, 8] == 0 and sizes[extension, 8] == (7, 7)
sys.exit(0 if as_described else 1)
PYTHON
