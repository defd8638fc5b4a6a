#!/usr/bin/env bash
# One would guess: torch.compile of a module computes what the module computes, whatever its attributes are.
# What happens (torch 2.13.0, Inductor): where a Python float of a module has had a second value, Dynamo makes it a symbol,
# and the pass that turns symbols into tensors (tensorify_python_scalars) builds additions and subtractions anew without
# their keyword `alpha`. torch.rsub(x, b, alpha=a), which is b - a * x, becomes b - x: no error, no warning. The first
# module that is compiled is right, the second one wrong; with dynamic=True the first one already.
# Here: a quantizer's level count was such a float. It is made from integers now, which Dynamo keeps constant in a module,
# and no operator with `alpha` meets a number that may be a symbol (src/ifsq/quantizers/cells.py, compilers.py).
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


class Affine(torch.nn.Module):
    """shift - 3 * x"""

    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, x):
        return torch.rsub(x, self.shift, alpha=3.0)


print("torch", torch.__version__)
x = torch.tensor([1.0, 2.0])
seen = {}
for backend in ("aot_eager", "inductor"):
    torch.compiler.reset()
    for shift in (5.0, 7.0):
        module = Affine(shift)
        got, right = torch.compile(module, backend=backend)(x).tolist(), module(x).tolist()
        seen[backend, shift] = got == right
        print(f"{backend}, shift {shift}: compiled {got}, eager {right}")
as_described = seen["inductor", 5.0] and not seen["inductor", 7.0]
print("as described: the second module is wrong" if as_described else "no longer as described")
sys.exit(not as_described)
PYTHON
