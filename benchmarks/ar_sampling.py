"""Autoregressive sampling on a CPU beside an earlier build of this project and Hugging Face's `generate`.

    python benchmarks/ar_sampling.py [--before DIR] [--transformers PYTHON] [--quality RUN ...] [--threads 2]
                                     [--rounds 3] [--cells 2x256 ...] [--minutes 10] [--tiny] [--out benchmarks]

A Llama of LlamaGen's size B (12 blocks of 768, 16384 codes, random weights) draws whole images, with a guidance of 2
unless it says otherwise. Every candidate is a process of its own that waits while another works; they take turns in
every round, so that what else the machine does meets all of them, and ratios are medians of those within a round. A
time is that of a whole call: ours packs the weights, makes the buffers, and draws. Peak memory is the process's
meanwhile. The floor is the time in which the machine reads the weights of the linear layers once a token.

before        a checkout of an earlier build, run by this Python
transformers  a Python that has torch and transformers; default: this one. Its `LlamaForCausalLM` has the same sizes,
              and its guidance (``guidance_scale`` with negative prompt ids) passes class and null class one after the
              other
quality       runs of autoregressive generators: bits per held-out image with the weights of each precision
cells         BATCHxTOKENS; default: those of `CELLS`, which stop where a table would take more than minutes: all
              candidates up to 64 x 64 and 8 x 256, beyond them ours alone
minutes       after which no other cell is begun
tiny          a network of 2 blocks of 64 and few tokens, to try the script

Writes ``ar_sampling_<hardware>_<date>.md``.
"""

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

CLASSES = 1000
SIZES = {"B": (12, 768, 12, 16384), "tiny": (2, 64, 2, 289)}  # blocks, width, heads, codes
LEVELS = {16384: (16, 16, 8, 8), 289: (17, 17)}
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
DEFAULT = "ours bf16, the default"
CANDIDATES = {  # which process, which precision
    "ours fp32": ("ours", "fp32"),
    DEFAULT: ("ours", "bf16"),
    "ours int8": ("ours", "int8"),
    "before fp32": ("before", "fp32"),
    "before bf16": ("before", "bf16"),
    "transformers fp32": ("transformers", "fp32"),
    "transformers bf16": ("transformers", "bf16"),
}
TARGET = (2, 256)
ALL, MINE = tuple(CANDIDATES), (DEFAULT,)
CELLS = {
    (1, 64): ALL,
    (1, 256): ALL,
    (2, 64): ALL,
    (8, 64): ALL,
    (8, 256): ALL,
    (64, 64): ALL,
    (64, 256): MINE,
    (1, 1024): ("ours fp32", DEFAULT, "ours int8"),
    (2, 1024): MINE,
    (8, 1024): MINE,
}

EXPECTED = (
    "Expected before the first run on an idle machine, for the target cell: ours 45 to 50 steps a second in fp32 (the"
    " packed layers at 22 GB/s take 17.5 ms, 3 ms for the rest), 75 to 95 in bf16, 100 to 130 in int8; before 26 and"
    " 41, transformers 19 and 21, as measured when this was planned. Batch 1 without guidance at 65 to 75 % of the"
    " floor in fp32 and bf16, at 45 % in int8, whose 3.4 ms leave the 1.3 ms of small operations in sight. At 64 images"
    " int8 slower than bf16: its kernel takes a few rows at a time."
)


class Ours:
    """Whichever ifsq this process imports."""

    def __init__(self, size: str, chooses: bool) -> None:
        self.size, self.chooses = size, chooses  # whether sampling says the precision, else the model's own
        self.made, self.model = (0, ""), None

    def prepare(self, tokens: int, precision: str) -> None:
        from ifsq.codes import CodeSpec
        from ifsq.generators.ar import ARConfig, ARGenerator

        held = "fp32" if self.chooses else precision
        if self.made == (tokens, held):
            return
        depth, width, heads, codes = SIZES[self.size]
        torch.manual_seed(0)
        levels, side = LEVELS[codes], math.isqrt(tokens)
        spec = CodeSpec(levels, (len(levels),), "little", "equal", (side, side))
        self.model = ARGenerator(ARConfig(depth, width, heads), spec, CLASSES).eval()
        torch.nn.init.normal_(self.model.head.output[0].weight, std=0.02)
        self.model = self.model.bfloat16() if held == "bf16" else self.model
        self.made = (tokens, held)

    def draw(self, batch: int, tokens: int, guidance: float, precision: str) -> None:
        options = {"precision": precision} if self.chooses else {}
        self.model.sample(torch.arange(batch) % CLASSES, guidance=guidance, **options)


