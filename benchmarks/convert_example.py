"""An autoencoder built on vector_quantize_pytorch.FSQ, converted and calibrated: what it costs and what it brings.

Trains a small model of photographs with the peer's FSQ, copies it, converts each copy another way, trains all copies on
for the same number of steps, and prints held-out PSNR and level entropy: mean and spread over seeds. Needs
vector-quantize-pytorch. ``OMP_NUM_THREADS=1 python benchmarks/convert_example.py`` takes 5 minutes on one core.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ

import ifsq
from ifsq.data import DataConfig, open_images
from ifsq.quantizers.usage import LevelUse

LEVELS, SIZE, BATCH, WIDTH = [17] * 4, 32, 32, 48


class Autoencoder(nn.Module):
    """Somebody's model: images (b, 3, 32, 32) -> a code of four numbers for every 4 x 4 pixels -> images."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, WIDTH, 3, padding=1), Block(), Block())
        self.to_latent = nn.Conv2d(WIDTH, len(LEVELS), 1)
        self.quantizer = FSQ(LEVELS)
        self.from_code = nn.Conv2d(len(LEVELS), WIDTH, 3, padding=1)
        self.decoder = nn.Sequential(Block(), Block(), nn.Conv2d(WIDTH, 48, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, images: Tensor) -> Tensor:
        codes, _ = self.quantizer(self.to_latent(self.encoder(images)))
        return self.decoder(self.from_code(codes))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, WIDTH),
            nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def photographs(split: str, count: int) -> Tensor:
    """Crops (count, 3, 32, 32) in [-1, 1] of the bundled photographs; ``val`` from parts that ``train`` leaves out."""
    source = open_images(DataConfig("bundled:photos", SIZE), split)
    pixels = [torch.from_numpy(source.load(i % len(source), seed=0)[0]) for i in range(count)]
    return torch.stack(pixels).movedim(-1, 1).float() / 127.5 - 1


def batches(images: Tensor, steps: int, seed: int) -> Iterator[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield images[torch.randint(len(images), (BATCH,), generator=rng)]


def train(model: nn.Module, images: Tensor, steps: int, seed: int, rate: float) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for step, batch in enumerate(batches(images, steps, seed)):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 50)
        optimizer.zero_grad()
        F.mse_loss(model(batch), batch).backward()
        optimizer.step()


@torch.no_grad()
def measure(model: Autoencoder, images: Tensor) -> tuple[float, float]:
    """PSNR in dB, mean over images, and entropy of the levels over log2 L, mean over channels; in evaluation mode."""
    model.eval()
    error = (model(images).clamp(-1, 1) - images).square().mean((1, 2, 3)) / 4
    _, indices = model.quantizer(model.to_latent(model.encoder(images)))
    digits = ifsq.FSQ(LEVELS).indices_to_digits(indices.long())
    use = LevelUse.of([torch.bincount(digits[..., c].flatten(), minlength=L) for c, L in enumerate(LEVELS)])
    return -10 * error.log10().mean().item(), use.fraction


def change(
    model: Autoencoder, to: str | None, cells: str | None, bound: str | None, train_batches: list[Tensor]
) -> str:
    """Convert, and calibrate where there is a bound to fit; what happened, in words."""
    said = "" if to is None else str(ifsq.convert(model, to=to, cells=cells))
    return said if bound is None else f"{said}\n\n{ifsq.calibrate(model, train_batches, bound=bound)}"


WAYS: dict[str, tuple[str | None, str | None, str | None]] = {  # to, cells, bound
    "peer, as it is": (None, None, None),
    "tanh": ("tanh", None, None),
    "ifsq, equal cells": ("ifsq", "equal", None),
    "standardized, equal cells": ("ifsq", "equal", "standardized"),
    "quantile, equal cells": ("ifsq", "equal", "quantile"),
}


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="of the first training")
    parser.add_argument("--further", type=int, default=1000, help="steps of every copy after its conversion")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    start, images, held_out = time.time(), photographs("train", 2560), photographs("val", 320)
    table: dict[str, list[tuple[float, ...]]] = {name: [] for name in WAYS}
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        first = Autoencoder()
        train(first, images, options.steps, seed, rate=2e-3)
        for name, way in WAYS.items():
            model = copy.deepcopy(first).eval()
            said = change(model, *way, list(batches(images, 50, seed=99)))
            if seed == 0:
                print(f"## {name}\n\n{said}\n", flush=True)
            before = measure(model, held_out)
            train(model, images, options.further, seed + 1000, rate=5e-4)
            table[name].append((*before, *measure(model, held_out)))
    print(f"\nlevels {LEVELS}, {options.steps} + {options.further} steps, {options.seeds} seeds, mean ± deviation\n")
    print("| quantizer | PSNR at once | of log2 L | PSNR after further steps | - peer, same seed | of log2 L |")
    print("|---|---|---|---|---|---|")
    peer = [row[2] for row in table["peer, as it is"]]
    for name, rows in table.items():
        psnr, even, psnr_after, even_after = (list(column) for column in zip(*rows, strict=True))
        gain = [after - other for after, other in zip(psnr_after, peer, strict=True)]
        shown = [spread(psnr, 2), spread(even, 3), spread(psnr_after, 2), spread(gain, 2), spread(even_after, 3)]
        print(f"| {name} | {' | '.join(shown)} |")
    print(f"\n{time.time() - start:.0f} s, torch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
