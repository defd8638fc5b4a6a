"""Memory and time of loss and gradient behind a large vocabulary: the plain form, ours, and torch's own.

    python benchmarks/ar_loss.py [--rows 8192] [--codes 83521] [--width 1024] [--threads 1] [--without-torch]
        [--border] [--out benchmarks]

A process for each form. Memory is what its resident set grows by at most while loss and gradient are computed, the
gradients included; time is the processor's, that of all threads together. ``plain`` is ``cross_entropy(linear(x, w))``;
``mean`` and ``rows`` are `ifsq.nn.cross_entropy`, of the mean, and of each row with any weights; ``torch`` is
``linear_cross_entropy`` with its default options, and with parts of 512 rows. bfloat16 is autocast's; torch's function
knows none, so its inputs are cast. ``--border``: plain and ``mean`` for smaller vocabularies.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ifsq.nn import cross_entropy

FORMS = ("plain", "mean", "rows", "torch", "torch, 512 rows")
EXPECTED = """Expected before: 8 times less memory than plain at equal time for the mean, 1.3 times its time for the
rows, whose gradient makes the logits twice (4 products in place of 3); torch's between the two."""


def loss_of(form: str, x: Tensor, weight: Tensor, target: Tensor, dtype: torch.dtype) -> Tensor:
    if form.startswith("torch"):
        options: Any = torch.nn.LinearCrossEntropyOptions
        chosen = options() if form == "torch" else options(batch_chunk_size=512, chunking_method=None)
        function: Any = torch.nn.functional.linear_cross_entropy
        return function(x.to(dtype), weight.to(dtype), target, options=chosen).float()
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        if form == "plain":
            return F.cross_entropy(F.linear(x, weight).float(), target)
        if form == "mean":
            return cross_entropy.linear_mean_nats(x, weight, target)
        return cross_entropy.linear_nats(x, weight, target).mean()


def measure(form: str, dtype: str, rows: int, codes: int, width: int, threads: int) -> dict[str, float]:
    """In this process: seconds, growth of the resident set in MiB, and the loss."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    weight = torch.empty(codes, width).normal_(std=0.02).requires_grad_()
    x, target = torch.empty(rows, width).normal_().requires_grad_(), torch.randint(codes, (rows,))
    kind = getattr(torch, dtype)
    few = torch.zeros(1, width, requires_grad=True), torch.zeros(64, width, requires_grad=True), target[:1] % 64
    loss_of(form, *few, kind).backward()  # what is loaded once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    loss = loss_of(form, x, weight, target, kind)
    loss.backward()
    seconds = time.process_time() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": seconds, "MiB": grown, "loss": float(loss.detach())}


def measured(*what: object) -> dict[str, float]:
    """As `measure`, in a process of its own."""
    told = subprocess.run([sys.executable, __file__, "--one", *map(str, what)], check=True, capture_output=True)
    return json.loads(told.stdout)


def rows_of(args: argparse.Namespace) -> list[str]:
    """A line a form and type, as multiples of the plain form."""
    lines = ["| form | type | MiB | of plain's | s | of plain's | loss |", "|---|---|---|---|---|---|---|"]
    forms = [form for form in FORMS if not (args.without_torch and form.startswith("torch"))]
    for dtype in ("float32", "bfloat16"):
        plain: dict[str, float] = {}
        for form in forms:
            found = measured(form, dtype, args.rows, args.codes, args.width, args.threads)
            plain = plain or found
            shares = [f"{found[name]:.4g} | 1 / {plain[name] / found[name]:.1f}" for name in ("MiB",)]
            shares.append(f"{found['seconds']:.1f} | {found['seconds'] / plain['seconds']:.2f}")
            lines.append(f"| {form} | {dtype} | {' | '.join(shares)} | {found['loss']:.4f} |")
            print(lines[-1], flush=True)
    return lines


def border(args: argparse.Namespace) -> list[str]:
    """Plain and the mean's form around the number of logits where the form changes."""
    lines = ["| codes | logits, MiB | plain: MiB, s | mean: MiB, s |", "|---|---|---|---|"]
    for codes in (289, 1024, 4096, 16384):
        found = [
            measured(form, "bfloat16", args.rows, codes, args.width, args.threads, 2**20) for form in ("plain", "mean")
        ]
        cells = [f"{one['MiB']:.0f}, {one['seconds']:.2f}" for one in found]
        lines.append(f"| {codes} | {args.rows * codes * 4 / 2**20:.0f} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--codes", type=int, default=83521)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--without-torch", action="store_true")
    parser.add_argument("--border", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        form, dtype, rows, codes, width, threads, *part = args.one
        cross_entropy.PART = int(part[0]) if part else cross_entropy.PART
        print(json.dumps(measure(form, dtype, int(rows), int(codes), int(width), int(threads))))
        return
    lines = border(args) if args.border else rows_of(args)
    today = datetime.date.today().isoformat()
    name = f"ar_loss{'_border' * args.border}_cpu{os.cpu_count()}_{today}.md"
    heading = [
        f"# Loss and gradient behind {args.codes} codes, {today}",
        "",
        f"`python benchmarks/ar_loss.py`: {args.rows} rows (32 images of 256 tokens), width {args.width},"
        f" {args.threads} thread(s), torch {torch.__version__},",
        f"{platform.machine()}; processor seconds; MiB on top of what was resident before.",
        "",
        *EXPECTED.splitlines(),
        "",
    ]
    (args.out / name).write_text("\n".join([*heading, *lines, ""]))


if __name__ == "__main__":
    main()
