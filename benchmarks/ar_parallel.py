"""Exact parallel decoding of autoregressive generators beside plain decoding: passes, time, and whether tokens differ.

    python benchmarks/ar_parallel.py RUN ... [--windows 8 16] [--batches 1 8] [--guidance 2] [--seeds 3]
                                     [--noise uniform gumbel] [--threads 2] [--size B] [--out FILE]

The runs of the tables are the demo's, and one of 64 px (256 tokens) at the demo's settings:

    ifsq demo
    ifsq encode runs/demo/tokenizer bundled:photos runs/demo/codes64 --size 64
    ifsq generator train experiments/demo/ar.toml --out runs/demo/ar64 --codes runs/demo/codes64
    python benchmarks/ar_parallel.py runs/demo/ar runs/demo/ar64 --size B

Eight images a seed, one at a time or as one batch. Plain decoding is timed before and after each window, and a time
saved is that of its mean. Each figure is the mean over the seeds, with the least and the greatest.

size  also what a pass of a window costs beside one of a single token in a LlamaGen of this size: 16384 codes, random
      weights, one image with guidance, 128 tokens behind it
"""

import argparse
import datetime
import os
import platform
import statistics
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from ifsq import Generator
from ifsq.codes import CodeSpec
from ifsq.generators.ar import ARConfig, ARGenerator, ARSampling
from ifsq.generators.ar.draw import draw
from ifsq.generators.ar.fast import steps_of
from ifsq.generators.ar.guidance import guide
from ifsq.metrics.card import code_version

IMAGES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--windows", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--guidance", nargs="+", type=float, default=[2.0])
    parser.add_argument("--noise", nargs="+", default=["uniform", "gumbel"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", default="")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    lines = [
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {given.threads} threads, torch "
        f"{torch.__version__}, ifsq {code_version()}, {datetime.date.today()}; {given.seeds} seeds",
        "",
        "| generator | guidance | noise | batch | window | passes a token | tokens a pass | ms an image: plain "
        "| parallel | time saved, times | tokens that differ |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in given.runs:
        generator = Generator.from_pretrained(run)
        draws(generator, ARSampling(), 1, 0)  # it is warm
        for guidance in given.guidance:
            for noise, batch, window in product(given.noise, given.batches, given.windows):
                sampling = ARSampling(guidance, noise=noise, parallel=window)
                lines.append(row(generator, run.name, sampling, batch, given.seeds))
                print(lines[-1], flush=True)
    if given.size:
        lines += ["", *costs(given.size, [1, *given.windows])]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")


def row(generator: Generator, name: str, sampling: ARSampling, batch: int, seeds: int) -> str:
    """A line of the table: windows of a size beside plain decoding."""
    alone = replace(sampling, parallel=0)
    tokens, ratios, passes, plain_ms, ms, differ = generator.spec.tokens, [], [], [], [], 0
    for seed in range(seeds):
        first = draws(generator, alone, batch, seed)
        found = draws(generator, sampling, batch, seed)
        last = draws(generator, alone, batch, seed)
        plain = (first[0] + last[0]) / 2
        ratios.append(plain / found[0])
        passes.append(found[1])
        plain_ms.append(plain * 1000 / IMAGES)
        ms.append(found[0] * 1000 / IMAGES)
        differ += int((found[2] != last[2]).any(dim=-1).sum())
    share = statistics.mean(passes) / tokens
    return (
        f"| {name}, {tokens} tokens | {sampling.guidance} | {sampling.noise} | {batch} | {sampling.parallel} "
        f"| {share:.3f} | {1 / share:.2f} | {statistics.mean(plain_ms):.0f} | {statistics.mean(ms):.0f} "
        f"| {statistics.mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
        f"| {differ} of {seeds * IMAGES * tokens} |"
    )


def draws(generator: Generator, sampling: ARSampling, batch: int, seed: int) -> tuple[float, float, torch.Tensor]:
    """Seconds, passes a batch and the indices of eight images."""
    passes, indices = [], []
    began = time.perf_counter()
    for first in range(0, IMAGES, batch):
        labels = torch.arange(first, first + batch) % generator.num_classes
        drawn = generator.sample(labels, sampling, seed=seed, first=first)
        passes.append(drawn.passes or generator.spec.tokens)
        indices.append(drawn.indices)
    return time.perf_counter() - began, statistics.mean(passes), torch.cat(indices)


@torch.no_grad()
def costs(size: str, windows: list[int]) -> list[str]:
    """What passes of so many tokens cost, with the draw of each, in a table."""
    spec = CodeSpec((16, 16, 8, 8), (4,), "little", "equal", (16, 16))
    config = ARConfig(size=size)
    generator = ARGenerator(config, spec, num_classes=1000).eval()
    lines = [f"| size {size}, window | " + " | ".join(map(str, windows)) + " |", "|---|" + "---|" * len(windows)]
    rng = torch.Generator().manual_seed(0)
    for precision in ("fp32", "bf16"):
        steps, told = steps_of(generator, precision), []
        steps.first(torch.tensor([0, 1000]))
        steps.next(torch.randint(16384, (2, 128, 1), generator=rng))
        for window in windows:
            indices = torch.randint(16384, (2, window, 1), generator=rng)
            level = torch.rand(window, generator=rng)

            def once(indices: torch.Tensor = indices, level: torch.Tensor = level) -> float:
                began = time.perf_counter()
                steps.rewind(128)  # noqa: B023 - called before the next
                states = steps.next(indices).flatten(0, 1)  # noqa: B023
                scales = [2.0] * len(level)
                steps.draw(states, lambda x, k: draw(guide(x, scales), ARSampling(), level).repeat(2))  # noqa: B023
                return time.perf_counter() - began

            told.append(statistics.median([once() for _ in range(7)][1:]))
        lines.append(f"| {precision}, ms a pass | " + " | ".join(f"{1000 * t:.1f}" for t in told) + " |")
        lines.append(
            f"| {precision}, times that of one token | " + " | ".join(f"{t / told[0]:.2f}" for t in told) + " |"
        )
    return lines


if __name__ == "__main__":
    main()
