#!/usr/bin/env bash
# One would guess: where the connection to another process breaks in a collective operation, torch.distributed raises one of its
# own errors (DistBackendError, DistNetworkError; both DistError), as it does for the store and NCCL, so that a program
# can tell the loss of a process from a mistake of its own.
# What happens (torch 2.13.0): over gloo it is a plain RuntimeError, the type of a wrong shape too; only its text differs, and
# that in several ways ("Connection closed by peer", "Connection reset by peer", "Read error").
# Here: processes meet in a thread of their own, which knows whether all are there, src/ifsq/training/watch.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat >"$folder/lost.py" <<'PYTHON'
import os
import signal
import sys

import torch
import torch.distributed as dist


def process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    dist.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    code = 2
    try:
        dist.all_reduce(torch.ones(3))
    except RuntimeError as error:
        print(f"a lost process: {type(error).__name__}, a DistError: {isinstance(error, dist.DistError)}: {error}")
        code = 0 if type(error) is RuntimeError else 1
    try:
        torch.ones(3) @ torch.ones(4)
    except RuntimeError as error:
        print(f"a wrong shape: {type(error).__name__}: {error}")
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    print("torch", torch.__version__)
    processes = [torch.multiprocessing.Process(target=process, args=(rank, sys.argv[1])) for rank in range(2)]
    for one in processes:
        one.start()
    for one in processes:
        one.join()
    print("expected: a DistError for a lost process; found: exit code", processes[0].exitcode, "(0: a plain RuntimeError)")
    sys.exit(processes[0].exitcode)
PYTHON
"$folder/venv/bin/python" "$folder/lost.py" "$folder"
