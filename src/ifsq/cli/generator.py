"""``ifsq generator train|eval``, ``ifsq sample``."""

import argparse
from pathlib import Path
from typing import Any

from ifsq.cli.parser import SAMPLING, sampling_of, verb
from ifsq.cli.terminal import Terminal, print_cards, say


def add_generator(verbs: Any) -> None:
    """``generator train`` and ``generator eval``."""
    generator = verbs.add_parser("generator", help="train or evaluate a generator").add_subparsers(
        metavar="VERB", required=True
    )
    train = verb(
        generator, "train", "train an autoregressive or a diffusion generator", _generator_train, overrides="--"
    )
    train.add_argument("experiment", type=Path, metavar="EXPERIMENT.toml")
    evaluate = verb(generator, "eval", "measure samples against real images", _generator_eval, overrides=SAMPLING)
    evaluate.add_argument("folder", type=Path, metavar="RUN")
    evaluate.add_argument(
        "--samples",
        type=int,
        default=1000,
        metavar="N",
        help="images drawn, of the classes that the training images have and in their proportions (default 1000)",
    )
    evaluate.add_argument("--balanced", action="store_true", help="draw every one of these classes alike instead")
    evaluate.add_argument("--seed", type=int, default=0)


def add_sample(verbs: Any) -> None:
    """``sample``."""
    sample = verb(verbs, "sample", "draw images of given classes", _sample, overrides=SAMPLING)
    sample.add_argument("folder", type=Path, metavar="RUN", help="generator run")
    sample.add_argument(
        "--labels", nargs="+", required=True, metavar="CLASS", help="numbers or names of classes: one image for each"
    )
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--out", type=Path, required=True, metavar="GRID.png")


def _generator_train(options: argparse.Namespace) -> None:
    from ifsq import pipeline
    from ifsq.experiment import load_generator_experiment

    experiment = load_generator_experiment(options.experiment, options.extra)
    with Terminal() as terminal:
        say(f"run: {pipeline.train_generator(experiment, options.device, terminal)}")


def _generator_eval(options: argparse.Namespace) -> None:
    from ifsq import pipeline

    with Terminal() as terminal:
        cards = pipeline.evaluate_generator(
            options.folder,
            options.samples,
            options.seed,
            options.device,
            terminal,
            options.balanced,
            sampling_of(options),
        )
    print_cards(cards)


def _sample(options: argparse.Namespace) -> None:
    from ifsq import pipeline

    sampling = sampling_of(options)
    pipeline.sample(options.folder, options.labels, options.seed, options.out, options.device, sampling)
    say(f"picture: {options.out}")
