#!/usr/bin/env bash
# One would guess: for one new query, scaled_dot_product_attention over keys and values that are kept in bfloat16 takes half the time of
# float32, since it reads half the bytes; and no longer than the two products and the softmax that it stands for.
# What happens (torch 2.13.0, CPU with AVX-512 bf16, one thread): in bfloat16 it takes two to three times as long as in float32, and three to
# four times as long as bfloat16 `matmul`, softmax, `matmul`: a cache in half precision makes every step of decoding slower.
# Here: the decoding copy of a generator keeps keys and values in float32 and multiplies them by `bmm`, `_attend` in
# src/ifsq/generators/ar/fast.py.
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
layers, shape = 12, (4, 12, 256, 64)  # as many caches as layers of a model: none is still in the processor's own memory


def median(dtype, attend):
    query = torch.randn(4, 12, 1, 64).to(dtype)
    past = [torch.randn(2, *shape).to(dtype) for _ in range(layers)]
    taken = []
    for _ in range(11):
        start = time.process_time()
        for keys, values in past:
            attend(query, keys, values)
        taken.append((time.process_time() - start) / layers * 1e6)
    return statistics.median(taken)


def by_hand(query, keys, values):
    return (query * 0.125 @ keys.transpose(-1, -2)).softmax(-1) @ values


full = median(torch.float32, F.scaled_dot_product_attention)
half = median(torch.bfloat16, F.scaled_dot_product_attention)
hand = median(torch.bfloat16, by_hand)
print("4 x 12 heads of 64, one query, 256 keys:")
print(f"float32 {full:.0f} us, bfloat16 {half:.0f} us, bfloat16 by matmul, softmax, matmul {hand:.0f} us")
print(f"expected: bfloat16 quicker than both; found: {half / full:.1f} and {half / hand:.1f} times as long")
sys.exit(0 if half > 1.3 * full and half > 1.5 * hand else 1)
PYTHON
