"""``ifsq generator train|eval|likelihood|times``, ``ifsq sample``."""

import argparse
from pathlib import Path
from typing import Any

from ifsq.cli.parser import LIKELIHOOD, SAMPLING, experiment_named, sampling_of, verb
from ifsq.cli.terminal import Terminal, print_cards, print_table, say
from ifsq.config import parse_overrides


def add_generator(verbs: Any) -> None:
    """``generator train``, ``eval``, ``likelihood`` and ``times``."""
    generator = verbs.add_parser("generator", help="train a generator, or measure one").add_subparsers(
        metavar="VERB", required=True
    )
    train = verb(
        generator,
        "train",
        "train a generator: autoregressive, diffusion or masked",
        _generator_train,
        overrides="--",
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
    add_weights(evaluate, all_of_them=True)
    evaluate.add_argument(
        "--twin", action=argparse.BooleanOptionalAction, default=True, help="measure an untrained generator beside it"
    )
    evaluate.add_argument(
        "--bits", action=argparse.BooleanOptionalAction, default=True, help="measure bits of held-out images too"
    )
    evaluate.add_argument(
        "--features",
        nargs="*",
        metavar="NAME",
        help="networks that distances look through beside the judge (default: efficientnet-lite0 where it is installed;"
        " none: without a NAME)",
    )
    evaluate.add_argument("--no-cache", action="store_true", help="keep no statistics of the training images")
    _add_likelihood(generator)
    times = verb(
        generator,
        "times",
        "fit the times of a diffusion generator's steps, for --sampling.times",
        _generator_times,
        overrides=SAMPLING,
    )
    times.add_argument("folder", type=Path, metavar="RUN")
    times.add_argument(
        "--images", type=int, default=16, metavar="N", help="whose noise they are fitted to (default 16)"
    )
    times.add_argument("--iterations", type=int, default=40, metavar="N", help="of the fit (default 40)")
    times.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="a new folder: the generator as a saved model that is sampled with these times",
    )
    add_weights(times)


def _add_likelihood(generator: Any) -> None:
    bits = verb(
        generator,
        "likelihood",
        "measure how many bits a generator needs for held-out codes",
        _generator_likelihood,
        overrides=LIKELIHOOD,
    )
    bits.add_argument("folder", type=Path, metavar="RUN")
    bits.add_argument("--images", type=int, default=64, metavar="N", help="held-out images (default 64)")
    bits.add_argument("--seed", type=int, default=0, help="of the random numbers of a bound")
    add_weights(bits)


def add_sample(verbs: Any) -> None:
    """``sample``."""
    sample = verb(
        verbs, "sample", "draw images of given classes, or many images of all classes", _sample, overrides=SAMPLING
    )
    sample.add_argument("folder", type=Path, metavar="RUN", help="generator run")
    which = sample.add_mutually_exclusive_group(required=True)
    which.add_argument("--labels", nargs="+", metavar="CLASS", help="numbers or names of classes: one image for each")
    which.add_argument("--count", type=int, metavar="N", help="how many images, of all classes")
    sample.add_argument(
        "--classes",
        choices=("balanced", "random", "training"),
        help="of --count: all alike, drawn at random, or as frequent as in the training set (default balanced)",
    )
    sample.add_argument("--seed", type=int, default=0)
    add_weights(sample)
    sample.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="of a set: images at once in each process (default: as many as suits their size)",
    )
    sample.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="PLACE",
        help="one picture GRID.png; or a set, which goes on where it was interrupted: a folder of PNGs, or FILE.npz as"
        " ADM's evaluations read it",
    )


def add_weights(parser: argparse.ArgumentParser, *, all_of_them: bool = False) -> None:
    """Add the arguments that say which weights of a run are meant, of one step or possibly of all."""
    which = "checkpoints that are kept, or all" if all_of_them else "a checkpoint that is kept"
    parser.add_argument(
        "--step",
        type=_steps if all_of_them else int,
        nargs="+" if all_of_them else None,
        metavar="N",
        help=f"{which} (default: the newest)",
    )
    parser.add_argument(
        "--weights", choices=("average", "raw"), default="average", help="of the checkpoint (default average)"
    )


