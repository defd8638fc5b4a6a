#!/usr/bin/env bash
# One would guess: torch.utils.flop_counter counts the same model at the same number of operations on every device: the sizes of the
# matrices decide it.
# What happens (torch 2.13.0): on a CPU scaled_dot_product_attention runs aten._scaled_dot_product_flash_attention_for_cpu, for which the
# counter has no formula, and what has none counts as nothing, without a word. The same call counts in full on the meta device, and so on
# CUDA. Short sequences lose little; attention over 4096 positions of width 64 loses all.
# Here: the operations of a training are counted on the meta device, `training_flops` in src/ifsq/generators/train.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

print("torch", torch.__version__)
heads, positions, width = 2, 1024, 64
expected = 2 * heads * (2 * positions * positions * width)  # queries by keys, and weights by values
found = {}
for device in ("cpu", "meta"):
    q, k, v = torch.empty(3, 1, heads, positions, width, device=device)
    with FlopCounterMode(display=False) as counter:
        F.scaled_dot_product_attention(q, k, v)
    found[device] = counter.get_total_flops()
    print(f"{device}: {found[device]} operations; expected {expected}")
sys.exit(0 if found == {"cpu": 0, "meta": expected} else 1)
PYTHON
