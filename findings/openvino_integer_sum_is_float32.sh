#!/usr/bin/env bash
# One would guess: the sum of integers along an axis is exact while it fits the type, 2**24 + 1 of int32 for instance.
# What happens (OpenVINO 2026.4.1, CPU): ReduceSum of int32 or int64 is computed in float32, so that 2**24 + 1 becomes 2**24.
# Addition of two tensors is exact. No error, no warning.
# Here: an index as the sum of digits times their places would be wrong from 2**24 codes on, as it is in other projects that
# sum floats; ours is built by additions alone (src/ifsq/quantizers/digits.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openvino==2026.4.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import openvino as ov
from openvino import opset13 as ops

print("OpenVINO", ov.__version__)
seen = []
for kind, name in ((ov.Type.i32, np.int32), (ov.Type.i64, np.int64)):
    pair = ops.parameter([2], kind)
    total = ops.reduce_sum(pair, ops.constant(np.array([0], dtype=np.int64)))
    halves = ops.split(pair, ops.constant(np.array(0, dtype=np.int64)), 2)
    plus = ops.add(halves.output(0), halves.output(1))
    both = ov.Core().compile_model(ov.Model([total, plus], [pair]), "CPU")
    x = np.array([2**24, 1], dtype=name)
    seen.append((int(both(x)[0]), int(both(x)[1][0])))
    print(f"{name.__name__}: right {x.sum()}, ReduceSum {seen[-1][0]}, Add {seen[-1][1]}")
as_described = seen == [(2**24, 2**24 + 1)] * 2
print("as described: the sum is rounded to float32" if as_described else "no longer as described")
sys.exit(not as_described)
PYTHON
