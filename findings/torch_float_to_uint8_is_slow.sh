#!/usr/bin/env bash
# One would guess: whole numbers from 0 to 255, held as float32, become uint8 at least as fast as they become int16 or int32, for the
# result is smaller.
# What happens (torch 2.13.0, x86 with AVX2 or AVX-512): float32 to int8, int16 and int32 is done many numbers at a time, to uint8 one
# number at a time: five times slower than to int16, so the detour by int16 takes less than half of the time.
# Here: digits of a quantizer become uint8 by way of int16, `whole` in src/ifsq/quantizers/cells.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import statistics
import sys
import time

import torch

torch.set_num_threads(1)
print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability())
numbers = torch.randint(256, (65536,), generator=torch.Generator().manual_seed(0)).float()
ways = {
    "to int8": lambda: numbers.to(torch.int8),
    "to int16": lambda: numbers.to(torch.int16),
    "to int32": lambda: numbers.to(torch.int32),
    "to uint8": lambda: numbers.to(torch.uint8),
    "to int16, then to uint8": lambda: numbers.to(torch.int16).to(torch.uint8),
}
assert torch.equal(ways["to uint8"](), ways["to int16, then to uint8"]())
times = {name: [] for name in ways}
for _ in range(21):
    for name, way in ways.items():
        way()
        start = time.perf_counter()
        for _ in range(50):
            way()
        times[name].append((time.perf_counter() - start) / 50 * 1e6)
median = {name: statistics.median(values) for name, values in times.items()}
for name, value in median.items():
    print(f"{name}: {value:.1f} us for 65536 numbers")
slower = median["to uint8"] / median["to int16"]
detour = median["to uint8"] / median["to int16, then to uint8"]
print(f"expected: to uint8 about as fast as to int16; found: {slower:.1f} times slower, {detour:.1f} times the detour's time")
sys.exit(0 if slower > 2 and detour > 1.3 else 1)
PYTHON
