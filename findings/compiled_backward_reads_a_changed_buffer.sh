#!/usr/bin/env bash
# One would guess: a compiled training step has the gradient of the eager one. A running statistic that the forward reads
# and then updates in place is the ordinary case, and eager's own check of versions would name a conflict.
# What happens (torch 2.13.0, backends aot_eager and inductor): what the gradient needs is cheap to compute from the buffer,
# so the partitioner keeps the buffer itself for the backward and computes it again there, after the forward has changed
# it. The gradient is that of the new statistics and the output that of the old ones; no error, no warning.
# Here: bounds with running statistics hand the graph a copy that it cannot compute again, by an operator of their own
# (src/ifsq/quantizers/compilers.py, `materialize`).
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


class Scaled(torch.nn.Module):
    """x divided by a running scale, which then moves half the way to the batch's."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, x):
        y = x * self.scale.reciprocal()
        with torch.no_grad():
            self.scale.lerp_(x.abs().mean(), 0.5)
        return y


print("torch", torch.__version__)
gradients = {}
for backend in ("eager", "aot_eager", "inductor"):
    module = Scaled()
    x = torch.full((4,), 3.0, requires_grad=True)
    y = torch.compile(module, backend=backend, fullgraph=True)(x)
    y.sum().backward()
    gradients[backend] = x.grad[0].item()
    print(f"{backend}: y {y[0].item()}, gradient {gradients[backend]}, scale afterwards {module.scale.item()}")
as_described = gradients == {"eager": 1.0, "aot_eager": 0.5, "inductor": 0.5}
print("as described: half the gradient" if as_described else "no longer as described")
sys.exit(not as_described)
PYTHON
