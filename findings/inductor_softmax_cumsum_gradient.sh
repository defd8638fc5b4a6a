#!/usr/bin/env bash
# One would guess: the gradient of softmax(h).mul(c).cumsum(1) under torch.compile is the eager one to rounding.
# What happens (torch 2.13.0, Inductor on a CPU): for 16 values a row and several rows the gradient is wrong by as much as it
# is large. The kernel keeps the softmax of one row in a buffer while it walks rows side by side, because the gradient of
# cumsum comes in reversed order, and all rows then use the last one's. Without the factor, with one row, or with sizes
# left symbolic it is right, and so is aot_eager.
# Here: the heights of the learned bound's spline are such a graph; an operator of ours stands between softmax and sum,
# which nothing is fused across (src/ifsq/quantizers/compilers.py, `materialize`).
# Needs a C++ compiler, which Inductor calls.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
export TORCHINDUCTOR_CACHE_DIR="$folder/cache"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch


def loss(h, weight):
    return ((torch.softmax(h, dim=1) * 0.9).cumsum(1) * weight).sum()


print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability())
off = {}
for rows in (1, 3, 8):
    torch.manual_seed(0)
    h, weight = torch.randn(rows, 16), torch.randn(rows, 16)
    exact = h.double().requires_grad_()
    loss(exact, weight.double()).backward()
    for backend in ("eager", "aot_eager", "inductor"):
        torch.compiler.reset()
        leaf = h.clone().requires_grad_()
        torch.compile(loss, backend=backend, fullgraph=True)(leaf, weight).backward()
        off[backend, rows] = float((leaf.grad - exact.grad).abs().max() / exact.grad.abs().max())
        print(f"{backend}, {rows} rows: off from float64 by {off[backend, rows]:.1e} of the largest gradient")
wrong = sorted(key for key, value in off.items() if value > 1e-3)
as_described = wrong == [("inductor", 3), ("inductor", 8)]
print("as described: wrong with several rows" if as_described else f"no longer as described: wrong are {wrong}")
sys.exit(not as_described)
PYTHON
