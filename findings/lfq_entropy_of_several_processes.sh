#!/usr/bin/env bash
# One would guess: in a distributed training LFQ of vector-quantize-pytorch takes the mean of the code probabilities over all processes before
# its entropy, so that two processes with half of a batch each have the entropy of the batch. It has a function for that, and says nothing.
# What happens (vector-quantize-pytorch 1.32.0): the all-reduce it calls gives its sum back and leaves its argument as it was; the sum is
# thrown away, and the process's own mean is divided by the number of processes. The "probabilities" then sum to 1/processes: the entropy
# of the batch is wrong (of 4 bits in 4 processes 1.0 nats for 2.8), no other process has a part in it, and the gradient that spreads the codes
# is a half with two processes, an eighth with eight: diversity_gamma has another meaning on every number of GPUs.
# Here: the entropy of `LFQ` (src/ifsq/quantizers/lookup_free.py) is that of one process, and its docstring says so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 vector-quantize-pytorch==1.32.0
"$folder/venv/bin/python" - <<'PYTHON'
import math
import sys
import tempfile
import warnings
from importlib.metadata import version

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from vector_quantize_pytorch import LFQ

warnings.simplefilter("ignore")
print("vector-quantize-pytorch", version("vector-quantize-pytorch"), "torch", torch.__version__)
batch = torch.randn(512, 1, 4, generator=torch.Generator().manual_seed(0))


def measure(rows):
    """Entropy of the mean assignment in nats, the norm of its gradient."""
    z = rows.clone().requires_grad_()
    entropy = LFQ(dim=4, codebook_size=16)(z, return_loss_breakdown=True)[1].batch_entropy
    return entropy.item(), torch.autograd.grad(entropy, z)[0].norm().item()


def process(rank, count, address, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=count)
    results[rank] = torch.tensor(measure(batch.chunk(count)[rank]))
    dist.destroy_process_group()


found = {}
for count in (2, 4):
    found[count] = torch.zeros(count, 2).share_memory_()
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(process, (count, f"{folder}/address", found[count]), nprocs=count, start_method="fork")
print("one process, the whole batch: entropy %.3f, gradient %.3f" % measure(batch))
as_described = True
for count, results in found.items():
    for rank, rows in enumerate(batch.chunk(count)):
        (got, slope), (alone, slope_alone) = results[rank].tolist(), measure(rows)
        print(f"process {rank} of {count}: {got:.3f}, {slope:.3f}; the same rows in a lone process {alone:.3f}, {slope_alone:.3f}")
        shrunk = (alone + math.log(count)) / count  # -sum(p/n * log(p/n)) where p sums to 1
        as_described &= abs(got - shrunk) < 0.01 and abs(count * slope - slope_alone) < 0.02 * slope_alone
print("as described: its own rows, divided by the processes" if as_described else "no longer as described")
sys.exit(not as_described)
PYTHON
