#!/usr/bin/env bash
# One would guess: a PIL image that is handed to a library to be stored is stored as it is in memory. `thumbnail` and `paste` change an
# image in place, so a map over a set of images that calls them stores small or masked ones.
# What happens: an image that still knows the file it was opened from is stored as that file, and the edit is lost.
# - datasets 5.2.0, without a word: the cell is the file's path, whether PNG or JPEG, by `map` as by `from_dict`;
# - pillow-jxl-plugin 1.3.8: `save` transcodes the JPEG file; a warning speaks of transcoding, not of the edit.
# `resize`, `crop` and `convert` are safe: they make a new image, which knows no file.
# Here: images are written from arrays (data/transforms.py), and no PIL image that knows its file is edited in place.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 pillow==13.0.0 datasets==5.2.0 pillow-jxl-plugin==1.3.8
cd "$folder"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
from importlib.metadata import version
from pathlib import Path

import datasets
import pillow_jxl  # noqa: F401, it registers the format
from PIL import Image

print(", ".join(f"{name} {version(name)}" for name in ("pillow", "datasets", "pillow-jxl-plugin")))
datasets.disable_progress_bars()
for name in ("white.png", "white.jpg"):
    Image.new("RGB", (64, 64), "white").save(name)


def edited(image):
    """A quarter of the size, and black."""
    image.thumbnail((16, 16))
    image.paste("black", (0, 0, 16, 16))
    return image


def by_map(name, edit):
    rows = datasets.Dataset.from_dict({"image": [str(Path(name).absolute())]}).cast_column("image", datasets.Image())
    return rows.map(lambda row: {"image": edit(row["image"])})[0]["image"]


def by_from_dict(name, edit):
    features = datasets.Features(image=datasets.Image())
    return datasets.Dataset.from_dict({"image": [edit(Image.open(name))]}, features=features)[0]["image"]


def by_jxl(name, edit):
    edit(Image.open(name)).save("stored.jxl", lossless=True)
    return Image.open("stored.jxl")


as_described = True
for store in (by_map, by_from_dict, by_jxl):
    for name in ("white.png", "white.jpg"):
        found = store(name, edited)
        made_new = store(name, lambda image: edited(image.copy()))
        lost = (found.size, found.convert("L").getextrema()) == ((64, 64), (255, 255))
        safe = (made_new.size, made_new.convert("L").getextrema()) == ((16, 16), (0, 0))
        expected = name.endswith("jpg") or store in (by_map, by_from_dict)
        as_described &= lost == expected and safe
        print(f"{store.__name__}, {name}: right is 16 x 16 and black; edited in place {'x'.join(map(str, found.size))}, "
              f"{found.convert('L').getextrema()}; edited after copy() {'x'.join(map(str, made_new.size))}")
sys.exit(0 if as_described else 1)
PYTHON
