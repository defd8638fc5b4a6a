"""Speed of the quantizer beside its peers, in one process: forward, forward and backward, index encode and decode.

    python benchmarks/quantizers.py [--threads 2] [--device cpu] [--rounds 15] [--eager] [--out benchmarks]

Beside ifsq.FSQ (as tanh, which is the peer's function, and as iFSQ): vector_quantize_pytorch.FSQ, an FSQ in three lines
without indices, a bare copy of the input, and one compiled product, which is what compiling costs at least. Candidates
take turns in every round, so that what else the machine does meets all of them; the figures are medians over the
rounds, and ratios are medians of the ratios within a round.
Needs ``pip install 'ifsq[dev]'``. Writes ``quantizers_<hardware>_<date>.md``.
"""

import argparse
import datetime
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
import vector_quantize_pytorch
from torch import Tensor

import ifsq

CASES = {
    "(64, 4, 16, 16)": ((64, 4, 16, 16), [17] * 4),
    "(1, 4, 512, 512)": ((1, 4, 512, 512), [17] * 4),
    "(1, 1M, 6)": ((1, 1_000_000, 6), [9] * 6),  # the peer keeps every code in memory: [17]*6 would take 0.6 GB
}
SHARE = 0.02  # seconds that one candidate's turn should take
PEER = "vector_quantize_pytorch"
FLOOR = "one product, compiled"  # the least that a compiled function takes


def three_lines(levels: list[int]) -> Callable[[Tensor], tuple[Tensor, None]]:
    half = (levels[0] - 1) / 2

    def quantize(z: Tensor) -> tuple[Tensor, None]:
        y = torch.tanh(z) * half
        y = y + (y.round() - y).detach()
        return y / half, None

    return quantize


def read(quantizer: ifsq.FSQ) -> Callable[[Tensor], tuple[Tensor | None, ...]]:
    """The quantizer, whose indices are computed where they are read, and read here."""
    return lambda z: tuple(quantizer(z))


def candidates(levels: list[int], device: str, eager_alone: bool = False) -> dict[str, Callable[[Tensor], object]]:
    """Everything that quantizes, eager and, unless these alone are wanted, compiled."""
    eager: dict[str, Callable[[Tensor], object]] = {
        PEER: vector_quantize_pytorch.FSQ(levels).to(device),
        "three lines": three_lines(levels),
        "ifsq, tanh": read(ifsq.FSQ(levels, bound="tanh").to(device)),
        "ifsq": read(ifsq.FSQ(levels).to(device)),
        "ifsq, equal cells": read(ifsq.FSQ(levels, cells="equal").to(device)),
        "ifsq, tanh, indices not read": ifsq.FSQ(levels, bound="tanh").to(device),
        "ifsq, indices not read": ifsq.FSQ(levels).to(device),
        "ifsq, codes only": ifsq.FSQ(levels, return_indices=False).to(device),
    }
    if eager_alone:
        return eager
    compiled = {f"{name}, compiled": torch.compile(f, dynamic=False) for name, f in eager.items()}
    return eager | compiled | {FLOOR: torch.compile(lambda z: (z * 2, None), dynamic=False)}


def codes_of(record: object) -> Tensor:
    return record.codes if isinstance(record, ifsq.Quantized) else record[0]  # type: ignore[index]


