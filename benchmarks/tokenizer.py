"""The full-size convolutional tokenizer beside the same architecture written plainly: encode, decode, training step.

    python benchmarks/tokenizer.py [--threads 2] [--batches 1 4] [--rounds 3] [--size 256] [--out benchmarks]

Plain is what one writes first: NCHW, eager, float32, upsampling by interpolation; its few lines are below, and it loads
the state of ours. Ours is `Tokenizer.optimize("bf16")` for encode and decode, and for training float32 weights under
bfloat16 autocast; `fp32` beside the first two is what remains without rounding. All take turns in every round of one
process; the figures are medians over rounds, ratios are medians of the ratios within a round. Peak memory of a training
step is VmHWM of a fresh process each. The weights are random, so the PSNR is low; what the rounding changes in it, and
in the tokens of bundled photographs, stands below the table.
Writes ``tokenizer_<hardware>_<date>.md``.
"""

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifsq.data import DataConfig, open_images
from ifsq.data.sampler import iterate_once
from ifsq.metrics.reconstruction import psnr
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig

FORMS = ("plain", "ours", "ours fp32")  # in the order of their turns
TRAINED = FORMS[:2]


class PlainBlock(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, i, eps=1e-6), nn.Conv2d(i, o, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(32, o, eps=1e-6), nn.Conv2d(o, o, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(i, o, 1) if i != o else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class PlainStep(nn.Module):
    def __init__(self, width: int, down: bool) -> None:
        super().__init__()
        self.down, self.conv = down, nn.Conv2d(width, width, 3, stride=2 if down else 1, padding=0 if down else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2.0))


class PlainLevel(nn.Module):
    def __init__(self, i: int, o: int, blocks: int, step: str) -> None:
        super().__init__()
        self.block = nn.ModuleList(PlainBlock(i if n == 0 else o, o) for n in range(blocks))
        if step:
            setattr(self, step, PlainStep(o, step == "downsample"))

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.block, *(m for name, m in self.named_children() if name != "block")):
            x = layer(x)
        return x


