"""The masked generator beside the autoregressive one: bits of held-out codes, and class agreement by sampling time.

    python benchmarks/masked.py --work runs/demo [--seeds 0 1 2] [--threads 2] [--samples 400] [--batches 1 10 64]
        [--draws 8] [--bits | --times] [--out FILE]

``--work`` is the folder of a demo (``tokenizer``, ``codes``, its judge). Trains
``experiments/bundled/ar_ifsq_f4_d4_4bit.toml`` and ``masked_ifsq_f4_d4_4bit.toml`` on its codes for every seed, as
``WORK/compare_KIND_SEED``; what is there already is read. Prints, for each seed,

- with ``--bits`` the bits of all held-out codes: exact of the autoregressive one, of the masked one the bound over all
  orders with the standard error of its draws;
- with ``--times`` the class agreement of samples and the seconds of a batch of images (tokens alone; the least of
  three), by options of sampling, in one process, the kinds in turn.

Without either, both.
"""

import argparse
import math
import statistics
import time
from pathlib import Path

import torch

from ifsq import pipeline
from ifsq.codes.cache import CodeCache
from ifsq.evaluation.judge import JudgeNet
from ifsq.experiment import load_generator_experiment
from ifsq.generators import Generator, MaskedGenerator
from ifsq.generators.masked.bound import BoundOptions
from ifsq.store.run import Run
from ifsq.tokenizer.model import Tokenizer

FOLDER = Path("experiments/bundled")
OPTIONS = {
    "masked": [
        {"rounds": 4, "guidance": 7.0, "guidance_interval": 3},
        {"rounds": 5, "guidance": 8.0, "guidance_interval": 2},
        {"rounds": 4, "guidance": 7.0},
        {"rounds": 8, "guidance": 4.0},
    ],
    "ar": [{}],
}


def trained(kind: str, seed: int, work: Path) -> Generator:
    """The generator of a seed, trained where it is not there yet."""
    folder = work / f"compare_{kind}_{seed}"
    over = ["--tokenizer", str(work / "tokenizer"), "--codes", str(work / "codes"), "--out", str(folder)]
    path = FOLDER / f"{kind}_ifsq_f4_d4_4bit.toml"
    if not folder.exists():
        pipeline.train_generator(load_generator_experiment(path, [*over, "--train.seed", str(seed)]), "cpu")
    return Generator.from_run(Run.open(folder))


@torch.no_grad()
def bits(model: Generator, cache: CodeCache, draws: int) -> tuple[float, float]:
    """Mean over the held-out images, and the standard error of its estimate; 0 where it is exact."""
    codes, total, errors = cache.read("val"), 0.0, 0.0
    for rows in torch.arange(len(codes)).split(64):
        batch = codes.batch(rows, torch.device("cpu"))
        if isinstance(model, MaskedGenerator):
            found = model.bound(batch, BoundOptions(draws), first=int(rows[0]))
            assert found.error is not None
            total += float(found.nats.sum())
            errors += float(found.error.square().sum())
        else:
            nats = model.nll(batch)
            assert nats is not None
            total += float(nats.double().sum())
    return total / len(codes) / math.log(2), math.sqrt(errors) / len(codes) / math.log(2)


def judge_of(work: Path, classes: int) -> JudgeNet:
    """The one that the demo's evaluation has trained."""
    judge = JudgeNet(classes)
    judge.load_state_dict(Run.open(next(work.glob("judge_*"))).weights().load())
    return judge.eval()


@torch.no_grad()
def agreement(model: Generator, tokenizer: Tokenizer, judge: JudgeNet, samples: int, options: dict) -> float:
    """Share of samples, of all classes alike, that the judge sees as the class asked for."""
    labels, right = torch.arange(samples) % model.num_classes, 0
    for first in range(0, samples, 100):
        part = labels[first : first + 100]
        images = tokenizer.decode_sampled(model.sample(part, seed=0, first=first, **options)).clamp(-1, 1)
        right += int((judge.logits(images).argmax(dim=1) == part).sum())
    return right / samples


def seconds(model: Generator, batch: int, options: dict) -> float:
    """The least of three batches."""
    labels, found = torch.arange(batch) % model.num_classes, []
    for seed in range(3):
        began = time.perf_counter()
        model.sample(labels, seed=seed, **options)
        found.append(time.perf_counter() - began)
    return min(found)


def spread(values: list[float], digits: int = 4) -> str:
    """Mean and standard deviation."""
    more = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}g}{more}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 10, 64])
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--bits", action="store_true")
    parser.add_argument("--times", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    models = {(kind, seed): trained(kind, seed, args.work) for seed in args.seeds for kind in ("ar", "masked")}
    if args.bits or not args.times:
        cache, found = CodeCache.open(args.work / "codes"), {}
        print("| kind | seed | bits an image | error of the draws |\n|---|---|---|---|")
        for (kind, seed), model in models.items():
            value, error = bits(model, cache, args.draws)
            found.setdefault(kind, []).append(value)
            print(f"| {kind} | {seed} | {value:.1f} | {error:.2g} |", flush=True)
        print({kind: spread(values) for kind, values in found.items()})
    if args.times or not args.bits:
        tokenizer = Tokenizer.from_pretrained(args.work / "tokenizer")
        judge, base = judge_of(args.work, models["ar", args.seeds[0]].num_classes), {}
        print(f"| kind | options | class agreement | seconds of {args.batches} images, share of ar's |")
        print("|---|---|---|---|")
        for kind in ("ar", "masked"):
            for chosen in OPTIONS[kind]:
                options = {"guidance": 2.0, **chosen}
                shares = [agreement(models[kind, seed], tokenizer, judge, args.samples, options) for seed in args.seeds]
                times = [seconds(models[kind, args.seeds[0]], batch, options) for batch in args.batches]
                base = base or dict(zip(args.batches, times, strict=True))
                told = ", ".join(f"{t:.3g} ({t / base[b]:.2f})" for b, t in zip(args.batches, times, strict=True))
                print(f"| {kind} | {options} | {spread(shares, 3)} | {told} |", flush=True)


if __name__ == "__main__":
    main()
