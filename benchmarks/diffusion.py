"""The diffusion network beside diffusers' DiTTransformer2DModel of equal size: forward pass, training step, memory.

    python benchmarks/diffusion.py [--threads 2] [--rounds 3] [--repeats 3] [--rows 4] [--grid 16]
        [--forms NAME ...] [--clock wall|processor] [--out benchmarks]

DiT-B, patch 1. Every figure is of a process of its own, since models that take turns in one slow each other: a round
starts each form once, in turning order. A process runs the forward pass (evaluation, no gradient) and the training step
(forward, mean squared error, backward, fused AdamW, gradients dropped) so many times and keeps the medians. Ratios are
within a round; the table has their median over the rounds with the least and the most. Memory is the peak of the
process (VmHWM) over what it held before the model was made.

The floor is the time of the products alone: each product of the network's layers and of its attention, of the same
shapes and the faster of torch's and oneDNN's routine, forward, or forward and both gradients. On a busy machine
``--clock processor --threads 1`` counts the processor's time in place of the wall's, which others do not lengthen.
Writes ``diffusion_cpu<threads>_<date>.md``.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ifsq.generators.diffusion.config import DiTConfig
from ifsq.generators.diffusion.network import DiT
from ifsq.training.parallel import blocks

CHANNELS, CLASSES, HEADS = 4, 1000, 12
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
PLAIN = {"mlp": "gelu", "norm": "layer", "rope": False, "qk_norm": False}


@dataclass(frozen=True)
class Form:
    """A network and how it computes.

    options  of `DiTConfig`; None is diffusers' network
    """

    options: dict[str, Any] | None
    bf16: bool = False
    compiled: bool = False


FORMS = {
    "diffusers": Form(None),
    "paper's block": Form({}),
    "plain block": Form(PLAIN),
    "diffusers, bf16": Form(None, bf16=True),
    "paper's block, bf16": Form({}, bf16=True),
    "paper's block, bf16, compiled": Form({}, bf16=True, compiled=True),
}


class Peer(nn.Module):
    """diffusers' network with the face of ours."""

    def __init__(self, grid: int) -> None:
        super().__init__()
        from diffusers import DiTTransformer2DModel

        self.model = DiTTransformer2DModel(
            num_attention_heads=HEADS,
            attention_head_dim=64,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=12,
            sample_size=grid,
            patch_size=1,
            num_embeds_ada_norm=CLASSES,
        )

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.model(x, timestep=t * 1000, class_labels=labels).sample


def make(form: Form, grid: int) -> nn.Module:
    torch.manual_seed(0)
    if form.options is None:
        return Peer(grid)
    return DiT(DiTConfig(size="B", patch=1, **form.options), CHANNELS, (grid, grid), CLASSES)