def _steps(text: str) -> int | str:
    if text == "all":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected the number of a step, or all") from None


def _generator_train(options: argparse.Namespace) -> None:
    from ifsq import pipeline
    from ifsq.experiment import load_generator_experiment

    experiment = load_generator_experiment(experiment_named(options.experiment), options.extra)
    with Terminal() as terminal:
        say(f"run: {pipeline.train_generator(experiment, options.device, terminal)}")


def _generator_eval(options: argparse.Namespace) -> None:
    from ifsq import pipeline
    from ifsq.evaluation import GeneratorEvaluation

    asked = GeneratorEvaluation(
        samples=options.samples,
        seed=options.seed,
        balanced=options.balanced,
        twin=options.twin,
        bits=options.bits,
        features=None if options.features is None else tuple(options.features),
        cache=not options.no_cache,
    )
    steps = () if options.step and "all" in options.step else options.step
    with Terminal() as terminal:
        found = pipeline.evaluate_generator(
            options.folder,
            asked,
            options.device,
            terminal,
            sampling_of(options),
            steps,
            options.weights == "average",
        )
    *_, newest = found.values()
    if len(found) > 1:
        rows = [(str(step), *_figures(one)) for step, one in found.items()]
        print_table("over training", ("step", *(name for name, _ in _own(newest))), rows)
    print_cards(newest.cards)


def _generator_likelihood(options: argparse.Namespace) -> None:
    from ifsq import pipeline

    with Terminal() as terminal:
        card = pipeline.likelihood(
            options.folder,
            options.images,
            options.device,
            parse_overrides(options.extra).get("likelihood"),
            seed=options.seed,
            step=options.step,
            average=options.weights == "average",
            reporter=terminal,
        )
    print_cards([card])


def _generator_times(options: argparse.Namespace) -> None:
    from ifsq import pipeline

    with Terminal() as terminal:
        found = pipeline.fit_times(
            options.folder,
            options.device,
            sampling_of(options),
            step=options.step,
            average=options.weights == "average",
            images=options.images,
            iterations=options.iterations,
            out=options.out,
            reporter=terminal,
        )
    say(f"error of even times: {found.even_error:.4g}; of these: {found.error:.4g}")
    say(f"times = [{', '.join(f'{t:.6g}' for t in found.times)}]")
    if options.out is not None:
        say(f"model: {options.out}")


def _own(evaluation: Any) -> list[tuple[str, float]]:
    """The first figure of each card of the generator's own samples, by the card's name; shares of images are left out.

    They would make a table wider than a terminal; the report and the file have them.
    """
    from ifsq.evaluation.image_cards import SHARES

    own = [
        card
        for card in evaluation.cards
        if card.generator_hash and "," not in card.metric and card.metric.partition("(")[0] not in SHARES
    ]
    return [(card.metric, next(iter(card.values.values()))) for card in own]


def _figures(evaluation: Any) -> list[str]:
    return [f"{value:.4g}" for _, value in _own(evaluation)]


def _sample(options: argparse.Namespace) -> None:
    from ifsq import pipeline
    from ifsq.config import InputError

    if options.labels and options.classes:
        raise InputError("--classes: says of which classes --count images are; got --labels")
    if options.batch is not None and options.out.suffix.lower() == ".png":
        raise InputError(f"--batch: says how a set is drawn; got one picture, {options.out}")
    with Terminal() as terminal:
        pipeline.sample(
            options.folder,
            options.labels or (),
            options.seed,
            options.out,
            options.device,
            sampling_of(options),
            count=options.count or 0,
            classes=options.classes or "balanced",
            step=options.step,
            average=options.weights == "average",
            batch=options.batch,
            reporter=terminal,
        )
    say(f"{'picture' if options.out.suffix.lower() == '.png' else 'samples'}: {options.out}")
