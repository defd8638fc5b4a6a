#!/usr/bin/env bash
# One would guess: an image opens whatever its colour profile says, since Pillow hands profiles out and does not apply them; a JPEG or TIFF
# does with a profile of any length.
# What happens (Pillow 13.0.0): a PNG whose profile is longer than 1 MB, as those of printers are, cannot be opened at all; the limit
# is the one that its documentation names for text.
# Here: src/ifsq/data/decode.py reads such a PNG once more without the parts that say nothing about its pixels.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys

import PIL
from PIL import Image

print("Pillow", PIL.__version__)
opened = {}
for form in ("JPEG", "TIFF", "PNG"):
    for length in (1 << 20, (1 << 20) + 1):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, form, icc_profile=bytes(length))
        try:
            with Image.open(file) as image:
                image.load()
            told = "opened"
        except ValueError as error:
            told = f"ValueError: {error}"
        opened[form, length] = told == "opened"
        print(f"{form} with a profile of {length} bytes: expected opened, found {told}")
expected = {(form, length): (form, length) != ("PNG", (1 << 20) + 1) for form, length in opened}
sys.exit(0 if opened == expected else 1)
PYTHON
