"""What diffusion generators know of held-out codes, in bits per image, beside autoregressive ones of the same codes.

    python benchmarks/diffusion_likelihood.py CODES AR_RUN,DIFFUSION_RUN [AR_RUN,DIFFUSION_RUN ...] [--images 32]

Each pair of runs is of one seed of training. The autoregressive figure is exact, the others are upper bounds with
Hutchinson's estimator, one probe; the images are the same, and so are the random numbers of each.
"""

import argparse
import math
import statistics
import time
from pathlib import Path

import torch

from ifsq.codes.cache import CodeCache
from ifsq.data.sampler import sample_order
from ifsq.generators import Generator
from ifsq.generators.diffusion.likelihood import LikelihoodOptions, likelihood

SETTINGS = {
    **{f"path, spread {spread:g}": LikelihoodOptions(steps=16, spread=spread) for spread in (0.25, 0.5, 1.0, 2.0)},
    "uniform": LikelihoodOptions(steps=16, dequantization="uniform"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codes", type=Path)
    parser.add_argument("pairs", nargs="+", metavar="AR_RUN,DIFFUSION_RUN")
    parser.add_argument("--images", type=int, default=32)
    asked = parser.parse_args()
    codes = CodeCache.open(asked.codes).read("val")
    batch = codes.batch(torch.tensor(sample_order(0, 0, len(codes))[: asked.images]))
    print(f"{asked.images} of {len(codes)} held-out images")
    found: dict[str, list[torch.Tensor]] = {}
    for pair in asked.pairs:
        ar, diffusion = (Generator.from_pretrained(Path(run)) for run in pair.split(","))
        nats = ar.nll(batch)
        assert nats is not None
        found.setdefault("autoregressive, exact", []).append(nats.double() / math.log(2))
        for name, options in SETTINGS.items():
            start = time.process_time()
            bits = likelihood(diffusion, batch, options).bits
            found.setdefault(name, []).append(bits)
            print(f"{pair} {name}: {float(bits.mean()):.1f} in {time.process_time() - start:.1f} s of CPU", flush=True)
    print("\n| | bits per image, each seed | mean | more than autoregressive, each seed, with its standard error |")
    print("|---|---|---|---|")
    exact = found["autoregressive, exact"]
    for name, rows in found.items():
        means = [float(bits.mean()) for bits in rows]
        more = [bits - told for bits, told in zip(rows, exact, strict=True)]
        beyond = ", ".join(f"{float(m.mean()):.1f} +- {float(m.std()) / len(m) ** 0.5:.1f}" for m in more)
        told = ", ".join(f"{mean:.1f}" for mean in means)
        print(f"| {name} | {told} | {statistics.mean(means):.1f} | {'' if rows is exact else beyond} |")


if __name__ == "__main__":
    main()
