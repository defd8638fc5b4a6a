"""``ifsq demo`` of this build beside that of another one, run alternately on one idle machine.

    git worktree add ../before facabb7
    python benchmarks/demo.py --before ../before [--rounds 2] [--work demo-builds] [--features efficientnet-lite0@64]

Each round runs the other build, then this one, each in a process and a folder of its own, with torch's default threads.
The stages' seconds are those between the lines that the command prints. All runs are then measured by this build: PSNR
of the held-out images; of 1000 samples of each generator, drawn by its run's own options, class agreement and FD(judge)
by one judge for all, and the Fréchet distance in the features of one more network. Prints tables in Markdown; a run
that is there already (``--work`` of an earlier call) is not run again.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
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
from ifsq.pretrained.features import load_features
from ifsq.sources import load_pair
from ifsq.store.run import Run
from ifsq.training.distributed import World
from ifsq.training.log import Silent

SAMPLES = 1000
HERE = Path(__file__).resolve().parents[1]
WORLD = World(0, 1, torch.device("cpu"))
STAGES = {"1": "tokenizer", "2": "codes", "3": "ar", "4": "diffusion"}


def run_demo(source: Path, out: Path) -> dict[str, float]:
    """Seconds of each stage, of the trainings in it (``train NAME``) and of all; kept beside the run."""
    kept = out.with_suffix(".json")
    if kept.exists():
        return json.loads(kept.read_text())
    environment = os.environ | {"PYTHONPATH": str(source / "src"), "PYTHONUNBUFFERED": "1"}
    environment["IFSQ_CACHE"] = f"{out}_cache"  # empty, as after installation
    command = [sys.executable, "-m", "ifsq", "demo", "--out", str(out)]
    began, stage, seconds = time.perf_counter(), "start", {"all": 0.0}
    since = began
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            now = time.perf_counter()
            if found := re.match(r"([1-4]) of 4", line):
                seconds[stage], since, stage = now - since, now, STAGES[found[1]]
            elif found := re.match(r"(\w+): done in (\d+) s", line):
                seconds.setdefault(f"train {found[1]}", float(found[2]))
    if demo.returncode:
        raise SystemExit(f"{source}: ifsq demo ended with {demo.returncode}")
    seconds |= {stage: time.perf_counter() - since, "all": time.perf_counter() - began}
    kept.write_text(json.dumps(seconds))
    return seconds


def measured(out: Path, judged_in: Path, features: str) -> dict[str, float]:
    """Figures of one demo, all by this build."""
    cards = pipeline.evaluate_tokenizer(out / "tokenizer", "cpu")
    figures = {"PSNR, dB": next(card.values["mean"] for card in cards if card.metric == "PSNR, dB")}
    cache = CodeCache.open(out / "codes")
    data = build(DataConfig, cache.about["data"], "data")
    real = open_images(data, "train", channels=3)
    judge = share_judge(judged_in, data, 3, WORLD, Silent())
    source = SourceImages(real, name_of(data, "train"), data)
    looks = [Look(JudgeFeatures(judge), agreement=True), Look(load_features(features))]
    views = views_of(Reference(source.name, real.fingerprint, source), looks, WORLD, Silent())
    labels = labels_like(cache.read("train").labels, SAMPLES)
    for kind in ("ar", "diffusion"):
        pair = load_pair(Run.open(out / kind), WORLD.device)
        sampling = pair.generator.sampling()
        images = DrawnImages(pair.generator, pair.tokenizer, labels, 0, sampling)
        found = collect(looks, images, range(SAMPLES), WORLD, Silent())
        blank = blank_card(data, source.name, real.fingerprint, SAMPLES, pair.tokenizer)
        for look, seen, view in zip(looks, found.seen, views, strict=True):
            for card in image_cards(look, seen, view, blank, WORLD)[0]:
                figures[f"{kind}, {card.metric}"] = next(iter(card.values.values()))
        figures[f"{kind}, class agreement"] = found.seen[0].right / found.seen[0].n
    return figures


def table(title: str, rows: dict[str, list[dict[str, float]]]) -> list[str]:
    """A line a figure: each run's value of both builds, and the ratio of the means."""
    names = list(dict.fromkeys(name for found in rows.values() for each in found for name in each))
    lines = [f"| {title} | before | now | now / before |", "|---|---|---|---|"]
    for name in names:
        values = [[each[name] for each in found if name in each] for found in rows.values()]
        ratio = f"{statistics.mean(values[1]) / statistics.mean(values[0]):.2f}" if all(values) else ""
        lines.append(
            f"| {name} | " + " | ".join(", ".join(f"{v:.4g}" for v in each) for each in values) + f" | {ratio} |"
        )
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="checkout of the other build")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("demo-builds"))
    parser.add_argument("--features", default="efficientnet-lite0@64")
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    builds = {"before": args.before.resolve(), "now": HERE}
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in builds}
    for number in range(args.rounds):
        for name, source in builds.items():
            seconds[name].append(run_demo(source, work / f"{name}_{number}"))
            print(f"{name} {number}: {seconds[name][-1]}", flush=True)
    print("\n".join(table("seconds", seconds)), flush=True)
    figures = {
        name: [measured(work / f"{name}_{number}", work, args.features) for number in range(args.rounds)]
        for name in builds
    }
    print("\n".join(["", *table("figure", figures)]))


if __name__ == "__main__":
    main()