def example(rows: int, grid: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(rows, CHANNELS, grid, grid, generator=rng)
    t, labels = torch.rand(rows, generator=rng), torch.randint(CLASSES, (rows,), generator=rng)
    return x.to(device), t.to(device), labels.to(device)


def child(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a forward pass and of a training step, and the peaks of memory, in GiB, of one form."""
    form = FORMS[name]
    given = example(options.rows, options.grid)
    target = torch.randn_like(given[0])
    if form.options is None:
        import diffusers  # noqa: F401  before the memory is looked at
    before = resident("VmRSS")
    model = make(form, options.grid)
    if form.compiled:
        for block in blocks(model):
            block.compile()
    cast = torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if form.bf16 else nullcontext()

    def forward() -> None:
        with torch.no_grad(), cast:
            model(*given)

    model.eval()
    found = {"forward": median_seconds(forward, options)}
    found["memory, forward"] = (resident("VmHWM") - before) / 2**20
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with cast:
            out = model(*given)
        F.mse_loss(out.float(), target).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    found["training step"] = median_seconds(step, options)
    found["memory, training step"] = (resident("VmHWM") - before) / 2**20
    return found


def median_seconds(call: Callable[[], object], options: argparse.Namespace) -> float:
    clock, times = CLOCKS[options.clock], []
    for turn in range(options.repeats + 1):
        start = clock()
        call()
        if turn:  # the first warms up
            times.append(clock() - start)
    return statistics.median(times)


def resident(kind: str) -> int:
    """KiB of memory of this process: ``VmRSS`` now, ``VmHWM`` at most so far."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(kind)))


def counted(form: Form, rows: int, grid: int) -> int:
    """Floating-point operations of a forward pass, as torch counts them, with attention."""
    model = make(form, grid).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*example(rows, grid, "meta"))
    return counter.get_total_flops()


def products(form: Form, rows: int, grid: int) -> list[tuple[int, int, int, int, int]]:
    """Of each product of a forward pass: how many of it, of how many matrices each, and its rows, depth and columns."""
    shapes: dict[tuple[int, int, int, int], int] = {}
    model, tokens = make(form, grid), rows * grid**2

    def seen(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        shape = (1, given[0].numel() // layer.in_features, layer.in_features, layer.out_features)
        shapes[shape] = shapes.get(shape, 0) + 1

    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(seen)
    with torch.no_grad():
        model(*example(rows, grid))
    for shape in ((rows * HEADS, grid**2, 64, grid**2), (rows * HEADS, grid**2, grid**2, 64)):
        shapes[shape] = 12
    assert tokens == max(shape[1] for shape in shapes)
    return [(count, *shape) for shape, count in shapes.items()]


def floor(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the products of a form alone."""
    form, total = FORMS[name], {"forward": 0.0, "training step": 0.0}
    dtype = torch.bfloat16 if form.bf16 else torch.float32
    for count, matrices, rows, depth, columns in products(form, options.rows, options.grid):
        a, b, g = (
            torch.randn(matrices, *shape).to(dtype) for shape in ((rows, depth), (depth, columns), (rows, columns))
        )
        forward, *backward = (fastest(*pair, options) for pair in ((a, b), (g, b.mT), (a.mT, g)))
        total["forward"] += count * forward
        total["training step"] += count * (forward + sum(backward))
    return total


def fastest(a: Tensor, b: Tensor, options: argparse.Namespace) -> float:
    """Seconds of a product of batches of matrices, by the quicker of the routines that are here."""
    routines: list[Callable[[], Tensor]] = [lambda: a @ b]
    if len(a) == 1 and a.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        routines.append(lambda: torch.ops.mkldnn._linear_pointwise(a[0], b[0].mT, None, "none", [], ""))
    return min(median_seconds(routine, options) for routine in routines)


def measured(name: str, what: str, options: argparse.Namespace) -> dict[str, float]:
    """What a fresh process finds of a form."""
    given = [f"--{key}={getattr(options, key)}" for key in ("threads", "repeats", "rows", "grid", "clock")]
    command = [sys.executable, __file__, f"--{what}", name, *given]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--floor", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child or options.floor:
        print(json.dumps(child(options.child, options) if options.child else floor(options.floor, options)))
        return
    rounds: list[dict[str, dict[str, float]]] = []
    for turn in range(options.rounds):
        order = options.forms[turn % len(options.forms) :] + options.forms[: turn % len(options.forms)]
        rounds.append({name: measured(name, "child", options) for name in order})
        print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    lines = table(rounds, options)
    print("\n".join(lines))
    if options.out:
        path = options.out / f"diffusion_cpu{options.threads}_{datetime.date.today().isoformat()}.md"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(rounds: list[dict[str, dict[str, float]]], options: argparse.Namespace) -> list[str]:
    lines = [
        f"# The diffusion network, {datetime.date.today().isoformat()}",
        "",
        f"torch {torch.__version__}, Python {platform.python_version()}, {options.threads} threads of {os.cpu_count()}"
        f" CPUs; DiT-B, patch 1, {options.rows} rows of {options.grid}x{options.grid} tokens, {options.rounds} rounds,"
        f" medians of {options.repeats}, {options.clock} time. Made by `benchmarks/diffusion.py`.",
        "",
        "| form | what | parameters | GFLOP | ms | floor, ms | of diffusers, fp32 | peak memory, GiB | of diffusers |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    least = {name: measured(name, "floor", options) for name in options.forms if not FORMS[name].compiled}
    for what in ("forward", "training step"):
        for name in options.forms:
            form = FORMS[name]
            size = sum(p.numel() for p in make(form, options.grid).parameters())
            flops = counted(form, options.rows, options.grid) * (3 if what == "training step" else 1)
            times, peaks = ([turn[name][key] for turn in rounds] for key in (what, f"memory, {what}"))
            ratios = [
                [turn[name][key] / turn["diffusers"][key] for turn in rounds] for key in (what, f"memory, {what}")
            ]
            cells = (
                *(name, what, f"{size / 1e6:.1f} M", f"{flops / 1e9:.0f}", f"{1e3 * statistics.median(times):.0f}"),
                *(f"{1e3 * least[name][what]:.0f}" if name in least else "", spread(ratios[0])),
                *(f"{statistics.median(peaks):.2f}", spread(ratios[1])),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
