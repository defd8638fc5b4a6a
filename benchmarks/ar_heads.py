"""Heads of the autoregressive generator at equal training FLOPs, on the same 17^4 codes, and a VQ row.

    python benchmarks/ar_heads.py [--seeds 0 1 2] [--work runs/ar_heads] [--threads 2] [--rows joint 2x289 ...]
        [--samples 1000] [--longer 420] [--short] [--out benchmarks]

Trains the demo's tokenizer and a VQ one by the same recipe once, encodes the bundled photographs, and trains
``experiments/bundled/ar_*`` on the codes, a seed after the other; what is there already in ``--work`` is read. Measures
bits an image of the held-out codes (exact for what each head draws), and of samples by the run's own options the
Fréchet distance in EfficientNet-Lite0's features, class agreement by one judge for all, and images a second in batches
of 64. ``--longer N``: the joint head also with N steps and the first seed, whatever it costs. ``--short`` trains
everything for three steps, to try the script. Needs the extra ``features``.
"""

import argparse
import datetime
import os
import statistics
import time
from pathlib import Path

import torch

from ifsq import pipeline
from ifsq.codes.cache import CodeCache
from ifsq.config import build
from ifsq.data import open_images
from ifsq.data.images import DataConfig
from ifsq.evaluation.collect import Look, collect
from ifsq.evaluation.given import DrawnImages, SourceImages
from ifsq.evaluation.image_cards import image_cards
from ifsq.evaluation.judge import JudgeFeatures, share_judge
from ifsq.evaluation.labels import labels_like
from ifsq.evaluation.protocol import blank_card, name_of
from ifsq.evaluation.reference import Reference, views_of
from ifsq.experiment import load_generator_experiment, load_tokenizer_experiment
from ifsq.generators.train import training_flops
from ifsq.pretrained.features import load_features
from ifsq.sources import Pair, load_pair
from ifsq.store.run import Run
from ifsq.training.distributed import World
from ifsq.training.log import Silent

FOLDER = Path("experiments/bundled")
WORLD = World(0, 1, torch.device("cpu"))
FEATURES = "efficientnet-lite0@64"
RECIPE = (
    "--train.steps 800 --train.optim.kind muon --train.optim.lr 2e-3 --train.optim.muon_lr 0.02 --train.optim.final 0"
)
TOKENIZERS = {
    "ifsq": (Path("experiments/demo/tokenizer.toml"), []),
    "vq": (FOLDER / "tokenizer_vq_f4_d4_14bit.toml", RECIPE.split()),
}
ROWS = {
    "joint": "ar_ifsq_f4_d4_4bit_joint",
    "2x289": "ar_ifsq_f4_d4_4bit_2x289",
    "chain": "ar_ifsq_f4_d4_4bit",
    "masked": "ar_ifsq_f4_d4_4bit_masked",
    "masked, 2 steps": "ar_ifsq_f4_d4_4bit_masked",
    "vq": "ar_vq_f4_d4_14bit",
}
COLUMNS = ("bits an image", f"FD({FEATURES})", "class agreement", "images a second", "processor s of training")
EXPECTED = """Expected before (bits an image; FD; agreement): chain 490, 2340, .94 as in the demo; masked 3 % more bits,
because it learns all orders and is asked for one; masked in 2 steps 20 bits more than that and little in FD; 2x289 510
and .90, because half of its operations go into the head; joint far behind, 650, 2800, .5: its head takes 92 % of the
operations at this width, so that it sees a twelfth of the images. VQ: fewer bits, because its tokens hold fewer, FD
near 2x289's."""


def tokenizer(name: str, work: Path, short: list[str]) -> dict[str, float]:
    """Train and encode, or find what is there; the figures of the tokenizer."""
    path, over = TOKENIZERS[name]
    folder = work / f"tokenizer_{name}"
    pipeline.train_tokenizer(load_tokenizer_experiment(path, [*over, "--out", str(folder), *short]), "cpu")
    pipeline.encode(folder, "bundled:photos", work / f"codes_{name}", device="cpu")
    cards = pipeline.evaluate_tokenizer(folder, "cpu")
    return {card.metric: next(iter(card.values.values())) for card in cards}


