#!/usr/bin/env bash
# One would guess: on a processor with AVX-512 torch multiplies float32 matrices with it: `torch.backends.cpu.get_cpu_capability()` says AVX512.
# What happens (torch 2.13.0 CPU wheel, AMD EPYC of family 26): matmul and nn.Linear go to MKL, which takes AVX2 on AMD, at half the rate; no option
# of torch says another. oneDNN, which lies in the same wheel and multiplies bfloat16 there, takes AVX-512 for float32 too when it is called.
# Here: `Linear` in src/ifsq/nn/linear.py calls oneDNN on such processors, which makes float32 training of a DiT-B 1.7 times as fast.
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
x, w = torch.randn(1024, 768), torch.randn(3072, 768)
routines = {
    "nn.functional.linear": lambda: torch.nn.functional.linear(x, w),
    "the same by oneDNN": lambda: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], ""),
}
rates = {}
for name, call in routines.items():
    times = []
    for _ in range(21):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    rates[name] = 2e-9 * x.shape[0] * w.numel() / statistics.median(times)
    print(f"{name}: {rates[name]:.0f} GFLOP/s on one core")
difference = (routines["nn.functional.linear"]() - routines["the same by oneDNN"]()).abs().max()
slower = rates["the same by oneDNN"] / rates["nn.functional.linear"]
print(f"largest difference of the results: {difference:.1e}")
print(f"expected: the same rate; found: oneDNN {slower:.1f} times that of nn.functional.linear")
sys.exit(0 if slower > 1.5 else 1)
PYTHON
