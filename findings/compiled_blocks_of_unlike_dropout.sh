#!/usr/bin/env bash
# One would guess: 24 blocks of a transformer that differ in their rate of dropout alone, compiled one by one (regional compilation, which
# compiles a repeated block once), are all compiled. Stochastic depth, whose rate rises from block to block, is the usual case.
# What happens (torch 2.11.0, 2.13.0): the rate, a float of the module, is a constant of the graph, though floats that are arguments become
# dynamic at their second value. Each block is another graph, the limit of 8 for one function is reached, and the other 16 blocks run as
# they are, for the whole training; what is said is a line in the log. With the rate in a tensor all 24 are one graph.
# Here: the rate of `DropPath` is a tensor, src/ifsq/nn/droppath.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch import nn

print("torch", torch.__version__)
BLOCKS = 24


class TensorDropout(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.register_buffer("keep", torch.tensor(1 - rate))

    def forward(self, x):
        return x * ((torch.rand_like(x) < self.keep) / self.keep)


class Block(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.linear, self.dropout = nn.Linear(8, 8), dropout

    def forward(self, x):
        return x + self.dropout(self.linear(x))


def compiled(make):
    """How many of the blocks run compiled, and in how many graphs."""
    torch._dynamo.reset()
    graphs, ran = set(), 0

    def backend(graph, inputs):
        graphs.add(graph)

        def run(*given):
            nonlocal ran
            ran += 1
            return graph(*given)

        return run

    blocks = [Block(make((number + 1) / 100)) for number in range(BLOCKS)]
    for block in blocks:
        block.compile(backend=backend)
    x = torch.randn(4, 8, requires_grad=True)
    for _ in range(2):
        ran = 0
        for block in blocks:
            x = block(x)
    return ran, len(graphs)


found = {"a float": compiled(nn.Dropout), "a tensor": compiled(TensorDropout)}
for rate, (ran, graphs) in found.items():
    print(f"the rate is {rate}: {ran} of {BLOCKS} blocks run compiled, in {graphs} graphs; expected {BLOCKS}")
sys.exit(0 if found == {"a float": (8, 8), "a tensor": (BLOCKS, 1)} else 1)
PYTHON
