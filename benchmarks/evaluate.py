"""Memory and speed of `ifsq evaluate`: an npz of many large images through a cheap network, fewer through real ones.

    python benchmarks/evaluate.py SCRATCH [--count 50000] [--few 2000]

Half of the images are noise, half are crops of bundled photographs; they are written into SCRATCH, in the layout of
ADM's evaluations, and removed at the end. The Inception network has random weights: time and memory are those of the
published ones. Prints a table in Markdown. Peak memory is what the system says of each process (ru_maxrss). Seconds of
processors say what the work costs where others use the machine as well.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from skimage import data

from ifsq.pretrained import inception

SIDE, AT_ONCE = 256, 250
RUN = """
import resource, sys
from ifsq.cli import main
code = main(sys.argv[1:])
print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.4f}", flush=True)
raise SystemExit(code)
"""


def write_images(path: Path, count: int, seed: int) -> None:
    """An npz of uint8 (count, 256, 256, 3), a few hundred images in memory at a time."""
    rng = np.random.default_rng(seed)
    photographs = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file,
        file.open("arr_0.npy", "w", force_zip64=True) as stream,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, SIDE, SIDE, 3)}
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, count, AT_ONCE):
            images = rng.integers(0, 256, (min(AT_ONCE, count - start), SIDE, SIDE, 3), np.uint8)
            for image in images[::2]:
                whole = photographs[rng.integers(len(photographs))]
                top, left = (rng.integers(side - SIDE + 1) for side in whole.shape[:2])
                image[:] = whole[top : top + SIDE, left : left + SIDE]
            stream.write(images.data)


def write_random_inception(path: Path) -> None:
    """A file of weights of the published names and shapes."""
    fill = inception.fill
    inception.fill = lambda *_: None  # its layers stay on the meta device: names and shapes
    shapes = {key: value.shape for key, value in inception.FIDInception({}, "random").state_dict().items()}
    inception.fill = fill
    rng = torch.Generator().manual_seed(0)
    table = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            continue
        fan_in = shape[1:].numel() if len(shape) > 1 else 1
        drawn = torch.randn(shape, generator=rng) * (2 / fan_in) ** 0.5
        table[key] = torch.ones(shape) if len(shape) == 1 and not key.endswith(("bias", "mean")) else drawn * 0.9
        if len(shape) == 1 and key.endswith(("bias", "mean")):
            table[key] = torch.zeros(shape)
    save_file(table, path)


def measure(place: Path, processes: int, *arguments: str) -> tuple[float, float, float, list[dict]]:
    """Seconds, those that processors worked, the greatest memory of a process in GiB, and the cards."""
    script, out = place / "run.py", place / f"cards_{processes}.json"
    script.write_text(RUN)
    many = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"] if processes > 1 else []
    started, before = time.perf_counter(), worked_by_children()
    done = subprocess.run(
        [sys.executable, *many, str(script), "evaluate", *arguments, "--no-cache", "--out", str(out)],
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds, worked = time.perf_counter() - started, worked_by_children() - before
    if done.returncode:
        raise SystemExit(done.stderr)
    peak = max(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak "))
    return seconds, worked, peak, json.loads(out.read_text())["cards"]


def worked_by_children() -> float:
    """Seconds of processors, of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def greatest_difference(mine: list[dict], theirs: list[dict]) -> float:
    """Relative, over all values of all cards."""
    pairs = [
        (a, b["values"][name])
        for one, b in zip(mine, theirs, strict=True)
        for name, a in one["values"].items()
        if one["metric"] == b["metric"]
    ]
    return max(abs(a - b) / max(abs(a), 1e-300) for a, b in pairs)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--few", type=int, default=2000)
    parser.add_argument("--real", type=int, default=64, help="images of the reference")
    options = parser.parse_args()
    place: Path = options.scratch
    place.mkdir(parents=True, exist_ok=True)
    many, real, weights = place / "many.npz", place / "real.npz", place / "inception.safetensors"
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    count = min(options.count, int(free * 0.8) // (SIDE * SIDE * 3))
    started = time.perf_counter()
    write_images(many, count, 0)
    print(
        f"{count} images of {SIDE} px: {many.stat().st_size / 2**30:.2f} GiB in {time.perf_counter() - started:.0f} s"
    )
    write_images(real, options.real, 1)
    write_random_inception(weights)
    print(
        "\n| features | processes | images | seconds | seconds of processors | images a second of these | peak, GiB |"
    )
    print("|---|---|---|---|---|---|---|")
    few, tenth, cards = str(options.few), str(count // 10), {}
    for features, processes, n, *more in (
        ("pixels", 1, str(count)),
        ("efficientnet-lite0", 1, few),
        ("pixels", 1, tenth),
        ("pixels", 2, tenth),
        ("inception", 1, few, "--weights", str(weights)),
    ):
        asked = [str(many), "--reference", str(real), "--features", features, "--count", n, *more]
        seconds, worked, peak, found = measure(place, processes, *asked)
        cards[features, processes] = found
        rate = (int(n) + options.real) / worked
        print(
            f"| {features} | {processes} | {n} | {seconds:.0f} | {worked:.0f} | {rate:.1f} | {peak:.2f} |", flush=True
        )
        if processes == 2:
            difference = greatest_difference(cards["pixels", 1], found)
    print(f"\nTwo processes against one, greatest relative difference of any value: {difference:.1e}")
    print(f"This script itself: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    many.unlink()


if __name__ == "__main__":
    main()