class PlainHalf(nn.Module):
    """Encoder or decoder; the order of its parts is that of the official model."""

    def __init__(self, encoder: bool) -> None:
        super().__init__()
        w = [128, 128, 256, 512, 512]
        self.conv_in = nn.Conv2d(3, w[0], 3, padding=1) if encoder else nn.Conv2d(4, w[-1], 3, padding=1)
        if encoder:
            self.down = nn.ModuleList(PlainLevel(w[max(0, i - 1)], w[i], 2, "downsample" * (i < 4)) for i in range(5))
        else:
            self.up = nn.ModuleList(PlainLevel(w[min(4, i + 1)], w[i], 3, "upsample" * (i > 0)) for i in range(5))
        self.mid_block = nn.ModuleList(PlainBlock(w[-1], w[-1]) for _ in range(2))
        last = w[-1] if encoder else w[0]
        self.norm_out, self.conv_out = (
            nn.GroupNorm(32, last, eps=1e-6),
            nn.Conv2d(last, 8 if encoder else 3, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        levels = (*self.down, *self.mid_block) if hasattr(self, "down") else (*self.mid_block, *reversed(self.up))
        x = self.conv_in(x)
        for layer in levels:
            x = layer(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Plain(nn.Module):
    """iFSQ, f16 d4, 17 levels: codes by rounding, with the straight-through gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = PlainHalf(True), PlainHalf(False)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 1)

    def encode(self, images: Tensor) -> Tensor:
        y = (2 * torch.sigmoid(1.6 * self.quant_conv(self.encoder(images))) - 1) * 8
        return (y + (y.round() - y).detach()) / 8

    def decode(self, codes: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(codes))

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))


class Ours(nn.Module):
    """The same face over our tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def encode(self, images: Tensor) -> Tensor:
        return self.tokenizer.encode(images).codes

    def decode(self, codes: Tensor) -> Tensor:
        return self.tokenizer.decode(codes)

    def forward(self, images: Tensor) -> Tensor:
        return self.tokenizer(images).images


def make(form: str) -> Plain | Ours:
    """The same weights in each form."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig())
    if form != "plain":
        return Ours(tokenizer)
    model = Plain()
    model.load_state_dict(tokenizer.state_dict())
    return model


def trainer(form: str, images: Tensor) -> Callable[[], None]:
    """One step: forward, backward of the absolute error, AdamW."""
    model = make(form)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=form != "plain")
    cast = torch.autocast("cpu", torch.bfloat16) if form == "ours" else nullcontext()

    def step() -> None:
        with cast:
            again = model(images)
        F.l1_loss(again.float(), images).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds, and median of plain's time over it."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            if turn:  # the first warms up
                times[name].append(1e3 * (time.perf_counter() - start))
    ratio = {
        name: statistics.median(p / t for p, t in zip(times["plain"], ts, strict=True)) for name, ts in times.items()
    }
    return {name: (statistics.median(ts), ratio[name]) for name, ts in times.items()}


def speed(batch: Tensor, rounds: int) -> Iterator[tuple[str, dict[str, tuple[float, float]]]]:
    models = {form: make(form).eval().requires_grad_(False) for form in FORMS}
    for form, model in models.items():
        if isinstance(model, Ours):
            model.tokenizer.optimize("bf16" if form == "ours" else "fp32")
    codes = models["plain"].encode(batch)
    yield "encode", measure({form: lambda m=model: m.encode(batch) for form, model in models.items()}, rounds)
    yield "decode", measure({form: lambda m=model: m.decode(codes) for form, model in models.items()}, rounds)
    del models
    yield "training step", measure({form: trainer(form, batch) for form in TRAINED}, rounds)


def peak_memory(form: str, batch: int, size: int, threads: int) -> float:
    """GiB that a fresh process needs for two training steps."""
    command = [sys.executable, __file__, "--child", form, "--batches", str(batch), "--size", str(size)]
    out = subprocess.run([*command, "--threads", str(threads)], check=True, capture_output=True, text=True)
    return int(out.stdout.split()[-1]) / 2**20


def child(form: str, batch: int, size: int) -> None:
    step = trainer(form, torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    step()
    step()
    status = Path("/proc/self/status").read_text()
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def closeness(images: Tensor) -> dict[str, str]:
    """What each form's tokens and reconstructions are beside plain's."""
    plain = make("plain").eval().requires_grad_(False)
    codes, rows = plain.encode(images), {}
    pictures = plain.decode(codes)
    exact = psnr(images, plain(images).clamp(-1, 1)).mean()
    for form in FORMS[1:]:
        model = make(form)
        assert isinstance(model, Ours)
        model.tokenizer.optimize("bf16" if form == "ours" else "fp32")
        differ = ((model.encode(images) - codes).abs() > 1e-4).any(1).float().mean()
        change = psnr(images, model(images).clamp(-1, 1)).mean() - exact
        between = psnr(pictures, model.decode(codes)).mean()
        rows[form] = (
            f"{100 * differ:.2f} % of tokens differ; PSNR of the reconstruction {change:+.4f} dB"
            f" (plain {exact:.2f} dB); decoded from equal codes, {between:.1f} dB to plain's"
        )
    return rows


def photographs(count: int, size: int) -> Tensor:
    source = open_images(DataConfig("bundled:photos", size), "val")
    return next(iterate_once(source, count, indices=range(count))).images


def table_row(batch: int, what: str, found: dict[str, tuple[str, float]]) -> str:
    figures = [found[form][0] if form in found else "" for form in FORMS]
    ratios = [f"{found[form][1]:.2f}" if form in found else "" for form in FORMS[1:]]
    return f"| {batch} | {what} | {' | '.join(figures + ratios)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        return child(options.child, options.batches[0], options.size)
    today = datetime.date.today().isoformat()
    lines = [
        f"# Tokenizer, {today}",
        "",
        f"torch {torch.__version__}, Python {platform.python_version()}, {options.threads} threads of {os.cpu_count()}"
        f" CPUs; f16 d4, 83,324,099 parameters, {options.size} px. Made by `benchmarks/tokenizer.py`.",
        "",
        f"| batch | what | {' | '.join(f'{form}, ms' for form in FORMS)} | plain / ours | plain / fp32 |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for batch in options.batches:
        for what, found in speed(photographs(batch, options.size), options.rounds):
            lines.append(table_row(batch, what, {form: (f"{ms:.0f}", times) for form, (ms, times) in found.items()}))
            print(lines[-1], flush=True)
        peaks = {form: peak_memory(form, batch, options.size, options.threads) for form in TRAINED}
        told = {form: (f"{peak:.2f} GiB", peaks["plain"] / peak) for form, peak in peaks.items()}
        lines.append(table_row(batch, "training step, peak memory", told))
        print(lines[-1], flush=True)
    more = ["", *(f"- {form}: {told}." for form, told in closeness(photographs(4, options.size)).items())]
    print("\n".join(more))
    if options.out:
        path = options.out / f"tokenizer_cpu{options.threads}_{today}.md"
        path.write_text("\n".join(lines + more) + "\n", encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
