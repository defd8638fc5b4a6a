#!/usr/bin/env bash
# One would guess: a model whose inputs, constants and outputs are int64 computes in 64 bits, or compiling it says that the
# device cannot.
# What happens (OpenVINO 2026.4.1, CPU): the compiled model still calls its output int64, and the array has that type; the
# arithmetic is int32 inside and wraps: 9 + 100000 * 30000 comes out as -1294967287. No error, no warning.
# Here: codes and digits of an exported quantizer are right; indices are where a group has at most 2**31 codes. docs/drop_in.md
# says to take `packed_digits` and make the indices outside.
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
first, second = (ops.parameter([3], ov.Type.i64) for _ in range(2))  # two digits of an index
index = ops.add(first, ops.multiply(second, ops.constant(np.array([100000], dtype=np.int64))))
compiled = ov.Core().compile_model(ov.Model([index], [first, second]), "CPU")
a, b = np.array([[7, 8, 9], [3, 21474, 30000]], dtype=np.int64)
got, right = compiled([a, b])[0], a + 100000 * b
print("declared", compiled.output(0).element_type.get_type_name(), "array", got.dtype)
print("right", right.tolist())
print("got  ", got.tolist())
as_described = got.dtype == np.int64 and got.tolist() == right.astype(np.int32).tolist() != right.tolist()
print("as described: wrapped to 32 bits" if as_described else "no longer as described")
sys.exit(not as_described)
PYTHON
