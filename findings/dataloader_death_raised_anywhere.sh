#!/usr/bin/env bash
# One would guess: when a worker of a DataLoader is killed (by a system short of memory, say), next(iterator) raises, so a
# try around next() knows of it, and the lines between two batches are not touched.
# What happens (torch 2.13.0): a handler of SIGCHLD raises first, on whatever line the main thread is: here inside of a `with`
# that writes a file, which is left half-written. A run can be hit in the middle of saving itself.
# Here: workers are processes of our own, whose death is seen where their batch is asked for, src/ifsq/data/workers.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat >"$folder/death.py" <<'PYTHON'
import multiprocessing
import os
import signal
import sys
import time

import torch
from torch.utils.data import DataLoader


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 100

    def __getitem__(self, index):
        return index


if __name__ == "__main__":
    print("torch", torch.__version__)
    where = "nowhere"
    batches = iter(DataLoader(Numbers(), batch_size=1, num_workers=1))
    next(batches)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    try:
        with open(sys.argv[1], "w") as file:
            file.write("first half, ")
            time.sleep(2)  # any work between two batches
            file.write("second half")
    except RuntimeError as error:
        where = "between two batches"
        print(f"raised while a file was written: {type(error).__name__}: {error}")
    try:
        next(batches)
    except RuntimeError as error:
        print(f"raised by next(): {type(error).__name__}: {error}")
    print("the file holds:", open(sys.argv[1]).read())
    print("expected: raised by next(), and a whole file; found: raised", where)
    sys.stdout.flush()
    os._exit(0 if where == "between two batches" else 1)
PYTHON
"$folder/venv/bin/python" "$folder/death.py" "$folder/file.txt"
