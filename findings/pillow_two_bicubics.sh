#!/usr/bin/env bash
# One would guess: BICUBIC is one filter in Pillow, and a straight ramp of grey stays straight under it, as under BILINEAR.
# What happens (Pillow 13.0.0): `resize` has the cubic of Keys with a = -0.5, under which a ramp stays a ramp. `rotate` and `transform`
# have a = -1: between two pixels a ramp of one level a pixel is off by up to 0.094 levels, so that a quarter of a pixel counts as
# 0.34. A soft gradient that is turned or shifted gets ripples with the spacing of pixels, where BILINEAR leaves none; enlarged
# four times by `transform` it is another picture than by `resize`. The documentation speaks of "a 4x4 environment".
# Here: Pillow cuts and resizes only; what is turned and shifted is so bilinearly, by torch (pretraining/views.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import PIL
from PIL import Image
from PIL.Image import Resampling, Transform

print("Pillow", PIL.__version__)
ramp = np.tile(np.arange(32, dtype="f4"), (32, 1))
image = Image.fromarray(ramp)


def error(found, right):
    """The greatest in a row's middle, away from the border."""
    row = np.asarray(found)[16]
    inside = slice(len(row) // 4, -len(row) // 4)
    return float(abs(row - right)[inside].max())


def shifted(by, filter):
    return error(image.transform((32, 32), Transform.AFFINE, (1, 0, by, 0, 1, 0), filter), np.arange(32) + by)


def keys(a, t):
    """The value at t of a ramp 0, 1 under the cubic with that a; the pixels around are -1, 0, 1, 2."""
    near, far = (lambda x: (a + 2) * x**3 - (a + 3) * x**2 + 1), (lambda x: a * (x**3 - 5 * x**2 + 8 * x - 4))
    return -far(1 + t) + near(1 - t) + 2 * far(2 - t)


for by in (0.25, 0.5, 0.75):
    print(f"shifted by {by}: greatest error BILINEAR {shifted(by, Resampling.BILINEAR):.4f}, BICUBIC {shifted(by, Resampling.BICUBIC):.4f}; "
          f"of the cubic with a = -0.5 {abs(keys(-0.5, by) - by):.4f}, with a = -1 {abs(keys(-1, by) - by):.4f}")
places = (np.arange(128) + 0.5) / 4 - 0.5
by_resize = error(image.resize((128, 32), Resampling.BICUBIC), places)
by_transform = error(image.transform((128, 32), Transform.AFFINE, (0.25, 0, 0, 0, 1, 0), Resampling.BICUBIC), places)
print(f"enlarged four times, BICUBIC: greatest error of resize {by_resize:.4f}, of transform {by_transform:.4f}")
wrong = shifted(0.25, Resampling.BICUBIC)
as_described = abs(wrong - abs(keys(-1, 0.25) - 0.25)) < 1e-4 and wrong > 0.09 and shifted(0.25, Resampling.BILINEAR) < 1e-4
as_described &= by_resize < 1e-4 and by_transform > 0.08
sys.exit(0 if as_described else 1)
PYTHON
