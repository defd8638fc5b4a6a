#!/usr/bin/env bash
# One would guess: torch.compile(dynamic=True) trains whatever torch.compile trains, for any height and width.
# What happens (torch 2.13.0, Inductor): a convolution of stride 2 turns a symbolic side s into s // 2, which may be 0 as far as the
# symbols tell. Where a view with its channels moved is kept for the backward pass, Inductor sorts its strides by comparing
# expressions such as 3 * (s // 2) and 3, gets no answer, and raises TypeError. Without a backward pass, and with height and
# width marked static, the same module compiles and is right.
# Here: tokenizers with a codebook, attention or RMS norm. docs/drop_in.md says to mark the images' sides static.
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
from torch import nn


class Codebook(nn.Module):
    """Images -> a number at each second pixel -> its vector, channels first -> a last convolution."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 2, stride=2)
        self.vectors = nn.Embedding(16, 3)
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, images):
        numbers = (self.first(images).sum(1).abs() * 5).long().clamp(0, 15)
        return self.last(self.vectors(numbers).movedim(-1, 1))


def attempt(name, train, static):
    torch.compiler.reset()
    torch.manual_seed(0)
    module, images = Codebook(), torch.randn(2, 3, 16, 16)
    if static:
        torch._dynamo.mark_static(images, (2, 3))
    try:
        with torch.set_grad_enabled(train):
            got, right = torch.compile(module, dynamic=True)(images), module(images)
            if train:
                got.sum().backward()
        said = "right" if torch.allclose(got, right, atol=1e-6) else "wrong"
    except torch._dynamo.exc.TorchDynamoException as error:
        said = str(error).splitlines()[0]
    print(f"{name}: {said}")
    return said


print("torch", torch.__version__)
forward = attempt("without a backward pass", train=False, static=False)
trained = attempt("in training", train=True, static=False)
marked = attempt("in training, height and width static", train=True, static=True)
as_described = (forward, marked) == ("right", "right") and "cannot determine truth value of Relational" in trained
print("as described: the strides cannot be sorted" if as_described else "no longer as described")
sys.exit(not as_described)
PYTHON
