#!/usr/bin/env bash
# One would guess: a mean over the numbers of a picture is summed in pieces, as NumPy and torch do, so that float32 is right to
# six places whatever its size; and a normalisation, whose sums everything after it depends on, all the more.
# What happens (ONNX Runtime 1.32.0, CPU): ReduceMean over one axis and InstanceNormalization add up numbers a few lanes wide from
# the first to the last. Of 2**22 standard normal numbers (a group of 4 channels at 1024 x 1024 pixels) the normalised ones are
# off by 4e-4; of 2**18 (256 x 256) by 1e-5. NumPy's pairwise float32 sums stay below 1e-6. torch.onnx.export writes every group
# norm as InstanceNormalization over a group, so an exported network is good at the size one tried and worse at larger ones.
# Here: `ifsq export onnx` takes means along rows first, then of these (src/ifsq/interop/graphs/staged.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

print("ONNX Runtime", onnxruntime.__version__)
vector = helper.make_tensor_value_info
constants = {"one": np.ones(1, np.float32), "zero": np.zeros(1, np.float32), "last": np.array([2])}
graph = helper.make_graph(
    [
        helper.make_node("InstanceNormalization", ["x", "one", "zero"], ["y"], epsilon=1e-6),
        helper.make_node("ReduceMean", ["x", "last"], ["m"], keepdims=0),
    ],
    "graph",
    [vector("x", TensorProto.FLOAT, [1, 1, "n"])],
    [vector("y", TensorProto.FLOAT, [1, 1, "n"]), vector("m", TensorProto.FLOAT, [1, 1])],
    [numpy_helper.from_array(value, name) for name, value in constants.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
rng, errors = np.random.default_rng(0), []
for power in (14, 18, 20, 22):
    x = (rng.standard_normal((1, 1, 2**power)) + 1).astype(np.float32)
    y, m = session.run(None, {"x": x})
    exact = x.astype(np.float64)
    right = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-6)
    numpy32 = (x - x.mean(dtype=np.float32)) / np.sqrt(x.var(dtype=np.float32) + np.float32(1e-6))
    errors.append(float(np.abs(y - right).max()))
    print(
        f"2**{power} numbers: normalised off by {errors[-1]:.1e}, NumPy in float32 {np.abs(numpy32 - right).max():.1e};"
        f" mean off by {abs(float(m.item()) - exact.mean()):.1e}"
    )
as_described = errors[0] < 1e-5 and errors[-1] > 1e-4
print("as described: the error grows with the size" if as_described else "no longer as described")
sys.exit(not as_described)
PYTHON
