"""What alignment costs: a training step at B size with cached features, and the writing of features.

    python benchmarks/alignment_cost.py --steps 5 --batch 2 > out.md

Expected before: 1.07 with the official projector of 2048 and 1.03 with 768, by the multiplications; 0.95 of the bare
teacher.

Steps of both kinds, each without alignment and with projectors of several widths, take turns in one process. The step
is the loop's own (`Trainee.backward` and `step`, AdamW, float32), and it reads codes and features from caches on disk.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ifsq import pipeline
from ifsq.codes import CodeSet, CodeSpec
from ifsq.codes import feature_writer as writer
from ifsq.codes.features import FeaturesAbout
from ifsq.data import DataConfig, iterate_once, open_images
from ifsq.generators import ARGenerator, DiffusionGenerator
from ifsq.generators.ar import ARConfig
from ifsq.generators.diffusion import DiTConfig
from ifsq.generators.repa import Alignment, AlignmentConfig
from ifsq.generators.train import GeneratorTask
from ifsq.pretrained.teachers import TeacherConfig, open_teacher
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World
from ifsq.training.optim import OptimConfig
from ifsq.training.trainee import Trainee

HERE = World(0, 1, torch.device("cpu"))
SPEC = CodeSpec((17, 17, 17, 17), (2, 2), "little", "paper", (16, 16))
WIDTH, IMAGES, DEPTH = 768, 64, 4
MODELS = {
    "ar": lambda: ARGenerator(ARConfig(size="B"), SPEC, 1000),
    "diffusion": lambda: DiffusionGenerator(DiTConfig(size="B", patch=1), SPEC, 1000),
}


@dataclass
class Runner:
    """One training; ``seconds`` of its steps."""

    name: str
    trainee: Trainee
    batches: object
    seconds: list

    def step(self, number: int) -> None:
        """One step of the loop, with the wait for its batch."""
        began = time.perf_counter()
        batch = next(self.batches)
        torch.manual_seed(number)
        self.trainee.backward(batch, torch.Generator().manual_seed(number), number, last=True)
        self.trainee.step(number)
        self.seconds.append(time.perf_counter() - began)


def codes(folder: Path) -> CodeSet:
    """Random digits, and features of them that lie on the disk."""
    digits = torch.randint(17, (IMAGES, *SPEC.shape)).to(torch.uint8)
    about = FeaturesAbout("random", "0" * 64, "0" * 64, SPEC.grid, WIDTH, IMAGES)
    partial = writer.partial_features(folder)
    writer.prepare_features(partial, about)
    writer.save_features(partial / writer.feature_shard(0), torch.randn(IMAGES, SPEC.tokens, WIDTH), None)
    rows = writer.finish_features(partial, folder, about, [IMAGES]).read()
    return CodeSet(SPEC, digits, torch.randint(1000, (IMAGES,)), features=(rows,))


def runner(kind: str, hidden: int | None, train: CodeSet, batch: int) -> Runner:
    """A training of one kind; ``hidden`` of the projector, None: without alignment."""
    config = TrainConfig(steps=10**6, batch=batch, optim=OptimConfig(warmup=0))
    torch.manual_seed(0)
    model, companion = MODELS[kind](), None
    if hidden is None:
        train = replace(train, features=())
    else:
        asked = AlignmentConfig((TeacherConfig("random"),), DEPTH, 1.0, hidden=hidden)
        companion = Alignment(asked, model.config.width, model.token_grid, [WIDTH], [SPEC.grid])
    task = GeneratorTask(model, train, None, config, companion)
    trainee = Trainee(model, task.loss, config.optim, config, HERE, companion)
    name = "without" if hidden is None else f"hidden {hidden}"
    return Runner(name, trainee, task.batches(0, HERE), [])


def steps(count: int, batch: int, widths: list[int]) -> None:
    """A table of seconds a step."""
    print("| kind | projector | s a step, median (least, most) | ratio of medians |\n|---|---|---|---|")
    for kind in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            train = codes(Path(folder) / "features")
            runners = [runner(kind, hidden, train, batch) for hidden in (None, *widths)]
            for number in range(count + 1):
                for one in runners:
                    one.step(number)
            for one in runners:
                kept = one.seconds[1:]  # the first makes the optimizer's state
                middle = statistics.median(kept)
                ratio = middle / statistics.median(runners[0].seconds[1:])
                print(f"| {kind} | {one.name} | {middle:.3f} ({min(kept):.3f}, {max(kept):.3f}) | {ratio:.3f} |")
            sys.stdout.flush()
            for one in runners:
                one.batches.close()


def features(count: int) -> None:
    """Pictures a second of the bare teacher, and of its features written beside codes of the same photographs."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tokenizer = TokenizerConfig(ConvConfig(width=8, multipliers=(1, 1), blocks=1, patch=2, groups=4),
                                    QuantizerConfig(levels=(5, 5)))  # fmt: skip
        Tokenizer(tokenizer).save_pretrained(folder / "tokenizer")
        (folder / "images").mkdir()
        data = DataConfig("bundled:photos", 32)
        source = open_images(data, "train", labels=False)
        from PIL import Image

        for index in range(count):
            pixels, _ = source.load(index, 0)
            Image.fromarray(pixels).resize((64, 64)).save(folder / "images" / f"{index:05d}.png")
        pipeline.encode(
            folder / "tokenizer", str(folder / "images"), folder / "codes", 64, device="cpu", splits=("train", "val")
        )
        teacher = open_teacher(TeacherConfig("efficientnet-lite0", layer=4))
        seen = open_images(DataConfig(str(folder / "images"), 64), "train", labels=False)
        pictures = [batch.images for batch in iterate_once(seen, 128)]
        teacher.features(pictures[0], (16, 16))
        print("| round | bare teacher, pictures/s | written, pictures/s | ratio |\n|---|---|---|---|")
        for turn in range(2):
            began = time.perf_counter()
            for batch in pictures:
                teacher.features(batch, (16, 16))
            bare = len(seen) / (time.perf_counter() - began)
            began = time.perf_counter()
            pipeline.cache_features(
                folder / "codes", TeacherConfig("efficientnet-lite0", layer=4), folder / f"f{turn}", (16, 16), "cpu"
            )
            written = len(seen) / (time.perf_counter() - began)
            print(f"| {turn + 1} | {bare:.1f} | {written:.1f} | {written / bare:.2f} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--hidden", type=int, nargs="*", default=[2048, 768])
    parser.add_argument("--photographs", type=int, default=1000)
    options = parser.parse_args()
    if options.steps:
        steps(options.steps, options.batch, options.hidden)
    if options.photographs:
        features(options.photographs)


if __name__ == "__main__":
    main()