class Theirs:
    """`generate` of a Llama of the same sizes."""

    def __init__(self, size: str) -> None:
        import transformers

        depth, width, heads, codes = SIZES[size]
        config = transformers.LlamaConfig(
            vocab_size=max(codes, CLASSES + 1),
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=math.ceil(int(8 * width / 3) / 256) * 256,
            max_position_embeddings=2048,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
        torch.manual_seed(0)
        self.model = transformers.LlamaForCausalLM(config).eval()

    def prepare(self, tokens: int, precision: str) -> None:
        self.model.to(torch.bfloat16 if precision == "bf16" else torch.float32)

    def draw(self, batch: int, tokens: int, guidance: float, precision: str) -> None:
        prompt = torch.arange(batch)[:, None] % CLASSES
        guided = {"guidance_scale": guidance, "negative_prompt_ids": torch.full_like(prompt, CLASSES)}
        length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        mask = torch.ones_like(prompt)
        options = guided if guidance != 1 else {}
        out = self.model.generate(prompt, attention_mask=mask, do_sample=True, top_k=0, **length, **options)
        assert out.shape == (batch, 1 + tokens)


def work(kind: str, size: str) -> None:
    """Answer jobs, a line of JSON each, until the input ends."""
    drawer = Theirs(size) if kind == "transformers" else Ours(size, kind == "ours")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    for line in sys.stdin:
        job = json.loads(line)
        profile = job.pop("profile")
        drawer.prepare(job["tokens"], job["precision"])
        print(json.dumps(profiled(drawer, job) if profile else timed(drawer, job)), file=answers, flush=True)


def timed(drawer: Ours | Theirs, job: dict[str, Any]) -> dict[str, float]:
    """Seconds of a call, and megabytes of the process at their most meanwhile."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    began = time.perf_counter()
    drawer.draw(**job)
    seconds = time.perf_counter() - began
    peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    return {"seconds": seconds, "megabytes": int(peak) * 1.024e-3}


def profiled(drawer: Ours | Theirs, job: dict[str, Any]) -> dict[str, float]:
    """Milliseconds a token by kind of work as torch's profiler sees them, and those of a call without it."""
    kinds = {
        "linear layers": ("mkldnn::_linear", "aten::_weight_int8pack", "aten::addmm", "aten::mm"),
        "packing": ("mkldnn::_reorder", "aten::round", "aten::clamp"),
        "attention": ("aten::bmm", "aten::_scaled_dot", "aten::_softmax"),
        "copies and casts": ("aten::copy_", "aten::_to_copy", "aten::to"),
        "draw": ("aten::cumsum", "aten::searchsorted", "aten::argmax", "aten::amax"),
    }
    rest = "norms, turns, sums, views"
    alone = timed(drawer, job)["seconds"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        drawer.draw(**job)
    found = dict.fromkeys((*kinds, rest), 0.0)
    for event in profile.key_averages():
        name = next((name for name, starts in kinds.items() if event.key.startswith(starts)), rest)
        found[name] += event.self_cpu_time_total / 1e3 / job["tokens"]
    return found | {"whole call without the profiler": 1e3 * alone / job["tokens"]}


class Worker:
    """A process that draws."""

    def __init__(self, kind: str, python: str, source: Path, asked: argparse.Namespace) -> None:
        path = {"OMP_NUM_THREADS": str(asked.threads), "PYTHONPATH": str(source), "TRANSFORMERS_VERBOSITY": "error"}
        command = [python, __file__, "--worker", kind, *(["--tiny"] if asked.tiny else [])]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=os.environ | path, **pipes)

    def ask(self, cell: tuple[int, int], guidance: float, precision: str, profile: bool = False) -> dict[str, float]:
        """What a job took."""
        job = {"batch": cell[0], "tokens": cell[1], "guidance": guidance, "precision": precision, "profile": profile}
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        print(json.dumps(job), file=stdin, flush=True)
        answer = stdout.readline()
        if not answer:
            raise SystemExit(f"a process that draws ended with {self.process.wait()}")
        return json.loads(answer)

    def end(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


Took = Mapping[str, list[dict[str, float]]]


def rounds(workers: Mapping[str, Worker], names: Iterable[str], cell: tuple[int, int], guidance: float, n: int) -> Took:
    """Of each candidate that is here, what its calls took; turn by turn."""
    here = [name for name in names if CANDIDATES[name][0] in workers]
    took: dict[str, list[dict[str, float]]] = {name: [] for name in here}
    for turn in range(n):
        for name in here:
            kind, precision = CANDIDATES[name]
            took[name].append(workers[kind].ask(cell, guidance, precision))
            print(f"{cell[0]} x {cell[1]}, turn {turn}: {name}: {took[name][-1]['seconds']:.2f} s", file=sys.stderr)
    return took


def bandwidth() -> float:
    """Bytes a second at which a float32 tensor of 400 MB is read by a sum, at best."""
    numbers = torch.ones(100_000_000)
    best = math.inf
    for _ in range(8):
        began = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - began)
    return 4 * len(numbers) / best


def weights(size: str) -> int:
    """Numbers in the linear layers."""
    depth, width, _, codes = SIZES[size]
    mlp = math.ceil(int(8 * width / 3) / 256) * 256
    return depth * (4 * width * width + 3 * width * mlp) + width * codes


def rows(took: Took, cell: tuple[int, int], floors: Mapping[str, float]) -> list[str]:
    """Lines of a table about a cell."""
    lines = []
    for name, calls in took.items():
        seconds = statistics.median(call["seconds"] for call in calls)
        cells = [f"{cell[0]} x {cell[1]}", name, f"{cell[0] / seconds:.3g}", f"{cell[0] * cell[1] / seconds:.3g}"]
        cells += [f"{cell[1] / seconds:.3g}", f"{1e3 * seconds / cell[1]:.1f}"]
        cells.append(f"{floors[CANDIDATES[name][1]] * cell[1] / seconds:.0%}")
        for base in ("before fp32", "transformers fp32"):
            ratios = [b["seconds"] / a["seconds"] for a, b in zip(calls, took.get(base, ()), strict=False)]
            spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
            cells.append(f"{statistics.median(ratios):.2f}{spread}" if ratios else "")
        cells.append(f"{max(call['megabytes'] for call in calls):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


HEADER = [
    "| batch x tokens | | images/s | tokens/s | steps/s | ms a step | of the floor | times before fp32 |"
    " times transformers fp32 | peak MB |",
    "|---|---|---|---|---|---|---|---|---|---|",
]


def quality(runs: Iterable[Path]) -> list[str]:
    """Bits per held-out image of runs by the precision of their weights."""
    from ifsq.codes.cache import CodeCache
    from ifsq.generators import Generator
    from ifsq.generators.ar.packing import packed_copy, packer

    lines = ["| run | parameters | precision | bits per image | more than fp32 | standard error |", "|" + "---|" * 6]
    for run in runs:
        model: Any = Generator.from_pretrained(run)
        config = json.loads((run / "config.json").read_text())
        codes = CodeCache.open(Path(config["experiment"]["codes"])).read("val", None)
        batch = codes.batch(torch.arange(len(codes)), torch.device("cpu"))
        exact = model.nll(batch) / math.log(2)
        count = sum(parameter.numel() for parameter in model.parameters())
        for precision in BYTES:
            with torch.no_grad():
                more = packed_copy(model, packer(precision)).nll(batch) / math.log(2) - exact
            error = float(more.std()) / len(more) ** 0.5
            about = f"{run.parent.name}/{run.name}, {len(codes)} images | {count:,} | {precision}"
            lines.append(f"| {about} | {exact.mean() + more.mean():.3f} | {more.mean():+.4f} | {error:.4f} |")
    return lines


def table(asked: argparse.Namespace) -> Iterator[str]:
    """The measured lines of the file, as they come."""
    size = "tiny" if asked.tiny else "B"
    deadline = time.monotonic() + 60 * asked.minutes
    here = Path(__file__).resolve().parents[1] / "src"
    workers = {"ours": Worker("ours", sys.executable, here, asked)}
    if asked.before is not None:
        workers["before"] = Worker("before", sys.executable, asked.before.resolve() / "src", asked)
    question = [asked.transformers, "-c", "import transformers; print(transformers.__version__)"]
    found = subprocess.run(question, capture_output=True, text=True, check=False)
    if found.returncode == 0:
        workers["transformers"] = Worker("transformers", asked.transformers, here, asked)
        yield f"transformers {found.stdout.strip()}."
    else:
        yield f"transformers is absent: {asked.transformers} cannot import it, so its rows are left out."
    rate = max(bandwidth() for _ in range(2))
    floors = {precision: count * weights(size) / rate for precision, count in BYTES.items()}
    floor = ", ".join(f"{1e3 * seconds:.1f} ms in {precision}" for precision, seconds in floors.items())
    yield (
        f"The machine reads {rate / 1e9:.1f} GB/s; the linear layers are {4 * weights(size) / 1e9:.2f} GB in float32,"
        f" so that the floor of a step is {floor}."
    )
    target = (2, 64) if asked.tiny else TARGET
    yield from ("", f"The target, {asked.rounds} rounds (a step of a guided batch of 2 is a pass of 4 rows):", "")
    yield from (*HEADER, *rows(rounds(workers, ALL, target, 2.0, asked.rounds), target, floors))
    lone = (1, target[1])
    yield from ("", "Batch 1 without guidance, a row a step:", "", *HEADER)
    yield from rows(rounds(workers, ALL, lone, 1.0, 1), lone, floors)
    yield from (
        "",
        f"Milliseconds a step at {target[0]} x {target[1]} by torch's profiler, which itself takes time:",
        "",
    )
    parts = {name: workers["ours"].ask(target, 2.0, name, profile=True) for name in BYTES}
    yield from (f"| | {' | '.join(parts)} |", "|---|" + "---|" * len(parts))
    for kind in parts["fp32"]:
        yield f"| {kind} | " + " | ".join(f"{part[kind]:.2f}" for part in parts.values()) + " |"
    if asked.quality:
        yield from ("", "What the precision costs in likelihood:", "", *quality(asked.quality))
    cells = {cell: names for cell, names in CELLS.items() if not asked.tiny or cell[0] * cell[1] <= 256}
    if asked.cells:
        cells = {cell: cells.get(cell, ALL) for cell in asked.cells}
    yield from ("", "Other batches and lengths, with guidance, one call each:", "", *HEADER)
    for cell, names in cells.items():
        if time.monotonic() < deadline:
            yield from rows(rounds(workers, names, cell, 2.0, 1), cell, floors)
        else:
            yield f"| {cell[0]} x {cell[1]} | left out: {asked.minutes:g} minutes had passed |" + " |" * 8
    for worker in workers.values():
        worker.end()


def cell_of(text: str) -> tuple[int, int]:
    """``2x256`` as numbers."""
    batch, _, tokens = text.partition("x")
    return int(batch), int(tokens)


def main() -> None:
    """Measure and write the table, or draw for the process that does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", type=Path)
    parser.add_argument("--transformers", default=sys.executable)
    parser.add_argument("--quality", type=Path, nargs="*", default=())
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--cells", type=cell_of, nargs="*", default=())
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--worker", choices=("ours", "before", "transformers"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        work(asked.worker, "tiny" if asked.tiny else "B")
        return
    torch.set_num_threads(asked.threads)
    date = datetime.datetime.now(datetime.UTC).date()
    path = asked.out / f"ar_sampling_cpu{asked.threads}_{date}.md"
    words = (Path(word).name if word.startswith("/") else word for word in sys.argv[1:])  # no machine's folders
    command = " ".join(["`python benchmarks/ar_sampling.py", *words]) + "`"
    load = f"load {os.getloadavg()[0]:.1f} at the start"
    about = f"torch {torch.__version__}, {platform.machine()}, {asked.threads} threads, {load}."
    lines = ["# Autoregressive sampling", "", command, "", about, "", EXPECTED, ""]
    for line in table(asked):  # written as it grows: a run that is stopped leaves what it has measured
        lines.append(line)
        path.write_text("\n".join([*lines, ""]))
    print(path)


if __name__ == "__main__":
    main()