def generator(row: str, seed: int, work: Path, steps: int, short: list[str]) -> Path:
    """The folder of a trained generator, its processor seconds beside it."""
    codes = "vq" if row == "vq" else "ifsq"
    folder = work / f"{row.partition(',')[0]}{f'_{steps}' if steps else ''}_{seed}"
    over = ["--tokenizer", str(work / f"tokenizer_{codes}"), "--codes", str(work / f"codes_{codes}")]
    over += ["--out", str(folder), "--train.seed", str(seed)]
    over += ["--train.steps", str(steps), "--train.optim.warmup", str(steps // 10)] if steps else []
    began, told = time.process_time(), folder / "processor_seconds"
    if not told.is_file():
        pipeline.train_generator(load_generator_experiment(FOLDER / f"{ROWS[row]}.toml", [*over, *short]), "cpu")
        told.write_text(str(time.process_time() - began))
    return folder


@torch.no_grad()
def bits(pair: Pair, cache: CodeCache) -> float:
    """Mean over the held-out images."""
    codes = cache.read("val")
    parts = torch.arange(len(codes)).split(128)
    nats = torch.cat([pair.generator.nll(codes.batch(rows, WORLD.device)) for rows in parts])
    return float(nats.double().mean() / torch.tensor(2.0).log())


def images_a_second(pair: Pair) -> float:
    """The best of three batches of 64, tokens alone."""
    labels, seconds = torch.arange(64) % pair.generator.num_classes, []
    for seed in range(3):
        began = time.perf_counter()
        pair.generator.sample(labels, pair.generator.sampling(), seed=seed)
        seconds.append(time.perf_counter() - began)
    return len(labels) / min(seconds)


class Judged:
    """Real images and what the networks see of them, for every generator."""

    def __init__(self, work: Path, samples: int) -> None:
        cache = CodeCache.open(work / "codes_ifsq")
        self.data = build(DataConfig, cache.about["data"], "data")
        self.real = open_images(self.data, "train", channels=3)
        judge = share_judge(work, self.data, 3, WORLD, Silent())
        self.source = SourceImages(self.real, name_of(self.data, "train"), self.data)
        self.looks = [Look(JudgeFeatures(judge), agreement=True), Look(load_features(FEATURES))]
        reference = Reference(self.source.name, self.real.fingerprint, self.source)
        self.views = views_of(reference, self.looks, WORLD, Silent())
        self.labels = labels_like(cache.read("train").labels, samples)

    def figures(self, pair: Pair) -> tuple[float, float]:
        """Fréchet distance and class agreement."""
        count = len(self.labels)
        images = DrawnImages(pair.generator, pair.tokenizer, self.labels, 0, pair.generator.sampling())
        found = collect(self.looks, images, range(count), WORLD, Silent())
        blank = blank_card(self.data, self.source.name, self.real.fingerprint, count, pair.tokenizer)
        cards = image_cards(self.looks[1], found.seen[1], self.views[1], blank, WORLD)[0]
        distance = next(card for card in cards if card.metric == f"FD({FEATURES})")
        return next(iter(distance.values.values())), found.seen[0].right / found.seen[0].n


def measure(row: str, folder: Path, judged: Judged, work: Path) -> tuple[float, ...]:
    pair = load_pair(Run.open(folder), WORLD.device)
    if row == "masked, 2 steps":
        pair.generator.head.parts = [[0, 1], [2, 3]]
    cache = CodeCache.open(work / f"codes_{'vq' if row == 'vq' else 'ifsq'}")
    distance, agreement = judged.figures(pair)
    seconds = float((folder / "processor_seconds").read_text())
    return bits(pair, cache), distance, agreement, images_a_second(pair), seconds


def lines_of(found: dict[str, list[tuple[float, ...]]], cost: dict[str, tuple[float, int]]) -> list[str]:
    lines = [f"| head | GFLOP an image | steps | {' | '.join(COLUMNS)} |", "|---" * (3 + len(COLUMNS)) + "|"]
    for row, values in found.items():
        cells = [
            f"{statistics.mean(column):.4g}" + (f" ± {statistics.stdev(column):.2g}" if len(column) > 1 else "")
            for column in zip(*values, strict=True)
        ]
        lines.append(f"| {row} | {cost[row][0]:.3f} | {cost[row][1]} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/ar_heads"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--longer", type=int, default=0)
    parser.add_argument("--short", action="store_const", const=["--train.steps", "3"], default=[])
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    needed = {"ifsq", *("vq" for row in args.rows if row == "vq")}
    psnr = {name: tokenizer(name, args.work, args.short)["PSNR, dB"] for name in sorted(needed)}
    judged = Judged(args.work, args.samples)
    found: dict[str, list[tuple[float, ...]]] = {}
    cost: dict[str, tuple[float, int]] = {}
    asked = [(row, row, seed, 0) for seed in args.seeds for row in args.rows]
    if args.longer:
        asked.append((f"joint, {args.longer} steps, seed {args.seeds[0]}", "joint", args.seeds[0], args.longer))
    for title, row, seed, steps in asked:
        folder = generator(row, seed, args.work, steps, args.short)
        run = Run.open(folder)
        cost[title] = training_flops(load_pair(run, WORLD.device).generator) / 1e9, run.step or 0
        found.setdefault(title, []).append(measure(row, folder, judged, args.work))
        print(title, seed, [f"{value:.4g}" for value in found[title][-1]], flush=True)
    today = datetime.date.today().isoformat()
    told = ", ".join(f"{name} {value:.2f} dB" for name, value in psnr.items())
    heading = [
        f"# Heads of the autoregressive generator at equal training FLOPs, {today}",
        "",
        f"`python benchmarks/ar_heads.py`: bundled photographs, 32 px, 64 tokens; {args.samples} samples, guidance 2;"
        f" seeds {args.seeds}, mean ± deviation;",
        f"{args.threads} thread(s), torch {torch.__version__}, {time.perf_counter() - began:.0f} s in all;"
        f" tokenizers: {told}.",
        "",
        *EXPECTED.splitlines(),
        "",
    ]
    name = f"ar_heads_cpu{os.cpu_count()}_{today}.md"
    (args.out / name).write_text("\n".join([*heading, *lines_of(found, cost), ""]))
    print(args.out / name)


if __name__ == "__main__":
    main()
