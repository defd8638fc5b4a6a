"""The demo's tokenizer with and without the perceptual distance of EfficientNet-Lite0, at equal steps, three seeds.

    python benchmarks/perceptual.py [--steps 300] [--batch 16] [--images 320] [--seeds 0 1 2]
        [--work runs/perceptual] [--out benchmarks]

Trains ``experiments/demo/tokenizer.toml`` with ``--loss.perceptual efficientnet-lite0`` and without, and measures the
reconstructions of its held-out crops: PSNR, SSIM, and the Fréchet and kernel distances of EfficientNet-Lite0's features
from the crops themselves (images enlarged to 128 px). Writes a table and, beside the runs, one picture: a row of crops
and a row of each setting. Needs the extra ``features``.
"""

import argparse
import datetime
import os
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from ifsq import pipeline
from ifsq.data import image_grid, open_images, write_png
from ifsq.data.images import DataConfig
from ifsq.experiment import load_tokenizer_experiment
from ifsq.metrics import frechet_distance, psnr, ssim
from ifsq.metrics.kernel import kernel_distance
from ifsq.pretrained.features import load_features
from ifsq.store.run import Run
from ifsq.tokenizer.model import Tokenizer

EXPERIMENT = "experiments/demo/tokenizer.toml"
FEATURES = "efficientnet-lite0@128"
SETTINGS = {"l1 + l2": [], "+ 0.1 perceptual": ["--loss.perceptual", "efficientnet-lite0"]}
MEASURES = ("PSNR, dB", "SSIM", f"FD({FEATURES})", f"KD({FEATURES}) x 1000", "processor s of training")
EXPECTED = """Expected before: PSNR 0.3 dB lower, SSIM about equal, FD a third lower and KD half; textures (fur, stars,
tissue) crisper to an eye and a faint grid at most; training 1.5 times as long."""


def held_out(n: int) -> Tensor:
    """uint8 (n, 3, 32, 32), at most 640."""
    source = open_images(DataConfig("bundled:photos", 32), "val")
    return torch.stack([torch.from_numpy(source.load(k, 0)[0].copy()).permute(2, 0, 1) for k in range(n)])


@torch.no_grad()
def reconstructions(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    """Floats in [-1, 1], not clamped."""
    parts = [few.float() / 127.5 - 1 for few in images.split(64)]
    return torch.cat([tokenizer.decode(tokenizer.encode(part).codes) for part in parts])


def pooled(images: Tensor) -> Tensor:
    network = load_features(FEATURES)
    return torch.cat([network(few, ("1280",))["1280"] for few in images.split(64)])


def train(setting: list[str], seed: int, steps: int, batch: int, folder: Path) -> tuple[Tokenizer, float]:
    """The averaged weights of a run, and the processor seconds of its training; a finished run is read."""
    own = ["--train.steps", str(steps), "--train.batch", str(batch), "--train.seed", str(seed), "--out", str(folder)]
    own += setting
    start, told = time.process_time(), folder / "processor_seconds"
    if not told.is_file():
        pipeline.train_tokenizer(load_tokenizer_experiment(Path(EXPERIMENT), own), "cpu")
        told.write_text(str(time.process_time() - start))
    return Tokenizer.from_run(Run.open(folder)), float(told.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/perceptual"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = held_out(args.images)
    floats, real = images.float() / 127.5 - 1, pooled(images)
    shown = [images[:20]]
    found: dict[str, list[tuple[float, ...]]] = {}
    for seed in args.seeds:
        for number, (name, setting) in enumerate(SETTINGS.items()):
            folder = args.work / f"setting{number}_seed{seed}"
            tokenizer, seconds = train(setting, seed, args.steps, args.batch, folder)
            made = reconstructions(tokenizer, images)
            bytes_made = (made * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
            features = pooled(bytes_made)
            kernel = 1000 * kernel_distance(real, features, draws=0).value
            values = float(psnr(floats, made).mean()), float(ssim(floats, made).mean())
            values = (*values, frechet_distance(real, features), kernel, seconds)
            found.setdefault(name, []).append(values)
            print(name, seed, [f"{value:.4g}" for value in values], flush=True)
            if seed == args.seeds[0]:
                shown.append(bytes_made[:20])
    write_png(image_grid(torch.cat(shown).permute(0, 2, 3, 1).numpy(), 20), args.work / "pictures.png")
    write_table(found, args)


def write_table(found: dict[str, list[tuple[float, ...]]], args: argparse.Namespace) -> None:
    today = datetime.date.today().isoformat()
    lines = []
    for name, rows in found.items():
        columns = list(zip(*rows, strict=True))
        cells = [f"{statistics.mean(values):.4g} ± {statistics.stdev(values):.2g}" for values in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    path = args.out / f"perceptual_cpu{os.cpu_count()}_{today}.md"
    heading = [
        f"# A perceptual distance of EfficientNet-Lite0 in the loss, {today}",
        "",
        f"`python benchmarks/perceptual.py`: `{EXPERIMENT}`, {args.steps} steps of {args.batch} images, seeds"
        f" {args.seeds}, one thread, torch {torch.__version__};",
        f"{args.images} held-out crops of 32 px; mean ± deviation over the seeds.",
        "",
        *EXPECTED.splitlines(),
        "",
    ]
    table = [f"| loss | {' | '.join(MEASURES)} |", "|---" * (1 + len(MEASURES)) + "|", *lines, ""]
    path.write_text("\n".join([*heading, *table]))
    print(path)


if __name__ == "__main__":
    main()
