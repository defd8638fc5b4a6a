#!/usr/bin/env bash
# One would guess: `take(n)` of a streamed set is its first n rows and `skip(n)` all others, as the documentation says, so that the two
# are a validation and a training set without a common row, however many processes read either.
# What happens (datasets 5.2.0): with p processes and a set of several files, each takes or skips n / p rows of the files that are its
# own. Which rows these are depends on p. A validation set that one process reads and a training set that four read overlap: below, 75 of
# 100 rows that are held out are trained on, and 75 others are in neither. Nothing is said. Workers of a DataLoader count like processes:
# num_workers=0 for validation and num_workers=4 for training overlap in the same rows. With as many processes and workers for both, or a
# set of one file, there is no overlap.
# Here: src/ifsq/data/stream.py reads rows by their number with `skip(n).iter(size)` in every process, which deals out nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import datasets
from datasets.distributed import split_dataset_by_node

print("datasets", datasets.__version__)
rows = datasets.Dataset.from_dict({"row": range(400)}).to_iterable_dataset(num_shards=4)
held_out, trained_on = rows.take(100), rows.skip(100)


def read(part, processes):
    """The rows that so many processes see together."""
    parts = [split_dataset_by_node(part, rank, processes) if processes > 1 else part for rank in range(processes)]
    return {row["row"] for each in parts for row in each}


overlaps, missing = {}, {}
for processes in ((1, 1), (4, 4), (1, 2), (1, 4)):
    validation, training = read(held_out, processes[0]), read(trained_on, processes[1])
    overlaps[processes] = len(validation & training)
    missing[processes] = 400 - len(validation | training)
    print(f"processes {processes[0]} for validation, {processes[1]} for training: {len(validation)} and {len(training)} rows, "
          f"in both {overlaps[processes]}, in neither {missing[processes]}, right: 0 and 0")
described = {(1, 1): 0, (4, 4): 0, (1, 2): 50, (1, 4): 75}
sys.exit(0 if overlaps == missing == described else 1)
PYTHON
