"""``ifsq demo``: every stage of `ifsq.pipeline` in order, on the bundled photographs, and the report at the end.

Each stage knows what is already done, so the same command continues wherever it was interrupted.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ifsq import pipeline
from ifsq.bench.report import write_report
from ifsq.bench.shipped import experiment_file
from ifsq.config import InputError, parse_overrides
from ifsq.evaluation import GeneratorEvaluation
from ifsq.evaluation.record import read_evaluation
from ifsq.experiment import load_generator_experiment, load_tokenizer_experiment
from ifsq.generators import Generator
from ifsq.pretrained.efficientnet_lite import EFFICIENTNET_LITE0
from ifsq.store.run import Run
from ifsq.store.weights import weights_digest
from ifsq.tokenizer.model import Tokenizer
from ifsq.training.log import Reporter

KINDS = ("ar", "diffusion")
FEATURES = "efficientnet-lite0@64"
"""Twice the images' side: at its own 224 pixels it would take as long as a training."""


def demo(out: Path, overrides: Sequence[str], device: str, reporter: Reporter) -> Path:
    """Run what is left of the demo in ``out``; returns the report's path.

    overrides  ``--train.*`` arguments, for every training
    """
    given = parse_overrides(overrides)
    other = [name for name in given if name != "train"]
    if other:
        raise InputError(
            f"--{other[0]}: the demo takes --train.* only; for more, see {experiment_file('demo/tokenizer.toml')}"
        )
    tokenizer, codes = out / "tokenizer", out / "codes"
    first = load_tokenizer_experiment(experiment_file("demo/tokenizer.toml"), overrides)
    second = [load_generator_experiment(experiment_file(f"demo/{kind}.toml"), overrides) for kind in KINDS]
    _refuse_another_length(tokenizer, codes, first.train.steps)
    reporter.say(f"1 of 4  a tokenizer of {first.data.source}")
    pipeline.train_tokenizer(replace(first, out=str(tokenizer)), device, reporter)
    trained = Run.open(tokenizer)
    if not _measured(trained, Tokenizer.from_run(trained).digest()):
        pipeline.evaluate_tokenizer(tokenizer, device, reporter)
    reporter.say("2 of 4  its codes, once for both generators")
    pipeline.encode(tokenizer, first.data.source, codes, device=device, reporter=reporter)
    runs = []
    for number, experiment in enumerate(second, start=3):
        run = out / experiment.kind
        reporter.say(f"{number} of 4  the {Generator.kinds[experiment.kind].title} generator of these codes")
        experiment = replace(experiment, out=str(run), tokenizer=str(tokenizer), codes=str(codes))
        pipeline.train_generator(experiment, device, reporter)
        trained = Run.open(run)
        if not _measured(trained, weights_digest(Generator.from_run(trained))):
            pipeline.evaluate_generator(run, _asked(), device, reporter)
        runs.append(run)
    return write_report([tokenizer, *runs], out / "report.html")


def _asked() -> GeneratorEvaluation:
    """By the judge of these very images, and by a network of ImageNet where it is installed; no untrained twin."""
    return GeneratorEvaluation(samples=1000, twin=False, features=(FEATURES,) if EFFICIENTNET_LITE0.installed else ())


def _refuse_another_length(tokenizer: Path, codes: Path, steps: int) -> None:
    """A tokenizer that goes on has other weights than those whose codes are there."""
    if codes.exists() and tokenizer.exists() and (done := Run.open(tokenizer).step) != steps:
        raise InputError(
            f"{tokenizer}: has {done} steps behind it, and its codes are in use; expected as many, got {steps}"
        )


def _measured(run: Run, digest: str) -> bool:
    """Whether the run's evaluation is of these very weights."""
    held = read_evaluation(run)
    if held is None:
        return False
    first = held.cards[0]
    return digest == (first.generator_hash or first.tokenizer_hash)
