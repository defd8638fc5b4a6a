#!/usr/bin/env bash
# One would guess: torch.load notices a damaged file. What torch.save writes is a zip archive that holds a CRC-32 of every tensor, and
# torch.serialization.set_crc32_options warns that a file without them may fail to be read by other programs.
# What happens (torch 2.13.0): torch.load looks at no checksum, mapped or not; every flipped bit of a tensor is taken as its value.
# Here: src/ifsq/store/pickles.py compares the checksums with Python's zipfile, a megabyte at a time, before anything is loaded.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import zipfile

import torch

print("torch", torch.__version__)
torch.save({"weight": torch.ones(1000)}, "whole.pt")
whole = open("whole.pt", "rb").read()
place = whole.index(torch.ones(1000).numpy().tobytes())
noticed, by_zipfile = {False: 0, True: 0}, 0
for number in range(40):
    byte, bit = place + 97 * number, number % 8
    with open("damaged.pt", "wb") as file:
        file.write(whole[:byte] + bytes([whole[byte] ^ 1 << bit]) + whole[byte + 1 :])
    for mmap in noticed:
        try:
            torch.load("damaged.pt", weights_only=True, mmap=mmap)
        except RuntimeError:
            noticed[mmap] += 1
    by_zipfile += zipfile.ZipFile("damaged.pt").testzip() is not None
print(f"flipped bits noticed, of 40: by zipfile {by_zipfile}, by torch.load {noticed[False]}, with mmap=True {noticed[True]}")
sys.exit(0 if by_zipfile == 40 and noticed == {False: 0, True: 0} else 1)
PYTHON