def operations(
    shape: tuple[int, ...], levels: list[int], device: str, eager_alone: bool = False
) -> dict[str, dict[str, Callable[[], object]]]:
    """Operation -> candidate -> a call without arguments."""
    z = torch.randn(shape, device=device)
    weight = torch.randn(shape, device=device)
    leaf = z.clone().requires_grad_()
    target = torch.empty_like(z)
    quantizers = candidates(levels, device, eager_alone)

    def backward(f: Callable[[Tensor], object]) -> Callable[[], None]:
        def run() -> None:
            leaf.grad = None
            codes_of(f(leaf)).backward(weight)

        return run

    def copy_there_and_back() -> None:
        z.clone()
        weight.clone()

    copies: dict[str, Callable[[], object]] = {
        "copy": z.clone,
        "copy into a tensor that is there": lambda: target.copy_(z),
    }
    forward = {name: (lambda f=f: f(z)) for name, f in quantizers.items()}
    both = {name: backward(f) for name, f in quantizers.items()}

    peer, ours = quantizers[PEER], ifsq.FSQ(levels, bound="tanh").to(device)
    codes, indices = ours(z)  # type: ignore[misc]
    their_codes = codes.movedim(1, -1).contiguous() if codes.ndim == 4 else codes
    their_indices = indices.to(torch.int32)
    encode = {
        PEER: (lambda: peer.codes_to_indices(their_codes)),  # type: ignore[attr-defined]
        "ifsq": (lambda: ours.codes_to_indices(codes)),  # type: ignore[attr-defined]
    }
    decode = {
        PEER: (lambda: peer.indices_to_codes(their_indices)),  # type: ignore[attr-defined]
        "ifsq": (lambda: ours.indices_to_codes(indices)),  # type: ignore[attr-defined]
    }
    if not eager_alone:
        for name, q, call in (
            (PEER, peer, (their_codes, their_indices)),
            ("ifsq", ours, (codes, indices)),
        ):
            to_indices = torch.compile(q.codes_to_indices, dynamic=False)  # type: ignore[attr-defined]
            to_codes = torch.compile(q.indices_to_codes, dynamic=False)  # type: ignore[attr-defined]
            encode[f"{name}, compiled"] = lambda f=to_indices, x=call[0]: f(x)
            decode[f"{name}, compiled"] = lambda f=to_codes, x=call[1]: f(x)
    return {
        "forward": copies | forward,
        "forward and backward": {"two copies": copy_there_and_back} | both,
        "index encode": encode,
        "index decode": decode,
    }


def measure(calls: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds a call of every candidate in every round."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    repeats = {}
    for name, call in calls.items():
        for _ in range(5):  # compiles, and lets the allocator settle
            call()
        wait()
        start = time.perf_counter()
        for _ in range(5):
            call()
        wait()
        repeats[name] = max(3, int(5 * SHARE / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            wait()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            wait()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return times


def table(times: dict[str, list[float]], base: str) -> list[str]:
    """One row a candidate: median time, its spread, and how many times faster than ``base``."""
    lines = [f"| candidate | median ms | 10 to 90 % | {base} / it |", "|---|---|---|---|"]
    for name, values in times.items():
        ordered = sorted(values)
        low, high = ordered[len(values) // 10], ordered[-1 - len(values) // 10]
        ratio = statistics.median(b / t for b, t in zip(times[base], values, strict=True))
        lines.append(
            f"| {name} | {1e3 * statistics.median(values):.3f} | {1e3 * low:.3f} to {1e3 * high:.3f} | {ratio:.2f} |"
        )
    return lines


def hardware(device: str) -> tuple[str, str]:
    """A name for the file, and one for the page."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        return name.lower().replace(" ", "-"), name
    cores = torch.get_num_threads()
    return f"cpu{cores}", f"{cores} threads of {processor()} ({torch.backends.cpu.get_cpu_capability()})"


def processor() -> str:
    """What the system calls the processor: figures hold for it alone."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {platform.machine()}" if names else f"a {platform.machine()} CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--eager", action="store_true", help="leave out what is compiled")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    short, long = hardware(options.device)
    date = datetime.date.today().isoformat()
    lines = [
        f"# Quantizers: speed, {date}",
        "",
        f"{long}, torch {torch.__version__}, vector-quantize-pytorch {version('vector-quantize-pytorch')}, float32,",
        f"seed 0, {options.rounds} rounds of",
        f"`python benchmarks/quantizers.py --threads {options.threads} --device {options.device}"
        f"{' --eager' if options.eager else ''}`. A ratio above 1:",
        "faster than the peer. `ifsq` checks its input for NaN and infinity on a CPU; the others do not. Its indices",
        "are computed where they are read: they are here, but for the rows that say otherwise.",
    ]
    for case, (shape, levels) in CASES.items():
        for operation, calls in operations(shape, levels, options.device, options.eager).items():
            times = measure(calls, options.rounds, options.device)
            lines += ["", f"## {operation}, {case}, levels {levels}", "", *table(times, PEER)]
            print("\n".join(lines[-len(calls) - 5 :]), flush=True)
            torch.compiler.reset()
    path = options.out / f"quantizers_{short}_{date}.md"
    path.write_text("\n".join(lines) + "\n")
    print(f"\n{path}")


if __name__ == "__main__":
    main()
