#!/usr/bin/env bash
# One would guess: torch.div(x, n, rounding_mode="trunc" or "floor") of int64, which torch computes in integers, is exported to
# ONNX as a division of integers, as `x // n` is.
# What happens (torch 2.13.0, onnxscript 0.7.2): both numbers are cast to float32, divided, rounded and cast back. Above 2**24
# quotients are of another number: 50331651 by 3 gives 16777218, 6975757440 by 3 is off by 128. Nothing is said.
# Here: under torch.export an index is divided with torch.floor_divide, which stays in integers (src/ifsq/quantizers/digits.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import sys

import onnxruntime
import torch

print("torch", torch.__version__)


class Divide(torch.nn.Module):
    def forward(self, x):
        return (
            torch.div(x, 3, rounding_mode="trunc"),
            torch.div(x, 3, rounding_mode="floor"),
            torch.floor_divide(x, 3),
        )


x = torch.tensor([[7, 2**24 + 1, 3 * (2**24 + 1), 17**8 - 1]])
program = torch.onnx.export(Divide(), (x,), dynamo=True, verbose=False)
session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
given = session.run(None, {session.get_inputs()[0].name: x.numpy()})
right = [y.tolist() for y in Divide()(x)]
for name, got, expected in zip(("trunc", "floor", "floor_divide"), given, right):
    print(name, "right", expected[0], "got", got.tolist()[0])
wrong = [got.tolist() != expected for got, expected in zip(given, right)]
print("as described: rounding divisions are float32" if wrong == [True, True, False] else "no longer as described")
sys.exit(wrong != [True, True, False])
PYTHON
