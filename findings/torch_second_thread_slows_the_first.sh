#!/usr/bin/env bash
# One would guess: a parallel operation of torch in a second Python thread costs what it takes, and when it is over the first thread
# works on as before.
# What happens (torch 2.13.0 for the CPU, Linux, its own libgomp): the second thread gets a set of OpenMP threads of its own, which stays
# as long as it lives. There are then more OpenMP threads than processors, so libgomp lets none of them spin while it waits: every small
# parallel operation of the first thread waits for the system instead, and takes a multiple of its time for good. With GOMP_SPINCOUNT
# unset or not, with the second thread idle or not.
# Here: what works in the background (checks of checkpoints) does so in pieces that torch computes in the calling thread,
# `refuse_infinite(serial=True)` in src/ifsq/store/weights.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
env -u OMP_NUM_THREADS -u GOMP_SPINCOUNT -u OMP_WAIT_POLICY "$folder/venv/bin/python" - <<'PYTHON'
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import torch

processors = len(os.sched_getaffinity(0))
torch.set_num_threads(processors)
print("torch", torch.__version__, "processors", processors)
if processors < 2:
    sys.exit("needs two processors")
numbers = torch.ones(1 << 17)


def microseconds():
    times = []
    for _ in range(15):
        start = time.perf_counter()
        for _ in range(300):
            numbers.mul_(1.0)
        times.append((time.perf_counter() - start) / 300 * 1e6)
    return statistics.median(times)


microseconds()
before = microseconds()
with ThreadPoolExecutor(1) as second:
    second.submit(lambda: float(torch.ones(1 << 20).sum())).result()
    after = microseconds()
gone = microseconds()
print(f"a product of {numbers.numel()} numbers in the first thread: {before:.0f} us")
print(f"after one sum in a second thread, which lives on: {after:.0f} us")
print(f"when that thread has ended: {gone:.0f} us")
print(f"expected: the same; found: {after / before:.1f} times")
sys.exit(0 if after > 1.4 * before else 1)
PYTHON
