"""Training on a code cache a hundred times as large: resident memory, and the time until the first step is done.

    python benchmarks/code_cache.py [--scratch DIR] [--small 5] [--large 512] [--kinds ar diffusion] [--out benchmarks]

A shard of 8192 images of 16 x 16 x 4 digits (8 MiB) is written as a cache of 5 and of 512 shards, each a file of its
own. The verb ``ifsq generator train`` then runs in a process of its own, twice on each: the first opening takes every
hash, the second finds them remembered. It is a small generator (one block of width 32, batch 64), so that what grows is
the cache. After the last step the same process takes 1000 further batches of 256 images over the whole split, and then
as many rows through a memory map of the same shards, for comparison. RSS and its anonymous part are those that the
kernel states (VmRSS, RssAnon); the seconds are from the start of the process to the end of its first step, and its
processor time until then, which others on the machine do not lengthen.
Writes ``code_cache_<hardware>_<date>.md``.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ifsq.codes import writer
from ifsq.codes.spec import CodeSpec
from ifsq.store.files import sha256

SPEC = CodeSpec((5, 5, 5, 5), (4,), "little", "paper", (16, 16))
GATHERED, ROWS = 1000, 256
CHILD = """
import json, sys, time
import numpy as np, torch
torch.set_num_threads(1)
from pathlib import Path
from ifsq import pipeline
from ifsq.experiment import load_generator_experiment
from ifsq.codes.cache import CodeCache
from ifsq.training.log import Silent

def memory():
    told = dict(line.split(":", 1) for line in open("/proc/self/status") if line.startswith(("VmRSS", "RssAnon")))
    return {name: int(value.split()[0]) // 1024 for name, value in told.items()}

class First(Silent):
    at = cpu = 0.0
    def advance(self, step, values):
        First.at, First.cpu = First.at or time.time(), First.cpu or time.process_time()

config, out, folder = sys.argv[1:4]
batches, size = map(int, sys.argv[4:])
pipeline.train_generator(load_generator_experiment(Path(config), ["--out", out]), "cpu", First())
found = {"first": First.at, "cpu": First.cpu, "trained": memory()}
codes = CodeCache.open(folder).read("train")
rng = torch.Generator().manual_seed(0)
began = time.perf_counter()
for _ in range(batches):
    codes.batch(torch.randint(len(codes), (size,), generator=rng))
found |= {"gathered": memory(), "seconds": time.perf_counter() - began}
shape = (8192, 16, 16, 4)
shards = [np.memmap(s.path, np.uint8, "r", s.starts["digits"], shape) for s in codes.content.files.shards]
began = time.perf_counter()
for _ in range(batches):
    rows = torch.randint(len(codes), (size,), generator=rng).numpy()
    batch = torch.from_numpy(np.stack([shards[row // 8192][row % 8192] for row in rows])).long()
found |= {"mapped": memory(), "map seconds": time.perf_counter() - began}
print(json.dumps(found))
"""
EXPERIMENT = """
out = "run"
codes = "{codes}"
[{kind}]
depth = 1
width = 32
heads = 2
{own}
[train]
steps = 10
batch = 64
log_every = 1
save_every = 10
validate_every = 0
"""
OWN = {"ar": "mlp_multiple_of = 16", "diffusion": "patch = 2"}


def make(folder: Path, shards: int) -> None:
    """A cache of so many files with the same random digits, and a small split to validate on."""
    folder.mkdir()
    rng = torch.Generator().manual_seed(0)
    for split, images in (("train", writer.SHARD), ("val", 64)):
        digits = torch.randint(5, (images, *SPEC.shape), generator=rng, dtype=torch.uint8)
        part = writer.Part(digits, torch.randint(1000, (images,), generator=rng))
        writer.save_part(folder / writer.shard_name(split, 0), part, SPEC)
    first = folder / writer.shard_name("train", 0)
    for number in range(1, shards):
        place = folder / writer.shard_name("train", number)
        shutil.copyfile(first, place)
        place.with_suffix(writer.CHECKSUM).write_text(sha256(first))
    names = {"train": [writer.shard_name("train", n) for n in range(shards)], "val": [writer.shard_name("val", 0)]}
    writer.write_manifest(folder, folder, SPEC, tuple(map(str, range(1000))), names, {"tokenizer": ""})


def measure(folder: Path, kind: str, out: str) -> dict[str, object]:
    """What a process says of itself that trains on a cache."""
    config = folder.parent / f"{kind}.toml"
    config.write_text(EXPERIMENT.format(codes=folder, kind=kind, own=OWN[kind]))
    began = time.time()
    command = [sys.executable, "-c", CHILD, str(config), str(folder.parent / out), str(folder)]
    command += [str(GATHERED), str(ROWS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return found | {"first": found["first"] - began}


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, default=None)
    parser.add_argument("--small", type=int, default=5)
    parser.add_argument("--large", type=int, default=512)
    parser.add_argument("--kinds", nargs="+", default=["ar", "diffusion"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    options = parser.parse_args()
    lines = [
        "| cache | generator, opening | first step, s | of it computing | RSS trained | anonymous |"
        " RSS after 256,000 rows more | anonymous | rows/s | RSS after as many mapped | rows/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        for shards in (options.small, options.large):
            folder = Path(scratch) / f"codes{shards}"
            make(folder, shards)
            time.sleep(3)  # what was written just now is not remembered
            for kind in options.kinds:
                for opening in ("first", "second"):
                    found = measure(folder, kind, f"{kind}{shards}{opening}")
                    trained, gathered, mapped = (found[name] for name in ("trained", "gathered", "mapped"))
                    rates = [GATHERED * ROWS / found[name] for name in ("seconds", "map seconds")]
                    lines.append(
                        f"| {8 * shards} MiB | {kind}, {opening} | {found['first']:.1f} | {found['cpu']:.1f} |"
                        f" {trained['VmRSS']} MiB |"
                        f" {trained['RssAnon']} | {gathered['VmRSS']} MiB | {gathered['RssAnon']} | {rates[0]:,.0f} |"
                        f" {mapped['VmRSS']} MiB | {rates[1]:,.0f} |"
                    )
                    print(lines[-1], flush=True)
            shutil.rmtree(folder)
    named = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = named[0].split(":")[1].strip() if named else platform.machine()
    where = f"{processor}, {os.cpu_count()} cores, torch {torch.__version__} CPU, Linux {platform.release()}"
    date = datetime.date.today().isoformat()
    text = f"# Memory and first step on code caches\n\n`python {' '.join(sys.argv)}`; {where}; one thread.\n\n"
    target = options.out / f"code_cache_cpu{os.cpu_count()}_{date}.md"
    target.write_text(text + "\n".join(lines) + "\n")
    print(target)


if __name__ == "__main__":
    main()
