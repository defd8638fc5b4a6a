"""Exported tokenizers beside eager ones on a CPU: time, differences, and how many digits are others.

    python benchmarks/export.py RUN_OR_EXPERIMENT.toml... [--size 0] [--images 64] [--batch 4] [--rounds 5]

A run is read with its averaged weights, an experiment gives random ones. Each is exported as ONNX into a temporary
folder, which checks it. Held-out crops of the bundled photographs then pass through the eager tokenizer (float32) and
through ONNX Runtime in turns; times are medians over rounds and batches, ratios medians of the ratios of a turn. Prints
a row of a table for each.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch

from ifsq.data import DataConfig, open_images
from ifsq.data.sampler import iterate_once
from ifsq.experiment import load_tokenizer_experiment
from ifsq.interop.graphs.formats import open_onnx
from ifsq.interop.graphs.write import export_graphs
from ifsq.tokenizer.model import Tokenizer

T = TypeVar("T")


def load(path: Path) -> tuple[Tokenizer, int]:
    """A tokenizer, and the size of its images."""
    if path.suffix == ".toml":
        torch.manual_seed(0)
        experiment = load_tokenizer_experiment(path)
        return Tokenizer(experiment.tokenizer).eval(), experiment.data.sides[0]
    return Tokenizer.from_pretrained(path), 32


def timed(compute: Callable[[], T]) -> tuple[T, float]:
    """What was computed, and the seconds that it took."""
    start = time.perf_counter()
    found = compute()
    return found, time.perf_counter() - start


@torch.no_grad()
def measure(path: Path, size: int, images: int, batch: int, rounds: int) -> str:
    """A row of the table."""
    tokenizer, own = load(path)
    size = size or own
    source = open_images(DataConfig(source="bundled:photos", size=size), "val", labels=False, channels=3)
    count = min(images, len(source))
    batches = [found.images for found in iterate_once(source, range(count), batch)]
    with TemporaryDirectory() as folder:
        made, export_seconds = timed(lambda: export_graphs(tokenizer, Path(folder) / "graphs", "onnx", {}))
        files = {file.stem: file for file in (Path(folder) / "graphs").glob("*.onnx")}
        megabytes = [files[part].stat().st_size / 1e6 for part in ("encoder", "decoder")]
        opened = {part: open_onnx(file) for part, file in files.items()}
    print("\n".join(made), flush=True)
    ratios: dict[str, list[float]] = {"encode": [], "decode": []}
    seconds: dict[str, list[float]] = {"encode": [], "decode": []}
    latents_off = images_off = 0.0
    digits = others = 0
    for turn in range(rounds):
        for pixels in batches if turn == 0 else batches[:4]:
            encoded, eager = timed(lambda pixels=pixels: tokenizer.encode(pixels))
            latents, first = timed(lambda pixels=pixels: opened["encoder"](pixels)["latents"])
            given, second = timed(lambda latents=latents: opened["quantizer"](latents))
            ratios["encode"].append(eager / (first + second))
            seconds["encode"].append((first + second) / len(pixels))
            decoded, eager = timed(lambda encoded=encoded: tokenizer.decode(encoded.codes))
            again, second = timed(lambda encoded=encoded: opened["decoder"](encoded.codes)["images"])
            ratios["decode"].append(eager / second)
            seconds["decode"].append(second / len(pixels))
            if turn == 0:
                assert encoded.digits is not None
                digits += encoded.digits.numel()
                others += int((given["digits"] != encoded.digits).sum())
                latents_off = max(latents_off, float((latents - tokenizer.latent(pixels)).abs().max()))
                images_off = max(images_off, float((again - decoded).abs().max()))
    middle = statistics.median
    times = " | ".join(f"{middle(seconds[what]) * 1e3:.1f} | {middle(ratios[what]):.2f}" for what in ratios)
    return (
        f"| {path.stem} | {size} | {megabytes[0]:.1f} + {megabytes[1]:.1f} | {export_seconds:.0f} | {times} |"
        f" {latents_off:.1e} | {images_off:.1e} | {others} of {digits:,} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizers", type=Path, nargs="+")
    for name, value in (("size", 0), ("images", 64), ("batch", 4), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [measure(path, options.size, options.images, options.batch, options.rounds) for path in options.tokenizers]
    print(
        "| tokenizer | px | MB | export s | encode ms | eager / ONNX | decode ms | eager / ONNX | latents | images |"
        " other digits |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    print("\n".join(rows))


if __name__ == "__main__":
    main()
