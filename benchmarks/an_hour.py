"""Memory, open files and threads of an hour of training: ``python benchmarks/an_hour.py FOLDER [--minutes M]``.

A tokenizer and an autoregressive generator train at the same time, a process each with two readers, on PNG files that
are written first; both save, validate, draw pictures and are evaluated all the while. Every few seconds /proc is asked
about each process and its readers. After the time both are asked to stop, which saves them. Prints a Markdown table;
exit code 1 where memory of a training or of its readers grew by more than 2 % after the warm-up, or the open files or
threads of a training by one.

Linux alone.
"""

import argparse
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ifsq.bench.shipped import experiment_file
from ifsq.data import DataConfig, open_images
from ifsq.data.transforms import write_png

EVERY = 5.0  # seconds between looks
WARM = 5  # the first of so many parts of the time is the warm-up
LIMIT = 1.02
PICTURES = 600
ALL_THE_WHILE = (
    *("--train.steps", "1000000", "--train.log_every", "20", "--train.save_every", "60", "--train.keep", "2"),
    *("--train.validate_every", "90", "--train.sample_every", "120", "--train.evaluate_every", "150"),
    *("--train.evaluate_images", "64", "--train.engine.workers", "2", "--train.optim.schedule", "constant"),
)


@dataclass
class Watched:
    """A training, and what was seen of it: a row a look.

    memory  resident MiB of the process, and of its readers together
    files   open file descriptors of the process
    threads of the process
    """

    name: str
    process: subprocess.Popen[bytes]
    memory: list[float] = field(default_factory=list)
    readers: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def look(self) -> None:
        """Ask /proc now. Raises RuntimeError where the training has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name}: ended with exit code {self.process.returncode}; see its log")
        number = self.process.pid
        below = [int(child) for child in Path(f"/proc/{number}/task/{number}/children").read_text().split()]
        self.memory.append(_status(number, "VmRSS") / 1024)
        self.readers.append(sum(_status(child, "VmRSS") for child in below) / 1024)
        self.files.append(len(os.listdir(f"/proc/{number}/fd")))
        self.threads.append(int(_status(number, "Threads")))

    def steady(self) -> bool:
        """Whether memory, files and threads stayed as they were."""
        part = len(self.memory) // WARM
        first, last = slice(part, 2 * part), slice(-part, None)
        same = all(max(seen[last]) <= max(seen[first]) for seen in (self.files, self.threads))
        return growth(self.memory) <= LIMIT and growth(self.readers) <= LIMIT and same

    def row(self, steps: str) -> str:
        """A line of the table."""
        part = len(self.memory) // WARM
        after = slice(part, None)
        spans = [f"{min(seen[after])} to {max(seen[after])}" for seen in (self.files, self.threads)]
        memory = [f"{statistics.median(self.memory[k * part : (k + 1) * part]):.0f}" for k in range(1, WARM)]
        readers = [statistics.median(self.readers[place]) for place in (slice(part, 2 * part), slice(-part, None))]
        told = (", ".join(memory), f"{growth(self.memory):.3f}", f"{readers[0]:.0f} to {readers[1]:.0f}")
        return f"| {' | '.join((self.name, steps, *told, *spans))} |"


def growth(memory: Sequence[float]) -> float:
    """Median of the last part of the time over that of the first after the warm-up; 1 where there never is any."""
    part = len(memory) // WARM
    first, last = statistics.median(memory[part : 2 * part]), statistics.median(memory[-part:])
    return last / first if first else math.inf if last else 1.0


def _status(process: int, name: str) -> float:
    """A number of ``/proc/PROCESS/status``; 0 of a process that has just gone."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    found = [line.split()[1] for line in text.splitlines() if line.startswith(f"{name}:")]
    return float(found[0]) if found else 0.0


def _write_pictures(folder: Path) -> None:
    source = open_images(DataConfig("bundled:photos", 48), "train")
    for index in range(PICTURES):
        image, label = source.load(index, index)
        place = folder / source.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        write_png(image, place / f"{index}.png")


def _ifsq(*words: str) -> list[str]:
    return [sys.executable, "-m", "ifsq", *words]


def _experiment(kind: str) -> str:
    return str(experiment_file(f"demo/{kind}.toml"))


def _last_step(log: Path) -> str:
    """What the training said when it was stopped, as ``stopped at step 1200``."""
    said = [line for line in log.read_text(errors="replace").splitlines() if "stopped at step" in line]
    return said[-1].partition("stopped at step ")[2].partition(";")[0] if said else "unknown"


def _begin(folder: Path) -> list[Watched]:
    pictures = str(folder / "pictures")
    data = ("--data.source", pictures, "--data.flip", "true")
    short = ("--train.steps", "60", "--train.save_every", "60")
    subprocess.run(
        _ifsq("tokenizer", "train", _experiment("tokenizer"), "--out", str(folder / "first"), *data, *short), check=True
    )
    subprocess.run(_ifsq("encode", str(folder / "first"), pictures, str(folder / "codes")), check=True)
    own = ("--tokenizer", str(folder / "first"), "--codes", str(folder / "codes"))
    commands = {
        "tokenizer": ("tokenizer", "train", _experiment("tokenizer"), *data),
        "generator": ("generator", "train", _experiment("ar"), *own, "--train.keep_every", "0"),
    }
    begun = []
    for name, words in commands.items():
        with (folder / f"{name}.log").open("wb") as log:
            command = _ifsq(*words, "--out", str(folder / name), *ALL_THE_WHILE)
            begun.append(Watched(name, subprocess.Popen(command, stdout=log, stderr=log)))
    return begun


def _watch(trainings: Sequence[Watched], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(EVERY)
        for training in trainings:
            training.look()


def main() -> int:
    """Train, watch, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="a new folder for pictures and runs")
    parser.add_argument("--minutes", type=float, default=60)
    options = parser.parse_args()
    if 60 * options.minutes < 2 * WARM * EVERY:
        parser.error(f"--minutes {options.minutes:g}: expected at least {WARM * EVERY / 30:.1f}")
    options.folder.mkdir(parents=True)
    _write_pictures(options.folder / "pictures")
    trainings = _begin(options.folder)
    try:
        _watch(trainings, 60 * options.minutes)
    finally:
        for training in trainings:
            training.process.send_signal(signal.SIGTERM)
        codes = [training.process.wait() for training in trainings]
    heads = ("training", "steps", "MiB, medians of fifths after the first", "last / second", "readers, MiB")
    print(f"| {' | '.join(heads)} | open files | threads |\n|{'---|' * 7}")
    for training in trainings:
        print(training.row(_last_step(options.folder / f"{training.name}.log")))
    print(f"exit codes {codes}; {len(trainings[0].memory)} looks in {options.minutes:g} minutes")
    return 0 if all(training.steady() for training in trainings) else 1


if __name__ == "__main__":
    raise SystemExit(main())
