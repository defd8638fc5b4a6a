#!/usr/bin/env bash
# One would guess: on a processor with AVX-512 bf16, where bfloat16 matrices are multiplied faster than float32 ones, the gradient of
# scaled_dot_product_attention takes no longer in bfloat16 than in float32.
# What happens (torch 2.13.0, CPU): with short sequences it takes 3 times as long with 64 positions, 10 times and more with 16, so that a small
# transformer trains slower under bf16 autocast than without; casting to float32 beforehand does nothing, for autocast casts back.
# Here: attention of fewer than 256 positions trains in float32 with autocast off around it, `_attend` in src/ifsq/nn/attention.py.
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
import torch.nn.functional as F

torch.set_num_threads(1)
print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability())
slower = {}
for positions in (16, 64):
    times = {torch.float32: [], torch.bfloat16: []}
    for _ in range(21):
        for dtype, taken in times.items():
            q, k, v = (torch.randn(32, 4, positions, 32, dtype=dtype, requires_grad=True) for _ in range(3))
            out = F.scaled_dot_product_attention(q, k, v)
            start = time.perf_counter()
            out.backward(torch.ones_like(out))
            taken.append((time.perf_counter() - start) * 1e3)
    full, half = (statistics.median(taken) for taken in times.values())
    slower[positions] = half / full
    print(f"{positions} positions, 32 x 4 heads of 32: gradient {full:.2f} ms in float32, {half:.2f} ms in bfloat16")
print(f"expected: bfloat16 no slower; found: {slower[16]:.1f} and {slower[64]:.1f} times the time of float32")
sys.exit(0 if min(slower.values()) > 1.5 else 1)
PYTHON
