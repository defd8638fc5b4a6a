#!/usr/bin/env bash
# One would guess: torch sorts the rows of a float32 matrix on a CPU about as fast as NumPy sorts the same memory, and finds the k-th greatest
# of each likewise.
# What happens (torch 2.13.0 beside NumPy 2.4.6, one thread, x86 with AVX2 or AVX-512): torch takes 20 to 80 times as long to sort rows of
# 16384 and 10 times as long for topk, for it moves a row of indices along and compares one pair at a time: in a language or image model's
# top-p sampling the sort then costs as much as the network.
# Here: top-k and top-p need values alone, which NumPy sorts and partitions, `_kth` and `_descending` in src/ifsq/generators/ar/draw.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import statistics
import sys
import time

import numpy as np
import torch

torch.set_num_threads(1)
print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability(), "numpy", np.__version__)
rows = torch.randn(8, 16384, generator=torch.Generator().manual_seed(0))
ways = {
    "torch.sort": lambda: rows.sort(dim=-1).values,
    "numpy.sort": lambda: torch.from_numpy(np.sort(rows.numpy(), axis=-1)),
    "torch.topk, 1000": lambda: rows.topk(1000, dim=-1).values.amin(dim=-1),
    "numpy.partition, 1000": lambda: torch.from_numpy(np.partition(rows.numpy(), -1000, axis=-1)[:, -1000].copy()),
}
assert torch.equal(ways["torch.sort"](), ways["numpy.sort"]())
assert torch.equal(ways["torch.topk, 1000"](), ways["numpy.partition, 1000"]())
median = {}
for name, way in ways.items():
    taken = []
    for _ in range(21):
        start = time.perf_counter()
        way()
        taken.append((time.perf_counter() - start) * 1e3)
    median[name] = statistics.median(taken)
    print(f"{name}: {median[name]:.2f} ms for 8 rows of 16384")
sort = median["torch.sort"] / median["numpy.sort"]
kth = median["torch.topk, 1000"] / median["numpy.partition, 1000"]
print(f"expected: about the same; found: torch takes {sort:.0f} times as long to sort, {kth:.0f} times for the k-th greatest")
sys.exit(0 if sort > 5 and kth > 2 else 1)
PYTHON
