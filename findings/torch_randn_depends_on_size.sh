#!/usr/bin/env bash
# One would guess: with one seed, torch.randn((2, c, h, w)) begins with the numbers of torch.randn((1, c, h, w)), as torch.rand does: the first
# image of a batch has the noise it has alone, and a part of a larger tensor can be compared with a smaller one.
# What happens (torch 2.13.0, CPU): below 16 numbers in all another algorithm runs, and where the count is no multiple of 16, the last 16 numbers
# are drawn anew. So an image of 4 x 4 x 1 numbers or 16 x 16 x 4 has the same noise in any batch; one of 4 x 7 x 7 differs in its
# last 16 numbers, and one of 1 x 3 x 3 in all. With float64 the numbers of the same seed are others altogether.
# Here: random numbers of sampled images come from Philox under the key (seed, image number), src/ifsq/generators/streams.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from math import prod

import torch

print("torch", torch.__version__)


def first(draw, batch, shape, **options):
    """The first image's numbers in a batch of so many."""
    return draw(batch, *shape, generator=torch.Generator().manual_seed(0), **options)[0]


changed = {}
for shape in ((4, 4, 4), (4, 16, 16), (4, 7, 7), (3, 5, 5), (1, 3, 3)):
    for draw in (torch.rand, torch.randn):
        changed[shape, draw] = int((first(draw, 1, shape) != first(draw, 2, shape)).sum())
    print(f"{shape}: {prod(shape)} numbers; changed in a batch of two: rand {changed[shape, torch.rand]}, randn {changed[shape, torch.randn]}")
shape = (4, 4, 4)
near = torch.isclose(first(torch.randn, 1, shape, dtype=torch.float64), first(torch.randn, 1, shape).double(), atol=1e-5)
print("float64 beside float32, numbers alike:", int(near.sum()), "of", prod(shape))
expected = {(4, 4, 4): 0, (4, 16, 16): 0, (4, 7, 7): 16, (3, 5, 5): 16, (1, 3, 3): 9}
as_described = all(changed[s, torch.rand] == 0 and changed[s, torch.randn] == n for s, n in expected.items())
print("as described: the noise depends on the batch" if as_described else "no longer as described")
sys.exit(not as_described)
PYTHON
