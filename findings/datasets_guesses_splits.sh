#!/usr/bin/env bash
# One would guess: load_dataset of a folder of images splits it by folders called train and test, takes other folders for classes,
# and gives every image once.
# What happens (datasets 5.2.0): words of splits count in lower case only, and anywhere in a path, also as a part of a name. Train/ and
# Test/ are one split, in which tests are trained on; beside a class called train all other classes are left out; the images of
# train/test_tube are in both splits. Nothing is said.
# Here: where the library takes other images for a split than the folders say, hf:FOLDER is refused, src/ifsq/data/containers/hf_files.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pillow==13.0.0
cd "$folder"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys
from pathlib import Path

import datasets
from PIL import Image

print("datasets", datasets.__version__)
datasets.disable_progress_bars()


def read(case, *names):
    """The images of every split, by their paths in the folder."""
    for name in names:
        Path(case, name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(Path(case, name))
    found = datasets.load_dataset(str(Path(case).absolute()))
    undecoded = {split: rows.cast_column("image", datasets.Image(decode=False)) for split, rows in found.items()}
    return {
        split: sorted(str(Path(row["image"]["path"]).relative_to(Path(case).absolute())) for row in rows)
        for split, rows in undecoded.items()
    }


cases = {
    "other case": (
        ["Train/cat/0.png", "Test/cat/1.png"],
        {"train": ["Test/cat/1.png", "Train/cat/0.png"]},
    ),
    "a class called train": (
        ["bus/0.png", "car/1.png", "train/2.png"],
        {"train": ["train/2.png"]},
    ),
    "a class with test in its name": (
        ["train/mug/0.png", "train/test_tube/1.png"],
        {"train": ["train/mug/0.png", "train/test_tube/1.png"], "test": ["train/test_tube/1.png"]},
    ),
}
as_described = True
for case, (names, described) in cases.items():
    found = read(case, *names)
    as_described &= found == described
    print(f"{case}: {names} is read as {found}")
sys.exit(0 if as_described else 1)
PYTHON
