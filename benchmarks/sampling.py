"""Sampling that is killed and gone on with, in other batches and by two processes: which files are the same.

    python benchmarks/sampling.py [--count 2000] [--kills 6]

Makes a small tokenizer (8 px) and a small generator of each kind, of random weights, in a scratch folder. Every set is
drawn by a process of its own that is forked from this one; kills are SIGKILLs after random times. One thread each.
"""

import argparse
import os
import platform
import random
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ifsq import pipeline
from ifsq.codes import CodeSpec
from ifsq.generators import ARGenerator, DiffusionGenerator, Origin
from ifsq.generators.ar import ARConfig
from ifsq.generators.diffusion import DiTConfig
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig

GRID, CLASSES = (2, 2), 10


def make(folder: Path) -> None:
    """A tokenizer ``tok`` and generators ``ar`` and ``diffusion`` of its codes."""
    torch.manual_seed(0)
    conv = ConvConfig(width=8, multipliers=(1, 1), blocks=1, patch=2, groups=4)
    tokenizer = Tokenizer(TokenizerConfig(conv, QuantizerConfig(levels=(17, 17, 17, 17))))
    tokenizer.save_pretrained(folder / "tok")
    spec = CodeSpec.of(tokenizer.quantizer.lattice, GRID)
    made = {
        "ar": ARGenerator(ARConfig(1, 32, 2, mlp_multiple_of=32), spec, CLASSES),
        "diffusion": DiffusionGenerator(DiTConfig(1, 32, 2, patch=1), spec, CLASSES),
    }
    for name, generator in made.items():
        for value in generator.parameters():
            if value.ndim > 1:
                torch.nn.init.normal_(value, std=0.1)  # so that labels and random numbers show
        generator.origin = Origin(tuple(map(str, range(CLASSES))), str(folder / "tok"), tokenizer.digest())
        generator.save_pretrained(folder / name)


def forked(act: Callable[[], object], **environment: str) -> int:
    """The process that does it."""
    pid = os.fork()
    if pid:
        return pid
    os.environ.update(environment)
    code = 1
    try:
        act()
        code = 0
    finally:  # a fork must not go on as its parent
        if code:
            traceback.print_exc()
        os._exit(code)


def ends(pid: int) -> None:
    """Raise SystemExit unless it ends well."""
    code = os.waitpid(pid, 0)[1]
    if code:
        raise SystemExit(f"a process ended with {code}")


def killed(act: Callable[[], object], kills: int, draw: random.Random, seconds: float) -> int:
    """Start it again after every kill, until it ends; how many kills it took."""
    for number in range(kills):
        pid = forked(act)
        time.sleep(seconds * (0.1 + 0.4 * draw.random() / (number + 1)))
        if os.waitpid(pid, os.WNOHANG)[0]:
            return number
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    ends(forked(act))
    return kills


def in_two(act: Callable[[], object]) -> None:
    """The same by two processes that know of each other, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    for pid in [forked(act, RANK=str(rank), LOCAL_RANK=str(rank), **place) for rank in (0, 1)]:
        ends(pid)


def content(path: Path) -> dict[str, bytes]:
    """The files of a set."""
    files = path.iterdir() if path.is_dir() else (path, path.with_suffix(".json"))
    return {file.name: file.read_bytes() for file in files}


def compared(one: Path, other: Path) -> tuple[float, int]:
    """Share of images that are equal to the byte, and the greatest difference of a byte."""
    with np.load(one) as a, np.load(other) as b:
        mine, theirs = a["arr_0"], b["arr_0"]
        assert np.array_equal(a["arr_1"], b["arr_1"])
    same = (mine == theirs).all(axis=(1, 2, 3)).mean()
    return float(same), int(np.abs(mine.astype(int) - theirs).max())


def trial(folder: Path, kind: str, count: int, kills: int) -> list[str]:
    """Lines of the table about a kind."""
    draw, lines = random.Random(0), []

    def act(name: str, batch: int = 128) -> Callable[[], object]:
        out = folder / f"{kind}_{name}"
        out.parent.mkdir(exist_ok=True)
        return lambda: pipeline.sample(folder / kind, (), 0, out, count=count, batch=batch)

    for form, name in (("npz", "whole/set.npz"), ("PNGs", "whole/set")):
        began = time.perf_counter()
        ends(forked(act(name)))
        seconds = time.perf_counter() - began
        cut = name.replace("whole", "cut")
        taken = killed(act(cut), kills, draw, seconds)
        a, b = (content(folder / f"{kind}_{which}") for which in (name, cut))
        equal = sum(a[file] == b.get(file) for file in a)
        lines.append(f"| {kind} | {form}, killed {taken} times | {equal} of {len(a)} files, all bytes | 0 |")
        lines.append(f"| {kind} | {form}, unbroken | {count / seconds:.0f} images/s, with the start of a process | |")
    in_two(act("two/set.npz"))
    variants = {"2 processes": "two/set.npz"}
    for batch in (100,):
        ends(forked(act(f"{batch}/set.npz", batch)))
        variants[f"batches of {batch}"] = f"{batch}/set.npz"
    for what, name in variants.items():
        share, most = compared(folder / f"{kind}_whole/set.npz", folder / f"{kind}_{name}")
        lines.append(f"| {kind} | {what} | {share:.2%} of the images | {most} |")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ends(forked(lambda: make(folder)))  # in a fork: this process must not compute before it forks
        print(f"{options.count} images of 8 px against one process with batches of 128; {platform.machine()}, one")
        print(f"thread a process, torch {torch.__version__}\n")
        print("| generator | drawn otherwise | equal to the byte | greatest difference of a byte |\n|---|---|---|---|")
        for kind in ("ar", "diffusion"):
            print("\n".join(trial(folder, kind, options.count, options.kills)), flush=True)


if __name__ == "__main__":
    main()
