#!/usr/bin/env bash
# One would guess: a disk that is full under torch.save, or under save_file of safetensors, raises OSError with the system's number
# (ENOSPC, EFBIG), as every write of Python's does, so that "except OSError" can say what happened to which file.
# What happens (torch 2.13.0, safetensors 0.8.0): torch.save to a path raises RuntimeError "unexpected pos 704 vs 598", in which neither
# the file nor the reason stands; to an open file it raises the same with the OSError as its context. save_file raises SafetensorError,
# which is no OSError, with the number in its text alone and no file name.
# Here: src/ifsq/store/files.py gives both an open file or a path of its own, and takes the number out of the context or the text.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 safetensors==0.8.0 numpy
cd "$folder"
ulimit -f 64 # no file above 64 KiB: the system refuses it as it would where no room is left
"$folder/venv/bin/python" - <<'PYTHON'
import errno
import sys

import safetensors
import torch
from safetensors.torch import save_file

print("torch", torch.__version__, "safetensors", safetensors.__version__)
table = {"weight": torch.zeros(1_000_000)}


def to_path():
    torch.save(table, "path.pt")


def to_file():
    with open("file.pt", "wb") as file:
        torch.save(table, file)


def to_safetensors():
    save_file(table, "table.safetensors")


def plain_write():
    with open("plain", "wb") as file:
        file.write(bytes(4_000_000))


raised = {}
for write in (plain_write, to_path, to_file, to_safetensors):
    try:
        write()
    except Exception as error:
        raised[write] = error
        reason = error.__context__
        print(f"{write.__name__}: {type(error).__name__}: {error} (context: {reason!r})")
too_large = isinstance(raised.get(plain_write), OSError) and raised[plain_write].errno == errno.EFBIG
hidden = all(
    write in raised and not isinstance(raised[write], OSError) for write in (to_path, to_file, to_safetensors)
)
nameless = "path.pt" not in str(raised.get(to_path, "path.pt")) and "unexpected pos" in str(raised.get(to_path, ""))
sys.exit(0 if too_large and hidden and nameless else 1)
PYTHON
