"""``ifsq teacher train``."""

import argparse
from pathlib import Path
from typing import Any

from ifsq.cli.parser import verb
from ifsq.cli.terminal import Terminal, say


def add_teacher(verbs: Any) -> None:
    """``teacher train``."""
    teacher = verbs.add_parser("teacher", help="train a teacher that generators are aligned to").add_subparsers(
        metavar="VERB", required=True
    )
    train = verb(teacher, "train", "train a teacher on images, without labels", _teacher_train, overrides="--")
    train.add_argument("experiment", type=Path, metavar="EXPERIMENT.toml")


def _teacher_train(options: argparse.Namespace) -> None:
    from ifsq import pipeline
    from ifsq.pretraining.config import load_teacher_experiment

    experiment = load_teacher_experiment(options.experiment, options.extra)
    with Terminal() as terminal:
        say(f"run: {pipeline.train_teacher(experiment, options.device, terminal)}")
